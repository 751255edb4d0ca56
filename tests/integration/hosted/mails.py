"""Invitation mails that a test causes, and the calendar objects in them."""

from email import message_from_bytes
from typing import Any

from icalendar import Calendar as Ics
from sqlalchemy import select

from app.models import InvitationMail


class Outbox:
    def __init__(self, sessions) -> None:
        self._sessions = sessions
        self._seen: set[str] = set()

    async def new(self) -> list[tuple[str, str, int]]:
        """(method, recipient, sequence) of the mails written since the last call."""
        return [(m.method, m.recipient_email, m.sequence) for m in await self.mails()]

    async def mails(self) -> list[InvitationMail]:
        async with self._sessions() as session:
            rows = await session.scalars(
                select(InvitationMail).order_by(InvitationMail.created_at, InvitationMail.id)
            )
            new = [row for row in rows if row.id not in self._seen]
        self._seen |= {row.id for row in new}
        return sorted(new, key=lambda row: (row.method, row.recipient_email))


def ics_of(mail) -> Any:
    for part in message_from_bytes(mail.mail or b"").walk():
        if part.get_content_type() == "text/calendar":
            return Ics.from_ical(part.get_payload(decode=True))  # type: ignore[arg-type] # bytes
    raise AssertionError("no calendar part")


def plain_text_of(mail) -> str:
    for part in message_from_bytes(mail.mail or b"").walk():
        if part.get_content_type() == "text/plain":
            return part.get_payload(decode=True).decode()  # type: ignore[union-attr] # bytes
    raise AssertionError("no text")


def vevents_of(mail) -> list[Any]:
    return list(ics_of(mail).walk("VEVENT"))


async def in_order(outbox) -> list[InvitationMail]:
    return sorted(await outbox.mails(), key=lambda mail: mail.position)
