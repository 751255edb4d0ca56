"""Expanding a series from its values, compared with reading the same series from a feed."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from app.events.data import Window
from app.ical.feed import Feed
from app.ical.moments import Moment
from app.ical.recurrence import Rule
from app.ical.series import MAX_OCCURRENCES, Occurrence, expand_series, find_next_occurrence
from app.ical.timezones import Zone

ZONES = ["Europe/Paris", "America/New_York", "Asia/Kolkata", "UTC", "America/Santiago", "Africa/Cairo"]
RULES = [
    "FREQ=DAILY",
    "FREQ=DAILY;COUNT=9",
    "FREQ=DAILY;INTERVAL=3;UNTIL=20261111T083000Z",
    "FREQ=DAILY;UNTIL=20261030",
    "FREQ=WEEKLY;BYDAY=MO,TU,SU",
    "FREQ=WEEKLY;INTERVAL=2;BYDAY=SU;WKST=SU;UNTIL=20270404T003000Z",
    "FREQ=MONTHLY;BYDAY=-1SU",
    "FREQ=MONTHLY;BYMONTHDAY=25,31",
    "FREQ=YEARLY;BYMONTH=3,10;BYDAY=-1SU",
    "FREQ=YEARLY;COUNT=3",
]


def moment(wall: datetime, zone: str, *, is_date: bool = False) -> Moment:
    return Moment(wall, Zone(ZoneInfo(zone), zone), is_date=is_date)


def read_from_feed(
    start: Moment, length: timedelta, rule: str, window: Window, excluded: list[datetime]
) -> list[Occurrence]:
    zone = start.zone.name

    def written(wall: datetime) -> str:
        return f";VALUE=DATE:{wall:%Y%m%d}" if start.is_date else f";TZID={zone}:{wall:%Y%m%dT%H%M%S}"

    lines = [
        *("BEGIN:VCALENDAR", "VERSION:2.0", f"X-WR-TIMEZONE:{zone}", "BEGIN:VEVENT", "UID:series"),
        f"DTSTART{written(start.wall)}",
        f"DTEND{written(start.wall + length)}",
        f"RRULE:{rule}",
        *(f"EXDATE{written(wall)}" for wall in excluded),
        *("END:VEVENT", "END:VCALENDAR", ""),
    ]
    found = []
    for instance in Feed("\r\n".join(lines).encode()).select(window):
        assert instance.start is not None
        assert instance.end is not None
        assert instance.start == instance.original_start
        key = instance.id.removeprefix("series_")
        found.append(Occurrence(key, instance.start, instance.end))
    return found


@settings(max_examples=150)
@given(
    rule=st.sampled_from(RULES),
    zone=st.sampled_from(ZONES),
    wall=st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 1)).map(
        lambda at: at.replace(second=0, microsecond=0)
    ),
    minutes=st.integers(0, 3000),
    is_date=st.booleans(),
    days_before=st.integers(-30, 300),
    days=st.integers(1, 400),
    left_out=st.sets(st.integers(0, 40), max_size=5),
)
@example("FREQ=DAILY", "Europe/Paris", datetime(2026, 10, 20, 2, 30), 60, False, 0, 30, {5})
@example("FREQ=DAILY", "Europe/Paris", datetime(2026, 3, 20, 2, 30), 60, False, 0, 30, {9})
@example("FREQ=DAILY", "America/Santiago", datetime(2026, 9, 1), 1440, True, 0, 30, {5})
def test_an_expanded_series_is_the_one_that_a_feed_has(
    rule, zone, wall, minutes, is_date, days_before, days, left_out
):
    start = moment(wall.replace(hour=0, minute=0) if is_date else wall, zone, is_date=is_date)
    length = timedelta(days=max(minutes // 1440, 1)) if is_date else timedelta(minutes=minutes)
    begin = wall.replace(tzinfo=UTC) + timedelta(days=days_before)
    window = Window(begin, begin + timedelta(days=days))
    walls = [start.wall + timedelta(days=number) for number in left_out]
    excluded = {start.at(one).recurrence_key for one in walls}
    assert expand_series(start, length, Rule(rule), window, excluded=excluded) == read_from_feed(
        start, length, rule, window, walls
    )


@settings(max_examples=60)
@given(
    rule=st.sampled_from(["FREQ=DAILY;INTERVAL=40", "FREQ=MONTHLY;BYDAY=-1SU", "FREQ=DAILY;UNTIL=20270101"]),
    zone=st.sampled_from(ZONES),
    days=st.integers(-40, 300),
)
def test_the_next_occurrence_is_the_first_one_of_the_rest(rule, zone, days):
    start = moment(datetime(2026, 9, 27, 2, 30), zone)  # the last Sunday of a month
    at = start.utc + timedelta(days=days)
    last = datetime(2199, 12, 31)
    rest = expand_series(start, timedelta(0), Rule(rule), Window(at, at + timedelta(days=100)))
    assert find_next_occurrence(start, timedelta(0), Rule(rule), at, last=last) == next(iter(rest), None)
    later = find_next_occurrence(
        start, timedelta(0), Rule(rule), at, last=last, excluded={one.recurrence_key for one in rest[:1]}
    )
    if len(rest) > 1:
        assert later == rest[1]


def test_a_long_series_is_cut():
    start = moment(datetime(2026, 1, 1), "UTC")
    window = Window(datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC))
    assert len(expand_series(start, timedelta(hours=1), Rule("FREQ=DAILY"), window)) == MAX_OCCURRENCES


@pytest.mark.parametrize("rule", ["FREQ=SECONDLY;BYDAY=MO", "FREQ=DAILY;BYDAY=XX"])
def test_a_rule_that_cannot_be_followed_leaves_the_start(rule):
    start = moment(datetime(2026, 1, 1), "UTC")
    window = Window(start.utc, start.utc + timedelta(days=30))
    with capture_logs() as logs:
        found = expand_series(start, timedelta(hours=1), Rule(rule), window)
        assert (
            find_next_occurrence(start, timedelta(0), Rule(rule), start.utc, last=datetime(2199, 1, 1))
            is None
        )
    assert [one.start for one in found] == [start.utc]
    assert len(logs) == 2


@pytest.mark.parametrize(
    ("until", "last_day"),
    [
        ("20260103", 3),
        ("20260103T080000Z", 3),
        ("20260103T075959Z", 2),
        ("20260103T090000", 3),
        ("20260103T085959", 2),
    ],
)
def test_until_is_inclusive(until, last_day):
    start = moment(datetime(2026, 1, 1, 9), "Europe/Paris")
    window = Window(start.utc, start.utc + timedelta(days=30))
    found = expand_series(start, timedelta(hours=1), Rule(f"FREQ=DAILY;UNTIL={until}"), window)
    assert [one.start.day for one in found] == list(range(1, last_day + 1))
