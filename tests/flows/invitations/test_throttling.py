"""Throttling by Messages: holds, probes, and what still goes out."""

from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import text

from app.core.clock import utcnow
from app.core.db import transaction
from app.hosted.service import schedule_rewrite
from app.invitations.sender import MailSender
from app.invitations.service import Sender
from app.models import MailLane
from tests.fakes.messages import Fault
from tests.flows.invitations.outbox import BOB, EVE, EVENT, OWNER


async def test_a_mailbox_that_is_throttled_waits_as_long_as_requested(outbox, api):
    outbox.fake.faults.append(Fault(429, {"Retry-After": "90"}, html=False))
    await outbox.queue(recipients=(BOB, EVE))
    assert await outbox.process() == 1
    assert await outbox.process() == 0
    rows = await outbox.rows()
    assert [row.status for row in rows] == ["pending", "pending"]
    assert [row.open_submits for row in rows] == [0, 0]
    listed = (await api.get(f"/api/v1/calendar_events/{outbox.event_id}/invitations")).json()["results"]
    for mail in listed:
        wait = datetime.fromisoformat(mail["next_attempt_at"]) - utcnow()
        assert timedelta(seconds=80) < wait <= timedelta(seconds=90)
        assert "takes no more mails from this mailbox" in mail["last_error"]
    await outbox.end_holds()
    assert await outbox.process() == 2
    assert len(outbox.fake.submitted) == 2
    async with outbox.sessions() as session:
        lane = await session.get(MailLane, f"mailbox:{outbox.mailbox.id}")
    assert (lane.held_until, lane.hold_count, lane.lease_token) == (None, 0, None)


async def test_a_throttled_mailbox_holds_no_other(outbox):
    """One mailbox is at its limit until midnight; other mailboxes and projects go on."""
    box = outbox.fake.add_mailbox("rem@example.com", admin="rem@example.com")
    rem = Sender(mailbox_id=box.id, email=box.email, name=None, owner_email=box.email)
    outbox.fake.limits[outbox.mailbox.id] = 1
    await outbox.queue(recipients=(BOB, EVE))
    await outbox.process()
    await outbox.queue(replace(EVENT, uid="another"), sender=rem)
    other = MailSender(
        settings=outbox.settings,
        sessions=outbox.sessions,
        messages=outbox.messages,
        refresh_event=schedule_rewrite,
    )
    assert len(await other.claim(10)) == 1
    await outbox.make_due()
    await outbox.process()
    assert [row.status for row in await outbox.rows()] == ["sent", "pending", "sent"]


async def test_a_hold_outlives_the_process_and_is_probed_by_one_mail(outbox):
    """A limit may be lifted before the time that Messages names. One mail tries that, not all of them."""
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
    assert await outbox.process() == 5


async def test_holds_grow_while_messages_names_no_time(outbox):
    await outbox.queue()
    waits = []
    for _ in range(10):
        outbox.fake.faults.append(Fault(429, {"Retry-After": "1"}, html=False))
        await outbox.process()
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
    await outbox.process()
    last = (await outbox.rows())[-1]
    await outbox.ask_again(last.id)
    assert await outbox.process() == 1  # one attempt: throttled again
    assert await outbox.process() == 0
    assert (await outbox.rows())[-1].attempt_count == 1
    outbox.fake.limits.clear()
    await outbox.ask_again(last.id)
    await outbox.process()  # it got through, so the hold is over
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
        await outbox.process()
        assert (await outbox.row()).status == status


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
    await outbox.process()
    await outbox.queue(recipients=(EVE,))
    assert await outbox.process() == 0
    assert outbox.fake.submitted == []


async def test_a_throttled_look_up_makes_all_mails_wait(outbox, api):
    outbox.fake.look_up_faults.append(Fault(429, {"Retry-After": "90"}))
    await outbox.queue(recipients=(BOB, EVE))
    (claimed,) = await outbox.sender.claim(1)
    await outbox.sender.handle(claimed)
    assert await outbox.process() == 0
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
    assert await outbox.process() == 0
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
    assert await outbox.process() == 0
    last = claimed.due.sender_email
    for box in outbox.fake.mailboxes.values():
        box.users = {email: "viewer" if box.email != last else role for email, role in box.users.items()}
    await outbox.end_holds()
    assert await outbox.process() == 4
    assert sorted(row.status for row in await outbox.rows()) == ["failed", "failed", "failed", "sent"]


async def test_a_probe_that_is_throttled_again_holds_as_long_as_requested(outbox):
    """The hold does not depend on other mails of the same claim."""
    smtp = Sender(mailbox_id=None, email="cal@example.net", name=None, owner_email=OWNER)
    await outbox.queue()
    outbox.fake.look_up_faults.extend([Fault(429, {"Retry-After": "90"})] * 2)
    await outbox.process()
    await outbox.end_holds()
    outbox.settings.smtp_url = None
    await outbox.queue(replace(EVENT, uid="by-smtp"), sender=smtp)
    claimed = sorted(await outbox.sender.claim(10), key=lambda mail: mail.due.mailbox_id is None)
    assert len(claimed) == 2
    for mail in claimed:
        await outbox.sender.handle(mail)
    assert await outbox.process() == 0
