"""SQL of a calendar's sync: its claim, its lease, its state, and its result.

Locks, in this order everywhere: the calendar's row, then the writers' advisory lock (app/events/visibility.py).
Leases: docs/adr/0002-leases-in-postgresql-beside-arq.md.
"""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy import ARRAY, DateTime, Text, bindparam, text

from app.core.db import Session
from app.core.ids import new_id
from app.core.lease import LeaseLost
from app.events.data import Unannounced, Window
from app.sync.turns import Due, Kind, pick_oldest

Platform = Literal["google", "microsoft", "ics"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A due calendar, as it was when this worker took the lease on it."""

    calendar_id: str
    project_id: str
    platform: Platform
    lease_token: str
    lease_for: timedelta
    forced: bool = False  # requested by a client before it was due


@dataclass(frozen=True, slots=True)
class SyncState:
    """The state that a sync starts from. `now` is the database's clock.

    `forced_before`: when it would have been due, if a client's request came before that.
    `is_trial`: the calendar is disconnected, and this sync finds out whether access is back.
    """

    platform_uuid: str | None
    owner_email: str | None
    credentials_id: str | None
    client_id: str | None
    cursor: str | None
    window_past_days: int | None
    window_future_days: int | None
    window_start: datetime | None
    window_end: datetime | None
    failure_count: int
    failure_code: str | None
    failure_code_since: datetime | None
    failure_code_count: int
    failing_since: datetime | None
    forced_before: datetime | None
    cursor_expired_at: datetime | None
    held_back_ids: list[str] | None
    held_back_since: datetime | None
    is_trial: bool
    now: datetime


@dataclass(frozen=True, slots=True)
class Settled:
    """The calendar's row after the result is stored, for the webhook about it."""

    deduplication_key: str | None
    metadata: dict[str, Any] | None
    state: str
    connection_failure_data: dict[str, Any] | None
    last_successful_sync_at: datetime | None
    last_attempted_sync_at: datetime | None


@dataclass(frozen=True, slots=True)
class HeldBack:
    """Ids of events whose deletion is not confirmed yet, and when a complete response first left them out."""

    ids: list[str]
    since: datetime


# --- claiming ----------------------------------------------------------------------------------------------

# This many of the calendars that are due longest are read, of all platforms and projects. If more are due, some of
# every project are read, so that a project with thousands of due calendars does not hide the others.
_OLDEST = 200
_PROJECTS_ASKED = 100
# Read beyond the free slots, for calendars whose mailbox or host has no room.
_SPARE = 20
# Google's and Microsoft's calendars, and feeds; local calendars have nothing to fetch.
# now() and not clock_timestamp(): a volatile function cannot be looked up in the index.
_IS_SYNCED = "c.state = 'connected' AND c.platform <> 'local'"
_IS_TRIAL = "(c.sync_trial AND c.state = 'disconnected')"
_IS_FREE = "(c.lease_until IS NULL OR c.lease_until <= now())"
_KIND = "(CASE c.platform WHEN 'ics' THEN 'feed' ELSE 'account' END)"  # as in ix_calendars_turns
# The same account connected twice is one mailbox.
_MAILBOX = "concat_ws(' ', c.platform, coalesce(lower(c.owner_email), c.credentials_id, c.id))"

# The second part: the disconnected calendars that are to be tried, which are few.
_FIND_OLDEST = text(
    f"""
    (SELECT c.id, c.project_id, {_MAILBOX} AS mailbox, c.next_sync_at, {_KIND} AS kind, {_IS_FREE} AS is_free,
            false AS is_trial
     FROM calendars c
     WHERE {_IS_SYNCED} AND c.next_sync_at <= now()
     ORDER BY c.next_sync_at LIMIT :most)
    UNION ALL
    (SELECT c.id, c.project_id, {_MAILBOX} AS mailbox, c.next_sync_at, {_KIND} AS kind, {_IS_FREE} AS is_free,
            true AS is_trial
     FROM calendars c
     WHERE {_IS_TRIAL} AND c.next_sync_at <= now()
     ORDER BY c.next_sync_at LIMIT :most)
    """  # noqa: S608 - constants
)

# The recursion goes from one project with such calendars to the next, until it meets one again. It begins at a random
# place, so that every project has its turn soon. Only ix_calendars_turns has these orders, so that the planner uses it
# whatever the statistics say.
_NEXT_PROJECT = f"""
    SELECT CASE n.kind WHEN :kind THEN n.project_id END
    FROM (SELECT {_KIND} AS kind, c.project_id FROM calendars c
          WHERE {_IS_SYNCED} AND ({_KIND}, c.project_id) > (:kind, {{after}})
          ORDER BY {_KIND}, c.project_id LIMIT 1) AS n
"""  # noqa: S608 - constants
_FIND_IN_TURNS = text(
    f"""
    WITH RECURSIVE turns (project_id) AS (
        SELECT coalesce(({_NEXT_PROJECT.format(after=":start")}), ({_NEXT_PROJECT.format(after="''")}))
      UNION
        SELECT coalesce(({_NEXT_PROJECT.format(after="turns.project_id")}), ({_NEXT_PROJECT.format(after="''")}))
        FROM turns
    )
    SELECT c.id, c.project_id, {_MAILBOX} AS mailbox, c.next_sync_at
    FROM (SELECT project_id FROM turns LIMIT :projects) AS t
    CROSS JOIN LATERAL (
        SELECT * FROM calendars c
        WHERE {_IS_SYNCED} AND ({_KIND}, c.project_id, c.next_sync_at) > (:kind, t.project_id, '-infinity')
              AND ({_KIND}, c.project_id, c.next_sync_at) <= (:kind, t.project_id, now())
        ORDER BY {_KIND}, c.project_id, c.next_sync_at LIMIT :each) AS c
    WHERE {_IS_FREE}
    """  # noqa: S608 - constants
).bindparams(*(bindparam(name, type_=Text()) for name in ("kind", "start")))

# Two keys: one 64-bit key could be taken for a writer's (app/events/visibility.py).
_ONE_CLAIM_AT_ONCE = text("SELECT pg_advisory_xact_lock(7142, 1)")
_COUNT_RUNNING = text(
    f"""
    SELECT {_MAILBOX} AS mailbox, count(*) AS running
    FROM calendars c
    WHERE c.lease_until > now() AND c.platform <> 'ics'
    GROUP BY mailbox
    """  # noqa: S608 - constants
)

# clock_timestamp(): the rows are found by their ids, not by an index of due times.
_LEASE = text(
    f"""
    WITH due AS MATERIALIZED (
        SELECT c.id, c.sync_forced FROM calendars c
        WHERE c.id = ANY(:ids) AND ({_IS_SYNCED} OR {_IS_TRIAL}) AND c.next_sync_at <= clock_timestamp() AND {_IS_FREE}
        FOR UPDATE SKIP LOCKED)
    UPDATE calendars AS c
    SET lease_token = :lease_token, lease_until = now() + :lease_for, next_sync_at = now() + :lease_for,
        sync_started_at = now(), sync_forced = false
    FROM due WHERE c.id = due.id
    RETURNING c.id, c.project_id, c.platform, due.sync_forced
    """  # noqa: S608 - constants
).bindparams(bindparam("ids", type_=ARRAY(Text())))

Pick = Callable[[list[Due], Counter[str], int], list[Due]]


async def claim_due(
    session: Session,
    *,
    limit: int,
    lease_for: timedelta,
    kinds: Collection[Kind] = ("account", "feed"),
    pick: Pick = pick_oldest,
) -> list[Claim]:
    """Lease up to `limit` due calendars that have no lease; `pick` chooses them (app/sync/turns.py)."""
    due = await _find_due(session, limit, kinds)
    if not due:
        return []
    mailboxes: Counter[str] = Counter()
    if "account" in kinds:
        # Under a lock, so that two workers do not both take the last free place of a mailbox.
        await session.execute(_ONE_CLAIM_AT_ONCE)
        mailboxes.update({row.mailbox: row.running for row in await session.execute(_COUNT_RUNNING)})
    picked = pick(due, mailboxes, limit)
    if not picked:
        return []
    lease_token = uuid4().hex
    rows = await session.execute(
        _LEASE,
        {
            "ids": [one.calendar_id for one in picked],
            "lease_token": lease_token,
            "lease_for": lease_for,
        },
    )
    return [
        Claim(row.id, row.project_id, row.platform, lease_token, lease_for, forced=row.sync_forced)
        for row in rows
    ]


async def _find_due(session: Session, limit: int, kinds: Collection[Kind]) -> list[Due]:
    """Find due calendars of these kinds: all of them, or if there are very many, some of many projects."""
    oldest = (await session.execute(_FIND_OLDEST, {"most": _OLDEST})).all()
    found = {
        row.id: Due(row.id, row.project_id, row.kind, row.mailbox, row.next_sync_at)
        for row in oldest
        if row.is_free and row.kind in kinds
    }
    if sum(not row.is_trial for row in oldest) == _OLDEST:
        for kind in kinds:
            values = {
                "kind": kind,
                "start": new_id("proj"),
                "projects": _PROJECTS_ASKED,
                "each": limit + _SPARE,
            }
            for row in await session.execute(_FIND_IN_TURNS, values):
                found[row.id] = Due(row.id, row.project_id, kind, row.mailbox, row.next_sync_at)
    return list(found.values())


# A lease that is extended must not swallow a request: `next_sync_at` differs from `lease_until` once one came.
_EXTEND = text(
    """
    UPDATE calendars
    SET next_sync_at = CASE WHEN next_sync_at = lease_until THEN now() + :lease_for ELSE next_sync_at END,
        lease_until = now() + :lease_for
    WHERE id = :calendar_id AND lease_token = :lease_token
    RETURNING id
    """
)


async def extend_lease(session: Session, claim: Claim) -> None:
    """Extend the lease to `claim.lease_for` from now. Raises LeaseLost."""
    found = await session.scalar(
        _EXTEND,
        {"calendar_id": claim.calendar_id, "lease_token": claim.lease_token, "lease_for": claim.lease_for},
    )
    if found is None:
        raise LeaseLost


_LOAD = text(
    """
    SELECT c.platform_uuid, c.owner_email, c.credentials_id, k.client_id, c.sync_cursor,
           c.window_past_days, c.window_future_days, c.window_start, c.window_end, c.sync_failure_count, c.sync_failure_code,
           c.sync_failure_code_since, c.sync_failure_code_count, c.sync_failing_since, c.sync_forced_before,
           c.cursor_expired_at, c.held_back_ids, c.held_back_since, c.state = 'disconnected', clock_timestamp()
    FROM calendars c LEFT JOIN credentials k ON k.id = c.credentials_id
    WHERE c.id = :calendar_id AND c.lease_token = :lease_token
    """
)


async def load_state(session: Session, claim: Claim) -> SyncState:
    """Extend the lease to `claim.lease_for` from now. Raises LeaseLost."""
    row = (
        await session.execute(_LOAD, {"calendar_id": claim.calendar_id, "lease_token": claim.lease_token})
    ).one_or_none()
    if row is None:
        raise LeaseLost
    return SyncState(*row)


_LOCK = text(
    """
    SELECT unannounced_since, unannounced_created, unannounced_updated, unannounced_deleted
    FROM calendars
    WHERE id = :calendar_id AND lease_token = :lease_token AND (state = 'connected' OR sync_trial)
    FOR NO KEY UPDATE
    """
)


async def lock_calendar(session: Session, claim: Claim) -> Unannounced:
    """Lock the calendar's row, before every write of a sync.

    Returns the changes that are not announced yet. Raises LeaseLost if the lease is not this worker's any more.
    """
    row = (
        await session.execute(_LOCK, {"calendar_id": claim.calendar_id, "lease_token": claim.lease_token})
    ).one_or_none()
    if row is None:
        raise LeaseLost
    return Unannounced(*row)


_SETTLED_COLUMNS = """
    RETURNING deduplication_key, metadata, state, connection_failure_data,
              last_successful_sync_at, last_attempted_sync_at
"""

_RELEASE = """
    lease_token = NULL, lease_until = NULL,
    unannounced_since = NULL, unannounced_created = 0, unannounced_updated = 0, unannounced_deleted = 0
"""

_SETTLE_SUCCESS = text(
    f"""
    UPDATE calendars
    SET state = 'connected', connection_failure_data = NULL, sync_trial = false,
        updated_at = CASE WHEN state = 'connected' THEN updated_at ELSE clock_timestamp() END,
        sync_cursor = :cursor, window_start = :window_start, window_end = :window_end,
        covered_from = :window_start,
        covered_until = least(CAST(:window_end AS timestamptz), coalesce(:complete_until, covered_until)),
        last_attempted_sync_at = :started_at, last_successful_sync_at = clock_timestamp(),
        sync_failing_since = NULL, sync_failure_count = 0, sync_failure_code = NULL,
        sync_failure_message = NULL, sync_failure_code_since = NULL, sync_failure_code_count = 0,
        outage_scope = NULL, held_back_ids = :held_back_ids, held_back_since = :held_back_since,
        cursor_expired_at = coalesce(:cursor_expired_at, cursor_expired_at),
        sync_forced_before = CASE WHEN next_sync_at = lease_until OR sync_forced_before IS NULL THEN NULL
                                  ELSE clock_timestamp() + :next_in END,
        push_due_at = CASE WHEN :wants_push AND platform IN ('google', 'microsoft')
                           THEN coalesce(push_due_at, clock_timestamp()) ELSE push_due_at END,
        -- It still equals `lease_until`, unless a sync was requested while this one ran. A window that was changed
        -- meanwhile is read at once, also where the request had to wait for longer than the lease.
        next_sync_at = CASE WHEN next_sync_at <> lease_until THEN next_sync_at
                            WHEN (window_past_days, window_future_days)
                                 IS DISTINCT FROM (CAST(:past_days AS integer), CAST(:future_days AS integer))
                            THEN clock_timestamp()
                            ELSE clock_timestamp() + greatest(:next_in, least(:next_in_with_push, coalesce(
                                (SELECT max(p.expires_at) - clock_timestamp() FROM push_channels p
                                 WHERE p.calendar_id = calendars.id AND p.state = 'open'
                                   AND p.verified_at IS NOT NULL AND :wants_push), interval '0'))) END,
        {_RELEASE}
    WHERE id = :calendar_id
    {_SETTLED_COLUMNS}
    """  # noqa: S608 - constants
).bindparams(
    bindparam("held_back_ids", type_=ARRAY(Text())),
    bindparam("held_back_since", type_=DateTime(timezone=True)),
    bindparam("cursor_expired_at", type_=DateTime(timezone=True)),
    bindparam("complete_until", type_=DateTime(timezone=True)),
)


async def settle_success(
    session: Session,
    claim: Claim,
    *,
    cursor: str | None,
    window: Window,
    days: tuple[int | None, int | None],
    complete_until: datetime | None,
    started_at: datetime,
    next_in: timedelta,
    next_in_with_push: timedelta,
    wants_push: bool,
    held_back: HeldBack | None = None,
    cursor_expired_at: datetime | None = None,
) -> Settled:
    """Store the cursor and the sync times, and give the lease back. The caller holds the row lock.

    `next_in`: the time to the next sync. `next_in_with_push`: the same while a push channel is open that has worked,
    not beyond the channel's end. `held_back`: the deletions that are not confirmed yet. `cursor_expired_at`: set if
    this round followed an expired cursor. `wants_push`: a calendar without a push channel is due for one now.
    `days`: the calendar's own window when the sync began. `complete_until`: how far a full round has listed
    everything; None for a round of changes, which leaves that as it was.
    """
    row = (
        await session.execute(
            _SETTLE_SUCCESS,
            {
                "calendar_id": claim.calendar_id,
                "cursor": cursor,
                "window_start": window.start,
                "window_end": window.end,
                "past_days": days[0],
                "future_days": days[1],
                "complete_until": complete_until,
                "started_at": started_at,
                "next_in": next_in,
                "next_in_with_push": next_in_with_push,
                "wants_push": wants_push,
                "held_back_ids": held_back.ids if held_back else None,
                "held_back_since": held_back.since if held_back else None,
                "cursor_expired_at": cursor_expired_at,
            },
        )
    ).one()
    return Settled(*row)


_ASKED_IN_TRIAL = "(sync_trial AND state = 'disconnected' AND next_sync_at <> lease_until)"

_SETTLE_FAILURE = text(
    f"""
    UPDATE calendars
    SET state = CASE WHEN :disconnects THEN 'disconnected' ELSE state END,
        connection_failure_data = CASE WHEN :disconnects THEN CAST(:failure_data AS jsonb)
                                       ELSE connection_failure_data END,
        updated_at = CASE WHEN :disconnects THEN clock_timestamp() ELSE updated_at END,
        last_attempted_sync_at = :started_at,
        sync_failing_since = coalesce(sync_failing_since, :started_at),
        sync_failure_count = CASE WHEN :is_forced AND sync_failure_count > 0 THEN sync_failure_count
                                  ELSE sync_failure_count + 1 END,
        sync_failure_code = :code, sync_failure_message = :message,
        sync_failure_code_since = :code_since, sync_failure_code_count = :code_count,
        outage_scope = :outage_scope, sync_forced_before = NULL,
        push_due_at = CASE WHEN :disconnects THEN NULL ELSE push_due_at END,
        -- The retry serves what was requested meanwhile: notifications must not cut the backoff short.
        -- Only the trial of a disconnected calendar ends, so a request that came meanwhile leads to one more.
        next_sync_at = CASE WHEN {_ASKED_IN_TRIAL} AND :ends_trial THEN next_sync_at
                            ELSE clock_timestamp() + :next_in END,
        sync_forced = false,
        sync_trial = {_ASKED_IN_TRIAL} OR (sync_trial AND state = 'disconnected' AND NOT :ends_trial),
        {_RELEASE}
    WHERE id = :calendar_id
    {_SETTLED_COLUMNS}
    """  # noqa: S608 - constants
).bindparams(bindparam("code_since", type_=DateTime(timezone=True)))


async def settle_failure(
    session: Session,
    claim: Claim,
    *,
    code: str,
    message: str,
    code_since: datetime | None,
    code_count: int,
    is_forced: bool,
    outage_scope: str | None,
    started_at: datetime,
    next_in: timedelta,
    failure_data: str | None,
    ends_trial: bool = False,
) -> Settled:
    """Store the failure and give the lease back; the cursor stays.

    `failure_data`: JSON text of `connection_failure_data`; with it, the calendar is disconnected.
    `ends_trial`: a disconnected calendar stays so, and is not tried again unless that was requested meanwhile.
    `code_since`, `code_count`: since when, and how often in a row, syncs have failed with this code.
    `outage_scope`: set where an outage may be the cause.
    """
    row = (
        await session.execute(
            _SETTLE_FAILURE,
            {
                "calendar_id": claim.calendar_id,
                "code": code,
                "message": message,
                "code_since": code_since,
                "code_count": code_count,
                "is_forced": is_forced,
                "outage_scope": outage_scope,
                "started_at": started_at,
                "next_in": next_in,
                "disconnects": failure_data is not None,
                "failure_data": failure_data,
                "ends_trial": ends_trial,
            },
        )
    ).one()
    return Settled(*row)


# Changes that are not announced yet stay so: the next result announces them.
_PUT_OFF = text(
    """
    UPDATE calendars
    SET next_sync_at = clock_timestamp() + :next_in, sync_forced = false,
        lease_token = NULL, lease_until = NULL, outage_scope = coalesce(:outage_scope, outage_scope),
        last_attempted_sync_at = coalesce(:attempted_at, last_attempted_sync_at)
    WHERE id = :calendar_id AND lease_token = :lease_token AND (state = 'connected' OR sync_trial)
    """
).bindparams(
    bindparam("outage_scope", type_=Text()), bindparam("attempted_at", type_=DateTime(timezone=True))
)


async def put_off(
    session: Session,
    claim: Claim,
    *,
    next_in: timedelta,
    outage_scope: str | None = None,
    attempted_at: datetime | None = None,
) -> None:
    """Give the lease back without a result: no request was made, or one on behalf of all calendars.

    `outage_scope`: the calendar waits until this scope's breaker closes, `next_in` at the longest. `attempted_at`:
    when a request was made, if one was.
    """
    await session.execute(
        _PUT_OFF,
        {
            "calendar_id": claim.calendar_id,
            "lease_token": claim.lease_token,
            "next_in": next_in,
            "outage_scope": outage_scope,
            "attempted_at": attempted_at,
        },
    )


_COUNT_ALIKE = text(
    """
    SELECT count(*) FROM calendars
    WHERE outage_scope = :scope AND state = 'connected' AND sync_failure_code = :code
      AND sync_failing_since BETWEEN CAST(:since AS timestamptz) - CAST(:within AS interval)
                                 AND CAST(:since AS timestamptz) + CAST(:within AS interval)
    """
)


async def count_alike(session: Session, *, scope: str, code: str, since: datetime, within: timedelta) -> int:
    """Count the calendars of the scope that fail with this code, and began to at about this time."""
    count = await session.scalar(
        _COUNT_ALIKE, {"scope": scope, "code": code, "since": since, "within": within}
    )
    return count or 0


_COUNT_WAITING = text(
    """
    SELECT count(*) FROM (
        SELECT FROM calendars WHERE outage_scope = :scope AND state = 'connected' LIMIT :most) AS waiting
    """
)


async def count_waiting(session: Session, *, scope: str, most: int) -> int:
    """Count the connected calendars that wait for this scope, up to `most`."""
    return await session.scalar(_COUNT_WAITING, {"scope": scope, "most": most}) or 0


_GIVE_BACK = text(
    """
    UPDATE calendars
    SET next_sync_at = clock_timestamp(), sync_forced = :forced, lease_token = NULL, lease_until = NULL
    WHERE id = :calendar_id AND lease_token = :lease_token
    """
)


async def give_back(session: Session, claim: Claim) -> None:
    """Make a calendar whose sync was cut off by a shutdown due at once, for another worker."""
    await session.execute(
        _GIVE_BACK,
        {"calendar_id": claim.calendar_id, "lease_token": claim.lease_token, "forced": claim.forced},
    )
