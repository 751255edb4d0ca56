"""Claiming due deliveries, and recording their attempts.

docs/adr/0006-webhook-outbox-and-fair-turns.md explains the walk over endpoints and the planner settings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text

from app.core.db import Session
from app.webhooks.repository import lanes
from app.webhooks.turns import ReadyEndpoint, Slots

_ATTEMPTS_KEPT = 50
_LINE_UP_AMONG = 1_000
_HEADS_AMONG = 5_000

# A plan may be cached from when the table was small, and would then scan or sort a large outbox at every claim.
# Each statement below has an index in its own order, so it needs neither.
_USE_INDEXES = text(
    "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), "
    "set_config('enable_sort', 'off', true)"
)

# The rows to write come as an array, because the planner expects few elements in one. Of a join it may expect so many
# that it reads the whole table's index.

# From now on a delivery that has become due is found through its endpoint.
_WAKE = text(
    """
    UPDATE webhook_deliveries SET waits = false
    WHERE id = ANY (ARRAY(
        SELECT id FROM webhook_deliveries
        WHERE status = 'pending' AND waits AND next_attempt_at <= now()
        ORDER BY next_attempt_at
        LIMIT :limit
        FOR UPDATE SKIP LOCKED
    ))
    """
)

# Endpoints with due deliveries and free slots, and disabled ones with due deliveries. The recursion jumps from one
# endpoint to the next, so it costs one index look-up for each endpoint with deliveries that do not wait.
# It starts after `after`, continues from the first endpoint, and stops at `limit`.
_FIND_READY = text(
    """
    WITH RECURSIVE behind (id) AS (
        (SELECT subscription_id FROM webhook_deliveries
         WHERE status = 'pending' AND NOT waits AND subscription_id > :after
         ORDER BY subscription_id LIMIT 1)
      UNION ALL
        SELECT (SELECT d.subscription_id FROM webhook_deliveries d
                WHERE d.status = 'pending' AND NOT d.waits AND d.subscription_id > behind.id
                ORDER BY d.subscription_id LIMIT 1)
        FROM behind WHERE behind.id IS NOT NULL
    ), before (id) AS (
        (SELECT subscription_id FROM webhook_deliveries
         WHERE status = 'pending' AND NOT waits AND subscription_id <= :after
         ORDER BY subscription_id LIMIT 1)
      UNION ALL
        SELECT (SELECT d.subscription_id FROM webhook_deliveries d
                WHERE d.status = 'pending' AND NOT d.waits
                  AND d.subscription_id > before.id AND d.subscription_id <= :after
                ORDER BY d.subscription_id LIMIT 1)
        FROM before WHERE before.id IS NOT NULL
    )
    SELECT endpoint.id, endpoint.project_id, endpoint.is_active, endpoint.is_slow, counted.slots,
           least(counted.due, counted.slots - counted.leased) AS room
    FROM (SELECT id FROM behind UNION ALL SELECT id FROM before) AS ready
    CROSS JOIN LATERAL (
        SELECT s.id, s.project_id, s.is_active, s.failing_since IS NOT NULL OR s.is_slow AS is_slow,
               CASE WHEN s.failing_since IS NOT NULL THEN 1 WHEN s.is_slow THEN greatest(1, CAST(:per_endpoint AS int) / 2)
                    ELSE CAST(:per_endpoint AS int) END AS slots
        FROM webhook_subscriptions s
        WHERE s.id = ready.id
          AND (NOT s.is_active
               OR ((s.paused_until IS NULL OR s.paused_until <= now())
                   AND s.project_id <> ALL (CAST(:full_projects AS text[]))
                   AND ((s.failing_since IS NULL AND NOT s.is_slow)
                        OR s.project_id <> ALL (CAST(:projects_full_of_slow AS text[])) AND NOT :is_full_of_slow)))
        OFFSET 0
    ) AS endpoint
    CROSS JOIN LATERAL (
        SELECT endpoint.slots,
               (SELECT count(*) FROM (SELECT FROM webhook_deliveries d
                                      WHERE d.subscription_id = endpoint.id AND d.status = 'pending'
                                        AND NOT d.waits AND d.next_attempt_at <= now()
                                      LIMIT :per_endpoint) AS few) AS due,
               (SELECT count(*) FROM webhook_deliveries d
                WHERE d.subscription_id = endpoint.id AND d.lease_token IS NOT NULL
                  AND d.next_attempt_at > now()) AS leased
    ) AS counted
    WHERE counted.due > 0 AND counted.leased < counted.slots
    LIMIT :limit
    """
)

_LOCK_ENDPOINTS = text(
    """
    SELECT s.id, s.project_id, s.url, s.secrets_sealed, s.failing_since IS NOT NULL AS is_failing, s.is_slow,
           EXISTS (SELECT FROM webhook_deliveries l
                   WHERE l.subscription_id = s.id AND l.status = 'pending' AND l.position IS NOT NULL) AS has_lanes
    FROM webhook_subscriptions s
    WHERE s.id = ANY (CAST(:ids AS text[])) AND s.is_active
      AND (s.paused_until IS NULL OR s.paused_until <= now())
    FOR NO KEY UPDATE SKIP LOCKED
    """
)

# The oldest due deliveries of each endpoint: as many as it was given and has free slots for.
_CLAIM_SQL = """
    UPDATE webhook_deliveries AS d
    SET lease_token = :lease_token, next_attempt_at = now() + make_interval(secs => :lease_seconds)
    WHERE d.id = ANY (ARRAY(
        SELECT oldest.id
        FROM unnest(CAST(:endpoints AS text[]), CAST(:given AS int[]), CAST(:slots AS int[])) AS e (id, given, slots)
        CROSS JOIN LATERAL (
            SELECT p.id FROM webhook_deliveries p
            WHERE p.subscription_id = e.id AND p.status = 'pending' AND NOT p.waits AND p.next_attempt_at <= now(){}
            ORDER BY p.next_attempt_at
            LIMIT least(e.given, greatest(0, e.slots - (
                SELECT count(*) FROM webhook_deliveries l
                WHERE l.subscription_id = e.id AND l.lease_token IS NOT NULL AND l.next_attempt_at > now())))
            FOR UPDATE SKIP LOCKED
        ) AS oldest
    ))
    RETURNING d.id, d.subscription_id AS endpoint_id, d.trigger, d.idempotency_key, d.body, d.retry_count
"""
_CLAIM = text(_CLAIM_SQL.format(""))

# Of a lane, only the head. It looks among the oldest: however many are due behind a head, each claim lines up some.
_CLAIM_HEADS = text(
    _CLAIM_SQL.format(
        f"""
              AND p.next_attempt_at <= coalesce((
                  SELECT o.next_attempt_at FROM webhook_deliveries o
                  WHERE o.subscription_id = e.id AND o.status = 'pending' AND NOT o.waits AND o.next_attempt_at <= now()
                  ORDER BY o.next_attempt_at OFFSET {_HEADS_AMONG} LIMIT 1), now())
              AND (p.position IS NULL
                   OR p.id = (SELECT h.id FROM webhook_deliveries h
                              WHERE h.subscription_id = p.subscription_id AND h.calendar_id = p.calendar_id
                                AND h.status = 'pending' AND h.position IS NOT NULL
                              ORDER BY h.position LIMIT 1)
                      -- One that was committed late may have a place before one that is being sent.
                      AND NOT EXISTS (
                          SELECT FROM webhook_deliveries u
                          WHERE u.subscription_id = p.subscription_id AND u.lease_token IS NOT NULL
                            AND u.next_attempt_at > now() AND u.calendar_id = p.calendar_id
                            AND u.position IS NOT NULL))"""  # noqa: S608 - a number of ours
    )
)

_LOCK_DISABLED = text(
    """
    SELECT s.id FROM webhook_subscriptions s
    WHERE s.id = ANY (CAST(:ids AS text[])) AND NOT s.is_active
    FOR NO KEY UPDATE SKIP LOCKED
    """
)

# Claims do not see these deliveries for a day. Those that are older than finished ones are kept have failed.
_PARK = text(
    """
    UPDATE webhook_deliveries AS d
    SET (status, next_attempt_at, finished_at) = (
            SELECT CASE WHEN is_old THEN 'failed' ELSE 'pending' END,
                   CASE WHEN is_old THEN NULL ELSE now() + interval '1 day' END,
                   CASE WHEN is_old THEN now() END
            FROM (SELECT d.created_at < now() - make_interval(days => :keep_days)) AS age (is_old)),
        waits = true, lease_token = NULL
    WHERE d.id = ANY (ARRAY(
        SELECT oldest.id
        FROM unnest(CAST(:endpoints AS text[])) AS e (id)
        CROSS JOIN LATERAL (
            SELECT p.id FROM webhook_deliveries p
            WHERE p.subscription_id = e.id AND p.status = 'pending' AND NOT p.waits AND p.next_attempt_at <= now()
            ORDER BY p.next_attempt_at
            LIMIT :limit
            FOR UPDATE SKIP LOCKED
        ) AS oldest
    ))
    RETURNING d.subscription_id, d.calendar_id, d.position, d.status
    """
)


async def wake_due(session: Session, limit: int) -> None:
    """Let the next claims find up to `limit` deliveries that have become due."""
    await session.execute(_USE_INDEXES)
    await session.execute(_WAKE, {"limit": limit})


@dataclass(frozen=True, slots=True)
class ReadyEndpoints:
    """Endpoints with due deliveries.

    `slots`: how many deliveries each may have under way over all workers.

    `after`: the endpoint after which the next call continues.
    """

    endpoints: list[ReadyEndpoint]
    slots: dict[str, int]
    disabled: list[str]
    after: str


async def find_ready(
    session: Session, *, after: str, limit: int, per_endpoint: int, held: Slots
) -> ReadyEndpoints:
    """Find up to `limit` endpoints that may get a slot now, from `after` on and then from the first.

    Locks nothing.
    """
    rows = (
        await session.execute(
            _FIND_READY,
            {
                "after": after,
                "limit": limit,
                "per_endpoint": per_endpoint,
                "full_projects": held.full_projects,
                "projects_full_of_slow": held.projects_full_of_slow,
                "is_full_of_slow": held.is_full_of_slow,
            },
        )
    ).all()
    active = [row for row in rows if row.is_active]
    return ReadyEndpoints(
        endpoints=[ReadyEndpoint(row.id, row.project_id, row.room, row.is_slow) for row in active],
        slots={row.id: row.slots for row in active},
        disabled=[row.id for row in rows if not row.is_active],
        after=rows[-1].id if len(rows) == limit else after,
    )


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """A delivery that this process has claimed, with what calling its endpoint takes."""

    id: str
    endpoint_id: str
    trigger: str
    idempotency_key: str
    body: bytes
    retry_count: int
    project_id: str
    url: str
    secrets_sealed: bytes
    is_failing: bool
    is_slow: bool


async def claim_due(
    session: Session,
    *,
    given: Mapping[str, int],
    slots: Mapping[str, int],
    lease_token: str,
    lease_seconds: float,
) -> list[DueDelivery]:
    """Claim the oldest due deliveries of each endpoint: as many as it is `given`.

    No endpoint has more than its `slots` claimed at a time over all workers. One statement locks the endpoints, the
    next one counts and claims: its snapshot is younger than the lock, so it sees what the last holder has claimed.
    Endpoints with lanes have a statement of their own, so that they cost the others nothing.
    """
    locked = {row.id: row for row in await session.execute(_LOCK_ENDPOINTS, {"ids": list(given)})}
    rows: list[Row[Any]] = []
    for statement, endpoints in (
        (_CLAIM, [row for row in locked.values() if not row.has_lanes]),
        (_CLAIM_HEADS, [row for row in locked.values() if row.has_lanes]),
    ):
        if not endpoints:
            continue
        if statement is _CLAIM_HEADS:
            await lanes.line_up(session, [row.id for row in endpoints], limit=_LINE_UP_AMONG)
        values = {
            "endpoints": [row.id for row in endpoints],
            "given": [given[row.id] for row in endpoints],
            "slots": [1 if row.is_failing else slots[row.id] for row in endpoints],
            "lease_token": lease_token,
            "lease_seconds": lease_seconds,
        }
        rows += await session.execute(statement, values)
    claimed = []
    for row in rows:
        endpoint = locked[row.endpoint_id]
        claimed.append(
            DueDelivery(
                **row._mapping,  # noqa: SLF001 - the documented way to a row's names
                project_id=endpoint.project_id,
                url=endpoint.url,
                secrets_sealed=endpoint.secrets_sealed,
                is_failing=endpoint.is_failing,
                is_slow=endpoint.is_slow,
            )
        )
    return claimed


async def park_disabled(session: Session, ids: Sequence[str], *, keep_days: int, limit: int) -> None:
    """Hide up to `limit` due deliveries of each disabled endpoint from claims for a day.

    Those that are older than `keep_days` become `failed`.
    """
    disabled = (await session.scalars(_LOCK_DISABLED, {"ids": list(ids)})).all()
    if disabled:
        values = {"endpoints": list(disabled), "keep_days": keep_days, "limit": limit}
        ended = {
            (row.subscription_id, row.calendar_id)
            for row in await session.execute(_PARK, values)
            if row.status == "failed" and row.position is not None
        }
        await lanes.call_next(session, ended)


_RECORD_ATTEMPT = text(
    f"""
    UPDATE webhook_deliveries
    SET status = :status,
        waits = true,
        next_attempt_at = now() + make_interval(secs => CAST(:next_in_seconds AS double precision)),
        finished_at = CASE WHEN :status = 'pending' THEN NULL ELSE now() END,
        retry_count = retry_count + CASE WHEN :status = 'pending' THEN 1 ELSE 0 END,
        lease_token = NULL,
        attempts = CASE WHEN jsonb_array_length(attempts) < {_ATTEMPTS_KEPT} THEN attempts ELSE attempts - 0 END
                   || CAST(:attempt AS jsonb)
    WHERE id = :id AND lease_token = :lease_token
    RETURNING subscription_id, calendar_id, position
    """  # noqa: S608 - a number of ours
)


async def record_attempt(
    session: Session,
    delivery_id: str,
    *,
    lease_token: str,
    status: str,
    next_in_seconds: float | None,
    attempt: str,
) -> bool:
    """Record an attempt (JSON text) and give the lease back; return False if the lease is lost.

    `next_in_seconds` is None unless `status` is pending.
    """
    values = {
        "id": delivery_id,
        "lease_token": lease_token,
        "status": status,
        "next_in_seconds": next_in_seconds,
        "attempt": attempt,
    }
    recorded = (await session.execute(_RECORD_ATTEMPT, values)).one_or_none()
    if recorded is None:
        return False
    if recorded.position is not None and status != "pending":
        await lanes.call_next(session, [(recorded.subscription_id, recorded.calendar_id)])
    return True
