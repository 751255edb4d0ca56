"""Responses to mailed replies."""

from typing import Literal

from pydantic import BaseModel, Field

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
    "no_answer": "The reply has no participation status.",
    "seen_before": "This mail was taken in before.",
    "no_instance": "The event has no such instance.",
    "unchanged": "The reply is the same as before.",
    "stale": "A newer answer was applied before.",
    "cancelled": "The event was cancelled.",
    "not_invited": "The sender is not invited to this event.",
    "over": "The event is over.",
}


class InboundAnswer(BaseModel):
    """Result of a mailed reply.

    Messages obeys keys such as `action`, `is_spam` or `mark_read` in the response to its webhook: none of them may be
    added here.
    """

    status: Literal["applied", "ignored"]
    reason: str | None = Field(default=None, description="Why it was ignored.")
    code: IgnoredCode | None = Field(default=None, exclude=True)


def ignored(code: IgnoredCode) -> InboundAnswer:
    """Return the response to a mail that changes nothing."""
    return InboundAnswer(status="ignored", reason=_REASONS[code], code=code)
