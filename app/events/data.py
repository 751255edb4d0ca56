"""Events in the form that all providers share, and the time window that is kept in sync."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

ResponseStatus = Literal["needs_action", "accepted", "tentative", "declined"]
BusyStatus = Literal["free", "tentative", "busy", "out_of_office", "working_elsewhere"]
Visibility = Literal["default", "public", "private", "confidential"]
EventType = Literal["default", "out_of_office", "focus_time", "working_location", "birthday"]


@dataclass(frozen=True, slots=True)
class Window:
    """The half-open time range that is kept in sync; both ends are aware, in UTC."""

    start: datetime
    end: datetime

    def overlaps(self, start: datetime, end: datetime) -> bool:
        """Whether an event is in the window. An event of no length counts by its start."""
        return start < self.end and (end > self.start or start == end >= self.start)


@dataclass(frozen=True, slots=True)
class RemoteAttendee:
    email: str | None
    name: str | None
    response_status: ResponseStatus = "needs_action"
    is_organizer: bool = False
    is_optional: bool = False
    is_resource: bool = False


@dataclass(frozen=True, slots=True)
class RemoteOrganizer:
    email: str | None
    name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteEvent:
    """One event, or one instance of a series, in the form that all providers share.

    Times are aware and in UTC, `end_time` exclusive; None if the provider sent none that can be read. An event does
    not end before it starts, whatever the provider says: app/calendar_events/repository.py relies on it. `raw` is JSON
    text: the provider's own object after `app.events.raw.dump_raw`. Texts have no NUL characters, and are cut at the
    lengths of `app.events.limits`. `is_raw_cut`: it may lack the words that the derived fields were read from
    (app/events/derived.py). app/events/fields.py makes the lists of columns of these fields.
    """

    platform_uuid: str
    raw: str
    start_time: datetime | None = None
    end_time: datetime | None = None
    is_all_day: bool = False
    timezone: str | None = None
    name: str | None = None
    description: str | None = None
    location: str | None = None
    ical_uid: str | None = None
    organizer: RemoteOrganizer | None = None
    attendees: tuple[RemoteAttendee, ...] = ()
    response_status: ResponseStatus | None = None
    recurring_event_id: str | None = None
    original_start_time: datetime | None = None
    meeting_url: str | None = None
    meeting_platform: str | None = None
    busy_status: BusyStatus = "busy"
    visibility: Visibility = "default"
    event_type: EventType = "default"
    etag: str | None = None
    is_cancelled: bool = False
    is_raw_cut: bool = False

    def __post_init__(self) -> None:
        if self.end_time is not None and (self.start_time is None or self.end_time < self.start_time):
            object.__setattr__(self, "end_time", self.start_time)


@dataclass(frozen=True, slots=True)
class KnownEvent:
    """A stored event, with the fields that are needed to request it from a provider."""

    platform_uuid: str
    recurring_event_id: str | None = None
    original_start_time: datetime | None = None


class CalendarRef(Protocol):
    """The calendar whose events are written: a claimed one, or a local one. The caller has locked its row."""

    @property
    def calendar_id(self) -> str: ...
    @property
    def project_id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Unannounced:
    """Changes that are written but not announced by webhook yet, and when the first of them was made."""

    since: datetime | None = None
    created: int = 0
    updated: int = 0
    deleted: int = 0
