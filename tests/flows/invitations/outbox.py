"""An event with guests, and an outbox of mails without a worker."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import icalendar
from sqlalchemy import select, update

from app.core.clock import utcnow
from app.core.db import Sessions, transaction
from app.invitations.repository.log import requeue
from app.invitations.sender import MailSender
from app.invitations.service import Sender, queue_mails
from app.itip.event import Guest, MailedEvent, Person
from app.mail.lasuite.mailboxes import Messages
from app.models import InvitationMail, MailLane
from app.settings import Settings
from tests.fakes.messages import FakeMailbox, FakeMessages

OWNER = "ada@example.com"
BOB = Guest(email="bob@example.org", name="Bob", is_optional=False, response_status="needs_action")
EVE = Guest(
    email="eve@example.org", name="Eve", is_optional=True, response_status="needs_action", locale="fr"
)
EVENT = MailedEvent(
    uid="6c1f4c52-1111-4222-8333-123456789abc",
    sequence=0,
    name="Weekly",
    description="Agenda & more",
    location="Room 1",
    meeting_url="https://visio.example/abc",
    start=datetime(2027, 3, 2, 9, tzinfo=UTC),
    end=datetime(2027, 3, 2, 10, tzinfo=UTC),
    is_all_day=False,
    timezone="Europe/Paris",
    organizer=Person(email=OWNER, name="Ada"),
    guests=(BOB, EVE),
)


@dataclass
class Outbox:
    """Mails from `queue` to the fake Messages, without a worker."""

    fake: FakeMessages
    mailbox: FakeMailbox
    settings: Settings
    sessions: Sessions
    sender: MailSender
    messages: Messages
    project_id: str
    calendar_id: str
    event_id: str
    identity: Sender = field(init=False)

    def __post_init__(self) -> None:
        self.identity = Sender(
            mailbox_id=self.mailbox.id, email=self.mailbox.email, name="Ada", owner_email="Ada@Example.com"
        )

    async def queue(
        self,
        event: MailedEvent = EVENT,
        method: Any = "REQUEST",
        recipients: Sequence[Any] = (BOB,),
        **more: Any,
    ) -> int:
        async with transaction(self.sessions) as session:
            return await queue_mails(
                session,
                project_id=self.project_id,
                calendar_id=self.calendar_id,
                event=event,
                method=method,
                recipients=recipients,
                **{"sender": self.identity, "locale": "en", **more},
            )

    async def process(self) -> int:
        """Send what is due now; return the number of mails."""
        total = 0
        while claimed := await self.sender.claim(100):
            total += len(claimed)
            await asyncio.gather(*(self.sender.handle(mail) for mail in claimed))
        return total

    async def make_due(self) -> None:
        """Make all mails due, also those that a killed worker had leased."""
        await self.free_lanes()
        async with transaction(self.sessions) as session:
            await session.execute(
                update(InvitationMail)
                .where(InvitationMail.status == "pending")
                .values(next_attempt_at=utcnow())
            )

    async def end_holds(self) -> None:
        """End all holds, as if their time were over."""
        async with transaction(self.sessions) as session:
            await session.execute(
                update(MailLane).where(MailLane.held_until.is_not(None)).values(held_until=utcnow())
            )

    async def ask_again(self, mail_id: str) -> None:
        async with transaction(self.sessions) as session:
            await requeue(session, mail_id)

    async def free_lanes(self) -> None:
        """End all leases, as those of killed workers run out."""
        async with transaction(self.sessions) as session:
            await session.execute(update(MailLane).values(leased_until=utcnow()))

    async def rows(self) -> list[InvitationMail]:
        async with self.sessions() as session:
            return list(await session.scalars(select(InvitationMail).order_by(InvitationMail.position)))

    async def row(self) -> InvitationMail:
        (row,) = await self.rows()
        return row

    def forget_mailboxes(self) -> None:
        self.messages._kept.clear()


def vevent(mail: Any) -> Any:
    calendar = icalendar.Calendar.from_ical(mail.part("text/calendar"))
    return calendar["METHOD"], calendar.walk("VEVENT")[0]
