"""HTTP routes of bots (docs/reference/http-api.md, "Bots")."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.api.deps import AppState, DbReadSession, DbSession, ProjectId
from app.api.idempotency import Idempotent
from app.api.pages import PageRead, page_links
from app.api.paths import BotId
from app.api.schemas import responses
from app.bots import service
from app.bots.schemas import BotCreate, BotRead, BotsQuery, BotUpdate

router = APIRouter(prefix="/api/v1/bots", tags=["bots"])


@router.get("", operation_id="list_bots", responses=responses())
async def list_bots(
    request: Request, session: DbReadSession, project_id: ProjectId, query: Annotated[BotsQuery, Query()]
) -> PageRead[BotRead]:
    """The project's bots, oldest first, 25 a page."""
    page = await service.list_bots(session, project_id, query)
    return PageRead(**page_links(request, page), results=list(page.rows))


@router.post(
    "",
    operation_id="create_bot",
    status_code=201,
    response_model=BotRead,
    responses=responses(404, 409, 413, 429),
)
async def create_bot(
    *,
    session: DbSession,
    state: AppState,
    project_id: ProjectId,
    idempotent: Idempotent,
    body: BotCreate,
) -> Response:
    """Schedules a bot for an event, which it then follows, or for a `meeting_url`.

    Without `join_at`, it joins the `meeting_url` at once.

    Fields that are not listed here are kept in `bot_settings` and handed to the runner.
    """
    return await idempotent.once(lambda: service.create_bot(session, state.settings, project_id, body))


@router.get("/{bot_id}", operation_id="get_bot", responses=responses(404, takes_input=False))
async def get_bot(session: DbReadSession, project_id: ProjectId, bot_id: BotId) -> BotRead:
    """One bot."""
    return await service.get_bot(session, project_id, bot_id)


@router.patch("/{bot_id}", operation_id="update_bot", responses=responses(404, 413))
async def update_bot(
    *,
    session: DbSession,
    state: AppState,
    project_id: ProjectId,
    bot_id: BotId,
    body: BotUpdate,
) -> BotRead:
    """Changes a scheduled bot, with the fields of its creation.

    Of a bot past `scheduled`, only the metadata can be changed.
    """
    return await service.update_bot(session, state.settings, project_id, bot_id, body)


@router.delete(
    "/{bot_id}",
    operation_id="delete_bot",
    response_class=Response,
    responses={**responses(404), 200: {"description": "Deleted; the body is empty."}},
)
async def delete_bot(
    session: DbSession,
    project_id: ProjectId,
    bot_id: BotId,
) -> Response:
    """Unschedules a bot. One that is past `scheduled` cannot be deleted: 400."""
    await service.delete_bot(session, project_id, bot_id)
    return Response()
