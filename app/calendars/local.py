"""Local calendars, which are hosted here (`platform: local`). app/hosted/ writes their events."""

from typing import Any

from app.api.not_found import CalendarNotFound
from app.calendars import repository
from app.calendars.connection import insert_calendar
from app.calendars.schemas import CalendarUpdate, LocalCalendarCreate
from app.core.db import Session
from app.core.errors import InvalidFields
from app.hosted.service import schedule_rewrite

FIELDS = {"name", "owner_name", "timezone", "locale", "sending_identity"}


async def create_local(
    session: Session, project_id: str, body: LocalCalendarCreate, identity: dict[str, Any] | None
) -> str:
    """Store the calendar and return its id.

    `identity`: see app/hosted/identity.py. Raises DeduplicationKeyTaken.
    """
    return await insert_calendar(
        session,
        {
            "project_id": project_id,
            "platform": "local",
            "metadata_": body.metadata,
            "deduplication_key": body.deduplication_key,
            "name": body.name,
            "owner_email": body.owner_email,
            "owner_name": body.owner_name,
            "timezone": body.timezone,
            "locale": body.locale,
            "sending_identity": identity,
        },
    )


async def update_local(
    session: Session,
    project_id: str,
    calendar_id: str,
    body: CalendarUpdate,
    identity: dict[str, Any] | None,
) -> None:
    """Change the fields that only local calendars have. Raises CalendarNotFound, InvalidFields."""
    values = body.model_dump(include=FIELDS & body.model_fields_set)
    required = [name for name in ("name", "timezone", "locale") if name in values and values[name] is None]
    if required:
        raise InvalidFields({name: ["This field may not be null."] for name in required})
    if "sending_identity" in values:
        values["sending_identity"] = identity
    if await repository.lock_calendar(session, project_id, calendar_id) is None:
        raise CalendarNotFound
    await repository.set_fields(session, calendar_id, values)
    if values.keys() & {"sending_identity", "owner_name"}:
        # These fields are the organizer of the events, so a worker writes the events again.
        await schedule_rewrite(session, calendar_id)
