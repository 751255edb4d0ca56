"""Sending a mail of a hosted event again, where what it says is still true."""

from typing import cast

from app.core.db import Session
from app.core.errors import Conflict
from app.hosted import repository
from app.hosted.standing import why_not_from, why_not_to_send
from app.invitations import service as invitations
from app.invitations.schemas import InvitationRead
from app.itip.build import Method


async def resend_invitation(session: Session, project_id: str, mail_id: str) -> InvitationRead:
    """Make a mail that failed, or is not known to have arrived, due now.

    Raises InvitationNotFound; Conflict if it was sent, if a later mail took its place, or if it is not true any more.
    """
    mail = await invitations.lock_for_resend(session, project_id, mail_id)
    reason = await why_not_from(
        session, mail.calendar_id, sender_email=mail.sender_email, is_by_smtp=mail.mailbox_id is None
    ) or await why_not_to_send(
        session,
        mail.calendar_id,
        mail.event_uid,
        method=cast("Method", mail.method),
        recurrence_id=mail.recurrence_id,
        recipient_email=mail.recipient_email,
    )
    if reason is not None:
        raise Conflict(reason)
    if mail.lease_token is None:
        await repository.write_rows_soon(session, mail.calendar_id, mail.event_uid)
    return await invitations.requeue(session, mail)
