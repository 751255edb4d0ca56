"""Announcing: the deliveries that a change writes, and how pending updates are merged."""

import asyncio
from datetime import timedelta

import orjson

from app.core.clock import isoformat, utcnow
from app.core.db import Session, transaction
from app.webhooks.outbox import announce, delete_pending_of_calendar, find_interest
from app.webhooks.payloads import CalendarFacts, ChangedEvent
from app.webhooks.repository.outbox import lock_subscribers
from tests import factories
from tests.integration.webhooks.webhooks_api import (
    ATTEMPT,
    CALENDAR,
    announce_change,
    change,
    create,
    finish,
    stored,
)


async def test_announcing_writes_one_delivery_for_each_active_subscription_to_the_trigger(
    api, other_api, sessions, project
) -> None:
    wanted = {(await create(api))["id"], (await create(api))["id"]}
    await create(api, triggers=["bot.state_change"])
    await create(api, is_active=False)
    await create(other_api)
    assert await announce_change(sessions, project) == 2
    deliveries = await stored(sessions)
    assert {delivery.subscription_id for delivery in deliveries} == wanted
    assert len({delivery.idempotency_key for delivery in deliveries}) == 2
    for delivery in deliveries:
        body = orjson.loads(delivery.body)
        assert body["idempotency_key"] == delivery.idempotency_key
        assert body["calendar_id"] == delivery.calendar_id == CALENDAR.id
        assert body["calendar_deduplication_key"] == "user-7"
        assert body["calendar_metadata"] == {"user": "7"}
        assert body["data"]["changes"] == {"created": 1, "updated": 0, "deleted": 0}
        assert delivery.status == "pending"


async def test_what_is_rolled_back_is_not_announced(api, sessions, project) -> None:
    await create(api, triggers=["calendar.state_change"])
    async with sessions() as session:
        announced = await announce(
            Session(session),
            project_id=project.id,
            trigger="calendar.state_change",
            calendar=CALENDAR,
            data={"state": "connected"},
        )
        await session.rollback()
    assert announced == 1
    assert await stored(sessions) == []


async def test_a_subscription_is_not_deleted_under_an_announcement(api, sessions, project) -> None:
    webhook = await create(api)
    async with transaction(sessions) as session:
        # As `announce` does first; were it deleted now, the delivery could not be written.
        assert len(await lock_subscribers(session, project.id, ["calendar.events_update"], [])) == 1
        deleting = asyncio.create_task(api.delete(f"/api/v1/webhooks/{webhook['id']}"))
        patched = await api.patch(f"/api/v1/webhooks/{webhook['id']}", json={"include_events": True})
        assert patched.status_code == 200  # a change of other kinds does not wait
        await asyncio.sleep(0.05)
        assert not deleting.done()
    assert (await deleting).status_code == 200
    assert await announce_change(sessions, project) == 0


async def test_changed_events_go_only_to_those_who_ask_for_them(api, settings, sessions, project) -> None:
    calendar_id = await factories.add_calendar(sessions, settings, project.id, secrets={})
    plain = await create(api)
    async with sessions() as session:
        assert not (await find_interest(session, project.id, calendar_id)).summaries
    full = await create(api, include_events=True)
    async with sessions() as session:
        assert (await find_interest(session, project.id, calendar_id)).summaries
    changed = ChangedEvent("evt_1", "updated", {"id": "evt_1", "name": "b"}, {"name": ("a", "b")})
    await announce_change(sessions, project, changed_events=[changed])
    bodies = {row.subscription_id: orjson.loads(row.body) for row in await stored(sessions)}
    assert "events" not in bodies[plain["id"]]["data"]
    assert bodies[full["id"]]["data"]["events"] == [
        {
            "id": "evt_1",
            "name": "b",
            "change": "updated",
            "changed_fields": {"name": {"old": "a", "new": "b"}},
        }
    ]
    assert bodies[full["id"]]["data"]["truncated"] is False


async def test_a_newer_update_takes_the_place_of_an_older_one_that_was_not_yet_tried(
    api, sessions, project
) -> None:
    await create(api)
    early = isoformat(utcnow() - timedelta(minutes=5))
    await announce_change(sessions, project, created=2, updated_after=early)
    await announce_change(sessions, project, created=3)
    (delivery,) = await stored(sessions)
    data = orjson.loads(delivery.body)["data"]
    assert data["changes"] == {"created": 5, "updated": 0, "deleted": 0}
    assert data["updated_after"] == early
    assert delivery.status == "pending"


async def test_an_older_update_that_was_tried_is_closed_with_its_bytes_and_attempts_kept(
    api, sessions, project
) -> None:
    webhook = await create(api)
    early = isoformat(utcnow() - timedelta(minutes=5))
    await announce_change(sessions, project, created=2, updated_after=early)
    (older,) = await stored(sessions)
    later = utcnow() + timedelta(hours=5)
    await change(sessions, older.id, attempts=[ATTEMPT], retry_count=4, next_attempt_at=later)
    await announce_change(sessions, project, created=3)
    closed, newer = await stored(sessions)
    assert (closed.id, closed.status, closed.next_attempt_at) == (older.id, "failed", None)
    assert closed.merged_into == newer.id
    assert closed.body == older.body
    assert newer.idempotency_key != older.idempotency_key
    assert newer.next_attempt_at is not None
    assert newer.next_attempt_at < utcnow()
    data = orjson.loads(newer.body)["data"]
    assert data["changes"]["created"] == 5
    assert data["updated_after"] == early
    log = (await api.get(f"/api/v1/webhooks/{webhook['id']}/deliveries")).json()["results"]
    assert [(row["id"], row["merged_into"]) for row in log] == [(newer.id, None), (older.id, newer.id)]
    assert log[1]["attempts"] == [ATTEMPT]


async def test_a_run_of_updates_that_fail_one_after_the_other_adds_up(api, sessions, project) -> None:
    await create(api, include_events=True)
    for number in range(5):
        event = ChangedEvent(f"evt_{number}", "created", {"id": f"evt_{number}"}, {})
        await announce_change(sessions, project, changed_events=[event])
        pending = [row for row in await stored(sessions) if row.status == "pending"]
        assert len(pending) == 1
        await change(sessions, pending[0].id, attempts=[ATTEMPT])
    data = orjson.loads(pending[0].body)["data"]
    assert data["changes"]["created"] == 5
    assert [event["id"] for event in data["events"]] == [f"evt_{number}" for number in range(5)]
    assert data["truncated"] is False


async def test_what_must_not_be_merged_is_not(api, sessions, project) -> None:
    first, second = await create(api), await create(api, triggers=["calendar.state_change"])
    other_calendar = CalendarFacts("cal_other", deduplication_key=None, metadata=None)
    # Another calendar, another trigger, and one that a worker has under way.
    await announce_change(sessions, project, calendar=other_calendar)
    await announce_change(sessions, project, "calendar.state_change")
    await announce_change(sessions, project, "calendar.state_change")
    await announce_change(sessions, project)
    under_way = (await stored(sessions))[-1]
    await change(sessions, under_way.id, lease_token="t", next_attempt_at=utcnow() + timedelta(seconds=9))
    await announce_change(sessions, project)
    rows = await stored(sessions)
    assert {row.status for row in rows} == {"pending"}
    assert [row.subscription_id for row in rows] == [first["id"], *[second["id"]] * 2, *[first["id"]] * 2]
    assert [orjson.loads(row.body)["data"].get("changes", {}).get("created") for row in rows] == [
        1, None, None, 1, 1,
    ]  # fmt: skip


async def test_a_delivery_that_was_asked_for_again_is_not_merged(api, sessions, project) -> None:
    await create(api)
    await announce_change(sessions, project)
    (row,) = await stored(sessions)
    await finish(sessions, row.id)
    await api.post(f"/api/v1/webhook_deliveries/{row.id}/redeliver")
    await announce_change(sessions, project)
    assert [kept.status for kept in await stored(sessions)] == ["pending", "pending"]


async def test_a_calendars_pending_deliveries_go_with_it(api, sessions, project) -> None:
    await create(api, triggers=["calendar.state_change"])
    for _ in range(2):
        await announce_change(sessions, project, "calendar.state_change")
    done, _ = await stored(sessions)
    await finish(sessions, done.id)
    async with transaction(sessions) as session:
        await delete_pending_of_calendar(session, CALENDAR.id)
    assert [row.id for row in await stored(sessions)] == [done.id]
