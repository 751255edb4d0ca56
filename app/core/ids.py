"""Public ids: a prefix that tells the kind, and 16 random letters and digits.

See docs/reference/http-api.md, "Identifiers".
"""

import os
import string
from typing import Literal

Prefix = Literal["cal", "evt", "bot", "webhook", "proj", "key", "dlv", "cred", "msg", "oapp", "osec"]

_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 16
# Random bytes become characters by their remainder; the highest are dropped, so that none is likelier.
_EVEN = 256 - 256 % len(_ALPHABET)
_TABLE = bytes(ord(_ALPHABET[byte % len(_ALPHABET)]) for byte in range(256))
_UNEVEN = bytes(range(_EVEN, 256))


def new_id(prefix: Prefix) -> str:
    """`prefix_` + 16 characters: 95 bits of chance."""
    characters = b""
    while len(characters) < _LENGTH:
        characters += os.urandom(_LENGTH + 8).translate(_TABLE, _UNEVEN)
    return f"{prefix}_{characters[:_LENGTH].decode()}"
