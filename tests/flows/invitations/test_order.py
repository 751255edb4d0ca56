"""Order of mails, and turns of guests, mailboxes and projects."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text, update

from app.core.clock import utcnow
from app.core.db import transaction
from app.hosted.service import schedule_rewrite
from app.invitations.repository.claims import READY_LANES
from app.invitations.sender import MailSender
from app.invitations.service import Sender
from app.itip.event import Person
from app.models import InvitationMail, MailLane
from tests.fakes.messages import Fault
from tests.flows.invitations.outbox import BOB, EVE, EVENT, OWNER, vevent


async def test_a_later_mail_waits_for_the_earlier_one(outbox):
    outbox.fake.faults.append(Fault(503))
    await outbox.queue()
    await outbox.process()
    await outbox.queue(replace(EVENT, sequence=1), "CANCEL", (BOB, EVE))
    await outbox.process()
    assert [mail.recipients for mail in outbox.fake.submitted] == [[EVE.email]]
    await outbox.make_due()
    await outbox.process()
    assert [vevent(mail)[0] for mail in outbox.fake.submitted] == ["CANCEL", "REQUEST", "CANCEL"]


async def test_a_reply_that_is_held_back_delays_no_other_guests_reply(outbox):
    owner = (Person(email=OWNER, name="Ada"),)
    for status in ("accepted", "declined", "tentative", "accepted"):
        await outbox.queue(method="REPLY", recipients=owner, replying=replace(BOB, response_status=status))
        await outbox.process()
    assert (await outbox.rows())[-1].status == "pending"
    await outbox.queue(method="REPLY", recipients=owner, replying=replace(EVE, response_status="declined"))
    assert await outbox.process() == 1
    assert outbox.fake.submitted[-1].mail["Subject"] == "Declined: Weekly (Eve)"


@pytest.mark.parametrize("column", ["NULL", "'bob@example.org'"])
async def test_one_guests_replies_keep_their_order(outbox, column):
    """Also behind a reply of an older release, which did not store its guest."""
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
    assert await outbox.process() == 0


async def test_a_mail_waits_for_no_other_event(outbox):
    outbox.fake.faults.append(Fault(503))
    await outbox.queue()
    await outbox.process()
    await outbox.queue(replace(EVENT, uid="another"))
    await outbox.process()
    assert [row.status for row in await outbox.rows()] == ["pending", "sent"]


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
    assert len(await outbox.sender.claim(10)) == 3  # they hang in their submits
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
    for _ in range(8):  # one at a time, which makes the turns visible
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
