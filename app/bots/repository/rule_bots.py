"""SQL of the bots that join rules make, and of the events where a client deleted one."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import ARRAY, Text, bindparam, text

from app.bots.repository.states import append_entry
from app.bots.rule_bot import Meetings, RuleBotRow
from app.core.db import AnySession, Session
from app.core.wakeups import wake_after_commit

_ROW = """
    b.id, b.calendar_event_id, b.state, b.next_attempt_at IS NOT NULL, b.may_be_handed_over, b.join_at, b.meeting_url,
    b.join_rule, coalesce(b.join_rule_bot, '')
"""

_OF_EVENTS = f"""
    SELECT {_ROW} FROM unnest(:event_ids) AS i(event_id) JOIN bots b ON b.calendar_event_id = i.event_id
    WHERE b.join_rule IS NOT NULL
    ORDER BY b.id
"""  # noqa: S608 - constants

_IDS = bindparam("event_ids", type_=ARRAY(Text()))
_FIND = text(_OF_EVENTS).bindparams(_IDS)
_LOCK = text(f"{_OF_EVENTS} FOR UPDATE OF b").bindparams(_IDS)


async def find_rule_bots(session: AnySession, event_ids: Sequence[str]) -> list[RuleBotRow]:
    return [RuleBotRow(*row) for row in await session.execute(_FIND, {"event_ids": list(event_ids)})]


async def lock_rule_bots(session: Session, event_ids: Sequence[str]) -> list[RuleBotRow]:
    """Lock the bots that rules made for these events.

    The caller holds the locks that app/join_rules/judging.py names.
    """
    return [RuleBotRow(*row) for row in await session.execute(_LOCK, {"event_ids": list(event_ids)})]


_HANDED_OVER = text(
    f"""
    SELECT {_ROW} FROM bots b
    WHERE b.project_id = :project_id AND md5(b.meeting_url) = ANY(:hashes) AND b.state <> 'scheduled'
      AND b.join_rule IS NOT NULL AND b.join_at >= :since AND b.join_at < :until
    ORDER BY b.id
    """  # noqa: S608 - constants
).bindparams(bindparam("hashes", type_=ARRAY(Text())))


async def find_handed_over(session: AnySession, project_id: str, meetings: Meetings) -> list[RuleBotRow]:
    """Find the bots of these meetings that were handed over."""
    rows = await session.execute(_HANDED_OVER, {"project_id": project_id, **meetings.values()})
    return [RuleBotRow(*row) for row in rows]


# The columns of a new bot besides the constants of `insert_rule_bots`.
_COPIED = (
    "id", "project_id", "calendar_event_id", "meeting_url", "join_at", "bot_name", "metadata", "bot_settings",
    "events", "join_rule", "join_rule_bot",
)  # fmt: skip


async def insert_rule_bots(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert scheduled bots by COPY. JSON values are text."""
    connection = await (await session.connection()).get_raw_connection()
    assert connection.driver_connection is not None
    await connection.driver_connection.copy_records_to_table(
        "bots", columns=_COPIED, records=[tuple(row[name] for name in _COPIED) for row in rows]
    )
    wake_after_commit(session, "bots")


_CHANGED = {
    "id": "text",
    "calendar_event_id": "text",
    "join_rule": "text",
    "join_rule_bot": "text",
    "bot_name": "text",
    "metadata": "text",
    "bot_settings": "text",
    "entry": "text",
}
_ARRAYS = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in _CHANGED.items())

# A bot whose rule stays keeps what a client changed: its name is null here.
_CHANGE = text(
    f"""
    UPDATE bots AS b
    SET calendar_event_id = i.calendar_event_id, join_rule = i.join_rule, join_rule_bot = i.join_rule_bot,
        bot_name = coalesce(i.bot_name, b.bot_name),
        metadata = CASE WHEN i.bot_name IS NULL THEN b.metadata ELSE CAST(i.metadata AS jsonb) END,
        bot_settings = CASE WHEN i.bot_name IS NULL THEN b.bot_settings ELSE CAST(i.bot_settings AS json) END,
        events = {append_entry("CAST(i.entry AS jsonb)")}, updated_at = clock_timestamp()
    FROM unnest({_ARRAYS}) AS i({", ".join(_CHANGED)})
    WHERE b.id = i.id
    """  # noqa: S608 - made of the constant names above
)


async def change_rule_bots(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what rules changed, with a log entry each. JSON values are text.

    The caller holds the bots' locks.
    """
    await session.execute(_CHANGE, {name: [row[name] for row in rows] for name in _CHANGED})
    wake_after_commit(session, "bots")


# The mark stays with the event; the link and the time name the meeting for the events that share its bot.
_MARK = text(
    """
    INSERT INTO deleted_rule_bots (calendar_event_id, project_id, calendar_id, meeting_url, join_at)
    SELECT e.id, e.project_id, e.calendar_id, :meeting_url, :join_at
    FROM calendar_events e JOIN calendars c ON c.id = e.calendar_id
    WHERE e.id = :event_id
    ON CONFLICT (calendar_event_id) DO UPDATE SET meeting_url = excluded.meeting_url, join_at = excluded.join_at
    """
)


async def mark_deleted(session: Session, event_id: str, meeting_url: str | None, join_at: datetime) -> None:
    await session.execute(_MARK, {"event_id": event_id, "meeting_url": meeting_url, "join_at": join_at})


_MARKS_OF_EVENTS = """
    SELECT d.calendar_event_id, d.meeting_url, d.join_at
    FROM unnest(:event_ids) AS i(event_id) JOIN deleted_rule_bots d ON d.calendar_event_id = i.event_id
"""
_FIND_MARKS_OF_EVENTS = text(_MARKS_OF_EVENTS).bindparams(_IDS)
_FIND_MARKS = text(
    f"""
    {_MARKS_OF_EVENTS}
    UNION
    SELECT calendar_event_id, meeting_url, join_at FROM deleted_rule_bots
    WHERE project_id = :project_id AND md5(meeting_url) = ANY(:hashes) AND join_at >= :since AND join_at < :until
    """  # noqa: S608 - constants
).bindparams(_IDS, bindparam("hashes", type_=ARRAY(Text())))


async def find_marks(
    session: AnySession, project_id: str, event_ids: Sequence[str], meetings: Meetings | None
) -> list[tuple[str, str | None, datetime]]:
    """Find the bots that clients deleted, of these events and of these meetings: event, link and time."""
    if meetings is None:
        rows = await session.execute(_FIND_MARKS_OF_EVENTS, {"event_ids": list(event_ids)})
    else:
        values = {"project_id": project_id, "event_ids": list(event_ids), **meetings.values()}
        rows = await session.execute(_FIND_MARKS, values)
    return [(row[0], row[1], row[2]) for row in rows]


_LIFT = text("DELETE FROM deleted_rule_bots WHERE calendar_event_id = ANY(:event_ids)").bindparams(
    bindparam("event_ids", type_=ARRAY(Text()))
)


async def lift_marks(session: Session, event_ids: Collection[str]) -> None:
    await session.execute(_LIFT, {"event_ids": sorted(event_ids)})


# A meeting shares a bot for a day at most.
_FORGET = text(
    """
    DELETE FROM deleted_rule_bots d
    WHERE d.calendar_id = :calendar_id AND d.join_at < now() - interval '2 days'
      AND NOT EXISTS (SELECT FROM calendar_events e WHERE e.id = d.calendar_event_id)
    """
)


async def forget_marks(session: Session, calendar_id: str) -> None:
    await session.execute(_FORGET, {"calendar_id": calendar_id})


def json_text(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()
