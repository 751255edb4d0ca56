"""An iCalendar feed as the events of a time window (contract/providers.md C.1, C.4).

Reading has three steps, so that a feed of 20 MB costs little: the file is walked once and every VEVENT is reduced to
what decides when it is (`Feed`), series are expanded in the window (`Feed.select`), and only what is left is read
in full (`Selection.page`).

The recurring-ical-events library is not used for the second step: it loses the original slot of instances that a
RANGE=THISANDFUTURE moved (their identity), keeps every slot since the series began, and never returns from
FREQ=SECONDLY. The tests compare with it.
"""

import dataclasses
import hashlib
import re
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import structlog

from app.core.clock import utcnow
from app.events import limits
from app.events.data import KnownEvent, RemoteEvent, Window
from app.ical.components import Component, Line, normalize, parse_lines, split
from app.ical.errors import CalendarUnreadable
from app.ical.event_fields import Reader
from app.ical.moments import Moment, read_moment, read_moments
from app.ical.recurrence import Rule, RuleRefused
from app.ical.series import follow_rule, is_within
from app.ical.timezones import ZoneTable
from app.ical.values import parse_duration, wall_of

log = structlog.get_logger(__name__)

MAX_VEVENTS = 100_000
MAX_INSTANCES_OF_SERIES = 2_000
MAX_INSTANCES = 50_000
# Processor time of one feed. Real ones take 2 s at 20 MB; what takes more is made to.
MAX_CPU_SECONDS = 3.0
_MOST_LOGGED = 20
_DAY = timedelta(days=1)
_LONGEST = timedelta(days=36_600)
# Slots are looked for on the wall, and judged in UTC; a wall is at most 14 hours off.
_MARGIN = timedelta(days=1)
_CALENDAR_ZONE = re.compile(rb"^X-WR-TIMEZONE[;:][^\n]*$", re.IGNORECASE | re.MULTILINE)
_VOLATILE = re.compile(rb"^(?:DTSTAMP|LAST-MODIFIED)[;:][^\n]*\n", re.IGNORECASE | re.MULTILINE)


@dataclass(slots=True, kw_only=True)
class _Entry:
    """What a VEVENT says about when it is. `uid` is the part of the identity that its instances share."""

    component: Component
    uid: str
    ical_uid: str | None
    start: Moment | None = None
    length: timedelta = timedelta(0)  # on the wall, in whole days for dates
    is_exact: bool = False  # `length` is elapsed time, whatever the clocks do meanwhile
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
        """Of several versions, the one with the highest rank is the current one; the same in any order."""
        return self.sequence, self.revision, self.component.own_text


class _Instance(NamedTuple):
    entry: _Entry
    platform_uuid: str
    start: datetime | None
    end: datetime | None
    slot: datetime | None  # None for an event that is no part of a series


class Feed:
    """A complete calendar. `digest` is the same for two bodies that differ in nothing but their times of writing.

    Raises CalendarUnreadable: `feed_empty`, `feed_not_ics`, `feed_truncated`, `feed_too_large`. Takes long: call it in a thread.
    """

    def __init__(self, body: bytes) -> None:
        text = normalize(body)
        self.digest = hashlib.sha256(_VOLATILE.sub(b"", text)).hexdigest()
        self._components = []
        for component in split(text):
            if component.name in {"VEVENT", "VTIMEZONE"}:
                self._components.append(component)
            if len(self._components) > MAX_VEVENTS:
                raise CalendarUnreadable(
                    f"The feed has more than {MAX_VEVENTS:,} events.", code="feed_too_large"
                )
        named = _CALENDAR_ZONE.search(text)
        line = next(parse_lines(named[0]), None) if named else None
        self._calendar_zone_name = line.text if line else None

    def select(self, window: Window, reader: Reader | None = None) -> "Selection":
        """The instances that overlap `window`, and the events whose time cannot be read.

        Raises CalendarUnreadable (`feed_too_complex`). Takes long: call it in a thread.
        """
        zones = ZoneTable(
            (part for part in self._components if part.name == "VTIMEZONE"), self._calendar_zone_name
        )
        return _Selector(zones, window).select(
            [part for part in self._components if part.name == "VEVENT"], reader or Reader()
        )

    def find(self, wanted: Sequence[KnownEvent], reader: Reader | None = None) -> "Selection":
        """These events and instances, wherever they are now; those that the feed has no longer are left out.

        Raises CalendarUnreadable (`feed_too_complex`). Takes long: call it in a thread.
        """
        zones = ZoneTable(
            (part for part in self._components if part.name == "VTIMEZONE"), self._calendar_zone_name
        )
        slots = [event.original_start_time for event in wanted if event.original_start_time] or [utcnow()]
        ids = frozenset(event.platform_uuid for event in wanted)
        uids = {event.recurring_event_id or event.platform_uuid for event in wanted}
        # Series are expanded where the instances were at first: their ids say when that is.
        return _Selector(zones, Window(min(slots), max(slots)), wanted=ids).select(
            [part for part in self._components if part.name == "VEVENT"], reader or Reader(), uids=uids
        )


class Selection:
    """The instances of a feed that matter, to be read in full page by page."""

    def __init__(self, instances: list[_Instance], reader: Reader, zones: ZoneTable) -> None:
        self._instances = instances
        self._reader = reader
        self._zones = zones
        self._described: tuple[_Entry, RemoteEvent] | None = None

    def __len__(self) -> int:
        return len(self._instances)

    def page(self, offset: int, size: int) -> list[RemoteEvent]:
        """Some of the events. Takes long: call it in a thread."""
        return [self._event(instance) for instance in self._instances[offset : offset + size]]

    def _event(self, instance: _Instance) -> RemoteEvent:
        entry = instance.entry
        return dataclasses.replace(
            self._describe(entry),
            platform_uuid=instance.platform_uuid,
            start_time=instance.start,
            end_time=instance.end,
            is_all_day=entry.is_all_day,
            timezone=self._zone_name(entry.start),
            ical_uid=entry.ical_uid,
            recurring_event_id=entry.uid if instance.slot else None,
            original_start_time=instance.slot,
        )

    def _describe(self, entry: _Entry) -> RemoteEvent:
        # The instances of a series follow each other.
        if self._described is None or self._described[0] is not entry:
            try:
                event = self._reader.describe(entry.component, entry.uid)
            except Exception as err:  # noqa: BLE001 - whatever is wrong with one event must not stop the feed
                log.warning("ics.event_partly_unreadable", uid=entry.uid, error=type(err).__name__)
                event = RemoteEvent(platform_uuid=entry.uid, raw="{}")
            self._described = entry, event
        return self._described[1]

    def _zone_name(self, start: Moment | None) -> str | None:
        if start is None:
            return None
        # A time in UTC was written so by the software; the calendar's zone is what its owner sees.
        return self._zones.calendar.name if start.zone.name == "UTC" else start.zone.name


class _Selector:
    """Finds the instances in a window, or those that are `wanted`. For one call of `select` only."""

    def __init__(self, zones: ZoneTable, window: Window, *, wanted: frozenset[str] | None = None) -> None:
        self._wanted = wanted
        self._zones = zones
        self._window = window
        self._problems: Counter[str] = Counter()
        self._started = time.thread_time()

    def select(
        self, components: Iterable[Component], reader: Reader, *, uids: Collection[str] | None = None
    ) -> Selection:
        """`uids`: the only ones to look at."""
        groups: dict[str, list[_Entry]] = defaultdict(list)
        for component in components:
            self._check_time()
            entry = self._read(component)
            if entry and (uids is None or entry.uid in uids):
                groups[entry.uid].append(entry)
        instances: list[_Instance] = []
        for group in groups.values():
            self._check_time()
            instances.extend(self._safe_instances(group))
            if len(instances) > MAX_INSTANCES:
                log.warning("ics.too_many_events", kept=MAX_INSTANCES)
                del instances[MAX_INSTANCES:]
                break
        if self._problems or self._zones.unknown_names:
            log.warning(
                "ics.problems",
                counts=dict(self._problems),
                unknown_zones=self._zones.unknown_names[:_MOST_LOGGED],
            )
        return Selection(instances, reader, self._zones)

    def _check_time(self) -> None:
        if time.thread_time() - self._started > MAX_CPU_SECONDS:
            raise CalendarUnreadable(
                "The feed's recurring events take too long to expand.", code="feed_too_complex"
            )

    def _note(self, problem: str, uid: str | None, **details: str) -> None:
        self._problems[problem] += 1
        if self._problems[problem] <= _MOST_LOGGED:
            log.warning(problem, uid=uid, **details)

    def _read(self, component: Component) -> _Entry | None:
        lines = list(component.lines())
        first: dict[str, Line] = {}
        for line in lines:
            first.setdefault(line.name, line)
        uid, is_made_up = _identity(first)
        if uid is None:
            self._note("ics.event_without_uid", None)
            return None
        entry = _Entry(component=component, uid=uid, ical_uid=None if is_made_up else uid)
        try:
            _read_times(entry, lines, first, self._zones)
        except Exception as err:  # noqa: BLE001 - whatever is wrong with one event must not stop the feed
            self._note("ics.event_unreadable", uid, error=type(err).__name__)
        if entry.start is None:
            self._note("ics.event_without_start", uid)
            if "RECURRENCE-ID" in first and entry.recurrence_id is None:
                return None  # an instance of the series, but nobody knows which
        return entry

    def _safe_instances(self, group: list[_Entry]) -> list[_Instance]:
        try:
            return list(self._instances(group))
        except CalendarUnreadable:
            raise
        except Exception as err:  # noqa: BLE001 - whatever is wrong with one event must not stop the feed
            self._note("ics.series_unreadable", group[0].uid, error=type(err).__name__)
            return [_Instance(group[0], group[0].uid, None, None, None)]

    def _instances(self, group: list[_Entry]) -> Iterator[_Instance]:
        """The instances of the VEVENTs that share a UID."""
        masters = _current_masters(group)
        overrides = [entry for entry in group if entry.recurrence_id]
        is_cancelled = bool(masters) and all(master.is_cancelled for master in masters)
        masters = [master for master in masters if not master.is_cancelled]
        if is_cancelled:
            return
        if len(masters) == 1 and not overrides and not masters[0].is_series:
            yield from self._instance(masters[0], masters[0].uid, masters[0].start, None)
        else:
            yield from self._series(masters, overrides)

    def _series(self, masters: list[_Entry], overrides: list[_Entry]) -> Iterator[_Instance]:
        pattern = next((master.start for master in masters if master.start), None)
        excluded = _Excluded(self._zones, pattern, masters)
        replaced: dict[str, tuple[Moment, _Entry]] = {}
        for entry in sorted(overrides, key=lambda entry: entry.rank):
            assert entry.recurrence_id
            slot = _like(entry.recurrence_id, pattern, self._zones)
            replaced[slot.slot] = slot, entry
        for text, (slot, entry) in replaced.items():
            if not entry.is_cancelled and slot not in excluded:
                yield from self._instance(entry, f"{entry.uid}_{text}", entry.start, slot)
        changes = sorted(
            (_Change.of(slot, entry) for slot, entry in replaced.values() if entry.is_range),
            key=lambda change: change.since,
        )
        for master in masters:
            if master.start is None:
                yield from self._instance(master, master.uid, None, None)
            else:
                yield from self._expand(master, master.start, replaced.keys(), excluded, changes)

    def _expand(
        self,
        master: _Entry,
        start: Moment,
        replaced: Iterable[str],
        excluded: "_Excluded",
        changes: list["_Change"],
    ) -> Iterator[_Instance]:
        longest = max([master.length, *(change.entry.length for change in changes)])
        shifts = [timedelta(0), *(change.shift for change in changes)]
        first = wall_of(self._window.start) - longest - max(shifts) - _MARGIN
        last = wall_of(self._window.end) - min(shifts) + _MARGIN
        seen = set(replaced)
        count = 0
        for slot, length in self._slots(master, start, first, last):
            text = slot.slot
            if text in seen or slot in excluded:
                continue
            seen.add(text)
            entry, at = master, slot
            for change in changes:
                if change.since <= slot.utc:
                    entry, at = change.entry, change.apply(slot)
            if entry.is_cancelled:
                continue
            for instance in self._instance(entry, f"{master.uid}_{text}", at, slot, length):
                yield instance
                count += 1
            if count >= MAX_INSTANCES_OF_SERIES:
                self._note("ics.series_with_too_many_instances", master.uid)
                return

    def _slots(
        self, master: _Entry, start: Moment, first: datetime, last: datetime
    ) -> Iterator[tuple[Moment, timedelta | None]]:
        """The series' original starts between two clock readings, and the length of those that have their own."""
        rules = []
        for text in master.rules:
            try:
                rules.append(Rule(text))
            except RuleRefused:
                self._note("ics.rule_refused", master.uid)
        # The start counts, whether it follows the rule or not; but not if the series ended before it.
        if not rules or any(is_within(rule, start) for rule in rules) or len(rules) < len(master.rules):
            yield start, None
        for line in master.added:
            for added in read_moments(line, self._zones):
                yield _like(added.start, start, self._zones), added.length
        for rule in rules:
            self._check_time()
            try:
                for slot in follow_rule(rule, start, first=first, last=last):
                    yield slot, None
            except RuleRefused:
                self._note("ics.rule_refused", master.uid)

    def _instance(
        self,
        entry: _Entry,
        platform_uuid: str,
        at: Moment | None,
        slot: Moment | None,
        length: timedelta | None = None,
    ) -> Iterator[_Instance]:
        """The instance, if it is wanted; or else if it is in the window or nowhere."""
        original = slot.utc if slot else None
        if self._wanted is not None and platform_uuid not in self._wanted:
            return
        if at is None:
            yield _Instance(entry, platform_uuid, None, None, original)
            return
        start = at.utc
        length = entry.length if length is None else length
        end = start + length if entry.is_exact else max(at.at(at.wall + length).utc, start)
        if self._wanted is not None or self._window.overlaps(start, end):
            yield _Instance(entry, platform_uuid, start, end, original)


class _Excluded:
    """The EXDATEs of a series. A DATE excludes whatever starts on that day."""

    def __init__(self, zones: ZoneTable, pattern: Moment | None, masters: Iterable[_Entry]) -> None:
        self._slots: set[str] = set()
        self._days: set[datetime] = set()
        for line in (line for master in masters for line in master.excluded):
            for excluded in read_moments(line, zones):
                if excluded.start.is_date:
                    self._days.add(excluded.start.wall)
                else:
                    self._slots.add(_like(excluded.start, pattern, zones).slot)

    def __contains__(self, slot: Moment) -> bool:
        day = slot.wall.replace(hour=0, minute=0, second=0)
        return slot.slot in self._slots or day in self._days


class _Change(NamedTuple):
    """A RANGE=THISANDFUTURE: all slots from `since` on are moved by `shift`."""

    since: datetime
    shift: timedelta
    entry: _Entry

    @classmethod
    def of(cls, slot: Moment, entry: _Entry) -> "_Change":
        shift = timedelta(0)
        if entry.start and entry.start.is_date == slot.is_date:
            is_same_wall = entry.start.zone == slot.zone or slot.is_date
            shift = entry.start.wall - slot.wall if is_same_wall else entry.start.utc - slot.utc
        return cls(slot.utc, shift if abs(shift) < _LONGEST else timedelta(0), entry)

    def apply(self, slot: Moment) -> Moment:
        return slot.at(slot.wall + self.shift)


def _current_masters(group: Iterable[_Entry]) -> list[_Entry]:
    """The current version of what is not one instance's.

    The highest SEQUENCE counts. Several of the same SEQUENCE with different starts are different events of an
    exporter that has but one UID for them.
    """
    masters = sorted((entry for entry in group if not entry.recurrence_id), key=lambda entry: entry.rank)
    by_start = {
        entry.start.slot if entry.start else None: entry
        for entry in masters
        if entry.sequence == masters[-1].sequence
    }
    return list(by_start.values())


def _like(moment: Moment, pattern: Moment | None, zones: ZoneTable) -> Moment:
    """`moment` as a slot of the series that starts at `pattern`, should it be written in another form."""
    if pattern is None:
        return moment
    if moment.is_floating:
        return pattern.at(moment.wall) if not pattern.is_date else pattern.at(_midnight(moment.wall))
    if moment.is_date == pattern.is_date:
        return moment
    if moment.is_date:
        return pattern.at(datetime.combine(moment.wall, pattern.wall.time()))
    wall = moment.wall
    if moment.zone.tzinfo is UTC:
        wall = moment.utc.astimezone(zones.calendar.tzinfo).replace(tzinfo=None)
    return pattern.at(_midnight(wall))


def _midnight(wall: datetime) -> datetime:
    return wall.replace(hour=0, minute=0, second=0)


def _read_times(entry: _Entry, lines: list[Line], first: dict[str, Line], zones: ZoneTable) -> None:
    """What cannot be read is left at its default."""
    if "DTSTART" in first:
        entry.start = read_moment(first["DTSTART"], zones)
    if entry.start:
        entry.length, entry.is_exact = _length(entry.start, first, zones)
        entry.is_all_day = _is_all_day(entry.start, first)
    if "RECURRENCE-ID" in first:
        entry.recurrence_id = read_moment(first["RECURRENCE-ID"], zones) or entry.start
        entry.is_range = first["RECURRENCE-ID"].parameter("RANGE") == "THISANDFUTURE"
    entry.sequence = _sequence(first)
    entry.revision = " ".join(first[name].value for name in ("LAST-MODIFIED", "DTSTAMP") if name in first)
    entry.is_cancelled = "STATUS" in first and first["STATUS"].text.upper() == "CANCELLED"
    if "RRULE" in first:
        entry.rules = [line.value for line in lines if line.name == "RRULE"]
    if "RDATE" in first:
        entry.added = [line for line in lines if line.name == "RDATE"]
    if "EXDATE" in first:
        entry.excluded = [line for line in lines if line.name == "EXDATE"]


def _identity(first: dict[str, Line]) -> tuple[str | None, bool]:
    """The stable key of a VEVENT, and whether it had to be made up."""
    uid = first["UID"].text if "UID" in first else ""
    if uid:
        is_short = len(uid.encode()) < limits.PLATFORM_UUID - 24
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
    """From DTEND or DURATION; without them a day for a date, else nothing. An end before the start counts as none.

    Also, whether it is exact: from nine to five is eight hours on the wall; PT8H and flights are elapsed time.
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
        return min(max(-(-length // _DAY), 1) * _DAY, _LONGEST), False
    return min(max(length, timedelta(0)), _LONGEST), is_exact


def _is_all_day(start: Moment, first: dict[str, Line]) -> bool:
    marker = first.get("X-MICROSOFT-CDO-ALLDAYEVENT")
    return start.is_date or (
        marker is not None and marker.text.upper() == "TRUE" and start.wall == _midnight(start.wall)
    )
