"""Routes of following changes (docs/reference/http-api.md, "Changes").

No route here has a session as a dependency: it would hold a connection while the client waits.
"""

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from app.api.deps import ApiKey, AppState
from app.api.middleware import count_as_waiting, is_head
from app.api.schemas import responses
from app.changes import service
from app.changes.hub import Hub
from app.changes.places import Place, Scope, encode_cursor
from app.changes.schemas import ChangesQuery, ChangesRead, FollowQuery
from app.changes.stream import STREAM_HEADERS, ChangeStream, end_when_closed

router = APIRouter(prefix="/api/v1/changes", tags=["changes"])

_STREAM_EXAMPLE = (
    "id: AAZJ8Kt6c0BldnRfaDNHazI5c0xxUHpYODFBYk1W2hI0Vng\n"
    "event: event.updated\n"
    'data: {"type":"event.updated","calendar_id":"cal_...","event":{"id":"evt_...",...}}\n\n'
)


async def _hub(request: Request) -> Hub:
    hub: Hub = request.app.state.changes
    return hub


HubDep = Annotated[Hub, Depends(_hub)]


@router.get(
    "",
    operation_id="list_changes",
    response_model=ChangesRead,
    responses=responses(404, 429),
)
async def list_changes(
    request: Request, state: AppState, hub: HubDep, key: ApiKey, query: Annotated[ChangesQuery, Query()]
) -> Response:
    """Events that changed since a cursor, in the order of their changes.

    No change is missed, and none comes twice.
    Without `cursor` and `since`, it begins now: the response comes at once, without results, with a cursor. With
    `wait`, a response without results waits for the next change. Call again with `next_cursor`, as long as you like.
    """
    scope = Scope(key.project_id, query.calendar_id)
    place = await service.find_place(state.read_sessions, scope, cursor=query.cursor, since=query.since)
    if query.cursor is None and query.since is None:
        return _json(scope, place, service.empty_page(place))
    seconds = 0.0 if is_head(request.scope) else query.wait
    if not seconds:
        page = await service.read_page(state.read_sessions, scope, place, query.limit)
        return _json(scope, place, page)
    started = time.perf_counter()
    with hub.follower(scope, kind="request", key_id=key.id) as follower:
        watching = asyncio.create_task(end_when_closed(follower, request.receive))
        try:
            page = await service.wait_for_page(
                hub, state.read_sessions, follower, place, limit=query.limit, seconds=seconds
            )
        finally:
            watching.cancel()
            count_as_waiting(request.scope, time.perf_counter() - started)
    return _json(scope, place, page)


@router.get(
    "/stream",
    operation_id="stream_changes",
    response_class=Response,
    responses={
        **responses(404, 429),
        200: {
            "description": "Server-Sent Events: `id` is a cursor, `event` the type, `data` an object as in the "
            "`results` of `GET /api/v1/changes`, on one line. A comment comes at least every 15 seconds.",
            "content": {"text/event-stream": {"schema": {}, "example": _STREAM_EXAMPLE}},
        },
    },
)
async def stream_changes(
    request: Request,
    state: AppState,
    hub: HubDep,
    key: ApiKey,
    *,
    query: Annotated[FollowQuery, Query()],
    last_event_id: Annotated[
        str | None,
        Header(max_length=1024, description="The last `id` received. It goes before `cursor` and `since`."),
    ] = None,
) -> Response:
    """The same changes as Server-Sent Events, as they happen, until the client closes the connection.

    Without `Last-Event-ID`, `cursor` and `since`, it begins now. An `id` alone comes first: where to resume.
    Use a client that reads streams, such as `curl -N`: /docs shows nothing before the stream ends.
    """
    scope = Scope(key.project_id, query.calendar_id)
    place = await service.find_place(
        state.read_sessions, scope, cursor=last_event_id or query.cursor, since=query.since
    )
    if is_head(request.scope):
        return Response(headers=STREAM_HEADERS)
    return ChangeStream(hub, state.read_sessions, scope, place, key_id=key.id)


def _json(scope: Scope, place: Place, page: service.Page) -> Response:
    results = b",".join(change.as_json(place) for change in page.changes)
    cursor = encode_cursor(scope, page.changes[-1].place if page.changes else place)
    has_more = b"true" if page.has_more else b"false"
    body = b'{"results":[%b],"next_cursor":"%b","has_more":%b}' % (results, cursor.encode(), has_more)
    return Response(body, media_type="application/json")
