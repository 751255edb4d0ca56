"""Bots that were handed over: what becomes of their events' bots when these move or end."""

from datetime import timedelta

import pytest
from sqlalchemy import update

from app.core.clock import utcnow
from app.core.db import transaction
from app.models import Bot
from tests.integration.bots.bots_api import set_state
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


async def handed_over(api, sessions, event_id, state="launched"):
    (bot,) = await bots_of(api, event_id)
    await set_state(sessions, bot["id"], state)
    return bot


async def starts(api, event_id):
    return sorted((bot["join_at"], bot["state"]) for bot in await bots_of(api, event_id))


@pytest.fixture
async def event_id(api) -> str:
    await set_rules(api, rule("a", name_contains=["review"]))
    return await add_event(api, await add_calendar(api))


@pytest.mark.parametrize("state", ["launched", "launching", "fatal_error"])
async def test_a_moved_event_gets_one_successor(api, sessions, event_id, state) -> None:
    await handed_over(api, sessions, event_id, state)
    shown = {"launched": "joining", "launching": "staged"}.get(state, state)
    await change_event(api, event_id, location="Room 1")
    await set_rules(api, rule("b", name_contains=["review"]))
    assert await starts(api, event_id) == [(at(24), shown)]
    await change_event(api, event_id, start_time=at(30), end_time=at(31))
    assert await starts(api, event_id) == [(at(24), shown), (at(30), "scheduled")]
    await change_event(api, event_id, start_time=at(32), end_time=at(33))
    await change_event(api, event_id, location="Room 2")
    assert await starts(api, event_id) == [(at(24), shown), (at(32), "scheduled")]
    await change_event(api, event_id, start_time=at(24), end_time=at(25))
    assert await starts(api, event_id) == [(at(24), shown)]


async def test_the_successor_obeys_the_rules_as_they_are_then(api, sessions, event_id) -> None:
    await handed_over(api, sessions, event_id)
    await change_event(api, event_id, name="Lunch", start_time=at(30), end_time=at(31))
    assert await starts(api, event_id) == [(at(24), "joining")]
    await set_policy(api, event_id, "always")
    assert await starts(api, event_id) == [(at(24), "joining"), (at(30), "scheduled")]


async def test_an_event_that_moved_into_the_past_gets_none(api, sessions, event_id) -> None:
    await handed_over(api, sessions, event_id)
    await change_event(api, event_id, start_time=at(-30), end_time=at(-29))
    assert await starts(api, event_id) == [(at(24), "joining")]


async def test_a_meeting_that_a_bot_has_joined_gets_no_second_one(api, sessions) -> None:
    await set_rules(api, rule("a"), scope="meeting")
    calendars = [await add_calendar(api) for _ in range(3)]
    events = [await add_event(api, calendar_id) for calendar_id in calendars]
    [holder] = [event_id for event_id in events if await bots_of(api, event_id)]
    await handed_over(api, sessions, holder)
    others = [event_id for event_id in events if event_id != holder]
    for event_id in others:
        await change_event(api, event_id, location="Room 1")
    assert [await bots_of(api, event_id) for event_id in others] == [[], []]
    await api.delete(f"/api/v1/calendar_events/{holder}")
    for event_id in others:
        await change_event(api, event_id, location="Room 2")
    assert [await bots_of(api, event_id) for event_id in others] == [[], []]
    for event_id in others:
        await change_event(api, event_id, start_time=at(40), end_time=at(41))
    assert sum([len(await bots_of(api, event_id)) for event_id in others]) == 1


async def test_an_event_that_has_begun_gets_a_bot_when_it_is_written_but_not_by_a_new_rule(
    api, sessions
) -> None:
    calendar_id = await add_calendar(api)
    begun = {"start_time": at(-1), "end_time": at(2)}
    event_id = await add_event(api, calendar_id, **begun)
    await set_rules(api, rule("a"))
    assert await bots_of(api, event_id) == []
    assert len(await bots_of(api, await add_event(api, calendar_id, **begun))) == 1
    over = await add_event(api, calendar_id, start_time=at(-3), end_time=at(-2))
    assert await bots_of(api, over) == []


async def test_a_scheduled_bot_of_an_event_that_has_begun_still_goes(api, sessions, event_id) -> None:
    (bot,) = await bots_of(api, event_id)
    await change_event(api, event_id, start_time=at(-1), end_time=at(2))
    async with transaction(sessions) as session:
        await session.execute(
            update(Bot).where(Bot.id == bot["id"]).values(join_at=utcnow() - timedelta(minutes=1))
        )
    await set_rules(api)
    assert await bots_of(api, event_id) == []
