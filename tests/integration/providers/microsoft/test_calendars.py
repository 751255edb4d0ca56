"""The calendars of a Microsoft mailbox."""

import pytest

from app.providers.base import (
    CalendarRemoved,
    CursorExpired,
    RemoteCalendar,
)
from tests.integration.providers.microsoft.calendar import NOW, World, add


async def test_a_secondary_calendar_is_read_by_its_id(world: World) -> None:
    team = world.fake.add_calendar("Team", calendar_id="AQMkA/b+c/d=?#%2F e=")
    mine, theirs = add(world.fake), add(world.fake, calendar_id=team)
    first = await world.round(calendar_id=team)
    assert set(first.events) == {theirs}
    add(world.fake)
    assert (await world.round(first.cursor, calendar_id=team)).events == {}
    world.fake.update_event(theirs, calendar_id=team, subject="New")
    assert set((await world.round(first.cursor, calendar_id=team)).events) == {theirs}
    assert mine in (await world.round()).events


async def test_an_event_keeps_its_id_when_it_moves_to_another_calendar(world: World) -> None:
    team = world.fake.add_calendar("Team")
    event_id = add(world.fake)
    here, there = await world.cursor(), await world.cursor(calendar_id=team)
    world.fake.move_to_calendar(event_id, to=team)
    assert (await world.round(here)).kept == set()
    assert (await world.round(there, calendar_id=team)).kept == {event_id}


async def test_the_calendars_of_all_groups_are_listed_once(world: World) -> None:
    team = world.fake.add_calendar("Team")
    other = world.fake.add_calendar("Other", group="Projects")
    for number in range(120):
        world.fake.add_calendar(f"Calendar {number}")
    world.fake.mailbox().default.name = ""
    calendars = await world.calendar().list_calendars()
    default_calendar = world.fake.calendar().id
    assert len(calendars) == len({calendar.id for calendar in calendars}) == 123
    assert calendars[0] == RemoteCalendar(id=default_calendar, name=default_calendar, is_primary=True)
    assert RemoteCalendar(id=team, name="Team") in calendars
    assert RemoteCalendar(id=other, name="Other") in calendars


async def test_a_missing_calendar_and_a_malformed_id_count_as_removed(world: World) -> None:
    team = world.fake.add_calendar("Team")
    cursor = await world.cursor(calendar_id=team)
    world.fake.remove_calendar(team)
    for calendar_id in (team, "nonsense"):
        with pytest.raises(CalendarRemoved):
            await world.round(calendar_id=calendar_id)
    # Only the delta link may be unknown: the next full round shows which.
    with pytest.raises(CursorExpired):
        await world.round(cursor, calendar_id=team)


async def test_one_request_at_a_time(world: World) -> None:
    world.fake.seed(20, start=NOW)
    world.fake.latency = 0.001
    cursor = await world.cursor(page_size=3)
    add(world.fake)
    await world.round(cursor, page_size=3)
    await world.calendar().list_calendars()
    assert world.fake.mailbox().most_in_flight == 1
