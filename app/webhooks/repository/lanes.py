"""Lanes: the pending messages about one calendar for one `fifo` endpoint, in the order of `position`.

Only the first of a lane, its head, is sent. Those behind it wait with the time `IN_LINE`, under which no claim finds
them. A message is written as due; the claim that meets it behind another one makes it wait. What ends, merges or
moves a head calls `call_next` afterwards in the same transaction. docs/adr/0009-lanes-of-webhooks.md has the proof.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from sqlalchemy import text

from app.core.db import Session, Sessions, transaction
from app.core.wakeups import wake_after_commit

# A time that never comes: it is not due for this release or the one before.
IN_LINE = datetime(9999, 1, 1, tzinfo=UTC)
_IN_LINE = "timestamptz '9999-01-01 00:00:00+00'"

# Due deliveries with another one of their lane before them, by the head. OFFSET 0: the head is looked up once.
_BEHIND = """
    FROM unnest(CAST(:endpoints AS text[])) AS e (id)
    CROSS JOIN LATERAL (
        SELECT p.id, p.subscription_id, p.calendar_id, p.position FROM webhook_deliveries p
        WHERE p.subscription_id = e.id AND p.status = 'pending' AND NOT p.waits AND p.next_attempt_at <= now()
        ORDER BY p.next_attempt_at
        LIMIT :limit
    ) AS due
    CROSS JOIN LATERAL (
        SELECT h.id FROM webhook_deliveries h
        WHERE h.subscription_id = due.subscription_id AND h.calendar_id = due.calendar_id
          AND h.status = 'pending' AND h.position IS NOT NULL
        ORDER BY h.position
        LIMIT 1
        OFFSET 0
    ) AS head
    WHERE due.position IS NOT NULL AND head.id <> due.id
"""

_LOCK_HEADS = text(
    f"""
    SELECT id FROM webhook_deliveries
    WHERE id = ANY (ARRAY(SELECT DISTINCT head.id {_BEHIND})) AND status = 'pending'
    FOR NO KEY UPDATE SKIP LOCKED
    """  # noqa: S608 - constants
)

_LINE_UP = text(
    f"""
    UPDATE webhook_deliveries SET waits = true, next_attempt_at = {_IN_LINE}, lease_token = NULL
    WHERE id = ANY (ARRAY(
        SELECT b.id FROM webhook_deliveries b
        WHERE b.id = ANY (ARRAY(SELECT due.id {_BEHIND} AND head.id = ANY (CAST(:heads AS text[]))))
          AND b.status = 'pending' AND NOT b.waits AND b.next_attempt_at <= now()
        FOR NO KEY UPDATE SKIP LOCKED))
    """  # noqa: S608 - constants
)


async def line_up(session: Session, endpoints: Sequence[str], *, limit: int) -> None:
    """Make due deliveries that are behind another one wait: of each endpoint, among the oldest `limit`.

    The caller has locked the endpoints. The heads are locked until the transaction ends, so that none of them ends
    meanwhile; a lane whose head is locked by another transaction is left for the next claim.
    """
    values = {"endpoints": list(endpoints), "limit": limit}
    heads = (await session.scalars(_LOCK_HEADS, values)).all()
    if heads:
        # In a statement of its own: its snapshot is younger than the locks.
        await session.execute(_LINE_UP, {**values, "heads": list(heads)})


_CALL_NEXT = text(
    f"""
    UPDATE webhook_deliveries SET waits = false, next_attempt_at = created_at
    WHERE id = ANY (ARRAY(
        SELECT n.id FROM webhook_deliveries n
        WHERE n.id = ANY (ARRAY(
            SELECT head.id FROM unnest(CAST(:endpoints AS text[]), CAST(:calendars AS text[])) AS l (endpoint, calendar)
            CROSS JOIN LATERAL (
                SELECT h.id FROM webhook_deliveries h
                WHERE h.subscription_id = l.endpoint AND h.calendar_id = l.calendar
                  AND h.status = 'pending' AND h.position IS NOT NULL
                ORDER BY h.position
                LIMIT 1) AS head))
          AND n.status = 'pending' AND n.next_attempt_at = {_IN_LINE}
        FOR NO KEY UPDATE SKIP LOCKED))
    """  # noqa: S608 - constants
)


async def call_next(session: Session, lanes: Collection[tuple[str, str]]) -> None:
    """Make the heads of these lanes due, if they wait. `lanes`: pairs of endpoint and calendar."""
    if not lanes:
        return
    endpoints, calendars = zip(*lanes, strict=True)
    await session.execute(_CALL_NEXT, {"endpoints": list(endpoints), "calendars": list(calendars)})
    wake_after_commit(session, "deliveries")


# The recursion jumps from lane to lane, so it costs one index look-up for each.
_FIND_STUCK = text(
    f"""
    WITH RECURSIVE heads (subscription_id, calendar_id, next_attempt_at) AS (
        (SELECT subscription_id, calendar_id, next_attempt_at FROM webhook_deliveries
         WHERE status = 'pending' AND position IS NOT NULL
         ORDER BY subscription_id, calendar_id, position LIMIT 1)
      UNION ALL
        SELECT following.subscription_id, following.calendar_id, following.next_attempt_at
        FROM heads
        CROSS JOIN LATERAL (
            SELECT d.subscription_id, d.calendar_id, d.next_attempt_at FROM webhook_deliveries d
            WHERE d.status = 'pending' AND d.position IS NOT NULL
              AND (d.subscription_id, d.calendar_id) > (heads.subscription_id, heads.calendar_id)
            ORDER BY d.subscription_id, d.calendar_id, d.position LIMIT 1) AS following
    )
    SELECT subscription_id, calendar_id FROM heads WHERE next_attempt_at = {_IN_LINE} LIMIT 1000
    """  # noqa: S608 - constants
)


async def unblock_lanes(sessions: Sessions) -> int:
    """Make heads due that still wait; returns how many.

    A worker of the release before has ended the delivery before them: that release does not call the next one.
    """
    async with transaction(sessions) as session:
        stuck = [(row.subscription_id, row.calendar_id) for row in await session.execute(_FIND_STUCK)]
        await call_next(session, stuck)
    return len(stuck)
