"""The one writer of calendar_events: compare, write, ask the rules, let bots follow, and announce.

Locks, in this order everywhere: the calendar's row (the caller's), the writers' advisory lock
(app/events/visibility.py), then those of app/join_rules/judging.py.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any

from app.bots.service import follow_events
from app.core.clock import isoformat
from app.core.db import Session
from app.core.wakeups import notify_changes_after_commit, wake_after_commit
from app.events import repository
from app.events.changes import MOST, describe_changes, event_data
from app.events.data import CalendarRef, RemoteEvent, Unannounced, Window
from app.events.derived import derived_of
from app.events.diff import content_hash, diff_events
from app.events.visibility import enter_as_writer
from app.join_rules.service import follow_rules, return_calendar
from app.webhooks.event_messages import EventMessage, announce_events
from app.webhooks.outbox import announce, find_interest
from app.webhooks.payloads import (
    EVENT_TRIGGERS,
    CalendarFacts,
    CalendarState,
    ChangedEvent,
    changed_fields_data,
    state_data,
)

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class WrittenChanges:
    """Every change that is written but not announced yet.

    `changed_events`: the content of this transaction's changes, where a webhook asks for it.
    """

    unannounced: Unannounced
    changed_events: list[ChangedEvent]


async def apply_changes(
    session: Session,
    calendar: CalendarRef,
    events: Collection[RemoteEvent],
    *,
    window: Window,
    removed: Mapping[str, str | None],
    earlier: Unannounced,
    is_announced_now: bool,
    bot_platforms: Collection[str],
) -> WrittenChanges:
    """Write the rows that differ from `events`, and mark the `removed` rows as deleted.

    The caller holds the calendar's row lock. Each changed row gets an `updated_at` of its own, larger than all
    earlier ones of the calendar. Join rules decide which events have a bot, and the bots of changed events follow them.
    Webhooks that want a message for each event get it in this transaction. Rows whose derived fields alone differ are
    written without a new `updated_at`, and not announced.

    `window`: unknown events outside it are not written. `removed`: ids of live rows, none of which is in `events`,
    each with the cancelled event's `raw` or None. `earlier`: changes of earlier transactions that are not announced.
    `is_announced_now`: the caller announces the result in this transaction, so nothing is left to announce later.
    `bot_platforms`: those whose meetings the bot runner joins (BOT_RUNNER_PLATFORMS).
    """
    hashes = {event.platform_uuid: content_hash(event) for event in events}
    stored = await repository.load_stored(session, calendar.calendar_id, list(hashes)) if hashes else {}
    writes, refreshes = diff_events(events, hashes, stored, window)
    if refreshes:
        await repository.write_derived(session, {one.stored_id: derived_of(one.event) for one in refreshes})
    if any(one.has_other_visibility for one in refreshes):
        await return_calendar(session, calendar.project_id, calendar.calendar_id)  # rules look at it
    if not writes and not removed:
        return WrittenChanges(earlier, [])
    removed_ids = list(removed)
    known_ids = [write.stored_id for write in writes if write.stored_id is not None]
    interest = await find_interest(session, calendar.project_id, calendar.calendar_id)
    triggers = interest.triggers.intersection(EVENT_TRIGGERS.values())
    before: dict[str, dict[str, Any]] = {}
    if interest.summaries or triggers:
        before = await repository.load_content(session, [*known_ids, *removed_ids])
    first = await enter_as_writer(session, project_id=calendar.project_id, calendar_id=calendar.calendar_id)
    times = [first + n * _MICROSECOND for n in range(len(writes) + len(removed))]
    ids: list[str] = []
    if writes:
        ids = await repository.write_events(session, calendar, writes, times[: len(writes)])
    if removed:
        await repository.mark_deleted(session, removed_ids, times[len(writes) :], raws=removed)
    moved = await follow_rules(
        session,
        calendar.project_id,
        calendar.calendar_id,
        [*ids, *removed_ids],
        platforms=bot_platforms,
    )
    await follow_events(session, [*known_ids, *removed_ids, *moved])
    counts = Counter(write.change for write in writes)
    unannounced = Unannounced(
        since=earlier.since or first,
        created=earlier.created + counts["created"],
        updated=earlier.updated + counts["updated"],
        deleted=earlier.deleted + counts["deleted"] + len(removed),
    )
    notify_changes_after_commit(session, calendar.project_id)
    left = Unannounced() if is_announced_now else unannounced
    await repository.record_changes(session, calendar, left, last_change_at=times[-1])
    if interest.lead_minutes is not None:
        soon = first + timedelta(minutes=interest.lead_minutes)
        if any(start is not None and first < start <= soon for start in (w.event.start_time for w in writes)):
            wake_after_commit(session, "starting_soon")
    if not interest.summaries and not triggers:
        return WrittenChanges(unannounced, [])
    described = describe_changes(writes, ids, removed_ids, before)
    if not triggers:
        return WrittenChanges(unannounced, list(islice(described, MOST)))
    assert interest.calendar is not None
    messages: list[EventMessage] = []
    changed_events: list[ChangedEvent] = []
    for changed, at in zip(described, times, strict=True):
        if len(changed_events) < MOST:
            changed_events.append(changed)
        if (trigger := EVENT_TRIGGERS[changed.change]) in triggers:
            data = {
                "event": event_data(changed.event, changed.more, interest.calendar, at),
                "changed_fields": changed_fields_data(changed),
            }
            messages.append(EventMessage(trigger, interest.calendar, changed.id, data))
    await announce_events(session, project_id=calendar.project_id, messages=messages)
    return WrittenChanges(unannounced, changed_events if interest.summaries else [])


async def announce_changes(
    session: Session, project_id: str, facts: CalendarFacts, state: CalendarState, written: WrittenChanges
) -> None:
    """Write one `calendar.events_update` for `written`; nothing where nothing is unannounced.

    The caller sets the calendar's count of unannounced changes to zero, and wakes "deliveries" after the commit.
    """
    changes = written.unannounced
    if changes.since is None:
        return
    counts = {"created": changes.created, "updated": changes.updated, "deleted": changes.deleted}
    await announce(
        session,
        project_id=project_id,
        trigger="calendar.events_update",
        calendar=facts,
        data={**state_data(state), "changes": counts, "updated_after": isoformat(changes.since)},
        changed_events=written.changed_events,
    )
