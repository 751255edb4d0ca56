"""SQL of events, for reading. Writing them is the sync's (app/sync/repository.py)."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, Text, bindparam, cast, func, literal_column, select

from app.bots.repository import bots_of
from app.core.db import AnySession, ReadSession
from app.core.pagination import Cursor, Ordering, Page, page_of, seek, seek_values
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

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# The key of each ordering, as it is indexed.
_KEYS: Mapping[str, ColumnElement[Any]] = {
    "updated_at": _event.updated_at,
    "created_at": _event.created_at,
    "start_time": start_or_last,
    "end_time": end_or_last,
}


# What a list can be filtered by; the values are parameters of the same names.
_CALENDAR_FILTERS: Mapping[str, ColumnElement[bool]] = {
    "calendar_id": Calendar.id == bindparam("calendar_id"),
    "calendar_deduplication_key": Calendar.deduplication_key == bindparam("calendar_deduplication_key"),
}
_EVENT_FILTERS: Mapping[str, ColumnElement[bool]] = {
    "event_id": _event.id == bindparam("event_id"),
    "ical_uid": _event.ical_uid == bindparam("ical_uid"),
    "updated_from": _event.updated_at >= bindparam("updated_from"),
    "updated_before": _event.updated_at < bindparam("updated_before"),
    "start_from": _event.start_time >= bindparam("start_from"),
    "end_until": _event.end_time <= bindparam("end_until"),
    "is_deleted": _event.is_deleted == bindparam("is_deleted"),
}


async def find_event(session: AnySession, project_id: str, event_id: str) -> Row[Any] | None:
    """A row of FIELDS."""
    statement = _READ.where(_event.project_id == project_id, _event.id == event_id)
    return (await session.execute(statement)).one_or_none()


async def list_events(
    session: ReadSession,
    project_id: str,
    filters: Mapping[str, Any],
    *,
    ordering_name: str,
    cursor_text: str | None,
    limit: int,
) -> Page[Row[Any]]:
    """Rows of FIELDS, in one statement. Raises BadQuery for a bad cursor.

    `filters`: values by name, of calendar_id, calendar_deduplication_key, event_id, ical_uid, updated_from,
    updated_before, start_from, end_until and is_deleted.
    """
    name = ordering_name.removeprefix("-")
    cursor = Cursor.decode(cursor_text, ordering=ordering_name) if cursor_text is not None else None
    kind = cursor and Cursor(ordering_name, cursor.key and _EPOCH, "", cursor.backward)
    statement = _page_statement(frozenset(filters), ordering_name, kind)
    values = {**filters, "project_id": project_id, **seek_values(cursor, limit)}
    connection = await session.connection()
    rows = (await connection.execute(statement, values)).all()

    def place(row: Row[Any]) -> tuple[datetime | None, str]:
        at: datetime | None = getattr(row, name)
        return (None if at is None else at.replace(tzinfo=UTC)), row.id

    return page_of(rows, _ordering(ordering_name), cursor, limit, place=place)


def _ordering(name: str) -> Ordering:
    return Ordering(name, _KEYS[name.removeprefix("-")], _event.id, descending=name.startswith("-"))


@lru_cache(maxsize=256)
def _page_statement(filters: frozenset[str], ordering_name: str, kind: Cursor | None) -> Select[Any]:
    """The statement for these filters and any cursor of this kind; all values are parameters.

    Kept, since building and analysing it takes a third of the time that the API spends on reading a page.
    """
    statement: Select[Any] = _READ
    of_calendar = [_CALENDAR_FILTERS[name] for name in sorted(filters & _CALENDAR_FILTERS.keys())]
    of_events = [_EVENT_FILTERS[name] for name in sorted(filters - _CALENDAR_FILTERS.keys())]
    if of_calendar:
        # The calendar is of the project, so the events need not be asked: the planner then has but the indexes
        # of calendars, and cannot walk through a whole project's events in search of one calendar's.
        calendar_id = select(Calendar.id).where(Calendar.project_id == bindparam("project_id"), *of_calendar)
        statement = statement.where(_event.calendar_id == calendar_id.scalar_subquery())
    else:
        statement = statement.where(_event.project_id == bindparam("project_id"))
    return seek(statement.where(*of_events), _ordering(ordering_name), kind, 0)
