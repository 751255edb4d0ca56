"""Routes of events (contract 4). Answers are built as bytes; the response models are for OpenAPI."""

from typing import Annotated

import orjson
from fastapi import APIRouter, BackgroundTasks, Body, Query, Request, Response

from app.api.deps import AppState, DbReadSession, DbSession, ProjectId, State
from app.api.idempotency import Idempotent
from app.api.pages import PageRead, page_links
from app.api.paths import EventId
from app.api.schemas import responses
from app.calendar_events import service
from app.calendar_events.schemas import (
    CalendarEventCreate,
    CalendarEventRead,
    CalendarEventsQuery,
    CalendarEventUpdate,
    DeleteQuery,
    ScopeQuery,
)
from app.core.db import Session
from app.hosted import service as hosted
from app.hosted.service import Hosting
from app.ical.export import export_event

router = APIRouter(prefix="/api/v1/calendar_events", tags=["calendar events"])


_CREATE_EXAMPLES = {
    "event": {
        "value": {
            "calendar_id": "cal_h3Gk29sLqPzX81Ab",
            "name": "Analysis",
            "start_time": "2026-11-24T09:00:00Z",
            "end_time": "2026-11-24T10:00:00Z",
            "timezone": "Europe/Paris",
            "meeting_url": "https://meet.google.com/abc-defg-hij",
            "attendees": [{"email": "bob@example.org", "name": "Bob"}],
            "recurrence": ["RRULE:FREQ=WEEKLY;COUNT=10"],
        }
    },
}


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


@router.post(
    "",
    operation_id="create_calendar_event",
    status_code=201,
    response_model=CalendarEventRead,
    responses=responses(404, 409, 413, 429),
)
async def create_calendar_event(
    *,
    session: DbSession,
    state: AppState,
    project_id: ProjectId,
    idempotent: Idempotent,
    body: Annotated[CalendarEventCreate, Body(openapi_examples=_CREATE_EXAMPLES)],
    background_tasks: BackgroundTasks,
) -> Response:
    """Adds an event to a calendar that is hosted here, and invites its attendees.

    Of a series (`recurrence`), the answer is its first instance. Calendars of a provider are read-only: 400.
    """

    async def work() -> bytes:
        await service.require_local(session, project_id, body.calendar_id)
        event_id = await hosted.create_event(session, _hosting(state), project_id, body)
        return await _body(session, project_id, event_id)

    _ring(state, background_tasks)
    return await idempotent.once(work, status_code=201)


@router.patch(
    "/{event_id}",
    operation_id="update_calendar_event",
    response_model=CalendarEventRead,
    responses=responses(404, 413),
)
async def update_calendar_event(
    *,
    session: DbSession,
    state: AppState,
    project_id: ProjectId,
    event_id: EventId,
    query: Annotated[ScopeQuery, Query()],
    body: CalendarEventUpdate,
    background_tasks: BackgroundTasks,
) -> Response:
    """Changes an event of a hosted calendar and mails the guests concerned. Of a series, only this instance changes.

    `?scope=series` changes the series: `start_time` and `end_time` are then the new times of the named instance, and
    all others move as much. Calendars of a provider are read-only: 400.
    """
    await service.require_local_event(session, project_id, event_id)
    told_id = await hosted.update_event(
        session, _hosting(state), project_id, event_id, body, scope=query.scope
    )
    _ring(state, background_tasks)
    return Response(await _body(session, project_id, told_id), media_type="application/json")


@router.delete(
    "/{event_id}",
    operation_id="delete_calendar_event",
    response_class=Response,
    responses={**responses(404), 200: {"description": "Gone; the body is empty."}},
)
async def delete_calendar_event(
    *,
    session: DbSession,
    state: AppState,
    project_id: ProjectId,
    event_id: EventId,
    query: Annotated[DeleteQuery, Query()],
    background_tasks: BackgroundTasks,
) -> Response:
    """Cancels an event of a hosted calendar; of a series, only this instance (or all, with `?scope=series`).

    The row stays with `is_deleted`. Calendars of a provider are read-only: 400.
    """
    await service.require_local_event(session, project_id, event_id)
    await hosted.delete_event(
        session,
        _hosting(state),
        project_id,
        event_id,
        scope=query.scope,
        send_invitations=query.send_invitations,
    )
    _ring(state, background_tasks)
    return Response()


def _hosting(state: State) -> Hosting:
    return Hosting(state.settings)


def _ring(state: State, background_tasks: BackgroundTasks) -> None:
    background_tasks.add_task(state.doorbell.ring, "deliveries")
    background_tasks.add_task(state.doorbell.ring, "mails")


async def _body(session: Session, project_id: str, event_id: str) -> bytes:
    return orjson.dumps(service.event_body(await service.get_event(session, project_id, event_id)))


def _json(body: dict[str, object]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
