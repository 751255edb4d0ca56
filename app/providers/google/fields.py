"""Events of the Google Calendar API as RemoteEvents (docs/reference/google.md, "Event fields")."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from app.events import limits
from app.events.data import (
    BusyStatus,
    EventType,
    RemoteAttendee,
    RemoteEvent,
    RemoteOrganizer,
    ResponseStatus,
    Visibility,
)
from app.events.derived import Derived, meaning
from app.events.raw import dump_raw
from app.meeting_links.extract import DEFAULT_HOSTS, MeetingHosts, MeetingLink, find_meeting_link

_RESPONSES: dict[str, ResponseStatus] = {
    "needsAction": "needs_action",
    "declined": "declined",
    "tentative": "tentative",
    "accepted": "accepted",
}
_NOT_MEETINGS = ("workingLocation", "birthday")
_TRANSPARENCIES: dict[str, BusyStatus] = {"transparent": "free"}
_STATUSES: dict[str, BusyStatus] = {"tentative": "tentative"}
_VISIBILITIES: dict[str, Visibility] = {
    "public": "public",
    "private": "private",
    "confidential": "confidential",
}
# An event from a mail (`fromGmail`) is an event as any other.
_EVENT_TYPES: dict[str, EventType] = {
    "outofoffice": "out_of_office",
    "focustime": "focus_time",
    "workinglocation": "working_location",
    "birthday": "birthday",
}
# The members that `read_derived` reads.
DERIVED_FROM = ("transparency", "status", "visibility", "eventType", "etag")


def read_derived(item: Mapping[str, Any]) -> Derived:
    """Read the derived fields of an `events` resource, of which DERIVED_FROM suffices. It never fails."""
    event_type = meaning(_EVENT_TYPES, item.get("eventType")) or "default"
    busy_status = meaning(_TRANSPARENCIES, item.get("transparency"))
    if busy_status is None and event_type == "out_of_office":
        busy_status = "out_of_office"
    return Derived(
        busy_status=busy_status or meaning(_STATUSES, item.get("status")) or "busy",
        visibility=meaning(_VISIBILITIES, item.get("visibility")) or "default",
        event_type=event_type,
        etag=limits.storable_key(item.get("etag")),
    )


def parse_event(
    item: dict[str, Any], *, calendar_timezone: str, hosts: MeetingHosts = DEFAULT_HOSTS
) -> RemoteEvent:
    """An `events` resource in the neutral form.

    What cannot be read is None; raises ValueError without an id.

    An all-day event starts at midnight in `calendar_timezone` (an IANA name; UTC if it is unknown).
    """
    return read_event(item, calendar_timezone=calendar_timezone, hosts=hosts)[0]


def read_event(
    item: dict[str, Any], *, calendar_timezone: str, hosts: MeetingHosts
) -> tuple[RemoteEvent, list[str]]:
    """`parse_event`, and the names of the fields that could not be taken over as they are."""
    event_id = limits.id_of(item)
    if event_id is None:
        raise ValueError("an event without a usable id")
    reader = _Reader(item, calendar_timezone)
    start, end = reader.moment("start"), reader.moment("end")
    if start.at is None and "start" not in reader.unreadable:
        reader.unreadable.append("start")
    attendees, own_response = reader.attendees()
    organizer, is_own = reader.organizer()
    if own_response is None and is_own:
        own_response = "accepted"
    link = reader.meeting_link(hosts)
    event = RemoteEvent(
        platform_uuid=event_id,
        raw=dump_raw(item),
        start_time=start.at,
        end_time=end.at,
        is_all_day=start.is_date,
        timezone=start.timezone,
        name=reader.text("summary", limits.TITLE),
        description=reader.text("description", limits.DESCRIPTION),
        location=reader.text("location", limits.LOCATION),
        ical_uid=reader.key("iCalUID"),
        organizer=organizer,
        attendees=attendees,
        response_status=own_response,
        recurring_event_id=reader.key("recurringEventId"),
        original_start_time=reader.moment("originalStartTime").at,
        meeting_url=link.url if link else None,
        meeting_platform=link.platform if link else None,
        **read_derived(item)._asdict(),
    )
    return event, reader.unreadable


class _Moment(NamedTuple):
    at: datetime | None = None
    is_date: bool = False
    timezone: str | None = None


class _Reader:
    """Reads single fields of an event whose members may have any type, and notes which were unusable."""

    def __init__(self, item: dict[str, Any], calendar_timezone: str) -> None:
        self._item = item
        self.unreadable: list[str] = []
        self._calendar_timezone = zone_name(calendar_timezone)
        if self._calendar_timezone is None:
            self._calendar_timezone = "UTC"
            self.unreadable.append("timeZone")
        self._calendar_zone = ZoneInfo(self._calendar_timezone)

    def text(self, name: str, length: int) -> str | None:
        value = self._item.get(name)
        if value is None:
            return None
        text = limits.cut(value, length)
        if text != value:
            self.unreadable.append(name)
        return text

    def key(self, name: str) -> str | None:
        value = self._item.get(name)
        key = limits.storable_key(value)
        if key != value:
            self.unreadable.append(name)
        return key

    def moment(self, name: str) -> _Moment:
        value = self._item.get(name)
        if value is None:
            return _Moment()
        moment = self._moment(value)
        if moment.at is None or moment.timezone is None:
            self.unreadable.append(name)
        return moment

    def _moment(self, value: Any) -> _Moment:
        if not isinstance(value, dict):
            return _Moment()
        written, day, named = value.get("dateTime"), value.get("date"), value.get("timeZone")
        if isinstance(written, str):
            timezone = self._calendar_timezone if named is None else zone_name(named)
            return _Moment(_instant(written, timezone), is_date=False, timezone=timezone)
        if isinstance(day, str):
            # The zone of an all-day event means nothing: the day is the calendar's.
            return _Moment(
                _midnight(day, self._calendar_zone), is_date=True, timezone=self._calendar_timezone
            )
        return _Moment()

    def attendees(self) -> tuple[tuple[RemoteAttendee, ...], ResponseStatus | None]:
        """The attendees, and the participation status of the one who is this calendar."""
        value = self._item.get("attendees")
        if value is None:
            return (), None
        if not isinstance(value, list):
            self.unreadable.append("attendees")
            return (), None
        entries = [entry for entry in value if isinstance(entry, dict)]
        if len(entries) < len(value) or len(entries) > limits.ATTENDEES:
            self.unreadable.append("attendees")
        own = next((_response(entry) for entry in entries if entry.get("self") is True), None)
        return tuple(_attendee(entry) for entry in entries[: limits.ATTENDEES]), own

    def organizer(self) -> tuple[RemoteOrganizer | None, bool]:
        """The organizer, and whether it is this calendar."""
        value = self._item.get("organizer")
        if value is None:
            return None, False
        if not isinstance(value, dict):
            self.unreadable.append("organizer")
            return None, False
        email = limits.cut(value.get("email"), limits.EMAIL)
        name = limits.cut(value.get("displayName"), limits.NAME)
        organizer = RemoteOrganizer(email=email, name=name) if email or name else None
        return organizer, value.get("self") is True

    def meeting_link(self, hosts: MeetingHosts) -> MeetingLink | None:
        if self._item.get("eventType") in _NOT_MEETINGS:
            return None
        data = self._item.get("conferenceData")
        conference = data if isinstance(data, dict) else {}
        entry_points, solution = conference.get("entryPoints"), conference.get("conferenceSolution")
        candidates = [
            entry.get("uri")
            for entry in (entry_points if isinstance(entry_points, list) else [])
            if isinstance(entry, dict) and entry.get("entryPointType") == "video"
        ]
        candidates.append(self._item.get("hangoutLink"))
        name = limits.storable_text(solution.get("name")) if isinstance(solution, dict) else None
        # Texts as long as they come: one cut in the middle of a link would give a link that leads nowhere.
        return find_meeting_link(
            join_urls=[text for value in candidates if (text := limits.storable_text(value))],
            conference=[name] if name else [],
            location=limits.storable_text(self._item.get("location")),
            description=limits.storable_text(self._item.get("description")),
            title=limits.storable_text(self._item.get("summary")),
            hosts=hosts,
        )


@lru_cache(maxsize=1024)
def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, LookupError):  # unknown, a path, a folder of the zone database
        return False
    return True


def zone_name(value: Any) -> str | None:
    return value if isinstance(value, str) and len(value) <= 64 and _is_zone(value) else None


def _instant(written: str, timezone: str | None) -> datetime | None:
    """A `dateTime` in UTC, by its offset, or by `timezone` where it has none."""
    try:
        at = datetime.fromisoformat(written)
        if at.tzinfo is None:
            if timezone is None:
                return None
            at = at.replace(tzinfo=ZoneInfo(timezone))
        return at.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _midnight(day: str, zone: ZoneInfo) -> datetime | None:
    try:
        return datetime.combine(date.fromisoformat(day), time.min, tzinfo=zone).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _response(entry: dict[str, Any]) -> ResponseStatus:
    value = entry.get("responseStatus")
    return _RESPONSES.get(value, "needs_action") if isinstance(value, str) else "needs_action"


def _attendee(entry: dict[str, Any]) -> RemoteAttendee:
    return RemoteAttendee(
        email=limits.cut(entry.get("email"), limits.EMAIL),
        name=limits.cut(entry.get("displayName"), limits.NAME),
        response_status=_response(entry),
        is_organizer=entry.get("organizer") is True,
        is_optional=entry.get("optional") is True,
        is_resource=entry.get("resource") is True,
    )
