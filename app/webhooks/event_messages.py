"""Messages about single events: many at once, written by COPY as they are made."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from app.core.db import Session
from app.core.ids import new_id
from app.webhooks.payloads import CalendarFacts, Trigger, build_body
from app.webhooks.repository import outbox as repository
from app.webhooks.repository.lanes import IN_LINE
from app.webhooks.repository.outbox import Subscriber

_MICROSECOND = timedelta(microseconds=1)
_YIELD_EVERY = 200


@dataclass(frozen=True, slots=True)
class EventMessage:
    """What a message about one event says. `data` is JSON-able, with times as ISO 8601 text."""

    trigger: Trigger
    calendar: CalendarFacts
    calendar_event_id: str
    data: dict[str, Any]

    def is_for(self, subscriber: Subscriber) -> bool:
        if self.trigger not in subscriber.triggers or not subscriber.wants(self.calendar):
            return False
        if self.trigger != "event.updated" or subscriber.changed_fields is None:
            return True
        return not subscriber.changed_fields.isdisjoint(self.data["changed_fields"])


async def announce_events(
    session: Session,
    *,
    project_id: str,
    messages: Sequence[EventMessage],
    only: Collection[str] | None = None,
) -> int:
    """Write a pending delivery of each message for each active endpoint that wants it; return how many.

    `only`: the ids of the endpoints that may get them. The rules of `announce` (outbox.py) apply.
    """
    triggers = {message.trigger for message in messages}
    calendars = {message.calendar.id: message.calendar for message in messages}
    subscribers = await repository.lock_subscribers(session, project_id, triggers, calendars.values())
    receivers = [
        [
            subscriber
            for subscriber in subscribers
            if message.is_for(subscriber) and (only is None or subscriber.id in only)
        ]
        for message in messages
    ]
    count = sum(len(some) for some in receivers)
    if count:
        in_lanes = sum(subscriber.is_fifo for some in receivers for subscriber in some)
        positions = await repository.take_positions(session, in_lanes)
        at = await repository.read_clock(session)
        await repository.copy_deliveries(session, _rows(messages, receivers, positions, at))
    return count


async def _rows(
    messages: Sequence[EventMessage],
    receivers: Sequence[Sequence[Subscriber]],
    positions: Sequence[int],
    at: datetime,
) -> AsyncIterator[tuple[Any, ...]]:
    """Yield rows for `copy_deliveries`. Messages have times of their own, as lists are ordered by them."""
    places = iter(positions)
    lanes: set[tuple[str, str]] = set()
    made = 0
    for number, (message, subscribers) in enumerate(zip(messages, receivers, strict=True)):
        if not subscribers:
            continue
        created_at = at + number * _MICROSECOND
        # Only the key differs between endpoints. It is random, so it is nowhere else in the body.
        key = str(uuid4())
        head, _, tail = build_body(
            idempotency_key=key,
            trigger=message.trigger,
            calendar=message.calendar,
            data=message.data,
            calendar_event_id=message.calendar_event_id,
        ).partition(key.encode())
        for subscriber in subscribers:
            position, waits = None, False
            if subscriber.is_fifo:
                lane = (subscriber.id, message.calendar.id)
                position, waits = next(places), lane in lanes
                lanes.add(lane)
            yield (
                new_id("dlv"),
                subscriber.id,
                message.trigger,
                message.calendar.id,
                key,
                head + key.encode() + tail,
                created_at,
                IN_LINE if waits else created_at,
                waits,
                position,
            )
            key = str(uuid4())
            made += 1
            if made % _YIELD_EVERY == 0:
                await asyncio.sleep(0)  # other work of the process goes on
