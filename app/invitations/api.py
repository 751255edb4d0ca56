"""Routes of an event's mails (docs/messages.md)."""

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response

from app.api.deps import AppState, DbReadSession, DbSession, ProjectId
from app.api.idempotency import Idempotent
from app.api.pages import PageRead, page_links
from app.api.paths import EventId, InvitationId
from app.api.schemas import ErrorAnswer, responses
from app.invitations import service
from app.invitations.schemas import InvitationRead, InvitationsQuery

router = APIRouter(prefix="/api/v1", tags=["calendar events"])


@router.get(
    "/calendar_events/{event_id}/invitations", operation_id="list_invitations", responses=responses(404)
)
async def list_invitations(
    request: Request,
    session: DbReadSession,
    project_id: ProjectId,
    event_id: EventId,
    query: Annotated[InvitationsQuery, Query()],
) -> PageRead[InvitationRead]:
    """The mails about an event of a hosted calendar, newest first, 100 a page: what became of each.

    A mail that could not be sent stays here with the reason; it is never sent from another address instead.
    """
    page = await service.list_invitations(session, project_id, event_id, query)
    return PageRead(**page_links(request, page), results=list(page.rows))


@router.post(
    "/invitations/{invitation_id}/resend",
    operation_id="resend_invitation",
    status_code=202,
    response_model=InvitationRead,
    responses={
        **responses(404, 429),
        409: {
            "description": "It was sent, or replaced by a later mail, or is not true any more",
            "model": ErrorAnswer,
        },
    },
)
async def resend_invitation(
    *,
    session: DbSession,
    state: AppState,
    project_id: ProjectId,
    invitation_id: InvitationId,
    idempotent: Idempotent,
    background_tasks: BackgroundTasks,
) -> Response:
    """Sends a failed mail again now, with the same bytes; for example when the owner has access to the mailbox again.

    One attempt is made at once, even while the mailbox is held because of its sending limit. 409 for a mail that was
    sent, that a later one replaced, whose guest or event is gone, or whose calendar has another sending identity now.
    """

    async def work() -> bytes:
        return (await service.resend(session, project_id, invitation_id)).model_dump_json().encode()

    background_tasks.add_task(state.doorbell.ring, "mails")
    return await idempotent.once(work, status_code=202)
