"""Writing deliveries: which endpoints get a message, and which older messages it replaces."""

from collections.abc import AsyncIterable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, Text, any_, delete, exists, func, insert, literal, null, or_, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import aliased

from app.core.db import AnySession, Session
from app.core.wakeups import wake_after_commit
from app.models import WebhookDelivery
from app.models.webhook import delivery_positions
from app.webhooks.payloads import CalendarFacts, canonical_json
from app.webhooks.repository.lanes import IN_LINE

_dlv = WebhookDelivery
_behind = aliased(WebhookDelivery)

_TEXTS = ARRAY(Text)


@dataclass(frozen=True, slots=True)
class Subscriber:
    """An active endpoint that is subscribed to a trigger.

    `calendars`: those of the given calendars that its filters let pass; None without filters.
    """

    id: str
    include_events: bool
    triggers: list[str]
    changed_fields: frozenset[str] | None
    is_fifo: bool
    calendars: frozenset[str] | None

    def wants(self, calendar: CalendarFacts | None) -> bool:
        """Whether it gets messages about this calendar. With filters, it gets none without a calendar."""
        return self.calendars is None or (calendar is not None and calendar.id in self.calendars)


@dataclass(frozen=True, slots=True)
class EventInterest:
    """What active endpoints want to know of a calendar's changed events.

    `summaries`: the events in `calendar.events_update`. `triggers`: those about single events. `lead_minutes`: the
    longest of those that want `event.starting_soon`; None without any.
    """

    summaries: bool = False
    triggers: frozenset[str] = frozenset()
    lead_minutes: int | None = None
    calendar: CalendarFacts | None = None


@dataclass(frozen=True, slots=True)
class Mergeable:
    """An undelivered message that a newer one may replace. `attempted`: the endpoint may have seen it."""

    id: str
    endpoint_id: str
    body: bytes
    attempted: bool


_SUBSCRIBERS = text(
    """
    SELECT s.id, s.include_events, s.triggers, s.changed_fields, s.ordering = 'fifo' AS is_fifo,
           CASE WHEN s.calendar_ids IS NOT NULL OR s.metadata IS NOT NULL THEN ARRAY(
               SELECT c.id FROM unnest(CAST(:calendar_ids AS text[]), CAST(:metadata AS text[])) AS c (id, metadata)
               WHERE (s.calendar_ids IS NULL OR c.id = ANY (s.calendar_ids))
                 AND (s.metadata IS NULL OR CAST(c.metadata AS jsonb) @> s.metadata)) END AS calendars
    FROM webhook_subscriptions s
    WHERE s.project_id = :project_id AND s.is_active AND s.triggers && CAST(:triggers AS text[])
    ORDER BY s.id
    FOR KEY SHARE
    """
)


async def lock_subscribers(
    session: Session,
    project_id: str,
    triggers: Collection[str],
    calendars: Iterable[CalendarFacts | None],
) -> list[Subscriber]:
    """Return the active endpoints of any of `triggers`.

    They cannot be deleted until this transaction ends.
    """
    known = {calendar.id: calendar for calendar in calendars if calendar is not None}
    rows = await session.execute(
        _SUBSCRIBERS,
        {
            "project_id": project_id,
            "triggers": list(triggers),
            "calendar_ids": list(known),
            "metadata": [canonical_json(calendar.metadata or {}).decode() for calendar in known.values()],
        },
    )
    return [
        Subscriber(
            id=row.id,
            include_events=row.include_events,
            triggers=row.triggers,
            changed_fields=frozenset(row.changed_fields) if row.changed_fields is not None else None,
            is_fifo=row.is_fifo,
            calendars=frozenset(row.calendars) if row.calendars is not None else None,
        )
        for row in rows
    ]


_INTEREST = text(
    """
    SELECT c.deduplication_key, c.metadata, wanted.summaries, wanted.triggers, wanted.lead_minutes
    FROM (SELECT bool_or(s.include_events AND 'calendar.events_update' = ANY (s.triggers)) AS summaries,
                 array_agg(DISTINCT t.name) FILTER (WHERE t.name LIKE 'event.%') AS triggers,
                 max(s.starting_soon_minutes) FILTER (WHERE t.name = 'event.starting_soon') AS lead_minutes
          FROM webhook_subscriptions s
          JOIN calendars f ON f.id = :calendar_id
          CROSS JOIN LATERAL unnest(s.triggers) AS t (name)
          WHERE s.project_id = :project_id AND s.is_active
            AND (s.calendar_ids IS NULL OR f.id = ANY (s.calendar_ids))
            AND (s.metadata IS NULL OR f.metadata @> s.metadata)) AS wanted
    JOIN calendars c ON c.id = :calendar_id
    """
).columns(metadata=JSONB)


async def find_interest(session: AnySession, project_id: str, calendar_id: str) -> EventInterest:
    """Find what the project's active endpoints want to know of this calendar's changed events."""
    row = (
        await session.execute(_INTEREST, {"project_id": project_id, "calendar_id": calendar_id})
    ).one_or_none()
    if row is None:
        return EventInterest()
    return EventInterest(
        summaries=bool(row.summaries),
        triggers=frozenset(row.triggers or ()),
        lead_minutes=row.lead_minutes,
        calendar=CalendarFacts(calendar_id, row.deduplication_key, row.metadata),
    )


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
            # In a lane, nothing may be overtaken: only what has no other message behind it is replaced.
            or_(
                _dlv.position.is_(None),
                ~exists().where(
                    _behind.subscription_id == _dlv.subscription_id,
                    _behind.calendar_id == _dlv.calendar_id,
                    _behind.status == "pending",
                    _behind.position > _dlv.position,
                    ~_behind.can_merge,
                ),
            ),
        )
        .order_by(_dlv.created_at, _dlv.id)
        .with_for_update(of=_dlv, skip_locked=True)
    )
    return [Mergeable(row.id, row.subscription_id, row.body, row.attempted) for row in rows]


async def insert_deliveries(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert pending deliveries that are due at once, each with the keys of `_COPIED` but the last three.

    A row with `in_lane` is given the last place of its lane. It waits if an earlier one of `rows` is in that lane.
    """
    lanes: set[tuple[str, str]] = set()
    values = []
    for row in rows:
        waits = False
        if row["in_lane"]:
            lane = (row["subscription_id"], row["calendar_id"])
            waits = lane in lanes
            lanes.add(lane)
        values.append(
            {
                **{name: value for name, value in row.items() if name != "in_lane"},
                "position": delivery_positions.next_value() if row["in_lane"] else null(),
                "waits": waits,
                "next_attempt_at": IN_LINE if waits else func.clock_timestamp(),
            }
        )
    await session.execute(insert(_dlv).values(values))
    wake_after_commit(session, "deliveries")


_COPIED = (
    "id",
    "subscription_id",
    "trigger",
    "calendar_id",
    "idempotency_key",
    "body",
    "created_at",
    "next_attempt_at",
    "waits",
    "position",
)


async def copy_deliveries(session: Session, rows: AsyncIterable[tuple[Any, ...]]) -> None:
    """Insert pending deliveries by COPY as they come; a row has the values of `_COPIED`."""
    connection = await (await session.connection()).get_raw_connection()
    assert connection.driver_connection is not None
    await connection.driver_connection.copy_records_to_table(
        "webhook_deliveries", columns=_COPIED, records=rows
    )
    wake_after_commit(session, "deliveries")


_TAKE_POSITIONS = text("SELECT nextval('webhook_delivery_positions') FROM generate_series(1, :count)")
_CLOCK = text("SELECT clock_timestamp()")


async def take_positions(session: Session, count: int) -> list[int]:
    """Return `count` positions, all larger than those that were taken before."""
    return list(await session.scalars(_TAKE_POSITIONS, {"count": count})) if count else []


async def read_clock(session: Session) -> datetime:
    now: datetime = (await session.execute(_CLOCK)).scalar_one()
    return now


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
