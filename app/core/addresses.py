"""Mail addresses: which ones a mail can go to, and when two are one person's."""

import re
from email.utils import getaddresses

# The dot-atom of RFC 5322 3.4.1 and a host name; no quoted local parts, no address literals, ASCII alone.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*")
_LAST_LABEL = r"(?:[A-Za-z]{2,63}|[Xx][Nn]--[A-Za-z0-9-]{0,58}[A-Za-z0-9])"
_TOP_LEVEL = re.compile(_LAST_LABEL)
# Of a mail address with a domain, for schemas. Lengths are not in it.
MAIL_ADDRESS = rf"^{_ATOM}(?:\.{_ATOM})*@(?:{_LABEL}\.)+{_LAST_LABEL}$"
_LONGEST, _LONGEST_LOCAL_PART = 254, 64  # RFC 5321 4.5.3.1


def is_address(value: str) -> bool:
    """Whether this has the form of a bare address. That is enough for a sender, who is known to exist."""
    fits = len(value) <= _LONGEST and len(value.partition("@")[0]) <= _LONGEST_LOCAL_PART
    return fits and _ADDRESS.fullmatch(value) is not None


def is_mail_address(value: str) -> bool:
    """Whether a mail to this bare address can arrive.

    Its last label is one that a top-level domain can have: letters, or `xn--` and what follows it. Messages drops a
    mail to anything else without a word (docs/reference/messages.md), so it is never handed to it.
    """
    return is_address(value) and _TOP_LEVEL.fullmatch(re.split("[@.]", value)[-1]) is not None


def parse_mailbox(value: str) -> tuple[str, str | None]:
    """(address, display name or None) of `ada@example.org` or `Ada <ada@example.org>`. Raises ValueError."""
    found = getaddresses([value])
    if len(found) != 1 or not is_address(found[0][1]):
        raise ValueError("not one mail address")
    name, address = found[0]
    return address, name or None


def fold_address(email: str) -> str:
    """A-Z in lower case, everything else as it is (docs/reference/messages.md)."""
    return "".join(char.lower() if "A" <= char <= "Z" else char for char in email)


def same_address(one: str, other: str) -> bool:
    """Whether two addresses are one person's."""
    return fold_address(one) == fold_address(other)
