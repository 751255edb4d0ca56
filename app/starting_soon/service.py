"""`event.starting_soon`: a message some minutes before an event starts.

A look at a project reads the events that have come within the webhook's lead since the look before, and those that
changed since then and start within it. What it finds becomes notices and deliveries in the transaction that also stores
how far the look has come: each event is announced once for each start time, whatever is killed
(docs/adr/0010-events-that-start-soon.md).
"""

from collections.abc import Sequence
from datetime import timedelta

from app.core.db import Session, Sessions, transaction
from app.events.changes import event_data, state_event
from app.events.visibility import load_horizon_of_all
from app.settings import Settings
from app.starting_soon import repository
from app.starting_soon.repository import Look, StartingEvent
from app.webhooks.event_messages import EventMessage, announce_events

_LOOKS_AT_ONCE = 100
_EVENTS_PER_LOOK = 500


async def announce_starting(sessions: Sessions, settings: Settings, *, is_woken: bool = False) -> None:
    """Do all looks that are due; if woken, also those that are due at the next tick."""
    every = timedelta(seconds=settings.scheduler_tick_seconds)
    async with transaction(sessions) as session:
        due_before = await repository.add_missing(session, _LOOKS_AT_ONCE)
    if is_woken:
        due_before += every
    while True:
        async with transaction(sessions) as session:
            looks = await repository.lock_due(session, due_before=due_before, limit=_LOOKS_AT_ONCE)
            if not looks:
                return
            # Before the statement that reads the events (docs/adr/0001-visibility-of-changes.md).
            horizon = await load_horizon_of_all(session)
            found = await repository.note_starting(session, looks, _EVENTS_PER_LOOK)
            for look in looks:
                if look.subscription_id in found:
                    await _announce(session, look, found[look.subscription_id])
            # One with as many as fit stays due, and continues from the same place.
            complete = [look for look in looks if len(found.get(look.subscription_id, ())) < _EVENTS_PER_LOOK]
            if complete:
                await repository.save_looks(session, complete, horizon=horizon, every=every)


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
    await announce_events(session, project_id=look.project_id, messages=messages, only={look.subscription_id})


async def prune_notices(sessions: Sessions) -> int:
    """Delete notices and positions that are no longer needed; how many notices."""
    async with transaction(sessions) as session:
        await repository.delete_idle_positions(session)
    return await repository.delete_old_notices(sessions)
