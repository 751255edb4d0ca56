"""Deleted events, series, all-day events and unreadable events of a Google calendar."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson
import pytest

from app.providers.google import fields as google_fields
from tests.fakes.google_store import instance_id
from tests.integration.providers.google.calendar import HOUR, NOW, World, add, respond_with


@pytest.mark.parametrize("style", ["full", "exception", "bare"])
async def test_a_cancelled_entry_of_any_shape_is_removed(world: World, style: Any) -> None:
    world.fake.tombstone_style = style
    single = add(world.fake)
    series = world.fake.add_series(start=NOW, end=NOW + HOUR, rrule="FREQ=DAILY;COUNT=5")
    cursor = await world.cursor()
    instance = instance_id(series, NOW + timedelta(days=2))
    world.fake.delete_event(single)
    world.fake.delete_event(instance)
    world.fake.add_event(start=NOW, end=NOW + HOUR, event_id="neverseen")
    world.fake.delete_event("neverseen")
    delta = await world.round(cursor)
    assert (delta.events, delta.removed) == ({}, {single, instance, "neverseen"})
    assert single not in (await world.round()).events


@pytest.mark.parametrize("way", ["instances", "master", "both"])
async def test_a_deleted_series_is_known_by_its_instances_or_its_own_id(world: World, way: Any) -> None:
    world.fake.series_tombstone = way
    series = world.fake.add_series(start=NOW - timedelta(hours=3), end=NOW, rrule="FREQ=DAILY;COUNT=300")
    first = await world.round()
    assert len(first.events) == 29
    assert {event.recurring_event_id for event in first.events.values()} == {series}
    world.fake.delete_series(series)
    delta = await world.round(first.cursor)
    assert delta.events == {}
    assert (series in delta.removed) == (way != "instances")
    # Past instances and those after half a year are removed without an entry: the next full round shows it.
    assert len(delta.removed - {series}) == (0 if way == "master" else 183)
    assert (await world.round()).events == {}


async def test_an_event_that_comes_back_is_an_event_again(world: World) -> None:
    event_id = add(world.fake)
    cursor = await world.cursor()
    world.fake.delete_event(event_id)
    world.fake.update_event(event_id, status="confirmed")
    delta = await world.round(cursor)
    assert (set(delta.events), delta.removed) == ({event_id}, set())


async def test_a_move_to_another_calendar_is_removed_here_and_new_there(world: World) -> None:
    team = world.fake.add_calendar("team@group.calendar.google.com")
    event_id = add(world.fake)
    here, there = await world.round(), await world.round(calendar_id=team)
    world.fake.move_to_calendar(event_id, to=team)
    assert (await world.round(here.cursor)).removed == {event_id}
    arrived = (await world.round(there.cursor, calendar_id=team)).events[event_id]
    assert arrived.ical_uid == here.events[event_id].ical_uid


@pytest.mark.parametrize("is_cancelled_last", [True, False])
async def test_of_two_entries_with_one_id_on_a_page_the_later_one_counts(
    world: World, is_cancelled_last: bool
) -> None:
    alive = {"id": "twice", "start": {"date": "2026-11-24"}, "end": {"date": "2026-11-25"}}
    items = [alive, {"id": "twice", "status": "cancelled"}]
    respond_with(world.fake, {"nextSyncToken": "s", "items": items if is_cancelled_last else items[::-1]})
    result = await world.round()
    assert (set(result.events), result.removed) == (
        (set(), {"twice"}) if is_cancelled_last else ({"twice"}, set())
    )


# --- series and all-day events ---------------------------------------------------------------------------


async def test_instances_keep_their_id_and_slot_when_they_are_moved(world: World) -> None:
    series = world.fake.add_series(
        start=NOW, end=NOW + HOUR, rrule="FREQ=WEEKLY;COUNT=4", exdates=[NOW + timedelta(days=7)]
    )
    cursor = await world.cursor()
    third = instance_id(series, NOW + timedelta(days=14))
    world.fake.move(third, start=NOW + timedelta(days=15), end=NOW + timedelta(days=15) + HOUR)
    delta = await world.round(cursor)
    assert set(delta.events) == {third}
    event = delta.events[third]
    assert event.start_time == NOW + timedelta(days=15)
    assert (event.recurring_event_id, event.original_start_time) == (series, NOW + timedelta(days=14))
    everything = await world.round()
    assert set(everything.events) == {instance_id(series, NOW + timedelta(days=days)) for days in (0, 14, 21)}
    assert {event.ical_uid for event in everything.events.values()} == {f"{series}@google.com"}


async def test_a_split_series_is_cancelled_from_there_on_and_goes_on_under_another_id(world: World) -> None:
    series = world.fake.add_series(start=NOW, end=NOW + HOUR, rrule="FREQ=WEEKLY", series_id="old")
    cursor = await world.cursor()
    at = NOW + timedelta(days=14)
    later = world.fake.split_series(series, at=at, summary="After")
    assert later == "old_R20261204T120000"
    world.fake.window_leak = False
    delta = await world.round(cursor)
    assert {instance_id(series, NOW + timedelta(days=days)) for days in (14, 21)} < delta.removed
    after = {event.platform_uuid for event in delta.events.values() if event.name == "After"}
    assert after == {instance_id(later, at + timedelta(days=days)) for days in (0, 7, 14)}


async def test_all_day_events_last_from_midnight_to_midnight_in_the_calendars_zone(world: World) -> None:
    tokyo = world.fake.add_calendar("tokyo@group.calendar.google.com", time_zone="Asia/Tokyo")
    single = world.fake.add_event(calendar_id=tokyo, start=date(2026, 11, 24), end=date(2026, 11, 26))
    series = world.fake.add_series(
        calendar_id=tokyo, start=date(2026, 11, 23), end=date(2026, 11, 24), rrule="FREQ=WEEKLY;COUNT=2"
    )
    events = (await world.round(calendar_id=tokyo)).events
    event = events[single]
    assert (event.is_all_day, event.timezone) == (True, "Asia/Tokyo")
    assert event.start_time == datetime(2026, 11, 23, 15, tzinfo=UTC)
    assert event.end_time == datetime(2026, 11, 25, 15, tzinfo=UTC)
    second = events[f"{series}_20261130"]
    assert second.original_start_time == second.start_time == datetime(2026, 11, 29, 15, tzinfo=UTC)


async def test_odd_events_stop_nothing_and_are_logged_by_id_only(world: World, logs: list[Any]) -> None:
    good = add(world.fake)
    odd: dict[str, dict[str, Any]] = {
        "nostart": {"summary": "PRIVATE"},
        "longtitle": {"summary": "PRIVATE" * 300, "start": {"date": "2026-11-24"}},
        "nul": {"summary": "PRIVATE\x00", "start": {"date": "2026-11-24"}},
        "zone": {"summary": "PRIVATE", "start": {"dateTime": "2026-11-24T10:00:00", "timeZone": "PRIVATE/X"}},
        "types": {"summary": {"PRIVATE": 1}, "start": [], "attendees": {"PRIVATE": 2}, "organizer": 7},
    }
    for event_id, fields in odd.items():
        world.fake.put_raw({"id": event_id, **fields})
    world.fake.put_raw({"summary": "no id at all: PRIVATE"})
    world.fake.put_raw({"id": 5, "summary": "PRIVATE"})
    result = await world.round()
    assert set(result.events) == {good, *odd}
    assert result.events["nostart"].name == "PRIVATE"
    assert result.events["zone"].start_time is None
    assert {entry.get("event_id") for entry in logs} == {*odd, None}
    assert {entry["log_level"] for entry in logs} == {"warning"}
    assert "PRIVATE" not in repr(logs)


async def test_an_event_on_which_our_own_code_fails_is_kept_by_id_and_stops_nothing(
    world: World, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**texts: Any) -> None:
        if texts["title"] == "PRIVATE":
            raise ZeroDivisionError("PRIVATE")

    monkeypatch.setattr(google_fields, "find_meeting_link", fail)  # no input is known that makes it fail
    bad, good = add(world.fake, summary="PRIVATE"), add(world.fake)
    result = await world.round()
    assert set(result.events) == {bad, good}
    assert (result.events[bad].name, orjson.loads(result.events[bad].raw)["summary"]) == (None, "PRIVATE")
    assert logs == [
        {
            "event": "google.event_unreadable",
            "event_id": bad,
            "error": "ZeroDivisionError",
            "log_level": "warning",
        }
    ]


async def test_one_lone_surrogate_does_not_hide_a_page(world: World) -> None:
    respond_with(
        world.fake,
        b'{"nextSyncToken": "s", "items": [{"id": "a", "summary": "\\ud800"}, {"id": "b", "start": {"date": "2026-11-24"}}]}',
    )
    assert set((await world.round()).events) == {"a", "b"}


async def test_other_work_goes_on_while_a_large_page_is_parsed(world: World) -> None:
    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    working = asyncio.create_task(other_work())
    items = [{"id": str(number), "start": {"date": "2026-11-24"}} for number in range(1000)]
    events, _ = await world.calendar()._read_items({"items": items})
    working.cancel()
    assert len(events) == 1000
    assert turns >= 10
