"""Mails that fail, are repeated or given up, and workers that are killed."""

import asyncio
import contextlib
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import text

from app.core.clock import utcnow
from app.core.db import transaction
from app.hosted.service import schedule_rewrite
from app.invitations.sender import MailSender
from app.invitations.service import Sender
from tests.fakes.messages import Fault
from tests.flows.invitations.outbox import BOB, EVENT, OWNER


async def test_retry_after_of_an_outage_is_heeded(outbox):
    outbox.fake.faults.append(Fault(503, {"Retry-After": "400"}))
    await outbox.queue()
    await outbox.process()
    assert (await outbox.row()).next_attempt_at - utcnow() > timedelta(seconds=390)


async def test_a_mail_that_fails_is_sent_again_unchanged(outbox):
    outbox.fake.faults.extend([Fault(503), Fault(502)])
    await outbox.queue()
    before = (await outbox.row()).mail
    await outbox.process()
    row = await outbox.row()
    assert (row.status, row.last_error, row.open_submits) == ("pending", "Messages answered 503.", 0)
    assert timedelta(seconds=3) < row.next_attempt_at - utcnow() < timedelta(seconds=6)
    for _ in range(2):
        await outbox.make_due()
        await outbox.process()
    assert (await outbox.row()).status == "sent"
    assert outbox.fake.submitted[0].raw == before


async def test_a_mail_is_given_up_after_a_day_and_says_why(outbox):
    outbox.fake.faults.append(Fault(503))
    await outbox.queue()
    async with transaction(outbox.sessions) as session:
        await session.execute(text("UPDATE invitation_mails SET give_up_at = now()"))
    await outbox.process()
    row = await outbox.row()
    assert (row.status, row.last_error) == ("failed", "Messages answered 503.")


async def test_a_page_of_a_proxy_with_404_fails_no_mail(outbox):
    outbox.fake.faults.append(Fault(404))
    await outbox.queue()
    await outbox.process()
    row = await outbox.row()
    assert (row.status, row.open_submits) == ("pending", 0)


async def test_a_mail_of_a_killed_worker_waits_as_long_as_one_without_a_response(outbox):
    outbox.fake.faults.append(Fault(take=True, hang=5))
    await outbox.queue()
    (claimed,) = await outbox.sender.claim(10)
    task = asyncio.create_task(outbox.sender.handle(claimed))
    await outbox.fake.wait_for(1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert (await outbox.row()).next_attempt_at - utcnow() > timedelta(minutes=9)


async def test_a_mail_that_fails_after_a_lost_response_may_have_been_sent(outbox):
    outbox.fake.faults.append(Fault(take=True, drop=True))
    await outbox.queue()
    await outbox.process()
    outbox.fake.mailboxes.clear()
    outbox.forget_mailboxes()
    await outbox.make_due()
    await outbox.process()
    assert (await outbox.row()).status == "unknown"


async def test_a_mail_given_up_after_a_lost_response_may_have_been_sent(outbox):
    outbox.fake.faults.extend([Fault(take=True, drop=True), Fault(503)])
    await outbox.queue()
    await outbox.process()
    async with transaction(outbox.sessions) as session:
        await session.execute(text("UPDATE invitation_mails SET give_up_at = now()"))
    await outbox.make_due()
    await outbox.process()
    row = await outbox.row()
    assert (row.status, row.last_error) == ("unknown", "Messages answered 503.")


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
    await outbox.process()
    await hanging
    row = await outbox.row()
    assert (row.status, row.last_error) == ("sent", None)


async def test_a_mail_that_begins_too_late_is_left_to_the_next_worker(outbox):
    await outbox.queue()
    (claimed,) = await outbox.sender.claim(10)
    await outbox.sender.handle(replace(claimed, lease=replace(claimed.lease, begin_by=0.0)))
    assert (await outbox.row()).status == "pending"
    assert outbox.fake.submitted == []


async def test_an_outage_of_messages_revokes_no_right(outbox):
    await outbox.queue()
    outbox.fake.look_up_faults.append(Fault(503))
    await outbox.process()
    assert (await outbox.row()).status == "pending"
    await outbox.make_due()
    await outbox.process()
    assert (await outbox.row()).status == "sent"


async def test_a_lost_scope_makes_mails_wait_for_the_operator(outbox):
    outbox.fake.scopes.discard("messages:send")
    await outbox.queue()
    await outbox.process()
    row = await outbox.row()
    assert row.status == "pending"
    assert "messages:send" in row.last_error
    outbox.fake.scopes.add("messages:send")
    await outbox.make_due()
    await outbox.process()
    assert (await outbox.row()).status == "sent"


async def test_a_submit_without_a_response_is_repeated_once_with_the_same_message_id(outbox):
    outbox.fake.faults.append(Fault(take=True, drop=True))
    await outbox.queue()
    await outbox.process()
    row = await outbox.row()
    assert (row.status, row.open_submits) == ("pending", 1)
    assert row.next_attempt_at - utcnow() > timedelta(minutes=9)
    await outbox.make_due()
    await outbox.process()
    assert (await outbox.row()).status == "sent"
    one, twin = outbox.fake.submitted
    assert one.raw == twin.raw


async def test_after_two_submits_without_a_response_it_is_not_sent_again(outbox):
    outbox.fake.faults.extend([Fault(take=True, drop=True), Fault(504, take=True)])
    await outbox.queue()
    for _ in range(3):
        await outbox.make_due()
        await outbox.process()
    assert len(outbox.fake.submitted) == 2
    row = await outbox.row()
    assert (row.status, row.last_error) == ("unknown", "Messages answered 504.")


async def test_a_worker_killed_in_a_submit_counts_as_a_lost_response(outbox):
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
    await outbox.process()
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
