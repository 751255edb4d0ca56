"""Creating bots: the event that one follows, its deduplication key, and its row."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert

from app.bots.lifecycle import USUAL_LENGTH
from app.core.db import Session
from app.core.wakeups import wake_after_commit
from app.models import Bot, Calendar, CalendarEvent


@dataclass(frozen=True, slots=True)
class BookableEvent:
    """What decides whether, and for when, a bot can be scheduled for an event."""

    is_connected: bool
    is_deleted: bool
    start_time: datetime | None
    end_time: datetime | None
    meeting_url: str | None
    meeting_platform: str | None


async def lock_event(session: Session, project_id: str, event_id: str) -> BookableEvent | None:
    """Return the event, unchanged until this transaction ends: writing events takes the calendar's lock.

    The last of the three statements begins after the lock is held, so it sees what was committed before.
    """
    calendar_id = await session.scalar(
        select(CalendarEvent.calendar_id).where(
            CalendarEvent.project_id == project_id, CalendarEvent.id == event_id
        )
    )
    await session.execute(select(Calendar.id).where(Calendar.id == calendar_id).with_for_update(read=True))
    row = (
        await session.execute(
            select(
                Calendar.state == "connected",
                CalendarEvent.is_deleted,
                CalendarEvent.start_time,
                CalendarEvent.end_time,
                CalendarEvent.meeting_url,
                CalendarEvent.meeting_platform,
            )
            .join(Calendar, Calendar.id == CalendarEvent.calendar_id)
            .where(CalendarEvent.project_id == project_id, CalendarEvent.id == event_id)
        )
    ).one_or_none()
    return None if row is None else BookableEvent(*row)


_RELEASE_KEY = text(
    """
    UPDATE bots AS b SET holds_key = false
    WHERE project_id = :project_id AND deduplication_key = :deduplication_key AND holds_key
      AND (state = 'launched' OR (state = 'launching' AND next_attempt_at IS NULL))
      AND coalesce((SELECT e.end_time FROM calendar_events e
                    WHERE e.id = b.calendar_event_id AND e.end_time > b.join_at),
                   b.join_at + CAST(:usual_length AS interval)) <= now()
    """
)


async def release_key(session: Session, project_id: str, deduplication_key: str) -> None:
    """Release a deduplication key that a bot holds whose meeting is over."""
    await session.execute(
        _RELEASE_KEY,
        {
            "project_id": project_id,
            "deduplication_key": deduplication_key,
            "usual_length": USUAL_LENGTH,
        },
    )


async def insert_bot(session: Session, values: Mapping[str, Any]) -> bool:
    """Insert a bot; return False if an unfinished bot of the project has its deduplication key.

    A concurrent request with the same key waits until the first one has committed or rolled back.
    """
    inserted = await session.scalar(
        insert(Bot)
        .values(values)
        .on_conflict_do_nothing(
            index_elements=[Bot.project_id, Bot.deduplication_key], index_where=text("holds_key")
        )
        .returning(Bot.id)
    )
    if inserted is not None:
        wake_after_commit(session, "bots")
    return inserted is not None
