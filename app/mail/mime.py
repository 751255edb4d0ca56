"""Complete mails: RFC 5322 bytes with CRLF, for one recipient each (RFC 6047)."""

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

# Longer display names are cut. Clients show less than this.
_LONGEST_NAME = 120
# A longer address makes the line longer than 78 characters. Python programs fold it again, and decode the name.
_LONGEST_NAMED_ADDRESS = 75
# Keeps the line of the header short enough.
_LONGEST_ID_DOMAIN = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Mailing:
    """The parts of a mail.

    `thread_id` is the Message-ID of the first mail about the event, if this is a later one. `reply_to` is the address
    for written replies, if that is not the sender's.
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
    """`<digest@sender's domain>`: the same for the same parts, so that receivers can drop a duplicate."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()[:32]
    domain = sender_email.rpartition("@")[2].lower()
    while len(domain) > _LONGEST_ID_DOMAIN and "." in domain:
        domain = domain.partition(".")[2]
    return f"<{digest}@{domain[-_LONGEST_ID_DOMAIN:].lstrip('-.')}>"


def compose(mailing: Mailing) -> bytes:
    """Write a mail in the form that Outlook and Gmail need.

    It is mixed(alternative(text/plain, text/html, text/calendar), invite.ics).
    Raises ValueError if an address is not valid.
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

    # "=_" does not occur in base64 or quoted-printable text, so the boundaries occur nowhere else in the mail.
    digest = mailing.message_id.strip("<>").partition("@")[0]
    outer, inner = f"=_mixed_{digest}", f"=_alternative_{digest}"
    calendar, attachment = _calendar_parts(mailing.ics, mailing.method)
    texts = [_text_part(mailing.rendered.text), _html_part(mailing.rendered.html), calendar]
    alternative = f'Content-Type: multipart/alternative;\r\n boundary="{inner}"\r\n\r\n'.encode()
    lines += ["Content-Type: multipart/mixed;", f' boundary="{outer}"']
    header = "".join(f"{line}\r\n" for line in lines).encode("ascii")
    return header + b"\r\n" + _multipart(outer, [alternative + _multipart(inner, texts), attachment])


def is_to_itself(sender_email: str, recipient_email: str) -> bool:
    """Whether the mail goes to the mailbox that it comes from.

    Replies of guests do if the owner's own mailbox sends the invitations. Such a mail has no Message-ID: Messages stores
    it as sent, and would not put it into the inbox if it found the same Message-ID in the mailbox. A second submit of
    the same mail has the Message-ID (app/invitations/sender.py).
    """
    return same_address(sender_email, recipient_email)


def _multipart(boundary: str, parts: Sequence[bytes]) -> bytes:
    """A multipart body (RFC 2046 section 5.1.1). The library would encode the calendar for each guest."""
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
    """The part for calendar programs, and the same as an attachment. In base64, no relay changes a line."""
    calendar = MIMEPart(policy=SMTP)
    calendar.set_content(ics.decode(), subtype="calendar", cte="base64", params={"method": method})
    # application/ics, because some clients show a second text/calendar part as a second invitation.
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
    # A long address is on a line of its own. Names and addresses are never folded inside.
    blank = "\r\n " if len(header) + len(shown.rpartition("\r\n")[2]) + len(email) > 70 else " "
    return f"{shown}{blank}<{email}>"
