"""Ids and digests of the events of a feed, and when they change."""

import random
import re

import pytest
from structlog.testing import capture_logs

from app.ical.feed import Feed
from tests.unit.ical.feeds import FILES, GOOD_FILES, calendar, read, read_file, utc, vevent


@pytest.mark.parametrize("name", [name for name in GOOD_FILES if name != "absurd_rules.ics"])
def test_events_are_the_same_in_whatever_order_the_feed_lists_them(name):
    body = (FILES / name).read_bytes()
    text = body.replace(b"\r\n", b"\n")
    events = re.findall(rb"^BEGIN:VEVENT\n.*?^END:VEVENT\n", text, re.DOTALL | re.MULTILINE)
    frame = re.sub(rb"^BEGIN:VEVENT\n.*?^END:VEVENT\n", b"", text, flags=re.DOTALL | re.MULTILINE)
    random.Random(7).shuffle(events)
    shuffled = frame.replace(b"END:VCALENDAR", b"".join(reversed(events)) + b"END:VCALENDAR")
    by_id = {event.platform_uuid: event for event in read(shuffled)}
    assert by_id == {event.platform_uuid: event for event in read(body)}


def test_editing_the_master_or_deleting_one_instance_leaves_the_others_as_they_are():
    master = ["DTSTART:20261123T090000Z", "DTEND:20261123T100000Z", "RRULE:FREQ=DAILY;COUNT=3", "SUMMARY:Old"]
    before = {event.platform_uuid: event for event in read(calendar(vevent("a", *master)))}
    deleted = {
        event.platform_uuid: event
        for event in read(calendar(vevent("a", *master, "EXDATE:20261124T090000Z")))
    }
    renamed = {event.platform_uuid for event in read(calendar(vevent("a", *master[:3], "SUMMARY:New")))}
    assert renamed == set(before) == {f"a_202611{day}T090000Z" for day in (23, 24, 25)}
    assert deleted == {name: event for name, event in before.items() if name != "a_20261124T090000Z"}


def test_the_time_of_writing_changes_neither_the_events_nor_the_digest():
    body = (FILES / "google_export.ics").read_bytes()
    later = body.replace(b"DTSTAMP:20261120T080000Z", b"DTSTAMP:20261121T090909Z")
    assert later != body
    assert Feed(later).digest == Feed(body).digest
    assert read(later) == read(body)


def test_any_other_change_changes_the_digest():
    body = (FILES / "google_export.ics").read_bytes()
    assert Feed(body.replace(b"Kick-off", b"Kick-out")).digest != Feed(body).digest


def test_events_without_uid_have_stable_identities():
    with capture_logs() as logs:
        events = read_file("no_uid.ics")
    assert sorted(event.name or "" for event in events.values()) == ["Another", "Nameless", "Twice", "Twice"]
    assert all(name.startswith("no-uid-") for name in events)
    assert {event.ical_uid for event in events.values()} == {None}
    assert set(events) == set(read_file("no_uid.ics"))
    assert logs[0]["event"] == "ics.event_without_uid"


def test_of_events_with_the_same_uid_the_newest_counts():
    events = read_file("duplicate_uids.ics")
    assert {name: (event.start_time, event.name) for name, event in events.items()} == {
        "moved": (utc(11, 25, 9), "Newest"),
        "edited": (utc(11, 24, 9), "A later edit"),
        "timetable_20261124T090000Z": (utc(11, 24, 9), "Lesson"),
        "timetable_20261126T090000Z": (utc(11, 26, 9), "Lesson"),
    }


def test_long_uids_are_hashed_and_stay_distinct():
    long = "x" * 2_000
    body = calendar(
        vevent(long + "1", "DTSTART:20261124T090000Z"),
        vevent(long + "2", "DTSTART:20261124T090000Z", "RRULE:FREQ=DAILY;COUNT=2"),
    )
    events = read(body)
    assert len({event.platform_uuid for event in events}) == 3
    assert all(event.platform_uuid.startswith("sha256-") for event in events)
    assert all(len(event.platform_uuid) < 100 for event in events)
