"""Routes of join rules, policies of events and the preview (docs/reference/http-api.md, "Join rules")."""

import orjson
import structlog
from fastapi import APIRouter, Response

from app.api.deps import AppState, DbReadSession, DbSession, ProjectId, State
from app.api.paths import CalendarId, EventId
from app.api.schemas import responses
from app.core.db import DATABASE_UNAVAILABLE, transaction
from app.join_rules import service
from app.join_rules.preview import preview_rules
from app.join_rules.runs import apply_runs
from app.join_rules.schemas import (
    BotPolicyInput,
    BotPolicyRead,
    JoinRulesInput,
    JoinRulesRead,
    PreviewRead,
)

router = APIRouter(prefix="/api/v1", tags=["join rules"])
log = structlog.get_logger()

# A request applies changed rules itself for so long; a worker goes on.
_APPLY_SECONDS = 5.0


@router.get("/join_rules", operation_id="get_join_rules", responses=responses(takes_input=False))
async def get_join_rules(session: DbReadSession, project_id: ProjectId) -> JoinRulesRead:
    """Returns the project's join rules. A project that never had any has an empty list."""
    return await service.get_rules(session, project_id)


@router.put("/join_rules", operation_id="set_join_rules", responses=responses(413))
async def set_join_rules(state: AppState, project_id: ProjectId, body: JoinRulesInput) -> JoinRulesRead:
    """Replaces the project's join rules, and applies them to all events ahead.

    For a project of many events, a worker finishes that after the response.
    """
    async with transaction(state.sessions) as session:
        saved = await service.put_rules(session, project_id, body)
    await _apply(state, project_id)
    return saved


@router.get(
    "/calendars/{calendar_id}/join_rules",
    operation_id="get_calendar_join_rules",
    responses=responses(404, takes_input=False),
)
async def get_calendar_join_rules(
    session: DbReadSession, project_id: ProjectId, calendar_id: CalendarId
) -> JoinRulesRead:
    """Returns the calendar's own join rules. 404 if it has none: the project's apply."""
    return await service.get_rules(session, project_id, calendar_id)


@router.put(
    "/calendars/{calendar_id}/join_rules",
    operation_id="set_calendar_join_rules",
    responses=responses(404, 413),
)
async def set_calendar_join_rules(
    state: AppState, project_id: ProjectId, calendar_id: CalendarId, body: JoinRulesInput
) -> JoinRulesRead:
    """Gives the calendar join rules of its own, in place of the project's.

    They are applied to all its events ahead.
    """
    async with transaction(state.sessions) as session:
        saved = await service.put_rules(session, project_id, body, calendar_id)
    await _apply(state, project_id)
    return saved


@router.delete(
    "/calendars/{calendar_id}/join_rules",
    operation_id="delete_calendar_join_rules",
    response_class=Response,
    responses={**responses(404, takes_input=False), 200: {"description": "Deleted. The body is empty."}},
)
async def delete_calendar_join_rules(
    state: AppState, project_id: ProjectId, calendar_id: CalendarId
) -> Response:
    """Deletes the calendar's own join rules: the project's apply again."""
    async with transaction(state.sessions) as session:
        await service.delete_rules(session, project_id, calendar_id)
    await _apply(state, project_id)
    return Response()


async def _apply(state: State, project_id: str) -> None:
    """Work on the run that was committed. If that fails or takes longer, a worker goes on."""
    try:
        await apply_runs(state.sessions, state.settings, project_id, seconds=_APPLY_SECONDS)
    except DATABASE_UNAVAILABLE as err:
        # The rules are stored, and so is the run.
        log.warning("join_rules_left_to_worker", error=type(err).__name__)


@router.get(
    "/calendar_events/{event_id}/bot_policy",
    operation_id="get_bot_policy",
    responses=responses(404, takes_input=False),
)
async def get_bot_policy(session: DbReadSession, project_id: ProjectId, event_id: EventId) -> BotPolicyRead:
    """Returns what decides about the event's bot."""
    return await service.get_policy(session, project_id, event_id)


@router.put(
    "/calendar_events/{event_id}/bot_policy", operation_id="set_bot_policy", responses=responses(404, 413)
)
async def set_bot_policy(
    *, session: DbSession, state: AppState, project_id: ProjectId, event_id: EventId, body: BotPolicyInput
) -> BotPolicyRead:
    """Sets what decides about the event's bot, and makes or deletes the bot at once.

    `always` makes one whatever the rules say, with the first rule's `bot` if none joins, and also where a client deleted
    the bot. `never` deletes the rule's scheduled bot. Bots that clients scheduled are left alone.
    """
    return await service.set_policy(session, state.settings, project_id, event_id, body.policy)


@router.post(
    "/join_rules/preview",
    operation_id="preview_join_rules",
    response_model=PreviewRead,
    responses=responses(413, 429),
)
async def preview_join_rules(state: AppState, project_id: ProjectId, body: JoinRulesInput) -> Response:
    """Says which bots these rules would make and remove if they were the project's. It writes nothing.

    Calendars with rules of their own keep them.
    """
    preview = await preview_rules(state.read_sessions, state.settings, project_id, body)
    return Response(orjson.dumps(preview), media_type="application/json")
