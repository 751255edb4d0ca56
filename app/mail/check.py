"""The check of a mail right before it is sent, by other code than the code that wrote it.

A mail holds its recipient's personal RSVP links. One that names another recipient must never be sent, also if an older
release wrote it.
"""

import email.policy
import re
from email.errors import MessageError
from email.message import Message
from email.parser import BytesParser
from email.policy import compat32
from email.utils import getaddresses

from app.core.addresses import same_address

LARGEST_MAIL_BYTES = 20 * 1024 * 1024  # the limit of Messages (docs/reference/messages.md, "Submit")
_LONGEST_LINE = 998  # RFC 5322 2.1.1
_ONCE = ("from", "to", "date", "mime-version", "content-type")
_AT_MOST_ONCE = ("subject", "message-id", "reply-to", "in-reply-to", "references")
_NEVER = ("cc", "bcc", "sender", "apparently-to", "return-path")
_SHAPE = (
    "multipart/mixed", "multipart/alternative", "text/plain", "text/html", "text/calendar", "application/ics",
)  # fmt: skip
# What a lenient parser could take for an address, anywhere; and a quoted text that looks like a group.
_ADDRESS_LIKE = re.compile(r"[^\s\"<>(),:;@\[\]\\]+@[^\s\"<>(),:;@\[\]\\]+")
_QUOTED_GROUP = re.compile(r"\"[^\"]*[:;]")
_FOLD = re.compile(r"\r\n(?=[ \t])")


class MailUnsafe(Exception):
    """The bytes are not one mail from this sender to this recipient only. The text says what is wrong."""


def check_addressing(mail: bytes, *, sender_email: str, recipient_email: str) -> None:
    """Check that the header has exactly this sender and this recipient. Raises MailUnsafe."""
    header, blank, _ = mail.partition(b"\r\n\r\n")
    message = BytesParser(policy=compat32).parsebytes(header + blank, headersonly=True)
    if message.defects or message.get_payload():
        raise MailUnsafe("its header is malformed")
    _check_headers(message)
    for name, expected in (("From", sender_email), ("To", recipient_email)):
        _check_address(name, str(message[name]), expected)


def check_mail(mail: bytes, *, sender_email: str, recipient_email: str) -> None:
    """Check addressing, sizes, line ends and parts of a complete mail. Raises MailUnsafe."""
    if len(mail) > LARGEST_MAIL_BYTES:
        raise MailUnsafe("the mail is over 20 MiB")
    without_breaks = mail.replace(b"\r\n", b"")
    if b"\r" in without_breaks or b"\n" in without_breaks:
        raise MailUnsafe("a line does not end in CRLF")
    if max(map(len, mail.split(b"\r\n"))) > _LONGEST_LINE:
        raise MailUnsafe(f"a line is longer than {_LONGEST_LINE} bytes")
    check_addressing(mail, sender_email=sender_email, recipient_email=recipient_email)
    _check_parts(BytesParser(policy=compat32).parsebytes(mail))


def _check_headers(message: Message) -> None:
    names = [name.lower() for name in message.keys()]  # noqa: SIM118 - a header may come twice
    for name in names:
        if name in _NEVER or name.startswith("resent-"):
            raise MailUnsafe(f"it has a {name} header")
    for name in _ONCE:
        if names.count(name) != 1:
            raise MailUnsafe(f"it has {names.count(name)} {name} headers")
    for name in _AT_MOST_ONCE:
        if names.count(name) > 1:
            raise MailUnsafe(f"it has more than one {name} header")


def _check_address(header: str, folded: str, expected: str) -> None:
    """Strict and lenient parsers must all find this address, and no other."""
    value = _FOLD.sub("", folded)
    anywhere = _ADDRESS_LIKE.findall(value)
    careful = [address for _, address in getaddresses([value])]
    try:
        addresses = email.policy.default.header_factory(header, value).addresses
        by_registry = [one.addr_spec for one in addresses]
    except (MessageError, AttributeError, IndexError, ValueError):  # what its parser raises on odd input
        by_registry = []
    is_one = len(careful) == len(by_registry) == 1
    if (
        not is_one
        or not all(same_address(one, expected) for one in (*anywhere, *careful, *by_registry))
        or not anywhere
        or _QUOTED_GROUP.search(value)
    ):
        raise MailUnsafe(f"its {header} header can be read as another address than {expected}")


def _check_parts(message: Message) -> None:
    parts = list(message.walk())
    if tuple(part.get_content_type() for part in parts) != _SHAPE:
        raise MailUnsafe("its parts are not those of an invitation")
    for part in parts:
        if len(part.get_all("Content-Type", [])) != 1:
            raise MailUnsafe("a part has not exactly one Content-Type")
        if part.defects:
            raise MailUnsafe(f"a part is malformed ({type(part.defects[0]).__name__})")
