"""Open hours: wall-clock times of some days of the week, and the spans of time that they are.

A time that the clock skips is the moment after the skip. A time that comes twice is the first of the two.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from app.availability.spans import DAY, MINUTE, Instant, Span, cut, datetime_of, instant_of, union

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_PER_DAY = 24 * 60

_SECOND = timedelta(seconds=1)
_MICROSECOND = timedelta(microseconds=1)
_FIRST_DAY = date(2000, 1, 1)


@dataclass(frozen=True, slots=True)
class Hours:
    """Hours that begin on each of some days of the week.

    `start`, `end`: minutes after midnight. Hours that end at or before their start end on the next day.
    """

    weekdays: frozenset[int]
    start: int
    end: int
    timezone: str


def open_spans(hours: Iterable[Hours], within: Span) -> list[Span]:
    """Return the open spans within another one, sorted. Hours that overlap or touch are one span."""
    return cut(union(span for entry in hours for span in _each_day(entry, within)), within)


def _each_day(hours: Hours, within: Span) -> Iterator[Span]:
    zone = ZoneInfo(hours.timezone)
    # Hours of the day before may still be open. A zone's date differs from UTC's by one day at most.
    day = datetime_of(within[0]).date() - timedelta(days=2)
    last = datetime_of(within[1]).date() + timedelta(days=1)
    length = hours.end - hours.start
    if length <= 0:
        length += MINUTES_PER_DAY
    while day <= last:
        if day.weekday() in hours.weekdays:
            start = _instant(day, hours.start, zone)
            end = _instant(day, hours.start + length, zone)
            if start < end:
                yield start, end
        day += timedelta(days=1)


def _instant(day: date, minutes: int, zone: ZoneInfo) -> Instant:
    """Return when a wall clock in the zone shows this time, or the first moment after it if it is skipped."""
    if minutes >= MINUTES_PER_DAY:
        day, minutes = day + timedelta(days=1), minutes - MINUTES_PER_DAY
    hour, minute = divmod(minutes, 60)
    wall = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
    before = zone.utcoffset(wall)
    after = zone.utcoffset(wall.replace(fold=1))
    assert before is not None
    assert after is not None
    if before < after:
        utc = wall.replace(tzinfo=UTC)
        return instant_of(_end_of_skip(utc - after, utc - before, zone))
    # As `instant_of(wall)`, in integers: a request may have a hundred thousand such times.
    return (day - _FIRST_DAY).days * DAY + minutes * MINUTE - before // _MICROSECOND


def _end_of_skip(earlier: datetime, later: datetime, zone: ZoneInfo) -> datetime:
    """Return the second at which the zone's offset changes, after `earlier` and not after `later`."""
    offset = earlier.astimezone(zone).utcoffset()
    while later - earlier > _SECOND:
        middle = earlier + (later - earlier) // 2
        middle = middle.replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == offset:
            earlier = middle
        else:
            later = middle
    return later
