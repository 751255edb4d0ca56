"""Reading the events of a project that are not over, part by part."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, text

from app.core.db import AnySession
from app.join_rules.repository.rules import EVENT_COLUMNS, EVENT_JOINS

# The place before all events that are not over.
BEGINNING = (datetime(1, 1, 2, tzinfo=UTC), "")

# A range of the index of a project's events by end. Events without a link have no bot, unless a rule just lost it.
_AHEAD = text(
    f"""
    SELECT {EVENT_COLUMNS}, coalesce(e.end_time, 'infinity'::timestamptz) AS ends
    FROM calendar_events e {EVENT_JOINS}
    WHERE e.project_id = :project_id AND NOT e.is_deleted
      AND (coalesce(e.end_time, 'infinity'::timestamptz), e.id) > (:ends, :id)
      AND coalesce(e.end_time, 'infinity'::timestamptz) > now()
    ORDER BY coalesce(e.end_time, 'infinity'::timestamptz), e.id
    LIMIT :limit
    """  # noqa: S608 - constants
)


async def load_ahead(
    session: AnySession, project_id: str, after: tuple[datetime, str], limit: int, *, asks_people: bool
) -> Sequence[Row[Any]]:
    """Load what judging needs of the next events, in the order of their end."""
    values = {"project_id": project_id, "ends": after[0], "id": after[1], "limit": limit}
    return (await session.execute(_AHEAD, {**values, "asks_people": asks_people})).all()
