"""Busy times as a provider states them, and the ranges that it is asked for.

A provider is asked in pieces, because it limits the length of one request. What it returns is cut to what was asked.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from app.providers.base import Unavailable

Range = tuple[datetime, datetime]
BusyStatus = Literal["busy", "tentative", "out_of_office"]

# Beyond the range that was asked for by more than this, a response is for another question. All-day events may
# begin and end in another zone.
_SLACK = timedelta(days=2)
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC, microsecond=0)


@dataclass(frozen=True, slots=True)
class BusyTime:
    """A time at which a calendar is busy. Both times are in UTC; `end` is after `start`."""

    start: datetime
    end: datetime
    status: BusyStatus


def union(ranges: Iterable[Range]) -> list[Range]:
    """The ranges in order, with those that overlap or touch joined. Empty and reversed ones are dropped."""
    joined: list[Range] = []
    for start, end in sorted(one for one in ranges if one[0] < one[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def pieces(ranges: Iterable[Range], longest: timedelta) -> list[Range]:
    """The union of the ranges, in whole seconds, in pieces of at most `longest`."""
    cut: list[Range] = []
    for start, end in union((_floor(start), _ceil(end)) for start, end in ranges):
        at = start
        while end - at > longest:
            cut.append((at, at + longest))
            at += longest
        cut.append((at, end))
    return cut


def widened(one: Range, by: timedelta) -> Range:
    """The range, longer by this at both ends, as far as times reach."""
    start, end = one
    return (
        start - by if start - _FIRST > by else _FIRST,
        end + by if _LAST - end > by else _LAST,
    )


def overlap(one: Range, other: Range) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def cut_to(times: Iterable[BusyTime], ranges: Sequence[Range]) -> list[BusyTime]:
    """The times within `ranges`, in order; those of one status that overlap or touch are joined."""
    by_status: dict[BusyStatus, list[Range]] = {}
    for time in times:
        by_status.setdefault(time.status, []).append((time.start, time.end))
    wanted = union(ranges)
    found = [
        BusyTime(max(start, first), min(end, last), status)
        for status, spans in by_status.items()
        for start, end in union(spans)
        for first, last in wanted
        if overlap((start, end), (first, last))
    ]
    return sorted(found, key=lambda time: (time.start, time.end, time.status))


def check_time(time: BusyTime, asked: Range, provider: str) -> BusyTime | None:
    """The time in UTC; None for one without a length.

    Raises Unavailable (`broken_answer`) for one that ends before it starts or lies far outside of what was asked.
    """
    if time.start == time.end:
        return None
    first, last = widened(asked, _SLACK)
    if time.start > time.end or time.end < first or time.start > last:
        raise Unavailable(f"{provider}'s response has impossible times.", code="broken_answer")
    try:
        return replace(time, start=time.start.astimezone(UTC), end=time.end.astimezone(UTC))
    except OverflowError:
        raise Unavailable(f"{provider}'s response has impossible times.", code="broken_answer") from None


def _floor(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(microsecond=0)


def _ceil(at: datetime) -> datetime:
    floor = _floor(at)
    if floor == at or floor >= _LAST:
        return floor
    return floor + timedelta(seconds=1)
