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


async def read_page(read_sessions: Sessions, scope: Scope, place: Place, limit: int) -> Page:
    """Read the changes behind a place, in two statements."""
    async with reading(read_sessions) as session:
        # What was visible when the place was given out is visible still.
        before = max(await load_horizon(session, scope.project_id), place.until)
        rows, has_more = await calendar_events.list_changes(
            session,
            scope.project_id,
            calendar_id=scope.calendar_id,
            after=(place.at, place.event_id),
            before=before,
            limit=limit,
        )
    return Page([read_change(row) for row in rows], has_more, before)


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
    while not follower.is_over:
        try:
            async with asyncio.timeout_at(deadline):
                await follower.news.wait()
        except TimeoutError:
            break
        changes = follower.take()
        if changes is None:
            return await read_page(read_sessions, scope, place, limit)
        if changes:
            return _page_of(changes, limit)
    return Page([], has_more=False, knows_until=place.until)


def _page_of(changes: Sequence[Change], limit: int) -> Page:
    """Return the first of the changes; of an event that changed twice only the last."""
    latest = {change.place.event_id: change for change in changes}
    found = [change for change in changes if latest[change.place.event_id] is change]
    return Page(found[:limit], len(found) > limit, found[-1].place.until)
