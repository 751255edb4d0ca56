"""When calendars are due: every statement by which another feature makes one due sooner.

A calendar is due for a sync at `next_sync_at`, and for its push channel at `push_due_at` (app/models/calendar.py).
The claims and results of a sync set these times themselves (app/sync/repository.py), and so do those of a push
channel (app/push/repository.py) and the end of an outage (app/outages/breakers.py).
"""

from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import ARRAY, Interval, Text, bindparam, text

from app.core.db import Session
from app.core.wakeups import wake_after_commit

_REQUEST_PAUSE = timedelta(seconds=5)
_LONGEST_REQUEST_PAUSE = timedelta(minutes=1)
_LONGEST_REQUEST_PAUSE_OF_FEEDS = timedelta(minutes=5)

# The pause since the last sync began, doubled for each failure in a row: a request must not undo the backoff.
# `sync_forced_before` is when the sync would have been due anyway: a failure before that time confirms nothing.
_REQUEST = text(
    """
    UPDATE calendars AS c
    SET next_sync_at = requested.at, sync_forced = true,
        sync_forced_before = CASE WHEN c.sync_forced_before > clock_timestamp() THEN c.sync_forced_before
                                  ELSE c.next_sync_at END
    FROM (
        SELECT id, greatest(clock_timestamp(), sync_started_at + least(
                   :pause * power(2, least(sync_failure_count, 10)),
                   CASE platform WHEN 'ics' THEN :longest_of_feeds ELSE :longest END)) AS at
        FROM calendars WHERE id = :calendar_id AND state = 'connected'
        FOR NO KEY UPDATE) AS requested
    WHERE c.id = requested.id AND requested.at < c.next_sync_at
    """
).bindparams(*(bindparam(name, type_=Interval()) for name in ("pause", "longest", "longest_of_feeds")))

# A request during a trial moves `next_sync_at`, too: see _SETTLE_FAILURE in app/sync/repository.py.
_REQUEST_TRIAL = text(
    """
    UPDATE calendars
    SET sync_trial = true, next_sync_at = greatest(clock_timestamp(), sync_started_at + :pause)
    WHERE id = :calendar_id AND state = 'disconnected' AND platform <> 'local'
      AND (NOT sync_trial OR greatest(clock_timestamp(), sync_started_at + :pause) < next_sync_at)
    """
).bindparams(bindparam("pause", type_=Interval()))


async def request_sync(session: Session, calendar_id: str) -> None:
    """Make a calendar due at the request of a client.

    Requested syncs begin at least 5 s apart; while they fail, up to a minute apart, and 5 minutes for a feed, whose
    server may take a minute to time out. A calendar that is due earlier anyway stays as it is. A disconnected
    calendar is tried once, at most every minute, and is connected again if access is back.
    """
    wake_after_commit(session, "syncs")
    await session.execute(
        _REQUEST,
        {
            "calendar_id": calendar_id,
            "pause": _REQUEST_PAUSE,
            "longest": _LONGEST_REQUEST_PAUSE,
            "longest_of_feeds": _LONGEST_REQUEST_PAUSE_OF_FEEDS,
        },
    )
    await session.execute(_REQUEST_TRIAL, {"calendar_id": calendar_id, "pause": _LONGEST_REQUEST_PAUSE})


_SYNC_WITHIN = text(
    "UPDATE calendars SET next_sync_at = least(next_sync_at, clock_timestamp() + :delay) WHERE id = :calendar_id"
)


async def sync_within(session: Session, calendar_id: str, delay: timedelta) -> None:
    """Make a calendar due after `delay` at the latest. While a sync runs, this leads to one more after it.

    It sends no wake-up: the workers look by themselves.
    """
    await session.execute(_SYNC_WITHIN, {"calendar_id": calendar_id, "delay": delay})


# A calendar that is due soon enough is left alone: its sync begins later than this, and so sees the change.
# One whose last sync failed keeps its time, which is a matter of backoff and of the provider's Retry-After.
# While a sync runs, `next_sync_at` is the end of its lease: any other time leads to one more sync.
_MARK_DUE = text(
    """
    WITH marked AS (
        SELECT id FROM calendars
        WHERE id = ANY(:calendar_ids) AND state = 'connected'
          AND (id = ANY(:renew_ids)
               OR (lease_until > clock_timestamp() AND next_sync_at = lease_until)
               OR (next_sync_at > clock_timestamp() + :delay
                   AND (sync_failure_count = 0 OR lease_until > clock_timestamp())))
        ORDER BY id
        FOR NO KEY UPDATE)
    UPDATE calendars AS c
    SET next_sync_at = CASE WHEN c.id <> ALL(:sync_ids) THEN c.next_sync_at
                            WHEN c.lease_until > clock_timestamp()
                            THEN least(nullif(c.next_sync_at, c.lease_until), clock_timestamp() + :delay,
                                       c.lease_until - interval '1 microsecond')
                            WHEN c.sync_failure_count = 0
                            THEN least(c.next_sync_at, clock_timestamp() + :delay)
                            ELSE c.next_sync_at END,
        push_due_at = CASE WHEN c.id = ANY(:renew_ids) THEN clock_timestamp() ELSE c.push_due_at END
    FROM marked WHERE c.id = marked.id
    RETURNING c.id
    """
).bindparams(*(bindparam(name, type_=ARRAY(Text())) for name in ("calendar_ids", "sync_ids", "renew_ids")))


async def mark_due(
    session: Session, *, sync_ids: Collection[str], renew_ids: Collection[str] = (), delay: timedelta
) -> int:
    """Make calendars due because their provider notified us; returns how many were moved.

    `sync_ids` are due for a sync after `delay`, unless their last one failed. `renew_ids` are due for a renewal of
    their push channel now.
    """
    rows = await session.scalars(
        _MARK_DUE,
        {
            "calendar_ids": [*sync_ids, *renew_ids],
            "sync_ids": list(sync_ids),
            "renew_ids": list(renew_ids),
            "delay": delay,
        },
    )
    moved = len(rows.all())
    if moved and sync_ids:
        wake_after_commit(session, "syncs", after=delay.total_seconds())
    if moved and renew_ids:
        wake_after_commit(session, "channels")
    return moved
