"""Values of the RSVP page, and answers to mailed replies."""

from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import BaseModel, Field

from app.hosted.entries import Attendee, Entry
from app.hosted.repository import LocalCalendar

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What to show. Without `entry`, nothing of the event is shown. `has_changed`: since the page was shown before."""

    kind: Kind
    calendar: LocalCalendar | None = None
    entry: Entry | None = None
    attendee: Attendee | None = None
    action: Action | None = None
    token: str | None = None
    has_changed: bool = False


class InboundAnswer(BaseModel):
    """What became of a mailed reply."""

    status: Literal["applied", "ignored"]
    reason: str | None = Field(default=None, description="Why it was ignored.")
