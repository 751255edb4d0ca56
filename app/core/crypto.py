"""Encryption at rest: Fernet with rotating keys.

Each ciphertext is bound to the row that it belongs to.

Fernet has no associated data, so the context ("table:id") is a part of the plaintext and is checked on decryption.
A ciphertext that was copied to another row cannot be decrypted there.
"""

import hashlib
import hmac
from typing import Any

import orjson
from cryptography.fernet import Fernet, InvalidToken, MultiFernet


class SealBroken(Exception):
    """A stored secret cannot be decrypted: wrong CREDENTIALS_ENCRYPTION_KEYS, or it is of another row."""


class SecretBox:
    """Encrypts and decrypts values that JSON can hold. The first key encrypts, all keys decrypt."""

    def __init__(self, keys: list[str]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])
        self._first = Fernet(keys[0])

    def seal(self, context: str, value: Any) -> bytes:
        return self._fernet.encrypt(context.encode() + b"\n" + orjson.dumps(value))

    def open(self, context: str, sealed: bytes) -> Any:
        """Return the decrypted value. Raises SealBroken."""
        return orjson.loads(self._open(self._fernet, context, sealed).partition(b"\n")[2])

    def has_first_key(self, context: str, sealed: bytes) -> bool:
        """Whether the first key alone decrypts it. Raises SealBroken if it belongs to another row."""
        try:
            self._first.decrypt(sealed)
        except InvalidToken:
            return False
        self._open(self._first, context, sealed)
        return True

    def reseal(self, context: str, sealed: bytes) -> bytes:
        """Return the same value, encrypted with the first key. Raises SealBroken."""
        return self._first.encrypt(self._open(self._fernet, context, sealed))

    @staticmethod
    def _open(fernet: Fernet | MultiFernet, context: str, sealed: bytes) -> bytes:
        try:
            plain = fernet.decrypt(sealed)
        except InvalidToken:
            raise SealBroken(
                f"the secret of {context} cannot be decrypted: is the key it was stored with still in "
                "CREDENTIALS_ENCRYPTION_KEYS?"
            ) from None
        if not hmac.compare_digest(plain.partition(b"\n")[0], context.encode()):
            raise SealBroken(f"the stored secret does not belong to {context}")
        return plain

    def __repr__(self) -> str:
        return "<SecretBox>"


def sha256_hex(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()
