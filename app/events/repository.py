"""SQL of calendar_events: writing rows, and the reads that this needs."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, JSON, Text, bindparam, text

from app.core.db import Session
from app.core.ids import new_id
from app.events import limits
from app.events.data import CalendarRef, KnownEvent, Unannounced, Window
from app.events.diff import EventWrite, StoredEvent
from app.events.fields import EVENT_FIELDS, STATED_FIELDS, STATED_JSON_FIELDS, stored_values

_STORED = text(
    """
    SELECT e.id, e.platform_uuid, e.content_hash, e.is_deleted, e.busy_status, e.visibility, e.event_type, e.etag
    FROM unnest(:platform_uuids) AS i(platform_uuid)
    JOIN calendar_events e ON e.calendar_id = :calendar_id AND e.platform_uuid = i.platform_uuid
    """
).bindparams(bindparam("platform_uuids", type_=ARRAY(Text())))


async def load_stored(
    session: Session, calendar_id: str, platform_uuids: Sequence[str]
) -> dict[str, StoredEvent]:
    """Find the rows of these events that exist, by platform_uuid."""
    rows = await session.execute(
        _STORED, {"calendar_id": calendar_id, "platform_uuids": list(platform_uuids)}
    )
    return {row[1]: StoredEvent(row[0], row[1], row[2], row[3], row[4:]) for row in map(tuple, rows)}


_LIVE_REMOVED = text(
    """
    SELECT id, platform_uuid FROM calendar_events
    WHERE calendar_id = :calendar_id AND NOT is_deleted
      AND (platform_uuid = ANY(:removed) OR recurring_event_id = ANY(:removed))
      AND NOT (platform_uuid = ANY(:kept))
    ORDER BY id
    """
).bindparams(bindparam("removed", type_=ARRAY(Text())), bindparam("kept", type_=ARRAY(Text())))


async def find_live_of(
    session: Session, calendar_id: str, removed: Collection[str], kept: Collection[str]
) -> dict[str, str]:
    """Find live rows that `removed` names, itself or as its series, without `kept`: id to platform_uuid."""
    rows = await session.execute(
        _LIVE_REMOVED, {"calendar_id": calendar_id, "removed": list(removed), "kept": list(kept)}
    )
    return {row.id: row.platform_uuid for row in rows}


_LIVE_MISSING = text(
    """
    SELECT id, platform_uuid, recurring_event_id, original_start_time FROM calendar_events e
    WHERE calendar_id = :calendar_id AND NOT is_deleted
      -- The range of the index by end: what is over stays unread. Rows without an end stand behind all others.
      AND coalesce(end_time, 'infinity'::timestamptz) >= :window_start
      AND (start_time IS NULL
           OR (start_time < :window_end
               AND (coalesce(end_time, start_time) > :window_start
                    OR (coalesce(end_time, start_time) = start_time AND start_time >= :window_start))))
      AND NOT EXISTS (SELECT FROM unnest(:seen) AS s(platform_uuid) WHERE s.platform_uuid = e.platform_uuid)
    ORDER BY start_time, id
    """
).bindparams(bindparam("seen", type_=ARRAY(Text())))


async def find_live_missing(
    session: Session, calendar_id: str, window: Window, seen: Collection[str]
) -> dict[str, KnownEvent]:
    """Find live rows in the window that a full round did not list, by id; the first to start comes first."""
    rows = await session.execute(
        _LIVE_MISSING,
        {
            "calendar_id": calendar_id,
            "window_start": window.start,
            "window_end": window.end,
            "seen": list(seen),
        },
    )
    return {
        row.id: KnownEvent(row.platform_uuid, row.recurring_event_id, row.original_start_time) for row in rows
    }


_COUNT_AHEAD = text(
    """
    SELECT count(*) AS ahead, count(*) FILTER (WHERE id = ANY(:ids)) AS lost,
           count(*) FILTER (WHERE id = ANY(:besides)) AS others
    FROM calendar_events
    WHERE calendar_id = :calendar_id AND NOT is_deleted AND start_time > clock_timestamp()
      AND start_time < :window_end AND created_at < :known_before
    """
).bindparams(bindparam("ids", type_=ARRAY(Text())), bindparam("besides", type_=ARRAY(Text())))


async def count_ahead(
    session: Session,
    calendar_id: str,
    ids: Collection[str],
    besides: Collection[str],
    *,
    window: Window,
    known_before: datetime,
) -> tuple[int, int, int]:
    """Count live events of the window that have not started and were known before a time.

    Events that are left beyond a window that became smaller do not count: no list names them.
    Returns the count of all of them, of those in `ids`, and of those in `besides`.
    """
    values = {"calendar_id": calendar_id, "window_end": window.end, "known_before": known_before}
    row = await session.execute(_COUNT_AHEAD, {**values, "ids": list(ids), "besides": list(besides)})
    ahead, lost, others = row.one()
    return ahead, lost, others


# The columns that are written, with the type of their values, in the order of `_row`.
_COLUMNS = {
    "id": "text",
    "content_hash": "bytea",
    "is_deleted": "boolean",
    **{field.name: field.sql_type for field in EVENT_FIELDS},
    "updated_at": "timestamptz",
}

_JSON = {field.name for field in EVENT_FIELDS if field.is_json}

_FIXED = {"id", "platform_uuid"}

_ASSIGNMENTS = ", ".join(
    f"{name} = " + (f"CAST(i.{name} AS json)" if name in _JSON else f"i.{name}")
    for name in _COLUMNS
    if name not in _FIXED
)

_ARRAYS = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in _COLUMNS.items())

_UPDATE = text(
    f"""
    UPDATE calendar_events AS e SET {_ASSIGNMENTS}
    FROM unnest({_ARRAYS}) AS i({", ".join(_COLUMNS)})
    WHERE e.id = i.id
    """  # noqa: S608 - made of the constant names above
)


def _row(write: EventWrite, updated_at: datetime) -> tuple[Any, ...]:
    return (
        write.stored_id or new_id("evt"),
        write.content_hash,
        write.is_deleted,
        *stored_values(write.event),
        updated_at,
    )


async def write_events(
    session: Session, claim: CalendarRef, writes: Sequence[EventWrite], times: Sequence[datetime]
) -> list[str]:
    """Insert and update the rows; returns their ids, in order. `times` are their `updated_at`s.

    New rows go in by COPY, which costs half of an INSERT. It cannot meet a conflict, because the caller holds the
    calendar's row lock.
    """
    rows = [_row(write, at) for write, at in zip(writes, times, strict=True)]
    new = [row for row, write in zip(rows, writes, strict=True) if write.stored_id is None]
    known = [row for row, write in zip(rows, writes, strict=True) if write.stored_id is not None]
    if new:
        owner = (claim.project_id, claim.calendar_id)
        connection = await (await session.connection()).get_raw_connection()
        assert connection.driver_connection is not None
        await connection.driver_connection.copy_records_to_table(
            "calendar_events",
            columns=["project_id", "calendar_id", "created_at", *_COLUMNS],
            records=[(*owner, row[-1], *row) for row in new],
        )
    if known:
        columns = dict(zip(_COLUMNS, map(list, zip(*known, strict=True)), strict=True))
        await session.execute(_UPDATE, columns)
    return [row[0] for row in rows]


_REFRESH = text(
    """
    UPDATE calendar_events AS e
    SET busy_status = i.busy_status, visibility = i.visibility, event_type = i.event_type, etag = i.etag
    FROM unnest(:ids, :busy_statuses, :visibilities, :event_types, :etags)
        AS i(id, busy_status, visibility, event_type, etag)
    WHERE e.id = i.id
    """
).bindparams(
    *(
        bindparam(name, type_=ARRAY(Text()))
        for name in ("ids", "busy_statuses", "visibilities", "event_types", "etags")
    )
)


async def write_derived(session: Session, values: Mapping[str, Sequence[str | None]]) -> None:
    """Write the derived fields of rows, by event id. `updated_at` stays: it is no change of the events."""
    columns = list(zip(*values.values(), strict=True))
    names = ("busy_statuses", "visibilities", "event_types", "etags")
    await session.execute(
        _REFRESH, {"ids": list(values), **dict(zip(names, map(list, columns), strict=True))}
    )


_LOAD_CONTENT = (
    text(f"SELECT id, {', '.join(STATED_FIELDS)}, is_deleted FROM calendar_events WHERE id = ANY(:ids)")  # noqa: S608 - constants
    .bindparams(bindparam("ids", type_=ARRAY(Text())))
    .columns(**{name: JSON() for name in STATED_JSON_FIELDS})
)


async def load_content(session: Session, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """STATED_FIELDS and `is_deleted` of the rows, by event id."""
    rows = await session.execute(_LOAD_CONTENT, {"ids": list(ids)})
    return {row["id"]: {k: v for k, v in row.items() if k != "id"} for row in rows.mappings()}


_MARK_DELETED = text(
    """
    UPDATE calendar_events e
    SET is_deleted = true, updated_at = i.updated_at, raw = coalesce(CAST(i.raw AS json), e.raw),
        -- The etag is that of `raw`, where `raw` has it (Google).
        etag = CASE WHEN json_typeof(CAST(i.raw AS json) -> 'etag') = 'string'
                         AND octet_length(CAST(i.raw AS json) ->> 'etag') BETWEEN 1 AND :longest
                    THEN CAST(i.raw AS json) ->> 'etag' ELSE e.etag END
    FROM unnest(:ids, CAST(:times AS timestamptz[]), :raws) AS i(id, updated_at, raw)
    WHERE e.id = i.id
    """
).bindparams(bindparam("ids", type_=ARRAY(Text())), bindparam("raws", type_=ARRAY(Text())))


async def mark_deleted(
    session: Session,
    ids: Sequence[str],
    times: Sequence[datetime],
    raws: Mapping[str, str | None] | None = None,
) -> None:
    """Mark rows as deleted. `raws`: new values of `raw` by id, for those that do not keep theirs."""
    values = {"ids": list(ids), "times": list(times), "raws": [(raws or {}).get(one) for one in ids]}
    await session.execute(_MARK_DELETED, {**values, "longest": limits.PLATFORM_UUID})


_RECORD_UNANNOUNCED = text(
    """
    UPDATE calendars
    SET last_change_at = :last_change_at, unannounced_since = :since,
        unannounced_created = :created, unannounced_updated = :updated, unannounced_deleted = :deleted
    WHERE id = :calendar_id
    """
)


async def record_changes(
    session: Session, claim: CalendarRef, changes: Unannounced, *, last_change_at: datetime
) -> None:
    """Store the largest `updated_at` given, and what is still to be announced."""
    await session.execute(
        _RECORD_UNANNOUNCED,
        {
            "calendar_id": claim.calendar_id,
            "last_change_at": last_change_at,
            "since": changes.since,
            "created": changes.created,
            "updated": changes.updated,
            "deleted": changes.deleted,
        },
    )
