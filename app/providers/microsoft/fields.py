"""Events of Microsoft Graph as RemoteEvents (docs/reference/microsoft.md, "Event fields")."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from app.events import limits
from app.events.data import (
    BusyStatus,
    RemoteAttendee,
    RemoteEvent,
    RemoteOrganizer,
    ResponseStatus,
    Visibility,
)
from app.events.derived import Derived, meaning
from app.events.raw import dump_raw
from app.ical.timezones import UTC_ZONE, Zone, named_zone
from app.meeting_links.extract import DEFAULT_HOSTS, MeetingHosts, MeetingLink, find_meeting_link

SELECT = (
    "id,type,subject,body,start,end,isAllDay,isCancelled,isOrganizer,isOnlineMeeting,onlineMeeting,"
    "onlineMeetingProvider,onlineMeetingUrl,location,locations,attendees,organizer,responseStatus,iCalUId,"
    "seriesMasterId,originalStart,originalStartTimeZone,originalEndTimeZone,showAs,sensitivity,importance,"
    "categories,hasAttachments,webLink"
)
# They change with a reminder, by themselves overnight
# (https://github.com/microsoftgraph/microsoft-graph-docs/issues/14632), and on every occurrence of a series as soon
# as one of them changes: in `raw` they would make events look changed that are not.
_VOLATILE = frozenset({"@odata.context", "@odata.etag", "@odata.type", "changeKey", "lastModifiedDateTime"})
_MOST_PLACES = 20
_SHOWN_AS: dict[str, BusyStatus] = {
    "free": "free",
    "tentative": "tentative",
    "busy": "busy",
    "oof": "out_of_office",
    "workingelsewhere": "working_elsewhere",
}
# "personal" is a label; such an event is shown to the same people as a normal one.
_SENSITIVITIES: dict[str, Visibility] = {"private": "private", "confidential": "confidential"}
# The members that `read_derived` reads.
DERIVED_FROM = ("showAs", "sensitivity", "@odata.etag", "changeKey")
_RESPONSES: dict[str, ResponseStatus] = {
    "organizer": "accepted",
    "accepted": "accepted",
    "tentativelyAccepted": "tentative",
    "declined": "declined",
}


def parse_event(item: dict[str, Any], *, hosts: MeetingHosts = DEFAULT_HOSTS) -> RemoteEvent:
    """An event resource in the neutral form. What cannot be read is None; raises ValueError without an id.

    The day of an all-day event is anchored at midnight in the zone in which it was created. `raw` lacks what
    changes while the event does not.
    """
    event_id = limits.id_of(item)
    if event_id is None:
        raise ValueError("an event without a usable id")
    home = _zone(item.get("originalStartTimeZone")) or _zone(_part(item, "start", "timeZone")) or UTC_ZONE
    is_all_day = item.get("isAllDay") is True
    organizer = _organizer(item.get("organizer"))
    start_time = _time_of(item.get("start"), home, is_all_day=is_all_day)
    link = _meeting_link(item, hosts)
    return RemoteEvent(
        platform_uuid=event_id,
        raw=raw_of(item),
        start_time=start_time,
        end_time=_time_of(item.get("end"), home, is_all_day=is_all_day),
        is_all_day=is_all_day,
        timezone=home.name,
        name=limits.cut(item.get("subject"), limits.TITLE),
        description=limits.cut(_part(item, "body", "content"), limits.DESCRIPTION) or None,
        location=limits.cut(_part(item, "location", "displayName"), limits.LOCATION) or None,
        ical_uid=limits.storable_key(item.get("iCalUId")),
        organizer=organizer,
        attendees=_attendees(item.get("attendees"), organizer),
        response_status=_own_response(item),
        recurring_event_id=limits.storable_key(item.get("seriesMasterId")),
        original_start_time=_original_start(item, home, start_time, is_all_day=is_all_day),
        meeting_url=link.url if link else None,
        meeting_platform=link.platform if link else None,
        is_cancelled=item.get("isCancelled") is True,
        **read_derived(item)._asdict(),
    )


def read_derived(item: Mapping[str, Any]) -> Derived:
    """Read the derived fields of an event resource, of which DERIVED_FROM suffices. It never fails.

    Graph has no types of events: `oof` says how the time is shown, and a meeting may be shown so as well.
    """
    return Derived(
        busy_status=meaning(_SHOWN_AS, item.get("showAs")) or "busy",
        visibility=meaning(_SENSITIVITIES, item.get("sensitivity")) or "default",
        etag=limits.storable_key(item.get("@odata.etag")) or limits.storable_key(item.get("changeKey")),
    )


def _part(item: Mapping[str, Any], name: str, member: str) -> Any:
    value = item.get(name)
    return value.get(member) if isinstance(value, dict) else None


def raw_of(item: dict[str, Any]) -> str:
    return dump_raw({name: value for name, value in item.items() if name not in _VOLATILE})


def _zone(name: Any) -> Zone | None:
    return named_zone(name) if isinstance(name, str) else None


def _wall(value: Any) -> datetime | None:
    """A dateTimeTimeZone as an aware time, in the zone that it is written in; UTC where it names none."""
    if not isinstance(value, dict) or not isinstance(value.get("dateTime"), str):
        return None
    name = value.get("timeZone")
    zone = UTC_ZONE if name is None else _zone(name)
    return _aware(value["dateTime"], zone)


def _aware(written: str, zone: Zone | None) -> datetime | None:
    try:
        at = datetime.fromisoformat(written)  # digits of a second past the sixth are dropped
    except ValueError:
        return None
    if at.tzinfo is not None:
        return at
    return at.replace(tzinfo=zone.tzinfo) if zone else None


def _time_of(value: Any, home: Zone, *, is_all_day: bool) -> datetime | None:
    at = _wall(value)
    if at is None:
        return None
    if is_all_day:
        # Midnight in neither zone: the nearest one is meant.
        return _midnight(_day(at, home) or _shifted(at, timedelta(hours=12)), home)
    return _in_utc(at)


def _day(at: datetime, home: Zone) -> date | None:
    """The day whose midnight `at` is: as it is written, or else in the zone of the event's creator."""
    if at.time() == time.min:
        return at.date()
    try:
        local = at.astimezone(home.tzinfo)
    except OverflowError:
        return None
    return local.date() if local.time() == time.min else None


def _shifted(at: datetime, by: timedelta) -> date:
    try:
        return (at + by).date()
    except OverflowError:
        return at.date()


def _midnight(day: date, home: Zone) -> datetime | None:
    return _in_utc(datetime.combine(day, time.min, home.tzinfo))


def _in_utc(at: datetime) -> datetime | None:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        return None


def _original_start(
    item: dict[str, Any], home: Zone, start_time: datetime | None, *, is_all_day: bool
) -> datetime | None:
    written = item.get("originalStart")
    at = _aware(written, UTC_ZONE) if isinstance(written, str) else None
    if at is None:
        return start_time if item.get("type") == "occurrence" else None
    day = _day(at, home) if is_all_day else None
    return _midnight(day, home) if day else _in_utc(at)


def _address(value: Any) -> tuple[str | None, str | None]:
    """E-mail address and name of a recipient."""
    if not isinstance(value, dict):
        return None, None
    email = limits.cut(_part(value, "emailAddress", "address"), limits.EMAIL)
    name = limits.cut(_part(value, "emailAddress", "name"), limits.NAME)
    return email or None, name or None


def _organizer(value: Any) -> RemoteOrganizer | None:
    email, name = _address(value)
    return RemoteOrganizer(email=email, name=name) if email or name else None


def _attendees(value: Any, organizer: RemoteOrganizer | None) -> tuple[RemoteAttendee, ...]:
    if not isinstance(value, list):
        return ()
    organizer_email = organizer.email.casefold() if organizer and organizer.email else None
    return tuple(
        _attendee(entry, organizer_email) for entry in value[: limits.ATTENDEES] if isinstance(entry, dict)
    )


def _attendee(entry: dict[str, Any], organizer_email: str | None) -> RemoteAttendee:
    email, name = _address(entry)
    response = _part(entry, "status", "response")
    is_organizer = response == "organizer" or (email is not None and email.casefold() == organizer_email)
    return RemoteAttendee(
        email=email,
        name=name,
        response_status=_response(response),
        is_organizer=is_organizer,
        is_optional=entry.get("type") == "optional",
        is_resource=entry.get("type") == "resource",
    )


def _response(word: Any) -> ResponseStatus:
    return _RESPONSES.get(word, "needs_action") if isinstance(word, str) else "needs_action"


def _own_response(item: dict[str, Any]) -> ResponseStatus | None:
    """The participation status of the calendar's owner; "none" is that of an event without invitations."""
    word = _part(item, "responseStatus", "response")
    if (word is None or word == "none") and item.get("isOrganizer") is True:
        return "accepted"
    return None if word is None else _response(word)


def _meeting_link(item: dict[str, Any], hosts: MeetingHosts) -> MeetingLink | None:
    join_urls = (_part(item, "onlineMeeting", "joinUrl"), item.get("onlineMeetingUrl"))
    provider = limits.storable_text(item.get("onlineMeetingProvider"))
    places = item.get("locations")
    places = [item.get("location"), *(places[:_MOST_PLACES] if isinstance(places, list) else ())]
    texts = [
        limits.storable_text(place.get(member))
        for place in places
        if isinstance(place, dict)
        for member in ("displayName", "locationUri")
    ]
    return find_meeting_link(
        join_urls=[text for value in join_urls if (text := limits.storable_text(value))],
        conference=[provider] if provider else [],
        location="\n".join(text for text in texts if text),
        # The whole of it: a Teams block stands at the end, often behind what is kept of the description.
        description=limits.storable_text(_part(item, "body", "content")),
        title=limits.storable_text(item.get("subject")),
        hosts=hosts,
    )
