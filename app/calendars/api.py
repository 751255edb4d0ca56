"""Routes of calendars (docs/reference/http-api.md, "Calendars")."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request, Response

from app.api.deps import AppState, DbReadSession, DbSession, ProjectId
from app.api.idempotency import Idempotent
from app.api.pages import PageRead, page_links
from app.api.paths import CalendarId
from app.api.schemas import ErrorAnswer, responses
from app.calendars import account, service
from app.calendars.schemas import (
    CalendarCreate,
    CalendarRead,
    CalendarsQuery,
    CalendarUpdate,
    LocalCalendarCreate,
    RemoteCalendarRead,
    RemoteCalendarsRead,
    SyncQueued,
)
from app.core.db import reading
from app.credentials.store import CredentialStore
from app.hosted.identity import chosen_identity, default_identity
from app.mail.deps import MessagesDep
from app.mail.lasuite.mailboxes import Messages

router = APIRouter(prefix="/api/v1/calendars", tags=["calendars"])


_CREATE_EXAMPLES = {
    "google": {
        "value": {
            "platform": "google",
            "client_id": "1234-abcd.apps.googleusercontent.com",
            "client_secret": "GOCSPX-...",
            "refresh_token": "1//09...",
            "metadata": {"user_id": "42"},
            "deduplication_key": "user-42",
        }
    },
    "another calendar of the same account": {
        "value": {"credentials_of": "cal_h3Gk29sLqPzX81Ab", "platform_uuid": "team@group.calendar.google.com"}
    },
    "ics": {
        "value": {
            "platform": "ics",
            "feed_url": "https://example.com/secret.ics",
            "metadata": {"user_id": "42"},
            "window": {"past_days": 7, "future_days": 180},
        }
    },
    "local": {
        "value": {
            "platform": "local",
            "name": "Lectures",
            "owner_email": "ada@example.com",
            "owner_name": "Ada Lovelace",
            "timezone": "Europe/Paris",
        }
    },
}


@router.get("", operation_id="list_calendars", responses=responses())
async def list_calendars(
    request: Request,
    session: DbReadSession,
    state: AppState,
    project_id: ProjectId,
    query: Annotated[CalendarsQuery, Query()],
) -> PageRead[CalendarRead]:
    """Returns the project's calendars, newest first, 25 per page."""
    page = await service.list_calendars(session, state.settings, project_id, query)
    return PageRead(**page_links(request, page), results=list(page.rows))


@router.post(
    "",
    operation_id="create_calendar",
    status_code=201,
    response_model=CalendarRead,
    responses=responses(409, 413, 429, 502),
)
async def create_calendar(
    *,
    session: DbSession,
    state: AppState,
    project_id: ProjectId,
    idempotent: Idempotent,
    messages: MessagesDep,
    body: Annotated[CalendarCreate, Body(openapi_examples=_CREATE_EXAMPLES)],
) -> Response:
    """Connects a calendar and queues its first sync.

    With platform `local`, creates a calendar that is hosted here.
    """
    identity = None
    if isinstance(body, LocalCalendarCreate):
        # The call to Messages comes before the transaction begins: none is open during a network call.
        stored = await idempotent.find_stored(state.read_sessions)
        if stored is not None:
            return stored
        identity = await _identity_of_new(messages, body)

    async def work() -> CalendarRead:
        if isinstance(body, LocalCalendarCreate):
            return await service.create_local_calendar(session, state.settings, project_id, body, identity)
        return await service.create_calendar(session, state.settings, state.box, project_id, body)

    return await idempotent.once(work)


async def _identity_of_new(messages: Messages, body: LocalCalendarCreate) -> dict[str, Any] | None:
    if body.sending_identity is not None:
        return await chosen_identity(messages, body.owner_email, body.sending_identity)
    if "sending_identity" in body.model_fields_set:
        return None
    return await default_identity(messages, body.owner_email)


@router.get("/{calendar_id}", operation_id="get_calendar", responses=responses(404, takes_input=False))
async def get_calendar(
    session: DbReadSession, state: AppState, project_id: ProjectId, calendar_id: CalendarId
) -> CalendarRead:
    """Returns a calendar."""
    return await service.get_calendar(session, state.settings, project_id, calendar_id)


@router.get(
    "/{calendar_id}/remote_calendars",
    operation_id="list_remote_calendars",
    responses={
        **responses(404, 429, 502),
        409: {"description": "The account's consent has ended: connect it again", "model": ErrorAnswer},
    },
)
async def list_remote_calendars(
    state: AppState, project_id: ProjectId, calendar_id: CalendarId
) -> RemoteCalendarsRead:
    """Returns the calendars of this calendar's account, read from the provider now."""
    async with reading(state.read_sessions) as session:
        platform, credentials_id = await account.find_account(session, project_id, calendar_id)
    # No session is open during the call to the provider.
    calendars = await account.list_remote_calendars(
        settings=state.settings,
        client=state.http,
        store=CredentialStore(
            settings=state.settings, sessions=state.sessions, box=state.box, client=state.http
        ),
        platform=platform,
        credentials_id=credentials_id,
    )
    results = [RemoteCalendarRead.model_validate(calendar) for calendar in calendars]
    return RemoteCalendarsRead(results=results)


async def _known_calendar(state: AppState, project_id: ProjectId, calendar_id: CalendarId) -> str:
    """Raise CalendarNotFound before the body is checked: an unknown calendar is a 404 with any body.

    It has its own session, since a call to Messages may come before the request's transaction begins.
    """
    async with reading(state.read_sessions) as session:
        await service.require_calendar(session, project_id, calendar_id)
    return calendar_id


@router.patch("/{calendar_id}", operation_id="update_calendar", responses=responses(404, 413, 429, 502))
async def update_calendar(
    *,
    session: DbSession,
    state: AppState,
    project_id: ProjectId,
    calendar_id: Annotated[str, Depends(_known_calendar)],
    messages: MessagesDep,
    body: CalendarUpdate,
) -> CalendarRead:
    """Changes metadata, secrets or the sync window, and queues a sync.

    New secrets reconnect a disconnected calendar. Without new secrets, the sync reconnects it if access is back.

    For a local calendar, changes its name, owner's name, time zone, language and sending identity.
    """
    identity = None
    if body.sending_identity is not None:
        async with reading(state.read_sessions) as before:
            owner_email = await service.get_local_owner(
                before, project_id, calendar_id, field="sending_identity"
            )
        identity = await chosen_identity(messages, owner_email, body.sending_identity)
    return await service.update_calendar(
        session, state.settings, state.box, project_id, calendar_id, body=body, identity=identity
    )


@router.delete(
    "/{calendar_id}",
    operation_id="delete_calendar",
    response_class=Response,
    responses={**responses(404, takes_input=False), 200: {"description": "Deleted. The body is empty."}},
)
async def delete_calendar(
    session: DbSession, state: AppState, project_id: ProjectId, calendar_id: CalendarId
) -> Response:
    """Deletes the calendar, its events and pending deliveries about them."""
    await service.delete_calendar(session, state.settings, state.box, project_id, calendar_id)
    return Response()


@router.post(
    "/{calendar_id}/sync",
    operation_id="sync_calendar",
    status_code=202,
    response_model=SyncQueued,
    responses=responses(404, 409, 429),
)
async def sync_calendar(
    *,
    session: DbSession,
    project_id: ProjectId,
    calendar_id: CalendarId,
    idempotent: Idempotent,
) -> Response:
    """Queues a sync. If one is running, another one follows it.

    It begins now, or 5 seconds after the last one began. Requests in between are combined. While a calendar's syncs
    fail, the pause is one minute, and 5 minutes for a feed.
    """

    async def work() -> SyncQueued:
        await service.queue_sync(session, project_id, calendar_id)
        return SyncQueued()

    return await idempotent.once(work, status_code=202)
