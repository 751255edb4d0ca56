"""Bots follow their events in the transaction in which these change, from the provider to the webhook.

See docs/reference/http-api.md, "Bots".
"""

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import select, text, update

from app.core.clock import isoformat, utcnow
from app.core.db import transaction
from app.core.http import httpx
from app.core.ids import new_id
from app.models import Bot, CalendarEvent, WebhookDelivery, WebhookSubscription
from app.sync import engine as sync_engine
from tests import factories
from tests.conftest import TestProject
from tests.flows.conftest import GoogleCalendarUnderTest

ZOOM = "https://zoom.us/j/5551112222?pwd=hidden-1"
MEET = "https://meet.google.com/abc-defg-hij"
URL = "/api/v1/bots"


@dataclass
class Bots:
    """What an application sees of the bots of one calendar."""

    api: httpx.AsyncClient
    google: GoogleCalendarUnderTest

    async def event_id(self, platform_uuid: str) -> str:
        return (await self.google.events())[platform_uuid].id

    async def schedule(self, platform_uuid: str, **fields: Any) -> str:
        body = {"calendar_event_id": await self.event_id(platform_uuid), "bot_name": "Notetaker", **fields}
        response = await self.api.post(URL, json=body)
        assert response.status_code == 201, response.text
        bot_id: str = response.json()["id"]
        return bot_id

    async def get(self, bot_id: str) -> dict[str, Any]:
        response = await self.api.get(f"{URL}/{bot_id}")
        assert response.status_code == 200, response.text
        bot: dict[str, Any] = response.json()
        return bot

    async def is_deleted(self, bot_id: str) -> bool:
        return (await self.api.get(f"{URL}/{bot_id}")).status_code == 404

    async def announced(self) -> list[dict[str, Any]]:
        async with self.google.sessions() as session:
            bodies = await session.scalars(
                select(WebhookDelivery.body)
                .where(WebhookDelivery.trigger == "bot.state_change")
                .order_by(WebhookDelivery.created_at)
            )
            return [orjson.loads(body) for body in bodies]

    async def set_state(self, bot_id: str, state: str, **values: Any) -> None:
        async with transaction(self.google.sessions) as session:
            await session.execute(update(Bot).where(Bot.id == bot_id).values(state=state, **values))


@pytest.fixture
async def bots(api, google: GoogleCalendarUnderTest, project: TestProject) -> Bots:
    async with transaction(google.sessions) as session:
        session.add(
            WebhookSubscription(
                id=new_id("webhook"),
                project_id=project.id,
                url="https://example.com",
                triggers=["bot.state_change"],
                secrets_sealed=b"",
            )
        )
    return Bots(api, google)


def in_hours(hours: float) -> datetime:
    return utcnow().replace(microsecond=0) + timedelta(hours=hours)


async def test_a_moved_event_moves_its_bots_and_says_so_once(
    google: GoogleCalendarUnderTest, bots: Bots
) -> None:
    moving, staying = google.add("moving", location=ZOOM), google.add("staying", location=ZOOM)
    await google.sync()
    moved = [await bots.schedule(moving, metadata={"n": f"{n}"}) for n in range(2)]
    stayed = await bots.schedule(staying)
    before = await bots.get(moved[0])
    unmoved = await bots.get(stayed)
    google.move(moving, in_hours=48)
    google.fake.update_event(staying, summary="only renamed")
    await google.sync()
    event = (await google.events())[moving]
    assert event.start_time is not None
    for bot_id in moved:
        bot = await bots.get(bot_id)
        assert bot["join_at"] == isoformat(event.start_time)
        assert bot["state"] == "scheduled"
        assert bot["meeting_url"] == ZOOM
        assert bot["updated_at"] > before["updated_at"]
        changes = {"join_at": {"old": before["join_at"], "new": bot["join_at"]}}
        assert [entry["type"] for entry in bot["events"]] == ["scheduled", "event_changed"]
        assert bot["events"][1]["metadata"] == {"changes": changes}
    assert await bots.get(stayed) == unmoved
    announced = await bots.announced()
    assert sorted(message["bot_id"] for message in announced) == sorted(moved)
    first = next(message for message in announced if message["bot_id"] == moved[0])
    assert first["bot_metadata"] == {"n": "0"}
    assert first["calendar_id"] == google.id
    assert first["calendar_event_id"] == event.id
    assert first["data"] == {
        "state": "scheduled",
        "new_state": "scheduled",
        "old_state": "scheduled",
        "join_at": isoformat(event.start_time),
        "meeting_url": ZOOM,
        "event_type": "event_changed",
        "event_sub_type": None,
        "event_metadata": {"changes": changes},
        "created_at": first["data"]["created_at"],
    }
    await google.sync()
    assert len(await bots.announced()) == 2


async def test_a_changed_link_changes_the_bots_link(google: GoogleCalendarUnderTest, bots: Bots) -> None:
    event = google.add("one", location=ZOOM)
    await google.sync()
    bot_id = await bots.schedule(event)
    google.fake.update_event(event, location=MEET)
    await google.sync()
    bot = await bots.get(bot_id)
    assert bot["meeting_url"] == MEET
    assert bot["events"][-1]["metadata"] == {"changes": {"meeting_url": {"old": ZOOM, "new": MEET}}}


async def test_a_bot_whose_event_lost_its_link_waits_for_another(
    google: GoogleCalendarUnderTest, bots: Bots
) -> None:
    event = google.add("one", location=ZOOM)
    await google.sync()
    bot_id = await bots.schedule(event)
    google.fake.update_event(event, location=None)
    await google.sync()
    bot = await bots.get(bot_id)
    assert (bot["state"], bot["meeting_url"]) == ("scheduled", None)
    google.fake.update_event(event, location=MEET)
    await google.sync()
    assert (await bots.get(bot_id))["meeting_url"] == MEET
    assert [message["data"]["meeting_url"] for message in await bots.announced()] == [None, MEET]


async def test_a_cancelled_event_takes_its_bots_with_it(google: GoogleCalendarUnderTest, bots: Bots) -> None:
    event, kept = google.add("one", location=ZOOM), google.add("kept", location=ZOOM)
    await google.sync()
    bot_id, kept_id = await bots.schedule(event), await bots.schedule(kept)
    google.fake.delete_event(event)
    await google.sync()
    assert await bots.is_deleted(bot_id)
    assert not await bots.is_deleted(kept_id)
    (announced,) = await bots.announced()
    assert announced["bot_id"] == bot_id
    assert announced["data"]["state"] == "deleted"
    assert (announced["data"]["event_type"], announced["data"]["event_sub_type"]) == (
        "deleted",
        "event_cancelled",
    )


async def test_a_deleted_series_and_a_full_round_without_an_event_take_bots_with_them(
    google: GoogleCalendarUnderTest, bots: Bots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_engine, "_FULL_ROUND_AGAIN_AFTER", timedelta(0))
    google.fake.series_tombstone = "master"
    start = in_hours(2)
    series = google.fake.add_series(
        start=start, end=start + timedelta(hours=1), rrule="FREQ=DAILY;COUNT=5", location=ZOOM
    )
    missing = google.add("missing", location=ZOOM)
    await google.sync()
    of_series = [
        await bots.schedule(platform_uuid)
        for platform_uuid in await google.events()
        if platform_uuid.startswith(series)
    ]
    of_missing = await bots.schedule(missing)
    google.fake.delete_series(series)
    await google.sync()
    assert [await bots.is_deleted(bot_id) for bot_id in of_series] == [True] * 5
    google.fake.delete_event(missing)
    google.fake.expire_tokens()
    await google.sync()
    assert await bots.is_deleted(of_missing)
    assert len(await bots.announced()) == 6


async def test_a_bot_of_an_event_that_moved_into_the_past_is_deleted(
    google: GoogleCalendarUnderTest, bots: Bots
) -> None:
    event = google.add("one", location=ZOOM)
    await google.sync()
    bot_id = await bots.schedule(event)
    google.move(event, in_hours=-3)
    await google.sync()
    assert await bots.is_deleted(bot_id)
    assert (await bots.announced())[0]["data"]["event_sub_type"] == "event_over"


async def test_a_disconnected_calendar_loses_its_scheduled_bots(
    google: GoogleCalendarUnderTest, bots: Bots, api
) -> None:
    event = google.add("one", location=ZOOM)
    await google.sync()
    scheduled = [await bots.schedule(event) for _ in range(3)]
    launched = await bots.schedule(event, deduplication_key="k")
    await bots.set_state(launched, "launched")
    by_hand = (
        await api.post(URL, json={"bot_name": "x", "meeting_url": ZOOM, "join_at": isoformat(in_hours(9))})
    ).json()["id"]
    google.fake.revoke_grant(google.fake.refresh_token)
    google.fake.expire_access_tokens()
    await google.sync()
    assert (await google.row()).state == "disconnected"
    assert [await bots.is_deleted(bot_id) for bot_id in scheduled] == [True] * 3
    assert (await bots.get(launched))["state"] == "joining"
    assert (await bots.get(by_hand))["state"] == "scheduled"
    announced = await bots.announced()
    assert sorted(message["bot_id"] for message in announced) == sorted(scheduled)
    assert {message["data"]["event_sub_type"] for message in announced} == {"calendar_disconnected"}


async def test_an_outage_deletes_no_bot(google: GoogleCalendarUnderTest, bots: Bots) -> None:
    event = google.add("one", location=ZOOM)
    await google.sync()
    bot_id = await bots.schedule(event)
    google.fake.inject_fault("events.list", 503, "backendError", count=3)
    await google.sync()
    assert (await google.row()).sync_failing_since is not None
    assert (await bots.get(bot_id))["state"] == "scheduled"


async def test_a_deleted_calendar_takes_its_scheduled_bots_with_it(
    google: GoogleCalendarUnderTest, bots: Bots, api
) -> None:
    event = google.add("one", location=ZOOM)
    await google.sync()
    scheduled, launched = await bots.schedule(event), await bots.schedule(event)
    await bots.set_state(launched, "launched")
    event_id = await bots.event_id(event)
    assert (await api.delete(f"/api/v1/calendars/{google.id}")).status_code == 200
    assert await bots.is_deleted(scheduled)
    bot = await bots.get(launched)
    assert (bot["state"], bot["calendar_event_id"]) == ("joining", event_id)
    (announced,) = await bots.announced()
    assert announced["bot_id"] == scheduled
    assert announced["calendar_id"] == google.id
    assert announced["data"]["event_sub_type"] == "calendar_deleted"


async def test_what_was_handed_over_stays_but_lets_its_key_go_when_the_event_changes(
    google: GoogleCalendarUnderTest, bots: Bots
) -> None:
    event = google.add("one", location=ZOOM)
    await google.sync()
    launched = await bots.schedule(event, deduplication_key="k")
    await bots.set_state(launched, "launched")
    before = await bots.get(launched)
    google.fake.update_event(event, summary="only renamed")
    await google.sync()
    again = {
        "calendar_event_id": await bots.event_id(event),
        "bot_name": "second",
        "deduplication_key": "k",
    }
    assert (await bots.api.post(URL, json=again)).status_code == 400
    google.move(event, in_hours=48)
    await google.sync()
    assert await bots.get(launched) == before
    assert await bots.announced() == []
    assert (await bots.api.post(URL, json=again)).status_code == 201


async def test_a_sync_that_loses_its_lease_moves_no_bot(google: GoogleCalendarUnderTest, bots: Bots) -> None:
    event = google.add("one", location=ZOOM)
    await google.sync()
    bot_id = await bots.schedule(event)
    before = await bots.get(bot_id)
    google.move(event, in_hours=48)
    async with transaction(google.sessions) as session:
        await session.execute(text("UPDATE calendars SET next_sync_at = now()"))
    (claim,) = await google.engine.claim(10)
    async with transaction(google.sessions) as session:
        await session.execute(text("UPDATE calendars SET lease_token = 'another'"))
    await google.engine.handle(claim)
    assert await bots.get(bot_id) == before
    assert await bots.announced() == []


async def test_thousands_of_bots_follow_without_a_statement_for_each(
    google: GoogleCalendarUnderTest, bots: Bots, project: TestProject, engine
) -> None:
    count = 1200
    start = in_hours(3)
    names = [
        google.fake.add_event(start=start, end=start + timedelta(hours=1), location=ZOOM)
        for _ in range(count)
    ]
    await google.sync()
    async with transaction(google.sessions) as session:
        ids = list(await session.scalars(select(CalendarEvent.id)))
        for event_id in ids:
            session.add(
                Bot(
                    id=new_id("bot"),
                    project_id=project.id,
                    calendar_event_id=event_id,
                    bot_name="x",
                    meeting_url=ZOOM,
                    join_at=start,
                )
            )
    for n, name in enumerate(names):
        if n % 2:
            google.move(name, in_hours=50)
        else:
            google.fake.delete_event(name)
    statements = []
    sqlalchemy_event.listen(
        engine.sync_engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
    )
    await google.sync()
    async with google.sessions() as session:
        kept = (await session.scalars(select(Bot))).all()
        join_times = {bot.join_at for bot in kept}
        starts = set(await session.scalars(select(CalendarEvent.start_time).where(~CalendarEvent.is_deleted)))
    assert len(kept) == count / 2
    assert join_times == starts
    assert start not in starts
    assert len(await bots.announced()) == count
    assert len(statements) < 60


async def test_bots_scheduled_while_events_move_never_keep_an_old_time(
    google: GoogleCalendarUnderTest, bots: Bots
) -> None:
    names = [google.add(f"{n}", location=ZOOM) for n in range(12)]
    await google.sync()
    ids = {name: event.id for name, event in (await google.events()).items()}
    done = asyncio.Event()

    async def keep_scheduling() -> None:
        while not done.is_set():
            for event_id in ids.values():
                response = await bots.api.post(URL, json={"calendar_event_id": event_id, "bot_name": "x"})
                assert response.status_code == 201, response.text

    async def sync_amid_requests() -> None:
        # A calendar that a request holds at this moment is not claimed: a worker looks again at the next tick.
        for _ in range(100):
            with contextlib.suppress(AssertionError):
                return await google.sync()
        raise AssertionError("it was never claimed")

    scheduling = asyncio.create_task(keep_scheduling())
    for hours in (30, 40, 50, 60):
        for name in names:
            google.move(name, in_hours=hours)
        await sync_amid_requests()
    done.set()
    await scheduling
    events = {event.id: event for event in (await factories.load_events(google.sessions, google.id)).values()}
    async with google.sessions() as session:
        rows = (await session.scalars(select(Bot))).all()
    assert len(rows) >= 12
    assert [bot for bot in rows if bot.join_at != events[bot.calendar_event_id or ""].start_time] == []
