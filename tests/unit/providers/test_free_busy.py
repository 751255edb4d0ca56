"""Ranges that are asked for, and times that are cut to them."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from app.providers.base import Unavailable
from app.providers.free_busy import BusyTime, check_time, cut_to, pieces, union, widened

AT = datetime(2026, 11, 24, tzinfo=UTC)
HOUR = timedelta(hours=1)


def span(start: float, end: float) -> tuple[datetime, datetime]:
    return AT + start * HOUR, AT + end * HOUR


def busy(start: float, end: float, status: Any = "busy") -> BusyTime:
    return BusyTime(*span(start, end), status)


def test_union_joins_what_overlaps_or_touches() -> None:
    ranges = [span(5, 6), span(1, 2), span(2, 3), span(1, 1.5), span(9, 9), span(9, 8)]
    assert union(ranges) == [span(1, 3), span(5, 6)]


def test_pieces_cover_the_ranges_in_whole_seconds() -> None:
    start, end = AT + timedelta(microseconds=1), AT + 5 * HOUR + timedelta(microseconds=1)
    last = AT + 5 * HOUR + timedelta(seconds=1)
    assert pieces([(start, end)], 2 * HOUR) == [span(0, 2), span(2, 4), (AT + 4 * HOUR, last)]
    assert pieces([span(0, 4)], 2 * HOUR) == [span(0, 2), span(2, 4)]
    assert pieces([], HOUR) == []


def test_pieces_are_in_utc() -> None:
    tokyo = timezone(9 * HOUR)
    ((start, _),) = pieces([(AT.astimezone(tokyo), (AT + HOUR).astimezone(tokyo))], HOUR)
    assert start.tzinfo is UTC


def test_ranges_reach_to_the_ends_of_time() -> None:
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    start, end = widened((first, last), HOUR)
    assert (start, end.replace(microsecond=0)) == (first, last.replace(microsecond=0))
    found = pieces([(first, last)], timedelta(days=1000 * 365))
    assert found[0][0] == first
    assert found[-1][1] == last.replace(microsecond=0)


def test_cut_to_joins_each_status_alone() -> None:
    times = [busy(0, 2), busy(1, 3), busy(2, 4, "tentative"), busy(6, 9), busy(20, 21)]
    assert cut_to(times, [span(0.5, 7), span(8, 10)]) == [
        busy(0.5, 3),
        busy(2, 4, "tentative"),
        busy(6, 7),
        busy(8, 9),
    ]
    assert cut_to(times, []) == []
    assert cut_to([busy(0, 2)], [span(2, 3)]) == []


def test_a_time_without_a_length_is_none() -> None:
    assert check_time(busy(1, 1), span(0, 24), "Google") is None


@pytest.mark.parametrize("time", [busy(2, 1), busy(-100, -60), busy(80, 90)])
def test_impossible_times(time: BusyTime) -> None:
    with pytest.raises(Unavailable):
        check_time(time, span(0, 24), "Google")


def test_times_that_surround_the_range_are_possible() -> None:
    assert check_time(busy(-1000, 1000), span(0, 24), "Google") == busy(-1000, 1000)
    far = BusyTime(
        datetime.min.replace(tzinfo=timezone(14 * HOUR)),
        datetime.max.replace(tzinfo=timezone(-14 * HOUR)),
        "busy",
    )
    with pytest.raises(Unavailable):
        check_time(far, span(0, 24), "Google")
