"""Choose what the RSVP page shows for an event and a guest. No database."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, get_args

from app.hosted.service import Attendee, EventComponent, LoadedEvent, last_end
from app.invitations.links import Subject
from app.itip.event import Person

Action = Literal["accepted", "tentative", "declined"]
ACTIONS: tuple[Action, ...] = get_args(Action)

Kind = Literal["ask", "done", "bad_link", "expired", "cancelled", "over", "not_invited", "too_many", "busy"]
STATUS_CODES: dict[Kind, int] = {
    "ask": 200,
    "done": 200,
    "bad_link": 400,
    "expired": 410,
    "cancelled": 410,
    "over": 410,
    "not_invited": 403,
    "too_many": 429,
    "busy": 503,
}

# Until then a link says that the event is over; later it only says that it has expired.
EXPIRES_AFTER = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class RsvpPage:
    """Content of the page. Without `invited`, nothing of the event is shown.

    `has_changed`: the event has changed since the page was shown to the guest before.
    """

    kind: Kind
    invited: "Invited | None" = None
    action: Action | None = None
    token: str | None = None
    has_changed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Invited:
    """Guest with the event, series or instance of the invitation."""

    organizer: Person
    component: EventComponent
    attendee: Attendee


def page_of(event: LoadedEvent | None, subject: Subject, *, now: datetime) -> RsvpPage:
    """Return the page of a link: `ask` where the guest may reply, else the reason why not."""
    component = event.find(subject.recurrence_key) if event is not None else None
    if event is None or component is None:
        return RsvpPage(kind="cancelled")
    ends_at = last_end(component)
    if ends_at is not None and ends_at + EXPIRES_AFTER <= now:
        return RsvpPage(kind="expired")
    attendee = component.find(subject.email)
    if attendee is None:
        return RsvpPage(kind="not_invited")
    kind: Kind = "ask"
    if event.is_cancelled(component):
        kind = "cancelled"
    elif ends_at is not None and ends_at <= now:
        kind = "over"
    invited = Invited(organizer=event.calendar.organizer, component=component, attendee=attendee)
    return RsvpPage(kind=kind, invited=invited)


def read_action(text: str) -> Action | None:
    """Return the action of a link or a form; None if there is no such action."""
    return next((known for known in ACTIONS if known == text), None)
