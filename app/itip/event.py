"""The values of an event in mails, which app/hosted/ makes and app/invitations/ sends."""

from dataclasses import dataclass
from datetime import date, datetime

from app.events.data import ResponseStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A person with an address: the organizer, or the owner of a calendar."""

    email: str
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """An invited person. `locale` is the language of mails to this guest; None for the calendar's.

    `is_host`: an address of the calendar itself, such as the organizer's, which is not asked for a reply.
    """

    email: str
    name: str | None
    is_optional: bool
    response_status: ResponseStatus
    locale: str | None = None
    is_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MailedEvent:
    """A series, a single event, or (with `recurrence_id`) one changed instance of a series.

    `start`, `end` and `recurrence_id` are aware, in UTC, `end` exclusive; for an all-day event they are midnights of
    `timezone`, an IANA name. `recurrence_date` is the original day of an instance of an all-day series. `recurrence` are
    lines of RFC 5545: `RRULE:...`, `RDATE...:...`, `EXDATE...:...`. `organizer` is the sending identity. `overrides` are
    changed instances of a series that its REQUEST includes.
    """

    uid: str
    sequence: int
    name: str
    description: str | None
    location: str | None
    meeting_url: str | None
    start: datetime
    end: datetime
    is_all_day: bool
    timezone: str
    recurrence: tuple[str, ...] = ()
    recurrence_id: datetime | None = None
    recurrence_date: date | None = None
    organizer: Person
    guests: tuple[Guest, ...]
    overrides: tuple["MailedEvent", ...] = ()
