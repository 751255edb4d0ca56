"""Values that need no time zone: dates, times and durations (RFC 5545 section 3.3)."""

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from icalendar import vDuration

# The dashes and colons of ISO 8601 are not allowed, but some exporters write them.
_DATE_TIME = re.compile(
    r"(\d{4})-?(\d\d)-?(\d\d)(?:[T ](\d\d):?(\d\d)(?::?(\d\d)(?:\.\d+)?)?(Z)?)?", re.ASCII
)
# Outside these years, conversions between zones can overflow.
_FIRST_YEAR, _LAST_YEAR = 1000, 9800
_LONGEST_DURATION = timedelta(days=36_600)


class Written(NamedTuple):
    """A DATE or DATE-TIME as written: its wall clock (naive; midnight for a date) and its form."""

    wall: datetime
    is_date: bool
    is_utc: bool


def parse_time(text: str) -> Written | None:
    """Return the DATE or DATE-TIME of a text; None if it is neither."""
    match = _DATE_TIME.fullmatch(text.strip().upper())
    if not match:
        return None
    year, month, day, hour, minute, second = (int(group or 0) for group in match.groups()[:6])
    if not _FIRST_YEAR <= year <= _LAST_YEAR:
        return None
    try:
        wall = datetime(year, month, day, hour, minute, min(second, 59))  # noqa: DTZ001 - its zone comes from elsewhere
    except ValueError:
        return None
    return Written(wall, is_date=match[4] is None, is_utc=match[7] is not None)


def parse_duration(text: str) -> timedelta | None:
    """Return the DURATION of a text; None if it is not one, or longer than a century."""
    try:
        duration: timedelta = vDuration.from_ical(text.strip().upper())  # type: ignore[no-untyped-call] # the library's lack
    except ValueError:
        return None
    return duration if abs(duration) <= _LONGEST_DURATION else None


def wall_of(at: datetime) -> datetime:
    """Return an aware time as a naive time in UTC."""
    return at.astimezone(UTC).replace(tzinfo=None)
