"""Rows of calendar_events: bring them to what the components say, and find the row of a component."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from app.core.clock import utcnow
from app.core.db import AnySession, Session
from app.events.data import Unannounced, Window
from app.events.writer import announce_changes, apply_changes
from app.hosted import repository
from app.hosted.calendar import LocalCalendar
from app.hosted.components import EventComponent
from app.hosted.errors import SeriesIsOver
from app.hosted.expand import expand
from app.hosted.repository import LiveRow
from app.hosted.rules import last_end
from app.invitations.service import find_undelivered
from app.meeting_urls.hosts import meeting_hosts
from app.settings import Settings
from app.webhooks.payloads import CalendarFacts

# docs/adr/0004-expansion-of-hosted-series.md has the reasons.
_EXPANSION_MARGIN = timedelta(days=2)
_EXPAND_EVERY = timedelta(days=1)


async def save(
    session: Session,
    settings: Settings,
    calendar: LocalCalendar,
    components: Mapping[str, EventComponent],
    *,
    changed: Iterable[EventComponent],
) -> None:
    """Store the `changed` components, and write the rows of all `components` of the event."""
    master = components[""]
    await repository.save_components(
        session,
        calendar,
        list(changed),
        ends_at=last_end(master),
        expand_at=next_expansion(master, now=utcnow()),
    )
    await write_rows(session, settings, calendar, components)


def next_expansion(master: EventComponent, *, now: datetime) -> datetime | None:
    """Return when the rows are to be rewritten; None for single events and series that are over."""
    ends_at = last_end(master)
    is_over = ends_at is not None and ends_at <= now
    return None if master.rrule is None or master.is_cancelled or is_over else now + _EXPAND_EVERY


def expanded_until(settings: Settings, due_at: datetime) -> datetime:
    """Return how far a series has its rows that is due to be written again at `due_at`."""
    return due_at - _EXPAND_EVERY + settings.sync_window_future_for + _EXPANSION_MARGIN


async def write_rows(
    session: Session,
    settings: Settings,
    calendar: LocalCalendar,
    components: Mapping[str, EventComponent],
) -> None:
    """Bring calendar_events to what the components say, and announce what changed."""
    now, master = utcnow(), components[""]
    window = Window(
        now - settings.sync_window_past_for, now + settings.sync_window_future_for + _EXPANSION_MARGIN
    )
    remote = expand(
        master,
        [component for key, component in components.items() if key],
        window,
        organizer=calendar.organizer,
        owner_email=calendar.owner_email,
        hosts=meeting_hosts(settings),
        undelivered=await find_undelivered(session, calendar.calendar_id, master.uid),
    )
    live = await repository.load_live_rows(session, calendar.calendar_id, master.uid)
    removed = find_removed(
        live, components, expanded={event.platform_uuid for event in remote}, since=window.start
    )
    # Hosted events are shown wherever they are: the window limits only the instances of series.
    everywhere = Window(datetime.min.replace(tzinfo=now.tzinfo), datetime.max.replace(tzinfo=now.tzinfo))
    written = await apply_changes(
        session,
        calendar,
        remote,
        window=everywhere,
        removed=dict.fromkeys(removed),
        earlier=Unannounced(),
        is_announced_now=True,
        bot_platforms=settings.bot_runner_platforms,
    )
    await announce_changes(session, calendar.project_id, facts_of(calendar), calendar, written)


def find_removed(
    live: Sequence[LiveRow],
    components: Mapping[str, EventComponent],
    *,
    expanded: Collection[str],
    since: datetime,
) -> list[str]:
    """Return the ids of the live rows that are to be marked as deleted.

    `expanded` are the platform_uuids that the components have rows for. Rows of a series that started before `since`
    stay when the series changes, and go when the instance or the whole series is cancelled.
    """
    master = components[""]
    cancelled = {
        f"{component.uid}_{key}" for key, component in components.items() if key and component.is_cancelled
    }

    def is_removed(row: LiveRow) -> bool:
        if row.platform_uuid in cancelled:
            return True
        if row.platform_uuid in expanded:
            return False
        # The event's own row is left over when it becomes a series.
        is_whole = master.is_cancelled or master.rrule is None or row.platform_uuid == master.uid
        return is_whole or row.start_time is None or row.start_time >= since

    return [row.id for row in live if is_removed(row)]


def facts_of(calendar: LocalCalendar) -> CalendarFacts:
    """Return what webhooks say about the calendar."""
    return CalendarFacts(
        id=calendar.calendar_id,
        deduplication_key=calendar.deduplication_key,
        metadata=calendar.metadata,
    )


async def find_first_id(session: Session, calendar: LocalCalendar, uid: str) -> str:
    """Return the id of an event, or of the first instance of a series. Raises SeriesIsOver."""
    return (await _load_required(session, calendar, uid))[0].id


async def find_moved_id(
    session: Session, calendar: LocalCalendar, uid: str, event_id: str, start: datetime
) -> str:
    """Return the id of the instance that starts at `start` after a change of its series.

    Without one: `event_id` if it is still there, else the next or last instance. Raises SeriesIsOver.
    """
    rows = await _load_required(session, calendar, uid)
    kept = event_id if event_id in {row.id for row in rows} else _next_id(rows)
    return next((row.id for row in rows if row.start_time == start), kept)


async def find_id(session: Session, calendar: LocalCalendar, component: EventComponent) -> str:
    """Return the id of the component's row; for a series, of its next instance, or its last one."""
    if component.recurrence_key:
        found = await repository.find_event_id(
            session, calendar.calendar_id, f"{component.uid}_{component.recurrence_key}"
        )
        if found is not None:
            return found
    return _next_id(await repository.load_live_rows(session, calendar.calendar_id, component.uid))


async def _load_required(session: AnySession, calendar: LocalCalendar, uid: str) -> list[LiveRow]:
    rows = await repository.load_live_rows(session, calendar.calendar_id, uid)
    if not rows:
        raise SeriesIsOver
    return rows


def _next_id(rows: Sequence[LiveRow]) -> str:
    now = utcnow()
    return next((row.id for row in rows if row.start_time is not None and row.start_time >= now), rows[-1].id)
