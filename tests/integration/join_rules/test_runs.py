"""Runs: changed rules reach every event, whatever is written or killed meanwhile."""

import asyncio

import pytest
from sqlalchemy import select, text, update

from app.core.db import transaction
from app.join_rules import runs, service
from app.join_rules.repository import runs as repository
from app.join_rules.runs import apply_runs
from app.join_rules.schemas import JoinRulesInput
from app.models import Calendar, CalendarEvent, JoinRuleRun
from tests.integration.bots.bots_api import deliveries, subscribe
from tests.integration.join_rules.rules_api import (
    OTHER_LINK,
    add_calendar,
    add_event,
    at,
    bots_of,
    change_event,
    names_of,
    rule,
    set_rules,
)


async def store_rules(sessions, project, *rules, calendar_id=None) -> None:
    """What a request does that is killed after its commit."""
    async with transaction(sessions) as session:
        await service.put_rules(session, project.id, JoinRulesInput(rules=list(rules)), calendar_id)


async def runs_left(sessions) -> int:
    async with sessions() as session:
        return len((await session.scalars(select(JoinRuleRun.target))).all())


async def test_a_worker_finishes_what_a_killed_request_left(api, sessions, project, start_worker) -> None:
    events = [await add_event(api, await add_calendar(api)) for _ in range(3)]
    await store_rules(sessions, project, rule("a"))
    assert [await names_of(api, event_id) for event_id in events] == [[], [], []]
    await start_worker()
    async with asyncio.timeout(20):
        while await runs_left(sessions):
            await asyncio.sleep(0.05)
    assert [await names_of(api, event_id) for event_id in events] == [["Bot of a"]] * 3


async def test_events_that_were_judged_by_the_old_rules_but_not_committed_are_corrected(
    api, sessions, settings, project
) -> None:
    calendar_id = await add_calendar(api)
    event_id = await add_event(api, calendar_id)
    await set_rules(api, rule("old", name_contains=["renamed"]))
    async with transaction(sessions) as writer:
        await writer.execute(
            select(Calendar.id).where(Calendar.id == calendar_id).with_for_update(key_share=True)
        )
        await writer.execute(update(CalendarEvent).values(name="Renamed"))
        await service.follow_rules(writer, project.id, calendar_id, [event_id], platforms={"zoom"})
        changing = asyncio.create_task(set_rules(api, rule("new", name_contains=["renamed"])))
        await asyncio.sleep(0.5)
        assert not changing.done()
    await changing
    assert await names_of(api, event_id) == ["Bot of new"]
    assert await runs_left(sessions) == 0


async def test_a_writer_waits_for_one_that_decides_about_the_same_meeting(api, sessions, project) -> None:
    await set_rules(api, rule("a", name_contains=["review"]), scope="meeting")
    first, second = await add_calendar(api), await add_calendar(api)
    one = await add_event(api, first, name="Lunch")
    async with transaction(sessions) as writer:
        await writer.execute(select(Calendar.id).where(Calendar.id == first).with_for_update(key_share=True))
        await writer.execute(update(CalendarEvent).values(name="Review"))
        await service.follow_rules(writer, project.id, first, [one], platforms={"zoom"})
        adding = asyncio.create_task(add_event(api, second))
        await asyncio.sleep(0.5)
        assert not adding.done()
    two = await adding
    assert len([*await bots_of(api, one), *await bots_of(api, two)]) == 1


async def test_a_run_that_is_asked_for_again_while_it_is_worked_on_is_done_again(
    api, sessions, settings, project, monkeypatch
) -> None:
    event_id = await add_event(api, await add_calendar(api))
    await store_rules(sessions, project, rule("first"))
    finish = repository.finish_runs
    newer: list[int] = []

    async def finish_late(session, done):
        if not newer and done and done[0][0] != project.id:
            newer.append(1)
            await store_rules(sessions, project, rule("second"))
            async with transaction(sessions) as other:
                await repository.expand_run(other, project.id)
        await finish(session, done)

    monkeypatch.setattr(repository, "finish_runs", finish_late)
    assert await apply_runs(sessions, settings, project.id, seconds=10)
    assert newer
    assert await names_of(api, event_id) == ["Bot of second"]


@pytest.mark.parametrize("scope", ["event", "meeting"])
async def test_many_events_are_judged_in_several_transactions(api, monkeypatch, scope) -> None:
    monkeypatch.setattr(runs, "_EVENTS_AT_ONCE", 3)
    monkeypatch.setattr(runs, "_EVENTS_OF_LINKS_AT_ONCE", 3)
    calendars = [await add_calendar(api) for _ in range(3)]
    events = [
        await add_event(api, calendar_id, meeting_url=f"https://zoom.us/j/55511122{n}{m}")
        for m, calendar_id in enumerate(calendars)
        for n in range(m * 3 + 1)
    ]
    await set_rules(api, rule("a"), scope=scope)
    assert [await names_of(api, event_id) for event_id in events] == [["Bot of a"]] * len(events)


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 100])
async def test_a_run_by_links_judges_each_meeting_as_a_whole(api, monkeypatch, at_once) -> None:
    """The second of three in a chain has no bot, so the third has one, wherever a part of the run ends."""
    monkeypatch.setattr(runs, "_EVENTS_OF_LINKS_AT_ONCE", at_once)
    calendars = [await add_calendar(api) for _ in range(3)]
    hours = [(24, 25), (24.5, 25.5), (25, 26), (30, 31), (30, 32), (32, 33), (40, 41)]
    events = [
        await add_event(api, calendars[n % 3], start_time=at(start), end_time=at(end))
        for n, (start, end) in enumerate(hours)
    ]
    await add_event(api, calendars[0], meeting_url=OTHER_LINK)
    await set_rules(api, rule("a"))
    await set_rules(api, rule("b"), scope="meeting")
    having = [bool(await bots_of(api, event_id)) for event_id in events]
    assert having[:3] == [True, False, True]
    assert having[3] != having[4]
    assert having[5:] == [True, True]
    response = await api.get("/api/v1/bots")
    assert {bot["bot_name"] for bot in response.json()["results"]} == {"Bot of b"}


async def test_a_calendar_that_is_connected_again_gets_its_bots_again(
    api, sessions, settings, project
) -> None:
    calendar_id = await add_calendar(api)
    event_id = await add_event(api, calendar_id)
    await set_rules(api, rule("a"))
    async with transaction(sessions) as session:
        await session.execute(update(Calendar).values(state="disconnected"))
        await service.leave_calendar(session, settings, project.id, calendar_id)
    await set_rules(api, rule("b"))
    async with transaction(sessions) as session:
        await session.execute(text("DELETE FROM bots"))
        await session.execute(update(Calendar).values(state="connected"))
        await service.return_calendar(session, project.id, calendar_id)
    assert await apply_runs(sessions, settings, project.id, seconds=10)
    assert await names_of(api, event_id) == ["Bot of b"]


async def test_what_rules_do_is_announced(api, sessions, project) -> None:
    await subscribe(sessions, project.id)
    event_id = await add_event(api, await add_calendar(api))
    await set_rules(api, rule("a"))
    (bot,) = await bots_of(api, event_id)
    await set_rules(api, rule("b"))
    await set_rules(api)
    import orjson

    bodies = [orjson.loads(row.body) for row in await deliveries(sessions)]
    assert [body["bot_id"] for body in bodies] == [bot["id"]] * 3
    assert [body["calendar_event_id"] for body in bodies] == [event_id] * 3
    assert [(body["data"]["event_type"], body["data"]["new_state"]) for body in bodies] == [
        ("scheduled", "scheduled"),
        ("updated", "scheduled"),
        ("deleted", "deleted"),
    ]
    assert bodies[2]["data"]["event_sub_type"] == "join_rules"


async def test_writers_of_a_meeting_in_several_calendars_do_not_block_each_other(api) -> None:
    await set_rules(api, rule("a"), scope="meeting")
    calendars = [await add_calendar(api) for _ in range(6)]
    events = await asyncio.gather(*(add_event(api, calendar_id) for calendar_id in calendars))
    assert sum([len(await bots_of(api, event_id)) for event_id in events]) == 1
    for n in range(3):
        await asyncio.gather(*(change_event(api, event_id, name=f"{n}") for event_id in events))
        assert sum([len(await bots_of(api, event_id)) for event_id in events]) == 1
