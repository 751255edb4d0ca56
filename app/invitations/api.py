"""Route of an event's mails (issue of hosted calendars; docs/messages.md)."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import AfterValidator

from app.api.deps import DbReadSession, ProjectId
from app.api.pages import PageRead, page_links
from app.api.paths import id_pattern, require_id
from app.api.schemas import responses
from app.invitations import service
from app.invitations.schemas import InvitationRead, InvitationsQuery

router = APIRouter(prefix="/api/v1/calendar_events", tags=["calendar events"])


def _event_id(value: str) -> str:
    return require_id(value, prefix="evt", what="Calendar event")


EventId = Annotated[str, Path(json_schema_extra={**id_pattern("evt")}), AfterValidator(_event_id)]


@router.get("/{event_id}/invitations", operation_id="list_invitations", responses=responses(404))
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
