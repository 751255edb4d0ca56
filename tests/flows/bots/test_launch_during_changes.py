"""Events that change while their bots are being handed over."""

import asyncio
import itertools
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from app.bots.launch import Launcher
from app.bots.service import follow_events
from app.core.clock import isoformat, utcnow
from app.core.db import Sessions, transaction
from app.core.http import httpx
from app.models import Bot, CalendarEvent
from tests.fakes.runner import FakeRunner, Fault
from tests.flows.bots.launching import ZOOM, launch_due, launch_to_the_end, make_due, pass_time
from tests.flows.conftest import GoogleCalendarUnderTest


async def exists(sessions: Sessions, bot_id: str) -> bool:
    async with sessions() as session:
        return await session.scalar(select(Bot.id).where(Bot.id == bot_id)) is not None


CHANGES = ("moved", "cancelled", "another link")


class DueEvent:
    """An event that begins in a minute, and a bot for it."""

    def __init__(self, google: GoogleCalendarUnderTest, api: httpx.AsyncClient) -> None:
        self.google = google
        self.api = api
        self.platform_uuid = google.add("due", in_hours=1 / 60, location=ZOOM)

    async def row(self) -> CalendarEvent:
        return (await self.google.events())[self.platform_uuid]

    async def schedule(self, **fields: Any) -> str:
        body = {"calendar_event_id": (await self.row()).id, "bot_name": "x", **fields}
        response = await self.api.post("/api/v1/bots", json=body)
        assert response.status_code == 201, response.text
        bot_id: str = response.json()["id"]
        return bot_id

    async def change(self, how: str) -> None:
        if how == "moved":
            self.google.move(self.platform_uuid, in_hours=3)
        elif how == "cancelled":
            self.google.fake.delete_event(self.platform_uuid)
        else:
            self.google.fake.update_event(self.platform_uuid, location="https://meet.google.com/abc-defg-hij")
        await self.google.sync()

    async def check_the_end(self, launcher: Launcher, runner: FakeRunner, bot_id: str, how: str) -> None:
        """Check that the bot, its event and the runner agree after all attempts."""
        await launch_to_the_end(launcher, self.google.sessions)
        async with self.google.sessions() as session:
            bot = (await session.scalars(select(Bot).where(Bot.id == bot_id))).one_or_none()
        if how == "cancelled":
            assert bot is None
            assert runner.bots == []
            return
        event = await self.row()
        assert bot is not None
        assert (bot.join_at, bot.meeting_url) == (event.start_time, event.meeting_url)
        if how == "moved":
            assert (bot.state, bot.attempt_count, runner.bots) == ("scheduled", 0, [])
        else:
            assert bot.state == "launched"
            assert [made["meeting_url"] for made in runner.bots] == [event.meeting_url]


@pytest.fixture
def due_event(google: GoogleCalendarUnderTest, api: httpx.AsyncClient):
    async def due_event() -> DueEvent:
        event = DueEvent(google, api)
        await google.sync()
        return event

    return due_event


async def test_what_the_runner_took_stays_as_it_was_requested(
    launcher: Launcher, runner: FakeRunner, due_event, load
) -> None:
    for how in CHANGES:
        runner.forget()
        event = await due_event()
        bot_id = await event.schedule(deduplication_key="k")
        gate = asyncio.Event()
        runner.faults.append(Fault(gate=gate))
        launching = asyncio.create_task(launch_due(launcher))
        await runner.wait_for_posts(1)
        await event.change(how)
        during = await load(bot_id)
        assert (during.state, during.meeting_url) == ("launching", ZOOM)
        gate.set()
        await launching
        bot = await load(bot_id)
        assert bot.state == "launched"
        assert isoformat(bot.join_at) == runner.bots[0]["join_at"]
        assert bot.meeting_url == runner.bots[0]["meeting_url"]
        assert not bot.holds_key, "another bot may be scheduled for the event as it is now"


async def test_a_bot_that_the_runner_surely_did_not_take_follows_its_event(
    launcher: Launcher, runner: FakeRunner, due_event, load
) -> None:
    for how in CHANGES:
        runner.forget()
        event = await due_event()
        bot_id = await event.schedule()
        runner.is_down = True
        await launch_due(launcher)
        assert (await load(bot_id)).state == "launching"
        await event.change(how)
        runner.is_down = False
        await event.check_the_end(launcher, runner, bot_id, how)


async def test_a_hand_over_that_fails_while_the_event_changes_ends_where_the_event_is(
    launcher: Launcher, runner: FakeRunner, due_event, load
) -> None:
    for how, status in itertools.product(CHANGES, (503, 500, None)):
        runner.forget()
        event = await due_event()
        bot_id = await event.schedule()
        (claimed,) = await launcher.claim(10)
        await event.change(how)
        assert (await load(bot_id)).meeting_url == ZOOM, "the runner is being called"
        runner.faults.append(Fault(status))
        await launcher.handle(claimed)
        await event.check_the_end(launcher, runner, bot_id, how)


async def test_a_move_is_followed_at_the_end_of_all_attempts_though_the_runner_listed_nothing(
    launcher: Launcher, runner: FakeRunner, sessions: Sessions, due_event, load
) -> None:
    runner.lists_bots = False
    runner.faults.extend([Fault(500), Fault(500)])
    event = await due_event()
    bot_id = await event.schedule()
    await launch_due(launcher)
    await event.change("moved")
    assert (await load(bot_id)).may_be_handed_over
    await pass_time(sessions, bot_id, utcnow() - timedelta(minutes=6))
    await make_due(sessions)
    await launch_due(launcher)
    bot = await load(bot_id)
    assert (bot.state, bot.join_at) == ("scheduled", (await event.row()).start_time)


async def test_a_hand_over_that_fails_while_the_calendar_is_deleted_ends_with_the_bot_deleted(
    launcher: Launcher, runner: FakeRunner, sessions: Sessions, due_event, api
) -> None:
    event = await due_event()
    bot_id = await event.schedule()
    (claimed,) = await launcher.claim(10)
    await api.delete(f"/api/v1/calendars/{event.google.id}")
    assert await exists(sessions, bot_id)
    runner.is_down = True
    await launcher.handle(claimed)
    assert not await exists(sessions, bot_id)


async def test_a_failure_that_is_recorded_while_a_sync_writes_waits_for_it(
    launcher: Launcher, runner: FakeRunner, sessions: Sessions, due_event, load
) -> None:
    event = await due_event()
    bot_id = await event.schedule()
    (claimed,) = await launcher.claim(10)
    runner.faults.append(Fault(503))
    moved = utcnow() + timedelta(hours=3)
    row = await event.row()
    async with transaction(sessions) as session:
        await session.execute(
            update(CalendarEvent)
            .where(CalendarEvent.id == row.id)
            .values(start_time=moved, end_time=moved + timedelta(hours=1))
        )
        await follow_events(session, [row.id])
        handling = asyncio.create_task(launcher.handle(claimed))
        await runner.wait_until_idle(posts=1)
        await asyncio.sleep(0.1)
        assert not handling.done()
    await handling
    bot = await load(bot_id)
    assert (bot.state, bot.join_at) == ("scheduled", moved)


async def test_syncs_and_hand_overs_of_many_bots_of_an_event_do_not_block_each_other(
    launcher: Launcher, runner: FakeRunner, google: GoogleCalendarUnderTest, due_event, load
) -> None:
    event = await due_event()
    ids = [await event.schedule() for _ in range(10)]
    choices = [Fault(503), Fault(500), Fault(None)]
    for n in range(4):
        runner.faults.extend(choices * 4)
        google.fake.update_event(event.platform_uuid, location=f"https://zoom.us/j/555111222{n}")
        await asyncio.gather(google.sync(), launch_due(launcher), launch_due(launcher))
        await make_due(google.sessions)
    runner.faults.clear()
    await launch_to_the_end(launcher, google.sessions)
    made = {bot["deduplication_key"]: bot["meeting_url"] for bot in runner.bots}
    assert sorted(made) == sorted(ids)
    final = await event.row()
    for bot_id in ids:
        bot = await load(bot_id)
        assert bot.state == "launched"
        assert bot.meeting_url == made[bot_id]
        assert bot.holds_key == (bot.meeting_url == final.meeting_url)
