"""The route of mailboxes (docs/reference/http-api.md, "Hosted calendars and invitations")."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.deps import ProjectId
from app.api.schemas import ErrorAnswer, responses
from app.mail.deps import MessagesDep
from app.mail.schemas import MailboxesQuery, MailboxesRead, MailboxRead

router = APIRouter(prefix="/api/v1/mailboxes", tags=["mailboxes"])

_RESPONSES = responses(429, 502)
_RESPONSES[404] = {"description": "The Messages integration is off", "model": ErrorAnswer}


@router.get("", operation_id="list_mailboxes", responses=_RESPONSES)
async def list_mailboxes(
    messages: MessagesDep, _project_id: ProjectId, query: Annotated[MailboxesQuery, Query()]
) -> MailboxesRead:
    """List the Messages mailboxes that a user has access to, at most a minute old.

    A user or mailbox that Messages does not know gives an empty list. Without a response from Messages, 502.
    """
    mailboxes = await messages.list_mailboxes(query.user_email)
    return MailboxesRead(
        results=[
            MailboxRead(
                mailbox_id=mailbox.mailbox_id,
                email=mailbox.email,
                name=mailbox.name,
                role=mailbox.role,
                can_send=mailbox.can_send,
            )
            for mailbox in mailboxes
        ]
    )
