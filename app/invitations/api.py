"""The route of an event's mails (docs/messages.md)."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app.api.deps import DbReadSession, ProjectId
from app.api.pages import PageRead, page_links
from app.api.paths import EventId
from app.api.schemas import responses
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
