"""VTIMEZONE definitions in the form that Outlook reads: yearly RRULEs with BYDAY that begin in 1970.

See docs/reference/icalendar.md, "VTIMEZONE".
"""

import calendar
import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from icalendar import Timezone, TimezoneDaylight, TimezoneStandard

_DAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
# The years that must follow one rule. A rule such as "the Friday before the last Sunday" looks like another for some.
_YEARS = 12
_FIRST_YEARS = 2
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - on the wall of the zone


class _Change(NamedTuple):
    """`wall`: the local time before the change, naive."""

    wall: datetime
    before: timedelta
    after: timedelta
    name: str


@lru_cache(maxsize=256)
def vtimezone(name: str, first_year: int, this_year: int | None = None) -> Timezone:
    """Return the definition of an IANA zone for `first_year` and the years from `this_year` on.

    It has about 400 bytes. A series may have begun under another rule than today's: then the changes of its first two
    years are listed, and those between them and today's rule are left out. A zone whose changes follow no yearly rule
    (Morocco, Greenland) has them listed for twelve years, in 800 bytes. The result is cached and must not be changed.
    """
    zone = ZoneInfo(name)
    since = max(first_year, this_year or first_year)
    coming = [list(_changes(zone, year)) for year in range(since, since + _YEARS)]
    is_regular = not any(coming) or bool(_yearly_rules(coming))
    while is_regular and since > first_year and _is_like(coming, list(_changes(zone, since - 1))):
        since -= 1
    if since == first_year and any(coming) and is_regular:
        return _definition(name, [_block([change], rule) for change, rule in _yearly_rules(coming)])
    listed = [
        change
        for year in range(first_year, min(first_year + _FIRST_YEARS, since))
        for change in _changes(zone, year)
    ]
    start, later = (datetime(year, 1, 1, tzinfo=zone) for year in (first_year, since))
    left = listed[-1].after if listed else _offset(start)
    if left != _offset(later):
        listed.append(_Change(later.replace(tzinfo=None), left, _offset(later), later.tzname() or name))
    if not is_regular:
        listed += itertools.chain(*coming)
    blocks = [_block([_Change(_EPOCH, _offset(start), _offset(start), start.tzname() or name)])]
    alike: dict[tuple[timedelta, timedelta, str], list[_Change]] = {}
    for change in listed:
        alike.setdefault((change.before, change.after, change.name), []).append(change)
    blocks += [_block(some) for some in alike.values()]
    if is_regular and any(coming):
        blocks += [_block([change], rule) for change, rule in _yearly_rules(coming, since)]
    return _definition(name, blocks)


def _is_like(coming: list[list[_Change]], of_year: list[_Change]) -> bool:
    """Whether a year has the rule of the coming ones, or like them no change at all."""
    if not any(coming):
        return not of_year
    return bool(_yearly_rules([of_year, *coming]))


def _offset(at: datetime) -> timedelta:
    return at.utcoffset() or timedelta(0)


def _changes(zone: ZoneInfo, year: int) -> Iterator[_Change]:
    """The changes of offset within a year, found between the midnights (UTC) of its days."""
    start = datetime(year, 1, 1, tzinfo=UTC)
    end = datetime(year + 1, 1, 1, tzinfo=UTC)
    while start < end:
        low, high = start, start + timedelta(days=1)
        start = high
        before = _offset(low.astimezone(zone))
        if before == _offset(high.astimezone(zone)):
            continue
        while high - low > timedelta(seconds=1):
            middle = (low + (high - low) / 2).replace(microsecond=0)
            if middle in (low, high):
                break
            if _offset(middle.astimezone(zone)) == before:
                low = middle
            else:
                high = middle
        after = high.astimezone(zone)
        yield _Change(
            (high + before).replace(tzinfo=None), before, _offset(after), after.tzname() or str(zone)
        )


def _yearly_rules(changes: list[list[_Change]], year: int = _EPOCH.year) -> list[tuple[_Change, str]]:
    """The two changes of a year, moved to `year`, each with its RRULE; none if the years differ."""
    if any(len(of_year) != 2 for of_year in changes):
        return []
    rules = []
    for kind in zip(*changes, strict=True):
        # At midnight it is the evening before that has a rule (Santiago: the first Saturday); a second does not matter.
        rule = _yearly_rule(kind, timedelta(0), year) or _yearly_rule(kind, timedelta(seconds=1), year)
        if rule is None:
            return []
        rules.append(rule)
    return rules


def _yearly_rule(changes: Sequence[_Change], earlier: timedelta, year: int) -> tuple[_Change, str] | None:
    """A change of each year, moved to `year` and by so much, with its RRULE; None if the years differ."""
    first = changes[0]._replace(wall=changes[0].wall - earlier)
    places = _places(first.wall)
    for change in changes:
        wall = change.wall - earlier
        if (change.before, change.after, wall.time()) != (first.before, first.after, first.wall.time()):
            return None
        places &= _places(wall)
    if not places:
        return None
    month, nth, weekday = min(places, key=lambda place: place[1])
    moved = datetime.combine(_date_of(year, month, nth, weekday), first.wall.time())
    return first._replace(wall=moved), f"FREQ=YEARLY;BYMONTH={month};BYDAY={nth}{_DAYS[weekday]}"


def _places(wall: datetime) -> set[tuple[int, int, int]]:
    """Return each (month, nth, weekday) that describes the date: the last Sunday may also be the fourth."""
    length = calendar.monthrange(wall.year, wall.month)[1]
    places = {(wall.month, (wall.day - 1) // 7 + 1, wall.weekday())}
    if wall.day + 7 > length:
        places.add((wall.month, -1, wall.weekday()))
    return places


def _date_of(year: int, month: int, nth: int, weekday: int) -> date:
    length = calendar.monthrange(year, month)[1]
    days = [day for day in range(1, length + 1) if date(year, month, day).weekday() == weekday]
    return date(year, month, days[nth - 1 if nth > 0 else nth])


def _block(changes: list[_Change], rule: str | None = None) -> TimezoneStandard | TimezoneDaylight:
    """Changes of one kind: the first one, repeated by the rule or followed by the others."""
    first, *others = changes
    # By the offset and not by tzinfo.dst(), for which Dublin's summer time is its standard time.
    block = TimezoneDaylight() if first.after > first.before else TimezoneStandard()
    block.add("dtstart", first.wall)
    block.add("tzoffsetfrom", first.before)
    block.add("tzoffsetto", first.after)
    block.add("tzname", first.name)
    if rule is not None:
        parts = (part.partition("=") for part in rule.split(";"))
        block.add("rrule", {key: value for key, _, value in parts})
    if others:
        block.add("rdate", [change.wall for change in others])
    return block


def _definition(name: str, blocks: list[TimezoneStandard | TimezoneDaylight]) -> Timezone:
    definition = Timezone()
    definition.add("tzid", name)
    for block in blocks:
        definition.add_component(block)
    return definition
