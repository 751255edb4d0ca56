"""Why a client that keeps the largest `updated_at` it has seen never misses a change.

See docs/reference/http-api.md, "No change is missed".

Within a calendar: every writer of its events holds the calendar's row lock until it commits, and gives each
row an `updated_at` larger than any given before. So the order of `updated_at` is the order of visibility.

Over a project: writers of different calendars overlap. A writer takes a shared advisory lock whose key holds the
project and the time T, and *then* reads the clock for its `updated_at`s: all of them are at or above T, and at or
above the moment at which it had the lock. A reader first reads the clock, `now`, and *then* the table of locks; the
horizon is the least of `now` and the T's found there. Its next statement, with a younger snapshot, reads the rows
below the horizon, and misses none. For take a row below it, written by W: its time is below `now`, so W had its lock
before the table of locks was read. Either W was found there, and then its T, and with it the row, would be at or
above the horizon; or W had let go of its lock, which it does after its commit is visible: the snapshot has the row.

Read in the other order, a writer that comes between the table and the clock is above neither: it is missed for good.

The key: 12 bits of the project's hash (two projects that share them only wait a little for each other), 51 bits of
microseconds since 1970 (enough until 2041). Other programs' advisory locks in the database may look the same: a key
whose time is not of the last day is none of ours, since a transaction that writes events takes seconds. All times
are the database server's, whose clock must not be set back while writers are at work.
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

# `locks` refers to `clock`, so that it cannot be evaluated first; OFFSET 0 keeps the two apart, so that both uses of
# `now` are the same reading. objsubid 1 marks advisory locks with one 64-bit key, which pg_locks shows as two halves.
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
