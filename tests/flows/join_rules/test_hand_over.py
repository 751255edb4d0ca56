"""Events that move while their rule's bot is handed over: one successor, whatever comes first."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text

from app.core.clock import isoformat, utcnow
from app.core.db import transaction
from app.join_rules.runs import JoinRuleWorker
from tests.fakes.runner import Fault
from tests.integration.join_rules.rules_api import (
    add_calendar,
    add_event,
    at,
    bots_of,
    change_event,
    rule,
    set_policy,
    set_rules,
)


def soon():
    start = utcnow().replace(microsecond=0) + timedelta(minutes=2)
    return {"start_time": isoformat(start), "end_time": isoformat(start + timedelta(hours=1))}


async def work(settings, sessions) -> None:
    """Do what a worker does for the runs that are left."""
    worker = JoinRuleWorker(settings=settings, sessions=sessions)
    for project_id in await worker.claim(10):
        await worker.handle(project_id)


async def in_hand_over(api, runner, launcher, fault):
    """An event whose bot is at the runner, which responds when `fault.gate` is set."""
    await set_rules(api, rule("a", name_contains=["review"]))
    event_id = await add_event(api, await add_calendar(api), **soon())
    runner.faults.append(fault)
    (claimed,) = await launcher.claim(10)
    handling = asyncio.create_task(launcher.handle(claimed))
    await asyncio.sleep(0.2)
    assert [bot["state"] for bot in await bots_of(api, event_id)] == ["staged"]
    return event_id, handling


async def test_a_move_before_the_outcome_leads_to_one_successor(
    api, runner, launcher, settings, sessions
) -> None:
    gate = asyncio.Event()
    event_id, handling = await in_hand_over(api, runner, launcher, Fault(gate=gate))
    (before,) = [bot["join_at"] for bot in await bots_of(api, event_id)]
    await change_event(api, event_id, start_time=at(30), end_time=at(31))
    assert len(await bots_of(api, event_id)) == 1
    gate.set()
    await handling
    await work(settings, sessions)
    await work(settings, sessions)
    assert sorted((bot["join_at"], bot["state"]) for bot in await bots_of(api, event_id)) == [
        (before, "joining"),
        (at(30), "scheduled"),
    ]
    assert len(runner.bots) == 1


async def test_a_move_before_a_failure_moves_the_bot_itself(
    api, runner, launcher, settings, sessions
) -> None:
    runner.faults.append(Fault(status=503))
    await set_rules(api, rule("a"))
    event_id = await add_event(api, await add_calendar(api), **soon())
    (claimed,) = await launcher.claim(10)
    await change_event(api, event_id, start_time=at(30), end_time=at(31))
    await launcher.handle(claimed)
    await work(settings, sessions)
    assert [(bot["join_at"], bot["state"]) for bot in await bots_of(api, event_id)] == [(at(30), "scheduled")]


@pytest.mark.parametrize("status", [503, 500])
async def test_never_during_a_hand_over_that_fails_ends_without_a_bot(
    api, runner, launcher, settings, sessions, status
) -> None:
    runner.faults.append(Fault(status=status))
    await set_rules(api, rule("a"))
    event_id = await add_event(api, await add_calendar(api), **soon())
    (claimed,) = await launcher.claim(10)
    assert (await set_policy(api, event_id, "never")).status_code == 200
    await launcher.handle(claimed)
    for _ in range(5):
        async with transaction(sessions) as session:
            await session.execute(
                text("UPDATE bots SET next_attempt_at = now() WHERE next_attempt_at IS NOT NULL")
            )
        await work(settings, sessions)
        runner.faults.append(Fault(status=503))
        for again in await launcher.claim(10):
            await launcher.handle(again)
    await work(settings, sessions)
    assert await bots_of(api, event_id) == []
    assert runner.bots == []
