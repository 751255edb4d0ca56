"""When a VEVENT takes place, and which event it is: its times, identity and version."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.ical.components import Component, Line
from app.ical.moments import Moment, read_moment
from app.ical.timezones import ZoneTable
from app.ical.values import parse_duration

# Longer UIDs are replaced by a digest, so that ids of instances can be stored and indexed.
MAX_UID_BYTES = 1_000
MAX_LENGTH = timedelta(days=36_600)
_DAY = timedelta(days=1)


@dataclass(slots=True, kw_only=True)
class EventTimes:
    """When a VEVENT takes place.

    `uid` is a stable key that the instances of a series share: the UID, or a digest where the UID is too long or
    missing. `ical_uid` is None where the UID is missing. `start` is None if it cannot be read. `timezone` is the IANA
    name of the zone that its owner sees, if there is one. `rules` are the values of RRULE; `added` are the RDATE lines,
    `excluded` the EXDATE lines.
    """

    component: Component
    uid: str
    ical_uid: str | None
    start: Moment | None = None
    timezone: str | None = None
    length: timedelta = timedelta(0)  # on the wall clock, in whole days for dates
    is_exact: bool = False  # `length` is elapsed time, also over a change of the clocks
    sequence: int = 0
    revision: str = ""
    is_cancelled: bool = False
    is_all_day: bool = False
    recurrence_id: Moment | None = None
    is_range: bool = False  # RANGE=THISANDFUTURE
    rules: Sequence[str] = ()
    added: Sequence[Line] = ()
    excluded: Sequence[Line] = ()

    @property
    def is_series(self) -> bool:
        return bool(self.rules or self.added)

    @property
    def rank(self) -> tuple[int, str, bytes]:
        """The order of versions of an event, which does not depend on the file: the highest is current."""
        return self.sequence, self.revision, self.component.own_text


def read_times(times: EventTimes, lines: list[Line], first: dict[str, Line], zones: ZoneTable) -> None:
    """Set the times of an event from its lines; what cannot be read keeps its default."""
    if "DTSTART" in first:
        times.start = read_moment(first["DTSTART"], zones)
    if times.start:
        # A time in UTC was written so by the software; the calendar's zone is what its owner sees.
        zone = zones.calendar if times.start.zone.name == "UTC" else times.start.zone
        times.timezone = zone.name
        times.length, times.is_exact = _length(times.start, first, zones)
        times.is_all_day = _is_all_day(times.start, first)
    if "RECURRENCE-ID" in first:
        times.recurrence_id = read_moment(first["RECURRENCE-ID"], zones) or times.start
        times.is_range = first["RECURRENCE-ID"].parameter("RANGE") == "THISANDFUTURE"
    times.sequence = _sequence(first)
    times.revision = " ".join(first[name].value for name in ("LAST-MODIFIED", "DTSTAMP") if name in first)
    times.is_cancelled = "STATUS" in first and first["STATUS"].text.upper() == "CANCELLED"
    if "RRULE" in first:
        times.rules = [line.value for line in lines if line.name == "RRULE"]
    if "RDATE" in first:
        times.added = [line for line in lines if line.name == "RDATE"]
    if "EXDATE" in first:
        times.excluded = [line for line in lines if line.name == "EXDATE"]


def identify(first: dict[str, Line]) -> tuple[str | None, bool]:
    """The stable key of a VEVENT, None if it cannot have one; and whether its UID is missing."""
    uid = first["UID"].text if "UID" in first else ""
    if uid:
        is_short = len(uid.encode()) < MAX_UID_BYTES
        return uid if is_short else f"sha256-{_digest(uid)}", False
    known = [first[name].value for name in ("DTSTART", "SUMMARY") if name in first]
    if not known:
        return None, True
    return f"no-uid-{_digest(' '.join(known))}", True


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sequence(first: dict[str, Line]) -> int:
    text = first["SEQUENCE"].value.strip() if "SEQUENCE" in first else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _length(start: Moment, first: dict[str, Line], zones: ZoneTable) -> tuple[timedelta, bool]:
    """The length by DTEND or DURATION, and whether it is elapsed time.

    Without both, a date has a length of one day, and a time has none.

    An end before the start counts as the start. DTEND in the zone of DTSTART gives a length on the wall clock. A DURATION
    with a time part, and a DTEND in another zone, give elapsed time.
    """
    end = read_moment(first["DTEND"], zones) if "DTEND" in first else None
    if end is None:
        length = parse_duration(first["DURATION"].value) if "DURATION" in first else None
        length = length or timedelta(0)
        is_exact = bool(length % _DAY)
    elif start.is_date or end.is_date or end.zone == start.zone:
        length, is_exact = end.wall - start.wall, False
    else:
        length, is_exact = end.utc - start.utc, True
    if start.is_date:
        return min(max(-(-length // _DAY), 1) * _DAY, MAX_LENGTH), False
    return min(max(length, timedelta(0)), MAX_LENGTH), is_exact


def _is_all_day(start: Moment, first: dict[str, Line]) -> bool:
    marker = first.get("X-MICROSOFT-CDO-ALLDAYEVENT")
    return start.is_date or (
        marker is not None and marker.text.upper() == "TRUE" and start.wall == midnight(start.wall)
    )


def midnight(wall: datetime) -> datetime:
    """The start of the day of a reading of a wall clock."""
    return wall.replace(hour=0, minute=0, second=0)
