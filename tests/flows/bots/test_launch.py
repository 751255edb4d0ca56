"""Handing bots over to a runner, exactly once.

See docs/reference/http-api.md, "Bots".
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import get_args

import pytest
from sqlalchemy import select, text

from app.bots import launch
from app.bots.launch import Launcher
from app.core.clock import isoformat, utcnow
from app.core.db import Sessions
from app.models import Bot
from app.settings import Settings
from tests.fakes.receiver import Receiver
from tests.fakes.runner import Duplicates, FakeRunner, Fault
from tests.fakes.server import serve
from tests.flows.bots.launching import (
    ZOOM,
    a_launcher,
    announced,
    entry_types,
    launch_due,
    launch_to_the_end,
    pass_time,
)
from tests.flows.conftest import GoogleCalendarUnderTest

LEAD = 300.0


@pytest.fixture
async def bare_launcher(settings: Settings, sessions: Sessions) -> AsyncIterator[Launcher]:
    async with a_launcher(settings, sessions) as launcher:
        yield launcher


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
    assert [(data["old_state"], data["new_state"]) for data in await announced(sessions)] == [
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
    response = await api.post("/api/v1/bots", json=body)
    assert response.status_code == 201
    await launch_due(launcher)
    bot = (await api.get(f"/api/v1/bots/{response.json()['id']}")).json()
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
    for died, duplicates, lists_bots in itertools.product(
        ("before the call", "during the call", "after the call"), get_args(Duplicates), (True, False)
    ):
        case = f"{died}, duplicates {duplicates}, lists bots: {lists_bots}"
        runner.duplicates = duplicates
        runner.lists_bots = lists_bots
        runner.forget()
        bot_id = await add_bot()
        (claimed,) = await launcher.claim(10)
        gate = asyncio.Event()
        if died != "before the call":
            runner.faults.append(Fault(gate=gate))
            handling = asyncio.create_task(launcher.handle(claimed))
            await runner.wait_for_posts(1)
            handling.cancel()  # like a killed worker, it writes nothing after this
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
        knows_the_id = lists_bots or duplicates == "same" or died != "after the call"
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
    assert [data["new_state"] for data in await announced(sessions)] == ["staged"] * 30


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


async def test_a_worker_launches_and_sends_webhooks(
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
