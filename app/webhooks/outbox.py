"""The outbox: writes each message as pending deliveries, in the transaction of what it announces.

A committed change has its deliveries; a change that is rolled back has none. app/webhooks/delivery.py sends them.

Merging: a `calendar.events_update` replaces older ones about the same calendar that wait for the same endpoint
(app/webhooks/merge.py). Their bytes never change. An older one that was attempted ends as `failed` with `merged_into`,
because the endpoint may have seen its id; one that was not attempted is deleted. Deliveries that a worker has claimed,
or that redeliver or replay asked for, stay. No other trigger is merged. For a `fifo` endpoint, only those are replaced
that have no other message about the calendar behind them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import orjson

from app.core.db import AnySession, Session
from app.core.ids import new_id
from app.webhooks.merge import build_event_entries, merge_content
from app.webhooks.payloads import BotFacts, CalendarFacts, ChangedEvent, Trigger, build_body
from app.webhooks.repository import outbox as repository
from app.webhooks.repository.lanes import call_next
from app.webhooks.repository.outbox import EventInterest, Mergeable, Subscriber

_EVENTS_UPDATE: Trigger = "calendar.events_update"
_ROWS_PER_STATEMENT = 500


@dataclass(frozen=True, slots=True)
class Message:
    """What a delivery says. `data` is JSON-able, with times as ISO 8601 text."""

    calendar: CalendarFacts | None
    data: Mapping[str, Any]
    bot: BotFacts | None = None
    calendar_event_id: str | None = None


async def announce(
    session: Session,
    *,
    project_id: str,
    trigger: Trigger,
    calendar: CalendarFacts | None,
    data: Mapping[str, Any],
    bot: BotFacts | None = None,
    calendar_event_id: str | None = None,
    changed_events: Sequence[ChangedEvent] = (),
) -> int:
    """Write one pending delivery for each active endpoint of `trigger`; return how many.

    It is part of the caller's transaction: call it last.
    `data` is JSON-able, with times as ISO 8601 text; for `calendar.events_update` it has `changes` and
    `updated_after`. `changed_events` go to endpoints with `include_events` only.
    """
    found = await repository.lock_subscribers(session, project_id, [trigger], [calendar])
    subscribers = [subscriber for subscriber in found if subscriber.wants(calendar)]
    if not subscribers:
        return 0
    can_merge = trigger == _EVENTS_UPDATE and calendar is not None
    older: list[Mergeable] = []
    if can_merge and calendar is not None:
        ids = [subscriber.id for subscriber in subscribers]
        older = await repository.lock_mergeable(session, calendar.id, ids)
    entries = build_event_entries(changed_events)
    rows = []
    merged_into: dict[str, str] = {}
    for subscriber in subscribers:
        replaced = [message for message in older if message.endpoint_id == subscriber.id]
        content = merge_content(
            [orjson.loads(message.body)["data"] for message in replaced],
            data,
            event_entries=entries if subscriber.include_events and trigger == _EVENTS_UPDATE else None,
        )
        message = Message(calendar, content, bot, calendar_event_id)
        row = _delivery_row(subscriber, trigger, message, can_merge=can_merge)
        merged_into |= {old.id: row["id"] for old in replaced if old.attempted}
        rows.append(row)
    await repository.insert_deliveries(session, rows)
    if merged_into:
        await repository.close_merged(session, merged_into)
    unseen = [message.id for message in older if not message.attempted]
    if unseen:
        await repository.delete_deliveries(session, unseen)
    if older and calendar is not None:
        await call_next(session, {(message.endpoint_id, calendar.id) for message in older})
    return len(rows)


async def announce_each(
    session: Session, *, project_id: str, trigger: Trigger, messages: Sequence[Message]
) -> None:
    """Write pending deliveries of many messages, without merging. The rules of `announce` apply."""
    calendars = [message.calendar for message in messages]
    subscribers = await repository.lock_subscribers(session, project_id, [trigger], calendars)
    rows = [
        _delivery_row(subscriber, trigger, message, can_merge=False)
        for message in messages
        for subscriber in subscribers
        if subscriber.wants(message.calendar)
    ]
    for start in range(0, len(rows), _ROWS_PER_STATEMENT):
        await repository.insert_deliveries(session, rows[start : start + _ROWS_PER_STATEMENT])


def _delivery_row(
    subscriber: Subscriber, trigger: Trigger, message: Message, *, can_merge: bool
) -> dict[str, Any]:
    idempotency_key = str(uuid4())
    return {
        "id": new_id("dlv"),
        "subscription_id": subscriber.id,
        "trigger": trigger,
        "calendar_id": message.calendar.id if message.calendar else None,
        "idempotency_key": idempotency_key,
        "can_merge": can_merge,
        "in_lane": subscriber.is_fifo and message.calendar is not None,
        "body": build_body(
            idempotency_key=idempotency_key,
            trigger=trigger,
            calendar=message.calendar,
            data=message.data,
            bot=message.bot,
            calendar_event_id=message.calendar_event_id,
        ),
    }


async def find_interest(session: AnySession, project_id: str, calendar_id: str) -> EventInterest:
    """Find what active endpoints want to know of this calendar's changed events: one look-up."""
    return await repository.find_interest(session, project_id, calendar_id)


async def has_subscribers(session: Session, project_id: str, trigger: Trigger) -> bool:
    """Whether an active endpoint wants this trigger, of some calendars at least."""
    return bool(await repository.lock_subscribers(session, project_id, [trigger], []))


async def delete_pending_of_calendar(session: Session, calendar_id: str) -> None:
    """Delete the messages about a calendar that are not delivered yet, because it is being deleted."""
    await repository.delete_pending_of_calendar(session, calendar_id)
