"""`ordering: "fifo"`: the messages about one calendar are sent one at a time, in order."""

import asyncio
import random
from collections import defaultdict
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from app.core.clock import isoformat, utcnow
from app.core.db import transaction
from app.models import WebhookDelivery
from app.webhooks import requeue, service
from app.webhooks.event_messages import EventMessage, announce_events
from app.webhooks.outbox import announce
from app.webhooks.payloads import CalendarFacts
from app.webhooks.repository import claims, lanes
from app.webhooks.schemas import DeliveriesQuery, WebhookCreate
from tests.fakes.receiver import Response
from tests.integration.webhooks.deliveries import Webhooks, deliver_due

CALENDARS = [CalendarFacts(f"cal_{number:016}", None, None) for number in range(4)]


async def subscribe(webhooks: Webhooks, path: str = "/", **fields: Any) -> str:
    body = WebhookCreate(
        url=webhooks.url + path,
        triggers=["event.created", "calendar.events_update", "calendar.state_change"],
        **{"ordering": "fifo", **fields},
    )
    async with transaction(webhooks.sessions) as session:
        created = await service.create_webhook(
            session, webhooks.box, webhooks.settings, webhooks.project_id, body
        )
    return created.id


async def put(webhooks: Webhooks, calendar: CalendarFacts, *numbers: int) -> None:
    """Messages about one calendar in one transaction, which the receiver gets as `number`."""
    messages = [
        EventMessage("event.created", calendar, "evt_x", {"number": number, "changed_fields": {}})
        for number in numbers
    ]
    async with transaction(webhooks.sessions) as session:
        await announce_events(session, project_id=webhooks.project_id, messages=messages)


async def put_update(webhooks: Webhooks, calendar: CalendarFacts, created: int = 1) -> None:
    data = {
        "changes": {"created": created, "updated": 0, "deleted": 0},
        "updated_after": isoformat(utcnow()),
    }
    async with transaction(webhooks.sessions) as session:
        await announce(
            session,
            project_id=webhooks.project_id,
            trigger="calendar.events_update",
            calendar=calendar,
            data=data,
        )


def numbers(webhooks: Webhooks) -> dict[str, list[int]]:
    """What the receiver got, by calendar."""
    found = defaultdict(list)
    for received in webhooks.receiver.received:
        found[received.json["calendar_id"]].append(received.json["data"].get("number", -1))
    return found


async def test_messages_of_one_calendar_are_sent_one_at_a_time_in_order(webhooks: Webhooks) -> None:
    await subscribe(webhooks)
    await put(webhooks, CALENDARS[0], 0, 1, 2)
    await put(webhooks, CALENDARS[1], 0)
    await put(webhooks, CALENDARS[0], 3, 4)
    async with webhooks.deliverer() as first, webhooks.deliverer() as second:
        one = await first.claim(20)
        assert len(one) == 2  # the first of each calendar
        assert await second.claim(20) == []
        await asyncio.gather(*(first.handle(delivery) for delivery in one))
        await deliver_due(second)
    assert numbers(webhooks) == {CALENDARS[0].id: [0, 1, 2, 3, 4], CALENDARS[1].id: [0]}


async def test_one_that_fails_holds_up_its_calendar_alone_and_after_its_last_attempt_the_next_goes(
    webhooks: Webhooks,
) -> None:
    await subscribe(webhooks)
    await put(webhooks, CALENDARS[0], 0, 1)
    webhooks.receiver.script.append(Response(500))
    await webhooks.deliver(webhook_retry_schedule_seconds=(7200.0,))
    await put(webhooks, CALENDARS[0], 2)
    await put(webhooks, CALENDARS[1], 0, 1)
    await webhooks.deliver(webhook_retry_schedule_seconds=(7200.0,))
    assert numbers(webhooks) == {CALENDARS[0].id: [0], CALENDARS[1].id: [0, 1]}
    async with transaction(webhooks.sessions) as session:
        await session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.retry_count == 1)
            .values(next_attempt_at=WebhookDelivery.created_at)
        )
    webhooks.receiver.script.append(Response(500))
    await webhooks.deliver(webhook_retry_schedule_seconds=(7200.0,))
    assert numbers(webhooks)[CALENDARS[0].id] == [0, 0, 1, 2]
    assert [row.status for row in await webhooks.rows()].count("failed") == 1


async def test_messages_without_a_calendar_have_no_order(webhooks: Webhooks) -> None:
    subscription = await subscribe(webhooks)
    async with transaction(webhooks.sessions) as session:
        for _ in range(2):
            await announce(
                session,
                project_id=webhooks.project_id,
                trigger="calendar.state_change",
                calendar=None,
                data={},
            )
    async with webhooks.deliverer() as deliverer:
        assert len(await deliverer.claim(20)) == 2
    assert [row.position for row in await webhooks.rows()] == [None, None]
    assert subscription


async def test_a_worker_that_dies_while_sending_does_not_change_the_order(webhooks: Webhooks) -> None:
    await subscribe(webhooks)
    await put(webhooks, CALENDARS[0], 0, 1, 2)
    webhooks.receiver.script.append(Response(delay=30))
    async with webhooks.deliverer() as deliverer:
        (claimed,) = await deliverer.claim(10)
        sending = asyncio.create_task(deliverer.handle(claimed))
        await webhooks.receiver.wait_for(1)
        sending.cancel()
        await asyncio.wait([sending])
    await webhooks.deliver()
    assert numbers(webhooks)[CALENDARS[0].id] == [0]  # not while the lease runs
    async with transaction(webhooks.sessions) as session:
        await session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.lease_token.is_not(None))
            .values(next_attempt_at=func.now() - timedelta(seconds=1))
        )
    await webhooks.deliver()
    assert numbers(webhooks)[CALENDARS[0].id] == [0, 0, 1, 2]


async def test_one_that_is_committed_late_waits_for_one_that_is_being_sent(webhooks: Webhooks) -> None:
    await subscribe(webhooks)
    async with transaction(webhooks.sessions) as late:
        await announce(
            late,
            project_id=webhooks.project_id,
            trigger="calendar.state_change",
            calendar=CALENDARS[0],
            data={"number": 1},
        )
        await put(webhooks, CALENDARS[0], 2)
        async with webhooks.deliverer() as deliverer:
            (claimed,) = await deliverer.claim(10)
            await late.commit()
            assert await deliverer.claim(10) == []
            await deliverer.handle(claimed)
            await deliver_due(deliverer)
    assert numbers(webhooks)[CALENDARS[0].id] == [2, 1]


async def test_updates_are_merged_only_with_nothing_between_them(webhooks: Webhooks) -> None:
    await subscribe(webhooks)
    await put(webhooks, CALENDARS[0], 0)
    await put_update(webhooks, CALENDARS[0], 1)
    await put_update(webhooks, CALENDARS[0], 2)
    await put(webhooks, CALENDARS[0], 1)
    await put_update(webhooks, CALENDARS[0], 4)
    await put_update(webhooks, CALENDARS[0], 8)
    await webhooks.deliver()
    got = [received.json["data"] for received in webhooks.receiver.received]
    assert [data.get("number", data.get("changes", {}).get("created")) for data in got] == [0, 3, 1, 12]


async def test_a_merged_head_does_not_block_its_lane(webhooks: Webhooks) -> None:
    await subscribe(webhooks)
    await put_update(webhooks, CALENDARS[0], 1)
    webhooks.receiver.script.append(Response(500))
    await webhooks.deliver(webhook_retry_schedule_seconds=(7200.0,))
    await put_update(webhooks, CALENDARS[0], 2)
    await webhooks.deliver()
    assert [received.json["data"]["changes"]["created"] for received in webhooks.receiver.received] == [1, 3]


async def test_a_pending_delivery_that_is_redelivered_keeps_its_place_and_a_finished_one_does_not_wait(
    webhooks: Webhooks,
) -> None:
    await subscribe(webhooks)
    await put(webhooks, CALENDARS[0], 0, 1, 2)
    webhooks.receiver.script.extend([Response(), Response(500)])
    await webhooks.deliver(webhook_retry_schedule_seconds=(7200.0,))
    assert numbers(webhooks)[CALENDARS[0].id] == [0, 1]
    first, _, last = await webhooks.rows()
    async with transaction(webhooks.sessions) as session:
        await service.redeliver(session, webhooks.project_id, last.id)
        await service.redeliver(session, webhooks.project_id, first.id)
    await webhooks.deliver()
    assert numbers(webhooks)[CALENDARS[0].id] == [0, 1, 0]
    await webhooks.make_due()
    await webhooks.deliver()
    assert numbers(webhooks)[CALENDARS[0].id] == [0, 1, 0, 1, 2]


async def test_a_replay_is_sent_in_order(webhooks: Webhooks) -> None:
    subscription = await subscribe(webhooks)
    await put(webhooks, CALENDARS[0], *range(5))
    webhooks.receiver.script.extend([Response(), Response(), Response(500)])
    await webhooks.deliver(webhook_retry_schedule_seconds=(7200.0,))
    webhooks.receiver.received.clear()
    async with transaction(webhooks.sessions) as session:
        replayed = await service.replay(
            session, webhooks.project_id, subscription, utcnow() - timedelta(hours=1)
        )
    assert replayed == 5
    await webhooks.deliver()
    assert numbers(webhooks)[CALENDARS[0].id] == [0, 1, 2, 3, 4]


async def test_an_endpoint_that_is_enabled_again_goes_on_in_order(webhooks: Webhooks) -> None:
    subscription = await subscribe(webhooks)
    await put(webhooks, CALENDARS[0], 0, 1, 2)
    await webhooks.patch(subscription, is_active=False)
    await webhooks.deliver()
    assert webhooks.receiver.received == []
    await webhooks.patch(subscription, is_active=True)
    async with webhooks.deliverer() as deliverer:
        (claimed,) = await deliverer.claim(20)
        await deliverer.handle(claimed)
        await deliver_due(deliverer)
    assert numbers(webhooks)[CALENDARS[0].id] == [0, 1, 2]


async def test_a_change_of_the_order_counts_for_messages_that_are_written_later(webhooks: Webhooks) -> None:
    subscription = await subscribe(webhooks)
    await put(webhooks, CALENDARS[0], 0, 1)
    await webhooks.patch(subscription, ordering="any")
    await put(webhooks, CALENDARS[0], 2, 3)
    async with webhooks.deliverer() as deliverer:
        claimed = await deliverer.claim(20)
        assert len(claimed) == 3  # the head of those in order, and the two later ones
        await asyncio.gather(*(deliverer.handle(delivery) for delivery in claimed))
        await deliver_due(deliverer)
    assert sorted(numbers(webhooks)[CALENDARS[0].id]) == [0, 1, 2, 3]


async def test_old_messages_of_a_disabled_endpoint_end_one_after_the_other(webhooks: Webhooks) -> None:
    subscription = await subscribe(webhooks)
    await put(webhooks, CALENDARS[0], 0, 1)
    await webhooks.patch(subscription, is_active=False)
    async with transaction(webhooks.sessions) as session:
        await session.execute(update(WebhookDelivery).values(created_at=func.now() - timedelta(days=31)))
    for _ in range(3):
        await webhooks.deliver()
    assert [row.status for row in await webhooks.rows()] == ["failed", "failed"]


async def test_a_lane_that_the_release_before_left_behind_goes_on(webhooks: Webhooks) -> None:
    await subscribe(webhooks)
    await put(webhooks, CALENDARS[0], 0, 1)
    async with transaction(webhooks.sessions) as session:
        await session.execute(
            text(
                "UPDATE webhook_deliveries SET status = 'success', next_attempt_at = NULL, finished_at = now() "
                "WHERE NOT waits"
            )
        )
    await webhooks.deliver()
    assert webhooks.receiver.received == []
    await requeue.unblock_lanes(webhooks.sessions)
    await webhooks.deliver()
    assert numbers(webhooks)[CALENDARS[0].id] == [1]


async def test_a_waiting_delivery_shows_no_time_of_its_next_attempt(webhooks: Webhooks) -> None:
    subscription = await subscribe(webhooks)
    await put(webhooks, CALENDARS[0], 0, 1)
    async with webhooks.sessions() as session:
        page = await service.list_deliveries(
            session,  # type: ignore[arg-type] # reads only
            webhooks.project_id,
            subscription,
            DeliveriesQuery(),
        )
    assert [row.next_attempt_at is None for row in page.rows] == [True, False]


@pytest.mark.parametrize("seed", range(3))
async def test_order_holds_for_several_workers_that_fail_and_are_killed(
    webhooks: Webhooks, seed: int
) -> None:
    """Every message arrives, and a calendar's messages arrive in order but for repetitions of the last."""
    chance = random.Random(seed)
    await subscribe(webhooks, "/one")
    await subscribe(webhooks, "/two")
    webhooks.receiver.script.extend(
        chance.choice([Response(), Response(), Response(500), Response(delay=0.05)]) for _ in range(150)
    )
    count = 12

    async def write() -> None:
        for number in range(count):
            for calendar in chance.sample(CALENDARS, len(CALENDARS)):
                await put(webhooks, calendar, 2 * number, 2 * number + 1)
            await asyncio.sleep(0.01)

    async def work() -> None:
        """A worker that dies from time to time; its lease is made to end soon."""
        while True:
            async with webhooks.deliverer(webhook_retry_schedule_seconds=(0.01,) * 200) as deliverer:
                for _ in range(chance.randrange(5, 15)):
                    tasks = [asyncio.create_task(deliverer.handle(one)) for one in await deliverer.claim(8)]
                    if tasks and chance.random() < 0.2:
                        await asyncio.sleep(chance.random() * 0.03)
                        for task in tasks:
                            task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                    await asyncio.sleep(0.005)

    async def end_leases() -> None:
        while True:
            await asyncio.sleep(0.4)
            async with transaction(webhooks.sessions) as session:
                await session.execute(
                    update(WebhookDelivery)
                    .where(
                        WebhookDelivery.lease_token.is_not(None),
                        WebhookDelivery.next_attempt_at < func.now() + timedelta(seconds=11.4),
                    )
                    .values(next_attempt_at=func.now())
                )

    async def unfinished() -> int:
        async with webhooks.sessions() as session:
            statement = select(func.count()).where(WebhookDelivery.status == "pending")
            return await session.scalar(statement) or 0

    tasks = [asyncio.create_task(one) for one in (work(), work(), work(), end_leases())]
    await write()
    async with asyncio.timeout(60):
        while await unfinished():
            await asyncio.sleep(0.05)
            assert not [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for path in ("/one", "/two"):
        for calendar in CALENDARS:
            got = [
                received.json["data"]["number"]
                for received in webhooks.receiver.received
                if (received.path, received.json["calendar_id"]) == (path, calendar.id)
            ]
            assert list(dict.fromkeys(got)) == list(range(2 * count))
            assert got == sorted(got)


async def test_claims_use_indexes_however_many_wait_behind_one(webhooks: Webhooks) -> None:
    subscription = await subscribe(webhooks)
    await put(webhooks, CALENDARS[0], *range(3000))
    await put(webhooks, CALENDARS[1], 0)
    values = {"endpoints": [subscription], "limit": 1000}
    lease = {"given": [4], "slots": [4], "lease_token": "t", "lease_seconds": 1.0}
    async with transaction(webhooks.sessions) as session:
        await session.execute(claims._USE_INDEXES)
        for statement, more, index in (
            (claims._CLAIM_HEADS, lease, "ix_webhook_deliveries_lanes"),
            (lanes._LOCK_HEADS, {}, "ix_webhook_deliveries_lanes"),
            (lanes._LINE_UP, {"heads": ["x"]}, "ix_webhook_deliveries_lanes"),
            (lanes._FIND_STUCK, {}, "ix_webhook_deliveries_lanes"),
        ):
            rows = await session.scalars(text(f"EXPLAIN (ANALYZE, BUFFERS) {statement}"), {**values, **more})
            plan = "\n".join(rows)
            assert "Seq Scan on webhook_deliveries" not in plan
            assert index in plan
        await session.rollback()
    async with webhooks.deliverer() as deliverer:
        claimed = await deliverer.claim(20)
        assert len(claimed) == 2
