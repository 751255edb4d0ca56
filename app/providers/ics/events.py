"""The instances of a feed as events in the form that all providers share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import structlog

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
from app.ical.components import Component, Line, parse_lines
from app.ical.event_times import EventTimes
from app.ical.feed import Instance
from app.ical.participation import parse_partstat
from app.meeting_links.extract import DEFAULT_HOSTS, MeetingHosts, find_meeting_link

log = structlog.get_logger(__name__)

# Properties with the meeting link, in the order in which they are searched.
_CONFERENCES = (
    "X-GOOGLE-CONFERENCE",
    "CONFERENCE",
    "X-MICROSOFT-SKYPETEAMSMEETINGURL",
    "X-MICROSOFT-ONLINEMEETINGEXTERNALLINK",
    "X-MICROSOFT-ONLINEMEETINGCONFLINK",
)
# Not in `raw`: these change without a change of the event. Google's DTSTAMP changes with each fetch, and the lists of
# instances with each instance.
_LEFT_OUT_OF_RAW = frozenset({"DTSTAMP", "LAST-MODIFIED", "EXDATE", "RDATE"})
_LONGEST_SEARCHED_TEXT = 32_000
# Outlook's own words, which say more than TRANSP and STATUS.
_BUSY_STATUSES: dict[str, BusyStatus] = {
    "free": "free",
    "tentative": "tentative",
    "busy": "busy",
    "oof": "out_of_office",
    "workingelsewhere": "working_elsewhere",
}
_TRANSPARENCIES: dict[str, BusyStatus] = {"transparent": "free"}
_STATUSES: dict[str, BusyStatus] = {"tentative": "tentative"}
_CLASSES: dict[str, Visibility] = {
    "public": "public",
    "private": "private",
    "confidential": "confidential",
}


def read_derived(first: Mapping[str, Line]) -> Derived:
    """Read the derived fields of a VEVENT from the first line of each property. It never fails."""

    def text(name: str) -> str | None:
        return first[name].text if name in first else None

    return Derived(
        busy_status=meaning(_BUSY_STATUSES, text("X-MICROSOFT-CDO-BUSYSTATUS"))
        or meaning(_TRANSPARENCIES, text("TRANSP"))
        or meaning(_STATUSES, text("STATUS"))
        or "busy",
        visibility=_visibility(text("CLASS")),
    )


def _visibility(written: str | None) -> Visibility:
    """Return what CLASS says. RFC 5545 3.8.1.3: a word that is not known means PRIVATE."""
    return (meaning(_CLASSES, written) or "private") if written else "default"


def read_derived_from_raw(raw: Mapping[str, Any]) -> tuple[str | None, ...]:
    """Read the derived fields from a stored `raw`.

    From one that was cut, `busy_status` and `visibility` cannot be read: they are None.
    """
    text = raw.get("ics")
    lines = text if isinstance(text, str) else ""
    if len(lines) >= limits.RAW_TEXT:
        return (None, None, *Derived()[2:])
    first: dict[str, Line] = {}
    for line in parse_lines(lines.replace("\r\n", "\n").encode("utf-8", "replace")):
        first.setdefault(line.name, line)
    return read_derived(first)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads VEVENTs of one feed, with the address of its owner and the hosts of meeting links."""

    owner_email: str | None = None
    hosts: MeetingHosts = DEFAULT_HOSTS

    def describe(self, component: Component, platform_uuid: str) -> RemoteEvent:
        """Return the event of a VEVENT without its times and the identity of an instance."""
        lines = list(component.lines())
        first: dict[str, Line] = {}
        for line in lines:
            first.setdefault(line.name, line)
        title = _text(first.get("SUMMARY"))
        location = _text(first.get("LOCATION"))
        description = _text(first.get("DESCRIPTION")) or _text(first.get("X-ALT-DESC"))
        url = _text(first.get("URL"))
        organizer = _organizer(first.get("ORGANIZER"))
        organizer_email = organizer.email if organizer else None
        attendees = _attendees(lines, organizer_email)
        link = find_meeting_link(
            conference=[
                line.text[: limits.URL] for name in _CONFERENCES for line in lines if line.name == name
            ],
            location=_searched("\n".join(text for text in (location, url) if text)),
            description=_searched(description),
            title=_searched(title),
            hosts=self.hosts,
        )
        raw, is_raw_cut = _raw(lines, first)
        return RemoteEvent(
            platform_uuid=platform_uuid,
            raw=raw,
            name=limits.cut(title, limits.TITLE),
            description=limits.cut(description, limits.DESCRIPTION),
            location=limits.cut(location, limits.LOCATION),
            organizer=organizer,
            attendees=attendees,
            response_status=self._own_response(attendees, organizer_email),
            meeting_url=link.url if link else None,
            meeting_platform=link.platform if link else None,
            is_raw_cut=is_raw_cut,
            **read_derived(first)._asdict(),
        )

    def _own_response(
        self, attendees: Sequence[RemoteAttendee], organizer_email: str | None
    ) -> ResponseStatus | None:
        if not self.owner_email:
            return None
        for attendee in attendees:
            if _same_address(attendee.email, self.owner_email):
                return attendee.response_status
        return "accepted" if _same_address(organizer_email, self.owner_email) else None


class FeedEvents:
    """The events of some instances of a feed, read in full page by page."""

    def __init__(self, instances: Sequence[Instance], reader: Reader | None = None) -> None:
        self._instances = instances
        self._reader = reader or Reader()
        self._described: tuple[EventTimes, RemoteEvent] | None = None

    def __len__(self) -> int:
        return len(self._instances)

    def page(self, offset: int, size: int) -> list[RemoteEvent]:
        """Return `size` events from `offset` on. Takes long: call it in a thread."""
        return [self._event(instance) for instance in self._instances[offset : offset + size]]

    def _event(self, instance: Instance) -> RemoteEvent:
        times = instance.times
        return replace(
            self._describe(times),
            platform_uuid=instance.id,
            start_time=instance.start,
            end_time=instance.end,
            is_all_day=times.is_all_day,
            timezone=times.timezone,
            ical_uid=times.ical_uid,
            recurring_event_id=times.uid if instance.original_start else None,
            original_start_time=instance.original_start,
        )

    def _describe(self, times: EventTimes) -> RemoteEvent:
        # The instances of a series follow each other.
        if self._described is None or self._described[0] is not times:
            try:
                event = self._reader.describe(times.component, times.uid)
            except Exception as err:  # noqa: BLE001 - one event that cannot be read must not stop the feed
                log.warning("ics.event_partly_unreadable", uid=times.uid, error=type(err).__name__)
                event = RemoteEvent(platform_uuid=times.uid, raw="{}")
            self._described = times, event
        return self._described[1]


def _text(line: Line | None) -> str | None:
    return line.text or None if line else None


def _searched(text: str | None) -> str | None:
    return text[:_LONGEST_SEARCHED_TEXT] if text else None


def _raw(lines: Sequence[Line], first: dict[str, Line]) -> tuple[str, bool]:
    """The value of `raw`, and whether lines are missing from it."""
    written = "\r\n".join(
        f"{line.name}{';' if line.parameters else ''}{line.parameters}:{line.value}"
        for line in lines
        if line.name not in _LEFT_OUT_OF_RAW
    )
    raw = dump_raw(
        {
            "ics": limits.cut(written, limits.RAW_TEXT),
            **{
                name.lower().replace("-", "_"): limits.cut(first[name].text, limits.RAW_TEXT)
                for name in ("UID", "SEQUENCE", "STATUS", "RECURRENCE-ID")
                if name in first
            },
        }
    )
    return raw, len(written) > limits.RAW_TEXT


def _organizer(line: Line | None) -> RemoteOrganizer | None:
    if line is None:
        return None
    email, name = _address(line), _common_name(line)
    return RemoteOrganizer(email=email, name=name) if email or name else None


def _attendees(lines: Sequence[Line], organizer_email: str | None) -> tuple[RemoteAttendee, ...]:
    found = [line for line in lines if line.name == "ATTENDEE"][: limits.ATTENDEES]
    return tuple(_attendee(line, organizer_email) for line in found)


def _attendee(line: Line, organizer_email: str | None) -> RemoteAttendee:
    email = _address(line)
    return RemoteAttendee(
        email=email,
        name=_common_name(line),
        response_status=parse_partstat(line.parameter("PARTSTAT")) or "needs_action",
        is_organizer=_same_address(email, organizer_email),
        is_optional=_word(line, "ROLE") == "OPT-PARTICIPANT",
        is_resource=_word(line, "CUTYPE") in {"ROOM", "RESOURCE"},
    )


def _word(line: Line, parameter: str) -> str:
    return (line.parameter(parameter) or "").strip().upper()


def _common_name(line: Line) -> str | None:
    return limits.cut((line.parameter("CN") or "").strip(), limits.NAME) or None


def _address(line: Line) -> str | None:
    """The address in a `mailto:`; the EMAIL parameter (RFC 7986) where the value is another kind of URI."""
    scheme, _, rest = line.value.strip().partition(":")
    if scheme.upper() == "MAILTO":
        address = unquote(rest.partition("?")[0])
    else:
        address = line.parameter("EMAIL") or line.value
    address = address.strip(' <>"')
    is_address = "@" in address and ":" not in address
    return limits.cut(address, limits.EMAIL) if is_address else None


def _same_address(one: str | None, other: str | None) -> bool:
    return bool(one and other) and str(one).casefold() == str(other).casefold()
