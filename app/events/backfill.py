"""Derived fields for rows that were written before their columns existed (app/events/derived.py).

Such rows have no `event_type`, and an index has only them. A process of an earlier release may still insert some.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import text

from app.core.db import Session, Sessions, transaction
from app.events.repository import write_derived
from app.join_rules.service import return_calendar

_ROWS_AT_ONCE = 500

# The next calendar with such rows. Those of a deleted calendar are about to be deleted.
_NEXT = text(
    """
    SELECT calendar_id FROM calendar_events
    WHERE event_type IS NULL AND calendar_id > :after
    ORDER BY calendar_id LIMIT 1
    """
)

_LOCK = text(
    "SELECT platform, project_id FROM calendars WHERE id = :calendar_id FOR NO KEY UPDATE SKIP LOCKED"
)


@dataclass(frozen=True, slots=True)
class Source:
    """How the derived fields of a platform's events are read.

    `members`: the members of `raw` that are needed. `read` returns the values of the columns of `Derived`, of which
    `event_type` is not null; the others may be null, until a sync knows them.
    """

    members: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], tuple[str | None, ...]]


async def fill_derived(sessions: Sessions, sources: Mapping[str, Source]) -> int:
    """Fill the rows from their `raw`, in short transactions; returns how many.

    It takes the calendars in turn, a batch of each, and pauses for as long as a batch took. A calendar whose row is
    locked is left for the next time. Neither `updated_at` nor the content hash changes: nothing is announced.
    """
    total = 0
    while filled := await _fill_each(sessions, sources):
        total += filled
    return total


async def _fill_each(sessions: Sessions, sources: Mapping[str, Source]) -> int:
    total, after = 0, ""
    while True:
        started = time.monotonic()
        async with transaction(sessions) as session:
            calendar_id = await session.scalar(_NEXT, {"after": after})
            if calendar_id is None:
                return total
            filled = await _fill_batch(session, calendar_id, sources)
        total += filled
        after = calendar_id
        if filled:
            await asyncio.sleep(time.monotonic() - started)


async def _fill_batch(session: Session, calendar_id: str, sources: Mapping[str, Source]) -> int:
    calendar = (await session.execute(_LOCK, {"calendar_id": calendar_id})).one_or_none()
    source = sources.get(calendar.platform) if calendar is not None else None
    if calendar is None or source is None:
        return 0
    # A statement of its own: its snapshot includes the commit of the last writer.
    rows = await session.execute(
        text(_load(source.members)), {"calendar_id": calendar_id, "limit": _ROWS_AT_ONCE}
    )
    values = {}
    for event_id, *members in rows:
        loaded = (None if member is None else orjson.loads(member) for member in members)
        values[event_id] = source.read(dict(zip(source.members, loaded, strict=True)))
    if values:
        await write_derived(session, values)
    if any(visibility not in {None, "default"} for _, visibility, *_ in values.values()):
        await return_calendar(session, calendar.project_id, calendar_id)  # rules look at it
    return len(values)


def _load(members: tuple[str, ...]) -> str:
    """Build SQL that reads the members of `raw` as JSON texts. `raw` is parsed once, and not sent."""
    names = [f'"{name}"' for name in members]
    columns = "".join(f", CAST(m.{name} AS text)" for name in names)
    record = ", ".join(f"{name} json" for name in names)
    join = (
        "CROSS JOIN LATERAL json_to_record("
        f"CASE WHEN json_typeof(e.raw) = 'object' THEN e.raw ELSE '{{}}'::json END) AS m({record})"
        if members
        else ""
    )
    return f"""
        SELECT e.id{columns}
        FROM (SELECT id, raw FROM calendar_events
              WHERE calendar_id = :calendar_id AND event_type IS NULL ORDER BY id LIMIT :limit) AS e
        {join}
    """  # noqa: S608 - constants
