"""The diff: which rows a round of changes writes, and as what."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from app.events.data import RemoteAttendee, RemoteEvent, Window
from app.events.derived import derived_of
from app.events.diff import Difference, Refresh, StoredEvent, content_hash, diff_events

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
WINDOW = Window(NOW - timedelta(days=1), NOW + timedelta(days=28))


def event(*, starts_in_days: float = 1, hours: float = 1, **fields) -> RemoteEvent:
    start = NOW + timedelta(days=starts_in_days)
    values = {"start_time": start, "end_time": start + timedelta(hours=hours), "name": "Weekly", "raw": "{}"}
    return RemoteEvent(platform_uuid="e1", **{**values, **fields})


def stored(of: RemoteEvent, *, is_deleted: bool = False) -> StoredEvent:
    return StoredEvent("evt_1", of.platform_uuid, content_hash(of), is_deleted, derived_of(of))


def changes(new: RemoteEvent, old: StoredEvent | None) -> list[tuple[str, bool]]:
    return [(write.change, write.is_deleted) for write in difference(new, old).writes]


def difference(new: RemoteEvent, old: StoredEvent | None) -> Difference:
    return diff_events(
        [new], {new.platform_uuid: content_hash(new)}, {old.platform_uuid: old} if old else {}, WINDOW
    )


def test_an_unknown_event_in_the_window_is_created() -> None:
    assert changes(event(), None) == [("created", False)]


def test_an_unknown_event_without_a_start_is_kept() -> None:
    assert changes(event(start_time=None, end_time=None), None) == [("created", False)]


@pytest.mark.parametrize(
    "new",
    [event(starts_in_days=29), event(starts_in_days=-3), event(is_cancelled=True)],
    ids=["ahead of the window", "behind the window", "cancelled"],
)
def test_an_unknown_event_that_should_stay_hidden_is_left_out(new: RemoteEvent) -> None:
    assert changes(new, None) == []


def test_an_unchanged_event_is_not_written() -> None:
    assert changes(event(), stored(event())) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "Monthly"},
        {"raw": '{"etag":"2"}'},
        {"attendees": (RemoteAttendee("a@example.com", None),)},
        {"meeting_url": "https://zoom.us/j/123456789"},
        {"response_status": "declined"},
        {"is_all_day": True},
        {"start_time": NOW + timedelta(days=2), "end_time": NOW + timedelta(days=2, hours=1)},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_change_of_any_visible_field_is_written(fields: dict) -> None:
    assert changes(event(**fields), stored(event())) == [("updated", False)]


def test_a_cancelled_event_is_deleted_once() -> None:
    cancelled = event(is_cancelled=True)
    assert changes(cancelled, stored(event())) == [("deleted", True)]
    assert changes(cancelled, stored(cancelled, is_deleted=True)) == []


def test_a_deleted_event_that_comes_back_is_created() -> None:
    assert changes(event(), stored(event(), is_deleted=True)) == [("created", False)]


@pytest.mark.parametrize("days", [40, -5], ids=["ahead", "into the past"])
def test_an_event_that_is_moved_out_of_the_window_goes_on_with_its_new_time(days: float) -> None:
    moved = event(starts_in_days=days)
    writes = difference(moved, stored(event())).writes
    assert [(write.change, write.is_deleted, write.event) for write in writes] == [("updated", False, moved)]


def test_an_event_that_lives_beyond_the_window_is_no_deleted_one() -> None:
    distant = event(starts_in_days=40)
    assert changes(distant, stored(distant, is_deleted=True)) == [("created", False)]
    assert changes(event(), stored(distant)) == [("updated", False)]


def test_an_edit_of_a_past_event_does_not_delete_it() -> None:
    past = event(starts_in_days=-10)
    assert changes(replace(past, name="Edited"), stored(past)) == [("updated", False)]


def test_an_event_of_no_length_counts_by_its_start() -> None:
    assert changes(event(starts_in_days=-1, hours=0), None) == [("created", False)]
    assert changes(event(starts_in_days=-1.5, hours=0), None) == []


NOTHING_STORED = (None, None, None, None)
OTHER_DERIVED = [
    {"busy_status": "free"},
    {"visibility": "private"},
    {"event_type": "focus_time"},
    {"etag": '"2"'},
]


@pytest.mark.parametrize("fields", OTHER_DERIVED, ids=lambda fields: next(iter(fields)))
@pytest.mark.parametrize("is_deleted", [False, True])
def test_derived_fields_that_are_not_stored_are_written_and_no_change(fields: dict, is_deleted: bool) -> None:
    new = event(**fields, is_cancelled=is_deleted)
    for old in (stored(event(), is_deleted=is_deleted), stored(new, is_deleted=is_deleted)):
        missing = replace(old, derived=NOTHING_STORED)
        assert difference(new, missing) == Difference(
            [], [Refresh(new, "evt_1", new.visibility != "default")]
        )
    stale = stored(event(), is_deleted=is_deleted)
    assert difference(new, stale) == Difference([], [Refresh(new, "evt_1", new.visibility != "default")])
    assert difference(new, stored(new, is_deleted=is_deleted)) == Difference([], [])


@pytest.mark.parametrize("fields", OTHER_DERIVED[:2], ids=lambda fields: next(iter(fields)))
def test_a_change_that_the_cut_raw_does_not_show_is_a_change(fields: dict) -> None:
    new = event(**fields, is_raw_cut=True)
    old = stored(event(is_raw_cut=True))
    assert changes(new, old) == [("updated", False)]
    assert changes(event(is_raw_cut=True), stored(new)) == [("updated", False)]
    assert difference(new, replace(old, derived=NOTHING_STORED)) == Difference(
        [], [Refresh(new, "evt_1", new.visibility != "default")]
    )
    assert changes(new, stored(new)) == []


def test_a_row_that_lacks_the_derived_fields_and_changed_is_written_once() -> None:
    old = replace(stored(event()), derived=NOTHING_STORED)
    found = difference(event(name="Monthly", busy_status="free"), old)
    assert [write.change for write in found.writes] == ["updated"]
    assert not found.refreshes
