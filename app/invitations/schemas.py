"""Requests and responses of the log of mails (docs/messages.md)."""

from typing import Literal

from pydantic import BaseModel, Field

from app.api.pages import ListQuery
from app.api.schemas import OutputTime


class InvitationsQuery(ListQuery):
    pass


class InvitationRecipient(BaseModel):
    email: str
    name: str | None


class InvitationSender(BaseModel):
    mailbox_id: str | None = Field(description="The Messages mailbox; null: sent by SMTP.")
    email: str
    name: str | None


class InvitationRead(BaseModel):
    """One mail to one person."""

    id: str
    method: Literal["REQUEST", "CANCEL", "REPLY"] = Field(
        description="REQUEST: an invitation or its update; CANCEL; REPLY: a guest's reply, to the organizer."
    )
    status: Literal["pending", "sent", "failed", "unknown"] = Field(
        description=(
            "`sent`: handed over, delivery comes later. `failed`: never handed over, `last_error` says why. "
            "`unknown`: handed over twice without a response, so it is very likely on its way."
        )
    )
    recipient: InvitationRecipient
    sender: InvitationSender
    sequence: int
    recurrence_id: OutputTime | None = Field(description="Of a mail about one instance: its original start.")
    message_id: str = Field(
        description="Of a mail from a mailbox to itself: only for the log, the mail has none (docs/messages.md)."
    )
    attempt_count: int
    last_error: str | None
    next_attempt_at: OutputTime | None = Field(
        description="While a mailbox is held because of its sending limit: when the next mail of it is tried."
    )
    finished_at: OutputTime | None
    created_at: OutputTime
    updated_at: OutputTime
