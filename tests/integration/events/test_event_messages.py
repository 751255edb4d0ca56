"""`event.created`, `event.updated` and `event.deleted`: one message for each change, in its transaction."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import update

from app.core.clock import isoformat
from app.core.db import transaction
from app.events.data import RemoteAttendee, RemoteOrganizer
from app.models import CalendarEvent
from tests import factories
from tests.integration.events.test_writer import NOW, Ref, apply, remote
from tests.integration.webhooks.webhooks_api import create, stored

ALL = ["event.created", "event.updated", "event.deleted"]


@pytest.fixture
async def ref(sessions, settings, project):
    metadata = {"team": "a"}
    calendar_id = await factories.add_calendar(
        sessions, settings, project.id, secrets={}, deduplication_key="user-7", metadata_=metadata
    )
    return Ref(calendar_id, project.id)


async def bodies(sessions, webhook_id: str | None = None) -> list[dict[str, Any]]:
    rows = [row for row in await stored(sessions) if webhook_id in (None, row.subscription_id)]
    for row in rows:
        body = orjson.loads(row.body)
        assert (body["idempotency_key"], body["trigger"]) == (row.idempotency_key, row.trigger)
        assert row.body == orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        assert (row.status, row.can_merge) == ("pending", False)
    assert len({row.idempotency_key for row in rows}) == len(rows)
    return [orjson.loads(row.body) for row in rows]


async def test_each_change_is_announced_with_its_event_and_what_changed(api, sessions, ref) -> None:
    await create(api, triggers=ALL)
    people = {
        "attendees": (RemoteAttendee("bob@example.org", "Bob"),),
        "organizer": RemoteOrganizer("ada@example.com", None),
    }
    await apply(sessions, ref, [remote("a", **people, ical_uid="uid"), remote("b")])
    first, second = await bodies(sessions)
    row = (await factories.load_events(sessions, ref.calendar_id))["a"]
    assert (first["trigger"], second["trigger"]) == ("event.created", "event.created")
    assert first["calendar_event_id"] == first["data"]["event"]["id"] == row.id
    assert (first["calendar_id"], first["calendar_deduplication_key"]) == (ref.calendar_id, "user-7")
    assert first["calendar_metadata"] == {"team": "a"}
    assert first["data"]["changed_fields"] == {}
    stated = first["data"]["event"]
    assert stated["updated_at"] == isoformat(row.updated_at)
    assert (stated["platform_uuid"], stated["ical_uid"], stated["is_deleted"]) == ("a", "uid", False)
    assert stated["organizer"] == {"email": "ada@example.com", "name": None}
    assert [person["email"] for person in stated["attendees"]] == ["bob@example.org"]

    await apply(sessions, ref, [remote("a", location="Room", **people)], removed=[("b", None)])
    _, _, updated, deleted = await bodies(sessions)
    assert updated["trigger"] == "event.updated"
    assert updated["data"]["changed_fields"] == {"location": {"old": None, "new": "Room"}}
    assert updated["data"]["event"]["location"] == "Room"
    assert deleted["trigger"] == "event.deleted"
    assert deleted["data"]["event"]["is_deleted"] is True
    assert deleted["data"]["event"]["platform_uuid"] == "b"
    assert deleted["data"]["changed_fields"] == {"is_deleted": {"old": False, "new": True}}
    await apply(sessions, ref, [remote("b")])
    assert (await bodies(sessions))[-1]["trigger"] == "event.created"


async def test_only_what_is_asked_for_is_announced(api, sessions, ref) -> None:
    times = (await create(api, triggers=ALL, changed_fields=["start_time", "end_time"]))["id"]
    deletions = (await create(api, triggers=["event.deleted"]))["id"]
    other = (await create(api, triggers=ALL, metadata={"team": "b"}))["id"]
    off = (await create(api, triggers=ALL, is_active=False))["id"]
    event = remote("a")
    await apply(sessions, ref, [event])
    await apply(sessions, ref, [replace(event, location="Room")])
    moved = replace(event, start_time=NOW + timedelta(minutes=5))
    await apply(sessions, ref, [moved])
    await apply(sessions, ref, [], removed=[("a", None)])
    expected = ["event.created", "event.updated", "event.deleted"]
    assert [body["trigger"] for body in await bodies(sessions, times)] == expected
    assert [body["trigger"] for body in await bodies(sessions, deletions)] == ["event.deleted"]
    assert await bodies(sessions, other) == await bodies(sessions, off) == []


async def test_a_large_sync_announces_every_event_in_order(api, sessions, ref) -> None:
    webhooks = [(await create(api, triggers=ALL, ordering=one))["id"] for one in ("any", "fifo")]
    await apply(sessions, ref, [remote(f"e{number:04}") for number in range(1500)])
    names = [f"e{number:04}" for number in range(1500)]
    for webhook_id in webhooks:
        rows = [row for row in await stored(sessions) if row.subscription_id == webhook_id]
        assert [orjson.loads(row.body)["data"]["event"]["name"] for row in rows] == names
        positions = [row.position for row in rows]
        assert positions == ([None] * 1500 if webhook_id == webhooks[0] else sorted(filter(None, positions)))


async def test_what_is_not_asked_for_costs_one_look_up(api, sessions, engine, ref) -> None:
    statements: list[str] = []
    sqlalchemy_event.listen(
        engine.sync_engine, "before_cursor_execute", lambda *values: statements.append(values[2])
    )
    await create(api, triggers=["calendar.events_update"])
    await apply(sessions, ref, [remote("a")])
    assert len([one for one in statements if "webhook_" in one]) == 1


async def test_a_value_that_was_never_read_did_not_change(api, sessions, ref) -> None:
    await create(api, triggers=ALL)
    await apply(sessions, ref, [remote("a", busy_status="free")])
    async with transaction(sessions) as session:
        await session.execute(
            update(CalendarEvent).values(busy_status=None, visibility=None, event_type=None)
        )
    await apply(sessions, ref, [remote("a", busy_status="free", location="Room")])
    await apply(sessions, ref, [remote("a", busy_status="busy", raw='{"transparency": "opaque"}')])
    _, first, second = await bodies(sessions)
    assert list(first["data"]["changed_fields"]) == ["location"]
    assert second["data"]["changed_fields"] == {
        "location": {"old": "Room", "new": None},
        "busy_status": {"old": "free", "new": "busy"},
    }


async def test_years_that_few_programs_expect(api, sessions, ref) -> None:
    await create(api, triggers=ALL, starting_soon_minutes=1440)
    await create(api, triggers=["event.starting_soon"], starting_soon_minutes=1440)
    far = datetime(9999, 12, 31, 23, 59, tzinfo=UTC)
    await apply(sessions, ref, [remote("a")])
    await apply(sessions, ref, [remote("a", start_time=far, end_time=far)])
    await apply(sessions, ref, [remote("a", start_time=datetime(1, 1, 1, tzinfo=UTC), end_time=None)])
    assert [body["data"]["event"]["start_time"] for body in await bodies(sessions)][1:] == [
        "9999-12-31T23:59:00.000000Z",
        "0001-01-01T00:00:00.000000Z",
    ]
