"""Where a client begins, pages of changes, and waiting for the next one."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from app.calendar_events import service as calendar_events
from app.calendars.service import require_calendar
from app.changes.feed import Follower
from app.changes.hub import Hub
from app.changes.places import Place, Scope, decode_cursor
from app.changes.rendering import Change, read_change
from app.core.db import Sessions, reading
from app.events.visibility import load_horizon

# A response ends after the event with which it has this size. Each may have 300 kB.
_MAX_PAGE_BYTES = 4_000_000
# Rows of one statement: all of them are in memory, whatever their size.
_ROWS = (50, 100)
_ROW_BYTES = 20_000
# Until a client that could not join reads again.
AGAIN_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Page:
    """Changes in order. `knows_until`: all changes before this time are in it, or behind its end."""

    changes: Sequence[Change]
    has_more: bool
    knows_until: datetime


async def find_place(
    read_sessions: Sessions, scope: Scope, *, cursor: str | None, since: datetime | None
) -> Place:
    """Return where the client begins: at the cursor, at a time, or now.

    Raises CalendarNotFound, BadCursor.
    """
    place = decode_cursor(scope, cursor) if cursor is not None and scope.calendar_id is None else None
    if place is not None:
        return place
    async with reading(read_sessions) as session:
        if scope.calendar_id is not None:
            await require_calendar(session, scope.project_id, scope.calendar_id)
        if cursor is not None:
            return decode_cursor(scope, cursor)
        # Not the clock: an older change may not be visible yet.
        horizon = await load_horizon(session, scope.project_id)
    return Place(horizon if since is None else min(since, horizon))


async def read_page(
    read_sessions: Sessions, scope: Scope, place: Place, limit: int, *, max_bytes: int | None = None
) -> Page:
    """Read the changes behind a place: `limit` of them, or fewer if they have `max_bytes` together.

    The horizon is read once, so an event that changes meanwhile does not come a second time.
    """
    max_bytes = max_bytes or _MAX_PAGE_BYTES
    changes: list[Change] = []
    size = 0
    first, most = _ROWS
    count = max(1, min(first, max_bytes // _ROW_BYTES))
    async with reading(read_sessions) as session:
        horizon = await load_horizon(session, scope.project_id)
        # What was visible when the place was given out is visible still.
        before = max(horizon, place.until)
        behind, has_more = place, True
        while has_more and len(changes) < limit and size < max_bytes:
            rows, has_more = await calendar_events.list_changes(
                session,
                scope.project_id,
                calendar_id=scope.calendar_id,
                after=(behind.at, behind.event_id),
                before=before,
                limit=min(count, limit - len(changes)),
            )
            if not rows:
                break
            found, is_cut = _cut([read_change(row) for row in rows], max_bytes - size)
            changes += found
            size += sum(len(change.event) for change in found)
            behind, has_more = changes[-1].place, has_more or is_cut
            count = max(1, min(most, (max_bytes - size) * len(changes) // size))
    return Page(changes, has_more, horizon)


def _cut(changes: Sequence[Change], max_bytes: int) -> tuple[Sequence[Change], bool]:
    """Return the first changes that have `max_bytes` together, and whether some are left out."""
    size = 0
    for count, change in enumerate(changes, 1):
        size += len(change.event)
        if size >= max_bytes:
            return changes[:count], count < len(changes)
    return changes, False


async def wait_for_page(
    hub: Hub, read_sessions: Sessions, follower: Follower, place: Place, *, limit: int, seconds: float
) -> Page:
    """Read the changes behind a place; if there are none, wait for the next ones.

    Returns an empty page after `seconds`, or as soon as the follower must end.
    """
    scope = follower.scope
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    if not hub.join_at_edge(follower, place):
        while True:
            page = await read_page(read_sessions, scope, place, limit)
            if page.changes or loop.time() >= deadline:
                return page
            if hub.join(follower, place, page.knows_until):
                break
            await asyncio.sleep(AGAIN_SECONDS)
    while not follower.is_over:
        try:
            async with asyncio.timeout_at(deadline):
                await follower.news.wait()
        except TimeoutError:
            break
        changes = follower.take(_MAX_PAGE_BYTES)
        if changes is None:
            return await read_page(read_sessions, scope, place, limit)
        if changes:
            return _page_of(changes, limit, has_more=follower.news.is_set())
    return empty_page(place)


def empty_page(place: Place) -> Page:
    return Page([], has_more=False, knows_until=place.until)


def _page_of(changes: Sequence[Change], limit: int, *, has_more: bool) -> Page:
    """Return the first of the changes; of an event that changed twice only the last."""
    latest = {change.place.event_id: change for change in changes}
    found = [change for change in changes if latest[change.place.event_id] is change]
    first, is_cut = _cut(found[:limit], _MAX_PAGE_BYTES)
    return Page(first, has_more or is_cut or len(found) > limit, first[-1].place.until)
