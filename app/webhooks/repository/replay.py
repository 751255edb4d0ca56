"""Making deliveries due again: one, all since a time, or those that wait for an endpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, case, func, or_, select, text, tuple_, update

from app.core.db import AnySession, Session
from app.core.wakeups import wake_after_commit
from app.models import WebhookDelivery, WebhookSubscription
from app.webhooks.repository.lanes import call_next

_sub = WebhookSubscription
_dlv = WebhookDelivery

# How a delivery that is sent again begins. A client asked for it by its id, so no newer one may replace it.
_AFRESH: dict[str, Any] = {
    "status": "pending",
    "retry_count": 0,
    "waits": False,
    "lease_token": None,
    "finished_at": None,
    "merged_into": None,
    "can_merge": False,
}


def _is_unclaimed() -> ColumnElement[bool]:
    return or_(_dlv.lease_token.is_(None), _dlv.next_attempt_at <= func.now())


async def requeue(session: Session, delivery_id: str) -> WebhookDelivery | None:
    """Make the delivery due now, at the start of the retry schedule; one that is claimed stays as it is."""
    await session.execute(
        update(_dlv)
        .where(_dlv.id == delivery_id, _is_unclaimed())
        .values(
            **_AFRESH,
            next_attempt_at=func.now(),
            # One that is pending keeps its place in its lane. Any other goes out beside the lane.
            position=case((_dlv.status == "pending", _dlv.position)),
        )
    )
    wake_after_commit(session, "deliveries")
    return await session.scalar(
        select(_dlv).where(_dlv.id == delivery_id).execution_options(populate_existing=True)
    )


# For a `fifo` endpoint, the batch moves to the end of the lanes, in its order.
_REPLAY_BATCH = text(
    """
    WITH batch AS (
        SELECT id, created_at,
               CASE WHEN :is_fifo AND calendar_id IS NOT NULL THEN nextval('webhook_delivery_positions') END AS position
        FROM (SELECT id, created_at, calendar_id FROM webhook_deliveries
              WHERE subscription_id = :endpoint_id
                AND (created_at, id) > (:after_time, :after_id) AND created_at <= :until
              ORDER BY created_at, id
              LIMIT :limit) AS oldest
    ), requeued AS (
        UPDATE webhook_deliveries AS d
        SET status = 'pending', waits = false, retry_count = 0, lease_token = NULL, finished_at = NULL,
            can_merge = false, next_attempt_at = d.created_at,
            position = (SELECT b.position FROM batch b WHERE b.id = d.id)
        WHERE d.id = ANY (ARRAY(SELECT id FROM batch)) AND d.merged_into IS NULL AND (d.lease_token IS NULL OR d.next_attempt_at <= now())
        RETURNING d.id, d.calendar_id
    )
    SELECT (SELECT count(*) FROM batch) AS seen, (SELECT count(*) FROM requeued) AS requeued,
           (SELECT max(created_at) FROM batch) AS last_time,
           (SELECT id FROM batch ORDER BY created_at DESC, id DESC LIMIT 1) AS last_id,
           ARRAY(SELECT DISTINCT calendar_id FROM requeued WHERE calendar_id IS NOT NULL) AS calendars
    """
)


@dataclass(frozen=True, slots=True)
class ReplayBatch:
    """The result of one batch.

    `place`: (created_at, id) of its last delivery; None at the end of the replay.
    """

    requeued: int
    place: tuple[datetime, str] | None


async def replay_batch(
    session: Session,
    endpoint_id: str,
    place: tuple[datetime, str],
    until: datetime,
    limit: int,
    *,
    is_fifo: bool,
) -> ReplayBatch:
    """Make up to `limit` deliveries after `place` due now, oldest first, with a new retry schedule.

    Each is due since it was created. Deliveries that were merged into a newer one or are claimed stay as they are.
    """
    parameters = {"after_time": place[0], "after_id": place[1], "until": until, "limit": limit}
    row = (
        await session.execute(_REPLAY_BATCH, {"endpoint_id": endpoint_id, "is_fifo": is_fifo, **parameters})
    ).one()
    # What waited behind a delivery that has moved may now be the head of its lane.
    await call_next(session, [(endpoint_id, calendar_id) for calendar_id in row.calendars])
    wake_after_commit(session, "deliveries")
    return ReplayBatch(row.requeued, (row.last_time, row.last_id) if row.seen == limit else None)


async def count_replayable(
    session: AnySession, endpoint_id: str, place: tuple[datetime, str], until: datetime, most: int
) -> int:
    """Count the deliveries after `place` that a replay would send again, up to `most`."""
    found = (
        select(_dlv.id)
        .where(
            _dlv.subscription_id == endpoint_id,
            tuple_(_dlv.created_at, _dlv.id) > tuple_(*place),
            _dlv.created_at <= until,
            _dlv.merged_into.is_(None),
            _is_unclaimed(),
        )
        .limit(most)
    )
    return await session.scalar(select(func.count()).select_from(found.subquery())) or 0


# What was just attempted and failed comes last. Those that wait in a lane stay there (lanes.py).
_RESUME_BATCH = text(
    """
    UPDATE webhook_deliveries SET next_attempt_at = created_at, waits = false
    WHERE lease_token IS NULL AND id = ANY (ARRAY(
        SELECT id FROM webhook_deliveries
        WHERE subscription_id = :endpoint_id AND status = 'pending' AND next_attempt_at > now()
          AND next_attempt_at < timestamptz '9999-01-01 00:00:00+00' AND lease_token IS NULL
        ORDER BY next_attempt_at DESC
        LIMIT :limit
        FOR UPDATE
    ))
    """
)


async def resume_batch(session: Session, endpoint_id: str, limit: int) -> int:
    """Make up to `limit` deliveries that wait for this endpoint due now, oldest first; return how many."""
    done = await session.execute(_RESUME_BATCH, {"endpoint_id": endpoint_id, "limit": limit})
    wake_after_commit(session, "deliveries")
    return cast("CursorResult[Any]", done).rowcount


async def lock_requeueing(session: Session) -> WebhookSubscription | None:
    """Lock an endpoint with an unfinished replay or resumption that no other worker has locked."""
    return await session.scalar(
        select(_sub)
        .where(or_(_sub.replay_from.is_not(None), _sub.is_resuming), _sub.is_active)
        .order_by(func.random())  # a long one does not hold up the others
        .limit(1)
        .with_for_update(key_share=True, skip_locked=True)
    )


async def save_progress(session: Session, endpoint_id: str, values: Mapping[str, Any]) -> None:
    """Store the progress of an endpoint's batches; `updated_at` stays, because no client changed it."""
    await session.execute(
        update(_sub)
        .where(_sub.id == endpoint_id)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


async def database_time(session: AnySession) -> datetime:
    now: datetime = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    return now
