"""Events that leave the window: followed when they move, deleted when the provider has deleted them.

See docs/reference/http-api.md, "Deleted and moved events".
"""

from typing import Any

import pytest

from app.core.clock import isoformat
from tests.fakes.google_store import instance_id
from tests.fakes.microsoft import FakeMicrosoft
from tests.fakes.microsoft_store import occurrence_id
from tests.flows.conftest import GoogleCalendarUnderTest
from tests.flows.sync.stories import DAY, HOUR, Story, in_days


@pytest.mark.parametrize("days", [45, -5], ids=["ahead", "into the past"])
async def test_an_event_that_moves_beyond_the_window_is_followed(story: Story, days: float) -> None:
    moved, kept = story.add(in_days(2)), story.add(in_days(2))
    await story.sync()
    before = (await story.events())[moved]
    bot = await story.add_bot(moved)
    to, back = in_days(days), in_days(3)
    story.move(moved, to)
    await story.sync()
    after = (await story.events())[moved]
    assert (after.id, after.is_deleted) == (before.id, False)
    assert (after.start_time, after.end_time) == (to, to + HOUR)
    assert after.updated_at > before.updated_at
    # A meeting that is over cannot be joined.
    assert await story.join_at(bot) == (isoformat(to) if days > 0 else None)
    assert (await story.events())[kept].updated_at < after.updated_at
    # Its state stays the same, and no more requests are made for it.
    await story.sync()
    assert (await story.events())[moved].updated_at == after.updated_at
    # It comes back as the same event.
    story.move(moved, back)
    await story.sync()
    assert (await story.events())[moved].id == before.id
    assert await story.join_at(bot) == (isoformat(back) if days > 0 else None)
    assert (await story.row()).held_back_ids is None


async def test_a_deleted_event_is_deleted_at_once(story: Story) -> None:
    deleted, kept = story.add(in_days(2)), story.add(in_days(3))
    await story.sync()
    bot = await story.add_bot(deleted)
    story.delete(deleted)
    await story.sync()
    assert await story.live() == {kept}
    assert await story.join_at(bot) is None


async def test_an_instance_moves_beyond_the_window(story: Story) -> None:
    start = in_days(1)
    series = story.add_series(start, "FREQ=DAILY;COUNT=5")
    await story.sync()
    moved = story.instance(series, start + 2 * DAY)
    assert len(await story.live()) == 5
    to = in_days(60)
    story.move(moved, to)
    await story.sync()
    event = (await story.events())[moved]
    assert (event.is_deleted, event.start_time) == (False, to)
    assert (event.recurring_event_id, event.original_start_time) == (series, start + 2 * DAY)
    assert len(await story.live()) == 5


async def test_the_instances_that_a_shortened_series_loses_are_deleted(story: Story) -> None:
    start = in_days(1)
    series = story.add_series(start, "FREQ=DAILY;COUNT=7")
    await story.sync()
    story.change_rule(series, "FREQ=DAILY;COUNT=4")
    await story.sync()
    assert await story.live() == {story.instance(series, start + n * DAY) for n in range(4)}


async def test_what_is_deleted_beyond_the_window_is_found_out_when_the_window_gets_there(
    story: Story,
) -> None:
    moved = story.add(in_days(2))
    for days in (3, 4, 5):
        story.add(in_days(days))
    await story.sync()
    story.move(moved, in_days(45))
    await story.sync()
    assert moved in await story.live()
    story.delete(moved)
    await story.sync()
    story.engine._settings.calendar_sync_window_future_days = 60
    await story.sync()
    assert moved not in await story.live()


async def test_a_single_event_that_is_made_a_series_is_no_event_any_more(
    google: GoogleCalendarUnderTest, google_calendar: Story
) -> None:
    event = google_calendar.add(in_days(2))
    await google_calendar.sync()
    del google.fake.calendar().items[event]
    start = in_days(3)
    google.fake.add_series(start=start, end=start + HOUR, rrule="FREQ=DAILY;COUNT=4", series_id=event)
    await google_calendar.sync()
    assert await google_calendar.live() == {instance_id(event, start + n * DAY) for n in range(4)}


async def test_a_single_event_that_is_made_a_series_is_no_event_any_more_at_microsoft(
    fake_microsoft: FakeMicrosoft, microsoft_calendar: Story
) -> None:
    event = microsoft_calendar.add(in_days(2))
    await microsoft_calendar.sync()
    del fake_microsoft.calendar().items[event]
    start = in_days(3)
    fake_microsoft.add_series(start=start, end=start + HOUR, rrule="FREQ=DAILY;COUNT=4", series_id=event)
    await microsoft_calendar.sync()
    assert await microsoft_calendar.live() == {occurrence_id(event, start + n * DAY) for n in range(4)}


# --- what a deleted event shows -------------------------------------------------------------------------------


@pytest.mark.parametrize(("style", "status"), [("full", "cancelled"), ("bare", "confirmed")])
async def test_a_cancelled_events_raw_is_the_cancelled_one_where_there_is_one(
    google: GoogleCalendarUnderTest, style: Any, status: str
) -> None:
    google.fake.tombstone_style = style
    event = google.add("called off")
    await google.sync()
    google.fake.delete_event(event)
    await google.sync()
    row = (await google.events())[event]
    assert (row.is_deleted, row.name, row.raw["status"]) == (True, "called off", status)
    assert row.raw["summary"] == "called off"
    assert row.start_time is not None


async def test_a_cancelled_event_found_by_a_single_read_shows_it(
    google: GoogleCalendarUnderTest, google_calendar: Story
) -> None:
    event = google_calendar.add(in_days(2))
    await google_calendar.sync()
    google_calendar.delete(event)
    await google_calendar.sync()
    row = (await google_calendar.events())[event]
    assert (row.is_deleted, row.raw["status"]) == (True, "cancelled")
    # It is the old one again when it comes back.
    google.fake.update_event(event, status="confirmed")
    await google_calendar.sync()
    row = (await google_calendar.events())[event]
    assert (row.is_deleted, row.raw["status"]) == (False, "confirmed")
