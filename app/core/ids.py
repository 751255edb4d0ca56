"""Public ids: a prefix that names the kind, and 16 random letters and digits.

See docs/reference/http-api.md, "Identifiers".
"""

import os
import string
from typing import Literal

Prefix = Literal["cal", "evt", "bot", "webhook", "proj", "key", "dlv", "cred", "msg", "oapp", "osec"]

_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 16
# A random byte becomes a character by its remainder. The highest bytes are dropped, so that all characters are
# equally likely.
_EVEN = 256 - 256 % len(_ALPHABET)
_TABLE = bytes(ord(_ALPHABET[byte % len(_ALPHABET)]) for byte in range(256))
_UNEVEN = bytes(range(_EVEN, 256))


def new_id(prefix: Prefix) -> str:
    """Return `prefix_` and 16 random characters, which hold 95 random bits."""
    characters = b""
    while len(characters) < _LENGTH:
        characters += os.urandom(_LENGTH + 8).translate(_TABLE, _UNEVEN)
    return f"{prefix}_{characters[:_LENGTH].decode()}"
