"""Routes of events. Responses are built as bytes; the response models document them in OpenAPI."""

from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request, Response

from app.api.deps import DbReadSession, ProjectId
from app.api.pages import PageRead, page_links
from app.api.paths import EventId
from app.api.schemas import responses
from app.calendar_events import service
from app.calendar_events.schemas import CalendarEventRead, CalendarEventsQuery
from app.ical.export import export_event

router = APIRouter(prefix="/api/v1/calendar_events", tags=["calendar events"])


@router.get(
    "",
    operation_id="list_calendar_events",
    response_model=PageRead[CalendarEventRead],
    responses=responses(),
)
async def list_calendar_events(
    request: Request,
    session: DbReadSession,
    project_id: ProjectId,
    query: Annotated[CalendarEventsQuery, Query()],
) -> Response:
    """Events, 100 a page, latest change first.

    No change is ever missed by a client that keeps the largest `updated_at` it has seen and asks for
    `updated_after` it, within a calendar or over the whole project.
    """
    page = await service.list_events(session, project_id, query)
    results = [service.event_body(row) for row in page.rows]
    return _json({**page_links(request, page), "results": results})


@router.get(
    "/{event_id}.ics",
    operation_id="export_calendar_event",
    response_class=Response,
    responses={
        **responses(404),
        200: {"description": "One VEVENT", "content": {"text/calendar": {"schema": {"type": "string"}}}},
    },
)
async def export_calendar_event(session: DbReadSession, project_id: ProjectId, event_id: EventId) -> Response:
    """The event as an iCalendar file. 400 for an event for which the provider sent no start."""
    text = export_event(await service.get_exported(session, project_id, event_id))
    headers = {"Content-Disposition": f'attachment; filename="{event_id}.ics"'}
    return Response(text, media_type="text/calendar; charset=utf-8", headers=headers)


@router.get(
    "/{event_id}",
    operation_id="get_calendar_event",
    response_model=CalendarEventRead,
    responses=responses(404, takes_input=False),
)
async def get_calendar_event(session: DbReadSession, project_id: ProjectId, event_id: EventId) -> Response:
    """One event."""
    return _json(service.event_body(await service.get_event(session, project_id, event_id)))


def _json(body: dict[str, object]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
