"""A hosted event as invitations see it: pure values, shared by the calendars' side and the mails' side."""

from dataclasses import dataclass
from datetime import date, datetime

from app.events.data import ResponseStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody with an address: the organizer, or the owner of a calendar."""

    email: str
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """An invited person. `locale`: the language of the mails to this guest; None: the calendar's.

    `is_host`: an address of the calendar's own, such as the organizer's: it is not asked for an answer.
    """

    email: str
    name: str | None
    is_optional: bool
    response_status: ResponseStatus
    locale: str | None = None
    is_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MailedEvent:
    """One series, one single event, or (with `recurrence_id`) one edited instance of a series.

    `start`, `end` and `recurrence_id` are aware instants in UTC, `end` exclusive; `timezone` is an IANA name. Of an
    all-day event they are the midnights of that zone. Of an instance of an all-day series, `recurrence_date` is its
    original day. `recurrence` are lines as RFC 5545 writes them:
    `RRULE:...`, `RDATE...:...`, `EXDATE...:...`. `organizer` is the sending identity. `overrides` are changed instances of a series that its REQUEST
    tells along with it.
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
