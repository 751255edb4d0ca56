"""SQL of webhook subscriptions and deliveries.

Order of locks, everywhere: the subscription first, then its deliveries. Announcing locks subscriptions with
FOR KEY SHARE (so that none is deleted meanwhile), claiming with FOR NO KEY UPDATE: neither waits for the
other, and a sync's long transaction never holds up the workers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    CursorResult,
    Float,
    Select,
    Text,
    any_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.orm import defer

from app.core.db import AnySession, Session
from app.core.pagination import Cursor, Ordering, Page, page_of, seek
from app.core.wakeups import wake_after_commit
from app.models import Project, WebhookDelivery, WebhookSubscription
from app.webhooks.turns import ReadyEndpoint, Slots

_sub = WebhookSubscription
_dlv = WebhookDelivery

Model = TypeVar("Model", WebhookSubscription, WebhookDelivery)

_NEWEST_SUBSCRIPTIONS = Ordering(
    "-created_at", _sub.created_at.expression, _sub.id.expression, descending=True
)
_NEWEST_DELIVERIES = Ordering("-created_at", _dlv.created_at.expression, _dlv.id.expression, descending=True)

_ATTEMPTS_KEPT = 50
# Failures that are further apart count as two days of failing; the schedule's long waits are about as long.
_FAILING_DAY = timedelta(hours=20)
_TEXTS = ARRAY(Text)

# What a delivery that is sent again begins with. It was asked for by name, so nothing may take its place.
_AFRESH: dict[str, Any] = {
    "status": "pending",
    "retry_count": 0,
    "waits": False,
    "lease_token": None,
    "finished_at": None,
    "merged_into": None,
    "can_merge": False,
}


def _is_idle() -> ColumnElement[bool]:
    """No worker has the delivery under way."""
    return or_(_dlv.lease_token.is_(None), _dlv.next_attempt_at <= func.now())


async def _page(
    session: AnySession, statement: Select[Model], ordering: Ordering, cursor: str | None, limit: int
) -> Page[Model]:
    place = Cursor.decode(cursor, ordering=ordering.name) if cursor is not None else None
    rows = (await session.scalars(seek(statement, ordering, place, limit))).all()
    return page_of(rows, ordering, place, limit, place=lambda row: (row.created_at, row.id))


# Subscriptions


async def count_subscriptions(session: Session, project_id: str) -> int:
    """How many the project has. Holds off others that are about to add one, until this transaction ends."""
    await session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))
    return await session.scalar(select(func.count()).where(_sub.project_id == project_id)) or 0


async def insert_subscription(session: Session, values: Mapping[str, Any]) -> WebhookSubscription:
    inserted = await session.execute(insert(_sub).values(**values).returning(_sub))
    return inserted.scalar_one()


async def list_subscriptions(
    session: AnySession, project_id: str, cursor: str | None, limit: int
) -> Page[WebhookSubscription]:
    """Newest first. Raises BadQuery for a bad cursor."""
    statement = select(_sub).where(_sub.project_id == project_id)
    return await _page(session, statement, _NEWEST_SUBSCRIPTIONS, cursor, limit)


async def find_subscription(
    session: AnySession, project_id: str, subscription_id: str
) -> WebhookSubscription | None:
    return await session.scalar(select(_sub).where(_sub.id == subscription_id, _sub.project_id == project_id))


async def lock_subscription(
    session: Session, project_id: str, subscription_id: str
) -> WebhookSubscription | None:
    """The row, locked against other changes until this transaction ends."""
    return await session.scalar(
        select(_sub)
        .where(_sub.id == subscription_id, _sub.project_id == project_id)
        .with_for_update(key_share=True)
    )


async def update_subscription(
    session: Session, subscription_id: str, values: Mapping[str, Any]
) -> WebhookSubscription:
    updated = await session.execute(
        update(_sub)
        .where(_sub.id == subscription_id)
        .values(**values, updated_at=func.clock_timestamp())
        .returning(_sub)
        .execution_options(populate_existing=True)
    )
    return updated.scalar_one()


async def delete_subscription(session: Session, project_id: str, subscription_id: str) -> bool:
    """Whether there was one. Its deliveries go with it."""
    deleted = await session.scalar(
        delete(_sub).where(_sub.id == subscription_id, _sub.project_id == project_id).returning(_sub.id)
    )
    return deleted is not None


# Announcing


@dataclass(frozen=True, slots=True)
class Subscriber:
    id: str
    include_events: bool


@dataclass(frozen=True, slots=True)
class Mergeable:
    """An undelivered message that a newer one may replace. `attempted`: the endpoint may have seen it."""

    id: str
    subscription_id: str
    body: bytes
    attempted: bool


async def lock_subscribers(session: Session, project_id: str, trigger: str) -> list[Subscriber]:
    """The active subscriptions to `trigger`, which cannot be deleted until this transaction ends."""
    rows = await session.execute(
        select(_sub.id, _sub.include_events)
        .where(
            _sub.project_id == project_id, _sub.is_active, literal(trigger) == any_(_sub.triggers.expression)
        )
        .order_by(_sub.id)
        .with_for_update(read=True, key_share=True)
    )
    return [Subscriber(*row) for row in rows]


async def wants_events(session: AnySession, project_id: str, trigger: str) -> bool:
    wanted = await session.scalar(
        select(
            exists().where(
                _sub.project_id == project_id,
                _sub.is_active,
                _sub.include_events,
                literal(trigger) == any_(_sub.triggers.expression),
            )
        )
    )
    return bool(wanted)


async def lock_mergeable(
    session: Session, calendar_id: str, subscription_ids: Sequence[str]
) -> list[Mergeable]:
    """What waits for those endpoints about this calendar, oldest first; nothing that a worker has claimed."""
    rows = await session.execute(
        select(_dlv.id, _dlv.subscription_id, _dlv.body, func.jsonb_array_length(_dlv.attempts) > 0)
        .where(
            _dlv.calendar_id == calendar_id,
            _dlv.subscription_id == any_(literal(subscription_ids, _TEXTS)),
            _dlv.status == "pending",
            _dlv.can_merge,
            _dlv.lease_token.is_(None),
        )
        .order_by(_dlv.created_at, _dlv.id)
        .with_for_update(skip_locked=True)
    )
    return [Mergeable(*row) for row in rows]


async def insert_deliveries(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Pending deliveries that are due at once."""
    values = [{**row, "next_attempt_at": func.clock_timestamp()} for row in rows]
    await session.execute(insert(_dlv).values(values))
    wake_after_commit(session, "deliveries")


async def close_merged(session: Session, merged_into: Mapping[str, str]) -> None:
    """Ends attempted deliveries whose content another one has taken over: {older id: newer id}."""
    await session.execute(
        text(
            """
            UPDATE webhook_deliveries AS d
            SET status = 'failed', next_attempt_at = NULL, finished_at = now(), merged_into = m.newer
            FROM unnest(CAST(:older AS text[]), CAST(:newer AS text[])) AS m (older, newer)
            WHERE d.id = m.older
            """
        ),
        {"older": list(merged_into), "newer": list(merged_into.values())},
    )


async def delete_deliveries(session: Session, ids: Sequence[str]) -> None:
    await session.execute(delete(_dlv).where(_dlv.id.in_(ids)))


async def delete_pending_of_calendar(session: Session, calendar_id: str) -> None:
    await session.execute(delete(_dlv).where(_dlv.calendar_id == calendar_id, _dlv.status == "pending"))


# Log and replay


async def list_deliveries(
    session: AnySession, subscription_id: str, *, status: str | None, cursor: str | None, limit: int
) -> Page[WebhookDelivery]:
    """Newest first. Raises BadQuery for a bad cursor."""
    statement = (
        select(_dlv).where(_dlv.subscription_id == subscription_id).options(defer(_dlv.body, raiseload=True))
    )
    if status is not None:
        # Literal, so that the planner knows when a partial index fits.
        statement = statement.where(_dlv.status == literal(status, literal_execute=True))
    return await _page(session, statement, _NEWEST_DELIVERIES, cursor, limit)


async def find_delivery(session: AnySession, project_id: str, delivery_id: str) -> WebhookDelivery | None:
    """The delivery with its body, if it is of this project."""
    return await session.scalar(
        select(_dlv)
        .join(_sub, _sub.id == _dlv.subscription_id)
        .where(_dlv.id == delivery_id, _sub.project_id == project_id)
    )


async def find_subscription_of(session: AnySession, project_id: str, delivery_id: str) -> str | None:
    """The id of the subscription that a delivery of this project belongs to."""
    return await session.scalar(
        select(_sub.id)
        .join(_dlv, _dlv.subscription_id == _sub.id)
        .where(_dlv.id == delivery_id, _sub.project_id == project_id)
    )


async def requeue(session: Session, delivery_id: str) -> WebhookDelivery | None:
    """Makes the delivery due now, with the whole retry schedule before it.

    One that a worker has under way is left as it is: it is being attempted now.
    """
    await session.execute(
        update(_dlv).where(_dlv.id == delivery_id, _is_idle()).values(**_AFRESH, next_attempt_at=func.now())
    )
    wake_after_commit(session, "deliveries")
    return await session.scalar(
        select(_dlv).where(_dlv.id == delivery_id).execution_options(populate_existing=True)
    )


_REPLAY_BATCH = text(
    """
    WITH batch AS (
        SELECT id, created_at FROM webhook_deliveries
        WHERE subscription_id = :subscription_id
          AND (created_at, id) > (:after_time, :after_id) AND created_at <= :until
        ORDER BY created_at, id
        LIMIT :limit
    ), requeued AS (
        UPDATE webhook_deliveries AS d
        SET status = 'pending', waits = false, retry_count = 0, lease_token = NULL, finished_at = NULL,
            can_merge = false, next_attempt_at = d.created_at
        WHERE d.id = ANY (ARRAY(SELECT id FROM batch)) AND d.merged_into IS NULL AND (d.lease_token IS NULL OR d.next_attempt_at <= now())
        RETURNING d.id
    )
    SELECT (SELECT count(*) FROM batch), (SELECT count(*) FROM requeued),
           (SELECT max(created_at) FROM batch), (SELECT id FROM batch ORDER BY created_at DESC, id DESC LIMIT 1)
    """
)


@dataclass(frozen=True, slots=True)
class ReplayBatch:
    """What one batch did, and the place behind it: None where no delivery is left."""

    requeued: int
    place: tuple[datetime, str] | None


async def replay_batch(
    session: Session, subscription_id: str, place: tuple[datetime, str], until: datetime, limit: int
) -> ReplayBatch:
    """Makes up to `limit` deliveries behind `place` due now, each with the whole retry schedule before it.

    Oldest first: each is due since it came to be. Left as they are: those that were merged into a newer one, and
    those that a worker has under way.
    """
    parameters = {"after_time": place[0], "after_id": place[1], "until": until, "limit": limit}
    seen, requeued, last_time, last_id = (
        await session.execute(_REPLAY_BATCH, {"subscription_id": subscription_id, **parameters})
    ).one()
    wake_after_commit(session, "deliveries")
    return ReplayBatch(requeued, (last_time, last_id) if seen == limit else None)


async def count_replayable(
    session: AnySession, subscription_id: str, place: tuple[datetime, str], until: datetime, most: int
) -> int:
    """How many deliveries behind `place` a replay would send again; counts up to `most`."""
    found = (
        select(_dlv.id)
        .where(
            _dlv.subscription_id == subscription_id,
            tuple_(_dlv.created_at, _dlv.id) > tuple_(*place),
            _dlv.created_at <= until,
            _dlv.merged_into.is_(None),
            _is_idle(),
        )
        .limit(most)
    )
    return await session.scalar(select(func.count()).select_from(found.subquery())) or 0


# What was just attempted and failed comes last.
_RESUME_BATCH = text(
    """
    UPDATE webhook_deliveries SET next_attempt_at = created_at, waits = false
    WHERE lease_token IS NULL AND id = ANY (ARRAY(
        SELECT id FROM webhook_deliveries
        WHERE subscription_id = :subscription_id AND status = 'pending' AND next_attempt_at > now()
          AND lease_token IS NULL
        ORDER BY next_attempt_at DESC
        LIMIT :limit
        FOR UPDATE
    ))
    """
)


async def resume_batch(session: Session, subscription_id: str, limit: int) -> int:
    """Makes up to `limit` deliveries that wait for this endpoint due now, oldest first; how many."""
    done = await session.execute(_RESUME_BATCH, {"subscription_id": subscription_id, "limit": limit})
    wake_after_commit(session, "deliveries")
    return cast("CursorResult[Any]", done).rowcount


async def lock_requeueing(session: Session) -> WebhookSubscription | None:
    """A subscription whose replay or resumption is not at its end, and that no other worker has."""
    return await session.scalar(
        select(_sub)
        .where(or_(_sub.replay_from.is_not(None), _sub.is_resuming), _sub.is_active)
        .order_by(func.random())  # a long one does not hold up the others
        .limit(1)
        .with_for_update(key_share=True, skip_locked=True)
    )


async def keep_requeueing(session: Session, subscription_id: str, values: Mapping[str, Any]) -> None:
    """Where the batches of a subscription are: not a change that `updated_at` tells of."""
    await session.execute(
        update(_sub)
        .where(_sub.id == subscription_id)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


async def database_time(session: AnySession) -> datetime:
    now: datetime = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    return now


# Delivering

# The planner may have seen these tables small, or not at all, and a cached plan outlives that: a sequential
# scan of a large outbox at every claim would be the end of it. Every step below has its index, in its order: without
# sorting, none of the other indexes of pending rows looks cheaper.
_USE_INDEXES = text(
    "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), "
    "set_config('enable_sort', 'off', true)"
)

# The rows to write come as an array: of one the planner expects few, while of a join it may expect so many that it
# reads the whole table's index.

# A delivery whose time has come is found by its endpoint from now on.
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

# Endpoints that have something due and room for it, and those that are switched off. The recursion jumps from one
# subscription with rows that do not wait to the next, so its cost is in the number of endpoints that have
# something to do now. It begins behind `after`, goes round, and stops at `limit`.
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
    SELECT s.id, s.project_id, s.url, s.secrets_sealed, s.failing_since IS NOT NULL AS is_failing, s.is_slow
    FROM webhook_subscriptions s
    WHERE s.id = ANY (CAST(:ids AS text[])) AND s.is_active
      AND (s.paused_until IS NULL OR s.paused_until <= now())
    FOR NO KEY UPDATE SKIP LOCKED
    """
)

# The oldest due rows of each of those endpoints: as many as it was given, and has slots for.
_LEASE = text(
    """
    UPDATE webhook_deliveries AS d
    SET lease_token = :lease_token, next_attempt_at = now() + make_interval(secs => :lease_seconds)
    WHERE d.id = ANY (ARRAY(
        SELECT oldest.id
        FROM unnest(CAST(:endpoints AS text[]), CAST(:given AS int[]), CAST(:slots AS int[])) AS e (id, given, slots)
        CROSS JOIN LATERAL (
            SELECT p.id FROM webhook_deliveries p
            WHERE p.subscription_id = e.id AND p.status = 'pending' AND NOT p.waits AND p.next_attempt_at <= now()
            ORDER BY p.next_attempt_at
            LIMIT least(e.given, greatest(0, e.slots - (
                SELECT count(*) FROM webhook_deliveries l
                WHERE l.subscription_id = e.id AND l.lease_token IS NOT NULL AND l.next_attempt_at > now())))
            FOR UPDATE SKIP LOCKED
        ) AS oldest
    ))
    RETURNING d.id, d.subscription_id, d.trigger, d.idempotency_key, d.body, d.retry_count
    """
)

_LOCK_INACTIVE = text(
    """
    SELECT s.id FROM webhook_subscriptions s
    WHERE s.id = ANY (CAST(:ids AS text[])) AND NOT s.is_active
    FOR NO KEY UPDATE SKIP LOCKED
    """
)

# Out of the way of the claims for a day; and given up once they are as old as finished ones are kept.
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
    """
)


async def wake_due(session: Session, limit: int) -> None:
    """Lets the next claims find up to `limit` deliveries whose time has come."""
    await session.execute(_USE_INDEXES)
    await session.execute(_WAKE, {"limit": limit})


@dataclass(frozen=True, slots=True)
class ReadyEndpoints:
    """What a walk found, as turns.py wants it; `slots`: how many deliveries each may have under way."""

    endpoints: list[ReadyEndpoint]
    slots: dict[str, int]
    switched_off: list[str]
    after: str


async def find_ready(
    session: Session, *, after: str, limit: int, per_endpoint: int, held: Slots
) -> ReadyEndpoints:
    """Endpoints that may get a slot now, behind `after` and then from the start, at most `limit`.

    The answer's `after` is where the next walk goes on. Nothing is locked.
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
        switched_off=[row.id for row in rows if not row.is_active],
        after=rows[-1].id if len(rows) == limit else after,
    )


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """A delivery that this process now holds the lease of."""

    id: str
    subscription_id: str
    trigger: str
    idempotency_key: str
    body: bytes
    retry_count: int
    project_id: str
    url: str
    secrets_sealed: bytes
    is_failing: bool
    is_slow: bool


async def lease_due(
    session: Session,
    *,
    given: Mapping[str, int],
    slots: Mapping[str, int],
    lease_token: str,
    lease_seconds: float,
) -> list[DueDelivery]:
    """Leases the oldest due deliveries of each endpoint: as many as it is `given`.

    Over all workers no endpoint has more than its `slots` leased at a time. The endpoints are locked in one
    statement, their rows counted and leased in the next: that one's snapshot is younger than the lock, so that it
    sees what the lock's last holder has leased.
    """
    locked = {row.id: row for row in await session.execute(_LOCK_ENDPOINTS, {"ids": list(given)})}
    if not locked:
        return []
    rows = await session.execute(
        _LEASE,
        {
            "endpoints": list(locked),
            "given": [given[endpoint] for endpoint in locked],
            "slots": [1 if row.is_failing else slots[row.id] for row in locked.values()],
            "lease_token": lease_token,
            "lease_seconds": lease_seconds,
        },
    )
    leased = []
    for row in rows:
        endpoint = locked[row.subscription_id]
        leased.append(
            DueDelivery(
                **row._mapping,  # noqa: SLF001 - the documented way to a row's names
                project_id=endpoint.project_id,
                url=endpoint.url,
                secrets_sealed=endpoint.secrets_sealed,
                is_failing=endpoint.is_failing,
                is_slow=endpoint.is_slow,
            )
        )
    return leased


async def park_switched_off(session: Session, ids: Sequence[str], *, keep_days: int, limit: int) -> None:
    """Takes up to `limit` due deliveries of each endpoint that is switched off out of the claims' way.

    Those that are older than `keep_days` are given up.
    """
    off = (await session.scalars(_LOCK_INACTIVE, {"ids": list(ids)})).all()
    if off:
        await session.execute(_PARK, {"endpoints": list(off), "keep_days": keep_days, "limit": limit})


_SETTLE = text(
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
    RETURNING id
    """  # noqa: S608 - a number of ours
)


async def settle(
    session: Session,
    delivery_id: str,
    *,
    lease_token: str,
    status: str,
    next_in_seconds: float | None,
    attempt: str,
) -> bool:
    """Records an attempt (JSON text) and what comes next; `next_in_seconds` is None unless `status` is pending.

    False where the lease is no longer ours: another worker has it now, or the row is gone.
    """
    settled = await session.scalar(
        _SETTLE,
        {
            "id": delivery_id,
            "lease_token": lease_token,
            "status": status,
            "next_in_seconds": next_in_seconds,
            "attempt": attempt,
        },
    )
    return settled is not None


@dataclass(frozen=True, slots=True)
class EndpointState:
    is_active: bool
    failing_since: datetime
    failing_for_seconds: float
    failing_days: int


async def note_endpoint_success(session: Session, subscription_id: str, url: str) -> None:
    await session.execute(
        update(_sub)
        .where(_sub.id == subscription_id, _sub.url == url, _sub.failing_since.is_not(None))
        .values(failing_since=None, failing_days=0, failing_day_at=None, paused_until=None)
    )


async def set_endpoint_slow(session: Session, subscription_id: str, url: str, is_slow: bool) -> None:
    await session.execute(
        update(_sub).where(_sub.id == subscription_id, _sub.url == url).values(is_slow=is_slow)
    )


async def note_endpoint_failure(
    session: Session, subscription_id: str, url: str, *, pause_seconds: float | None
) -> EndpointState | None:
    """The endpoint's state after a failed attempt. None where it is gone or has another URL by now."""
    pause = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, pause_seconds)
    is_first = _sub.failing_since.is_(None)
    is_new_day = or_(is_first, func.coalesce(_sub.failing_day_at <= func.now() - _FAILING_DAY, True))
    row = (
        await session.execute(
            update(_sub)
            .where(_sub.id == subscription_id, _sub.url == url)
            .values(
                failing_since=func.coalesce(_sub.failing_since, func.now()),
                failing_days=case(
                    (is_first, 1), (is_new_day, _sub.failing_days + 1), else_=_sub.failing_days
                ),
                failing_day_at=case((is_new_day, func.now()), else_=_sub.failing_day_at),
                paused_until=func.greatest(_sub.paused_until, pause),
            )
            .returning(
                _sub.is_active,
                _sub.failing_since,
                func.extract("epoch", func.now() - _sub.failing_since).cast(Float),
                _sub.failing_days,
            )
        )
    ).one_or_none()
    return EndpointState(*row) if row is not None else None


async def switch_off(session: Session, subscription_id: str, reason: str) -> None:
    await session.execute(
        update(_sub).where(_sub.id == subscription_id).values(is_active=False, disabled_reason=reason)
    )


@dataclass(frozen=True, slots=True)
class EndpointBacklog:
    """The unfinished and failed deliveries of one endpoint. The counts are explained in app/core/backlog.py."""

    subscription_id: str
    project_id: str
    url: str
    is_active: bool
    failing_since: datetime | None
    paused_until: datetime | None
    pending: int
    in_flight: int
    failed: int
    failed_last_day: int
    oldest_at: datetime | None
    next_attempt_at: datetime | None


# A merged delivery is closed as `failed`, but the newer one carries its changes: nothing failed.
_BACKLOG = text(
    """
    SELECT s.id, s.project_id, s.url, s.is_active, s.failing_since, s.paused_until,
           count(*) FILTER (WHERE d.status = 'pending') AS pending,
           count(*) FILTER (WHERE d.lease_token IS NOT NULL AND d.next_attempt_at > now()) AS in_flight,
           count(*) FILTER (WHERE d.status = 'failed') AS failed,
           count(*) FILTER (WHERE d.status = 'failed' AND d.finished_at > now() - interval '1 day') AS failed_last_day,
           min(d.created_at) FILTER (WHERE d.status = 'pending') AS oldest_at,
           min(d.next_attempt_at) FILTER (
               WHERE d.lease_token IS NULL OR d.next_attempt_at <= now()) AS next_attempt_at
    FROM webhook_deliveries d JOIN webhook_subscriptions s ON s.id = d.subscription_id
    WHERE d.status IN ('pending', 'failed') AND d.merged_into IS NULL
      AND (CAST(:project_id AS text) IS NULL OR s.project_id = :project_id)
    GROUP BY s.id
    """
)
_LAST_ERRORS = text(
    """
    SELECT given.id, failing.attempts -> -1 ->> 'error'
    FROM unnest(:ids) AS given (id)
    CROSS JOIN LATERAL (
        SELECT d.attempts FROM webhook_deliveries d
        WHERE d.subscription_id = given.id AND d.status IN ('pending', 'failed') AND d.attempts <> '[]'
        ORDER BY d.created_at DESC, d.id DESC LIMIT 1) AS failing
    """
).bindparams(bindparam("ids", type_=_TEXTS))


async def list_backlogs(session: AnySession, project_id: str | None) -> list[EndpointBacklog]:
    """Every endpoint that has unfinished or failed deliveries; of one project, or of all."""
    return [EndpointBacklog(*row) for row in await session.execute(_BACKLOG, {"project_id": project_id})]


async def find_last_errors(session: AnySession, subscription_ids: Sequence[str]) -> dict[str, str | None]:
    """Endpoint id -> the error of the last attempt of its newest delivery that has failed so far."""
    rows = await session.execute(_LAST_ERRORS, {"ids": list(subscription_ids)})
    return {row[0]: row[1] for row in rows}
