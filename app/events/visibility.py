"""The order in which changes of events become visible.

A client that keeps the largest `updated_at` misses no change.

Writers take an advisory lock whose key holds a time; readers hold back what is newer than the oldest such lock. The
proof, and the form of the key: docs/adr/0001-visibility-of-changes.md.
"""

from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from app.core.db import AnySession, ReadSession, Session

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_ENTER = text(
    """
    SELECT pg_advisory_xact_lock_shared(
        ((hashtext(:project_id) & 4095)::bigint << 51)
        | (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
    """
)

_FIRST_FREE = text(
    """
    SELECT greatest(clock_timestamp(), last_change_at + interval '1 microsecond') AS first_free
    FROM calendars WHERE id = :calendar_id
    """
)

# `locks` refers to `clock`, so that it cannot be evaluated first; OFFSET 0 makes both uses of `now` one reading.
# objsubid 1 marks advisory locks with one 64-bit key, which pg_locks shows as two halves.
_HORIZON = text(
    """
    SELECT least(clock.now, locks.oldest)
    FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now OFFSET 0) AS clock
    CROSS JOIN LATERAL (
        SELECT min(entered_at) AS oldest
        FROM (SELECT ((classid::bigint << 32) | objid::bigint) >> 51 AS project,
                     ((classid::bigint << 32) | objid::bigint) & ((1::bigint << 51) - 1) AS entered_at
              FROM pg_locks
              WHERE locktype = 'advisory' AND objsubid = 1
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS held
        WHERE project = (hashtext(:project_id) & 4095)::bigint
          AND entered_at BETWEEN clock.now - 86400000000 AND clock.now) AS locks
    """
)


async def enter_as_writer(session: Session, *, project_id: str, calendar_id: str) -> datetime:
    """Take the writers' lock; returns the first `updated_at` that this transaction may give.

    The caller holds the calendar's row lock, gives its rows this time, one microsecond more for
    each further one, and stores the last in `calendars.last_change_at`.
    """
    await session.execute(_ENTER, {"project_id": project_id})
    first_free: datetime = (await session.execute(_FIRST_FREE, {"calendar_id": calendar_id})).scalar_one()
    return first_free


async def load_horizon(session: ReadSession, project_id: str) -> datetime:
    """The time from which on changes of the project's events may still become visible.

    Hold back the rows with `updated_at` at or after it.

    Call it before the statement that reads the rows: in a read session, each statement has a snapshot of its own.
    """
    microseconds: int = (await session.execute(_HORIZON, {"project_id": project_id})).scalar_one()
    return _EPOCH + microseconds * _MICROSECOND


# The same over all projects.
_HORIZON_OF_ALL = text(_HORIZON.text.replace("project = (hashtext(:project_id) & 4095)::bigint", "true"))


async def load_horizon_of_all(session: AnySession) -> datetime:
    """As `load_horizon`, over all projects. It may be earlier than that of any of them."""
    microseconds: int = (await session.execute(_HORIZON_OF_ALL)).scalar_one()
    return _EPOCH + microseconds * _MICROSECOND
