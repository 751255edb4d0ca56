"""SQL of events, for reading. Writing them is the sync's (app/sync/repository.py)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, Text, cast, func, literal_column, select

from app.bots.repository import bots_of
from app.core.db import AnySession, ReadSession
from app.core.pagination import Cursor, Ordering, Page, page_of, seek
from app.models import Calendar, CalendarEvent
from app.models.calendar_event import end_or_last, start_or_last

# The table and not the class: rows of the ORM's loader cost half a millisecond more a page.
_event = CalendarEvent.__table__.c

# The one place where an event's bots come in: JSON text, a list.
_bots: ColumnElement[str] = bots_of(_event.id)

# Those of TIMES and JSON_TEXTS are selected in a form of their own; the order is that of CalendarEventRead.
FIELDS = (
    "id",
    "calendar_id",
    "platform_uuid",
    "meeting_url",
    "meeting_platform",
    "start_time",
    "end_time",
    "is_deleted",
    "attendees",
    "ical_uid",
    "name",
    "raw",
    "bots",
    "created_at",
    "updated_at",
    "is_all_day",
    "timezone",
    "location",
    "description",
    "organizer",
    "response_status",
    "recurring_event_id",
    "original_start_time",
)
TIMES = ("start_time", "end_time", "created_at", "updated_at", "original_start_time")
JSON_TEXTS = ("attendees", "raw", "bots", "organizer")


def _selected(name: str) -> ColumnElement[Any]:
    """JSON as the text that it is stored as, and times naive in UTC: half the work to write either out."""
    if name == "bots":
        return _bots.label(name)
    if name in JSON_TEXTS:
        return cast(_event[name], Text).label(name)
    if name in TIMES:
        return func.timezone(literal_column("'UTC'"), _event[name]).label(name)
    return _event[name]


_READ = select(*map(_selected, FIELDS))

# The key of each ordering, as it is indexed.
_KEYS: Mapping[str, ColumnElement[Any]] = {
    "updated_at": _event.updated_at,
    "created_at": _event.created_at,
    "start_time": start_or_last,
    "end_time": end_or_last,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilters:
    """What the listed events must have; None means anything."""

    calendar_id: str | None = None
    calendar_deduplication_key: str | None = None
    event_id: str | None = None
    ical_uid: str | None = None
    updated_from: datetime | None = None
    updated_before: datetime | None = None
    start_from: datetime | None = None
    end_until: datetime | None = None
    is_deleted: bool | None = None


async def find_event(session: AnySession, project_id: str, event_id: str) -> Row[Any] | None:
    """A row of FIELDS."""
    statement = _READ.where(_event.project_id == project_id, _event.id == event_id)
    return (await session.execute(statement)).one_or_none()


async def list_events(
    session: ReadSession,
    project_id: str,
    filters: EventFilters,
    *,
    ordering_name: str,
    cursor_text: str | None,
    limit: int,
) -> Page[Row[Any]]:
    """Rows of FIELDS, in one statement. Raises BadQuery for a bad cursor."""
    name = ordering_name.removeprefix("-")
    ordering = Ordering(ordering_name, _KEYS[name], _event.id, descending=ordering_name.startswith("-"))
    cursor = Cursor.decode(cursor_text, ordering=ordering_name) if cursor_text is not None else None
    statement = seek(_filtered(project_id, filters), ordering, cursor, limit)
    rows = (await session.execute(statement)).all()

    def place(row: Row[Any]) -> tuple[datetime | None, str]:
        at: datetime | None = getattr(row, name)
        return (None if at is None else at.replace(tzinfo=UTC)), row.id

    return page_of(rows, ordering, cursor, limit, place=place)


def _filtered(project_id: str, filters: EventFilters) -> Select[Any]:
    calendars = []
    if filters.calendar_id is not None:
        calendars.append(Calendar.id == filters.calendar_id)
    if filters.calendar_deduplication_key is not None:
        calendars.append(Calendar.deduplication_key == filters.calendar_deduplication_key)
    if calendars:
        # The calendar is of the project, so the events need not be asked: the planner then has but the indexes
        # of calendars, and cannot walk through a whole project's events in search of one calendar's.
        calendar_id = select(Calendar.id).where(Calendar.project_id == project_id, *calendars)
        statement: Select[Any] = _READ.where(_event.calendar_id == calendar_id.scalar_subquery())
    else:
        statement = _READ.where(_event.project_id == project_id)
    if filters.event_id is not None:
        statement = statement.where(_event.id == filters.event_id)
    if filters.ical_uid is not None:
        statement = statement.where(_event.ical_uid == filters.ical_uid)
    if filters.updated_from is not None:
        statement = statement.where(_event.updated_at >= filters.updated_from)
    if filters.updated_before is not None:
        statement = statement.where(_event.updated_at < filters.updated_before)
    if filters.start_from is not None:
        statement = statement.where(_event.start_time >= filters.start_from)
    if filters.end_until is not None:
        statement = statement.where(_event.end_time <= filters.end_until)
    if filters.is_deleted is not None:
        statement = statement.where(_event.is_deleted.is_(filters.is_deleted))
    return statement
