"""One event as an iCalendar file (RFC 5545). Pure: text out, no network, no database."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo, available_timezones

from icalendar import Calendar, Event, vCalAddress
from icalendar.enums import CUTYPE, PARTSTAT, ROLE, STATUS

from app.core.addresses import mailto

_PRODUCT = "-//calbridge//calbridge//EN"
# All but tab and line feed; NEL and the separators of Unicode end a line for some readers.
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160), 0x2028, 0x2029])
_ANSWERS = {
    "needs_action": PARTSTAT.NEEDS_ACTION,
    "accepted": PARTSTAT.ACCEPTED,
    "tentative": PARTSTAT.TENTATIVE,
    "declined": PARTSTAT.DECLINED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedPerson:
    email: str | None
    name: str | None
    response_status: str = "needs_action"
    is_optional: bool = False
    is_resource: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedEvent:
    """Times are aware; `timezone` (IANA) tells which days an all-day event covers.

    `original_start_time` is set for an instance of a series, whose `uid` it shares with the others.
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


def export_event(event: ExportedEvent) -> bytes:
    """A VCALENDAR with this VEVENT: times in UTC, or dates for an all-day event."""
    calendar = Calendar()
    calendar.add("prodid", _PRODUCT)
    calendar.add("version", "2.0")
    calendar.add_component(_vevent(event))
    text: bytes = calendar.to_ical()
    return text


def _vevent(event: ExportedEvent) -> Event:
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
        url=_line(event.url) if event.url is not None else None,
        organizer=_person(event.organizer) if event.organizer is not None else None,
        attendees=[address for person in event.attendees if (address := _attendee(person)) is not None],
    )


def _moment(event: ExportedEvent, at: datetime | None) -> date | datetime | None:
    if at is None:
        return None
    if not event.is_all_day:
        return at.astimezone(UTC)
    known = event.timezone is not None and event.timezone in available_timezones()
    return at.astimezone(ZoneInfo(event.timezone or "UTC") if known else UTC).date()


def _person(person: ExportedPerson) -> vCalAddress | None:
    if not person.email:
        return None
    address = vCalAddress(mailto("".join(_line(person.email).split())))
    if person.name:
        address.params["CN"] = _line(person.name)
    return address


def _attendee(person: ExportedPerson) -> vCalAddress | None:
    address = _person(person)
    if address is None:
        return None
    address.params["PARTSTAT"] = _ANSWERS.get(person.response_status, PARTSTAT.NEEDS_ACTION)
    address.params["ROLE"] = ROLE.OPT_PARTICIPANT if person.is_optional else ROLE.REQ_PARTICIPANT
    address.params["CUTYPE"] = CUTYPE.RESOURCE if person.is_resource else CUTYPE.INDIVIDUAL
    return address


def _text(value: str | None) -> str | None:
    return None if value is None else value.replace("\r\n", "\n").translate(_CONTROLS)


def _line(value: str) -> str:
    """For places where iCalendar cannot escape a line break."""
    return value.translate(_CONTROLS).replace("\n", " ")
