"""Encryption at rest: Fernet with rotating keys, each ciphertext bound to the row that it belongs to.

Fernet has no associated data, so the context ("table:id") is part of the plaintext and checked on opening:
a ciphertext copied to another row does not open there.
"""

import hashlib
import hmac
from typing import Any

import orjson
from cryptography.fernet import Fernet, InvalidToken, MultiFernet


class SealBroken(Exception):
    """A stored secret cannot be opened: wrong CREDENTIALS_ENCRYPTION_KEYS, or it belongs to another row."""


class SecretBox:
    """Seals JSON-able values. The first key encrypts, all keys decrypt."""

    def __init__(self, keys: list[str]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def seal(self, context: str, value: Any) -> bytes:
        return self._fernet.encrypt(context.encode() + b"\n" + orjson.dumps(value))

    def open(self, context: str, sealed: bytes) -> Any:
        """Raises SealBroken."""
        try:
            plain = self._fernet.decrypt(sealed)
        except InvalidToken:
            raise SealBroken(
                f"the secret of {context} cannot be decrypted: is the key it was stored with still in "
                "CREDENTIALS_ENCRYPTION_KEYS?"
            ) from None
        bound_to, _, text = plain.partition(b"\n")
        if not hmac.compare_digest(bound_to, context.encode()):
            raise SealBroken(f"the stored secret does not belong to {context}")
        return orjson.loads(text)

    def __repr__(self) -> str:
        return "<SecretBox>"


def sha256_hex(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()
