"""Why a client that keeps the largest `updated_at` it has seen never misses a change (contract 4).

Within a calendar: every writer of its events holds the calendar's row lock until it commits, and gives each
row an `updated_at` larger than any given before. So the order of `updated_at` is the order of visibility.

Over a project: writers of different calendars overlap. Each writer takes a shared advisory lock, whose key is
the project and the time, *before* it picks its `updated_at`s, which are therefore not below that time. A
reader first asks, in a statement of its own, for the horizon: the oldest time among the writers in flight, or
now. Its next statement reads only rows below the horizon:

- a writer that held its lock at that moment writes at or above the horizon: held back, seen next time;
- a writer that took its lock later picks its times later than the reader's "now": above the horizon too;
- a writer that had let go of its lock had committed: the second statement's snapshot, being younger, has its rows.

The lock's key: 12 bits of the project's hash (two projects that share them only wait a little for each
other), 51 bits of microseconds since 1970 (enough until 2041). Times are the database server's.
"""

from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from app.core.db import ReadSession, Session

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

# objsubid 1 marks advisory locks with one 64-bit key, which pg_locks shows as two halves.
_HORIZON = text(
    """
    SELECT least(
        (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
        min(((classid::bigint << 32) | objid::bigint) & ((1::bigint << 51) - 1)))
    FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (((classid::bigint << 32) | objid::bigint) >> 51) = (hashtext(:project_id) & 4095)::bigint
    """
)


async def enter_as_writer(session: Session, *, project_id: str, calendar_id: str) -> datetime:
    """The first `updated_at` that this transaction may give to an event of the calendar.

    The caller holds the calendar's row lock (FOR UPDATE), gives its rows this time, one microsecond more for
    each further one, and stores the last in `calendars.last_change_at`.
    """
    await session.execute(_ENTER, {"project_id": project_id})
    first_free: datetime = (await session.execute(_FIRST_FREE, {"calendar_id": calendar_id})).scalar_one()
    return first_free


async def load_horizon(session: ReadSession, project_id: str) -> datetime:
    """Rows of the project with `updated_at` at or above this time are to be held back.

    Ask before the statement that reads the rows; a read session's statements have a snapshot each.
    """
    microseconds: int = (await session.execute(_HORIZON, {"project_id": project_id})).scalar_one()
    return _EPOCH + microseconds * _MICROSECOND
