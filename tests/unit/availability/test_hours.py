"""Open hours as spans of time, where clocks change and over midnight."""

from datetime import UTC, datetime

import pytest

from app.availability.hours import Hours, open_spans
from app.availability.spans import datetime_of, instant_of

_DAILY = frozenset(range(7))


def _spans(hours: list[Hours], first: str, last: str) -> list[str]:
    whole = tuple(instant_of(datetime.fromisoformat(f"{at}+00:00")) for at in (first, last))
    return [
        " ".join(f"{datetime_of(at).astimezone(UTC):%dT%H:%M}" for at in span)
        for span in open_spans(hours, (whole[0], whole[1]))
    ]


@pytest.mark.parametrize(
    ("zone", "start", "end", "day", "expected"),
    [
        # 02:00 to 03:00 is skipped: the hours begin when it is 03:00.
        ("Europe/Paris", 150, 240, "2027-03-28", ["28T01:00 28T02:00"]),
        ("Europe/Paris", 135, 165, "2027-03-28", []),
        # 02:00 to 03:00 comes twice: the first one counts, for the start and for the end.
        ("Europe/Paris", 150, 240, "2027-10-31", ["31T00:30 31T03:00"]),
        ("Europe/Paris", 60, 150, "2027-10-31", ["31T00:00 31T00:30"]),
        # Half an hour is skipped, from 02:00 to 02:30.
        ("Australia/Lord_Howe", 135, 180, "2027-10-02", ["02T15:30 02T16:00"]),
        # Midnight is skipped: it is 01:00 then.
        ("Africa/Cairo", 0, 120, "2027-04-29", ["29T22:00 29T23:00"]),
        ("Asia/Kathmandu", 540, 600, "2027-06-01", ["01T03:15 01T04:15"]),
    ],
)
def test_a_clock_that_changes(zone: str, start: int, end: int, day: str, expected: list[str]) -> None:
    found = _spans([Hours(_DAILY, start, end, zone)], f"{day}T00:00", f"{day}T23:59")
    assert [span for span in found if span in expected or not expected] == expected


def test_hours_over_midnight_belong_to_the_day_on_which_they_start() -> None:
    monday = Hours(frozenset({0}), 22 * 60, 6 * 60, "UTC")
    assert _spans([monday], "2027-03-01T00:00", "2027-03-04T00:00") == ["01T22:00 02T06:00"]
    assert _spans([monday], "2027-03-02T03:00", "2027-03-04T00:00") == ["02T03:00 02T06:00"]


def test_hours_that_touch_are_one_span() -> None:
    hours = [Hours(_DAILY, 0, 720, "UTC"), Hours(_DAILY, 720, 1440, "UTC"), Hours(_DAILY, 60, 90, "UTC")]
    assert _spans(hours, "2027-03-01T00:00", "2027-03-03T10:00") == ["01T00:00 03T10:00"]
