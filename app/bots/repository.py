"""SQL of bots.

Locks, in this order everywhere: the calendar's row, rows of its events, rows of bots by id. Whoever changes a bot
holds its row lock from reading it until the commit; claiming skips rows that others hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, get_args

import orjson
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Row,
    RowMapping,
    Text,
    bindparam,
    func,
    literal_column,
    select,
    text,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import aggregate_order_by, insert

from app.bots.lifecycle import RETRY_FOR, USUAL_LENGTH, BotState, Entry, FollowedEvent, Step
from app.core.backlog import Backlog
from app.core.clock import isoformat
from app.core.db import AnySession, ReadSession, Session
from app.core.pagination import Cursor, Ordering, Page, page_of, seek, seek_each
from app.core.wakeups import wake_after_commit
from app.models import Bot, Calendar, CalendarEvent
from app.models.bot import State
from app.webhooks.payloads import CalendarFacts

# A bot's log keeps its first entry and the last ones.
_ENTRIES_KEPT = 100

_OLDEST_FIRST = Ordering("created_at", Bot.created_at.expression, Bot.id.expression, descending=False)

# Reading for the API

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
    """A row for `words.shown_bot`."""
    statement = _READ.where(Bot.project_id == project_id, Bot.id == bot_id)
    return (await session.execute(statement)).mappings().one_or_none()


async def list_bots(
    session: ReadSession, project_id: str, filters: BotFilters, cursor_text: str | None, limit: int
) -> Page[RowMapping]:
    """Oldest first. Raises BadQuery for a bad cursor."""
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


def bots_of(event_id: ColumnElement[str]) -> ColumnElement[str]:
    """The bots of an event as JSON text: a list of rows for `words.shown_bot`, oldest first."""
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


# Creating


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
    """The event, which nobody changes until the transaction's end: all who write events hold the calendar's lock.

    Three statements, so that the last one sees what the lock was waited for.
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
    """Takes a deduplication key from a bot whose meeting is over by now."""
    await session.execute(
        _RELEASE_KEY,
        {
            "project_id": project_id,
            "deduplication_key": deduplication_key,
            "usual_length": USUAL_LENGTH,
        },
    )


async def insert_bot(session: Session, values: Mapping[str, Any]) -> bool:
    """Whether it was inserted: False where an unfinished bot of the project has this deduplication key.

    A request at the same time with the same key waits here until the other has committed or rolled back.
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


# A bot's life

_STATE = """
    b.id, b.project_id, b.calendar_event_id, b.metadata, b.state, b.join_at, b.meeting_url, b.holds_key,
    b.runner_bot_id, b.attempt_count, b.next_attempt_at IS NOT NULL AS is_attempted, b.may_be_handed_over,
    CASE WHEN c.id IS NULL THEN 'calendar_deleted'
         WHEN e.is_deleted THEN 'event_cancelled'
         WHEN c.state <> 'connected' THEN 'calendar_disconnected' END AS gone,
    e.start_time AS event_start_time, e.end_time AS event_end_time, e.meeting_url AS event_meeting_url,
    c.id AS calendar_id, c.deduplication_key AS calendar_deduplication_key, c.metadata AS calendar_metadata
"""

_WITH_EVENT = """
    LEFT JOIN calendar_events e ON e.id = b.calendar_event_id
    LEFT JOIN calendars c ON c.id = e.calendar_id
"""


def _state(row: Row[Any]) -> BotState:
    has_event = row.calendar_event_id is not None
    calendar = CalendarFacts(row.calendar_id, row.calendar_deduplication_key, row.calendar_metadata)
    return BotState(
        id=row.id,
        project_id=row.project_id,
        calendar_event_id=row.calendar_event_id,
        metadata=row.metadata,
        state=row.state,
        join_at=row.join_at,
        meeting_url=row.meeting_url,
        holds_key=row.holds_key,
        runner_bot_id=row.runner_bot_id,
        attempt_count=row.attempt_count,
        is_attempted=row.is_attempted,
        may_be_handed_over=row.may_be_handed_over,
        event=FollowedEvent(row.gone, row.event_start_time, row.event_end_time, row.event_meeting_url)
        if has_event
        else None,
        calendar=calendar if row.calendar_id is not None else None,
    )


# Bots that can still follow, those that the runner may have included: their lock makes a hand-over that is about
# to be settled wait, and see the change. And bots that are past that, but hold a key.
_MAY_FOLLOW = "(b.state IN ('scheduled', 'launching') OR (b.holds_key AND b.deduplication_key IS NOT NULL))"

_LOCK_OF_EVENTS = text(
    f"""
    SELECT {_STATE} FROM bots b {_WITH_EVENT}
    WHERE b.calendar_event_id = ANY(:event_ids) AND {_MAY_FOLLOW}
    ORDER BY b.id
    FOR UPDATE OF b
    """  # noqa: S608 - constants
).bindparams(bindparam("event_ids", type_=ARRAY(Text())))

_LOCK_OF_CALENDAR = text(
    f"""
    SELECT {_STATE} FROM bots b {_WITH_EVENT}
    WHERE e.calendar_id = :calendar_id AND {_MAY_FOLLOW}
    ORDER BY b.id
    FOR UPDATE OF b
    """  # noqa: S608 - constants
)


async def lock_bots_of_events(session: Session, event_ids: Sequence[str]) -> list[BotState]:
    """Bots that may have to follow these events. The caller holds the lock of the events' calendar."""
    rows = await session.execute(_LOCK_OF_EVENTS, {"event_ids": list(event_ids)})
    return [_state(row) for row in rows]


async def lock_bots_of_calendar(session: Session, calendar_id: str) -> list[BotState]:
    """The same for all events of a calendar, whose lock the caller holds."""
    rows = await session.execute(_LOCK_OF_CALENDAR, {"calendar_id": calendar_id})
    return [_state(row) for row in rows]


_BY_HAND = "b.bot_name, b.bot_settings, b.deduplication_key"

_LOAD = text(
    f"SELECT {_STATE}, {_BY_HAND} FROM bots b {_WITH_EVENT} WHERE b.id = :id"  # noqa: S608 - constants
)


async def _load(session: Session, bot_id: str) -> "WholeBot":
    return _whole((await session.execute(_LOAD, {"id": bot_id})).one())


def _whole(row: Row[Any]) -> "WholeBot":
    return WholeBot(_state(row), row.bot_name, row.bot_settings, row.deduplication_key)


@dataclass(frozen=True, slots=True)
class WholeBot:
    """A bot's state, and what of it changes by hand only."""

    state: BotState
    bot_name: str
    bot_settings: dict[str, Any]
    deduplication_key: str | None


async def lock_bot(session: Session, project_id: str, bot_id: str) -> WholeBot | None:
    found = await session.scalar(
        select(Bot.id).where(Bot.project_id == project_id, Bot.id == bot_id).with_for_update()
    )
    return None if found is None else await _load(session, bot_id)


async def lock_leased(session: Session, bot_id: str, lease_token: str) -> BotState | None:
    """The bot, and its event as it is once the lock is held; None where the lease is no longer ours."""
    found = await session.scalar(
        select(Bot.id).where(Bot.id == bot_id, Bot.lease_token == lease_token).with_for_update()
    )
    return None if found is None else (await _load(session, bot_id)).state


_LOCK_DUE = text(
    f"""
    WITH again AS (
        SELECT * FROM bots
        WHERE next_attempt_at <= now()
        ORDER BY next_attempt_at
        LIMIT :limit
        FOR UPDATE SKIP LOCKED
    ), fresh AS (
        SELECT * FROM bots
        WHERE state = 'scheduled' AND join_at <= now() + CAST(:lead AS interval)
          AND (meeting_url IS NOT NULL OR join_at <= now() - CAST(:wait_for_link AS interval))
        ORDER BY join_at
        LIMIT greatest(0, :limit - (SELECT count(*) FROM again))
        FOR UPDATE SKIP LOCKED
    )
    SELECT {_STATE}, {_BY_HAND}
    FROM (SELECT * FROM again UNION ALL SELECT * FROM fresh) AS b {_WITH_EVENT}
    """  # noqa: S608 - constants
)


async def lock_due(session: Session, *, lead: timedelta, limit: int) -> list[WholeBot]:
    """Up to `limit` bots whose hand-over is due and which nobody else has locked.

    A scheduled bot without a link is due when there is no more hope of one.
    """
    rows = await session.execute(_LOCK_DUE, {"limit": limit, "lead": lead, "wait_for_link": RETRY_FOR})
    return [_whole(row) for row in rows]


def _append(entry: str) -> str:
    return f"CASE WHEN jsonb_array_length(b.events) < {_ENTRIES_KEPT} THEN b.events ELSE b.events - 1 END || {entry}"


# Column -> PostgreSQL type of its array.
_COLUMNS = {
    "id": "text",
    "state": "text",
    "join_at": "timestamptz",
    "meeting_url": "text",
    "holds_key": "boolean",
    "runner_bot_id": "text",
    "attempt_count": "integer",
    "may_be_handed_over": "boolean",
    "lease_token": "text",
    "next_in": "interval",
    "entry": "text",
}
_ARRAYS = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in _COLUMNS.items())

_SAVE = text(
    f"""
    UPDATE bots AS b
    SET state = i.state, join_at = i.join_at, meeting_url = i.meeting_url, holds_key = i.holds_key,
        runner_bot_id = i.runner_bot_id, attempt_count = i.attempt_count,
        may_be_handed_over = i.may_be_handed_over, lease_token = i.lease_token,
        next_attempt_at = clock.now + i.next_in,
        events = CASE WHEN i.entry IS NULL THEN b.events ELSE {_append("CAST(i.entry AS jsonb)")} END,
        updated_at = CASE WHEN i.entry IS NULL THEN b.updated_at ELSE clock.now END
    FROM unnest({_ARRAYS}) AS i({", ".join(_COLUMNS)}), (SELECT clock_timestamp() AS now) AS clock
    WHERE b.id = i.id
    """  # noqa: S608 - made of the constant names above
)

_DELETE = text("DELETE FROM bots WHERE id = ANY(:ids)").bindparams(bindparam("ids", type_=ARRAY(Text())))


def log_entry(entry: Entry, at: datetime) -> dict[str, Any]:
    """As it is kept in a bot's log, JSON-able."""
    return {
        "type": entry.type,
        "sub_type": entry.sub_type,
        "metadata": entry.metadata,
        "created_at": isoformat(at),
    }


async def save(session: Session, steps: Sequence[Step], at: datetime) -> None:
    """Writes what the steps lead to, one for each bot; the caller holds the bots' locks."""
    rows = []
    for step in steps:
        after = step.after
        if after is not None:
            rows.append(
                (
                    after.id,
                    after.state,
                    after.join_at,
                    after.meeting_url,
                    after.holds_key,
                    after.runner_bot_id,
                    after.attempt_count,
                    after.may_be_handed_over,
                    after.lease_token,
                    after.next_in,
                    orjson.dumps(log_entry(step.entry, at)).decode() if step.entry is not None else None,
                )
            )
    if rows:
        await session.execute(_SAVE, dict(zip(_COLUMNS, map(list, zip(*rows, strict=True)), strict=True)))
    deleted = [step.before.id for step in steps if step.after is None]
    if deleted:
        await session.execute(_DELETE, {"ids": deleted})


_CHANGE = text(
    f"""
    UPDATE bots AS b
    SET bot_name = :bot_name, bot_settings = CAST(:bot_settings AS json), metadata = CAST(:metadata AS jsonb),
        join_at = :join_at, meeting_url = :meeting_url, calendar_event_id = :calendar_event_id,
        deduplication_key = :deduplication_key,
        events = {_append("CAST(:entry AS jsonb)")}, updated_at = clock_timestamp()
    WHERE b.id = :id
    """  # noqa: S608 - constants
)


async def change_bot(session: Session, changed: WholeBot, entry: Mapping[str, Any]) -> None:
    """Writes what can be changed by hand, with its entry of the log. The caller holds the bot's lock.

    A hand-over that is under way is left alone. Raises IntegrityError where another bot holds the deduplication key.
    """
    state = changed.state
    await session.execute(
        _CHANGE,
        {
            "id": state.id,
            "bot_name": changed.bot_name,
            "bot_settings": orjson.dumps(changed.bot_settings).decode(),
            "metadata": orjson.dumps(state.metadata).decode() if state.metadata is not None else None,
            "join_at": state.join_at,
            "meeting_url": state.meeting_url,
            "calendar_event_id": state.calendar_event_id,
            "deduplication_key": changed.deduplication_key,
            "entry": orjson.dumps(entry).decode(),
        },
    )
    wake_after_commit(session, "bots")


_BACKLOG = text(
    """
    WITH shown AS (
        SELECT *, state = 'scheduled' AND meeting_url IS NOT NULL
                      AND join_at <= now() + CAST(:lead AS interval) AS is_due
        FROM bots
        WHERE state <> 'launched' AND (CAST(:project_id AS text) IS NULL OR project_id = :project_id))
    SELECT count(*) FILTER (WHERE is_due OR next_attempt_at IS NOT NULL) AS pending,
           count(*) FILTER (WHERE lease_token IS NOT NULL AND next_attempt_at > now()) AS in_flight,
           count(*) FILTER (WHERE state = 'fatal_error') AS failed,
           count(*) FILTER (WHERE state = 'fatal_error' AND updated_at > now() - interval '1 day') AS failed_last_day,
           min(created_at) FILTER (WHERE is_due OR next_attempt_at IS NOT NULL) AS oldest_at,
           min(coalesce(next_attempt_at, join_at - CAST(:lead AS interval))) FILTER (
               WHERE (state = 'scheduled' AND meeting_url IS NOT NULL)
                  OR (next_attempt_at IS NOT NULL AND (lease_token IS NULL OR next_attempt_at <= now()))
           ) AS next_attempt_at,
           count(*) FILTER (WHERE state = 'scheduled' AND NOT is_due) AS scheduled
    FROM shown
    """
)


async def count_backlog(
    session: AnySession, project_id: str | None, *, lead: timedelta
) -> tuple[Backlog, int]:
    """Return the bots that are due or have failed, and how many are due later; of one project, or of all.

    `lead`: how long before its time to join a bot is due.
    """
    row = (await session.execute(_BACKLOG, {"project_id": project_id, "lead": lead})).mappings().one()
    values = dict(row)
    scheduled = values.pop("scheduled")
    return Backlog(**values), scheduled
