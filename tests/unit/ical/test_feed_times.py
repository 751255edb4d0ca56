"""Times and time zones of a feed."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from app.events.data import Window
from app.ical.components import split
from app.ical.timezones import ZoneTable, named_zone
from tests.unit.ical.feeds import FILES, calendar, read, read_file, starts, utc, vevent


def test_floating_times_and_dates_are_in_the_calendars_zone():
    events = read_file("floating_times.ics")
    assert starts(events) == {"float": utc(11, 24, 14), "utc": utc(11, 24, 9), "day": utc(11, 24, 5)}
    assert {event.timezone for event in events.values()} == {"America/New_York"}


def test_floating_times_and_dates_of_a_calendar_without_a_zone_are_in_utc():
    events = read_file("floating_times_without_zone.ics")
    assert starts(events) == {"float": utc(11, 24, 9), "day": utc(11, 24)}
    assert {event.timezone for event in events.values()} == {"UTC"}


def test_all_day_events_end_at_midnight_of_the_calendars_zone():
    events = read_file("all_day.ics")
    assert {name: event.end_time for name, event in events.items()} == {
        "one": utc(11, 24, 23),
        "three": utc(11, 26, 23),
        "noend": utc(11, 24, 23),
        "sameend": utc(11, 24, 23),
        "duration": utc(11, 25, 23),
        "novalue": utc(11, 24, 23),
        "series_20261201": utc(12, 1, 23),
    }
    assert all(event.is_all_day for event in events.values())
    assert events["series_20261201"].original_start_time == utc(11, 30, 23)


def test_the_end_comes_from_dtend_or_duration_and_is_never_before_the_start():
    events = read_file("lengths.ics")
    assert {
        name: event.end_time - event.start_time
        for name, event in events.items()
        if event.end_time and event.start_time and not event.recurring_event_id
    } == {
        "duration": timedelta(hours=1, minutes=30),
        "noend": timedelta(0),
        "backwards": timedelta(0),
        "negative": timedelta(0),
        "badend": timedelta(0),
        "flight": timedelta(hours=8),
        "dateend": timedelta(hours=15),
        "absurd": timedelta(0),
    }


def test_an_instance_that_reaches_into_the_window_is_in_it():
    events = read_file("lengths.ics")
    nights = {name for name in events if name.startswith("night_")}
    assert nights == {"night_20261118T210000Z", "night_20261119T210000Z", "night_20261120T210000Z"}


def test_a_meeting_stays_at_its_hour_when_the_clocks_change():
    body = calendar(
        vevent(
            "a",
            "DTSTART;TZID=Europe/Paris:20261020T220000",
            "DTEND;TZID=Europe/Paris:20261021T060000",
            "RRULE:FREQ=DAILY",
        ),
        vevent("b", "DTSTART;TZID=Europe/Paris:20261020T220000", "DURATION:PT8H", "RRULE:FREQ=DAILY"),
    )
    events = {
        event.platform_uuid: event for event in read(body, window=Window(utc(10, 24, 12), utc(10, 26, 12)))
    }
    assert {name: (event.start_time, event.end_time) for name, event in events.items()} == {
        "a_20261024T200000Z": (
            utc(10, 24, 20),
            utc(10, 25, 5),
        ),  # from ten to six is nine hours in that night
        "a_20261025T210000Z": (utc(10, 25, 21), utc(10, 26, 5)),
        "b_20261024T200000Z": (utc(10, 24, 20), utc(10, 25, 4)),
        "b_20261025T210000Z": (utc(10, 25, 21), utc(10, 26, 5)),
    }


def test_an_unknown_zone_counts_as_the_calendars_and_is_logged():
    with capture_logs() as logs:
        events = read_file("unknown_tzid.ics")
    assert starts(events) == {
        "mars": utc(11, 24, 8),
        "offset": utc(11, 24, 7),
        "case": utc(11, 24, 8),
        "tzone": utc(11, 24, 9),
    }
    assert events["offset"].timezone is None
    assert events["case"].timezone == "Europe/Berlin"
    assert [entry["unknown_zones"] for entry in logs] == [["Mars/Olympus Mons"]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Europe/Paris", "Europe/Paris"),
        ('"Europe/Paris"', "Europe/Paris"),
        ("/mozilla.org/20050126_1/America/Argentina/Buenos_Aires", "America/Argentina/Buenos_Aires"),
        ("W. Europe Standard Time", "Europe/Berlin"),
        ("alberta standard time", "America/Edmonton"),
        ("tzone://Microsoft/Utc", "UTC"),
        ("Z", "UTC"),
        ("Customized Time Zone", None),
        ("localtime", None),
        ("../../../etc/passwd", None),
        ("", None),
        ("x" * 100_000, None),
    ],
)
def test_zones_are_known_by_the_names_that_feeds_use(name, expected):
    zone = named_zone(name)
    assert (zone.name if zone else None) == expected


@pytest.fixture(scope="module")
def defined_zone():
    definition = (FILES / "google_export.ics").read_bytes().replace(b"Europe/Paris", b"Home")
    zone = ZoneTable(
        part for part in split(b"\n".join(definition.splitlines())) if part.name == "VTIMEZONE"
    ).find("Home")
    assert zone is not None
    assert zone.name is None
    return zone.tzinfo


@given(wall=st.datetimes(datetime(1997, 1, 1), datetime(2037, 1, 1)))
@example(wall=datetime(2026, 3, 29, 2, 30))  # does not exist
@example(wall=datetime(2026, 10, 25, 2, 30))  # exists twice
@example(wall=datetime(2026, 10, 25, 3, 0))
def test_a_zone_that_the_feed_defines_has_the_offsets_of_the_real_one(defined_zone, wall):
    assert defined_zone.utcoffset(wall) == ZoneInfo("Europe/Paris").utcoffset(wall)


@pytest.mark.parametrize(
    "observance",
    [
        "DTSTART:16010101T000000\nTZOFFSETFROM:+0300\nTZOFFSETTO:+0300",
        "DTSTART:20000229T000000\nTZOFFSETTO:+0300\nRRULE:FREQ=YEARLY",
        "DTSTART:16000229T000000\nTZOFFSETFROM:+0300\nTZOFFSETTO:+0300\nRRULE:FREQ=SECONDLY",
        "DTSTART:20000101T000000\nTZOFFSETFROM:+0300\nTZOFFSETTO:+030000\nRDATE:20010101T000000,nonsense",
        "DTSTART:20000101T000000\nTZOFFSETFROM:+0300\nTZOFFSETTO:+0300\nRRULE:FREQ=YEARLY;UNTIL=19990101T000000Z",
    ],
)
def test_strange_definitions_of_a_zone_are_understood(observance):
    text = f"BEGIN:VCALENDAR\nBEGIN:VTIMEZONE\nTZID:X\nBEGIN:STANDARD\n{observance}\nEND:STANDARD\nEND:VTIMEZONE\nEND:VCALENDAR"
    zone = ZoneTable(split(text.encode())).find("X")
    assert zone is not None
    assert zone.tzinfo.utcoffset(datetime(2026, 11, 24)) == timedelta(hours=3)


@pytest.mark.parametrize("offset", ["", "TZOFFSETTO:+9900", "TZOFFSETTO:east"])
def test_a_definition_without_offsets_is_no_zone(offset):
    text = f"BEGIN:VCALENDAR\nBEGIN:VTIMEZONE\nTZID:X\nBEGIN:STANDARD\nDTSTART:20000101T000000\n{offset}\nEND:STANDARD\nEND:VTIMEZONE\nEND:VCALENDAR"
    assert ZoneTable(split(text.encode())).find("X") is None
