"""The mailboxes of the fake Graph: calendars, events, series and their occurrences, and what changed when.

See docs/reference/microsoft.md.

Ids are immutable ids throughout; `default_id` gives the other form of the same id.
"""

import dataclasses
import re
import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

import orjson
from dateutil.rrule import rrulestr  # type: ignore[import-untyped]  # dateutil ships no types

from app.core.clock import utcnow
from app.ical.timezones import named_zone

AllDayStyle = Literal["date", "shifted"]
ChangeType = Literal["created", "updated", "deleted"]
Form = Literal["full", "stripped", "removed"]
Span = tuple[float, float]  # seconds since 1970; the end is exclusive

EVERYWHERE: Span = (float("-inf"), float("inf"))
HORIZON = timedelta(days=730)  # how far series without an end are expanded
NEVER = "0001-01-01T00:00:00Z"
_CREATED = "2026-11-01T08:00:00.1234567Z"
_STRIPPED = ("@odata.etag", "id", "seriesMasterId", "type", "start", "end")
_DEFAULT_ID_PREFIX, _DEFAULT_ID_END = "AAMkADy/", "+A="
_WEEKDAYS = {
    "MO": "monday", "TU": "tuesday", "WE": "wednesday", "TH": "thursday",
    "FR": "friday", "SA": "saturday", "SU": "sunday",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One event as of one revision. Never changed, so that rounds under way keep what they saw.

    `body` is the whole resource with UTC times; the day of an all-day event stands there as a midnight.
    """

    id: str
    body: bytes
    rev: int
    span: Span
    series_id: str | None = None
    is_deleted: bool = False

    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.body)
        return found


@dataclasses.dataclass(slots=True)
class Series:
    id: str
    start: datetime | date
    duration: timedelta
    rrule: str
    fields: dict[str, Any]
    rev: int = 0
    master: Item | None = None
    overrides: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    deleted: set[str] = dataclasses.field(default_factory=set)

    def slots(self, zone: ZoneInfo, until: datetime) -> Iterator[tuple[str, datetime | date]]:
        """Ids and original starts of the occurrences."""
        if isinstance(self.start, datetime):
            for at in rrulestr(self.rrule, dtstart=self.start.astimezone(zone)):
                if at > until:
                    return
                yield occurrence_id(self.id, at), at
        else:
            for at in rrulestr(self.rrule, dtstart=datetime.combine(self.start, time.min)):
                if at > until.replace(tzinfo=None):
                    return
                yield occurrence_id(self.id, at.date()), at.date()


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a delta response: an event, whole or stripped, or the note that an id is out of view."""

    id: str
    form: Form
    item: Item | None = None


def occurrence_id(series_id: str, original_start: datetime | date) -> str:
    if isinstance(original_start, datetime):
        return f"{series_id}.{original_start.astimezone(UTC):%Y%m%dT%H%M}"
    return f"{series_id}.{original_start:%Y%m%d}"


def new_id() -> str:
    return f"AAkALg{secrets.token_urlsafe(24)}"


def default_id(event_id: str) -> str:
    """The same event's id without `IdType="ImmutableId"`; with characters that need encoding in a path."""
    return f"{_DEFAULT_ID_PREFIX}{event_id}{_DEFAULT_ID_END}"


def immutable_id(event_id: str) -> str:
    return event_id.removeprefix(_DEFAULT_ID_PREFIX).removesuffix(_DEFAULT_ID_END)


def overlaps(span: Span, window: Span) -> bool:
    return span[0] < window[1] and (span[1] > window[0] or span[0] == span[1] >= window[0])


def graph_time(at: datetime) -> str:
    """Seven digits of a second, and no offset ("Event fields")."""
    return f"{at:%Y-%m-%dT%H:%M:%S.%f}0"


class Calendar:
    """One calendar. Every public method that changes something is one revision, passed to `on_change`."""

    def __init__(
        self,
        calendar_id: str,
        *,
        name: str,
        owner: "Mailbox",
        is_default: bool = False,
        group_id: str | None = None,
    ) -> None:
        self.id = calendar_id
        self.name = name
        self.owner = owner
        self.is_default = is_default
        self.group_id = group_id
        self.generation = 0
        self.rev = 0
        self.items: dict[str, Item] = {}  # single events and occurrences
        self.series: dict[str, Series] = {}
        self.dead_series: dict[str, int] = {}
        self._listed: tuple[int, Span, list[Item]] | None = None

    # --- changes -----------------------------------------------------------------------------------------

    def add_event(self, *, event_id: str | None, start: Any, end: Any, fields: Mapping[str, Any]) -> str:
        event_id = event_id or new_id()
        resource = self._resource(event_id, start, end, fields)
        self.rev += 1
        self._put(resource)
        self._notify("created", event_id)
        return event_id

    def put_raw(self, resource: dict[str, Any]) -> None:
        """An event exactly as given, however odd; it is in every window."""
        event_id = resource["id"] if isinstance(resource.get("id"), str) else new_id()
        self.rev += 1
        self.items[event_id] = Item(event_id, orjson.dumps(resource), self.rev, EVERYWHERE)
        self._notify("created", event_id)

    def update_event(self, event_id: str, fields: Mapping[str, Any]) -> None:
        """Sets members of a single event or of an occurrence, which becomes an exception."""
        item = self._live(event_id)
        if item.series_id is not None:
            series = self.series[item.series_id]
            series.overrides.setdefault(event_id, {}).update(fields)
            self._change_series(series)
            return
        self.rev += 1
        self._put(self._merged(item.data(), fields))
        self._notify("updated", event_id)

    def delete_event(self, event_id: str) -> None:
        """A single event leaves a tombstone; an occurrence vanishes, and its series changes ("Delta")."""
        item = self._live(event_id)
        if item.series_id is not None:
            series = self.series[item.series_id]
            series.deleted.add(event_id)
            self._change_series(series)
            return
        self.rev += 1
        self.items[event_id] = dataclasses.replace(item, rev=self.rev, is_deleted=True)
        self._notify("deleted", event_id)

    def add_series(
        self, *, series_id: str | None, start: Any, end: Any, rrule: str, fields: Mapping[str, Any]
    ) -> str:
        series = Series(series_id or new_id(), start, end - start, rrule, dict(fields))
        self.series[series.id] = series
        self._change_series(series, "created")
        return series.id

    def update_series(
        self, series_id: str, *, start: Any, end: Any, rrule: str | None, fields: Mapping[str, Any]
    ) -> None:
        """Another pattern drops exceptions and brings deleted occurrences back, as in Outlook."""
        series = self.series[series_id]
        if start is not None or rrule is not None:
            series.overrides.clear()
            series.deleted.clear()
        if start is not None:
            series.start, series.duration = start, end - start
        series.rrule = rrule or series.rrule
        series.fields.update(fields)
        self._change_series(series)

    def split_series(self, series_id: str, at: datetime, fields: Mapping[str, Any]) -> str:
        """An edit of "this and following": the old series ends before `at`, a new one starts there."""
        old = self.series[series_id]
        last = at.astimezone(UTC) - timedelta(seconds=1)
        rule = ";".join(part for part in old.rrule.split(";") if not part.startswith(("UNTIL=", "COUNT=")))
        old.rrule = f"{rule};UNTIL={last:%Y%m%dT%H%M%SZ}"
        self._change_series(old)
        return self.add_series(
            series_id=None, start=at, end=at + old.duration, rrule=rule, fields={**old.fields, **fields}
        )

    def delete_series(self, series_id: str) -> None:
        del self.series[series_id]
        self.rev += 1
        self.dead_series[series_id] = self.rev
        self._drop_occurrences(series_id)
        self._notify("deleted", series_id)

    def seed(
        self,
        count: int,
        *,
        start: datetime,
        spacing: timedelta,
        duration: timedelta,
        body: str,
        prefix: str,
    ) -> None:
        """Many single events in one revision."""
        self.rev += 1
        template = self._resource("", start, start + duration, {"body": body})
        template |= {"changeKey": self._change_key(), "@odata.etag": f'W/"{self._change_key()}"'}
        for number in range(count):
            at = start + number * spacing
            event_id = f"{prefix}{number:07d}"
            resource = template | {
                "id": event_id,
                "iCalUId": _uid(event_id),
                "webLink": _web_link(event_id),
                "subject": f"Event {number}",
                "start": _utc(at),
                "end": _utc(at + duration),
            }
            span = (at.timestamp(), (at + duration).timestamp())
            self.items[event_id] = Item(event_id, orjson.dumps(resource), self.rev, span)
        self._notify("created", f"{prefix}{0:07d}")

    # --- reading -----------------------------------------------------------------------------------------

    def listing(self, window: Span) -> list[Item]:
        """What calendarView shows: single events, occurrences and exceptions, by start."""
        if self._listed is None or self._listed[:2] != (self.rev, window):
            found = [
                item for item in self.items.values() if not item.is_deleted and overlaps(item.span, window)
            ]
            found.sort(key=lambda item: (item.span[0], item.id))
            self._listed = (self.rev, window, found)
        return self._listed[2]

    def delta(self, since: int | None, window: Span) -> list[list[Entry]]:
        """The entries of a delta round; the entries of one series are together. None: a first round."""
        if since == self.rev:
            return []
        units: list[tuple[int, list[Entry]]] = []
        in_window: dict[str, list[Item]] = {}
        for item in self.items.values():
            is_visible = not item.is_deleted and overlaps(item.span, window)
            if item.series_id is not None:
                if is_visible:
                    in_window.setdefault(item.series_id, []).append(item)
            elif since is None or item.rev > since:
                if is_visible:
                    units.append((item.rev, [Entry(item.id, "full", item)]))
                elif since is not None:
                    units.append((item.rev, [Entry(item.id, "removed")]))
        for series in self.series.values():
            if since is None or series.rev > since:
                unit = _series_entries(series, in_window.get(series.id, []))
                if since is not None or len(unit) > 1:
                    units.append((series.rev, unit))
        if since is not None:
            units += [(rev, [Entry(id_, "removed")]) for id_, rev in self.dead_series.items() if rev > since]
        return [unit for _, unit in sorted(units, key=lambda unit: unit[0])]

    def find(self, event_id: str) -> Item | None:
        series = self.series.get(event_id)
        found = series.master if series else self.items.get(event_id)
        return None if found is None or found.is_deleted else found

    # --- inside one revision -----------------------------------------------------------------------------

    def _live(self, event_id: str) -> Item:
        item = self.items[event_id]
        assert not item.is_deleted, f"{event_id} is deleted"
        return item

    def _notify(self, change: ChangeType, event_id: str) -> None:
        self.owner.on_change(self, change, event_id)

    def _change_series(self, series: Series, change: ChangeType = "updated") -> None:
        """Every member counts as changed with any one of them: they are all stored in the master."""
        self.rev += 1
        series.rev = self.rev
        zone = self.owner.zone
        end = series.start + series.duration
        recurrence = _recurrence(series, zone)
        master = self._resource(
            series.id, series.start, end, {**series.fields, "type": "seriesMaster", "recurrence": recurrence}
        )
        master |= self._stamp()
        series.master = Item(series.id, orjson.dumps(master), self.rev, EVERYWHERE)
        self._drop_occurrences(series.id)
        for event_id, original in series.slots(zone, self.owner.now() + HORIZON):
            if event_id in series.deleted:
                continue
            override = series.overrides.get(event_id)
            fields = {
                **series.fields,
                "type": "occurrence" if override is None else "exception",
                "seriesMasterId": series.id,
                "originalStart": _slot(original),
            }
            resource = self._resource(event_id, original, original + series.duration, fields)
            self._put(self._merged(resource, override or {}), series_id=series.id)
        # An edit of one occurrence is notified as a change of the master ("Subscriptions").
        self._notify(change, series.id)

    def _drop_occurrences(self, series_id: str) -> None:
        for event_id in [item.id for item in self.items.values() if item.series_id == series_id]:
            del self.items[event_id]

    def _put(self, resource: dict[str, Any], *, series_id: str | None = None) -> None:
        resource |= self._stamp()
        event_id = resource["id"]
        self.items[event_id] = Item(
            event_id, orjson.dumps(resource), self.rev, self._span(resource), series_id
        )

    def _stamp(self) -> dict[str, Any]:
        key = self._change_key()
        return {
            "@odata.etag": f'W/"{key}"',
            "changeKey": key,
            "lastModifiedDateTime": f"{graph_time(self.owner.now())}Z",
        }

    def _change_key(self) -> str:
        return f"DwAAABYAAAB{self.rev:08d}"

    def _span(self, resource: dict[str, Any]) -> Span:
        zone: Any = UTC
        if resource["isAllDay"]:
            known = named_zone(resource["originalStartTimeZone"])
            zone = known.tzinfo if known else UTC
        start, end = (
            datetime.fromisoformat(resource[name]["dateTime"]).replace(tzinfo=zone)
            for name in ("start", "end")
        )
        return start.timestamp(), end.timestamp()

    def _resource(self, event_id: str, start: Any, end: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
        owner = {"name": self.owner.display_name, "address": self.owner.email}
        resource: dict[str, Any] = {
            "id": event_id,
            "createdDateTime": _CREATED,
            "categories": [],
            "transactionId": None,
            "originalStartTimeZone": self.owner.windows_zone,
            "originalEndTimeZone": self.owner.windows_zone,
            # Each occurrence of a series has another one ("Event fields").
            "iCalUId": _uid(event_id),
            "reminderMinutesBeforeStart": 15,
            "isReminderOn": True,
            "hasAttachments": False,
            "subject": "Meeting",
            "bodyPreview": "",
            "importance": "normal",
            "sensitivity": "normal",
            "isAllDay": not isinstance(start, datetime),
            "isCancelled": False,
            "isOrganizer": True,
            "responseRequested": True,
            "seriesMasterId": None,
            "showAs": "busy",
            "type": "singleInstance",
            "webLink": _web_link(event_id),
            "onlineMeetingUrl": None,
            "isOnlineMeeting": False,
            "onlineMeetingProvider": "unknown",
            "allowNewTimeProposals": True,
            "isDraft": False,
            "hideAttendees": False,
            "recurrence": None,
            "responseStatus": {"response": "organizer", "time": NEVER},
            "body": {"contentType": "html", "content": ""},
            "location": _place(""),
            "locations": [],
            "attendees": [],
            "organizer": {"emailAddress": owner},
            "onlineMeeting": None,
        }
        return self._merged(resource, {"start": start, "end": end, **fields})

    def _merged(self, resource: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        """With short forms spelled out: times for `start` and `end`, texts for `body` and `location`."""
        merged = dict(resource)
        for name, value in fields.items():
            if name == "body" and isinstance(value, str):
                merged["body"] = {"contentType": "html", "content": value}
                merged["bodyPreview"] = _as_text(value)[:255]
            elif name == "location" and isinstance(value, str):
                merged["location"] = _place(value)
                merged["locations"] = [_place(value)]
            elif name in {"start", "end"} and isinstance(value, datetime):
                merged[name] = _utc(value)
                merged["isAllDay"] = False
            elif name in {"start", "end"} and isinstance(value, date):
                merged[name] = {"dateTime": f"{value}T00:00:00.0000000", "timeZone": "UTC"}
                merged["isAllDay"] = True
            else:
                merged[name] = value
        return merged


class Mailbox:
    """One account: what `/me` shows, its calendars, and how the server treats it.

    `refusal` (status, code, message) is the response to every request for data, `retry_after` with it.
    """

    def __init__(
        self,
        email: str,
        *,
        tenant_id: str,
        windows_zone: str,
        now: Callable[[], datetime] = utcnow,
        on_change: Callable[[Calendar, ChangeType, str], None] = lambda *_: None,
    ) -> None:
        self.email = email
        self.mail: str | None = email
        self.user_id = str(uuid.uuid5(uuid.NAMESPACE_URL, email))
        self.tenant_id = tenant_id
        self.display_name = email.partition("@")[0].title()
        self.windows_zone = windows_zone
        zone = named_zone(windows_zone)
        assert zone is not None
        assert zone.name is not None
        self.zone = ZoneInfo(zone.name)
        self.now = now
        self.on_change = on_change
        self.refusal: tuple[int, str, str] | None = None
        self.refusal_retry_after: int | None = None
        self.asks_for_claims = False
        self.in_flight = 0
        self.most_in_flight = 0
        self.calendars: dict[str, Calendar] = {}
        self.groups: dict[str, str] = {}
        self.group_id = self.add_group("My Calendars")
        self.default = self.add_calendar("Calendar", is_default=True)

    def add_group(self, name: str) -> str:
        group_id = f"AQMkAGroup/{secrets.token_urlsafe(9)}+g="
        self.groups[group_id] = name
        return group_id

    def add_calendar(
        self,
        name: str,
        *,
        is_default: bool = False,
        group_id: str | None = None,
        calendar_id: str | None = None,
    ) -> Calendar:
        calendar = Calendar(
            calendar_id or f"AQMkACal/{secrets.token_urlsafe(9)}+c=",
            name=name,
            owner=self,
            is_default=is_default,
            group_id=group_id or self.group_id,
        )
        self.calendars[calendar.id] = calendar
        return calendar


@dataclasses.dataclass(frozen=True, slots=True)
class Preferences:
    """What a request's `Prefer` header asks for."""

    zone_name: str = "UTC"
    has_immutable_ids: bool = False
    body_type: str = "html"
    page_size: int | None = None


def render(
    data: dict[str, Any],
    preferences: Preferences,
    *,
    select: set[str] | None = None,
    all_day_style: AllDayStyle = "date",
) -> dict[str, Any]:
    """A resource as it goes out."""
    shown = dict(data)
    if preferences.zone_name != "UTC" or (all_day_style == "shifted" and data.get("isAllDay")):
        for name in ("start", "end"):
            shown[name] = _in_zone(data, name, preferences.zone_name, all_day_style)
    if not preferences.has_immutable_ids:
        for name in ("id", "seriesMasterId"):
            if isinstance(shown.get(name), str):
                shown[name] = default_id(shown[name])
    if preferences.body_type == "text" and isinstance(shown.get("body"), dict):
        shown["body"] = {"contentType": "text", "content": _as_text(shown["body"]["content"])}
    if select is None:
        return shown
    return {name: value for name, value in shown.items() if name in select or name in {"id", "@odata.etag"}}


def render_entry(entry: Entry, preferences: Preferences, all_day_style: AllDayStyle) -> dict[str, Any]:
    """An entry of a delta response."""
    if entry.item is None:
        shown_id = entry.id if preferences.has_immutable_ids else default_id(entry.id)
        return {
            "@odata.type": "#microsoft.graph.event",
            "id": shown_id,
            "@removed": {"reason": "deleted"},
        }
    resource = render(entry.item.data(), preferences, all_day_style=all_day_style)
    if entry.form == "stripped":
        resource = {name: resource[name] for name in _STRIPPED}
    return {"@odata.type": "#microsoft.graph.event", **resource}


def _series_entries(series: Series, members: list[Item]) -> list[Entry]:
    """A series is sent whole: master, occurrences without content, exceptions with theirs ("Delta")."""
    if not members or series.master is None:
        return [Entry(series.id, "removed")]
    entries = [Entry(series.id, "full", series.master)]
    for item in members:
        form: Form = "full" if item.id in series.overrides else "stripped"
        entries.append(Entry(item.id, form, item))
    return entries


def _in_zone(data: dict[str, Any], name: str, zone_name: str, all_day_style: AllDayStyle) -> dict[str, str]:
    written = datetime.fromisoformat(data[name]["dateTime"])
    zone = named_zone(zone_name)
    home = named_zone(data["originalStartTimeZone"])
    assert zone is not None
    if not data["isAllDay"]:
        written = written.replace(tzinfo=UTC).astimezone(zone.tzinfo)
    elif all_day_style == "shifted" and home is not None:
        written = written.replace(tzinfo=home.tzinfo).astimezone(zone.tzinfo)
    return {"dateTime": graph_time(written), "timeZone": zone_name}


def _utc(at: datetime) -> dict[str, str]:
    return {"dateTime": graph_time(at.astimezone(UTC)), "timeZone": "UTC"}


def _slot(original: datetime | date) -> str:
    if isinstance(original, datetime):
        return f"{original.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return f"{original}T00:00:00Z"


def _place(name: str) -> dict[str, str]:
    return {"displayName": name, "locationType": "default", "uniqueId": name, "uniqueIdType": "private"}


def _as_text(content: str) -> str:
    return re.sub(r"<[^>]*>", "", content)


def _uid(event_id: str) -> str:
    return f"040000008200E00074C5B7101A82E008{uuid.uuid5(uuid.NAMESPACE_OID, event_id).hex.upper()}"


def _web_link(event_id: str) -> str:
    return f"https://outlook.office365.com/owa/?itemid={event_id}&exvsurl=1&path=/calendar/item"


def _recurrence(series: Series, zone: ZoneInfo) -> dict[str, Any]:
    """Graph's form of the rules that tests use: daily and weekly ones, near enough for the others."""
    rule = dict(part.split("=", 1) for part in series.rrule.split(";"))
    first = series.start.astimezone(zone).date() if isinstance(series.start, datetime) else series.start
    pattern: dict[str, Any] = {
        "type": rule["FREQ"].lower(),
        "interval": int(rule.get("INTERVAL", 1)),
        "month": 0,
        "dayOfMonth": 0,
        "firstDayOfWeek": "sunday",
        "index": "first",
    }
    if rule["FREQ"] == "WEEKLY":
        days = rule.get("BYDAY", list(_WEEKDAYS)[first.weekday()]).split(",")
        pattern["daysOfWeek"] = [_WEEKDAYS[day] for day in days]
    bounds: dict[str, Any] = {
        "type": "noEnd",
        "startDate": str(first),
        "endDate": "0001-01-01",
        "recurrenceTimeZone": str(zone),
        "numberOfOccurrences": 0,
    }
    if "COUNT" in rule:
        bounds |= {"type": "numbered", "numberOfOccurrences": int(rule["COUNT"])}
    elif "UNTIL" in rule:
        until = rule["UNTIL"]
        bounds |= {"type": "endDate", "endDate": f"{until[:4]}-{until[4:6]}-{until[6:8]}"}
    return {"pattern": pattern, "range": bounds}
