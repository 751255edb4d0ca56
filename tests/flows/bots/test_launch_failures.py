"""Hand-overs that fail: refused, repeated and ended."""

import asyncio
from datetime import timedelta

import pytest

from app.bots import launch
from app.bots.launch import Launcher
from app.core.clock import utcnow
from app.core.db import Sessions
from app.settings import Settings
from tests.fakes.runner import FakeRunner, Fault
from tests.fakes.server import serve
from tests.flows.bots.launching import (
    a_launcher,
    announced,
    entry_types,
    launch_due,
    launch_to_the_end,
    make_due,
    pass_time,
)


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
        assert (await announced(sessions))[-1]["event_metadata"] == entry["metadata"]
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
        assert [data["new_state"] for data in await announced(sessions)][-2:] == ["staged", "joining"]
    assert len(await announced(sessions)) == 14


async def test_a_bot_that_was_made_although_the_response_failed_is_found(
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


async def test_a_runner_that_does_not_respond_in_time_is_tried_again(
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
    assert [data["new_state"] for data in await announced(sessions)] == ["staged", "fatal_error"]
    assert await launch_due(launcher) == []


async def test_an_unavailable_runner_is_tried_again(
    settings: Settings, sessions: Sessions, runner: FakeRunner, add_bot, load
) -> None:
    async with serve(FakeRunner()) as url:
        closed_url = url
    unavailable = Settings(
        **{**settings.model_dump(), "bot_runner_url": closed_url, "bot_runner_api_key": "k"}
    )
    bot_id = await add_bot()
    async with a_launcher(unavailable, sessions) as launcher:
        await launch_due(launcher)
    bot = await load(bot_id)
    assert (bot.state, bot.may_be_handed_over) == ("launching", False)
    assert bot.events[-1]["metadata"]["error"].startswith("No connection to the runner")


async def test_an_odd_response_to_a_hand_over_that_went_well_is_no_failure(
    launcher: Launcher, runner: FakeRunner, add_bot, load
) -> None:
    for body in (b"x" * 200_000, b"<html>", b"[]", b'{"id": 7}', b""):
        runner.faults.append(Fault(200, body, makes_bot=True))
        bot_id = await add_bot()
        await launch_due(launcher)
        bot = await load(bot_id)
        assert (bot.state, bot.runner_bot_id) == ("launched", None)
