"""Complete mails: RFC 5322 bytes with CRLF, for one recipient each.

See docs/reference/icalendar.md, "Structure of a mail"; RFC 6047.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import MIMEPart
from email.policy import SMTP
from email.utils import format_datetime
from functools import lru_cache

from app.core.addresses import is_address, same_address
from app.itip.build import Method
from app.itip.clean import clean_line
from app.mail.headers import phrase, unstructured
from app.mail.rendering import Rendered

# Display names are cut: clients show less anyway.
_LONGEST_NAME = 120
# With a longer one the line has over 78 characters: Python programs on the way would fold it anew, and decode the name.
_LONGEST_NAMED_ADDRESS = 75
# So that the header's line is never too long.
_LONGEST_ID_DOMAIN = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Mailing:
    """What a mail consists of. `thread_id`: the Message-ID of the first mail about the event, if this is a later one.

    `reply_to`: whom answers by hand are for, if not the sender.
    """

    sender_email: str
    sender_name: str | None
    recipient_email: str
    recipient_name: str | None
    reply_to: str | None
    message_id: str
    thread_id: str | None
    date: datetime
    method: Method
    ics: bytes
    rendered: Rendered


def make_message_id(sender_email: str, *parts: str | int | None) -> str:
    """`<digest@sender's domain>`: the same for the same parts, so that receivers can drop a twin."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()[:32]
    domain = sender_email.rpartition("@")[2].lower()
    while len(domain) > _LONGEST_ID_DOMAIN and "." in domain:
        domain = domain.partition(".")[2]
    return f"<{digest}@{domain[-_LONGEST_ID_DOMAIN:].lstrip('-.')}>"


def compose(mailing: Mailing) -> bytes:
    """mixed( alternative( text/plain, text/html, text/calendar ), invite.ics ), as Outlook and Gmail want it.

    Raises ValueError for an address that is none.
    """
    lines = [
        f"From: {_mailbox('From', mailing.sender_email, mailing.sender_name)}",
        f"To: {_mailbox('To', mailing.recipient_email, mailing.recipient_name)}",
    ]
    if mailing.reply_to is not None and not same_address(mailing.reply_to, mailing.sender_email):
        lines.append(f"Reply-To: {_mailbox('Reply-To', mailing.reply_to, None)}")
    lines += [
        f"Subject: {unstructured('Subject', clean_line(mailing.rendered.subject))}",
        f"Date: {format_datetime(mailing.date)}",
    ]
    if not is_to_itself(mailing.sender_email, mailing.recipient_email):
        lines.append(f"Message-ID: {mailing.message_id}")
    if mailing.thread_id is not None:
        lines += [f"In-Reply-To: {mailing.thread_id}", f"References: {mailing.thread_id}"]
    lines += [
        "Auto-Submitted: auto-generated",
        "MIME-Version: 1.0",
        "Content-Class: urn:content-classes:calendarmessage",
        f"Content-Language: {mailing.rendered.language}",
    ]

    # "=_" is in no base64 and no quoted-printable text, so these stand nowhere else in the mail.
    digest = mailing.message_id.strip("<>").partition("@")[0]
    outer, inner = f"=_mixed_{digest}", f"=_alternative_{digest}"
    calendar, attachment = _calendar_parts(mailing.ics, mailing.method)
    texts = [_text_part(mailing.rendered.text), _html_part(mailing.rendered.html), calendar]
    alternative = f'Content-Type: multipart/alternative;\r\n boundary="{inner}"\r\n\r\n'.encode()
    lines += ["Content-Type: multipart/mixed;", f' boundary="{outer}"']
    header = "".join(f"{line}\r\n" for line in lines).encode("ascii")
    return header + b"\r\n" + _multipart(outer, [alternative + _multipart(inner, texts), attachment])


def is_to_itself(sender_email: str, recipient_email: str) -> bool:
    """Whether the mail goes to the box that it comes from, as guests' answers do where an owner has her own mailbox.

    Such a mail has no Message-ID: Messages stores it as sent and, finding the Message-ID in the box already, would not
    put it into the inbox, where it is to be read. The price: it could not tell a second copy from the first, so the
    sender gives that one its Message-ID back (app/invitations/sender.py).
    """
    return same_address(sender_email, recipient_email)


def _multipart(boundary: str, parts: Sequence[bytes]) -> bytes:
    """RFC 2046 5.1.1. Put together here and not by the library, which would encode the guests' list anew for each guest."""
    mark = f"--{boundary}".encode()
    return b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts) + mark + b"--\r\n"


def _text_part(text: str) -> bytes:
    part = MIMEPart(policy=SMTP)
    part.set_content(text, cte="quoted-printable")
    return part.as_bytes()


def _html_part(html: str) -> bytes:
    part = MIMEPart(policy=SMTP)
    part.set_content(html, subtype="html", cte="base64")
    return part.as_bytes()


@lru_cache(maxsize=8)
def _calendar_parts(ics: bytes, method: Method) -> tuple[bytes, bytes]:
    """The part for calendar programs, and the same bytes as an attachment. Base64: no relay touches a line of it."""
    calendar = MIMEPart(policy=SMTP)
    calendar.set_content(ics.decode(), subtype="calendar", cte="base64", params={"method": method})
    # As application/ics: a second text/calendar part makes some clients ask twice.
    attachment = MIMEPart(policy=SMTP)
    attachment.set_content(
        ics,
        maintype="application",
        subtype="ics",
        disposition="attachment",
        filename="invite.ics",
        params={"name": "invite.ics", "method": method},
    )
    return calendar.as_bytes(), attachment.as_bytes()


def _mailbox(header: str, email: str, name: str | None) -> str:
    if not is_address(email):
        raise ValueError("not a mail address")
    shown = phrase(header, clean_line(name)[:_LONGEST_NAME].rstrip())
    if not shown or len(email) > _LONGEST_NAMED_ADDRESS:
        return email
    # On a line of its own where it is long: nothing is ever folded inside a name or an address.
    blank = "\r\n " if len(header) + len(shown.rpartition("\r\n")[2]) + len(email) > 70 else " "
    return f"{shown}{blank}<{email}>"
