"""Events: one row for each event or instance. Removed events keep their row with `is_deleted`."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, LargeBinary, func, text
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId


class CalendarEvent(Base):
    """One event, or one instance of a recurring event.

    - `calendar_id`: not a foreign key. A calendar is deleted at once, however many events it has, and a worker deletes
      them afterwards (`DeletedCalendar`).
    - `platform_uuid`: the provider's id of the event.
    - `content_hash`: covers everything that an application sees, so that one comparison finds a changed row.
    - `attendees`, `organizer`, `raw`: JSON and not JSONB, so that the text that was written is returned unchanged.
    - `recurring_event_id`, `original_start_time`: the series of an instance, and the start that it has in the series.
    - `busy_status`, `visibility`, `event_type`: null in rows that were written before these columns existed, until a
      sync or a worker has read them from `raw`.
    - `updated_at`: set under the calendar's row lock. It is unique within a calendar and always grows.

    Rows of up to 8 kB are stored in one piece and uncompressed. That halves PostgreSQL's time to write them and to read
    a page of them, and takes half as much disk space again (docs/adr/0007-uncompressed-event-rows.md).
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
    busy_status: Mapped[str | None]
    visibility: Mapped[str | None]
    event_type: Mapped[str | None]
    etag: Mapped[str | None]
    raw: Mapped[Any] = mapped_column(JSON, server_default="{}")
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]


class DeletedCalendar(Base):
    """A deleted calendar whose events are still to be deleted. A trigger on `calendars` writes the row."""

    __tablename__ = "deleted_calendars"

    calendar_id: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(index=True)
    deleted_at: Mapped[CreatedAt]


_event = CalendarEvent.__table__.c

# For the queries of free/busy times and their indexes (app/availability/repository.py). PostgreSQL uses a partial index
# only for a query that has the index's own condition.
COUNTS_AS_BUSY = (
    "NOT is_deleted AND response_status IS DISTINCT FROM 'declined' "
    "AND coalesce(busy_status, 'busy') NOT IN ('free', 'working_elsewhere')"
)
LONG_HOURS = 24
LASTS_LONG = f"end_time - start_time > interval '{LONG_HOURS} hours'"

# An event without a readable start sorts after all others. Queries use the same expressions.
start_or_last = func.coalesce(_event.start_time, text("'infinity'::timestamptz"))
end_or_last = func.coalesce(_event.end_time, text("'infinity'::timestamptz"))

Index("uq_calendar_events_calendar_id_platform_uuid", _event.calendar_id, _event.platform_uuid, unique=True)

# One index for each ordering, within a calendar and over a project. A list of live and deleted events merges two
# ranges of such an index (app/calendar_events/repository.py). Syncs and retention read only one of the two.
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
# Rows from before these columns existed (app/events/backfill.py).
Index(
    "ix_calendar_events_to_fill",
    _event.calendar_id,
    _event.id,
    postgresql_where=_event.event_type.is_(None),
)
Index(
    "ix_calendar_events_calendar_id_recurring_event_id",
    _event.calendar_id,
    _event.recurring_event_id,
    postgresql_where=_event.recurring_event_id.is_not(None),
)

Index(
    "ix_calendar_events_busy_by_start",
    _event.calendar_id,
    _event.start_time,
    postgresql_include=["end_time", "busy_status"],
    postgresql_where=text(f"{COUNTS_AS_BUSY} AND start_time < end_time"),
)
Index(
    "ix_calendar_events_long_busy_by_end",
    _event.calendar_id,
    _event.end_time,
    postgresql_include=["start_time", "busy_status"],
    postgresql_where=text(f"{COUNTS_AS_BUSY} AND {LASTS_LONG}"),
)
# Events of one meeting, over the calendars of a project (app/join_rules/). A link may be too long to be indexed.
Index(
    "ix_calendar_events_project_by_meeting_url",
    _event.project_id,
    text("md5(meeting_url)"),
    _event.start_time,
    postgresql_where=_event.meeting_url.is_not(None) & ~_event.is_deleted,
)
