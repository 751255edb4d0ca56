"""Lists of events and single events, in the form of the API. app/hosted/ writes hosted events."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import Row

from app.api.not_found import CalendarEventNotFound
from app.bots.words import shown_bot
from app.calendar_events import repository
from app.calendar_events.repository import FIELDS, JSON_TEXTS, TIMES
from app.calendar_events.schemas import CalendarEventsQuery
from app.core.db import AnySession, ReadSession
from app.core.errors import BadQuery
from app.core.pagination import Page
from app.events.visibility import load_horizon
from app.ical.export import ExportedEvent, ExportedPerson

PAGE_SIZE = 100


async def list_events(session: ReadSession, project_id: str, query: CalendarEventsQuery) -> Page[Row[Any]]:
    """Read a page of rows for `event_body`, in two statements at most. Raises BadQuery for a bad cursor.

    Over a whole project, changes are held back while an older one may still become visible
    (docs/adr/0001-visibility-of-changes.md). Lists of one calendar need no such wait.
    """
    if query.finds_nothing:
        return Page([], None, None)
    of_one_calendar = query.calendar_id or query.calendar_deduplication_key or query.event_id
    updated_from = [at for at in (query.updated_after, query.updated_at_gte) if at is not None]
    given = {
        "calendar_id": query.calendar_id,
        "calendar_deduplication_key": query.calendar_deduplication_key,
        "event_id": query.event_id,
        "ical_uid": query.ical_uid,
        "updated_from": max(updated_from, default=None),
        "updated_before": None if of_one_calendar else await load_horizon(session, project_id),
        "start_from": query.start_time_gte,
        "end_until": query.end_time_lte,
        "is_deleted": query.is_deleted,
    }
    filters = {name: value for name, value in given.items() if value is not None}
    return await repository.list_events(
        session,
        project_id,
        filters,
        ordering_name=query.ordering,
        cursor_text=query.cursor,
        limit=query.rows_of(PAGE_SIZE),
    )


async def list_changes(
    session: ReadSession,
    project_id: str,
    *,
    calendar_id: str | None,
    after: tuple[datetime, str],
    before: datetime | None,
    limit: int,
) -> tuple[Sequence[Row[Any]], bool]:
    """Read rows for `event_body` by (updated_at, id). Returns them, and whether there are more.

    `after`: the place behind which to begin; with an empty id, at its time. `before`: the time at which to end, which
    the caller has from `load_horizon`.
    """
    return await repository.list_changes(
        session, project_id, calendar_id=calendar_id, after=after, before=before, limit=limit
    )


async def find_with_news(session: AnySession, since: Mapping[str, datetime]) -> list[str]:
    """Return the projects that have events which changed at or after a time, by project id."""
    return await repository.find_with_news(session, since)


async def get_event(session: AnySession, project_id: str, event_id: str) -> Row[Any]:
    """Read a row for `event_body`. Raises CalendarEventNotFound."""
    row = await repository.find_event(session, project_id, event_id)
    if row is None:
        raise CalendarEventNotFound
    return row


async def get_exported(session: AnySession, project_id: str, event_id: str) -> ExportedEvent:
    """Read an event for app/ical/export.py. Raises CalendarEventNotFound; BadQuery if it has no start."""
    row = await get_event(session, project_id, event_id)
    if row.start_time is None:
        raise BadQuery(
            "The provider did not tell when this event starts, so there is no iCalendar file of it."
        )
    organizer = orjson.loads(row.organizer) if row.organizer is not None else None
    return ExportedEvent(
        uid=row.ical_uid or row.id,
        start_time=row.start_time.replace(tzinfo=UTC),
        end_time=row.end_time.replace(tzinfo=UTC) if row.end_time is not None else None,
        is_all_day=row.is_all_day,
        timezone=row.timezone,
        original_start_time=(
            row.original_start_time.replace(tzinfo=UTC)
            if row.recurring_event_id is not None and row.original_start_time is not None
            else None
        ),
        is_cancelled=row.is_deleted,
        name=row.name,
        description=row.description,
        location=row.location,
        url=row.meeting_url,
        organizer=_exported_person(organizer) if organizer is not None else None,
        attendees=[_exported_person(person) for person in orjson.loads(row.attendees)],
        created_at=row.created_at.replace(tzinfo=UTC),
        updated_at=row.updated_at.replace(tzinfo=UTC),
        busy_status=row.busy_status,
        visibility=row.visibility,
    )


def _exported_person(person: dict[str, Any]) -> ExportedPerson:
    """Convert an organizer or attendee as it is stored."""
    return ExportedPerson(
        email=person["email"],
        name=person["name"],
        response_status=person.get("response_status", "needs_action"),
        is_optional=person.get("is_optional", False),
        is_resource=person.get("is_resource", False),
    )


def event_body(row: Row[Any]) -> dict[str, Any]:
    """Return the event for orjson: times as text, JSON columns embedded as the text that they are."""
    body = dict(zip(FIELDS, row, strict=True))
    for name in TIMES:
        at = body[name]
        if at is not None:
            body[name] = at.isoformat("T", "microseconds") + "Z"
    for name in JSON_TEXTS:
        text = body[name]
        if text is not None:
            body[name] = orjson.Fragment(text)
    body["bots"] = [shown_bot(bot) for bot in orjson.loads(row.bots)]
    return body


async def count_events(session: AnySession, calendar_id: str) -> tuple[int, int]:
    """Return how many events the calendar has, and how many deleted ones are still kept."""
    return await repository.count_events(session, calendar_id)
