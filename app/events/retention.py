"""Deletion of events after EVENT_RETENTION_DAYS, and of the events of deleted calendars."""

from datetime import timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, text

from app.core.db import Session, Sessions, transaction
from app.join_rules.service import forget_events
from app.settings import Settings

_CALENDARS_AT_ONCE = 500
_ROWS_AT_ONCE = 1_000

# The expired rows of a calendar `c`. Each branch is the beginning of a range of an index (app/models/calendar_event.py).
# A row that was changed lately stays, so that clients see the change. Live hosted events stay, because they are stored
# nowhere else.
_PAST = "coalesce(c.window_past_days * interval '1 day', CAST(:past AS interval))"
_SINCE = f"least(c.window_start, now() - {_PAST}) - CAST(:retention AS interval)"
_UNUSED = f"e.updated_at < {_SINCE} AND NOT EXISTS (SELECT FROM bots b WHERE b.calendar_event_id = e.id)"
_END = "coalesce(e.end_time, 'infinity'::timestamptz)"
_START = "coalesce(e.start_time, 'infinity'::timestamptz)"
_EXPIRED = f"""
    (SELECT e.id FROM calendar_events e
     WHERE e.calendar_id = c.id AND e.is_deleted AND {_UNUSED}
     ORDER BY e.updated_at LIMIT {{limit}})
    UNION ALL
    (SELECT e.id FROM calendar_events e
     WHERE e.calendar_id = c.id AND NOT e.is_deleted AND c.platform <> 'local' AND {_END} < {_SINCE} AND {_UNUSED}
     ORDER BY {_END} LIMIT {{limit}})
    UNION ALL
    (SELECT e.id FROM calendar_events e
     WHERE e.calendar_id = c.id AND NOT e.is_deleted AND c.platform <> 'local' AND {_START} < {_SINCE} AND {_UNUSED}
       AND e.end_time IS NULL
     ORDER BY {_START} LIMIT {{limit}})
"""  # noqa: S608 - made of constants

_LOOK = text(
    f"""
    SELECT c.id, EXISTS ({_EXPIRED.format(limit=1)}) AS has_expired
    FROM (SELECT id, platform, window_start, window_past_days FROM calendars
          WHERE id > :after ORDER BY id LIMIT :limit) AS c
    ORDER BY c.id
    """  # noqa: S608 - made of constants
)

_LOCK = text("SELECT id FROM calendars WHERE id = :calendar_id FOR NO KEY UPDATE SKIP LOCKED")

_CLEAR = text(
    f"""
    DELETE FROM calendar_events WHERE id IN (
        SELECT e.id FROM calendars c CROSS JOIN LATERAL ({_EXPIRED.format(limit=":limit")}) AS e
        WHERE c.id = :calendar_id)
    RETURNING id
    """  # noqa: S608 - made of constants
)


async def clear_expired(sessions: Sessions, settings: Settings) -> int:
    """Delete events that were over, or were deleted, long before their calendar's window began.

    That is EVENT_RETENTION_DAYS before. Returns how many.
    Events that a bot refers to stay, and so do live events of hosted calendars. It works in short transactions, and
    any number of workers may do it at once.
    """
    if settings.event_retention_days == 0:
        return 0
    values = {
        "past": settings.sync_window_past_for,
        "retention": timedelta(days=settings.event_retention_days),
    }
    total, after = 0, ""
    while True:
        async with transaction(sessions) as session:
            asked = {**values, "after": after, "limit": _CALENDARS_AT_ONCE}
            calendars = (await session.execute(_LOOK, asked)).all()
        if not calendars:
            return total
        after = calendars[-1].id
        for calendar in calendars:
            if calendar.has_expired:
                total += await _clear_calendar(sessions, calendar.id, values)


async def _clear_calendar(sessions: Sessions, calendar_id: str, values: dict[str, timedelta]) -> int:
    """Delete the expired events of one calendar. A calendar whose row is locked is left for the next time."""
    total = 0
    while True:
        async with transaction(sessions) as session:
            if await session.scalar(_LOCK, {"calendar_id": calendar_id}) is None:
                return total
            # A statement of its own: its snapshot includes the commit of the last writer.
            asked = {**values, "calendar_id": calendar_id, "limit": _ROWS_AT_ONCE}
            ids = list(await session.scalars(_CLEAR, asked))
            await forget_events(session, calendar_id, ids)
        deleted = len(ids)
        total += deleted
        if deleted < _ROWS_AT_ONCE:
            return total


_NEXT_DELETED = text(
    "SELECT calendar_id FROM deleted_calendars ORDER BY deleted_at LIMIT 1 FOR UPDATE SKIP LOCKED"
)

_CLEAR_DELETED = text(
    """
    DELETE FROM calendar_events WHERE id IN (
        SELECT id FROM calendar_events WHERE calendar_id = :calendar_id LIMIT :limit)
    """
)

_DONE = text("DELETE FROM deleted_calendars WHERE calendar_id = :calendar_id")


async def clear_deleted(sessions: Sessions) -> int:
    """Delete the events of deleted calendars, in short transactions; returns how many.

    Such events have no writer: writing takes the lock of the calendar's row, which does not exist any more.
    """
    total = 0
    while True:
        async with transaction(sessions) as session:
            calendar_id = await session.scalar(_NEXT_DELETED)
            if calendar_id is None:
                return total
            total += await _clear_batch(session, calendar_id)


async def _clear_batch(session: Session, calendar_id: str) -> int:
    done = await session.execute(_CLEAR_DELETED, {"calendar_id": calendar_id, "limit": _ROWS_AT_ONCE})
    deleted = cast("CursorResult[Any]", done).rowcount
    if deleted < _ROWS_AT_ONCE:
        await session.execute(_DONE, {"calendar_id": calendar_id})
    return deleted
