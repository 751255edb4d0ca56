"""Handing bots over to a runner: exactly once, whatever fails or dies, and consistent with the event.

See docs/reference/http-api.md, "Bots".
"""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any, get_args

import orjson
import pytest
from sqlalchemy import select, text, update

from app.bots import launch
from app.bots.launch import ClaimedBot, Launcher
from app.bots.service import follow_events
from app.core.clock import isoformat, utcnow
from app.core.db import Sessions, transaction
from app.core.http import httpx, operator_client
from app.core.ids import new_id
from app.models import Bot, CalendarEvent, WebhookDelivery, WebhookSubscription
from app.settings import Settings
from tests.conftest import TestProject
from tests.fakes.receiver import Receiver
from tests.fakes.runner import Duplicates, FakeRunner, Fault
from tests.fakes.server import serve
from tests.flows.conftest import GoogleCalendarUnderTest

ZOOM = "https://zoom.us/j/5551112222?pwd=hidden-1"
LEAD = 300.0


@pytest.fixture
async def runner() -> AsyncIterator[FakeRunner]:
    runner = FakeRunner()
    async with serve(runner) as url:
        runner.url = url
        yield runner


@contextlib.asynccontextmanager
async def a_launcher(settings: Settings, sessions: Sessions) -> AsyncIterator[Launcher]:
    async with operator_client() as client:
        yield Launcher(settings=settings, sessions=sessions, client=client)


@pytest.fixture
def runner_settings(settings: Settings, runner: FakeRunner) -> Settings:
    update = {"bot_runner_url": runner.url, "bot_runner_api_key": runner.api_key}
    return Settings(**{**settings.model_dump(), **update})


@pytest.fixture
async def launcher(runner_settings: Settings, sessions: Sessions) -> AsyncIterator[Launcher]:
    async with a_launcher(runner_settings, sessions) as launcher:
        yield launcher


@pytest.fixture
async def bare_launcher(settings: Settings, sessions: Sessions) -> AsyncIterator[Launcher]:
    async with a_launcher(settings, sessions) as launcher:
        yield launcher


@pytest.fixture
def add_bot(sessions: Sessions, project: TestProject):
    async def add(in_seconds: float = 60, **fields: Any) -> str:
        bot_id = new_id("bot")
        join_at = utcnow() + timedelta(seconds=in_seconds)
        values = {"bot_name": "Notetaker", "meeting_url": ZOOM, "join_at": join_at, **fields}
        async with transaction(sessions) as session:
            session.add(Bot(id=bot_id, project_id=project.id, **values))
        return bot_id

    return add


@pytest.fixture
def load(sessions: Sessions):
    async def load(bot_id: str) -> Bot:
        async with sessions() as session:
            return (await session.execute(select(Bot).where(Bot.id == bot_id))).scalar_one()

    return load


@pytest.fixture
async def subscription(sessions: Sessions, project: TestProject) -> None:
    async with transaction(sessions) as session:
        session.add(
            WebhookSubscription(
                id=new_id("webhook"),
                project_id=project.id,
                url="https://example.com",
                triggers=["bot.state_change"],
                secrets_sealed=b"",
            )
        )


async def told(sessions: Sessions) -> list[dict[str, Any]]:
    async with sessions() as session:
        rows = await session.scalars(select(WebhookDelivery.body).order_by(WebhookDelivery.created_at))
        return [orjson.loads(body)["data"] for body in rows]


async def exists(sessions: Sessions, bot_id: str) -> bool:
    async with sessions() as session:
        return await session.scalar(select(Bot.id).where(Bot.id == bot_id)) is not None


async def make_due(sessions: Sessions) -> None:
    """The time of the next attempt, or the end of a dead worker's lease, has come."""
    async with transaction(sessions) as session:
        await session.execute(
            text("UPDATE bots SET next_attempt_at = now() WHERE next_attempt_at IS NOT NULL")
        )


async def pass_time(sessions: Sessions, bot_id: str, join_at: datetime) -> None:
    async with transaction(sessions) as session:
        await session.execute(update(Bot).where(Bot.id == bot_id).values(join_at=join_at))


async def launch_due(launcher: Launcher) -> list[ClaimedBot]:
    claimed = await launcher.claim(100)
    await asyncio.gather(*(launcher.handle(bot) for bot in claimed))
    return claimed


async def launch_to_the_end(launcher: Launcher, sessions: Sessions) -> None:
    """All attempts, without the time between them."""
    for _ in range(20):
        await make_due(sessions)
        if not await launch_due(launcher):
            return
    raise AssertionError("it does not end")


def entry_types(bot: Bot) -> list[str]:
    return [entry["type"] for entry in bot.events]


async def test_a_due_bot_is_handed_over_with_everything_the_runner_needs(
    *, launcher: Launcher, runner: FakeRunner, sessions: Sessions, subscription, add_bot, load
) -> None:
    extra = {"recording_settings": {"format": "mp4"}, "bot_name": "theirs", "deduplication_key": "theirs"}
    bot_id = await add_bot(LEAD - 5, metadata_={"user": "1"}, bot_settings=extra)
    early = await add_bot(LEAD + 30)
    await launch_due(launcher)
    bot = await load(bot_id)
    (request,) = runner.posts
    assert request.path == "/api/v1/bots"
    assert request.headers["authorization"] == f"Token {runner.api_key}"
    assert request.headers["content-type"] == "application/json"
    assert request.body == {
        "meeting_url": ZOOM,
        "bot_name": "Notetaker",
        "metadata": {"user": "1"},
        "join_at": isoformat(bot.join_at),
        "deduplication_key": bot_id,
        "recording_settings": {"format": "mp4"},
    }
    assert bot.state == "launched"
    assert bot.runner_bot_id == runner.bots[0]["id"]
    assert (bot.lease_token, bot.next_attempt_at, bot.may_be_handed_over) == (None, None, False)
    assert entry_types(bot) == ["launching", "launched"]
    assert bot.events[1]["metadata"] == {"runner_bot_id": runner.bots[0]["id"]}
    assert [(data["old_state"], data["new_state"]) for data in await told(sessions)] == [
        ("scheduled", "staged"),
        ("staged", "joining"),
    ]
    assert (await load(early)).state == "scheduled"
    assert await launch_due(launcher) == []


async def test_settings_that_the_first_release_stored_are_handed_over_without_nulls(
    launcher: Launcher, runner: FakeRunner, add_bot, load
) -> None:
    stored = {
        "recording_settings": {"format": "mp4", "view": None},
        "webhooks": None,
        "callback_settings": {},
    }
    bot_id = await add_bot(bot_settings=stored)
    await launch_due(launcher)
    assert (await load(bot_id)).state == "launched"
    (request,) = runner.posts
    assert request.body["recording_settings"] == {"format": "mp4"}
    assert request.body["callback_settings"] == {}
    assert "webhooks" not in request.body


async def test_what_is_accepted_at_once_the_runner_takes(
    api, launcher: Launcher, runner: FakeRunner, load
) -> None:
    body = {
        "bot_name": " Ada \u263a ",
        "meeting_url": "https://us02web.zoom.us/j/12345",
        "recording_settings": {"format": None, "views": [{"a": None, "b": 1}]},
        "transcription_settings": {"deepgram": {"language": None}},
        "bot_image": None,
    }
    answer = await api.post("/api/v1/bots", json=body)
    assert answer.status_code == 201
    await launch_due(launcher)
    bot = (await api.get(f"/api/v1/bots/{answer.json()['id']}")).json()
    assert bot["state"] == "joining"
    (request,) = runner.posts
    assert "join_at" not in request.body, "it joins now"
    assert request.body["transcription_settings"] == {"deepgram": {}}
    assert [entry["type"] for entry in bot["events"]] == ["scheduled", "staged", "join_requested"]


async def test_no_transaction_is_open_while_the_runner_is_called(
    launcher: Launcher, runner: FakeRunner, sessions: Sessions, add_bot
) -> None:
    gate = asyncio.Event()
    runner.faults.append(Fault(gate=gate))
    await add_bot()
    launching = asyncio.create_task(launch_due(launcher))
    await runner.wait_for_posts(1)
    async with sessions() as session:
        assert await session.scalar(select(Bot.state)) == "launching"
        busy = await session.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%' AND pid <> pg_backend_pid()"
            )
        )
    gate.set()
    await launching
    assert busy == 0


async def test_a_bot_whose_time_has_come_joins_at_once(
    launcher: Launcher, runner: FakeRunner, add_bot, load
) -> None:
    bot_id = await add_bot(-600)
    await launch_due(launcher)
    assert (await load(bot_id)).state == "launched"
    assert "join_at" not in runner.posts[0].body
    assert "metadata" not in runner.posts[0].body


async def test_a_time_to_join_that_passes_on_the_way_is_no_refusal(
    launcher: Launcher, runner: FakeRunner, sessions: Sessions, add_bot, load
) -> None:
    gate = asyncio.Event()
    runner.faults.append(Fault(gate=gate))
    bot_id = await add_bot(0.5)
    launching = asyncio.create_task(launch_due(launcher))
    await runner.wait_for_posts(1)
    assert "join_at" in runner.posts[0].body
    await asyncio.sleep(0.5)
    gate.set()
    await launching
    assert (await load(bot_id)).state == "launching"
    await launch_to_the_end(launcher, sessions)
    assert (await load(bot_id)).state == "launched"
    assert "join_at" not in runner.posts[-1].body


async def test_several_workers_hand_every_bot_over_once(
    launcher: Launcher, runner_settings: Settings, runner: FakeRunner, sessions: Sessions, add_bot
) -> None:
    ids = [await add_bot() for _ in range(40)]

    async def work(worker: Launcher) -> None:
        while claimed := await worker.claim(3):
            await asyncio.gather(*(worker.handle(bot) for bot in claimed))

    async with (
        a_launcher(runner_settings, sessions) as second,
        a_launcher(runner_settings, sessions) as third,
    ):
        await asyncio.gather(work(launcher), work(second), work(third))
    assert Counter(request.body["deduplication_key"] for request in runner.posts) == Counter(ids)
    async with sessions() as session:
        assert set(await session.scalars(select(Bot.state))) == {"launched"}


async def test_a_worker_that_is_killed_during_a_hand_over_makes_no_second_bot(
    launcher: Launcher, runner: FakeRunner, sessions: Sessions, add_bot, load
) -> None:
    for died, duplicates, answers_lists in itertools.product(
        ("before the call", "during the call", "after the call"), get_args(Duplicates), (True, False)
    ):
        case = f"{died}, duplicates {duplicates}, answers lists: {answers_lists}"
        runner.duplicates = duplicates
        runner.answers_lists = answers_lists
        runner.forget()
        bot_id = await add_bot()
        (claimed,) = await launcher.claim(10)
        gate = asyncio.Event()
        if died != "before the call":
            runner.faults.append(Fault(gate=gate))
            handling = asyncio.create_task(launcher.handle(claimed))
            await runner.wait_for_posts(1)
            handling.cancel()  # as good as dead: nothing is written after this
            await asyncio.gather(handling, return_exceptions=True)
        if died == "after the call":
            gate.set()
            await runner.wait_until_idle()
            assert len(runner.bots) == 1, case
        assert await launcher.claim(10) == [], "the lease has not run out"
        await launch_to_the_end(launcher, sessions)
        gate.set()
        await runner.wait_until_idle()
        bot = await load(bot_id)
        assert len(runner.bots) == 1, case
        assert bot.state == "launched", case
        assert entry_types(bot) == ["launching", "launched"], case
        knows_the_id = answers_lists or duplicates == "same" or died != "after the call"
        assert bot.runner_bot_id == (runner.bots[0]["id"] if knows_the_id else None), case


async def test_a_worker_that_is_late_to_record_changes_nothing(
    launcher: Launcher, runner: FakeRunner, sessions: Sessions, add_bot, load
) -> None:
    bot_id = await add_bot()
    gate = asyncio.Event()
    runner.faults.append(Fault(status=422, gate=gate))
    (slow,) = await launcher.claim(10)
    handling = asyncio.create_task(launcher.handle(slow))
    await runner.wait_for_posts(1)
    await launch_to_the_end(launcher, sessions)
    recorded = await load(bot_id)
    gate.set()
    await handling
    assert (await load(bot_id)).events == recorded.events
    assert len(runner.bots) == 1


async def test_a_claim_that_waited_too_long_is_not_begun(
    launcher: Launcher, runner: FakeRunner, add_bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_BEGIN_WITHIN_SECONDS", -1.0)
    await add_bot()
    assert len(await launch_due(launcher)) == 1
    assert runner.requests == []


async def test_what_the_runner_refuses_is_over_and_says_why(
    *, launcher: Launcher, runner: FakeRunner, sessions: Sessions, subscription, add_bot, load, capsys
) -> None:
    body = b'{"error": "Zoom credentials are required", "sent": "Token %s\x00"}' % runner.api_key.encode()
    for status in (400, 401, 403, 404, 422):
        runner.faults.append(Fault(status, body + b"x" * 200_000))
        bot_id = await add_bot(deduplication_key="k")
        await launch_due(launcher)
        bot = await load(bot_id)
        assert bot.state == "fatal_error"
        assert not bot.holds_key
        assert entry_types(bot) == ["launching", "fatal_error"]
        entry = bot.events[1]
        assert entry["sub_type"] == "runner_refused"
        assert entry["metadata"]["status_code"] == status
        response = entry["metadata"]["response"]
        assert response.startswith('{"error": "Zoom credentials are required", "sent": "Token ***')
        assert len(response) == 2000
        assert (await told(sessions))[-1]["event_metadata"] == entry["metadata"]
        assert await launch_due(launcher) == []
    logged = "".join(capsys.readouterr())
    assert "bot_hand_over" in logged
    assert runner.api_key not in logged
    assert "hidden-1" not in logged


async def test_what_may_pass_is_tried_again(
    *, launcher: Launcher, runner: FakeRunner, sessions: Sessions, subscription, add_bot, load
) -> None:
    for status in (500, 502, 503, 429, 408, 301, None):
        runner.forget()
        runner.faults.extend([Fault(status), Fault(status)])
        bot_id = await add_bot()
        await launch_to_the_end(launcher, sessions)
        bot = await load(bot_id)
        assert bot.state == "launched"
        assert len(runner.posts) == 3
        assert entry_types(bot) == ["launching", "launch_failed", "launch_failed", "launched"]
        assert [data["new_state"] for data in await told(sessions)][-2:] == ["staged", "joining"]
    assert len(await told(sessions)) == 14


async def test_a_bot_that_was_made_although_the_answer_failed_is_found(
    launcher: Launcher, runner: FakeRunner, sessions: Sessions, add_bot, load
) -> None:
    for status in (500, None):
        runner.forget()
        runner.faults.append(Fault(status, makes_bot=True))
        bot_id = await add_bot()
        await launch_due(launcher)
        assert (await load(bot_id)).state == "launching"
        await make_due(sessions)
        await launch_due(launcher)
        bot = await load(bot_id)
        assert (bot.state, bot.runner_bot_id) == ("launched", runner.bots[0]["id"])
        assert len(runner.posts) == 1


async def test_a_runner_that_does_not_answer_in_time_is_tried_again(
    *,
    launcher: Launcher,
    runner: FakeRunner,
    sessions: Sessions,
    add_bot,
    load,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "_CALL_WITHIN_SECONDS", 0.1)
    runner.faults.append(Fault(gate=asyncio.Event()))
    bot_id = await add_bot()
    await launch_due(launcher)
    bot = await load(bot_id)
    assert (bot.state, bot.may_be_handed_over) == ("launching", True)
    assert bot.events[-1]["metadata"]["error"] == "The runner did not answer in time."
    monkeypatch.undo()
    await launch_to_the_end(launcher, sessions)
    assert (await load(bot_id)).state == "launched"
    assert len(runner.bots) == 1


async def test_attempts_are_spaced_and_retry_after_is_honoured(
    launcher: Launcher, runner: FakeRunner, sessions: Sessions, add_bot, load
) -> None:
    runner.faults.extend([*[Fault(503)] * 5, Fault(429, headers={"Retry-After": "100"})])
    bot_id = await add_bot(200)
    waits = []
    for _ in range(6):
        await launch_due(launcher)
        next_attempt_at = (await load(bot_id)).next_attempt_at
        assert next_attempt_at is not None
        waits.append((next_attempt_at - utcnow()).total_seconds())
        await make_due(sessions)
    assert [0.75 * 2**n - 0.5 < wait <= 1.25 * 2**n for n, wait in enumerate(waits[:5])] == [True] * 5
    assert 99 < waits[5] <= 100


async def test_attempts_end_five_minutes_after_the_time_to_join(
    *, launcher: Launcher, runner: FakeRunner, sessions: Sessions, subscription, add_bot, load
) -> None:
    runner.is_down = True
    bot_id = await add_bot(deduplication_key="k")
    await launch_due(launcher)
    await pass_time(sessions, bot_id, utcnow() - timedelta(seconds=299.5))
    await make_due(sessions)
    await launch_due(launcher)
    bot = await load(bot_id)
    assert bot.state == "launching"
    assert bot.next_attempt_at is not None
    assert bot.next_attempt_at <= bot.join_at + timedelta(seconds=301), "the last attempt is at the end"
    await pass_time(sessions, bot_id, utcnow() - timedelta(minutes=5))
    await make_due(sessions)
    await launch_due(launcher)
    bot = await load(bot_id)
    assert (bot.state, bot.holds_key) == ("fatal_error", False)
    assert bot.events[-1]["sub_type"] == "runner_unreachable"
    assert bot.events[-1]["metadata"]["status_code"] == 503
    assert [data["new_state"] for data in await told(sessions)] == ["staged", "fatal_error"]
    assert await launch_due(launcher) == []


async def test_a_runner_that_is_away_is_tried_again(
    settings: Settings, sessions: Sessions, runner: FakeRunner, add_bot, load
) -> None:
    async with serve(FakeRunner()) as url:
        gone = url
    away = Settings(**{**settings.model_dump(), "bot_runner_url": gone, "bot_runner_api_key": "k"})
    bot_id = await add_bot()
    async with a_launcher(away, sessions) as launcher:
        await launch_due(launcher)
    bot = await load(bot_id)
    assert (bot.state, bot.may_be_handed_over) == ("launching", False)
    assert bot.events[-1]["metadata"]["error"].startswith("No connection to the runner")


async def test_an_odd_answer_to_a_hand_over_that_went_well_is_no_failure(
    launcher: Launcher, runner: FakeRunner, add_bot, load
) -> None:
    for body in (b"x" * 200_000, b"<html>", b"[]", b'{"id": 7}', b""):
        runner.faults.append(Fault(200, body, makes_bot=True))
        bot_id = await add_bot()
        await launch_due(launcher)
        bot = await load(bot_id)
        assert (bot.state, bot.runner_bot_id) == ("launched", None)


async def test_without_a_runner_the_webhook_is_the_hand_over_exactly_once(
    *, bare_launcher: Launcher, settings: Settings, sessions: Sessions, subscription, add_bot, load
) -> None:
    ids = [await add_bot() for _ in range(30)]
    async with a_launcher(settings, sessions) as second:
        first_claim, second_claim = await asyncio.gather(bare_launcher.claim(4), second.claim(4))
    assert first_claim + second_claim == []
    assert await bare_launcher.claim(4) == []
    for bot_id in ids:
        bot = await load(bot_id)
        assert (bot.state, bot.next_attempt_at, bot.lease_token) == ("launching", None, None)
        assert entry_types(bot) == ["launching"]
    assert [data["new_state"] for data in await told(sessions)] == ["staged"] * 30


async def test_a_bot_without_a_link_waits_and_is_given_up_in_the_end(
    launcher: Launcher, runner: FakeRunner, sessions: Sessions, add_bot, load
) -> None:
    bot_id = await add_bot(meeting_url=None)
    assert await launch_due(launcher) == []
    assert (await load(bot_id)).state == "scheduled"
    await pass_time(sessions, bot_id, utcnow() - timedelta(minutes=5))
    assert await launch_due(launcher) == []
    bot = await load(bot_id)
    assert (bot.state, bot.events[-1]["sub_type"]) == ("fatal_error", "no_meeting_url")
    assert runner.requests == []


async def test_a_meeting_that_is_over_is_not_joined(
    launcher: Launcher, runner: FakeRunner, add_bot, load
) -> None:
    bot_id = await add_bot(-5 * 3600)
    await launch_due(launcher)
    bot = await load(bot_id)
    assert (bot.state, bot.events[-1]["sub_type"]) == ("fatal_error", "too_late")
    assert runner.requests == []


# An event that changes while its bot is being handed over

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
        answer = await self.api.post("/api/v1/bots", json=body)
        assert answer.status_code == 201, answer.text
        bot_id: str = answer.json()["id"]
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
        """Whatever was tried before: in the end the bot, its event and the runner say the same."""
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


async def test_what_the_runner_took_stays_as_the_runner_was_told(
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
        assert (await load(bot_id)).meeting_url == ZOOM, "the runner is being told"
        runner.faults.append(Fault(status))
        await launcher.handle(claimed)
        await event.check_the_end(launcher, runner, bot_id, how)


async def test_a_move_is_followed_at_the_end_of_all_attempts_though_the_runner_told_nothing(
    launcher: Launcher, runner: FakeRunner, sessions: Sessions, due_event, load
) -> None:
    runner.answers_lists = False
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


async def test_a_hand_over_that_fails_while_the_calendar_is_deleted_ends_with_the_bot_gone(
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


async def test_a_worker_launches_and_tells(
    runner_settings: Settings, runner: FakeRunner, start_worker, api, google: GoogleCalendarUnderTest
) -> None:
    receiver = Receiver()
    async with serve(receiver) as url:
        hook = {"url": f"{url}/hook", "triggers": ["bot.state_change"]}
        secret = (await api.post("/api/v1/webhooks", json=hook)).json()["secret"]
        await start_worker(runner_settings)
        at = isoformat(utcnow() + timedelta(minutes=2))
        body = {"bot_name": "x", "meeting_url": ZOOM, "join_at": at}
        bot = (await api.post("/api/v1/bots", json=body)).json()
        received = await receiver.wait_for(2)
    states = sorted(request.verify(secret)["data"]["new_state"] for request in received)
    assert states == ["joining", "staged"]
    assert (await api.get(f"/api/v1/bots/{bot['id']}")).json()["state"] == "joining"
    assert [made["deduplication_key"] for made in runner.bots] == [bot["id"]]
