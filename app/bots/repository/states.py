"""Locking bots with their events, and writing their transitions and clients' changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import ARRAY, Row, Text, bindparam, select, text

from app.bots.lifecycle import RETRY_FOR, BotState, FollowedEvent, LogEntry, Transition
from app.core.clock import isoformat
from app.core.db import Session
from app.core.wakeups import wake_after_commit
from app.models import Bot
from app.webhooks.payloads import CalendarFacts

# A bot's log keeps its first entry and the last ones.
_ENTRIES_KEPT = 100

_STATE = """
    b.id, b.project_id, b.calendar_event_id, b.metadata, b.state, b.join_at, b.meeting_url, b.holds_key,
    b.join_rule IS NOT NULL AS is_of_rule, b.runner_bot_id, b.attempt_count, b.next_attempt_at IS NOT NULL AS is_attempted, b.may_be_handed_over,
    CASE WHEN c.id IS NULL THEN 'calendar_deleted'
         WHEN e.is_deleted THEN 'event_cancelled'
         WHEN c.state <> 'connected' THEN 'calendar_disconnected' END AS removal_reason,
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
        is_of_rule=row.is_of_rule,
        event=FollowedEvent(
            row.removal_reason, row.event_start_time, row.event_end_time, row.event_meeting_url
        )
        if has_event
        else None,
        calendar=calendar if row.calendar_id is not None else None,
    )


# Bots that can still follow their event, and finished ones that hold a key. The lock also covers bots that the runner
# may have: a hand-over that is about to be settled waits for it and then sees the change.
_MAY_FOLLOW = "(b.state IN ('scheduled', 'launching') OR (b.holds_key AND b.deduplication_key IS NOT NULL))"

_LOCK_OF_EVENTS = text(
    f"""
    SELECT {_STATE} FROM unnest(:event_ids) AS i(event_id) JOIN bots b ON b.calendar_event_id = i.event_id {_WITH_EVENT}
    WHERE {_MAY_FOLLOW}
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
    """Lock the bots that may have to follow these events.

    The caller holds the lock of the events' calendar.
    """
    rows = await session.execute(_LOCK_OF_EVENTS, {"event_ids": list(dict.fromkeys(event_ids))})
    return [_state(row) for row in rows]


async def lock_bots_of_calendar(session: Session, calendar_id: str) -> list[BotState]:
    """Lock the bots that may have to follow any event of a calendar. The caller holds the calendar's lock."""
    rows = await session.execute(_LOCK_OF_CALENDAR, {"calendar_id": calendar_id})
    return [_state(row) for row in rows]


_LOCK_BOTS = text(
    f"""
    SELECT {_STATE} FROM unnest(:ids) AS i(bot_id) JOIN bots b ON b.id = i.bot_id {_WITH_EVENT}
    ORDER BY b.id
    FOR UPDATE OF b
    """  # noqa: S608 - constants
).bindparams(bindparam("ids", type_=ARRAY(Text())))


async def lock_bots(session: Session, bot_ids: Sequence[str]) -> list[BotState]:
    """Lock these bots."""
    return [_state(row) for row in await session.execute(_LOCK_BOTS, {"ids": list(bot_ids)})]


_SETTINGS = "b.bot_name, b.bot_settings, b.deduplication_key"

_LOAD = text(
    f"SELECT {_STATE}, {_SETTINGS} FROM bots b {_WITH_EVENT} WHERE b.id = :id"  # noqa: S608 - constants
)


async def _load(session: Session, bot_id: str) -> "BotWithSettings":
    return _with_settings((await session.execute(_LOAD, {"id": bot_id})).one())


def _with_settings(row: Row[Any]) -> "BotWithSettings":
    return BotWithSettings(_state(row), row.bot_name, row.bot_settings, row.deduplication_key)


@dataclass(frozen=True, slots=True)
class BotWithSettings:
    """A bot's state, and the columns that only clients and join rules change."""

    state: BotState
    bot_name: str
    bot_settings: dict[str, Any]
    deduplication_key: str | None


async def lock_bot(session: Session, project_id: str, bot_id: str) -> BotWithSettings | None:
    found = await session.scalar(
        select(Bot.id).where(Bot.project_id == project_id, Bot.id == bot_id).with_for_update()
    )
    return None if found is None else await _load(session, bot_id)


async def lock_leased(session: Session, bot_id: str, lease_token: str) -> BotState | None:
    """Lock a claimed bot and return it with its event's current values; None if the lease is lost."""
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
    SELECT {_STATE}, {_SETTINGS}
    FROM (SELECT * FROM again UNION ALL SELECT * FROM fresh) AS b {_WITH_EVENT}
    """  # noqa: S608 - constants
)


async def lock_due(session: Session, *, lead: timedelta, limit: int) -> list[BotWithSettings]:
    """Lock up to `limit` bots whose hand-over is due, except those that another transaction has locked.

    A scheduled bot without a meeting URL is due when the time to wait for one has passed.
    """
    rows = await session.execute(_LOCK_DUE, {"limit": limit, "lead": lead, "wait_for_link": RETRY_FOR})
    return [_with_settings(row) for row in rows]


def append_entry(entry: str) -> str:
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
        events = CASE WHEN i.entry IS NULL THEN b.events ELSE {append_entry("CAST(i.entry AS jsonb)")} END,
        updated_at = CASE WHEN i.entry IS NULL THEN b.updated_at ELSE clock.now END
    FROM unnest({_ARRAYS}) AS i({", ".join(_COLUMNS)}), (SELECT clock_timestamp() AS now) AS clock
    WHERE b.id = i.id
    """  # noqa: S608 - made of the constant names above
)

_DELETE = text("DELETE FROM bots b USING unnest(:ids) AS i(bot_id) WHERE b.id = i.bot_id").bindparams(
    bindparam("ids", type_=ARRAY(Text()))
)


def log_entry(entry: LogEntry, at: datetime) -> dict[str, Any]:
    """Return an entry as it is stored in a bot's log, JSON-able."""
    return {
        "type": entry.type,
        "sub_type": entry.sub_type,
        "metadata": entry.metadata,
        "created_at": isoformat(at),
    }


async def save(session: Session, transitions: Sequence[Transition], at: datetime) -> None:
    """Write the results of transitions, one for each bot. The caller holds the bots' locks."""
    rows = []
    for transition in transitions:
        after = transition.after
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
                    orjson.dumps(log_entry(transition.entry, at)).decode()
                    if transition.entry is not None
                    else None,
                )
            )
    if rows:
        await session.execute(_SAVE, dict(zip(_COLUMNS, map(list, zip(*rows, strict=True)), strict=True)))
    deleted = [transition.before.id for transition in transitions if transition.after is None]
    if deleted:
        await delete(session, deleted)


async def delete(session: Session, bot_ids: Sequence[str]) -> None:
    """Delete bots. The caller holds their locks."""
    await session.execute(_DELETE, {"ids": list(bot_ids)})


_CHANGE = text(
    f"""
    UPDATE bots AS b
    SET bot_name = :bot_name, bot_settings = CAST(:bot_settings AS json), metadata = CAST(:metadata AS jsonb),
        join_at = :join_at, meeting_url = :meeting_url, calendar_event_id = :calendar_event_id,
        deduplication_key = :deduplication_key,
        events = {append_entry("CAST(:entry AS jsonb)")}, updated_at = clock_timestamp()
    WHERE b.id = :id
    """  # noqa: S608 - constants
)


async def change_bot(session: Session, changed: BotWithSettings, entry: Mapping[str, Any]) -> None:
    """Write a client's change with its log entry. The caller holds the bot's lock.

    A hand-over that is under way is not affected. Raises IntegrityError if another bot holds the deduplication key.
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
