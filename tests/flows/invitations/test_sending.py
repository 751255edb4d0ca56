"""Mails from the outbox to a fake Messages and to a real SMTP server."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import icalendar
import pytest
from pydantic import SecretStr
from sqlalchemy import select, text, update
from structlog.testing import capture_logs

from app.core import metrics
from app.core.clock import utcnow
from app.core.db import Sessions, transaction
from app.core.errors import InvalidFields
from app.core.http import operator_client
from app.core.ids import new_id
from app.hosted.service import schedule_rewrite
from app.invitations.repository.claims import READY_LANES
from app.invitations.repository.log import requeue
from app.invitations.retention import prune_mail_contents
from app.invitations.sender import MailSender
from app.invitations.service import RsvpLinks, Sender, queue_mails
from app.itip.event import Guest, MailedEvent, Person
from app.mail import smtp as smtp_module
from app.mail.lasuite.mailboxes import Messages
from app.models import Calendar, CalendarEvent, InvitationMail, MailLane
from app.settings import Settings
from tests.conftest import StartWorker, TestProject
from tests.fakes.messages import FakeMailbox, FakeMessages, Fault, Submitted
from tests.fakes.smtp import Sink, self_signed, smtp_sink

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
    """The way from `queue` to the fake, without a worker around it."""

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

    async def drain(self) -> int:
        """Works off what is due now; how many mails."""
        total = 0
        while claimed := await self.sender.claim(100):
            total += len(claimed)
            await asyncio.gather(*(self.sender.handle(mail) for mail in claimed))
        return total

    async def make_due(self) -> None:
        """All at once, also what a killed worker had under its leases."""
        await self.free_lanes()
        async with transaction(self.sessions) as session:
            await session.execute(
                update(InvitationMail)
                .where(InvitationMail.status == "pending")
                .values(next_attempt_at=utcnow())
            )

    async def end_holds(self) -> None:
        """As if their time were over."""
        async with transaction(self.sessions) as session:
            await session.execute(
                update(MailLane).where(MailLane.held_until.is_not(None)).values(held_until=utcnow())
            )

    async def ask_again(self, mail_id: str) -> None:
        async with transaction(self.sessions) as session:
            await requeue(session, mail_id)

    async def free_lanes(self) -> None:
        """As if the leases of killed workers had run out."""
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


@pytest.fixture
async def outbox(
    settings: Settings, sessions: Sessions, project: TestProject, fake_messages: FakeMessages
) -> AsyncIterator[Outbox]:
    mailbox = fake_messages.add_mailbox(OWNER, name="Ada", admin=OWNER)
    calendar_id, event_id = new_id("cal"), new_id("evt")
    async with transaction(sessions) as session:
        session.add(Calendar(id=calendar_id, project_id=project.id, platform="local", owner_email=OWNER))
        await session.flush()
        session.add(
            CalendarEvent(
                id=event_id,
                project_id=project.id,
                calendar_id=calendar_id,
                platform_uuid=EVENT.uid,
                ical_uid=EVENT.uid,
                content_hash=b"",
            )
        )
    async with operator_client() as client:
        messages = Messages(settings, client)
        sender = MailSender(
            settings=settings,
            sessions=sessions,
            messages=messages,
            refresh_event=schedule_rewrite,
            retry_waits=(5, 30),
        )
        yield Outbox(
            fake_messages, mailbox, settings, sessions, sender, messages, project.id, calendar_id, event_id
        )


def vevent(mail: Any) -> Any:
    calendar = icalendar.Calendar.from_ical(mail.part("text/calendar"))
    return calendar["METHOD"], calendar.walk("VEVENT")[0]


async def test_each_guest_gets_a_mail_of_their_own_from_the_mailbox(outbox):
    assert await outbox.queue(recipients=(BOB, EVE)) == 2
    await outbox.drain()
    bob, eve = sorted(outbox.fake.submitted, key=lambda mail: mail.recipients)
    assert (bob.recipients, eve.recipients) == ([BOB.email], [EVE.email])
    assert bob.mailbox_id == outbox.mailbox.id
    assert bob.mail["From"].addresses[0].addr_spec == OWNER
    assert bob.mail["Subject"] == "Invitation: Weekly"
    assert eve.mail["Subject"] == "Invitation : Weekly"
    assert "10:00 – 11:00 (Europe/Paris, CET)" in bob.part("text/plain")
    assert "Agenda & more" in bob.part("text/plain")
    assert "Agenda &amp; more" in bob.part("text/html")
    method, event = vevent(bob)
    assert (method, event["ORGANIZER"], event["SEQUENCE"]) == ("REQUEST", f"mailto:{OWNER}", 0)
    assert {row.status for row in await outbox.rows()} == {"sent"}
    assert all(row.mail is None and row.next_attempt_at is None for row in await outbox.rows())


async def test_a_worker_sends_what_is_queued(outbox, start_worker: StartWorker):
    await start_worker(outbox.settings)
    await outbox.queue()
    (mail,) = await outbox.fake.wait_for(1)
    assert mail.recipients == [BOB.email]


async def test_updates_and_cancellations_thread_under_the_first_mail(outbox):
    await outbox.queue()
    await outbox.queue(replace(EVENT, sequence=1))
    await outbox.queue(replace(EVENT, sequence=2), "CANCEL", (BOB, EVE))
    await outbox.drain()
    first, second, third = (mail.mail for mail in outbox.fake.submitted if mail.recipients == [BOB.email])
    assert first["In-Reply-To"] is None
    for later in (second, third):
        assert later["In-Reply-To"] == later["References"] == first["Message-ID"]
    assert [mail["Subject"] for mail in (first, second, third)] == [
        "Invitation: Weekly", "Re: Invitation: Weekly", "Re: Invitation: Weekly",
    ]  # fmt: skip
    assert {mail.thread_id for mail in outbox.fake.submitted if mail.recipients == [BOB.email]} == {
        outbox.fake.submitted[0].thread_id
    }
    told = [mail for mail in outbox.fake.submitted if mail.recipients == [BOB.email]]
    for mail, headline in zip(told[1:], ("Updated invitation: Weekly", "Canceled: Weekly"), strict=True):
        assert mail.part("text/plain").startswith(f"{headline}\r\n\r\nAda")
        assert f"<strong>{headline}</strong>" in re.sub(r" style=\"[^\"]*\"", "", mail.part("text/html"))
    assert len({mail["Message-ID"] for mail in (first, second, third)}) == 3


async def test_an_event_with_another_name_begins_another_thread(outbox):
    changed = replace(EVENT, name="Monthly", sequence=1)
    for event in (EVENT, changed, replace(changed, sequence=2, location="Room 2")):
        await outbox.queue(event)
    await outbox.drain()
    mails = outbox.fake.submitted
    assert [mail.mail["Subject"] for mail in mails] == [
        "Invitation: Weekly", "Updated invitation: Monthly", "Re: Updated invitation: Monthly",
    ]  # fmt: skip
    assert mails[1].mail["In-Reply-To"] is None
    assert mails[2].mail["In-Reply-To"] == mails[1].mail["Message-ID"]
    assert mails[0].thread_id != mails[1].thread_id == mails[2].thread_id


async def test_a_thread_of_an_older_release_goes_on(outbox):
    await outbox.queue()
    await outbox.drain()
    async with transaction(outbox.sessions) as session:
        await session.execute(text("UPDATE invitation_mails SET thread_subject = NULL"))
    await outbox.queue(replace(EVENT, sequence=1))
    await outbox.drain()
    first, second = outbox.fake.submitted
    assert first.thread_id == second.thread_id


async def test_an_answer_reaches_the_inbox_of_the_box_that_it_comes_from(outbox):
    answer = replace(BOB, response_status="accepted")
    owner = Person(email="Ada@Example.com", name="Ada")
    await outbox.queue(method="REPLY", recipients=(owner,), replying=answer)
    await outbox.drain()
    (mail,) = outbox.mailbox.inbox
    assert mail.mail["Subject"] == "Accepted: Weekly (Bob)"
    assert mail.mail["Reply-To"] == BOB.email
    team = outbox.fake.add_mailbox("team@example.com", admin=OWNER)
    shared = replace(outbox.identity, mailbox_id=team.id, email=team.email)
    outbox.forget_mailboxes()
    await outbox.queue(method="REPLY", recipients=(owner,), replying=answer, sender=shared)
    await outbox.drain()
    assert outbox.mailbox.inbox[1].mail["Message-ID"] is not None


async def test_a_lost_answer_puts_no_second_copy_into_the_own_inbox(outbox):
    outbox.fake.faults.append(Fault(500, take=True))
    answer = replace(BOB, response_status="accepted")
    await outbox.queue(method="REPLY", recipients=(Person(email=OWNER, name="Ada"),), replying=answer)
    await outbox.drain()
    await outbox.make_due()
    await outbox.drain()
    assert len(outbox.fake.submitted) == 2
    assert len(outbox.mailbox.inbox) == 1
    assert (await outbox.row()).status == "sent"


async def test_a_500_after_which_the_mail_is_sent_later_makes_two_copies_at_most(outbox):
    """Its broker is away: it keeps each mail, and answers 500."""
    outbox.fake.faults.extend([Fault(500, take=True)] * 5)
    await outbox.queue()
    for _ in range(5):
        await outbox.drain()
        row = await outbox.row()
        assert (row.next_attempt_at or utcnow() + timedelta(hours=1)) - utcnow() > timedelta(minutes=9)
        await outbox.make_due()
    assert len(outbox.fake.submitted) == 2
    assert row.status == "unknown"


async def test_a_mailbox_made_anew_with_the_same_address_is_found(outbox):
    await outbox.queue(recipients=(BOB, EVE))
    outbox.fake.mailboxes.clear()
    anew = outbox.fake.add_mailbox(OWNER, name="Ada", admin=OWNER)
    (claimed,) = await outbox.sender.claim(10)
    await outbox.sender.handle(claimed)
    anew.users[OWNER] = "viewer"
    outbox.forget_mailboxes()
    await outbox.drain()
    assert [mail.mailbox_id for mail in outbox.fake.submitted] == [anew.id]
    assert [row.status for row in await outbox.rows()] == ["sent", "failed"]


async def test_a_mail_of_an_older_release_that_names_somebody_else_is_never_sent(outbox):
    await outbox.queue(recipients=(BOB, EVE))
    async with transaction(outbox.sessions) as session:
        row = (
            await session.scalars(select(InvitationMail).where(InvitationMail.recipient_email == BOB.email))
        ).one()
        row.mail = (row.mail or b"").replace(
            b"To: Bob <", b"To: victim@evil.example, Bob Builder of the Department\r\n and Titles <"
        )
    before = metrics.INVITATION_MAILS_UNSAFE._value.get()
    await outbox.drain()
    assert [mail.recipients for mail in outbox.fake.submitted] == [[EVE.email]]
    bob, _ = await outbox.rows()
    assert (bob.status, bob.open_submits) == ("failed", 0)
    assert "To header can be read as another address than bob@example.org" in bob.last_error
    assert metrics.INVITATION_MAILS_UNSAFE._value.get() == before + 1


async def test_a_mail_to_an_address_that_messages_drops_fails_with_the_reason(outbox):
    """Guests of older releases: their events can still be changed."""
    await outbox.queue(recipients=(replace(BOB, email="bob@example.c1"),))
    await outbox.drain()
    row = await outbox.row()
    assert (row.status, outbox.fake.submitted) == ("failed", [])
    assert "bob@example.c1" in row.last_error


@pytest.mark.parametrize(
    "name",
    [
        "victim@evil.example, Bob Builder of the Department of Long Winded Names and Titles",
        "Group: victim@evil.example;",
    ],
)
async def test_a_name_reaches_nobody_and_stops_no_mail(outbox, name):
    await outbox.queue(
        recipients=(replace(BOB, name=name),), sender=replace(outbox.identity, name=f"Sales: {name}")
    )
    await outbox.drain()
    (mail,) = outbox.fake.submitted
    assert mail.recipients == [BOB.email]


async def test_after_an_invitation_that_failed_the_next_one_is_the_first(outbox):
    outbox.mailbox.users[OWNER] = "viewer"
    await outbox.queue()
    await outbox.drain()
    outbox.mailbox.users[OWNER] = "sender"
    outbox.forget_mailboxes()
    await outbox.queue(replace(EVENT, sequence=1))
    await outbox.drain()
    (mail,) = outbox.fake.submitted
    assert mail.mail["Subject"] == "Invitation: Weekly"
    assert mail.mail["In-Reply-To"] is None


async def test_contents_of_failed_mails_are_kept_for_a_time(outbox):
    outbox.mailbox.users.clear()
    await outbox.queue()
    await outbox.drain()
    outbox.forget_mailboxes()
    outbox.mailbox.users[OWNER] = "sender"
    await outbox.queue(recipients=(EVE,))
    await outbox.drain()
    for days, kept in ((1, [True, False]), (0, [False, False])):
        await prune_mail_contents(outbox.sessions, older_than=timedelta(days=days))
        assert [row.mail is not None for row in await outbox.rows()] == kept
    assert [row.status for row in await outbox.rows()] == ["failed", "sent"]


async def test_retry_after_of_an_outage_is_heeded(outbox):
    outbox.fake.faults.append(Fault(503, {"Retry-After": "400"}))
    await outbox.queue()
    await outbox.drain()
    assert (await outbox.row()).next_attempt_at - utcnow() > timedelta(seconds=390)


async def test_a_later_mail_waits_for_the_earlier_one(outbox):
    outbox.fake.faults.append(Fault(503))
    await outbox.queue()
    await outbox.drain()
    await outbox.queue(replace(EVENT, sequence=1), "CANCEL", (BOB, EVE))
    await outbox.drain()
    assert [mail.recipients for mail in outbox.fake.submitted] == [[EVE.email]]
    await outbox.make_due()
    await outbox.drain()
    assert [vevent(mail)[0] for mail in outbox.fake.submitted] == ["CANCEL", "REQUEST", "CANCEL"]


async def test_uninviting_one_guest_does_not_call_the_event_off(outbox):
    await outbox.queue(replace(EVENT, sequence=1, guests=(EVE,)), "CANCEL", (BOB,))
    await outbox.drain()
    method, event = vevent(outbox.fake.submitted[0])
    assert method == "CANCEL"
    assert "STATUS" not in event
    assert str(event["ATTENDEE"]) == f"mailto:{BOB.email}"
    assert "no longer invited" in outbox.fake.submitted[0].part("text/plain")


async def test_calling_off_the_event_cancels_it_for_all(outbox):
    await outbox.queue(replace(EVENT, sequence=1), "CANCEL", (BOB, EVE))
    await outbox.drain()
    assert all(vevent(mail)[1]["STATUS"] == "CANCELLED" for mail in outbox.fake.submitted)


async def test_an_answer_tells_the_organizer_who_answered_what(outbox):
    answer = replace(BOB, response_status="tentative")
    await outbox.queue(method="REPLY", recipients=(Person(email=OWNER, name="Ada"),), replying=answer)
    await outbox.drain()
    (mail,) = outbox.fake.submitted
    method, event = vevent(mail)
    assert method == "REPLY"
    assert str(event["ATTENDEE"]) == "mailto:bob@example.org"
    assert event["ATTENDEE"].params["PARTSTAT"] == "TENTATIVE"
    assert mail.mail["Subject"] == "Tentatively accepted: Weekly (Bob)"
    assert "Bob has answered: maybe." in mail.part("text/plain")


async def test_an_answer_that_is_held_back_delays_no_other_guests_answer(outbox):
    owner = (Person(email=OWNER, name="Ada"),)
    for status in ("accepted", "declined", "tentative", "accepted"):
        await outbox.queue(method="REPLY", recipients=owner, replying=replace(BOB, response_status=status))
        await outbox.drain()
    assert (await outbox.rows())[-1].status == "pending"
    await outbox.queue(method="REPLY", recipients=owner, replying=replace(EVE, response_status="declined"))
    assert await outbox.drain() == 1
    assert outbox.fake.submitted[-1].mail["Subject"] == "Declined: Weekly (Eve)"


@pytest.mark.parametrize("column", ["NULL", "'bob@example.org'"])
async def test_one_guests_answers_keep_their_order(outbox, column):
    """Also behind one of an older release, which did not note whose it is."""
    owner = (Person(email=OWNER, name="Ada"),)
    await outbox.queue(method="REPLY", recipients=owner, replying=replace(BOB, response_status="accepted"))
    async with transaction(outbox.sessions) as session:
        await session.execute(
            text(
                f"UPDATE invitation_mails SET replying_key = {column}, open_submits = 1, "
                "next_attempt_at = now() + interval '1 hour'"
            )
        )
    await outbox.queue(method="REPLY", recipients=owner, replying=replace(BOB, response_status="declined"))
    assert await outbox.drain() == 0


async def test_answer_links_are_in_both_texts(outbox):
    links = RsvpLinks(
        *(
            f"https://cal.example/rsvp/?token=t&action={word}"
            for word in ("accepted", "tentative", "declined")
        )
    )
    await outbox.queue(rsvp_links={BOB.email: links})
    await outbox.drain()
    (mail,) = outbox.fake.submitted
    assert "https://cal.example/rsvp/?token=t&action=declined" in mail.part("text/plain")
    assert "https://cal.example/rsvp/?token=t&amp;action=declined" in mail.part("text/html")


async def test_a_mail_that_fails_is_sent_again_unchanged(outbox):
    outbox.fake.faults.extend([Fault(503), Fault(502)])
    await outbox.queue()
    before = (await outbox.row()).mail
    await outbox.drain()
    row = await outbox.row()
    assert (row.status, row.last_error, row.open_submits) == ("pending", "Messages answered 503.", 0)
    assert timedelta(seconds=3) < row.next_attempt_at - utcnow() < timedelta(seconds=6)
    for _ in range(2):
        await outbox.make_due()
        await outbox.drain()
    assert (await outbox.row()).status == "sent"
    assert outbox.fake.submitted[0].raw == before


async def test_a_mailbox_that_is_throttled_waits_as_long_as_told(outbox, api):
    outbox.fake.faults.append(Fault(429, {"Retry-After": "90"}, html=False))
    await outbox.queue(recipients=(BOB, EVE))
    assert await outbox.drain() == 1
    assert await outbox.drain() == 0
    rows = await outbox.rows()
    assert [row.status for row in rows] == ["pending", "pending"]
    assert [row.open_submits for row in rows] == [0, 0]
    listed = (await api.get(f"/api/v1/calendar_events/{outbox.event_id}/invitations")).json()["results"]
    for mail in listed:
        wait = datetime.fromisoformat(mail["next_attempt_at"]) - utcnow()
        assert timedelta(seconds=80) < wait <= timedelta(seconds=90)
        assert "takes no more mails from this mailbox" in mail["last_error"]
    await outbox.end_holds()
    assert await outbox.drain() == 2
    assert len(outbox.fake.submitted) == 2
    async with outbox.sessions() as session:
        lane = await session.get(MailLane, f"mailbox:{outbox.mailbox.id}")
    assert (lane.held_until, lane.hold_count, lane.lease_token) == (None, 0, None)


async def test_a_throttled_mailbox_holds_no_other(outbox):
    """One at its limit until midnight; another mailbox, also of another project, goes on."""
    box = outbox.fake.add_mailbox("rem@example.com", admin="rem@example.com")
    rem = Sender(mailbox_id=box.id, email=box.email, name=None, owner_email=box.email)
    outbox.fake.limits[outbox.mailbox.id] = 1
    await outbox.queue(recipients=(BOB, EVE))
    await outbox.drain()
    await outbox.queue(replace(EVENT, uid="another"), sender=rem)
    other = MailSender(
        settings=outbox.settings,
        sessions=outbox.sessions,
        messages=outbox.messages,
        refresh_event=schedule_rewrite,
    )
    assert len(await other.claim(10)) == 1
    await outbox.make_due()
    await outbox.drain()
    assert [row.status for row in await outbox.rows()] == ["sent", "pending", "sent"]


async def test_a_hold_outlives_the_process_and_is_probed_by_one_mail(outbox):
    """However long it asks to wait: a limit may be lifted. And one mail finds that out, not hundreds."""
    outbox.fake.limits[outbox.mailbox.id] = 0
    guests = [replace(BOB, email=f"guest{number}@example.org") for number in range(5)]
    await outbox.queue(recipients=guests)
    for _ in range(3):
        sender = MailSender(
            settings=outbox.settings,
            sessions=outbox.sessions,
            messages=outbox.messages,
            refresh_event=schedule_rewrite,
        )
        before = len(outbox.fake.refused)
        (claimed,) = await sender.claim(10)
        await sender.handle(claimed)
        assert await sender.claim(10) == []
        assert len(outbox.fake.refused) == before + 1
        async with outbox.sessions() as session:
            lane = await session.get(MailLane, f"mailbox:{outbox.mailbox.id}")
        assert timedelta(minutes=14) < lane.held_until - utcnow() <= timedelta(minutes=15)
        await outbox.end_holds()
    outbox.fake.limits.clear()
    assert await outbox.drain() == 5


async def test_holds_grow_while_messages_names_no_time(outbox):
    await outbox.queue()
    waits = []
    for _ in range(10):
        outbox.fake.faults.append(Fault(429, {"Retry-After": "1"}, html=False))
        await outbox.drain()
        async with outbox.sessions() as session:
            lane = await session.get(MailLane, f"mailbox:{outbox.mailbox.id}")
        waits.append((lane.held_until - utcnow()).total_seconds())
        await outbox.end_holds()
    assert 4 < waits[0] <= 5
    assert 9 < waits[1] <= 10
    assert 890 < waits[-1] <= 900
    assert (await outbox.row()).status == "pending"


async def test_a_mail_asked_for_by_hand_goes_in_spite_of_a_hold_and_before_the_others(outbox):
    outbox.fake.limits[outbox.mailbox.id] = 0
    guests = [replace(BOB, email=f"guest{number}@example.org") for number in range(5)]
    await outbox.queue(recipients=guests)
    await outbox.drain()
    last = (await outbox.rows())[-1]
    await outbox.ask_again(last.id)
    assert await outbox.drain() == 1  # one attempt: throttled again
    assert await outbox.drain() == 0
    assert (await outbox.rows())[-1].attempt_count == 1
    outbox.fake.limits.clear()
    await outbox.ask_again(last.id)
    await outbox.drain()  # it got through, so the hold is over
    assert outbox.fake.submitted[0].recipients == [last.recipient_email]
    assert {row.status for row in await outbox.rows()} == {"sent"}


async def test_a_throttled_mail_is_not_given_up_by_a_daily_limit(outbox):
    outbox.fake.limits[outbox.mailbox.id] = 0
    await outbox.queue()
    for days, status in ((2, "pending"), (3.1, "failed")):
        async with transaction(outbox.sessions) as session:
            given = text(
                "UPDATE invitation_mails SET give_up_at = now() + interval '1 day' - CAST(:age AS interval)"
            )
            await session.execute(given, {"age": timedelta(days=days)})
        await outbox.end_holds()
        await outbox.drain()
        assert (await outbox.row()).status == status


async def test_a_mail_is_given_up_after_a_day_and_says_why(outbox):
    outbox.fake.faults.append(Fault(503))
    await outbox.queue()
    async with transaction(outbox.sessions) as session:
        await session.execute(text("UPDATE invitation_mails SET give_up_at = now()"))
    await outbox.drain()
    row = await outbox.row()
    assert (row.status, row.last_error) == ("failed", "Messages answered 503.")


@pytest.mark.parametrize("role", ["viewer", "editor", None])
async def test_an_owner_who_may_not_send_any_more_sends_nothing(outbox, api, role):
    await outbox.queue()
    outbox.mailbox.users.clear()
    if role:
        outbox.mailbox.users[OWNER] = role
    await outbox.drain()
    assert outbox.fake.submitted == []
    listed = (await api.get(f"/api/v1/calendar_events/{outbox.event_id}/invitations")).json()["results"]
    assert [mail["status"] for mail in listed] == ["failed"]
    assert "may not send from the mailbox ada@example.com any more" in listed[0]["last_error"]


async def test_a_mail_waits_for_no_other_event(outbox):
    outbox.fake.faults.append(Fault(503))
    await outbox.queue()
    await outbox.drain()
    await outbox.queue(replace(EVENT, uid="another"))
    await outbox.drain()
    assert [row.status for row in await outbox.rows()] == ["pending", "sent"]


async def test_a_throttled_messages_holds_no_mail_by_smtp(outbox):
    outbox.fake.faults.append(Fault(429, {"Retry-After": "90"}, html=False))
    await outbox.queue()
    (claimed,) = await outbox.sender.claim(10)
    by_smtp = Sender(mailbox_id=None, email="calendars@example.net", name=None, owner_email=OWNER)
    await outbox.queue(replace(EVENT, uid="another"), sender=by_smtp)
    await outbox.sender.handle(claimed)
    (mail,) = await outbox.sender.claim(10)
    assert mail.due.mailbox_id is None


async def test_mails_written_while_messages_is_held_wait_too(outbox):
    outbox.fake.faults.append(Fault(429, {"Retry-After": "90"}, html=False))
    await outbox.queue()
    await outbox.drain()
    await outbox.queue(recipients=(EVE,))
    assert await outbox.drain() == 0
    assert outbox.fake.submitted == []


async def test_a_page_of_a_proxy_with_404_fails_no_mail(outbox):
    outbox.fake.faults.append(Fault(404))
    await outbox.queue()
    await outbox.drain()
    row = await outbox.row()
    assert (row.status, row.open_submits) == ("pending", 0)


async def test_a_mail_of_a_killed_worker_waits_as_long_as_one_without_an_answer(outbox):
    outbox.fake.faults.append(Fault(take=True, hang=5))
    await outbox.queue()
    (claimed,) = await outbox.sender.claim(10)
    task = asyncio.create_task(outbox.sender.handle(claimed))
    await outbox.fake.wait_for(1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert (await outbox.row()).next_attempt_at - utcnow() > timedelta(minutes=9)


async def test_a_mailbox_with_another_address_sends_nothing(outbox):
    await outbox.queue()
    outbox.mailbox.email = "ada.lovelace@example.com"
    await outbox.drain()
    row = await outbox.row()
    assert (row.status, row.open_submits) == ("failed", 0)
    assert "address is not ada@example.com any more" in row.last_error
    assert outbox.fake.refused == []


async def test_a_mail_that_fails_after_a_lost_answer_may_have_been_sent(outbox):
    outbox.fake.faults.append(Fault(take=True, drop=True))
    await outbox.queue()
    await outbox.drain()
    outbox.fake.mailboxes.clear()
    outbox.forget_mailboxes()
    await outbox.make_due()
    await outbox.drain()
    assert (await outbox.row()).status == "unknown"


async def test_a_mail_given_up_after_a_lost_answer_may_have_been_sent(outbox):
    outbox.fake.faults.extend([Fault(take=True, drop=True), Fault(503)])
    await outbox.queue()
    await outbox.drain()
    async with transaction(outbox.sessions) as session:
        await session.execute(text("UPDATE invitation_mails SET give_up_at = now()"))
    await outbox.make_due()
    await outbox.drain()
    row = await outbox.row()
    assert (row.status, row.last_error) == ("unknown", "Messages answered 503.")


async def test_a_throttled_look_up_makes_all_mails_wait(outbox, api):
    outbox.fake.look_up_faults.append(Fault(429, {"Retry-After": "90"}))
    await outbox.queue(recipients=(BOB, EVE))
    (claimed,) = await outbox.sender.claim(1)
    await outbox.sender.handle(claimed)
    assert await outbox.drain() == 0
    listed = (await api.get(f"/api/v1/calendar_events/{outbox.event_id}/invitations")).json()["results"]
    waits = [datetime.fromisoformat(mail["next_attempt_at"]) - utcnow() for mail in listed]
    assert all(timedelta(seconds=80) < wait <= timedelta(seconds=90) for wait in waits)
    assert {mail["last_error"] for mail in listed} == {"Messages is asked too often."}
    assert outbox.fake.submitted == []


async def test_after_a_throttled_look_up_one_mail_finds_out(outbox):
    for number in range(3):
        box = outbox.fake.add_mailbox(f"box{number}@example.com", admin=f"box{number}@example.com")
        sender = Sender(mailbox_id=box.id, email=box.email, name=None, owner_email=box.email)
        await outbox.queue(replace(EVENT, uid=f"uid-{number}"), sender=sender)
    outbox.fake.look_up_faults.extend([Fault(429, {"Retry-After": "90"})] * 2)
    (claimed,) = await outbox.sender.claim(1)
    await outbox.sender.handle(claimed)
    await outbox.end_holds()
    other = MailSender(
        settings=outbox.settings,
        sessions=outbox.sessions,
        messages=outbox.messages,
        refresh_event=schedule_rewrite,
    )
    (probe,) = await outbox.sender.claim(10)
    assert await other.claim(10) == []
    await outbox.sender.handle(probe)
    assert await outbox.drain() == 0
    await outbox.end_holds()
    (probe,) = await outbox.sender.claim(10)
    await outbox.sender.handle(probe)
    assert len(await outbox.sender.claim(10)) == 2


async def test_mails_that_fail_by_themselves_do_not_keep_messages_held(outbox):
    for number in range(4):
        box = outbox.fake.add_mailbox(f"box{number}@example.com", admin=f"box{number}@example.com")
        sender = Sender(mailbox_id=box.id, email=box.email, name=None, owner_email=box.email)
        await outbox.queue(replace(EVENT, uid=f"uid-{number}"), sender=sender)
    outbox.fake.look_up_faults.append(Fault(429, {"Retry-After": "90"}))
    (claimed,) = await outbox.sender.claim(1)
    await outbox.sender.handle(claimed)
    assert await outbox.drain() == 0
    last = claimed.due.sender_email
    for box in outbox.fake.mailboxes.values():
        box.users = {email: "viewer" if box.email != last else role for email, role in box.users.items()}
    await outbox.end_holds()
    assert await outbox.drain() == 4
    assert sorted(row.status for row in await outbox.rows()) == ["failed", "failed", "failed", "sent"]


async def test_a_probe_that_is_throttled_again_holds_as_long_as_told(outbox):
    """Whatever else was claimed with it."""
    smtp = Sender(mailbox_id=None, email="cal@example.net", name=None, owner_email=OWNER)
    await outbox.queue()
    outbox.fake.look_up_faults.extend([Fault(429, {"Retry-After": "90"})] * 2)
    await outbox.drain()
    await outbox.end_holds()
    outbox.settings.smtp_url = None
    await outbox.queue(replace(EVENT, uid="by-smtp"), sender=smtp)
    claimed = sorted(await outbox.sender.claim(10), key=lambda mail: mail.due.mailbox_id is None)
    assert len(claimed) == 2
    for mail in claimed:
        await outbox.sender.handle(mail)
    assert await outbox.drain() == 0


async def test_a_mailbox_has_one_submit_at_a_time_whatever_workers_there_are(outbox):
    guests = [replace(BOB, email=f"guest{number}@example.org") for number in range(12)]
    await outbox.queue(recipients=guests)
    outbox.fake.takes_seconds = 0.02
    workers = [
        MailSender(
            settings=outbox.settings,
            sessions=outbox.sessions,
            messages=outbox.messages,
            refresh_event=schedule_rewrite,
        )
        for _ in range(3)
    ]

    async def work(sender: MailSender) -> None:
        while len(outbox.fake.submitted) < len(guests):
            await asyncio.gather(*(sender.handle(mail) for mail in await sender.claim(10)))
            await asyncio.sleep(0.005)

    async with asyncio.timeout(30):
        await asyncio.gather(*map(work, workers))
    assert outbox.fake.most_at_once == 1
    assert len({mail.recipients[0] for mail in outbox.fake.submitted}) == len(outbox.fake.submitted) == 12


async def test_mailboxes_that_hang_keep_no_place_from_the_others(outbox):
    for number in range(6):
        box = outbox.fake.add_mailbox(f"box{number}@example.com", admin=f"box{number}@example.com")
        sender = Sender(mailbox_id=box.id, email=box.email, name=None, owner_email=box.email)
        for n in range(2):
            await outbox.queue(replace(EVENT, uid=f"uid-{number}-{n}"), sender=sender)
    assert len(await outbox.sender.claim(10)) == 3  # and there they hang
    other = MailSender(
        settings=outbox.settings,
        sessions=outbox.sessions,
        messages=outbox.messages,
        refresh_event=schedule_rewrite,
    )
    for _ in range(2):
        claimed = await other.claim(10)
        assert len(claimed) == 3
        for mail in claimed:
            await other.handle(mail)
    assert await other.claim(10) == []


async def test_mailboxes_and_projects_take_turns(outbox, other_project):
    """A large event is written first; then two mails from two other mailboxes, one of another project."""
    guests = [replace(BOB, email=f"guest{number}@example.org") for number in range(20)]
    await outbox.queue(recipients=guests)
    boxes = [outbox.fake.add_mailbox(f"b{n}@example.com", admin=f"b{n}@example.com") for n in range(5)]
    for number, box in enumerate(boxes):
        sender = Sender(mailbox_id=box.id, email=box.email, name=None, owner_email=box.email)
        for uid in ("one", "two"):
            await outbox.queue(replace(EVENT, uid=f"{uid}-{number}"), sender=sender)
    async with transaction(outbox.sessions) as session:
        await session.execute(
            update(InvitationMail)
            .where(InvitationMail.mailbox_id == boxes[0].id)
            .values(project_id=other_project.id)
        )
    turns = []
    for _ in range(8):  # one place alone, so that the turns are seen
        (claimed,) = await outbox.sender.claim(1)
        turns.append(claimed.due.sender_email)
        await outbox.sender.handle(claimed)
    # The other project has every second turn while it has mails; in the large event's project all mailboxes do.
    assert [turn == "b0@example.com" for turn in turns[:4]].count(True) == 2
    assert {OWNER, *(box.email for box in boxes)} <= set(turns)
    assert len(await outbox.sender.claim(100)) == 3


async def test_a_claim_passes_by_what_is_held(outbox):
    guests = [replace(BOB, email="guest@example.org")]
    await outbox.queue(recipients=guests)
    async with transaction(outbox.sessions) as session:
        await session.execute(
            text(
                """
                INSERT INTO invitation_mails (id, project_id, calendar_id, event_uid, method, sequence, recipient_key,
                    recipient_email, mailbox_id, sender_email, owner_email, message_id, mail, next_attempt_at)
                SELECT 'msg_' || n, project_id, calendar_id, 'uid', 'REQUEST', 0, 'g' || n, 'g' || n, 'held-' || n % 3,
                    'a', 'a', '<' || n || '>', 'x', now() - interval '1 minute'
                FROM invitation_mails, generate_series(1, 5000) AS n
                """
            )
        )
        held = [
            MailLane(key=f"mailbox:held-{n}", held_until=utcnow() + timedelta(hours=1), hold_count=1)
            for n in range(3)
        ]
        session.add_all(held)
    async with transaction(outbox.sessions) as session:
        await session.execute(text("ANALYZE invitation_mails"))
    async with transaction(outbox.sessions) as session:
        plan = await session.scalar(
            text("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + READY_LANES.text),
            {"by_messages": 3, "by_smtp": 8},
        )
    reads = [node for node in _nodes(plan[0]["Plan"]) if node.get("Relation Name") == "invitation_mails"]
    assert {node["Node Type"] for node in reads} <= {"Index Scan", "Index Only Scan"}
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in reads) < 30
    assert sum(node.get("Rows Removed by Filter", 0) for node in reads) == 0
    (claimed,) = await outbox.sender.claim(100)
    assert claimed.due.recipient_email == "guest@example.org"


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]


async def test_a_mail_whose_lease_is_over_is_not_submitted(outbox):
    await outbox.queue()
    (late,) = await outbox.sender.claim(10)
    await outbox.make_due()
    await outbox.sender.handle(late)
    assert outbox.fake.submitted == []
    (retaken,) = await outbox.sender.claim(10)
    await outbox.sender.handle(late)
    assert outbox.fake.submitted == []
    await outbox.sender.handle(retaken)
    assert len(outbox.fake.submitted) == 1


async def test_what_became_of_a_mail_is_written_by_who_holds_it(outbox):
    """The first worker hung for longer than its lease; the second one has sent the mail."""
    outbox.fake.faults.append(Fault(503, hang=1))
    await outbox.queue()
    (first,) = await outbox.sender.claim(10)
    hanging = asyncio.create_task(outbox.sender.handle(first))
    async with asyncio.timeout(5):
        while outbox.fake.faults:
            await asyncio.sleep(0.01)
    await outbox.make_due()
    await outbox.drain()
    await hanging
    row = await outbox.row()
    assert (row.status, row.last_error) == ("sent", None)


async def test_a_mail_that_begins_too_late_is_left_to_the_next_worker(outbox):
    await outbox.queue()
    (claimed,) = await outbox.sender.claim(10)
    await outbox.sender.handle(replace(claimed, lease=replace(claimed.lease, begin_by=0.0)))
    assert (await outbox.row()).status == "pending"
    assert outbox.fake.submitted == []


async def test_an_outage_of_messages_takes_no_right_away(outbox):
    await outbox.queue()
    outbox.fake.look_up_faults.append(Fault(503))
    await outbox.drain()
    assert (await outbox.row()).status == "pending"
    await outbox.make_due()
    await outbox.drain()
    assert (await outbox.row()).status == "sent"


async def test_a_lost_scope_makes_mails_wait_for_the_operator(outbox):
    outbox.fake.scopes.discard("messages:send")
    await outbox.queue()
    await outbox.drain()
    row = await outbox.row()
    assert row.status == "pending"
    assert "messages:send" in row.last_error
    outbox.fake.scopes.add("messages:send")
    await outbox.make_due()
    await outbox.drain()
    assert (await outbox.row()).status == "sent"


async def test_a_submit_without_an_answer_is_repeated_once_with_the_same_message_id(outbox):
    outbox.fake.faults.append(Fault(take=True, drop=True))
    await outbox.queue()
    await outbox.drain()
    row = await outbox.row()
    assert (row.status, row.open_submits) == ("pending", 1)
    assert row.next_attempt_at - utcnow() > timedelta(minutes=9)
    await outbox.make_due()
    await outbox.drain()
    assert (await outbox.row()).status == "sent"
    one, twin = outbox.fake.submitted
    assert one.raw == twin.raw


async def test_after_two_submits_without_an_answer_it_is_not_sent_again(outbox):
    outbox.fake.faults.extend([Fault(take=True, drop=True), Fault(504, take=True)])
    await outbox.queue()
    for _ in range(3):
        await outbox.make_due()
        await outbox.drain()
    assert len(outbox.fake.submitted) == 2
    row = await outbox.row()
    assert (row.status, row.last_error) == ("unknown", "Messages answered 504.")


async def test_a_worker_killed_in_a_submit_counts_as_a_lost_answer(outbox):
    for _ in range(2):
        outbox.fake.faults.append(Fault(take=True, hang=0.2))
    await outbox.queue()
    for _ in range(2):
        (claimed,) = await outbox.sender.claim(10)
        task = asyncio.create_task(outbox.sender.handle(claimed))
        taken = len(outbox.fake.submitted)
        await outbox.fake.wait_for(taken + 1)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        row = await outbox.row()
        assert (row.next_attempt_at or utcnow()) - utcnow() > timedelta(minutes=9)
        await outbox.make_due()
    await outbox.drain()
    assert (await outbox.row()).status == "unknown"
    assert len(outbox.fake.submitted) == 2


async def test_two_senders_never_send_a_mail_twice(outbox):
    guests = [replace(BOB, email=f"guest{number}@example.org") for number in range(30)]
    await outbox.queue(recipients=guests)
    other = MailSender(
        settings=outbox.settings,
        sessions=outbox.sessions,
        messages=outbox.messages,
        refresh_event=schedule_rewrite,
    )
    while len(outbox.fake.submitted) < 30:
        one, two = await asyncio.gather(outbox.sender.claim(20), other.claim(20))
        assert len([*one, *two]) == 1
        await asyncio.gather(*(outbox.sender.handle(mail) for mail in [*one, *two]))
    assert len(outbox.fake.submitted) == 30
    assert len({mail.recipients[0] for mail in outbox.fake.submitted}) == 30


async def test_a_mail_server_that_hangs_does_not_hold_up_messages(outbox, smtp):
    by_mailbox = Sender(mailbox_id=outbox.mailbox.id, email=OWNER, name="Ada", owner_email=OWNER)
    guests = [replace(BOB, email=f"guest{number}@example.org") for number in range(20)]
    await outbox.queue(recipients=guests)
    smtp.data_seconds = 60
    hanging = await outbox.sender.claim(100)
    tasks = [asyncio.create_task(outbox.sender.handle(mail)) for mail in hanging]
    await outbox.queue(replace(EVENT, uid="another"), sender=by_mailbox)
    async with asyncio.timeout(5):
        while not outbox.fake.submitted:
            for mail in await outbox.sender.claim(100):
                assert mail.due.mailbox_id is not None
                await outbox.sender.handle(mail)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    smtp.data_seconds = 0
    assert len(hanging) == 4
    await outbox.free_lanes()
    assert len(await outbox.sender.claim(100)) == 4  # those that were cut have left their places


async def test_a_large_event_lists_each_guest_alone(outbox):
    guests = tuple(replace(BOB, email=f"guest{number}@example.org") for number in range(101))
    await outbox.queue(replace(EVENT, guests=guests), recipients=guests[:2])
    await outbox.queue(replace(EVENT, guests=guests, sequence=1), "CANCEL", guests)
    mails = [Submitted("", [row.recipient_email], row.mail or b"", "") for row in await outbox.rows()]
    assert len(mails) == 103
    _, invited = vevent(mails[1])
    assert [str(address) for address in invited["ATTENDEE"]] == [
        f"mailto:{OWNER}",
        "mailto:guest1@example.org",
    ]
    assert "guest2@" not in mails[1].part("text/html")
    method, cancelled = vevent(mails[7])
    assert (method, cancelled["STATUS"]) == ("CANCEL", "CANCELLED")
    assert f"mailto:{mails[7].recipients[0]}" == str(cancelled["ATTENDEE"])


async def test_an_address_that_comes_twice_gets_one_mail(outbox):
    assert await outbox.queue(recipients=(BOB, replace(BOB, email="BOB@Example.org"))) == 1


@pytest.mark.parametrize(
    "address", ["bob", "bob@", "a@b\r\nBcc: c@d", "a b@c.d", "a,b@c.d", "x" * 65 + "@b.c", "bób@x.y"]
)
async def test_nothing_is_queued_for_a_bad_address(outbox, address):
    with pytest.raises(InvalidFields):
        await outbox.queue(recipients=(BOB, replace(BOB, email=address)))
    assert await outbox.rows() == []


async def test_nothing_is_queued_from_a_bad_address(outbox):
    with pytest.raises(InvalidFields):
        await outbox.queue(
            sender=Sender(mailbox_id="x", email="büro@example.com", name=None, owner_email=OWNER)
        )
    assert await outbox.rows() == []


async def test_the_mails_of_an_event_are_listed(outbox, api, other_api):
    await outbox.queue(recipients=(BOB, EVE))
    await outbox.drain()
    answer = await api.get(f"/api/v1/calendar_events/{outbox.event_id}/invitations")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["next"], body["previous"], len(body["results"])) == (None, None, 2)
    mail = body["results"][0]
    assert mail["recipient"] == {"email": EVE.email, "name": "Eve"}
    assert mail["sender"] == {"mailbox_id": outbox.mailbox.id, "email": OWNER, "name": "Ada"}
    assert (mail["method"], mail["status"], mail["attempt_count"], mail["last_error"]) == (
        "REQUEST",
        "sent",
        1,
        None,
    )
    path = f"/api/v1/calendar_events/{outbox.event_id}/invitations"
    assert (await other_api.get(path)).status_code == 404
    assert (await api.get("/api/v1/calendar_events/evt_aaaaaaaaaaaaaaaa/invitations")).status_code == 404
    assert (await api.get("/api/v1/calendar_events/nonsense/invitations")).status_code == 404
    assert (await api.get(path, params={"cursor": "x"})).status_code == 400
    assert (await api.get(path, params={"nonsense": "x"})).status_code == 400


# -- SMTP ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def smtp(outbox: Outbox) -> AsyncIterator[Sink]:
    async with smtp_sink() as sink:
        outbox.settings.smtp_url = SecretStr(f"smtp://127.0.0.1:{sink.port}")
        outbox.settings.email_from = "Calendars <calendars@example.net>"
        outbox.identity = Sender(
            mailbox_id=None, email="calendars@example.net", name="Ada", owner_email=OWNER
        )
        yield sink


async def test_without_a_mailbox_mails_go_out_by_smtp(outbox, smtp):
    await outbox.queue()
    await outbox.drain()
    ((sender, recipients, raw),) = smtp.mails
    assert (sender, recipients) == ("calendars@example.net", [BOB.email])
    assert b"\r\nReply-To: ada@example.com\r\n" in raw
    assert b"From: Ada <calendars@example.net>\r\n" in raw
    _, event = vevent(Submitted("", recipients, raw, ""))
    assert event["ORGANIZER"] == f"mailto:{OWNER}"
    assert event["ORGANIZER"].params["SENT-BY"] == "mailto:calendars@example.net"
    unfolded = event.to_ical().replace(b"\r\n ", b"")
    assert b'SENT-BY="mailto:calendars@example.net"' in unfolded
    assert (await outbox.row()).status == "sent"
    assert outbox.fake.submitted == []


@pytest.mark.parametrize(
    ("rcpt", "data", "status"),
    [
        ("550 no such user", None, "failed"),
        ("450 later", None, "pending"),
        (None, "554 spam", "failed"),
        (None, "451 later", "pending"),
    ],
)
async def test_a_mail_servers_refusal_is_final_or_not(outbox, smtp, rcpt, data, status):
    smtp.rcpt_answer, smtp.data_answer = rcpt, data
    await outbox.queue()
    await outbox.drain()
    row = await outbox.row()
    assert (row.status, row.open_submits) == (status, 0)
    assert (rcpt or data)[:3] in row.last_error


async def test_a_mail_server_that_cuts_the_line_after_the_mail_leaves_it_open(outbox, smtp):
    smtp.data_answer = "cut"
    await outbox.queue()
    await outbox.drain()
    row = await outbox.row()
    assert (row.status, row.open_submits) == ("pending", 1)


async def test_a_mail_server_that_is_away_is_tried_again(outbox, smtp):
    outbox.settings.smtp_url = SecretStr("smtp://127.0.0.1:1")
    await outbox.queue()
    await outbox.drain()
    row = await outbox.row()
    assert (row.status, row.open_submits) == ("pending", 0)


async def test_a_mail_server_that_is_slow_before_the_mail_has_not_taken_it(outbox, smtp, monkeypatch):
    monkeypatch.setattr(smtp_module, "_TOTAL_TIMEOUT_SECONDS", 0.2)
    smtp.rcpt_seconds = 5
    await outbox.queue()
    await outbox.drain()
    row = await outbox.row()
    assert (row.status, row.open_submits) == ("pending", 0)


async def test_a_mail_server_that_refuses_the_sender_is_the_operators_to_mend(outbox, smtp):
    smtp.mail_answer = "553 not your address"
    await outbox.queue()
    await outbox.drain()
    row = await outbox.row()
    assert (row.status, row.open_submits) == ("pending", 0)
    assert "553" in row.last_error


async def test_a_password_is_read_from_the_address_and_a_refused_one_waits_for_the_operator(outbox, smtp):
    outbox.settings.smtp_url = SecretStr(f"smtp://calendars%40x:p%2Fw%25@127.0.0.1:{smtp.port}")
    await outbox.queue()
    smtp.password = "another"
    await outbox.drain()
    row = await outbox.row()
    assert (row.status, row.last_error) == ("pending", "The mail server refuses our credentials (535).")
    smtp.password = "p/w%"
    await outbox.make_due()
    await outbox.drain()
    assert (await outbox.row()).status == "sent"


@pytest.mark.parametrize("address", ["smtps://127.0.0.1:{port}", "smtp://127.0.0.1:{port}?starttls=true"])
async def test_nothing_goes_out_in_the_clear_where_tls_is_asked_for(outbox, smtp, address):
    outbox.settings.smtp_url = SecretStr(address.format(port=smtp.port))
    await outbox.queue()
    await outbox.drain()
    row = await outbox.row()
    assert (row.status, row.open_submits, smtp.mails) == ("pending", 0, [])


@pytest.mark.parametrize(
    ("query", "encrypted"),
    [("", [True]), ("?starttls=false", [False]), ("?starttls=true", [])],
    ids=["offered", "never", "required"],
)
async def test_starttls_is_taken_where_it_is_offered(outbox, query, encrypted):
    """Its certificate is nobody's: better than none, but not where TLS was asked for."""
    async with smtp_sink(self_signed()) as sink:
        user = "calendars%40x:p%2Fw%25"
        outbox.settings.smtp_url = SecretStr(f"smtp://{user}@127.0.0.1:{sink.port}{query}")
        outbox.settings.email_from = "calendars@example.net"
        await outbox.queue(
            sender=Sender(mailbox_id=None, email="calendars@example.net", name=None, owner_email=OWNER)
        )
        await outbox.drain()
        assert sink.encrypted == encrypted
    assert (await outbox.row()).status == ("sent" if encrypted else "pending")


async def test_a_password_in_the_clear_is_warned_about(outbox, smtp):
    outbox.settings.smtp_url = SecretStr(f"smtp://calendars%40x:p%2Fw%25@127.0.0.1:{smtp.port}")
    smtp_module._warned.clear()
    await outbox.queue(recipients=(BOB, EVE))
    with capture_logs() as logs:
        await outbox.drain()
    told = [entry for entry in logs if entry["event"] == "smtp_password_in_clear"]
    assert len(told) == 1  # not for each mail
    assert "p/w%" not in str(told)
    assert len(smtp.mails) == 2


async def test_a_mail_server_that_wants_no_more_of_a_sender_holds_that_sender_alone(outbox, smtp):
    smtp.mail_answer = "451 4.7.1 too many messages"
    await outbox.queue()
    await outbox.drain()
    assert await outbox.drain() == 0
    row = await outbox.row()
    assert (row.status, row.last_error) == ("pending", "The mail server refuses the mail (451).")
    smtp.mail_answer = None
    await outbox.queue(
        replace(EVENT, uid="another"), sender=replace(outbox.identity, owner_email="eve@example.com")
    )
    await outbox.drain()
    assert [row.status for row in await outbox.rows()] == ["pending", "sent"]
    await outbox.end_holds()
    await outbox.drain()
    assert [row.status for row in await outbox.rows()] == ["sent", "sent"]
