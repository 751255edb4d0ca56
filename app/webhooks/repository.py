"""SQL of webhook subscriptions and deliveries.

Order of locks, everywhere: the subscription first, then its deliveries. Announcing locks subscriptions with
FOR KEY SHARE (so that none is deleted meanwhile), claiming with FOR NO KEY UPDATE: neither waits for the
other, and a sync's long transaction never holds up the workers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar, cast

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    CursorResult,
    Float,
    Select,
    Text,
    any_,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import defer

from app.core.db import AnySession, Session
from app.core.pagination import Cursor, Ordering, Page, page_of, seek
from app.models import Project, WebhookDelivery, WebhookSubscription

_sub = WebhookSubscription
_dlv = WebhookDelivery

Model = TypeVar("Model", WebhookSubscription, WebhookDelivery)

_NEWEST_SUBSCRIPTIONS = Ordering(
    "-created_at", _sub.created_at.expression, _sub.id.expression, descending=True
)
_NEWEST_DELIVERIES = Ordering("-created_at", _dlv.created_at.expression, _dlv.id.expression, descending=True)

_ATTEMPTS_KEPT = 50
_TEXTS = ARRAY(Text)

# What a delivery that is sent again begins with. It was asked for by name, so nothing may take its place.
_AFRESH: dict[str, Any] = {
    "status": "pending",
    "retry_count": 0,
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
    return await session.scalar(
        select(_dlv).where(_dlv.id == delivery_id).execution_options(populate_existing=True)
    )


async def requeue_since(session: Session, subscription_id: str, since: datetime) -> int:
    """The same for all deliveries since then, save those that were merged into a newer one; how many."""
    done = await session.execute(
        update(_dlv)
        .where(
            _dlv.subscription_id == subscription_id,
            _dlv.created_at >= since,
            _dlv.merged_into.is_(None),
            _is_idle(),
        )
        # Due in the order in which they came to be.
        .values(**_AFRESH, next_attempt_at=_dlv.created_at)
    )
    return cast("CursorResult[Any]", done).rowcount


async def resume_pending(session: Session, subscription_id: str) -> None:
    """Makes everything that waits for this endpoint due now, oldest first."""
    await session.execute(
        update(_dlv)
        .where(_dlv.subscription_id == subscription_id, _dlv.status == "pending", _dlv.lease_token.is_(None))
        .values(next_attempt_at=_dlv.created_at)
    )


# Delivering

# The planner may have seen these tables small, or not at all, and a cached plan outlives that: a sequential
# scan of a large outbox at every claim would be the end of it. Every step below has its index.
_USE_INDEXES = text(
    "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true)"
)

# Endpoints that have something due and a free slot. The recursion jumps from one subscription with pending
# rows to the next, so its cost is in their number and not in the number of rows; it begins behind `after`,
# goes round, and stops at `limit`: every endpoint has its turn.
_LOCK_DUE_ENDPOINTS = text(
    """
    WITH RECURSIVE behind (id) AS (
        (SELECT subscription_id FROM webhook_deliveries
         WHERE status = 'pending' AND subscription_id > :after
         ORDER BY subscription_id LIMIT 1)
      UNION ALL
        SELECT (SELECT d.subscription_id FROM webhook_deliveries d
                WHERE d.status = 'pending' AND d.subscription_id > behind.id
                ORDER BY d.subscription_id LIMIT 1)
        FROM behind WHERE behind.id IS NOT NULL
    ), before (id) AS (
        (SELECT subscription_id FROM webhook_deliveries
         WHERE status = 'pending' AND subscription_id <= :after
         ORDER BY subscription_id LIMIT 1)
      UNION ALL
        SELECT (SELECT d.subscription_id FROM webhook_deliveries d
                WHERE d.status = 'pending' AND d.subscription_id > before.id AND d.subscription_id <= :after
                ORDER BY d.subscription_id LIMIT 1)
        FROM before WHERE before.id IS NOT NULL
    )
    SELECT endpoint.*
    FROM (SELECT id FROM behind UNION ALL SELECT id FROM before) AS waiting
    CROSS JOIN LATERAL (
        SELECT s.id, s.url, s.secrets_sealed, s.failing_since IS NOT NULL AS is_failing
        FROM webhook_subscriptions s
        WHERE s.id = waiting.id
          AND s.is_active
          AND (s.paused_until IS NULL OR s.paused_until <= now())
          AND (s.failing_since IS NULL OR :probes > 0)
          AND EXISTS (SELECT FROM webhook_deliveries d
                      WHERE d.subscription_id = s.id AND d.status = 'pending' AND d.next_attempt_at <= now())
          AND (SELECT count(*) FROM webhook_deliveries d
               WHERE d.subscription_id = s.id AND d.lease_token IS NOT NULL AND d.next_attempt_at > now())
              < CASE WHEN s.failing_since IS NULL THEN :per_endpoint ELSE 1 END
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS endpoint
    LIMIT :limit
    """
)

# Of those endpoints, the oldest due rows: one of each, then the second of each, and so on.
_LEASE = text(
    """
    UPDATE webhook_deliveries AS d
    SET lease_token = :lease_token, next_attempt_at = now() + make_interval(secs => :lease_seconds)
    FROM (
        SELECT due.id
        FROM unnest(CAST(:endpoints AS text[]), CAST(:slots AS int[])) WITH ORDINALITY AS e (id, slots, place)
        CROSS JOIN LATERAL (
            SELECT oldest.id, row_number() OVER (ORDER BY oldest.next_attempt_at) AS turn
            FROM (
                SELECT p.id, p.next_attempt_at FROM webhook_deliveries p
                WHERE p.subscription_id = e.id AND p.status = 'pending' AND p.next_attempt_at <= now()
                ORDER BY p.next_attempt_at
                LIMIT least(:share, greatest(0, e.slots - (
                    SELECT count(*) FROM webhook_deliveries l
                    WHERE l.subscription_id = e.id AND l.lease_token IS NOT NULL AND l.next_attempt_at > now())))
                FOR UPDATE SKIP LOCKED
            ) AS oldest
        ) AS due
        ORDER BY due.turn, e.place
        LIMIT :limit
    ) AS picked
    WHERE d.id = picked.id
    RETURNING d.id, d.subscription_id, d.trigger, d.idempotency_key, d.body, d.retry_count
    """
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
    url: str
    secrets_sealed: bytes
    is_failing: bool


async def claim_due(
    session: Session,
    *,
    after: str,
    limit: int,
    per_endpoint: int,
    probes: int,
    lease_token: str,
    lease_seconds: float,
) -> tuple[str, list[DueDelivery]]:
    """Leases up to `limit` due deliveries, and says behind which endpoint the next claim goes on.

    At most `per_endpoint` of an endpoint are leased at a time, over all workers; one of an endpoint that is
    failing, and at most `probes` of failing endpoints in this claim.

    The endpoints are locked in one statement, their rows counted and leased in the next: that one's snapshot
    is younger than the lock, so that it sees what the lock's last holder has leased.
    """
    await session.execute(_USE_INDEXES)
    found = await session.execute(
        _LOCK_DUE_ENDPOINTS, {"after": after, "limit": limit, "per_endpoint": per_endpoint, "probes": probes}
    )
    endpoints = found.all()
    if not endpoints:
        return after, []
    failing = [endpoint.id for endpoint in endpoints if endpoint.is_failing]
    left_out = set(failing[max(0, probes) :])
    chosen = {endpoint.id: endpoint for endpoint in endpoints if endpoint.id not in left_out}
    rows = await session.execute(
        _LEASE,
        {
            "endpoints": list(chosen),
            "slots": [1 if endpoint.is_failing else per_endpoint for endpoint in chosen.values()],
            "share": -(-limit // len(chosen)),
            "limit": limit,
            "lease_token": lease_token,
            "lease_seconds": lease_seconds,
        },
    )
    leased = []
    for row in rows:
        endpoint = chosen[row.subscription_id]
        leased.append(
            DueDelivery(
                **row._mapping,  # noqa: SLF001 - the documented way to a row's names
                url=endpoint.url,
                secrets_sealed=endpoint.secrets_sealed,
                is_failing=endpoint.is_failing,
            )
        )
    return endpoints[-1].id, leased


_SETTLE = text(
    f"""
    UPDATE webhook_deliveries
    SET status = :status,
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


async def note_endpoint_success(session: Session, subscription_id: str, url: str) -> None:
    await session.execute(
        update(_sub)
        .where(_sub.id == subscription_id, _sub.url == url, _sub.failing_since.is_not(None))
        .values(failing_since=None, paused_until=None)
    )


async def note_endpoint_failure(
    session: Session, subscription_id: str, url: str, *, pause_seconds: float | None
) -> EndpointState | None:
    """The endpoint's state after a failed attempt. None where it is gone or has another URL by now."""
    pause = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, pause_seconds)
    row = (
        await session.execute(
            update(_sub)
            .where(_sub.id == subscription_id, _sub.url == url)
            .values(
                failing_since=func.coalesce(_sub.failing_since, func.now()),
                paused_until=func.greatest(_sub.paused_until, pause),
            )
            .returning(
                _sub.is_active,
                _sub.failing_since,
                func.extract("epoch", func.now() - _sub.failing_since).cast(Float),
            )
        )
    ).one_or_none()
    return EndpointState(*row) if row is not None else None


async def switch_off(session: Session, subscription_id: str, reason: str) -> None:
    await session.execute(
        update(_sub).where(_sub.id == subscription_id).values(is_active=False, disabled_reason=reason)
    )


async def delete_finished(session: Session, *, older_than_days: int, limit: int) -> int:
    """Deletes up to `limit` deliveries that ended before then; how many."""
    old = (
        select(_dlv.id)
        .where(_dlv.finished_at < func.now() - func.make_interval(0, 0, 0, older_than_days))
        .order_by(_dlv.finished_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    done = await session.execute(delete(_dlv).where(_dlv.id.in_(old)))
    return cast("CursorResult[Any]", done).rowcount
