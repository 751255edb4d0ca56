"""Values: one component of a hosted event, as iCalendar has it: the event or series itself, or one changed instance."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from app.core.addresses import fold_address
from app.core.clock import isoformat
from app.events.data import ResponseStatus
from app.itip.event import Guest, MailedEvent, Person


@dataclass(frozen=True, slots=True, kw_only=True)
class Attendee:
    """An invited person and the answer. (`sequence`, `replied_at`) are of the last applied reply: what is older is stale.

    `has_own_answer`: of a changed instance: the answer was given for this instance and not for its series.
    """

    email: str
    name: str | None
    is_optional: bool = False
    locale: str | None = None
    response_status: ResponseStatus = "needs_action"
    sequence: int | None = None
    replied_at: datetime | None = None
    has_own_answer: bool = False

    @property
    def guest(self) -> Guest:
        return Guest(
            email=self.email,
            name=self.name,
            is_optional=self.is_optional,
            response_status=self.response_status,
            locale=self.locale,
        )

    def is_stale(self, sequence: int, replied_at: datetime) -> bool:
        """Whether a reply is older than the one that was applied last (RFC 5546 2.1.5)."""
        if self.sequence is None or sequence > self.sequence:
            return False
        if sequence < self.sequence:
            return True
        return self.replied_at is not None and replied_at < self.replied_at


def attendee_to_json(person: Attendee) -> dict[str, Any]:
    return {
        "email": person.email,
        "name": person.name,
        "is_optional": person.is_optional,
        "locale": person.locale,
        "response_status": person.response_status,
        "sequence": person.sequence,
        "replied_at": isoformat(person.replied_at) if person.replied_at is not None else None,
        "has_own_answer": person.has_own_answer,
    }


def attendee_from_json(value: dict[str, Any]) -> Attendee:
    replied_at = value["replied_at"]
    at = datetime.fromisoformat(replied_at) if replied_at is not None else None
    return Attendee(**{**value, "replied_at": at})


@dataclass(frozen=True, slots=True, kw_only=True)
class EventComponent:
    """`recurrence_key` tells a changed instance from the series (''): its original start, YYYYMMDD for a date, else
    YYYYMMDDTHHMMSSZ. Times are aware, in UTC; of an all-day component they are midnights of `timezone`.
    """

    uid: str
    recurrence_key: str = ""
    sequence: int = 0
    name: str
    description: str | None = None
    location: str | None = None
    meeting_url: str | None = None
    start: datetime
    end: datetime
    is_all_day: bool = False
    timezone: str
    rrule: str | None = None  # without "RRULE:"
    recurrence_id: datetime | None = None
    attendees: tuple[Attendee, ...] = ()
    is_cancelled: bool = False

    def find(self, email: str) -> Attendee | None:
        key = fold_address(email)
        return next((person for person in self.attendees if fold_address(person.email) == key), None)

    def with_attendee(self, changed: Attendee) -> "EventComponent":
        """The same with this person in the place of the one with that address."""
        key = fold_address(changed.email)
        people = tuple(changed if fold_address(one.email) == key else one for one in self.attendees)
        return replace(self, attendees=people)

    def local(self, at: datetime) -> datetime:
        """What the clock shows there; of an all-day component its day's midnight, which some zones skip once a year."""
        shown = wall(at, self.timezone)
        return midnight(shown) if self.is_all_day else shown

    @property
    def length(self) -> timedelta:
        """On the wall: from nine to five is eight hours, whatever the clocks do meanwhile."""
        length = self.local(self.end) - self.local(self.start)
        # In the hour that comes twice, the clock may go backwards.
        return length if length > timedelta(0) else self.end - self.start

    @property
    def when(self) -> str:
        """What an answer is about: of another time it is none."""
        return f"{self.start:%Y%m%dT%H%M%SZ}/{self.end:%Y%m%dT%H%M%SZ}/{self.rrule or ''}"

    def moment(self, at: datetime) -> str:
        """The end of a content line: `;VALUE=DATE:20261124`, or `;TZID=Europe/Paris:20261124T100000`."""
        local = self.local(at)
        if self.is_all_day:
            return f";VALUE=DATE:{local:%Y%m%d}"
        return f";TZID={self.timezone}:{local:%Y%m%dT%H%M%S}"

    @property
    def _recurrence_date(self) -> date | None:
        """Of an instance of an all-day series: its original day, wherever and however it is now."""
        is_day = bool(self.recurrence_key) and "T" not in self.recurrence_key
        return date.fromisoformat(self.recurrence_key) if is_day else None

    def for_mail(
        self,
        organizer: Person,
        *,
        hosts: Sequence[str] = (),
        excluded: Sequence[datetime] = (),
        guests: tuple[Attendee, ...] | None = None,
        overrides: Sequence["EventComponent"] = (),
    ) -> MailedEvent:
        """The event of a mail. `hosts` are the calendar's own addresses, `guests` others than its attendees.

        Of a series: `excluded` are the original starts of instances that are left out, `overrides` changed instances
        that go with it.
        """
        recurrence: tuple[str, ...] = ()
        if self.rrule is not None:
            recurrence = (f"RRULE:{self.rrule}", *(f"EXDATE{self.moment(at)}" for at in excluded))
        keys = {fold_address(email) for email in hosts}
        return MailedEvent(
            uid=self.uid,
            sequence=self.sequence,
            name=self.name,
            description=self.description,
            location=self.location,
            meeting_url=self.meeting_url,
            start=self.start,
            end=self.end,
            is_all_day=self.is_all_day,
            timezone=self.timezone,
            recurrence=recurrence,
            recurrence_id=self.recurrence_id,
            recurrence_date=self._recurrence_date,
            organizer=organizer,
            guests=tuple(
                replace(person.guest, is_host=fold_address(person.email) in keys)
                for person in (self.attendees if guests is None else guests)
            ),
            overrides=tuple(component.for_mail(organizer, hosts=hosts) for component in overrides),
        )


def instance_of(series: EventComponent, original_start: datetime, recurrence_key: str) -> EventComponent:
    """An instance as the series has it."""
    local = series.local(original_start)
    return replace(
        series,
        recurrence_key=recurrence_key,
        rrule=None,
        recurrence_id=original_start,
        start=original_start,
        end=instant(local + series.length, series.timezone),
        attendees=tuple(replace(one, has_own_answer=False) for one in series.attendees),
    )


def is_plain(component: EventComponent, series: EventComponent) -> bool:
    """Whether an instance has a component of its own only since it was answered."""
    assert component.recurrence_id is not None
    plain = instance_of(series, component.recurrence_id, component.recurrence_key)
    people, plain_people = (
        {fold_address(one.email) for one in some.attendees} for some in (component, plain)
    )
    return (
        people == plain_people
        and replace(component, attendees=plain.attendees, sequence=plain.sequence) == plain
    )


def wall(at: datetime, timezone: str) -> datetime:
    """What the clock on the wall shows there (naive)."""
    return at.astimezone(ZoneInfo(timezone)).replace(tzinfo=None)


def midnight(local: datetime) -> datetime:
    return local.replace(hour=0, minute=0, second=0, microsecond=0)


def instant(local: datetime, timezone: str) -> datetime:
    """The aware UTC time at which the wall's clock shows `local`."""
    return local.replace(tzinfo=ZoneInfo(timezone)).astimezone(UTC)
