"""Sealing: bound to a row, readable with old keys, silent about what is inside."""

import pytest
from cryptography.fernet import Fernet

from app.core.crypto import SealBroken, SecretBox


def test_what_is_sealed_opens_in_its_own_row() -> None:
    box = SecretBox([Fernet.generate_key().decode()])
    assert box.open("credentials:cred_1", box.seal("credentials:cred_1", {"a": "ü"})) == {"a": "ü"}


def test_a_sealed_value_does_not_open_in_another_row() -> None:
    box = SecretBox([Fernet.generate_key().decode()])
    with pytest.raises(SealBroken, match="does not belong"):
        box.open("credentials:cred_2", box.seal("credentials:cred_1", "x"))


def test_after_a_rotation_old_keys_open_and_the_new_one_seals() -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    sealed = SecretBox([old]).seal("c:1", "x")
    rotated = SecretBox([new, old])
    assert rotated.open("c:1", sealed) == "x"
    assert SecretBox([new]).open("c:1", rotated.seal("c:1", "y")) == "y"
    with pytest.raises(SealBroken, match="CREDENTIALS_ENCRYPTION_KEYS"):
        SecretBox([new]).open("c:1", sealed)


def test_the_plain_text_is_not_in_the_sealed_one() -> None:
    assert b"hunter2" not in SecretBox([Fernet.generate_key().decode()]).seal("c:1", "hunter2")
