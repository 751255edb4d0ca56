"""Mail addresses: parsing, checking and comparing."""

import re
from email.utils import getaddresses

# The dot-atom of RFC 5322 3.4.1 and a host name, in ASCII. No quoted local parts, no address literals.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*")
_LAST_LABEL = r"(?:[A-Za-z]{2,63}|[Xx][Nn]--[A-Za-z0-9-]{0,58}[A-Za-z0-9])"
_TOP_LEVEL = re.compile(_LAST_LABEL)
# The pattern of a mail address with a domain, for JSON schemas. It does not check lengths.
MAIL_ADDRESS = rf"^{_ATOM}(?:\.{_ATOM})*@(?:{_LABEL}\.)+{_LAST_LABEL}$"
_MAX_LENGTH, _MAX_LOCAL_PART_LENGTH = 254, 64  # RFC 5321 4.5.3.1


def is_address(value: str) -> bool:
    """Whether this is written like a bare address. Use `is_mail_address` for a recipient."""
    fits = len(value) <= _MAX_LENGTH and len(value.partition("@")[0]) <= _MAX_LOCAL_PART_LENGTH
    return fits and _ADDRESS.fullmatch(value) is not None


def is_mail_address(value: str) -> bool:
    """Whether a mail to this bare address can arrive.

    The last label must be a possible top-level domain: letters, or `xn--` with what follows. Messages drops a mail to
    any other domain without an error (docs/reference/messages.md, "Recipients").
    """
    return is_address(value) and _TOP_LEVEL.fullmatch(re.split("[@.]", value)[-1]) is not None


def parse_mailbox(value: str) -> tuple[str, str | None]:
    """Return (address, display name or None) of `ada@example.org` or `Ada <ada@example.org>`.

    Raises ValueError.
    """
    found = getaddresses([value])
    if len(found) != 1 or not is_address(found[0][1]):
        raise ValueError("not one mail address")
    name, address = found[0]
    return address, name or None


def fold_address(email: str) -> str:
    """Return the address with A-Z in lower case and everything else unchanged."""
    return "".join(char.lower() if "A" <= char <= "Z" else char for char in email)


def same_address(one: str, other: str) -> bool:
    """Whether two addresses differ in nothing but the case of A-Z."""
    return fold_address(one) == fold_address(other)
