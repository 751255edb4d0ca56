"""The log of mails, sending again, and what other features use of the outbox."""

from datetime import datetime
from typing import Any

from app.api.not_found import CalendarEventNotFound
from app.core.db import AnySession, Session
from app.core.errors import Conflict
from app.core.pagination import Page
from app.invitations.drafts import Sender
from app.invitations.errors import InvitationNotFound
from app.invitations.outbox import queue_mails
from app.invitations.repository import log
from app.invitations.repository.log import Undelivered, find_undelivered
from app.invitations.repository.mails import (
    find_highest_sequence,
    find_organizers,
    find_sent_instances,
    find_sent_sequence,
)
from app.invitations.schemas import InvitationRead, InvitationRecipient, InvitationSender, InvitationsQuery
from app.itip.build import Method
from app.mail.rendering import RsvpLinks
from app.models import InvitationMail

__all__ = [
    "Method",
    "RsvpLinks",
    "Sender",
    "Undelivered",
    "find_highest_sequence",
    "find_organizers",
    "find_sent_instances",
    "find_sent_sequence",
    "find_undelivered",
    "list_invitations",
    "lock_for_resend",
    "queue_mails",
    "requeue",
]

_PAGE_SIZE = 100


async def list_invitations(
    session: AnySession, project_id: str, event_id: str, query: InvitationsQuery
) -> Page[Any]:
    """Return the mails about an event, newest first, 100 a page. Raises CalendarEventNotFound, BadQuery."""
    event = await log.find_event(session, project_id, event_id)
    if event is None:
        raise CalendarEventNotFound
    page = await log.list_mails(session, event, cursor=query.cursor, limit=query.rows_of(_PAGE_SIZE))
    return Page([_read(*row) for row in page.rows], page.next, page.previous)


async def lock_for_resend(session: Session, project_id: str, mail_id: str) -> InvitationMail:
    """Lock a mail that may be sent again.

    Raises InvitationNotFound; Conflict if it was sent, is not kept any more, or a later mail took its place.
    """
    mail = await log.lock_mail(session, project_id, mail_id)
    if mail is None:
        raise InvitationNotFound
    if mail.status == "sent":
        raise Conflict("This mail was sent.")
    if mail.mail is None:
        raise Conflict("This mail is not kept any more: change the event to invite anew.")
    if mail.method != "REPLY" and await log.has_later_mail(session, mail):
        raise Conflict("A later mail to this guest took the place of this one.")
    return mail


async def requeue(session: Session, mail: InvitationMail) -> InvitationRead:
    """Make a locked mail due now, before others and in spite of a hold, unless it is being sent."""
    if mail.lease_token is None:
        mail = await log.requeue(session, mail.id)
    return _read(mail)


def _read(
    row: InvitationMail, held_until: datetime | None = None, hold_reason: str | None = None
) -> InvitationRead:
    """The mail for the API. If it is held, the hold gives the next attempt and the error."""
    next_attempt_at = row.next_attempt_at
    if next_attempt_at is not None and held_until is not None:
        next_attempt_at = max(next_attempt_at, held_until)
    return InvitationRead.model_validate(
        {
            "id": row.id,
            "method": row.method,
            "status": row.status,
            "recipient": InvitationRecipient(email=row.recipient_email, name=row.recipient_name),
            "sender": InvitationSender(
                mailbox_id=row.mailbox_id, email=row.sender_email, name=row.sender_name
            ),
            "sequence": row.sequence,
            "recurrence_id": row.recurrence_id,
            "message_id": row.message_id,
            "attempt_count": row.attempt_count,
            "last_error": row.last_error or hold_reason,
            "next_attempt_at": next_attempt_at,
            "finished_at": row.finished_at,
            "created_at": row.created_at,
            "updated_at": row.updated_at,
        }
    )
