"""Values of the RSVP page, and answers to mailed replies."""

from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import BaseModel, Field

from app.hosted.components import Attendee, EventComponent
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
    """What to show. Without `component`, nothing of the event is shown. `has_changed`: since the page was shown before."""

    kind: Kind
    calendar: LocalCalendar | None = None
    component: EventComponent | None = None
    attendee: Attendee | None = None
    action: Action | None = None
    token: str | None = None
    has_changed: bool = False


IgnoredCode = Literal[
    "no_reply", "too_large", "wrong_format", "spam", "no_spam_verdict", "forged", "unverified", "unsigned",
    "unknown_event", "other_mailbox", "other_organizer", "no_answer", "seen_before",
    "no_instance", "unchanged", "stale", "cancelled", "not_invited", "over",
]  # fmt: skip
_REASONS: dict[IgnoredCode, str] = {
    "no_reply": "There is no calendar reply of the mail's sender in it.",
    "too_large": "The mail is larger than 25 MiB.",
    "wrong_format": "Only raw mails are read: set the webhook channel's format to eml.",
    "spam": "The mail is flagged as spam.",
    "no_spam_verdict": "The mail is not checked for spam yet: set the webhook channel's trigger to message.delivering.",
    "forged": "The mail looks forged (X-StMsg-Sender-Auth: fail).",
    "unverified": "The mail's sender could not be verified (X-StMsg-Sender-Auth: none).",
    "unsigned": "The mail has no valid DKIM signature of its sender's domain.",
    "unknown_event": "The event is not known.",
    "other_mailbox": "The event's organizer is another mailbox.",
    "other_organizer": "The reply is to another organizer.",
    "no_answer": "The reply does not say an answer.",
    "seen_before": "This mail was taken in before.",
    "no_instance": "The event has no such instance.",
    "unchanged": "The answer was the same before.",
    "stale": "A newer answer was applied before.",
    "cancelled": "The event was cancelled.",
    "not_invited": "The sender is not invited to this event.",
    "over": "The event is over.",
}


class InboundAnswer(BaseModel):
    """What became of a mailed reply.

    Messages reads the answer to its webhook and obeys keys such as `action`, `is_spam` or `mark_read`: none of them
    may ever be here.
    """

    status: Literal["applied", "ignored"]
    reason: str | None = Field(default=None, description="Why it was ignored.")
    code: IgnoredCode | None = Field(default=None, exclude=True)


def ignored(code: IgnoredCode) -> InboundAnswer:
    return InboundAnswer(status="ignored", reason=_REASONS[code], code=code)
