"""Series, all-day events and unreadable events of a Microsoft calendar."""

from collections.abc import Iterable
from datetime import date
from typing import Any

import orjson
import pytest

from app.events.data import RemoteEvent
from app.ical.timezones import named_zone
from app.providers.microsoft import fields as microsoft_fields
from app.providers.microsoft import sync as microsoft_sync
from tests.fakes.microsoft_store import default_id
from tests.integration.providers.microsoft.calendar import DAY, HOUR, NOW, WINDOW, World, add, add_daily


def raws(events: dict[str, RemoteEvent], ids: Iterable[str]) -> list[str]:
    return [events[event_id].raw for event_id in ids]


# --- series ----------------------------------------------------------------------------------------------


async def test_occurrences_are_full_events(world: World) -> None:
    series, occurrences = add_daily(
        world.fake,
        subject="Weekly",
        body="<p>agenda</p>",
        location="Room 1",
        onlineMeeting={"joinUrl": "https://teams.microsoft.com/meet/2345678901234?p=AbCdEf"},
    )
    events = (await world.round()).events
    assert set(events) == set(occurrences)
    second = events[occurrences[1]]
    assert second.recurring_event_id == series
    assert second.original_start_time == second.start_time == NOW + 2 * HOUR + DAY
    assert (second.name, second.description, second.location) == ("Weekly", "<p>agenda</p>", "Room 1")
    assert second.meeting_url == "https://teams.microsoft.com/meet/2345678901234?p=AbCdEf"
    assert len({event.ical_uid for event in events.values()}) == 5


async def test_a_deleted_occurrence_vanishes_and_its_siblings_stay_as_they_are(world: World) -> None:
    _, occurrences = add_daily(world.fake)
    first = await world.round()
    world.fake.delete_event(occurrences[2])
    second = await world.round(first.cursor)
    siblings = [event_id for event_id in occurrences if event_id != occurrences[2]]
    assert second.kept == set(siblings) == world.truth()
    assert raws(second.events, siblings) == raws(first.events, siblings)


async def test_an_exception_has_its_own_content_and_its_siblings_stay_as_they_are(world: World) -> None:
    series, occurrences = add_daily(world.fake, subject="Daily")
    first = await world.round()
    changed = occurrences[1]
    start = NOW + 2 * HOUR + DAY
    world.fake.update_event(changed, subject="Moved", start=start + HOUR, end=start + 2 * HOUR)
    second = await world.round(first.cursor)
    event = second.events[changed]
    assert (event.name, event.start_time, event.original_start_time) == ("Moved", start + HOUR, start)
    assert event.recurring_event_id == series
    siblings = [event_id for event_id in occurrences if event_id != changed]
    assert raws(second.events, siblings) == raws(first.events, siblings)


async def test_a_changed_master_changes_every_occurrence(world: World) -> None:
    series, occurrences = add_daily(world.fake, subject="Before")
    cursor = await world.cursor()
    world.fake.update_series(series, subject="After")
    events = (await world.round(cursor)).events
    assert [events[event_id].name for event_id in occurrences] == ["After"] * 5


async def test_a_deleted_and_a_split_series_end_as_the_mailbox_shows_them(world: World) -> None:
    deleted, _ = add_daily(world.fake)
    split, _ = add_daily(world.fake, subject="Old")
    first = await world.round()
    world.fake.delete_series(deleted)
    world.fake.split_series(split, at=NOW + 2 * HOUR + 2 * DAY, subject="New")
    second = await world.round(first.cursor)
    in_window = {
        event_id
        for event_id, event in second.events.items()
        if event.start_time and event.end_time and WINDOW.overlaps(event.start_time, event.end_time)
    }
    assert second.kept >= in_window == world.truth()
    names = [second.events[event_id].name for event_id in in_window]
    assert (names.count("Old"), names.count("New")) == (2, 26)


async def test_a_series_far_larger_than_a_page_is_read_once(world: World) -> None:
    start = NOW.replace(minute=0)
    series = world.fake.add_series(start=start, end=start + HOUR, rrule="FREQ=HOURLY;COUNT=600")
    result = await world.round()
    assert len(result.events) == 600
    world.fake.update_series(series, subject="New")
    assert len((await world.round(result.cursor)).events) == 600


# --- kinds of events -------------------------------------------------------------------------------------


async def test_a_cancelled_event_is_marked_as_such(world: World) -> None:
    event_id = add(world.fake, subject="Review")
    cursor = await world.cursor()
    world.fake.cancel_event(event_id)
    event = (await world.round(cursor)).events[event_id]
    assert (event.is_cancelled, event.name) == (True, "Canceled: Review")


@pytest.mark.parametrize("style", ["date", "shifted"])
@pytest.mark.parametrize("zone", ["Romance Standard Time", "Pacific Standard Time", "Tonga Standard Time"])
async def test_an_all_day_event_keeps_its_day_however_it_is_rendered(
    world: World, style: Any, zone: str
) -> None:
    world.fake.all_day_style = style
    event_id = world.fake.add_event(
        start=date(2026, 11, 24), end=date(2026, 11, 26), originalStartTimeZone=zone
    )
    event = (await world.round()).events[event_id]
    assert event.is_all_day
    assert event.start_time is not None
    assert event.end_time is not None
    home = named_zone(zone)
    assert home is not None
    assert event.timezone == home.name
    assert f"{event.start_time.astimezone(home.tzinfo):%Y-%m-%d %H:%M}" == "2026-11-24 00:00"
    assert f"{event.end_time.astimezone(home.tzinfo):%Y-%m-%d %H:%M}" == "2026-11-26 00:00"


async def test_all_day_events_at_the_windows_edge_are_not_missed(world: World) -> None:
    ends_in_the_window = world.fake.add_event(
        start=date(2026, 11, 18), end=date(2026, 11, 20), originalStartTimeZone="Hawaiian Standard Time"
    )
    starts_in_the_window = world.fake.add_event(
        start=date(2026, 12, 19), end=date(2026, 12, 20), originalStartTimeZone="Tonga Standard Time"
    )
    events = (await world.round()).events
    assert {ends_in_the_window, starts_in_the_window} <= set(events)
    assert world.truth() <= set(events)


async def test_fractions_of_seven_digits_are_read(world: World) -> None:
    start = NOW.replace(second=30, microsecond=123456)
    event_id = world.fake.add_event(start=start, end=start + HOUR)
    assert world.truth() == {event_id}
    event = (await world.round()).events[event_id]
    assert b'30.1234560"' in event.raw.encode()
    assert event.start_time == start


async def test_an_unreadable_event_does_not_stop_the_others(world: World, logs: list[Any]) -> None:
    good = add(world.fake)
    world.fake.put_raw({"id": "odd", "start": "now", "subject": 5, "attendees": {"a": 1}, "body": []})
    world.fake.put_raw({"subject": "no id"})
    world.fake.put_raw({"id": "master", "type": "seriesMaster", "subject": "a master is not an occurrence"})
    world.fake.put_raw({"id": "year 0", "start": {"dateTime": "0000-01-01T00:00:00", "timeZone": "UTC"}})
    result = await world.round()
    assert set(result.events) == {good, "odd", "year 0"}
    assert result.events["odd"].start_time is None
    assert orjson.loads(result.events["odd"].raw)["subject"] == 5
    warned = [entry["event"] for entry in logs]
    assert warned.count("microsoft.event_without_id") == 1
    assert warned.count("microsoft.event_without_start") == 2


async def test_a_bug_in_reading_one_event_costs_that_event_only(
    world: World, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = add(world.fake, subject="good"), add(world.fake, subject="bad")
    parse = microsoft_fields.parse_event

    def fails_for_one(item: dict[str, Any], **options: Any) -> RemoteEvent:
        if item["subject"] == "bad":
            raise RecursionError
        return parse(item, **options)

    monkeypatch.setattr(microsoft_sync, "parse_event", fails_for_one)
    events = (await world.round()).events
    assert (events[good].name, events[bad].name) == ("good", None)
    assert orjson.loads(events[bad].raw)["subject"] == "bad"
    assert [entry["error"] for entry in logs] == ["RecursionError"]


async def test_the_default_id_of_an_event_never_comes_in(world: World) -> None:
    event_id = add(world.fake)
    events = (await world.round()).events
    assert default_id(event_id) not in events
    assert default_id(event_id) not in events[event_id].raw
