"""Points in time as iCalendar writes them: a reading of a wall clock, and its zone."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from app.ical.components import Line
from app.ical.timezones import UTC_ZONE, Zone, ZoneTable
from app.ical.values import parse_duration, parse_time


class TimeRange(Protocol):
    """A half-open range of aware times, and its rule of what is in it."""

    @property
    def start(self) -> datetime: ...

    @property
    def end(self) -> datetime: ...

    def overlaps(self, start: datetime, end: datetime) -> bool: ...


@dataclass(frozen=True, slots=True)
class Moment:
    """A DATE or DATE-TIME. `wall` is naive; dates and floating times have the calendar's `zone`."""

    wall: datetime
    zone: Zone
    is_date: bool = False
    is_floating: bool = False

    @property
    def utc(self) -> datetime:
        return self.wall.replace(tzinfo=self.zone.tzinfo).astimezone(UTC)

    def at(self, wall: datetime) -> "Moment":
        """The same kind of time at another reading of the wall clock."""
        return replace(self, wall=wall)

    @property
    def recurrence_key(self) -> str:
        """The time as the key of an instance: YYYYMMDD for a date, else YYYYMMDDTHHMMSSZ."""
        if self.is_date:
            return f"{self.wall:%Y%m%d}"
        return f"{self.utc:%Y%m%dT%H%M%SZ}"


def read_moment(line: Line, zones: ZoneTable, value: str | None = None) -> Moment | None:
    """Return the time in a DTSTART, DTEND, RECURRENCE-ID and the like; in `value`, if a line has several.

    None if it cannot be read. An unknown TZID counts as the calendar's zone.
    """
    written = parse_time(line.value if value is None else value)
    if written is None:
        return None
    if written.is_date:
        return Moment(written.wall, zones.calendar, is_date=True)
    if written.is_utc:
        return Moment(written.wall, UTC_ZONE)
    name = line.parameter("TZID")
    if not name:
        return Moment(written.wall, zones.calendar, is_floating=True)
    return Moment(written.wall, zones.find(name) or zones.calendar)


@dataclass(frozen=True, slots=True)
class AddedStart:
    """A value of an RDATE. `length` is set for a PERIOD."""

    start: Moment
    length: timedelta | None


def read_moments(line: Line, zones: ZoneTable) -> Iterator[AddedStart]:
    """Yield the values of an RDATE or EXDATE, without those that cannot be read."""
    for value in line.value.split(","):
        first, is_period, second = value.partition("/")
        start = read_moment(line, zones, first)
        if start is None:
            continue
        length = None
        if is_period:
            length = parse_duration(second)
            end = read_moment(line, zones, second)
            if end:
                length = end.utc - start.utc
        yield AddedStart(start, length if length and length > timedelta(0) else None)
