"""The events of an iCalendar feed in a time window (docs/reference/icalendar.md, "Recurrence").

Reading has three steps, so that a feed of 20 MB costs little: the file is walked once (`Feed`), each VEVENT is reduced
to its times and series are expanded in the window (`Feed.select`), and the caller reads in full only what is left.

The recurring-ical-events library is not used for the second step. It loses the original start of instances that a
RANGE=THISANDFUTURE moved, which is their identity; keeps every start since the series began; and never returns from
FREQ=SECONDLY. The tests compare with it.
"""

import hashlib
import re
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple

import structlog

from app.ical.components import Component, Line, normalize, parse_lines, split
from app.ical.errors import CalendarUnreadable
from app.ical.event_times import MAX_LENGTH, EventTimes, identify, midnight, read_times
from app.ical.moments import Moment, TimeRange, read_moments
from app.ical.recurrence import Rule, RuleRefused
from app.ical.series import follow_rule, is_within
from app.ical.timezones import ZoneTable
from app.ical.values import wall_of

log = structlog.get_logger(__name__)

MAX_VEVENTS = 100_000
# Of one series: so many, or in a window of months so many a day.
MAX_INSTANCES_OF_SERIES = 2_000
MAX_INSTANCES_A_DAY = 24
MAX_INSTANCES = 50_000
# Processor time of one feed. Real feeds take 2 s at 20 MB.
MAX_CPU_SECONDS = 3.0
_MOST_LOGGED = 20
# The part of a window in which very many series are expanded first.
_FIRST_STEP = timedelta(days=7)
# Starts are looked for on the wall clock, and compared in UTC: the two differ by 14 hours at most.
_MARGIN = timedelta(days=1)
_CALENDAR_ZONE = re.compile(rb"^X-WR-TIMEZONE[;:][^\n]*$", re.IGNORECASE | re.MULTILINE)
_VOLATILE = re.compile(rb"^(?:DTSTAMP|LAST-MODIFIED)[;:][^\n]*\n", re.IGNORECASE | re.MULTILINE)


class InstanceRef(NamedTuple):
    """An event or instance that was read before. Fields are those of `Instance` and `EventTimes`."""

    id: str
    uid: str
    original_start: datetime | None


class Instance(NamedTuple):
    """A single event, or one instance of a series.

    `id` is the uid; of an instance, the uid, `_` and the original start as a RECURRENCE-ID. `start` and `end` are aware,
    in UTC, `end` exclusive and never before `start`; both are None if the start cannot be read. `original_start` is
    None for an event that is not part of a series.
    """

    times: EventTimes
    id: str
    start: datetime | None
    end: datetime | None
    original_start: datetime | None


class Feed:
    """A complete calendar. `digest` does not depend on DTSTAMP and LAST-MODIFIED.

    `complete_until`: set by `select` where there were too many instances. Some that start later are left out.

    Raises CalendarUnreadable (`feed_empty`, `feed_not_ics`, `feed_truncated`, `feed_too_large`). Takes long: call it in a
    thread.
    """

    def __init__(self, body: bytes) -> None:
        text = normalize(body)
        self.complete_until: datetime | None = None
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

    def select(self, window: TimeRange) -> list[Instance]:
        """Return the instances that overlap `window`, and the events whose start cannot be read.

        Raises CalendarUnreadable (`feed_too_complex`). Takes long: call it in a thread.
        """
        selector = _Selector(self._zones(), window.start, window.end, window=window)
        instances = selector.select(self._events())
        self.complete_until = selector.complete_until
        return instances

    def find(self, wanted: Sequence[InstanceRef]) -> list[Instance]:
        """Return these events and instances, at any time, without those that the feed no longer has.

        Raises CalendarUnreadable (`feed_too_complex`). Takes long: call it in a thread.
        """
        # Series are expanded around the original starts of their instances, which do not change.
        starts = [ref.original_start for ref in wanted if ref.original_start] or [datetime.now(UTC)]
        selector = _Selector(
            self._zones(), min(starts), max(starts), wanted=frozenset(ref.id for ref in wanted)
        )
        return selector.select(self._events(), uids={ref.uid for ref in wanted})

    def _zones(self) -> ZoneTable:
        definitions = (part for part in self._components if part.name == "VTIMEZONE")
        return ZoneTable(definitions, self._calendar_zone_name)

    def _events(self) -> Iterator[Component]:
        return (part for part in self._components if part.name == "VEVENT")


class _Selector:
    """Expands series from `start` to `end`. Keeps instances in `window`, or with `wanted` ids. Used once."""

    def __init__(
        self,
        zones: ZoneTable,
        start: datetime,
        end: datetime,
        *,
        window: TimeRange | None = None,
        wanted: frozenset[str] | None = None,
    ) -> None:
        self._zones = zones
        self._start = start
        self._end = end
        self._window = window
        self._wanted = wanted
        self._most_of_series = max(MAX_INSTANCES_OF_SERIES, MAX_INSTANCES_A_DAY * ((end - start).days + 1))
        self.complete_until: datetime | None = None
        self._problems: Counter[str] = Counter()
        self._noted: set[tuple[str, str | None]] = set()
        self._started = time.thread_time()

    def select(
        self, components: Iterable[Component], *, uids: Collection[str] | None = None
    ) -> list[Instance]:
        """Return the instances; with `uids`, only those of these events."""
        groups: dict[str, list[EventTimes]] = defaultdict(list)
        for component in components:
            self._check_time()
            event = self._read(component)
            if event and (uids is None or event.uid in uids):
                groups[event.uid].append(event)
        series = sum(any(event.is_series for event in group) for group in groups.values())
        if self._window is not None and series * (self._end - self._start).days > MAX_INSTANCES:
            instances = self._expand_in_steps(groups.values(), self._window)
        else:
            instances = self._expand_all(groups.values())
        if len(instances) >= MAX_INSTANCES and self.complete_until is not None:
            log.warning("ics.too_many_events", kept=len(instances), until=self.complete_until.isoformat())
        if self._problems or self._zones.unknown_names:
            log.warning(
                "ics.problems",
                counts=dict(self._problems),
                unknown_zones=self._zones.unknown_names[:_MOST_LOGGED],
            )
        return instances

    def _expand_in_steps(self, groups: Collection[list[EventTimes]], window: TimeRange) -> list[Instance]:
        """Expand many series in a part of the window that grows.

        It ends with the window, or once there are enough instances, or when it takes too long.
        """
        end, span = self._end, _FIRST_STEP
        while self._start + span < end:
            self._end = self._start + span
            self._window = _Until(window, self._end)
            self.complete_until = self._end
            instances = self._expand_all(groups)
            if len(instances) >= MAX_INSTANCES or self._used_time() > MAX_CPU_SECONDS / 4:
                return instances
            enough = span * (1.1 * MAX_INSTANCES / max(len(instances), 1))
            span = max(2 * span, min(enough, end - self._start))
        self._end, self._window, self.complete_until = end, window, None
        return self._expand_all(groups)

    def _expand_all(self, groups: Iterable[list[EventTimes]]) -> list[Instance]:
        instances: list[Instance] = []
        for group in groups:
            self._check_time()
            instances.extend(self._safe_instances(group))
            if len(instances) > MAX_INSTANCES + MAX_INSTANCES // 5:
                instances = self._nearest(instances)
        return self._nearest(instances) if len(instances) > MAX_INSTANCES else instances

    def _nearest(self, instances: list[Instance]) -> list[Instance]:
        """Return the instances that start first, as many as may be kept.

        Those that start later than these are not looked for any more.
        """
        latest = sorted(instance.start for instance in instances if instance.start)[MAX_INSTANCES:]
        if not latest:
            return instances[:MAX_INSTANCES]
        end = latest[0]
        self._cut_at(end)
        self._end = min(self._end, end)
        kept = [instance for instance in instances if instance.start is None or instance.start < end]
        same = (instance for instance in instances if instance.start == end)
        return kept + list(islice(same, max(MAX_INSTANCES - len(kept), 0)))

    def _cut_at(self, end: datetime) -> None:
        self.complete_until = end if self.complete_until is None else min(self.complete_until, end)

    def _used_time(self) -> float:
        return time.thread_time() - self._started

    def _check_time(self) -> None:
        if self._used_time() > MAX_CPU_SECONDS:
            raise CalendarUnreadable(
                "The feed's recurring events take too long to expand.", code="feed_too_complex"
            )

    def _note(self, problem: str, uid: str | None, **details: str) -> None:
        if (problem, uid) in self._noted:
            return  # in an earlier step
        if uid is not None:
            self._noted.add((problem, uid))
        self._problems[problem] += 1
        if self._problems[problem] <= _MOST_LOGGED:
            log.warning(problem, uid=uid, **details)

    def _read(self, component: Component) -> EventTimes | None:
        lines = list(component.lines())
        first: dict[str, Line] = {}
        for line in lines:
            first.setdefault(line.name, line)
        uid, is_made_up = identify(first)
        if uid is None:
            self._note("ics.event_without_uid", None)
            return None
        event = EventTimes(component=component, uid=uid, ical_uid=None if is_made_up else uid)
        try:
            read_times(event, lines, first, self._zones)
        except Exception as err:  # noqa: BLE001 - an event that cannot be read must not stop the feed
            self._note("ics.event_unreadable", uid, error=type(err).__name__)
        if event.start is None:
            self._note("ics.event_without_start", uid)
            if "RECURRENCE-ID" in first and event.recurrence_id is None:
                return None  # an instance of the series; which one is not known
        return event

    def _safe_instances(self, group: list[EventTimes]) -> list[Instance]:
        try:
            return list(self._instances(group))
        except CalendarUnreadable:
            raise
        except Exception as err:  # noqa: BLE001 - an event that cannot be read must not stop the feed
            self._note("ics.series_unreadable", group[0].uid, error=type(err).__name__)
            return [Instance(group[0], group[0].uid, None, None, None)]

    def _instances(self, group: list[EventTimes]) -> Iterator[Instance]:
        """The instances of the VEVENTs that share a UID."""
        masters = _current_masters(group)
        overrides = [event for event in group if event.recurrence_id]
        is_cancelled = bool(masters) and all(master.is_cancelled for master in masters)
        masters = [master for master in masters if not master.is_cancelled]
        if is_cancelled:
            return
        if len(masters) == 1 and not overrides and not masters[0].is_series:
            yield from self._instance(masters[0], masters[0].uid, masters[0].start, None)
        else:
            yield from self._series(masters, overrides)

    def _series(self, masters: list[EventTimes], overrides: list[EventTimes]) -> Iterator[Instance]:
        pattern = next((master.start for master in masters if master.start), None)
        excluded = _Excluded(self._zones, pattern, masters)
        replaced: dict[str, tuple[Moment, EventTimes]] = {}
        for event in sorted(overrides, key=lambda event: event.rank):
            assert event.recurrence_id
            original = _like(event.recurrence_id, pattern, self._zones)
            replaced[original.recurrence_key] = original, event
        for key, (original, event) in replaced.items():
            if not event.is_cancelled and original not in excluded:
                yield from self._instance(event, f"{event.uid}_{key}", event.start, original)
        changes = sorted(
            (_Change.of(original, event) for original, event in replaced.values() if event.is_range),
            key=lambda change: change.since,
        )
        for master in masters:
            if master.start is None:
                yield from self._instance(master, master.uid, None, None)
            else:
                yield from self._expand(master, master.start, replaced.keys(), excluded, changes)

    def _expand(
        self,
        master: EventTimes,
        start: Moment,
        replaced: Iterable[str],
        excluded: "_Excluded",
        changes: list["_Change"],
    ) -> Iterator[Instance]:
        longest = max([master.length, *(change.event.length for change in changes)])
        shifts = [timedelta(0), *(change.shift for change in changes)]
        first = wall_of(self._start) - longest - max(shifts) - _MARGIN
        last = wall_of(self._end) - min(shifts) + _MARGIN
        seen = set(replaced)
        count = 0
        for original, length in self._starts(master, start, first, last):
            key = original.recurrence_key
            if key in seen or original in excluded:
                continue
            if count >= self._most_of_series:
                # Only a rule alone gives its starts in order.
                is_ordered = len(master.rules) == 1 and not master.added
                until = original.utc + min(shifts) if is_ordered else self._start
                if until < self._end:
                    self._note("ics.series_with_too_many_instances", master.uid)
                    self._cut_at(until)
                return
            seen.add(key)
            event, at = master, original
            for change in changes:
                if change.since <= original.utc:
                    event, at = change.event, change.apply(original)
            if event.is_cancelled:
                continue
            for instance in self._instance(event, f"{master.uid}_{key}", at, original, length):
                yield instance
                count += 1

    def _starts(
        self, master: EventTimes, start: Moment, first: datetime, last: datetime
    ) -> Iterator[tuple[Moment, timedelta | None]]:
        """Return the series' original starts between two local times, and the length of those with their own."""
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
                for original in follow_rule(rule, start, first=first, last=last):
                    yield original, None
            except RuleRefused:
                self._note("ics.rule_refused", master.uid)

    def _instance(
        self,
        event: EventTimes,
        instance_id: str,
        at: Moment | None,
        original: Moment | None,
        length: timedelta | None = None,
    ) -> Iterator[Instance]:
        """Yield the instance if it is wanted; without wanted ids, if it is in the window or has no start."""
        original_start = original.utc if original else None
        if self._wanted is not None and instance_id not in self._wanted:
            return
        if at is None:
            yield Instance(event, instance_id, None, None, original_start)
            return
        start = at.utc
        length = event.length if length is None else length
        end = start + length if event.is_exact else max(at.at(at.wall + length).utc, start)
        if self._window is None or self._window.overlaps(start, end):
            yield Instance(event, instance_id, start, end, original_start)


class _Until(NamedTuple):
    """The part of a window that ends at `end`."""

    window: TimeRange
    end: datetime

    @property
    def start(self) -> datetime:
        return self.window.start

    def overlaps(self, start: datetime, end: datetime) -> bool:
        return start < self.end and self.window.overlaps(start, end)


class _Excluded:
    """The EXDATEs of a series. A DATE excludes every instance that starts on that day."""

    def __init__(self, zones: ZoneTable, pattern: Moment | None, masters: Iterable[EventTimes]) -> None:
        self._keys: set[str] = set()
        self._days: set[datetime] = set()
        for line in (line for master in masters for line in master.excluded):
            for excluded in read_moments(line, zones):
                if excluded.start.is_date:
                    self._days.add(excluded.start.wall)
                else:
                    self._keys.add(_like(excluded.start, pattern, zones).recurrence_key)

    def __contains__(self, original: Moment) -> bool:
        day = original.wall.replace(hour=0, minute=0, second=0)
        return original.recurrence_key in self._keys or day in self._days


class _Change(NamedTuple):
    """A RANGE=THISANDFUTURE: all instances from `since` on are moved by `shift`."""

    since: datetime
    shift: timedelta
    event: EventTimes

    @classmethod
    def of(cls, original: Moment, event: EventTimes) -> "_Change":
        shift = timedelta(0)
        if event.start and event.start.is_date == original.is_date:
            is_same_wall = event.start.zone == original.zone or original.is_date
            shift = event.start.wall - original.wall if is_same_wall else event.start.utc - original.utc
        return cls(original.utc, shift if abs(shift) < MAX_LENGTH else timedelta(0), event)

    def apply(self, original: Moment) -> Moment:
        return original.at(original.wall + self.shift)


def _current_masters(group: Iterable[EventTimes]) -> list[EventTimes]:
    """The current versions of the events without RECURRENCE-ID, which have the highest SEQUENCE.

    Several of the same SEQUENCE with different starts are different events: some exporters give them one UID.
    """
    masters = sorted((event for event in group if not event.recurrence_id), key=lambda event: event.rank)
    by_start = {
        event.start.recurrence_key if event.start else None: event
        for event in masters
        if event.sequence == masters[-1].sequence
    }
    return list(by_start.values())


def _like(moment: Moment, pattern: Moment | None, zones: ZoneTable) -> Moment:
    """`moment` in the form of the series that starts at `pattern`, such as a date for an all-day series."""
    if pattern is None:
        return moment
    if moment.is_floating:
        return pattern.at(moment.wall) if not pattern.is_date else pattern.at(midnight(moment.wall))
    if moment.is_date == pattern.is_date:
        return moment
    if moment.is_date:
        return pattern.at(datetime.combine(moment.wall, pattern.wall.time()))
    wall = moment.wall
    if moment.zone.tzinfo is UTC:
        wall = moment.utc.astimezone(zones.calendar.tzinfo).replace(tzinfo=None)
    return pattern.at(midnight(wall))
