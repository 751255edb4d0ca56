"""Derived fields for rows that were written before their columns existed (app/events/derived.py).

Such rows have no `event_type`, and an index has only them. A process of an earlier release may still insert some.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.core.db import Session, Sessions, reading, transaction
from app.events.repository import write_derived
from app.join_rules.service import return_calendar

log = structlog.get_logger(__name__)

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
    locked, or whose rows cannot be read, is left for the next time. Neither `updated_at` nor the content hash changes:
    nothing is announced.
    """
    total = 0
    while filled := await _fill_each(sessions, sources):
        total += filled
    return total


async def _fill_each(sessions: Sessions, sources: Mapping[str, Source]) -> int:
    total, after = 0, ""
    while True:
        started = time.monotonic()
        async with reading(sessions) as session:
            calendar_id = await session.scalar(_NEXT, {"after": after})
        if calendar_id is None:
            return total
        after = calendar_id
        filled = await _fill_calendar(sessions, calendar_id, sources)
        total += filled
        if filled:
            await asyncio.sleep(time.monotonic() - started)


async def _fill_calendar(sessions: Sessions, calendar_id: str, sources: Mapping[str, Source]) -> int:
    """Fill a batch of a calendar's rows.

    If PostgreSQL cannot take the `raw` of one apart, that of each is taken apart here.
    """
    for is_whole in (False, True):
        try:
            async with transaction(sessions) as session:
                return await _fill_batch(session, calendar_id, sources, is_whole=is_whole)
        except DBAPIError as err:
            log.warning("events_not_filled", calendar_id=calendar_id, error=type(err.orig).__name__)
    return 0


async def _fill_batch(
    session: Session, calendar_id: str, sources: Mapping[str, Source], *, is_whole: bool
) -> int:
    calendar = (await session.execute(_LOCK, {"calendar_id": calendar_id})).one_or_none()
    source = sources.get(calendar.platform) if calendar is not None else None
    if calendar is None or source is None:
        return 0
    # A statement of its own: its snapshot includes the commit of the last writer.
    statement = _LOAD_WHOLE if is_whole else text(_load(source.members))
    rows = await session.execute(statement, {"calendar_id": calendar_id, "limit": _ROWS_AT_ONCE})
    if is_whole:
        values = {event_id: source.read(_object(raw)) for event_id, raw in rows}
    else:
        values = {
            event_id: source.read(dict(zip(source.members, map(_value, members), strict=True)))
            for event_id, *members in rows
        }
    if values:
        await write_derived(session, values)
    if any(visibility not in {None, "default"} for _, visibility, *_ in values.values()):
        await return_calendar(session, calendar.project_id, calendar_id)  # rules look at it
    return len(values)


def _value(written: str | None) -> Any:
    """Return the value of a JSON text; None for what cannot be read."""
    try:
        return None if written is None else orjson.loads(written)
    except orjson.JSONDecodeError:
        return None


def _object(written: str) -> Mapping[str, Any]:
    value = _value(written)
    return value if isinstance(value, dict) else {}


_OLD_ROWS = """
    SELECT id, raw FROM calendar_events
    WHERE calendar_id = :calendar_id AND event_type IS NULL ORDER BY id LIMIT :limit
"""
_LOAD_WHOLE = text(f"SELECT e.id, CAST(e.raw AS text) FROM ({_OLD_ROWS}) AS e")  # noqa: S608 - constants


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
    return f"SELECT e.id{columns} FROM ({_OLD_ROWS}) AS e {join}"  # noqa: S608 - constants
