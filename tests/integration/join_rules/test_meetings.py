"""`bot_scope` "meeting": one bot for events of one link and overlapping times, over all calendars."""

import pytest

from tests.integration.join_rules.rules_api import (
    OTHER_LINK,
    add_calendar,
    add_event,
    at,
    bots_of,
    change_event,
    names_of,
    rule,
    set_policy,
    set_rules,
)


@pytest.fixture
async def calendars(api) -> list[str]:
    await set_rules(api, rule("a"), scope="meeting")
    return [await add_calendar(api, owner=f"{name}@ours.example") for name in ("ada", "bob", "cleo")]


async def spread(api, events) -> list[int]:
    """How many bots each event has."""
    return [len(await bots_of(api, event_id)) for event_id in events]


async def the_bot(api, events):
    bots = [bot for event_id in events for bot in await bots_of(api, event_id)]
    assert len(bots) == 1, bots
    return bots[0]


async def test_one_bot_for_the_same_meeting_on_several_calendars(api, calendars) -> None:
    events = [await add_event(api, calendar_id) for calendar_id in calendars]
    assert sorted(await spread(api, events)) == [0, 0, 1]


async def test_another_link_or_a_time_that_only_touches_is_another_meeting(api, calendars) -> None:
    events = [
        await add_event(api, calendars[0]),
        await add_event(api, calendars[1], meeting_url=OTHER_LINK),
        await add_event(api, calendars[2], start_time=at(25), end_time=at(26)),
        await add_event(api, calendars[2], start_time=at(23), end_time=at(24)),
    ]
    assert await spread(api, events) == [1, 1, 1, 1]


async def test_the_bot_carries_on_at_another_calendars_event(api, calendars) -> None:
    events = [await add_event(api, calendar_id) for calendar_id in calendars]
    bot = await the_bot(api, events)
    left = [event_id for event_id in events if event_id != bot["calendar_event_id"]]
    deleted = await api.delete(f"/api/v1/calendar_events/{bot['calendar_event_id']}")
    assert deleted.status_code == 200, deleted.text
    carried = await the_bot(api, events)
    assert carried["id"] == bot["id"]
    assert carried["calendar_event_id"] in left
    await change_event(api, carried["calendar_event_id"], start_time=at(50), end_time=at(51))
    assert await spread(api, left) == [1, 1]


async def test_the_bot_carries_on_when_its_calendar_is_deleted(api, calendars) -> None:
    events = {calendar_id: await add_event(api, calendar_id) for calendar_id in calendars[:2]}
    bot = await the_bot(api, events.values())
    deleted = next(c for c, event_id in events.items() if event_id == bot["calendar_event_id"])
    assert (await api.delete(f"/api/v1/calendars/{deleted}")).status_code == 200
    left = next(event_id for c, event_id in events.items() if c != deleted)
    (carried,) = await bots_of(api, left)
    assert (carried["id"], carried["calendar_event_id"]) == (bot["id"], left)


async def test_a_change_of_the_link_joins_and_leaves_meetings(api, calendars) -> None:
    one = await add_event(api, calendars[0])
    two = await add_event(api, calendars[1], meeting_url=OTHER_LINK)
    assert await spread(api, [one, two]) == [1, 1]
    await change_event(api, two, meeting_url="https://zoom.us/j/5551112222")
    assert sorted(await spread(api, [one, two])) == [0, 1]
    await change_event(api, one, meeting_url=OTHER_LINK)
    assert await spread(api, [one, two]) == [1, 1]


async def test_a_chain_of_overlaps_has_bots_that_do_not_overlap(api, calendars) -> None:
    chain = [
        await add_event(api, calendars[0], start_time=at(24), end_time=at(26)),
        await add_event(api, calendars[1], start_time=at(25), end_time=at(28)),
        await add_event(api, calendars[2], start_time=at(27), end_time=at(29)),
    ]
    assert await spread(api, chain) == [1, 0, 1]
    await set_policy(api, chain[0], "never")
    assert await spread(api, chain) == [0, 1, 0]
    await set_policy(api, chain[0], "rules")
    assert await spread(api, chain) == [1, 0, 1]


async def test_the_scope_can_be_changed_back_and_forth(api, calendars) -> None:
    events = [await add_event(api, calendar_id) for calendar_id in calendars]
    bot = await the_bot(api, events)
    await set_rules(api, rule("a"))
    assert await spread(api, events) == [1, 1, 1]
    await set_rules(api, rule("a"), scope="meeting")
    assert await spread(api, events) != [1, 1, 1]
    assert (await the_bot(api, events))["calendar_event_id"] == bot["calendar_event_id"]


async def test_a_calendar_with_own_rules_leaves_the_meeting(api, calendars) -> None:
    events = [await add_event(api, calendar_id) for calendar_id in calendars[:2]]
    bot = await the_bot(api, events)
    holder = calendars[events.index(bot["calendar_event_id"])]
    await set_rules(api, rule("own"), calendar_id=holder)
    assert await spread(api, events) == [1, 1]
    await api.delete(f"/api/v1/calendars/{holder}/join_rules")
    assert sorted(await spread(api, events)) == [0, 1]


async def test_a_deleted_bot_is_not_made_again_for_any_event_of_the_meeting(api, calendars) -> None:
    events = [await add_event(api, calendar_id) for calendar_id in calendars[:2]]
    bot = await the_bot(api, events)
    assert (await api.delete(f"/api/v1/bots/{bot['id']}")).status_code == 200
    for event_id in events:
        await change_event(api, event_id, name="Other name")
    events.append(await add_event(api, calendars[2]))
    assert await spread(api, events) == [0, 0, 0]
    await set_rules(api, rule("b"), scope="meeting")
    assert await spread(api, events) == [0, 0, 0]
    await api.delete(f"/api/v1/calendar_events/{bot['calendar_event_id']}")
    left = [event_id for event_id in events if event_id != bot["calendar_event_id"]]
    assert await spread(api, left) == [0, 0]
    await set_policy(api, left[0], "always")
    assert sorted(await spread(api, left)) == [0, 1]


async def test_the_bot_is_that_of_the_chosen_events_rule(api, calendars) -> None:
    await set_rules(api, rule("own"), calendar_id=calendars[1], scope="meeting")
    early = await add_event(api, calendars[1], start_time=at(23), end_time=at(25))
    late = await add_event(api, calendars[0])
    assert [await names_of(api, one) for one in (early, late)] == [["Bot of own"], []]
    await api.delete(f"/api/v1/calendar_events/{early}")
    assert await names_of(api, late) == ["Bot of a"]
