"""The calendars of a Google account."""

import orjson

from app.providers.base import (
    RemoteCalendar,
)
from tests.integration.providers.google.calendar import World


async def test_the_calendars_of_an_account_are_listed_over_all_pages(world: World) -> None:
    world.fake.add_calendar("team@group.calendar.google.com", summary="Team", time_zone="Asia/Tokyo")
    world.fake.add_calendar("busy@group.calendar.google.com", access_role="freeBusyReader")
    for number in range(260):
        world.fake.add_calendar(f"{number}@group.calendar.google.com")
    calendars = await world.calendar().list_calendars()
    assert calendars[0] == RemoteCalendar(
        "ada@example.com", "ada@example.com", is_primary=True, time_zone="Europe/Paris"
    )
    assert calendars[1] == RemoteCalendar("team@group.calendar.google.com", "Team", time_zone="Asia/Tokyo")
    assert len(calendars) == 262
    assert len(world.fake.requests_to("calendarList.list")) == 2


async def test_odd_calendars_are_left_out_and_chosen_names_are_preferred(world: World) -> None:
    entries = [
        {"id": "a", "summary": "Given", "summaryOverride": "Chosen", "timeZone": "Mars/Olympus"},
        {"id": "b", "summary": 5},
        {"id": "c", "deleted": True},
        {"summary": "no id"},
        "nothing",
    ]
    world.fake.inject_fault("calendarList.list", 200, body=orjson.dumps({"items": entries}))
    assert await world.calendar().list_calendars() == [
        RemoteCalendar("a", "Chosen"),
        RemoteCalendar("b", "b"),
    ]
