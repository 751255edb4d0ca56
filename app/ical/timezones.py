"""Time zones as feeds name them: IANA and Windows names, vendors' prefixes, and VTIMEZONE definitions."""

import contextlib
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from itertools import islice
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from tzlocal.windows_tz import win_tz

from app.ical.components import Component, Line
from app.ical.recurrence import Rule, RuleRefused
from app.ical.values import parse_time

_LONGEST_NAME = 200
_OFFSET = re.compile(r"([+-])(\d{2})(\d{2})(\d{2})?")
_YEARLY = re.compile(r"FREQ\s*=\s*YEARLY", re.IGNORECASE)
_UTC_OFFSET_NAME = re.compile(r"(?:UTC|GMT)\s*([+-])(\d{1,2})(?:[:.]?(\d{2}))?(?!\d)")
# Definitions begin in 1601 (Exchange) and do not end. These are the years that matter here.
_FIRST_YEAR, _LAST_YEAR = 1970, 2100
_MOST_TRANSITIONS = 5_000
_MOST_RULES = 20  # one that never matches takes a fifth of a second, and 3 s if it is not yearly


class Zone(NamedTuple):
    """`name` is the IANA name; None for a zone that only the feed's own definition describes."""

    tzinfo: tzinfo
    name: str | None


UTC_ZONE = Zone(UTC, "UTC")


class ZoneTable:
    """The zones of one feed.

    `definitions` are its VTIMEZONEs; `calendar_zone_name` is its X-WR-TIMEZONE. `calendar` is the zone of dates
    and floating times: UTC, if the feed names none that is known.
    """

    def __init__(self, definitions: Iterable[Component], calendar_zone_name: str | None = None) -> None:
        self._definitions: dict[str, Component] = {}
        for component in definitions:
            name = next((line.text for line in component.lines() if line.name == "TZID"), None)
            if name:
                self._definitions.setdefault(name, component)
        self._found: dict[str, Zone | None] = {}
        self.calendar = (self.find(calendar_zone_name) if calendar_zone_name else None) or UTC_ZONE

    def find(self, name: str) -> Zone | None:
        """Return the zone called `name` in this feed, or None.

        A well-known name goes before the feed's definition, because definitions are often wrong or out of date.
        """
        if name not in self._found:
            self._found[name] = named_zone(name) or self._defined(name) or _fixed_zone(name)
        return self._found[name]

    @property
    def unknown_names(self) -> list[str]:
        """The names that `find` did not find."""
        return [name for name, zone in self._found.items() if zone is None]

    def _defined(self, name: str) -> Zone | None:
        component = self._definitions.get(name)
        if component is None:
            return None
        for line in component.lines():
            # These properties name the well-known zone of the definition.
            if line.name in {"X-LIC-LOCATION", "TZID-ALIAS-OF"}:
                zone = named_zone(line.text)
                if zone:
                    return zone
        transitions = sorted(islice(_transitions(component), _MOST_TRANSITIONS))
        return Zone(DefinedZone(transitions), None) if transitions else None


@lru_cache(maxsize=1024)
def named_zone(name: str) -> Zone | None:
    """Return the zone of an IANA name, or of a Windows name of Exchange (CLDR windowsZones); else None.

    Any case, and any prefix, as in `/freeassociation.sourceforge.net/Europe/Paris`.
    """
    if len(name) > _LONGEST_NAME:
        return None
    key = name.strip().strip('"/').casefold()
    if key in _UTC_NAMES:
        return UTC_ZONE
    names = _known_names()
    parts = key.split("/")
    for start in range(len(parts)):
        iana_name = names.get("/".join(parts[start:]))
        if iana_name:
            return Zone(ZoneInfo(iana_name), iana_name)
    return None


_UTC_NAMES = frozenset({"utc", "z", "etc/utc", "tzone://microsoft/utc", "coordinated universal time"})


# In some zone databases: the zone of the machine, and the absence of a zone.
_NO_ZONES = frozenset({"localtime", "Factory"})


@lru_cache(maxsize=1)
def _known_names() -> dict[str, str]:
    windows = {name.casefold(): iana_name for name, iana_name in win_tz.items()}
    iana = {name.casefold(): name for name in available_timezones() - _NO_ZONES}
    return windows | iana


def _fixed_zone(name: str) -> Zone | None:
    """Return the fixed offset of a name without a definition, such as `(UTC+01:00) Brussels, Paris`."""
    match = _UTC_OFFSET_NAME.search(name[:_LONGEST_NAME].upper())
    if not match:
        return None
    offset = timedelta(hours=int(match[2]), minutes=int(match[3] or 0))
    if offset >= timedelta(hours=24):
        return None
    return Zone(timezone(-offset if match[1] == "-" else offset), None)


class DefinedZone(tzinfo):
    """The offsets of a VTIMEZONE. Takes local times only; conversions to it are not supported.

    `transitions` are (local time before, offset before, offset after), sorted. As with ZoneInfo, a time that
    does not exist counts with the offset before the gap, and one that exists twice is the first of the two.
    """

    def __init__(self, transitions: "list[Transition]") -> None:
        gaps = [max(timedelta(0), after - before) for _, before, after in transitions]
        self._starts = [at + gap for (at, _, _), gap in zip(transitions, gaps, strict=True)]
        self._offsets = [transitions[0].before, *(transition.after for transition in transitions)]

    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        if dt is None:
            return None
        return self._offsets[bisect_right(self._starts, dt.replace(tzinfo=None))]

    def dst(self, dt: datetime | None) -> timedelta | None:
        del dt  # not known
        return None

    def tzname(self, dt: datetime | None) -> str | None:
        del dt  # not known
        return None


class Transition(NamedTuple):
    at: datetime
    before: timedelta
    after: timedelta


def _transitions(component: Component) -> Iterator[Transition]:
    rules = 0
    for observance in component.children:
        lines = list(observance.lines())
        rules += sum(line.name == "RRULE" for line in lines)
        if rules > _MOST_RULES:
            return
        properties = {line.name: line for line in lines}
        start = parse_time(properties["DTSTART"].value) if "DTSTART" in properties else None
        after = _offset(properties.get("TZOFFSETTO"))
        before = _offset(properties.get("TZOFFSETFROM"))
        if start is None or after is None:
            continue
        for at in _onsets(start.wall, lines):
            yield Transition(at, after if before is None else before, after)


def _onsets(start: datetime, lines: list[Line]) -> Iterator[datetime]:
    yield start
    for line in lines:
        if line.name == "RDATE":
            yield from (time.wall for time in map(parse_time, line.value.split(",")) if time)
        elif line.name == "RRULE" and _YEARLY.search(line.value):
            with contextlib.suppress(RuleRefused):
                yield from _repeated(Rule(line.value), start)


def _repeated(rule: Rule, start: datetime) -> Iterator[datetime]:
    if start.year < _FIRST_YEAR:
        start = start.replace(year=_FIRST_YEAR, day=min(start.day, 28))
    last = datetime(_LAST_YEAR, 1, 1)  # noqa: DTZ001 - on the wall of this zone
    if rule.until:
        # UNTIL is in UTC. A day more includes no other transition.
        last = min(last, rule.until.wall + timedelta(days=1))
    yield from rule.walls(start, first=start, last=last)


def _offset(line: Line | None) -> timedelta | None:
    match = _OFFSET.fullmatch(line.value.strip()) if line else None
    if not match:
        return None
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]), seconds=int(match[4] or 0))
    if offset >= timedelta(hours=24):
        return None
    return -offset if match[1] == "-" else offset
