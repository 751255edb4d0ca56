"""Mails of one event in one thread, and the copies in the mailbox of the sender."""

import re
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import text

from app.core.clock import utcnow
from app.core.db import transaction
from app.itip.event import Person
from tests.fakes.messages import Fault
from tests.flows.invitations.outbox import BOB, EVE, EVENT, OWNER


async def test_updates_and_cancellations_thread_under_the_first_mail(outbox):
    await outbox.queue()
    await outbox.queue(replace(EVENT, sequence=1))
    await outbox.queue(replace(EVENT, sequence=2), "CANCEL", (BOB, EVE))
    await outbox.process()
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
    mails = [mail for mail in outbox.fake.submitted if mail.recipients == [BOB.email]]
    for mail, headline in zip(mails[1:], ("Updated invitation: Weekly", "Canceled: Weekly"), strict=True):
        assert mail.part("text/plain").startswith(f"{headline}\r\n\r\nAda")
        assert f"<strong>{headline}</strong>" in re.sub(r" style=\"[^\"]*\"", "", mail.part("text/html"))
    assert len({mail["Message-ID"] for mail in (first, second, third)}) == 3


async def test_an_event_with_another_name_begins_another_thread(outbox):
    changed = replace(EVENT, name="Monthly", sequence=1)
    for event in (EVENT, changed, replace(changed, sequence=2, location="Room 2")):
        await outbox.queue(event)
    await outbox.process()
    mails = outbox.fake.submitted
    assert [mail.mail["Subject"] for mail in mails] == [
        "Invitation: Weekly", "Updated invitation: Monthly", "Re: Updated invitation: Monthly",
    ]  # fmt: skip
    assert mails[1].mail["In-Reply-To"] is None
    assert mails[2].mail["In-Reply-To"] == mails[1].mail["Message-ID"]
    assert mails[0].thread_id != mails[1].thread_id == mails[2].thread_id


async def test_a_thread_of_an_older_release_goes_on(outbox):
    await outbox.queue()
    await outbox.process()
    async with transaction(outbox.sessions) as session:
        await session.execute(text("UPDATE invitation_mails SET thread_subject = NULL"))
    await outbox.queue(replace(EVENT, sequence=1))
    await outbox.process()
    first, second = outbox.fake.submitted
    assert first.thread_id == second.thread_id


async def test_a_reply_reaches_the_inbox_of_the_mailbox_that_it_comes_from(outbox):
    reply = replace(BOB, response_status="accepted")
    owner = Person(email="Ada@Example.com", name="Ada")
    await outbox.queue(method="REPLY", recipients=(owner,), replying=reply)
    await outbox.process()
    (mail,) = outbox.mailbox.inbox
    assert mail.mail["Subject"] == "Accepted: Weekly (Bob)"
    assert mail.mail["Reply-To"] == BOB.email
    team = outbox.fake.add_mailbox("team@example.com", admin=OWNER)
    shared = replace(outbox.identity, mailbox_id=team.id, email=team.email)
    outbox.forget_mailboxes()
    await outbox.queue(method="REPLY", recipients=(owner,), replying=reply, sender=shared)
    await outbox.process()
    assert outbox.mailbox.inbox[1].mail["Message-ID"] is not None


async def test_a_lost_response_puts_no_second_copy_into_the_own_inbox(outbox):
    outbox.fake.faults.append(Fault(500, take=True))
    reply = replace(BOB, response_status="accepted")
    await outbox.queue(method="REPLY", recipients=(Person(email=OWNER, name="Ada"),), replying=reply)
    await outbox.process()
    await outbox.make_due()
    await outbox.process()
    assert len(outbox.fake.submitted) == 2
    assert len(outbox.mailbox.inbox) == 1
    assert (await outbox.row()).status == "sent"


async def test_a_500_after_which_the_mail_is_sent_later_makes_two_copies_at_most(outbox):
    """Its broker is unavailable: it keeps each mail and responds with 500."""
    outbox.fake.faults.extend([Fault(500, take=True)] * 5)
    await outbox.queue()
    for _ in range(5):
        await outbox.process()
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
    await outbox.process()
    assert [mail.mailbox_id for mail in outbox.fake.submitted] == [anew.id]
    assert [row.status for row in await outbox.rows()] == ["sent", "failed"]


async def test_after_an_invitation_that_failed_the_next_one_is_the_first(outbox):
    outbox.mailbox.users[OWNER] = "viewer"
    await outbox.queue()
    await outbox.process()
    outbox.mailbox.users[OWNER] = "sender"
    outbox.forget_mailboxes()
    await outbox.queue(replace(EVENT, sequence=1))
    await outbox.process()
    (mail,) = outbox.fake.submitted
    assert mail.mail["Subject"] == "Invitation: Weekly"
    assert mail.mail["In-Reply-To"] is None
