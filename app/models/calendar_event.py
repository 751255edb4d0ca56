"""Events, one row per event or instance of a series; gone ones stay with `is_deleted`."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, LargeBinary, func, text
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId


class CalendarEvent(Base):
    """`updated_at` is given under the calendar's row lock and is unique and growing within a calendar.

    `raw`, `attendees` and `organizer` are JSON (not JSONB): kept and handed out as the text that was written.
    `content_hash` covers everything that an application sees, so that a changed row is told by one comparison.

    Rows of up to 8 kB are kept in one piece and uncompressed: that takes half of PostgreSQL's time to write them
    and to read a page of them, for half as much disk again.

    `calendar_id` is no foreign key: a calendar is deleted at once, however many events it has, and a worker clears
    them away afterwards (`DeletedCalendar`).
    """

    __tablename__ = "calendar_events"
    __table_args__ = ({"postgresql_with": {"toast_tuple_target": 8160}},)

    id: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId]
    calendar_id: Mapped[PublicId]
    platform_uuid: Mapped[str]
    content_hash: Mapped[bytes] = mapped_column(LargeBinary)
    is_deleted: Mapped[bool] = mapped_column(server_default="false")
    start_time: Mapped[datetime | None]
    end_time: Mapped[datetime | None]
    is_all_day: Mapped[bool] = mapped_column(server_default="false")
    timezone: Mapped[str | None]
    name: Mapped[str | None]
    description: Mapped[str | None]
    location: Mapped[str | None]
    ical_uid: Mapped[str | None]
    organizer: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    attendees: Mapped[Any] = mapped_column(JSON, server_default="[]")
    response_status: Mapped[str | None]
    recurring_event_id: Mapped[str | None]
    original_start_time: Mapped[datetime | None]
    meeting_url: Mapped[str | None]
    meeting_platform: Mapped[str | None]
    raw: Mapped[Any] = mapped_column(JSON, server_default="{}")
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]


class DeletedCalendar(Base):
    """A calendar that is gone, and whose events are still to be cleared away; a trigger on `calendars` writes it."""

    __tablename__ = "deleted_calendars"

    calendar_id: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(index=True)
    deleted_at: Mapped[CreatedAt]


_event = CalendarEvent.__table__.c

# An event without a readable start sorts behind all others; the same expressions stand in the queries.
start_or_last = func.coalesce(_event.start_time, text("'infinity'::timestamptz"))
end_or_last = func.coalesce(_event.end_time, text("'infinity'::timestamptz"))

Index("uq_calendar_events_calendar_id_platform_uuid", _event.calendar_id, _event.platform_uuid, unique=True)

# One for each ordering, in a calendar and over a project. A list of both, live and deleted events, merges two ranges of
# such an index (app/calendar_events/repository.py); the sync and retention read only those of one kind.
for _name, _key in {
    "updated": _event.updated_at,
    "created": _event.created_at,
    "start": start_or_last,
    "end": end_or_last,
}.items():
    Index(f"ix_calendar_events_calendar_by_{_name}", _event.calendar_id, _event.is_deleted, _key, _event.id)
    Index(f"ix_calendar_events_project_by_{_name}", _event.project_id, _event.is_deleted, _key, _event.id)

Index(
    "ix_calendar_events_project_id_ical_uid_calendar_id",
    _event.project_id,
    _event.ical_uid,
    _event.calendar_id,
)
Index(
    "ix_calendar_events_calendar_id_recurring_event_id",
    _event.calendar_id,
    _event.recurring_event_id,
    postgresql_where=_event.recurring_event_id.is_not(None),
)
