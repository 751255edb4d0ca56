"""Writing deliveries: which endpoints get a message, and which older messages it replaces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ARRAY, Text, any_, delete, exists, func, insert, literal, select, text

from app.core.db import AnySession, Session
from app.core.wakeups import wake_after_commit
from app.models import WebhookDelivery, WebhookSubscription

_sub = WebhookSubscription
_dlv = WebhookDelivery

_TEXTS = ARRAY(Text)


@dataclass(frozen=True, slots=True)
class Subscriber:
    """An active endpoint that is subscribed to a trigger."""

    id: str
    include_events: bool


@dataclass(frozen=True, slots=True)
class Mergeable:
    """An undelivered message that a newer one may replace. `attempted`: the endpoint may have seen it."""

    id: str
    endpoint_id: str
    body: bytes
    attempted: bool


async def lock_subscribers(session: Session, project_id: str, trigger: str) -> list[Subscriber]:
    """Return the active endpoints of `trigger`, which cannot be deleted until this transaction ends."""
    rows = await session.execute(
        select(_sub.id, _sub.include_events)
        .where(
            _sub.project_id == project_id, _sub.is_active, literal(trigger) == any_(_sub.triggers.expression)
        )
        .order_by(_sub.id)
        .with_for_update(read=True, key_share=True)
    )
    return [Subscriber(row.id, row.include_events) for row in rows]


async def wants_events(session: AnySession, project_id: str, trigger: str) -> bool:
    """Whether an active endpoint of `trigger` has `include_events`."""
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


async def lock_mergeable(session: Session, calendar_id: str, endpoint_ids: Sequence[str]) -> list[Mergeable]:
    """Lock the waiting messages about a calendar for these endpoints, oldest first; no claimed ones."""
    rows = await session.execute(
        select(
            _dlv.id,
            _dlv.subscription_id,
            _dlv.body,
            (func.jsonb_array_length(_dlv.attempts) > 0).label("attempted"),
        )
        .where(
            _dlv.calendar_id == calendar_id,
            _dlv.subscription_id == any_(literal(endpoint_ids, _TEXTS)),
            _dlv.status == "pending",
            _dlv.can_merge,
            _dlv.lease_token.is_(None),
        )
        .order_by(_dlv.created_at, _dlv.id)
        .with_for_update(skip_locked=True)
    )
    return [Mergeable(row.id, row.subscription_id, row.body, row.attempted) for row in rows]


async def insert_deliveries(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert pending deliveries that are due at once."""
    values = [{**row, "next_attempt_at": func.clock_timestamp()} for row in rows]
    await session.execute(insert(_dlv).values(values))
    wake_after_commit(session, "deliveries")


async def close_merged(session: Session, merged_into: Mapping[str, str]) -> None:
    """End attempted deliveries whose content another one has taken over: {older id: newer id}."""
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
