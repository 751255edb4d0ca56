"""Send a mail of a hosted event again, if it is still true."""

from typing import cast

from app.core.db import Session
from app.core.errors import Conflict
from app.hosted import repository
from app.hosted.standing import explain_changed_sender, explain_outdated
from app.invitations import service as invitations
from app.invitations.schemas import InvitationRead
from app.itip.build import Method


async def resend_invitation(session: Session, project_id: str, mail_id: str) -> InvitationRead:
    """Make a mail due now that failed, or that is not known to have arrived.

    Raises InvitationNotFound; Conflict if it was sent, if a later mail replaced it, or if it is out of date.
    """
    mail = await invitations.lock_for_resend(session, project_id, mail_id)
    reason = await explain_changed_sender(
        session, mail.calendar_id, sender_email=mail.sender_email, is_by_smtp=mail.mailbox_id is None
    ) or await explain_outdated(
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
        await repository.schedule_rewrite(session, mail.calendar_id, mail.event_uid)
    return await invitations.requeue(session, mail)
