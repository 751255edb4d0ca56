"""Components of hosted events, as in iCalendar: events, series and changed instances of series."""

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
    """Invited person with the participation status.

    `sequence` and `replied_at` belong to the last reply that was applied: older replies are stale.
    `has_own_reply`: the reply was to this changed instance, and not to its series.
    """

    email: str
    name: str | None
    is_optional: bool = False
    locale: str | None = None
    response_status: ResponseStatus = "needs_action"
    sequence: int | None = None
    replied_at: datetime | None = None
    has_own_reply: bool = False

    @property
    def guest(self) -> Guest:
        """The attendee as mails show it."""
        return Guest(
            email=self.email,
            name=self.name,
            is_optional=self.is_optional,
            response_status=self.response_status,
            locale=self.locale,
        )

    def is_stale(self, sequence: int, replied_at: datetime) -> bool:
        """Return whether a reply is older than the one that was applied last (RFC 5546 section 2.1.5)."""
        if self.sequence is None or sequence > self.sequence:
            return False
        if sequence < self.sequence:
            return True
        return self.replied_at is not None and replied_at < self.replied_at


def attendee_to_json(person: Attendee) -> dict[str, Any]:
    """Return the attendee as hosted_events.attendees stores it."""
    return {
        "email": person.email,
        "name": person.name,
        "is_optional": person.is_optional,
        "locale": person.locale,
        "response_status": person.response_status,
        "sequence": person.sequence,
        "replied_at": isoformat(person.replied_at) if person.replied_at is not None else None,
        "has_own_answer": person.has_own_reply,
    }


def attendee_from_json(value: dict[str, Any]) -> Attendee:
    """Return an attendee of hosted_events.attendees."""
    fields = dict(value)
    replied_at = fields.pop("replied_at")
    return Attendee(
        replied_at=datetime.fromisoformat(replied_at) if replied_at is not None else None,
        has_own_reply=fields.pop("has_own_answer", False),
        **fields,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EventComponent:
    """Event or series (`recurrence_key` is ''), or one changed instance of a series.

    The key of an instance is its original start: YYYYMMDD for a date, else YYYYMMDDTHHMMSSZ. Times are aware, in UTC,
    `end` exclusive; those of an all-day component are midnights of `timezone`, an IANA name. `rrule` is written
    without "RRULE:".
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
    rrule: str | None = None
    recurrence_id: datetime | None = None
    attendees: tuple[Attendee, ...] = ()
    is_cancelled: bool = False

    def find(self, email: str) -> Attendee | None:
        """Return the attendee of this address; None if there is none."""
        key = fold_address(email)
        return next((person for person in self.attendees if fold_address(person.email) == key), None)

    def with_attendee(self, changed: Attendee) -> "EventComponent":
        """Return the component with this person instead of the one with the same address."""
        key = fold_address(changed.email)
        people = tuple(changed if fold_address(one.email) == key else one for one in self.attendees)
        return replace(self, attendees=people)

    def local(self, at: datetime) -> datetime:
        """Return the wall clock of the component's zone, naive; for an all-day component, the day's midnight.

        Some zones have no midnight on the day when their clocks change.
        """
        shown = wall(at, self.timezone)
        return midnight(shown) if self.is_all_day else shown

    @property
    def length(self) -> timedelta:
        """Length on the wall clock: from nine to five is eight hours, also when the clocks change in between.

        An all-day component lasts a day at least. If the rules of its zone have changed since it was stored, its end
        may not be a midnight any more.
        """
        if self.is_exact:
            return self.end - self.start
        shortest = timedelta(days=1) if self.is_all_day else timedelta(0)
        return max(self.local(self.end) - self.local(self.start), shortest)

    @property
    def is_exact(self) -> bool:
        """Whether `length` is elapsed time.

        It is where the clocks go back during the component, so that its end does not look later than its start.
        """
        return not self.is_all_day and self.local(self.end) <= self.local(self.start)

    @property
    def when(self) -> str:
        """Times and rule as one text. A reply is about these, and does not count for others."""
        return f"{self.start:%Y%m%dT%H%M%SZ}/{self.end:%Y%m%dT%H%M%SZ}/{self.rrule or ''}"

    def moment(self, at: datetime) -> str:
        """End of a content line: `;VALUE=DATE:20261124`, or `;TZID=Europe/Paris:20261124T100000`."""
        local = self.local(at)
        if self.is_all_day:
            return f";VALUE=DATE:{local:%Y%m%d}"
        return f";TZID={self.timezone}:{local:%Y%m%dT%H%M%S}"

    @property
    def _recurrence_date(self) -> date | None:
        """Original day of an instance of an all-day series; the instance itself may have a time of day."""
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
        """Return the event of a mail.

        `hosts` are the calendar's own addresses. `guests` are listed instead of the attendees. For a series:
        `excluded` are the original starts of instances that are left out, `overrides` changed instances that go with
        it.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedEventRef:
    """Event, series or instance from which a row of calendar_events was written.

    `uid` and `recurrence_key` name a component; an instance that was never changed has none of its own yet.
    """

    calendar_id: str
    platform: str
    uid: str
    recurrence_key: str
    is_deleted: bool
    original_start_time: datetime | None


def instance_from_series(
    series: EventComponent, original_start: datetime, recurrence_key: str
) -> EventComponent:
    """Return an instance with what the series has."""
    local = series.local(original_start)
    end = (
        original_start + series.length if series.is_exact else instant(local + series.length, series.timezone)
    )
    return replace(
        series,
        recurrence_key=recurrence_key,
        rrule=None,
        recurrence_id=original_start,
        start=original_start,
        end=end,
        attendees=tuple(replace(one, has_own_reply=False) for one in series.attendees),
    )


def is_unchanged(component: EventComponent, series: EventComponent) -> bool:
    """Return whether an instance differs from its series in replies alone."""
    assert component.recurrence_id is not None
    plain = instance_from_series(series, component.recurrence_id, component.recurrence_key)
    people, plain_people = (
        {fold_address(one.email) for one in some.attendees} for some in (component, plain)
    )
    return (
        people == plain_people
        and replace(component, attendees=plain.attendees, sequence=plain.sequence) == plain
    )


def wall(at: datetime, timezone: str) -> datetime:
    """Return what the clock shows there (naive)."""
    return at.astimezone(ZoneInfo(timezone)).replace(tzinfo=None)


def midnight(local: datetime) -> datetime:
    """Return the day's midnight, naive."""
    return local.replace(hour=0, minute=0, second=0, microsecond=0)


def instant(local: datetime, timezone: str) -> datetime:
    """Return the time, aware and in UTC, at which the clock there shows `local`."""
    return local.replace(tzinfo=ZoneInfo(timezone)).astimezone(UTC)
