"""Scheduling messages (iTIP, RFC 5546): REQUEST, CANCEL and REPLY of an event.

Texts of API clients cannot inject a line or a parameter: they lose their control characters and are escaped by the
icalendar library, and recurrence lines are parsed and written again. Lines are folded at 75 octets.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from icalendar import Event, vCalAddress, vRecur, vUri
from icalendar.parser import Contentline

from app.core.addresses import fold_address, same_address
from app.core.web_urls import safe_url
from app.ical.participation import PARTSTATS
from app.ical.timezones import named_zone
from app.ical.values import Written, parse_time
from app.ical.vtimezone import vtimezone
from app.ical.writer import attendee, cal_address, chair, write_calendar
from app.itip.clean import clean_line, clean_text
from app.itip.event import Guest, MailedEvent, Person

Method = Literal["REQUEST", "CANCEL", "REPLY"]

_END = b"\r\nEND:VEVENT\r\n"
_RECURRENCE_LINE = re.compile(r"(RRULE|RDATE|EXDATE)((?:;[A-Z-]+=[^;:]+)*):(.+)", re.IGNORECASE)
_TZID = re.compile(r";TZID=\"?([^;:\"]+)", re.IGNORECASE)
_RULE_TEXT = re.compile(r"[A-Z0-9=;,+-]+")
# In larger events each guest is listed alone: 500 mails with 500 guests each would be 100 MB.
MOST_GUESTS_LISTED = 100
# The definition of a zone begins with the first instance, and not later than this.
_LAST_ZONE_YEAR = 2100


def is_whole_cancel(event: MailedEvent, recipients: Sequence[Guest | Person]) -> bool:
    """Whether a CANCEL to `recipients` cancels the event, and does not only uninvite some of its guests."""
    reached = {fold_address(person.email) for person in recipients}
    return bool(event.guests) and all(fold_address(guest.email) in reached for guest in event.guests)


def build_request(event: MailedEvent, *, stamp: datetime, sent_by: str | None = None) -> bytes:
    """Write an invitation or its update. `stamp` is the time of this message, aware.

    Changed instances in `event.overrides` follow the series in the same object (RFC 5546 section 3.2.2). `sent_by` is
    the address that the mail comes from, if that is not the organizer's (RFC 6047 section 2.3).
    """
    vevents = [_requested(one, stamp, sent_by) for one in (event, *event.overrides)]
    return _calendar("REQUEST", event, stamp, *vevents)


class RequestsToOne:
    """REQUESTs of one event that list their recipient as the only guest; what they share is built once."""

    def __init__(self, event: MailedEvent, *, stamp: datetime, sent_by: str | None = None) -> None:
        events = (event, *event.overrides)
        bare = tuple(replace(one, guests=()) for one in event.overrides)
        ics = build_request(replace(event, guests=(), overrides=bare), stamp=stamp, sent_by=sent_by)
        # Texts cannot contain such a line, because line breaks are escaped.
        *self._heads, self._end = ics.split(_END)
        self._guests = [{fold_address(guest.email): guest for guest in one.guests} for one in events]
        self._lines: dict[Guest, bytes] = {}

    def to(self, email: str) -> bytes:
        key = fold_address(email)
        parts: list[bytes] = []
        for head, guests in zip(self._heads, self._guests, strict=True):
            parts.append(head)
            if key in guests:
                parts.append(self._line(guests[key]))
            parts.append(_END)
        return b"".join([*parts, self._end])

    def _line(self, guest: Guest) -> bytes:
        if guest not in self._lines:
            address = _host(guest) if guest.is_host else _attendee(guest, with_rsvp=True)
            line: bytes = Contentline.from_parts("ATTENDEE", address.params, address).to_ical()
            self._lines[guest] = b"\r\n" + line
        return self._lines[guest]


def _requested(event: MailedEvent, stamp: datetime, sent_by: str | None) -> Event:
    vevent = _vevent(event, stamp, sent_by)
    vevent.add("status", "CONFIRMED")
    if not any(same_address(guest.email, event.organizer.email) for guest in event.guests):
        vevent.add("attendee", _host(event.organizer))
    for guest in event.guests:
        is_host = guest.is_host or same_address(guest.email, event.organizer.email)
        vevent.add("attendee", _host(guest) if is_host else _attendee(guest, with_rsvp=True))
    return vevent


def build_cancel(
    event: MailedEvent,
    *,
    stamp: datetime,
    uninvited: Sequence[Guest | Person],
    is_whole: bool,
    sent_by: str | None = None,
) -> bytes:
    """Write the cancellation of the event (or instance) for `uninvited`.

    STATUS is CANCELLED only with `is_whole`, if the event is cancelled for all (RFC 5546 section 3.2.5).
    """
    vevent = _vevent(event, stamp, sent_by)
    if is_whole:
        vevent.add("status", "CANCELLED")
    for person in uninvited:
        if isinstance(person, Guest):
            vevent.add("attendee", _attendee(person, with_rsvp=False))
        else:
            vevent.add("attendee", _address(person))
    return _calendar("CANCEL", event, stamp, vevent)


def build_reply(event: MailedEvent, *, stamp: datetime, replying: Guest) -> bytes:
    """Write a guest's reply: one ATTENDEE, and the SEQUENCE of the invitation (RFC 5546 section 3.2.3)."""
    vevent = _vevent(event, stamp)
    address = _address(replying)
    address.params["PARTSTAT"] = PARTSTATS[replying.response_status]
    vevent.add("attendee", address)
    return _calendar("REPLY", event, stamp, vevent)


def _calendar(method: Method, event: MailedEvent, stamp: datetime, *vevents: Event) -> bytes:
    firsts: dict[str, int] = {}
    for one in (event, *event.overrides):
        if _is_zoned(one):
            first = _local(one, min(one.start, one.recurrence_id or one.start)).year
            firsts[one.timezone] = min(first, firsts.get(one.timezone, _LAST_ZONE_YEAR))
    zones = [vtimezone(name, first_year, stamp.year) for name, first_year in firsts.items()]
    return write_calendar([*zones, *vevents], method=method)


def _vevent(event: MailedEvent, stamp: datetime, sent_by: str | None = None) -> Event:
    vevent = Event()
    vevent.add("uid", clean_line(event.uid))
    vevent.add("dtstamp", stamp.astimezone(UTC).replace(microsecond=0))
    vevent.add("sequence", event.sequence)
    vevent.add("dtstart", _moment(event, event.start))
    if _ends_earlier_on_the_clock(event):
        vevent.add("duration", event.end - event.start)
    else:
        vevent.add("dtend", _end(event))
    if event.recurrence_id is not None:
        vevent.add("recurrence-id", event.recurrence_date or _original_start(event, event.recurrence_id))
    else:
        for line in event.recurrence:
            _add_recurrence(vevent, event, line)
    vevent.add("summary", clean_line(event.name))
    _add_place(vevent, event)
    vevent.add("transp", "OPAQUE")
    organizer = _address(event.organizer)
    if sent_by is not None and not same_address(sent_by, event.organizer.email):
        organizer.params["SENT-BY"] = f"mailto:{sent_by}"
    vevent.add("organizer", organizer)
    return vevent


def _add_place(vevent: Event, event: MailedEvent) -> None:
    """Add the location and the meeting link, also to DESCRIPTION: most clients do not show CONFERENCE."""
    url = safe_url(event.meeting_url)
    location = clean_line(event.location) or url
    if location:
        vevent.add("location", location)
    description = clean_text(event.description)
    if url and url not in description:
        description = f"{description}\n\n{url}" if description else url
    if description:
        vevent.add("description", description)
    if url:
        conference = vUri(url)
        conference.params.update({"VALUE": "URI", "FEATURE": ["AUDIO", "VIDEO"], "LABEL": "Join"})
        vevent.add("conference", conference)


def _address(person: Guest | Person) -> vCalAddress:
    return cal_address(clean_line(person.email), _shown_name(person))


def _shown_name(person: Guest | Person) -> str | None:
    # Many readers take a backslash for an escape here, and the parameters after it for the name.
    return clean_line(person.name).replace('"', "'").replace("\\", "/") or None


def _host(person: Guest | Person) -> vCalAddress:
    return chair(clean_line(person.email), _shown_name(person))


def _attendee(guest: Guest, *, with_rsvp: bool) -> vCalAddress:
    return attendee(
        clean_line(guest.email),
        _shown_name(guest),
        status=guest.response_status,
        is_optional=guest.is_optional,
        with_rsvp=with_rsvp,
    )


# Times


def _is_zoned(event: MailedEvent) -> bool:
    """Whether times are in the event's zone, so that a series keeps its hour; single events are in UTC."""
    is_of_series = bool(event.recurrence) or event.recurrence_id is not None
    return is_of_series and not event.is_all_day and event.timezone != "UTC"


def _local(event: MailedEvent, at: datetime) -> datetime:
    return at.astimezone(ZoneInfo(event.timezone))


def _moment(event: MailedEvent, at: datetime) -> date | datetime:
    if event.is_all_day:
        return _local(event, at).date()
    if _is_zoned(event):
        return _local(event, at)
    return at.astimezone(UTC)


def _original_start(event: MailedEvent, at: datetime) -> datetime:
    """RECURRENCE-ID in a series with times, also of an all-day instance (RFC 5545 section 3.8.4.4)."""
    return _local(event, at) if _is_zoned(event) else at.astimezone(UTC)


def _end(event: MailedEvent) -> date | datetime:
    """DTEND, exclusive; an all-day event has at least one day."""
    if not event.is_all_day:
        return _moment(event, event.end)
    first = _local(event, event.start).date()
    return max(_local(event, event.end).date(), first + timedelta(days=1))


def _ends_earlier_on_the_clock(event: MailedEvent) -> bool:
    """Whether the clocks go back in between: DTEND would not be later than DTSTART (RFC 5545 3.8.2.2)."""
    start, end = (_local(event, at).replace(tzinfo=None) for at in (event.start, event.end))
    return _is_zoned(event) and end <= start


def _add_recurrence(vevent: Event, event: MailedEvent, line: str) -> None:
    """Add one RRULE, RDATE or EXDATE line in the form of DTSTART. Raises ValueError for anything else."""
    match = _RECURRENCE_LINE.fullmatch(line.strip())
    if match is None:
        raise ValueError("not a recurrence line")
    name, parameters, value = match[1].upper(), match[2], match[3].strip()
    if name == "RRULE":
        vevent.add("rrule", _rule(event, value.upper()))
        return
    zone = _TZID.search(parameters)
    for text in value.split(","):
        written = parse_time(text)
        if written is None:
            raise ValueError(f"{name} is not a list of times")
        vevent.add(name, _in_form(event, written, zone[1] if zone else event.timezone))


def _rule(event: MailedEvent, text: str) -> vRecur:
    if not _RULE_TEXT.fullmatch(text):
        raise ValueError("not a recurrence rule")
    rule: vRecur = vRecur.from_ical(text)
    parts = dict(part.partition("=")[::2] for part in text.split(";"))
    if "UNTIL" in parts:
        until = parse_time(parts["UNTIL"])
        if until is None:
            raise ValueError("UNTIL is not a time")
        if until.is_date and not event.is_all_day:
            # The whole day, in the event's zone.
            until = until._replace(wall=datetime.combine(until.wall.date(), time(23, 59, 59)), is_date=False)
        moment = _in_form(event, until, event.timezone)
        # RFC 5545 3.3.10: in UTC, or a date where DTSTART is one.
        rule["UNTIL"] = [moment.astimezone(UTC) if isinstance(moment, datetime) else moment]
    return rule


def _in_form(event: MailedEvent, written: Written, zone_name: str) -> date | datetime:
    if event.is_all_day and written.is_date:
        return written.wall.date()
    if written.is_date:
        # A date on an event with a time means that day's instance.
        start = _local(event, event.start)
        return _moment(event, datetime.combine(written.wall.date(), start.timetz()))
    if written.is_utc:
        return _moment(event, written.wall.replace(tzinfo=UTC))
    zone = named_zone(zone_name)
    if zone is None:
        raise ValueError("a time zone is not known")
    return _moment(event, written.wall.replace(tzinfo=zone.tzinfo))
