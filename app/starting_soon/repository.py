"""SQL of `event.starting_soon`: due looks, events that start soon, notices.

Locks, all of them with SKIP LOCKED: the webhook's row, then its position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import JSON, text
from sqlalchemy.dialects.postgresql import JSONB

from app.core.db import Session, Sessions, delete_in_batches
from app.events.fields import STATED_FIELDS, STATED_JSON_FIELDS
from app.webhooks.payloads import CalendarFacts

# After this long without a look, everything within the lead is looked at, and not every change since.
_LONGEST_PAUSE = timedelta(minutes=5)
_NOTICES_KEPT = timedelta(days=1)

# A plan may be cached from when a table was small. The orders below are those of the indexes to use.
_USE_INDEXES = text(
    "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), "
    "set_config('enable_sort', 'off', true)"
)

_ADD_MISSING = text(
    """
    INSERT INTO starting_soon_positions (subscription_id)
    SELECT s.id FROM webhook_subscriptions s
    WHERE s.is_active AND 'event.starting_soon' = ANY (s.triggers)
      AND NOT EXISTS (SELECT FROM starting_soon_positions p WHERE p.subscription_id = s.id)
    ORDER BY s.id
    LIMIT :limit
    FOR KEY SHARE OF s SKIP LOCKED
    ON CONFLICT DO NOTHING
    """
)

_LOCK_DUE = text(
    """
    SELECT s.id, s.project_id, s.updated_at, s.starting_soon_minutes, clock_timestamp() AS now,
           CASE WHEN p.subscription_updated_at = s.updated_at AND p.changes_until > now() - CAST(:pause AS interval)
                THEN p.starts_until END AS starts_until,
           p.changes_until
    FROM starting_soon_positions p
    JOIN webhook_subscriptions s ON s.id = p.subscription_id
    WHERE p.next_look_at <= :due_before AND s.is_active AND 'event.starting_soon' = ANY (s.triggers)
    ORDER BY p.next_look_at
    LIMIT :limit
    FOR KEY SHARE OF s SKIP LOCKED
    FOR UPDATE OF p SKIP LOCKED
    """
)


@dataclass(frozen=True, slots=True)
class Look:
    """A look at the events of one webhook's project that is due now.

    `starts_until`: what starts up to then was looked at, as it was at `changes_until`; None if nothing counts.
    """

    subscription_id: str
    project_id: str
    subscription_updated_at: datetime
    lead: timedelta
    now: datetime
    starts_until: datetime | None
    changes_until: datetime | None

    @property
    def until(self) -> datetime:
        return self.now + self.lead


async def add_missing(session: Session, limit: int) -> datetime:
    """Make a look due for up to `limit` webhooks that are new. Returns the database's time."""
    await session.execute(_ADD_MISSING, {"limit": limit})
    now: datetime = (await session.execute(text("SELECT clock_timestamp()"))).scalar_one()
    return now


async def lock_due(session: Session, *, due_before: datetime, limit: int) -> list[Look]:
    """Lock up to `limit` looks that are due at this time and that no other worker has."""
    await session.execute(_USE_INDEXES)
    values = {"limit": limit, "due_before": due_before, "pause": _LONGEST_PAUSE}
    rows = await session.execute(_LOCK_DUE, values)
    return [
        Look(
            subscription_id=row.id,
            project_id=row.project_id,
            subscription_updated_at=row.updated_at,
            lead=timedelta(minutes=row.starting_soon_minutes),
            now=row.now,
            starts_until=row.starts_until,
            changes_until=row.changes_until,
        )
        for row in rows
    ]


# Events that come within the lead since the last look, and changed ones that start within it.
_NOTE_STARTING = text(
    f"""
    WITH noted AS (
    INSERT INTO starting_soon_notices (subscription_id, calendar_event_id, start_time)
    SELECT l.subscription_id, found.id, found.start_time
    FROM unnest(CAST(:ids AS text[]), CAST(:projects AS text[]), CAST(:nows AS timestamptz[]),
                CAST(:starts_after AS timestamptz[]), CAST(:until AS timestamptz[]),
                CAST(:changed_since AS timestamptz[]))
         AS l (subscription_id, project_id, now, starts_after, until, changed_since)
    JOIN webhook_subscriptions s ON s.id = l.subscription_id
    CROSS JOIN LATERAL (
        SELECT e.id, e.start_time
        FROM ((SELECT b.id, b.start_time, b.calendar_id, b.response_status FROM calendar_events b
              WHERE b.project_id = l.project_id AND NOT b.is_deleted
                AND coalesce(b.start_time, 'infinity'::timestamptz) > l.starts_after
                AND coalesce(b.start_time, 'infinity'::timestamptz) <= l.until
              ORDER BY coalesce(b.start_time, 'infinity'::timestamptz), b.id OFFSET 0)
              UNION
              (SELECT c.id, c.start_time, c.calendar_id, c.response_status FROM calendar_events c
              WHERE c.project_id = l.project_id AND NOT c.is_deleted AND c.updated_at >= l.changed_since
                AND c.start_time > l.now AND c.start_time <= l.until
              ORDER BY c.updated_at, c.id OFFSET 0)) AS e
        JOIN calendars k ON k.id = e.calendar_id
        WHERE e.response_status IS DISTINCT FROM 'declined'
          AND (s.calendar_ids IS NULL OR e.calendar_id = ANY (s.calendar_ids))
          AND (s.metadata IS NULL OR k.metadata @> s.metadata)
          AND NOT EXISTS (SELECT FROM starting_soon_notices n
                          WHERE n.subscription_id = l.subscription_id AND n.calendar_event_id = e.id
                            AND n.start_time = e.start_time)
        ORDER BY e.start_time, e.id
        LIMIT :limit
    ) AS found
    ON CONFLICT DO NOTHING
    RETURNING subscription_id, calendar_event_id
    )
    SELECT noted.subscription_id, e.id, e.calendar_id, e.updated_at, e.is_deleted,
           k.deduplication_key, k.metadata AS calendar_metadata, {", ".join(f"e.{name}" for name in STATED_FIELDS)}
    FROM noted
    JOIN calendar_events e ON e.id = noted.calendar_event_id
    JOIN calendars k ON k.id = e.calendar_id
    ORDER BY e.start_time, e.id
    """  # noqa: S608 - constants
).columns(calendar_metadata=JSONB, **dict.fromkeys(STATED_JSON_FIELDS, JSON))


@dataclass(frozen=True, slots=True)
class StartingEvent:
    """An event that starts soon, as it was when it was noted. `values`: STATED_FIELDS and `is_deleted`."""

    id: str
    calendar: CalendarFacts
    updated_at: datetime
    values: dict[str, Any]


async def note_starting(
    session: Session, looks: Sequence[Look], limit: int
) -> dict[str, list[StartingEvent]]:
    """Note up to `limit` events for each look that start soon, once for each start time.

    Returns them by webhook, the first to start first.
    """
    rows = await session.execute(
        _NOTE_STARTING,
        {
            "ids": [look.subscription_id for look in looks],
            "projects": [look.project_id for look in looks],
            "nows": [look.now for look in looks],
            "starts_after": [max(look.starts_until or look.now, look.now) for look in looks],
            "until": [look.until for look in looks],
            # Without an earlier look, all events within the lead are read anyway.
            "changed_since": [None if look.starts_until is None else look.changes_until for look in looks],
            "limit": limit,
        },
    )
    found: dict[str, list[StartingEvent]] = {}
    for row in rows.mappings():
        calendar = CalendarFacts(row["calendar_id"], row["deduplication_key"], row["calendar_metadata"])
        values = {name: row[name] for name in (*STATED_FIELDS, "is_deleted")}
        event = StartingEvent(row["id"], calendar, row["updated_at"], values)
        found.setdefault(row["subscription_id"], []).append(event)
    return found


_SAVE = text(
    """
    UPDATE starting_soon_positions p
    SET subscription_updated_at = l.updated_at, starts_until = l.starts_until, changes_until = :horizon,
        next_look_at = now() + CAST(:every AS interval)
    FROM unnest(CAST(:ids AS text[]), CAST(:updated_at AS timestamptz[]), CAST(:starts_until AS timestamptz[]))
         AS l (id, updated_at, starts_until)
    WHERE p.subscription_id = l.id
    """
)


async def save_looks(session: Session, looks: Sequence[Look], *, horizon: datetime, every: timedelta) -> None:
    """Store that these looks have found all there is; the next are due in `every`."""
    values: dict[str, Any] = {
        "ids": [look.subscription_id for look in looks],
        "updated_at": [look.subscription_updated_at for look in looks],
        "starts_until": [look.until for look in looks],
    }
    await session.execute(_SAVE, {**values, "horizon": horizon, "every": every})


_DROP_IDLE = text(
    """
    DELETE FROM starting_soon_positions p
    WHERE NOT EXISTS (SELECT FROM webhook_subscriptions s
                      WHERE s.id = p.subscription_id AND s.is_active AND 'event.starting_soon' = ANY (s.triggers))
    """
)


async def delete_idle_positions(session: Session) -> None:
    """Delete the positions of webhooks that are disabled or no longer have the trigger."""
    await session.execute(_DROP_IDLE)


async def delete_old_notices(sessions: Sessions) -> int:
    """Delete notices of events that have started: they are not announced again. Returns how many."""
    condition = "start_time < now() - CAST(:kept AS interval)"
    return await delete_in_batches(sessions, "starting_soon_notices", condition, {"kept": _NOTICES_KEPT})
