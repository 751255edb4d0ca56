"""Public ids: a prefix that tells the kind, and 16 random letters and digits (contract 2)."""

import secrets
import string
from typing import Literal

Prefix = Literal["cal", "evt", "bot", "webhook", "proj", "key", "dlv", "cred", "msg", "oapp"]

_ALPHABET = string.ascii_letters + string.digits


def new_id(prefix: Prefix) -> str:
    """`prefix_` + 16 characters: 95 bits of chance."""
    return prefix + "_" + "".join(secrets.choice(_ALPHABET) for _ in range(16))
