"""Occurrences of a recurring event: one start and one RRULE (RFC 5545 section 3.8.5.3)."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from app.ical.moments import Moment, TimeRange
from app.ical.recurrence import Rule, RuleRefused
from app.ical.values import wall_of

log = structlog.get_logger(__name__)

MAX_OCCURRENCES = 2_000
# Rules are followed on the wall clock, and windows are in UTC: the two differ by 14 hours at most.
_ZONE_MARGIN = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One occurrence of a series. Times are aware, in UTC; `end` is exclusive.

    `recurrence_key` is its start as a RECURRENCE-ID: YYYYMMDD for a date, else YYYYMMDDTHHMMSSZ.
    """

    recurrence_key: str
    start: datetime
    end: datetime


def expand_series(
    start: Moment,
    length: timedelta,
    rule: Rule,
    window: TimeRange,
    *,
    excluded: Collection[str] = (),
    is_exact: bool = False,
) -> list[Occurrence]:
    """Return the occurrences that overlap `window`, at most MAX_OCCURRENCES.

    `start` is DTSTART, which is an occurrence even where the rule does not match it. `length` is measured on the wall
    clock, and with `is_exact` it is elapsed time. `excluded` are recurrence keys. A rule with too many steps is followed
    as far as it can be.
    """
    first = wall_of(window.start) - length - _ZONE_MARGIN
    last = wall_of(window.end) + _ZONE_MARGIN
    found: dict[str, Occurrence] = {}
    try:
        for moment in _with_start(rule, start, first=first, last=last):
            occurrence = _occurrence(moment, length, is_exact=is_exact)
            if occurrence.recurrence_key not in excluded and window.overlaps(
                occurrence.start, occurrence.end
            ):
                found.setdefault(occurrence.recurrence_key, occurrence)
            if len(found) >= MAX_OCCURRENCES:
                break
    except RuleRefused as err:
        log.warning("series_not_followed_to_its_end", reason=str(err))
    return list(found.values())


def find_next_occurrence(
    start: Moment,
    length: timedelta,
    rule: Rule,
    at: datetime,
    *,
    last: datetime,
    excluded: Collection[str] = (),
    is_exact: bool = False,
) -> Occurrence | None:
    """Return the first occurrence of the rule from `at` on; None if there is none, or none until `last`.

    `at` is aware. `last` is a reading of the series' wall clock, naive.
    """
    first = max(at.astimezone(start.zone.tzinfo).replace(tzinfo=None), start.wall)
    try:
        for moment in follow_rule(rule, start, first=first, last=last):
            if moment.recurrence_key not in excluded:
                return _occurrence(moment, length, is_exact=is_exact)
    except RuleRefused as err:
        log.warning("series_not_followed_to_its_end", reason=str(err))
    return None


def follow_rule(rule: Rule, start: Moment, *, first: datetime, last: datetime) -> Iterator[Moment]:
    """Yield what the rule matches from `first` to `last`, in order, up to its UNTIL.

    Both are naive, on the wall clock. Raises RuleRefused, also after some moments.
    """
    end = min(last, rule.until.wall + _ZONE_MARGIN) if rule.until else last
    for wall in rule.walls(start.wall, first=first, last=end):
        moment = start.at(wall)
        if is_within(rule, moment):
            yield moment


def is_within(rule: Rule, moment: Moment) -> bool:
    """Return whether the moment is not after the rule's UNTIL. An UNTIL that is a date includes that day."""
    if rule.until is None:
        return True
    if moment.is_date or rule.until.is_date:
        return moment.wall.date() <= rule.until.wall.date()
    return (wall_of(moment.utc) if rule.until.is_utc else moment.wall) <= rule.until.wall


def _with_start(rule: Rule, start: Moment, *, first: datetime, last: datetime) -> Iterator[Moment]:
    if is_within(rule, start):
        yield start
    yield from follow_rule(rule, start, first=first, last=last)


def _occurrence(moment: Moment, length: timedelta, *, is_exact: bool) -> Occurrence:
    start = moment.utc
    end = start + length if is_exact else max(moment.at(moment.wall + length).utc, start)
    return Occurrence(moment.recurrence_key, start, end)
