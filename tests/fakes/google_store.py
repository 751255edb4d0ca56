"""The calendars of the fake Google: events, series and their instances, and what changed when.

See docs/reference/google.md.
"""

import dataclasses
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

import orjson
from dateutil.rrule import rrulestr  # type: ignore[import-untyped]  # dateutil ships no types

from app.core.clock import utcnow

TombstoneStyle = Literal["full", "exception", "bare"]
SeriesTombstone = Literal["instances", "master", "both"]
Span = tuple[float, float]  # seconds since 1970; the end is exclusive

EVERYWHERE: Span = (float("-inf"), float("inf"))
HORIZON = timedelta(days=730)  # how far series without an end are expanded
SERIES_TOMBSTONES_REACH = timedelta(days=183)


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One entry of a list, as of one revision. Never changed, so that pages under way keep what they saw."""

    id: str
    body: bytes
    rev: int
    span: Span
    spans_so_far: Span
    is_cancelled: bool = False
    is_exception: bool = False
    series_id: str | None = None

    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.body)
        return found


@dataclasses.dataclass(slots=True)
class Series:
    id: str
    start: datetime | date
    duration: timedelta
    rrule: str
    time_zone: str
    fields: dict[str, Any]
    exdates: set[str]  # instance ids
    overrides: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def occurrences(self, until: datetime) -> Iterator[tuple[str, datetime | date]]:
        """Instance ids and original starts."""
        if isinstance(self.start, datetime):
            first = self.start.astimezone(ZoneInfo(self.time_zone))
            for at in rrulestr(self.rrule, dtstart=first):
                if at > until:
                    return
                yield instance_id(self.id, at), at
        else:
            for at in rrulestr(self.rrule, dtstart=datetime.combine(self.start, time.min)):
                if at > until.replace(tzinfo=None):
                    return
                yield instance_id(self.id, at.date()), at.date()


def instance_id(series_id: str, original_start: datetime | date) -> str:
    """An id by "Instance ids": `{master}_{UTC of the original start}`, all-day `{master}_{date}`."""
    if isinstance(original_start, datetime):
        return f"{series_id}_{original_start.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    return f"{series_id}_{original_start:%Y%m%d}"


def when(value: Any, time_zone: str) -> Any:
    """A datetime or date as `start`/`end` resource; anything else is taken as it is."""
    if isinstance(value, datetime):
        return {"dateTime": value.astimezone(ZoneInfo(time_zone)).isoformat(), "timeZone": time_zone}
    if isinstance(value, date):
        return {"date": value.isoformat()}
    return value


def seconds(resource: Any, time_zone: str) -> float | None:
    """The instant of a `start`/`end` resource, None if it has none."""
    try:
        if "dateTime" in resource:
            return datetime.fromisoformat(resource["dateTime"]).timestamp()
        day = date.fromisoformat(resource["date"])
        return datetime.combine(day, time.min, tzinfo=ZoneInfo(time_zone)).timestamp()
    except (TypeError, ValueError, KeyError):
        return None


def hull(one: Span, other: Span) -> Span:
    return min(one[0], other[0]), max(one[1], other[1])


def overlaps(span: Span, window: Span) -> bool:
    """timeMin is an exclusive bound of the end, timeMax one of the start ("Event lists")."""
    return span[1] > window[0] and span[0] < window[1]


class Calendar:
    """One calendar. Every public method that changes something is one revision, passed to `on_change`."""

    def __init__(
        self,
        calendar_id: str,
        *,
        summary: str,
        time_zone: str,
        access_role: str = "owner",
        is_primary: bool = False,
        now: Callable[[], datetime] = utcnow,
        on_change: Callable[["Calendar"], None] = lambda _calendar: None,
    ) -> None:
        self.id = calendar_id
        self.summary = summary
        self.time_zone = time_zone
        self.access_role = access_role
        self.is_primary = is_primary
        self.token_generation = 0
        self.rev = 0
        self.items: dict[str, Item] = {}  # single events and instances
        self.masters: dict[str, Item] = {}
        self.series: dict[str, Series] = {}
        self.now = now
        self._on_change = on_change

    # --- changes -----------------------------------------------------------------------------------------

    def add_event(self, *, event_id: str | None, start: Any, end: Any, fields: Mapping[str, Any]) -> str:
        event_id = event_id or secrets.token_hex(13)
        resource = self._resource(event_id, start, end, fields)
        self._change(lambda: self._put(resource))
        return event_id

    def put_raw(self, resource: dict[str, Any]) -> None:
        """An entry exactly as given, however odd; without readable times it is in every window."""
        self.rev += 1
        event_id = resource["id"] if isinstance(resource.get("id"), str) else secrets.token_hex(13)
        self.items[event_id] = Item(event_id, orjson.dumps(resource), self.rev, EVERYWHERE, EVERYWHERE)
        self._on_change(self)

    def update_event(self, event_id: str, fields: Mapping[str, Any]) -> None:
        """Sets members of a single event or instance (None removes one). An instance becomes an exception."""
        item = self.items[event_id]
        changes = {name: when(value, self.time_zone) for name, value in fields.items()}
        if item.series_id is not None:
            self.series[item.series_id].overrides.setdefault(event_id, {}).update(changes)
        self._change(
            lambda: self._put(
                _merged(item.data(), changes),
                series_id=item.series_id,
                is_exception=item.series_id is not None,
            )
        )

    def delete_event(self, event_id: str) -> None:
        """Deletes a single event, or one instance of a series."""
        item = self.items[event_id]
        if item.series_id is not None:
            self.series[item.series_id].overrides[event_id] = {"status": "cancelled"}
        self._change(lambda: self._cancel(item, is_exception=item.series_id is not None))

    def add_series(
        self,
        *,
        series_id: str | None,
        start: Any,
        end: Any,
        rrule: str,
        exdates: Iterable[datetime | date],
        fields: Mapping[str, Any],
    ) -> str:
        series_id = series_id or secrets.token_hex(13)
        self.series[series_id] = Series(
            id=series_id,
            start=start,
            duration=end - start,
            rrule=rrule,
            time_zone=self.time_zone,
            fields=dict(fields),
            exdates={instance_id(series_id, at) for at in exdates},
        )
        self._change(lambda: self._expand(self.series[series_id]))
        return series_id

    def update_series(
        self,
        series_id: str,
        *,
        start: Any,
        end: Any,
        rrule: str | None,
        exdates: Iterable[datetime | date] | None,
        fields: Mapping[str, Any],
    ) -> None:
        """Every instance changes; those that the series has no longer are cancelled."""
        series = self.series[series_id]
        if start is not None and end is not None:
            series.start, series.duration = start, end - start
        series.rrule = rrule or series.rrule
        if exdates is not None:
            series.exdates = {instance_id(series_id, at) for at in exdates}
        series.fields.update(fields)
        self._change(lambda: self._expand(series))

    def split_series(self, series_id: str, at: datetime, fields: Mapping[str, Any]) -> str:
        """An edit of "this and following": the old series ends before `at`, a new one starts there.

        See "Instance ids".
        """
        old = self.series[series_id]
        last = at.astimezone(UTC) - timedelta(seconds=1)
        rule = ";".join(part for part in old.rrule.split(";") if not part.startswith(("UNTIL=", "COUNT=")))
        new_id = f"{series_id}_R{at.astimezone(UTC):%Y%m%dT%H%M%S}"
        self.update_series(
            series_id,
            start=None,
            end=None,
            rrule=f"{rule};UNTIL={last:%Y%m%dT%H%M%SZ}",
            exdates=None,
            fields={},
        )
        return self.add_series(
            series_id=new_id,
            start=at,
            end=at + old.duration,
            rrule=rule,
            exdates=(),
            fields={**old.fields, **fields},
        )

    def delete_series(self, series_id: str) -> None:
        """Only the instances of the coming half year leave tombstones, the others vanish.

        See "Cancelled entries".
        """
        del self.series[series_id]
        now = self.now().timestamp()
        reach = now + SERIES_TOMBSTONES_REACH.total_seconds()

        def cancel() -> None:
            self.masters[series_id] = self._cancelled(self.masters[series_id], is_exception=False)
            for item in [item for item in self.items.values() if item.series_id == series_id]:
                if now <= item.span[0] <= reach:
                    self._cancel(item)
                else:
                    del self.items[item.id]

        self._change(cancel)

    def seed(
        self,
        count: int,
        *,
        start: datetime,
        spacing: timedelta,
        duration: timedelta,
        description: str,
        prefix: str,
    ) -> None:
        """Many single events in one revision."""

        def put_all() -> None:
            for number in range(count):
                at = start + number * spacing
                fields = {"summary": f"Event {number}", "description": description}
                self._put(self._resource(f"{prefix}{number:07d}", at, at + duration, fields))

        self._change(put_all)

    # --- reading -----------------------------------------------------------------------------------------

    def listing(self, *, is_expanded: bool, window: Span, shows_cancelled: bool) -> list[Item]:
        """A full list. Unexpanded, the cancelled instances of live series always show ("Event lists")."""
        found = [
            item
            for item in self._entries(is_expanded=is_expanded)
            if overlaps(item.span, window)
            and (not item.is_cancelled or shows_cancelled or (not is_expanded and item.is_exception))
        ]
        if is_expanded:  # a deleted master never shows among instances
            return found
        return [item for item in found if item.series_id is None or item.series_id in self.series]

    def delta(
        self, *, since: int, is_expanded: bool, window: Span, leaks: bool, series_tombstone: SeriesTombstone
    ) -> list[Item]:
        """What changed after revision `since`: deletions always, the rest if it is or was in the window, or leaks."""
        found = [
            item
            for item in self._entries(is_expanded=is_expanded)
            if item.rev > since and (item.is_cancelled or leaks or overlaps(item.spans_so_far, window))
        ]
        if is_expanded:
            dead = {
                master.id for master in self.masters.values() if master.is_cancelled and master.rev > since
            }
            if series_tombstone == "master":
                found = [item for item in found if item.series_id not in dead]
            if series_tombstone != "instances":
                found += [self.masters[series_id] for series_id in dead]
        return sorted(found, key=lambda item: item.rev)

    def find(self, event_id: str) -> Item | None:
        return self.items.get(event_id) or self.masters.get(event_id)

    def _entries(self, *, is_expanded: bool) -> Iterator[Item]:
        if is_expanded:
            yield from self.items.values()
            return
        yield from self.masters.values()
        yield from (item for item in self.items.values() if item.series_id is None or item.is_exception)

    # --- inside one revision -----------------------------------------------------------------------------

    def _change(self, apply: Callable[[], None]) -> None:
        self.rev += 1
        apply()
        self._on_change(self)

    def _resource(self, event_id: str, start: Any, end: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
        resource = {
            "kind": "calendar#event",
            "id": event_id,
            "status": "confirmed",
            "htmlLink": f"https://www.google.com/calendar/event?eid={event_id}",
            "created": "2026-11-01T08:00:00.000Z",
            "creator": {"email": self.id, "self": True},
            "organizer": {"email": self.id, "self": True},
            "start": when(start, self.time_zone),
            "end": when(end, self.time_zone),
            "iCalUID": f"{event_id}@google.com",
            "sequence": 0,
            "reminders": {"useDefault": True},
            "eventType": "default",
        }
        return _merged(resource, {name: when(value, self.time_zone) for name, value in fields.items()})

    def _put(
        self, resource: dict[str, Any], *, series_id: str | None = None, is_exception: bool = False
    ) -> None:
        resource["etag"] = self._etag()
        resource["updated"] = self.now().strftime("%Y-%m-%dT%H:%M:%S.000Z")
        start = seconds(resource.get("start"), self.time_zone)
        end = seconds(resource.get("end"), self.time_zone)
        span = EVERYWHERE if start is None or end is None else (start, end)
        before = self.items.get(resource["id"])
        self.items[resource["id"]] = Item(
            id=resource["id"],
            body=orjson.dumps(resource),
            rev=self.rev,
            span=span,
            spans_so_far=hull(before.spans_so_far, span) if before else span,
            is_cancelled=resource.get("status") == "cancelled",
            is_exception=is_exception,
            series_id=series_id,
        )

    def _cancel(self, item: Item, *, is_exception: bool = False) -> None:
        self.items[item.id] = self._cancelled(item, is_exception=is_exception)

    def _cancelled(self, item: Item, *, is_exception: bool) -> Item:
        body = orjson.dumps({**item.data(), "status": "cancelled", "etag": self._etag()})
        return dataclasses.replace(
            item, body=body, rev=self.rev, is_cancelled=True, is_exception=is_exception
        )

    def _expand(self, series: Series) -> None:
        master = self._resource(series.id, series.start, series.start + series.duration, series.fields)
        master |= {"recurrence": [f"RRULE:{series.rrule}"], "etag": self._etag()}
        self.masters[series.id] = Item(series.id, orjson.dumps(master), self.rev, EVERYWHERE, EVERYWHERE)
        wanted = set()
        for event_id, original in series.occurrences(self.now() + HORIZON):
            if event_id in series.exdates:
                continue
            wanted.add(event_id)
            override = series.overrides.get(event_id)
            fields = {
                **series.fields,
                "iCalUID": master["iCalUID"],
                "recurringEventId": series.id,
                "originalStartTime": when(original, series.time_zone),
                **(override or {}),
            }
            resource = self._resource(event_id, original, original + series.duration, fields)
            self._put(resource, series_id=series.id, is_exception=override is not None)
        for item in list(self.items.values()):
            if item.series_id == series.id and item.id not in wanted and not item.is_cancelled:
                self._cancel(item)

    def _etag(self) -> str:
        return f'"{3_530_000_000_000_000 + self.rev}"'


def _merged(resource: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**resource, **changes}.items() if value is not None}


def tombstone(item: Item, style: TombstoneStyle) -> bytes:
    """A cancelled item in one of the shapes of "Cancelled entries"."""
    if style == "bare":
        return orjson.dumps({"id": item.id, "status": "cancelled"})
    if style == "full":
        return item.body
    data = item.data()
    names = ("kind", "etag", "id", "status", "recurringEventId", "originalStartTime")
    return orjson.dumps({name: data[name] for name in names if name in data})
