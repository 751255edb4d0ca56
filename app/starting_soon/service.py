"""`event.starting_soon`: a message some minutes before an event starts.

A look at a project reads the events that have come within the webhook's lead since the look before, and those that
changed since then and start within it. What it finds becomes notices and deliveries in the transaction that also stores
how far the look has come: each event is announced once for each start time, whatever is killed
(docs/adr/0010-events-that-start-soon.md).
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from app.core.db import Session, Sessions, transaction
from app.events.changes import event_data, state_event
from app.events.visibility import load_horizon_of_all
from app.settings import Settings
from app.starting_soon import repository
from app.starting_soon.repository import Look, StartingEvent
from app.webhooks.event_messages import EventMessage, announce_events

_LOOKS_AT_ONCE = 100
# In one transaction, by all of its looks.
_EVENTS_AT_ONCE = 2_000
_MICROSECOND = timedelta(microseconds=1)


async def announce_starting(sessions: Sessions, settings: Settings, *, is_woken: bool = False) -> None:
    """Do all looks that are due; if woken, also those that are due at the next tick."""
    every = timedelta(seconds=settings.scheduler_tick_seconds)
    while await _look(sessions, every, until_next_tick=is_woken):
        is_woken = False


async def _look(sessions: Sessions, every: timedelta, *, until_next_tick: bool) -> bool:
    """Do the looks that are due now, or until the next tick; return whether one of them has not found all.

    One that finds more than fits goes on behind those that became due meanwhile: none waits for a large one.
    """
    is_more = False
    async with transaction(sessions) as session:
        due_before = await repository.add_missing(session, _LOOKS_AT_ONCE)
    if until_next_tick:
        due_before += every
    while True:
        async with transaction(sessions) as session:
            looks = await repository.lock_due(session, due_before=due_before, limit=_LOOKS_AT_ONCE)
            if not looks:
                return is_more
            # Before the statement that reads the events (docs/adr/0001-visibility-of-changes.md).
            horizon = await load_horizon_of_all(session)
            limit = max(1, _EVENTS_AT_ONCE // len(looks))
            found = await repository.note_starting(session, looks, limit)
            reached: dict[Look, datetime | None] = {}
            for look in looks:
                events = found.get(look.subscription_id, [])
                if events:
                    await _announce(session, look, events)
                # Of those that start with the last one, some may be left.
                reached[look] = None if len(events) < limit else events[-1].start_time - _MICROSECOND
            is_more = is_more or any(until is not None for until in reached.values())
            await repository.save_looks(session, reached, horizon=horizon, every=every)


async def _announce(session: Session, look: Look, events: Sequence[StartingEvent]) -> None:
    messages = [
        EventMessage(
            trigger="event.starting_soon",
            calendar=event.calendar,
            calendar_event_id=event.id,
            data={
                "event": event_data(*state_event(event.id, event.values), event.calendar, event.updated_at),
                "starting_soon_minutes": round(look.lead / timedelta(minutes=1)),
            },
        )
        for event in events
    ]
    written = await announce_events(
        session, project_id=look.project_id, messages=messages, only={look.subscription_id}
    )
    if not written:
        # The webhook was disabled since this look was locked. Enabled again, it may still get them.
        await repository.forget(session, look, events)


async def prune_notices(sessions: Sessions) -> int:
    """Delete notices and positions that are no longer needed; how many notices."""
    async with transaction(sessions) as session:
        await repository.delete_idle_positions(session)
    return await repository.delete_old_notices(sessions)
