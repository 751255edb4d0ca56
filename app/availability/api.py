"""Routes of free/busy times and availability.

Responses are built as bytes; the response models document them in OpenAPI.
"""

from fastapi import APIRouter, Response

from app.api.deps import AppState, ProjectId
from app.api.pages import NoQuery
from app.api.schemas import responses
from app.availability import service
from app.availability.deps import LiveAccessDep
from app.availability.live_times import add_live
from app.availability.schemas import AvailabilityRead, AvailabilityRequest, FreeBusyRead, FreeBusyRequest

router = APIRouter(prefix="/api/v1", tags=["availability"])


@router.post(
    "/free_busy",
    operation_id="query_free_busy",
    response_model=FreeBusyRead,
    responses=responses(404, 413, 429),
    dependencies=[NoQuery],
)
async def query_free_busy(
    state: AppState, live: LiveAccessDep, project_id: ProjectId, body: FreeBusyRequest
) -> Response:
    """Returns when calendars are busy, from the synced events.

    An event counts unless its `busy_status` is `free` or `working_elsewhere`, it is deleted, or the calendar's owner
    declined it. Beyond `covered_until` nothing is known: what is not busy there is not free.
    """
    times = await service.load_times(state.read_sessions, state.settings, project_id, body)
    if body.live:
        await add_live(live, project_id, body, times)
    return Response(await service.free_busy_body(project_id, times), media_type="application/json")


@router.post(
    "/availability",
    operation_id="query_availability",
    response_model=AvailabilityRead,
    responses=responses(404, 413, 429),
    dependencies=[NoQuery],
)
async def query_availability(state: AppState, project_id: ProjectId, body: AvailabilityRequest) -> Response:
    """Returns the slots in which people can meet, from the synced events.

    A participant with several calendars is busy where any of them is. A participant is free only where all of their
    calendars are known, and a meeting with its buffers meets no event of theirs.
    """
    found = await service.find_availability(state.read_sessions, state.settings, project_id, body)
    return Response(found, media_type="application/json")
