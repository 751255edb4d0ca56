"""SQL of hosted events. Their rows in calendar_events are written by app/hosted/rows.py.

Locks, in this order everywhere: the calendar's row, then the writers' advisory lock (app/events/visibility.py).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from app.core.db import AnySession, Session
from app.hosted.calendar import LocalCalendar
from app.hosted.components import EventComponent, HostedEventRef, attendee_from_json, attendee_to_json
from app.models import Calendar, CalendarEvent, HostedEvent, InboundReply

_CALENDAR = select(
    Calendar.id.label("calendar_id"),
    Calendar.project_id,
    Calendar.owner_email,
    Calendar.owner_name,
    func.coalesce(Calendar.timezone, "UTC").label("timezone"),
    func.coalesce(Calendar.locale, "en").label("locale"),
    Calendar.sending_identity.label("identity"),
    Calendar.deduplication_key,
    Calendar.metadata_.label("metadata"),
    Calendar.state,
    Calendar.connection_failure_data,
    Calendar.last_successful_sync_at,
    Calendar.last_attempted_sync_at,
).where(Calendar.platform == "local")


async def lock_calendar(
    session: Session, calendar_id: str, project_id: str | None = None
) -> LocalCalendar | None:
    """Lock a local calendar: no other transaction writes its events until this one ends."""
    statement = _CALENDAR.where(Calendar.id == calendar_id).with_for_update(key_share=True)
    if project_id is not None:
        statement = statement.where(Calendar.project_id == project_id)
    row = (await session.execute(statement)).mappings().one_or_none()
    return None if row is None else LocalCalendar(**row)


async def find_calendar(session: AnySession, calendar_id: str) -> LocalCalendar | None:
    """Return a local calendar, without a lock."""
    row = (await session.execute(_CALENDAR.where(Calendar.id == calendar_id))).mappings().one_or_none()
    return None if row is None else LocalCalendar(**row)


async def find_platform(session: AnySession, project_id: str, calendar_id: str) -> str | None:
    """Return the platform of any calendar of the project."""
    platform: str | None = await session.scalar(
        select(Calendar.platform).where(Calendar.project_id == project_id, Calendar.id == calendar_id)
    )
    return platform


async def locate(session: AnySession, project_id: str, event_id: str) -> HostedEventRef | None:
    """Return the event, series or instance behind an event of the API, with the calendar's platform."""
    event = CalendarEvent
    row = (
        await session.execute(
            select(
                event.calendar_id,
                Calendar.platform,
                event.platform_uuid,
                event.recurring_event_id,
                event.is_deleted,
                event.original_start_time,
            )
            .join(Calendar, Calendar.id == event.calendar_id)
            .where(event.project_id == project_id, event.id == event_id)
        )
    ).one_or_none()
    if row is None:
        return None
    uid = row.recurring_event_id or row.platform_uuid
    return HostedEventRef(
        calendar_id=row.calendar_id,
        platform=row.platform,
        uid=uid,
        recurrence_key=row.platform_uuid[len(uid) + 1 :] if row.recurring_event_id is not None else "",
        is_deleted=row.is_deleted,
        original_start_time=row.original_start_time,
    )


async def load_components(session: AnySession, calendar_id: str, uid: str) -> dict[str, EventComponent]:
    """Return the components of one event by recurrence key; the event or series itself has ''."""
    rows = await session.scalars(
        select(HostedEvent)
        .where(HostedEvent.calendar_id == calendar_id, HostedEvent.uid == uid)
        .execution_options(populate_existing=True)
    )
    return {row.slot: _component_of(row) for row in rows}


async def find_calendars_of_uid(session: AnySession, uid: str, project_id: str | None) -> list[str]:
    """Return the ids of the calendars that have an event of this UID; in practice at most one."""
    statement = select(HostedEvent.calendar_id).where(HostedEvent.uid == uid, HostedEvent.slot == "")
    if project_id is not None:
        statement = statement.where(HostedEvent.project_id == project_id)
    return list(await session.scalars(statement))


async def save_components(
    session: Session,
    calendar: LocalCalendar,
    components: Sequence[EventComponent],
    *,
    ends_at: datetime | None,
    expand_at: datetime | None,
) -> None:
    """Insert or replace components. `ends_at` and `expand_at` belong to the event or series itself."""
    for component in components:
        values = {
            "project_id": calendar.project_id,
            "calendar_id": calendar.calendar_id,
            "sequence": component.sequence,
            "name": component.name,
            "description": component.description,
            "location": component.location,
            "meeting_url": component.meeting_url,
            "start_time": component.start,
            "end_time": component.end,
            "is_all_day": component.is_all_day,
            "timezone": component.timezone,
            "rrule": component.rrule,
            "recurrence_id": component.recurrence_id,
            "attendees": [attendee_to_json(person) for person in component.attendees],
            "is_cancelled": component.is_cancelled,
            "ends_at": ends_at if not component.recurrence_key else None,
            "expand_at": expand_at if not component.recurrence_key else None,
            "updated_at": func.clock_timestamp(),
        }
        await session.execute(
            insert(HostedEvent)
            .values(uid=component.uid, slot=component.recurrence_key, **values)
            .on_conflict_do_update(index_elements=[HostedEvent.uid, HostedEvent.slot], set_=values)
        )


async def delete_components(session: Session, uid: str, keys: Sequence[str]) -> None:
    """Delete changed instances by their recurrence keys."""
    await session.execute(
        delete(HostedEvent)
        .where(HostedEvent.uid == uid, HostedEvent.slot.in_(keys))
        .execution_options(synchronize_session=False)
    )


_LIVE = text(
    """
    SELECT id, platform_uuid, start_time FROM calendar_events
    WHERE calendar_id = :calendar_id AND NOT is_deleted
      AND (platform_uuid = :uid OR recurring_event_id = :uid)
    ORDER BY start_time, id
    """
)


class LiveRow(NamedTuple):
    """Row of calendar_events that is not deleted."""

    id: str
    platform_uuid: str
    start_time: datetime | None


async def load_live_rows(session: AnySession, calendar_id: str, uid: str) -> list[LiveRow]:
    """Return what applications see of this event, by start."""
    rows = await session.execute(_LIVE, {"calendar_id": calendar_id, "uid": uid})
    return [LiveRow(row.id, row.platform_uuid, row.start_time) for row in rows]


_HAS_LIVE = text(
    """
    SELECT EXISTS (
        SELECT FROM calendar_events
        WHERE calendar_id = :calendar_id AND NOT is_deleted
          AND (platform_uuid = :uid OR recurring_event_id = :uid))
    """
)


async def has_live_rows(session: AnySession, calendar_id: str, uid: str) -> bool:
    """Return whether applications see anything of this event."""
    found: bool = (await session.execute(_HAS_LIVE, {"calendar_id": calendar_id, "uid": uid})).scalar_one()
    return found


async def find_event_id(session: AnySession, calendar_id: str, platform_uuid: str) -> str | None:
    """Return the id of a row of calendar_events, deleted or not."""
    found: str | None = await session.scalar(
        select(CalendarEvent.id).where(
            CalendarEvent.calendar_id == calendar_id, CalendarEvent.platform_uuid == platform_uuid
        )
    )
    return found


async def find_to_expand(session: AnySession, limit: int) -> list[tuple[str, str]]:
    """Return (calendar_id, uid) of the events whose rows are due to be rewritten."""
    rows = await session.execute(
        select(HostedEvent.calendar_id, HostedEvent.uid)
        .where(HostedEvent.expand_at <= func.now())
        .order_by(HostedEvent.expand_at)
        .limit(limit)
    )
    return [(row.calendar_id, row.uid) for row in rows]


async def find_first_due(session: AnySession) -> datetime:
    """Return since when a series of any calendar is due to be rewritten; now, if none is."""
    first = select(func.min(HostedEvent.expand_at)).where(HostedEvent.expand_at.is_not(None))
    found: datetime = (
        await session.execute(select(func.least(func.now(), first.scalar_subquery())))
    ).scalar_one()
    return found


async def schedule_rewrite(session: Session, calendar_id: str, uid: str | None = None) -> None:
    """Have a worker rewrite the rows of this event, or those of all events of the calendar."""
    statement = update(HostedEvent).where(HostedEvent.calendar_id == calendar_id, HostedEvent.slot == "")
    if uid is not None:
        statement = statement.where(HostedEvent.uid == uid)
    # One that is overdue stays so: its time says how far the series is expanded.
    due_at = func.least(HostedEvent.expand_at, func.now())
    await session.execute(statement.values(expand_at=due_at).execution_options(synchronize_session=False))


async def set_expand_at(session: Session, uid: str, expand_at: datetime | None) -> None:
    """Set the time at which the rows of an event are rewritten; None: only when it changes."""
    await session.execute(
        update(HostedEvent)
        .where(HostedEvent.uid == uid, HostedEvent.slot == "")
        .values(expand_at=expand_at)
        .execution_options(synchronize_session=False)
    )


async def note_inbound_reply(session: Session, calendar_id: str, message_id_sha256: bytes) -> bool:
    """Record a mail by its hash, and return whether it was not recorded before."""
    noted = await session.scalar(
        insert(InboundReply)
        .values(calendar_id=calendar_id, message_id_sha256=message_id_sha256)
        .on_conflict_do_nothing()
        .returning(InboundReply.calendar_id)
    )
    return noted is not None


def _component_of(row: HostedEvent) -> EventComponent:
    return EventComponent(
        uid=row.uid,
        recurrence_key=row.slot,
        sequence=row.sequence,
        name=row.name,
        description=row.description,
        location=row.location,
        meeting_url=row.meeting_url,
        start=row.start_time,
        end=row.end_time,
        is_all_day=row.is_all_day,
        timezone=row.timezone,
        rrule=row.rrule,
        recurrence_id=row.recurrence_id,
        attendees=tuple(attendee_from_json(person) for person in row.attendees),
        is_cancelled=row.is_cancelled,
    )
