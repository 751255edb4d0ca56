"""`event.starting_soon`: which events are announced, and when."""

import asyncio
import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import orjson
import pytest
from sqlalchemy import func, select, text, update

from app.core.clock import utcnow
from app.core.db import Sessions, transaction
from app.events.data import RemoteEvent, Unannounced, Window
from app.events.writer import apply_changes
from app.models import Calendar, CalendarEvent, StartingSoonNotice, StartingSoonPosition, WebhookDelivery
from app.settings import Settings
from app.starting_soon import repository
from app.starting_soon.service import announce_starting, prune_notices
from tests import factories

MINUTE = timedelta(minutes=1)


@dataclass
class Soon:
    """A project with a calendar, whose events a test writes, and webhooks that are announced when they start soon."""

    api: Any
    settings: Settings
    sessions: Sessions
    project_id: str
    calendar_id: str
    announced_before: set[str] = field(default_factory=set)

    async def subscribe(self, **fields: Any) -> str:
        body = {"url": "https://hooks.example/soon", "triggers": ["event.starting_soon"], **fields}
        response = await self.api.post("/api/v1/webhooks", json=body)
        assert response.status_code == 201, response.text
        created: str = response.json()["id"]
        return created

    async def write(self, *events: RemoteEvent, calendar_id: str | None = None) -> None:
        ref = Ref(calendar_id or self.calendar_id, self.project_id)
        async with transaction(self.sessions) as session:
            await session.execute(select(Calendar.id).where(Calendar.id == ref.calendar_id).with_for_update())
            window = Window(utcnow() - timedelta(days=9), utcnow() + timedelta(days=9))
            await apply_changes(
                session,
                ref,
                events,
                window=window,
                removed={},
                earlier=Unannounced(),
                is_announced_now=True,
                bot_platforms=(),
            )

    async def look(self) -> None:
        await announce_starting(self.sessions, self.settings, is_woken=True)

    async def announced(self, webhook_id: str | None = None) -> list[tuple[str, datetime]]:
        """What was written since the last call: name and start."""
        async with self.sessions() as session:
            statement = select(WebhookDelivery).order_by(WebhookDelivery.created_at, WebhookDelivery.id)
            rows = list(await session.scalars(statement))
        new = [
            row
            for row in rows
            if row.id not in self.announced_before and webhook_id in (None, row.subscription_id)
        ]
        self.announced_before |= {row.id for row in new}
        events = [orjson.loads(row.body)["data"]["event"] for row in new]
        return [(event["name"], datetime.fromisoformat(event["start_time"])) for event in events]

    async def names(self, webhook_id: str | None = None) -> list[str]:
        return [name for name, _ in await self.announced(webhook_id)]


@dataclass
class Ref:
    calendar_id: str
    project_id: str


@pytest.fixture
async def soon(api, settings, sessions, project) -> Soon:
    calendar_id = await factories.add_calendar(
        sessions, settings, project.id, secrets={}, metadata_={"team": "a", "user": "1"}
    )
    return Soon(api, settings, sessions, project.id, calendar_id)


def starting(name: str, at: datetime | None, **fields: Any) -> RemoteEvent:
    values = {
        "name": name,
        "raw": "{}",
        "start_time": at,
        "end_time": at and at + timedelta(hours=1),
        **fields,
    }
    return RemoteEvent(platform_uuid=name, **values)


def in_minutes(minutes: float) -> datetime:
    return utcnow() + minutes * MINUTE


async def test_events_within_the_lead_are_announced_once_and_others_when_their_time_comes(soon: Soon) -> None:
    await soon.write(
        starting("past", in_minutes(-5)),
        starting("now", in_minutes(5)),
        starting("later", in_minutes(10.02)),
        starting("much later", in_minutes(60)),
        starting("declined", in_minutes(5), response_status="declined"),
        starting("tentative", in_minutes(6), response_status="tentative"),
        starting("without a time", None),
        starting("all day", in_minutes(7), is_all_day=True),
    )
    await soon.subscribe()
    await soon.look()
    assert await soon.names() == ["now", "tentative", "all day"]
    async with asyncio.timeout(10):
        while (names := await soon.names()) == []:
            await soon.look()
    assert names == ["later"]
    await soon.look()
    assert await soon.names() == []


async def test_the_message(soon: Soon) -> None:
    start = in_minutes(5)
    webhook_id = await soon.subscribe(starting_soon_minutes=30)
    await soon.write(starting("a", start, location="Room"))
    await soon.look()
    async with soon.sessions() as session:
        (row,) = await session.scalars(select(WebhookDelivery))
        (event,) = await session.scalars(select(CalendarEvent))
    body = orjson.loads(row.body)
    assert (row.subscription_id, row.trigger) == (webhook_id, "event.starting_soon")
    assert (body["calendar_id"], body["calendar_event_id"]) == (soon.calendar_id, event.id)
    assert body["calendar_metadata"] == {"team": "a", "user": "1"}
    assert body["data"]["starting_soon_minutes"] == 30
    assert body["data"]["event"]["location"] == "Room"
    assert datetime.fromisoformat(body["data"]["event"]["updated_at"]) == event.updated_at


async def test_a_moved_event_is_announced_once_for_each_start_and_a_deleted_one_not_at_all(
    soon: Soon,
) -> None:
    first, second = in_minutes(5), in_minutes(8)
    await soon.subscribe()
    await soon.look()
    await soon.write(starting("a", in_minutes(300)), starting("removed", in_minutes(300)))
    await soon.look()
    assert await soon.announced() == []
    await soon.write(starting("a", first))
    await soon.look()
    assert await soon.announced() == [("a", first)]
    await soon.write(starting("a", second), starting("removed", second, is_cancelled=True))
    await soon.look()
    await soon.look()
    assert await soon.announced() == [("a", second)]
    await soon.write(starting("a", first))
    await soon.write(starting("a", second, location="Room"))
    await soon.write(starting("removed", in_minutes(-1)))
    await soon.look()
    assert await soon.announced() == []


async def test_filters_apply(soon: Soon) -> None:
    other = await factories.add_calendar(
        soon.sessions, soon.settings, soon.project_id, secrets={}, metadata_={"team": "b", "user": "1"}
    )
    by_id = await soon.subscribe(calendar_ids=[other])
    by_metadata = await soon.subscribe(metadata={"team": "a", "user": "1"})
    every = await soon.subscribe(metadata={"user": "1"})
    none = await soon.subscribe(metadata={"team": "c"})
    await soon.write(starting("a", in_minutes(3)))
    await soon.write(starting("b", in_minutes(4)), calendar_id=other)
    await soon.look()
    assert await soon.names(by_id) == ["b"]
    assert await soon.names(by_metadata) == ["a"]
    assert sorted(await soon.names(every)) == ["a", "b"]
    assert await soon.names(none) == []


async def test_a_changed_lead_counts_at_once_and_nothing_is_announced_twice(soon: Soon) -> None:
    webhook_id = await soon.subscribe()
    await soon.write(starting("a", in_minutes(5)), starting("b", in_minutes(50)))
    await soon.look()
    assert await soon.names() == ["a"]
    path = f"/api/v1/webhooks/{webhook_id}"
    assert (await soon.api.patch(path, json={"starting_soon_minutes": 60})).status_code == 200
    await soon.look()
    assert await soon.names() == ["b"]
    await soon.write(starting("c", in_minutes(20)))
    assert (await soon.api.patch(path, json={"starting_soon_minutes": None})).status_code == 200
    await soon.look()
    assert await soon.names() == []


async def test_after_a_pause_what_has_not_started_is_announced(soon: Soon) -> None:
    webhook_id = await soon.subscribe()
    await soon.write(starting("announced", in_minutes(5)))
    await soon.look()
    path = f"/api/v1/webhooks/{webhook_id}"
    await soon.api.patch(path, json={"is_active": False})
    await soon.write(starting("started", in_minutes(-1)), starting("missed", in_minutes(4)))
    await soon.look()
    await prune_notices(soon.sessions)
    assert await soon.names() == ["announced"]
    await soon.api.patch(path, json={"is_active": True})
    await soon.look()
    assert await soon.names() == ["missed"]
    async with transaction(soon.sessions) as session:  # as if no worker had run for an hour
        before = func.now() - timedelta(hours=1)
        await session.execute(
            update(StartingSoonPosition).values(
                changes_until=before, starts_until=before, next_look_at=before
            )
        )
    await soon.write(starting("new", in_minutes(2)))
    await soon.look()
    assert await soon.names() == ["new"]


async def test_events_of_a_deleted_calendar_are_not_announced(soon: Soon) -> None:
    await soon.subscribe()
    await soon.write(starting("a", in_minutes(5)))
    assert (await soon.api.delete(f"/api/v1/calendars/{soon.calendar_id}")).status_code == 200
    await soon.look()
    assert await soon.names() == []


async def test_more_events_than_one_look_takes_are_all_announced(soon: Soon, monkeypatch) -> None:
    monkeypatch.setattr("app.starting_soon.service._EVENTS_PER_LOOK", 7)
    monkeypatch.setattr("app.starting_soon.service._LOOKS_AT_ONCE", 1)
    webhooks = [await soon.subscribe() for _ in range(3)]
    await soon.write(*(starting(f"e{number:02}", in_minutes(5)) for number in range(21)))
    for _ in webhooks:
        await soon.look()
    for webhook_id in webhooks:
        assert sorted(await soon.names(webhook_id)) == [f"e{number:02}" for number in range(21)]


async def test_notices_of_events_that_have_started_are_deleted(soon: Soon) -> None:
    await soon.subscribe()
    await soon.write(starting("a", in_minutes(5)))
    await soon.look()
    async with transaction(soon.sessions) as session:
        await session.execute(update(StartingSoonNotice).values(start_time=func.now() - timedelta(days=2)))
    assert await prune_notices(soon.sessions) == 1


async def test_a_look_uses_indexes(soon: Soon) -> None:
    webhook_id = await soon.subscribe()
    now = utcnow()
    values = {
        "ids": [webhook_id],
        "projects": [soon.project_id],
        "nows": [now],
        "starts_after": [now],
        "until": [now + 10 * MINUTE],
        "changed_since": [now],
        "limit": 500,
    }
    async with transaction(soon.sessions) as session:
        await session.execute(repository._USE_INDEXES)
        statement = f"EXPLAIN {repository._NOTE_STARTING}"
        plan = "\n".join(await session.scalars(text(statement), values))
        await session.rollback()
    print(plan)
    assert "Seq Scan" not in plan
    assert {"ix_calendar_events_project_by_start", "ix_calendar_events_project_by_updated"} <= set(
        plan.split()
    )


@pytest.mark.parametrize("seed", range(3))
async def test_each_event_is_announced_exactly_once_for_each_start_whatever_dies(
    soon: Soon, seed: int
) -> None:
    """Writers and lookers at the same time; lookers are killed at any step. Starts are a few seconds from now."""
    chance = random.Random(seed)
    webhook_id = await soon.subscribe(starting_soon_minutes=1)
    began = utcnow()
    calendars = [soon.calendar_id] + [
        await factories.add_calendar(soon.sessions, soon.settings, soon.project_id, secrets={})
        for _ in range(2)
    ]
    # The starts that stood for long enough to be announced, by name.
    due: dict[str, set[datetime]] = {}
    possible: dict[str, set[datetime]] = {}

    async def write(calendar_id: str) -> None:
        for _ in range(25):
            name = f"{calendar_id}-{chance.randrange(8)}"
            start = began + timedelta(seconds=chance.choice([30, 45, 57, 61, 62, 63, 64, 200]))
            kind = chance.random()
            event = starting(name, start, is_cancelled=kind < 0.15)
            if 0.15 <= kind < 0.3:
                event = starting(name, start, response_status="declined")
            await soon.write(event, calendar_id=calendar_id)
            if kind >= 0.3:
                possible.setdefault(name, set()).add(start)
            await asyncio.sleep(chance.random() * 0.06)

    async def look() -> None:
        while True:
            task = asyncio.create_task(soon.look())
            if chance.random() < 0.4:
                await asyncio.sleep(chance.random() * 0.01)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0.005)

    lookers = [asyncio.create_task(look()) for _ in range(3)]
    await asyncio.gather(*(write(calendar_id) for calendar_id in calendars))
    # The last start within the lead has come into it.
    async with asyncio.timeout(20):
        while utcnow() < began + timedelta(seconds=4.2):
            await asyncio.sleep(0.05)
    for looker in lookers:
        looker.cancel()
    await asyncio.gather(*lookers, return_exceptions=True)
    await soon.look()
    async with soon.sessions() as session:
        events = list(await session.scalars(select(CalendarEvent)))
    for event in events:
        if not event.is_deleted and event.response_status != "declined" and event.name is not None:
            assert event.start_time is not None
            if event.start_time <= began + timedelta(seconds=64):
                due[event.name] = {event.start_time}
    announced = await soon.announced(webhook_id)
    assert len(announced) == len(set(announced))
    for name, starts in due.items():
        assert {(name, start) for start in starts} <= set(announced)
    for name, start in announced:
        assert start in possible[name]
        assert start <= utcnow() + MINUTE
