"""Reading bots for the API."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import ColumnElement, RowMapping, Text, func, literal_column, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import aggregate_order_by

from app.core.db import AnySession, ReadSession
from app.core.pagination import Cursor, Ordering, Page, page_of, seek, seek_each
from app.models import Bot
from app.models.bot import State

_OLDEST_FIRST = Ordering("created_at", Bot.created_at.expression, Bot.id.expression, descending=False)

_READ = select(
    Bot.id,
    Bot.metadata_.label("metadata"),
    Bot.meeting_url,
    Bot.bot_name,
    Bot.state,
    Bot.join_at,
    Bot.deduplication_key,
    Bot.calendar_event_id,
    Bot.events,
    Bot.created_at,
    Bot.updated_at,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BotFilters:
    """What the listed bots must have; None means anything."""

    states: Sequence[str] | None = None
    calendar_event_id: str | None = None
    deduplication_key: str | None = None
    meeting_url: str | None = None
    join_from: datetime | None = None
    join_until: datetime | None = None
    join_after: datetime | None = None
    join_before: datetime | None = None


async def find_bot(session: AnySession, project_id: str, bot_id: str) -> RowMapping | None:
    """Return a row for `words.shown_bot`."""
    statement = _READ.where(Bot.project_id == project_id, Bot.id == bot_id)
    return (await session.execute(statement)).mappings().one_or_none()


async def list_bots(
    session: ReadSession, project_id: str, filters: BotFilters, cursor_text: str | None, limit: int
) -> Page[RowMapping]:
    """List the project's bots, oldest first. Raises BadQuery for a bad cursor."""
    conditions = [Bot.project_id == project_id]
    if filters.calendar_event_id is not None:
        conditions.append(Bot.calendar_event_id == filters.calendar_event_id)
    if filters.deduplication_key is not None:
        conditions.append(Bot.deduplication_key == filters.deduplication_key)
    if filters.meeting_url is not None:
        conditions.append(func.md5(Bot.meeting_url) == func.md5(filters.meeting_url))
        conditions.append(Bot.meeting_url == filters.meeting_url)
    times = [
        condition
        for condition in (
            Bot.join_at >= filters.join_from if filters.join_from is not None else None,
            Bot.join_at <= filters.join_until if filters.join_until is not None else None,
            Bot.join_at > filters.join_after if filters.join_after is not None else None,
            Bot.join_at < filters.join_before if filters.join_before is not None else None,
        )
        if condition is not None
    ]
    cursor = Cursor.decode(cursor_text, ordering=_OLDEST_FIRST.name) if cursor_text is not None else None
    states = filters.states if filters.states is not None else get_args(State)
    if times:
        # OFFSET 0: the bots of that time are found by its index, and sorted then.
        then = select(Bot.id).where(*conditions, *times, Bot.state.in_(states)).offset(literal_column("0"))
        found = then.subquery()
        statement = seek(_READ.join(found, found.c.id == Bot.id), _OLDEST_FIRST, cursor, limit)
    else:
        kinds = [Bot.state == state for state in dict.fromkeys(states)]
        statement = seek_each(_READ, _OLDEST_FIRST, cursor, limit, conditions=conditions, kinds=kinds)
    rows = (await session.execute(statement)).mappings().all()
    return page_of(rows, _OLDEST_FIRST, cursor, limit, place=lambda row: (row["created_at"], row["id"]))


def _time_text(column: ColumnElement[datetime]) -> ColumnElement[str]:
    return func.to_char(func.timezone("UTC", column), literal_column('\'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\''))


def bots_json(event_id: ColumnElement[str]) -> ColumnElement[str]:
    """Return SQL for an event's bots as JSON text: a list of rows for `words.shown_bot`, oldest first."""
    fields: dict[str, ColumnElement[Any]] = {
        "id": Bot.id.expression,
        "metadata": Bot.metadata_.expression,
        "meeting_url": Bot.meeting_url.expression,
        "bot_name": Bot.bot_name.expression,
        "state": Bot.state.expression,
        "join_at": _time_text(Bot.join_at.expression),
        "deduplication_key": Bot.deduplication_key.expression,
        "calendar_event_id": Bot.calendar_event_id.expression,
        "events": Bot.events.expression,
        "created_at": _time_text(Bot.created_at.expression),
        "updated_at": _time_text(Bot.updated_at.expression),
    }
    pairs = [part for name, value in fields.items() for part in (literal_column(f"'{name}'"), value)]
    listed = func.json_agg(aggregate_order_by(func.json_build_object(*pairs), Bot.created_at, Bot.id))
    return (
        select(func.coalesce(sql_cast(listed, Text), literal_column("'[]'")))
        .where(Bot.calendar_event_id == event_id)
        .scalar_subquery()
    )
