"""One event as an iCalendar file (RFC 5545)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo, available_timezones

from icalendar import Event, vCalAddress
from icalendar.enums import STATUS

from app.ical.participation import PARTSTATS, ParticipationStatus
from app.ical.writer import attendee, cal_address, strip_controls, write_calendar


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedPerson:
    email: str | None
    name: str | None
    response_status: ParticipationStatus = "needs_action"
    is_optional: bool = False
    is_resource: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedEvent:
    """The event of a file. Times are aware; `timezone` (IANA) gives the days of an all-day event.

    `original_start_time` is set for an instance of a series, whose `uid` it shares with the others. `busy_status` and
    `visibility` have the words of the API.
    """

    uid: str
    start_time: datetime
    end_time: datetime | None
    is_all_day: bool
    timezone: str | None
    original_start_time: datetime | None
    is_cancelled: bool
    name: str | None
    description: str | None
    location: str | None
    url: str | None
    organizer: ExportedPerson | None
    attendees: Sequence[ExportedPerson]
    created_at: datetime
    updated_at: datetime
    busy_status: str = "busy"
    visibility: str = "default"


def export_event(event: ExportedEvent) -> bytes:
    """A VCALENDAR with this VEVENT: times in UTC, or dates for an all-day event."""
    return write_calendar([_vevent(event)])


# TRANSP knows two states only, and these are Outlook's words for the others (docs/reference/icalendar.md, "Busy status
# and class").
_OUTLOOK = {
    "free": "FREE",
    "tentative": "TENTATIVE",
    "out_of_office": "OOF",
    "working_elsewhere": "WORKINGELSEWHERE",
}
_TRANSPARENT = {"free", "working_elsewhere"}


def _vevent(event: ExportedEvent) -> Event:
    vevent = _described(event)
    if event.busy_status in _OUTLOOK:
        vevent.add("TRANSP", "TRANSPARENT" if event.busy_status in _TRANSPARENT else "OPAQUE")
        vevent.add("X-MICROSOFT-CDO-BUSYSTATUS", _OUTLOOK[event.busy_status])
    if event.visibility != "default":
        vevent.add("CLASS", event.visibility.upper())
    return vevent


def _described(event: ExportedEvent) -> Event:
    start, end = _moment(event, event.start_time), _moment(event, event.end_time)
    has_length = event.end_time is not None and event.end_time > event.start_time
    return Event.new(
        uid=_line(event.uid),
        stamp=event.updated_at.astimezone(UTC),
        created=event.created_at.astimezone(UTC),
        last_modified=event.updated_at.astimezone(UTC),
        start=start,
        end=end if has_length and end != start else None,
        recurrence_id=_moment(event, event.original_start_time),
        status=STATUS.CANCELLED if event.is_cancelled else STATUS.CONFIRMED,
        summary=_text(event.name),
        description=_text(event.description),
        location=_text(event.location),
        url=_line(event.url),
        organizer=_organizer(event.organizer),
        attendees=[address for person in event.attendees if (address := _attendee(person)) is not None],
    )


def _moment(event: ExportedEvent, at: datetime | None) -> date | datetime | None:
    if at is None:
        return None
    if not event.is_all_day:
        return at.astimezone(UTC)
    known = event.timezone is not None and event.timezone in available_timezones()
    return at.astimezone(ZoneInfo(event.timezone or "UTC") if known else UTC).date()


def _organizer(person: ExportedPerson | None) -> vCalAddress | None:
    if person is None or not person.email:
        return None
    return cal_address(person.email, _line(person.name or None))


def _attendee(person: ExportedPerson) -> vCalAddress | None:
    if not person.email:
        return None
    return attendee(
        person.email,
        _line(person.name or None),
        status=person.response_status if person.response_status in PARTSTATS else "needs_action",
        is_optional=person.is_optional,
        is_resource=person.is_resource,
    )


def _text(value: str | None) -> str | None:
    return None if value is None else strip_controls(value)


def _line(value: str | None) -> str | None:
    """The value on one line, for properties and parameters in which a line break cannot be escaped."""
    return None if value is None else strip_controls(value).replace("\n", " ")
