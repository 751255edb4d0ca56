"""Routes that write events of hosted calendars."""

from typing import Annotated

import orjson
from fastapi import APIRouter, Body, Query, Response

from app.api.deps import AppState, DbSession, ProjectId
from app.api.idempotency import Idempotent
from app.api.paths import EventId, InvitationId
from app.api.schemas import ErrorAnswer, responses
from app.calendar_events import service as calendar_events
from app.calendar_events.schemas import CalendarEventRead
from app.core.db import Session
from app.hosted import commands
from app.hosted.resend import resend_invitation as resend_invitation_mail
from app.hosted.schemas import CalendarEventCreate, CalendarEventUpdate, DeleteQuery, ScopeQuery
from app.invitations.schemas import InvitationRead

router = APIRouter(tags=["calendar events"])

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


@router.post(
    "/api/v1/calendar_events",
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
) -> Response:
    """Add an event to a calendar that is hosted here, and invite its attendees.

    For a series (`recurrence`), the response is its first instance. Calendars of a provider are read-only: 400.
    """

    async def work() -> bytes:
        event_id = await commands.create_event(session, state.settings, project_id, body)
        return await _body(session, project_id, event_id)

    return await idempotent.once(work)


@router.patch(
    "/api/v1/calendar_events/{event_id}",
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
) -> Response:
    """Change an event of a hosted calendar, and mail the guests concerned.

    In a series, only this instance changes. `?scope=series` changes the series: `start_time` and `end_time` are then
    the new times of the named instance, and all others move as much. Calendars of a provider are read-only: 400.
    """
    changed_id = await commands.update_event(
        session, state.settings, project_id, event_id, body, scope=query.scope
    )
    return Response(await _body(session, project_id, changed_id), media_type="application/json")


@router.delete(
    "/api/v1/calendar_events/{event_id}",
    operation_id="delete_calendar_event",
    response_class=Response,
    responses={**responses(404), 200: {"description": "Cancelled; the body is empty."}},
)
async def delete_calendar_event(
    *,
    session: DbSession,
    state: AppState,
    project_id: ProjectId,
    event_id: EventId,
    query: Annotated[DeleteQuery, Query()],
) -> Response:
    """Cancel an event of a hosted calendar.

    In a series, only this instance is cancelled; with `?scope=series`, all are. The row stays with `is_deleted`.
    Calendars of a provider are read-only: 400.
    """
    await commands.delete_event(
        session,
        state.settings,
        project_id,
        event_id,
        scope=query.scope,
        send_invitations=query.send_invitations,
    )
    return Response()


@router.post(
    "/api/v1/invitations/{invitation_id}/resend",
    operation_id="resend_invitation",
    status_code=202,
    response_model=InvitationRead,
    responses={
        **responses(404, 429),
        409: {
            "description": "It was sent, or replaced by a later mail, or is out of date",
            "model": ErrorAnswer,
        },
    },
)
async def resend_invitation(
    *,
    session: DbSession,
    project_id: ProjectId,
    invitation_id: InvitationId,
    idempotent: Idempotent,
) -> Response:
    """Send a failed mail again now, with the same bytes.

    Use it when the owner has access to the mailbox again, for example. One attempt is made at once, even while the
    mailbox is held because of its sending limit. 409 for a mail that was sent, that a later one replaced, whose guest
    or event was removed, or whose calendar has another sending identity now.
    """
    return await idempotent.once(
        lambda: resend_invitation_mail(session, project_id, invitation_id), status_code=202
    )


async def _body(session: Session, project_id: str, event_id: str) -> bytes:
    return orjson.dumps(
        calendar_events.event_body(await calendar_events.get_event(session, project_id, event_id))
    )
