"""Reading, changing, syncing and deleting calendars of every kind.

account.py (Google, Microsoft), feed.py (iCal feeds) and local.py (hosted here) have what differs by kind.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping

from app.api.not_found import CalendarNotFound
from app.bots.service import drop_bots_of_calendar
from app.calendars import connection, local, repository
from app.calendars.account import connect_account, share_account
from app.calendars.errors import CalendarDisconnected, no_such_field
from app.calendars.feed import connect_feed, normalized_feed_url
from app.calendars.schemas import (
    CalendarRead,
    CalendarsQuery,
    CalendarUpdate,
    FeedCalendarCreate,
    LocalCalendarCreate,
    ProviderCalendarCreate,
    SharedCalendarCreate,
    SyncFailure,
)
from app.core.crypto import SecretBox
from app.core.db import AnySession, ReadSession, Session
from app.core.errors import InvalidFields
from app.core.pagination import Page
from app.credentials.service import delete_unless_used
from app.hosted.service import find_horizon
from app.join_rules.service import leave_calendar
from app.models import Calendar
from app.push.service import release_channels
from app.schedule import request_sync
from app.settings import Settings
from app.sync.window import window_days
from app.webhooks.outbox import delete_pending_of_calendar

PAGE_SIZE = 25

_OUTAGE = "The platform fails for many calendars: this one is synced as soon as the platform works again."
_UNKNOWN_FAILURE = "The last sync failed."


async def get_calendar(
    session: AnySession, settings: Settings, project_id: str, calendar_id: str
) -> CalendarRead:
    """Return a calendar. Raises CalendarNotFound."""
    row = await repository.find_calendar(session, project_id, calendar_id)
    if row is None:
        raise CalendarNotFound
    [calendar] = await _read(session, settings, [row])
    return calendar


async def list_calendars(
    session: ReadSession, settings: Settings, project_id: str, query: CalendarsQuery
) -> Page[CalendarRead]:
    """Return a page of calendars, newest first. Raises BadQuery for a bad cursor."""
    if query.finds_nothing:
        return Page([], None, None)
    filters = query.model_dump(exclude={"cursor", "page_size", "failing"}, exclude_none=True)
    page = await repository.list_calendars(
        session, project_id, filters, query.cursor, query.rows_of(PAGE_SIZE), failing=query.failing
    )
    return Page(await _read(session, settings, page.rows), page.next, page.previous)


async def _read(session: AnySession, settings: Settings, rows: Sequence[RowMapping]) -> list[CalendarRead]:
    horizon = None
    if any(row["platform"] == "local" for row in rows):
        horizon = await find_horizon(session, settings)
    return [CalendarRead(**_shown(row, settings, horizon)) for row in rows]


def _shown(row: RowMapping, settings: Settings, horizon: datetime | None) -> dict[str, Any]:
    """Return the fields of CalendarRead. `horizon`: how far the series of local calendars are expanded."""
    shown = {**row, "sync_failure": _sync_failure(row)}
    if row["platform"] == "local":
        # Everything that was hosted here is known, since the calendar was created.
        return {**shown, "window": None, "covered_from": row["created_at"], "covered_until": horizon}
    days = window_days(settings, row["window_past_days"], row["window_future_days"])
    return {**shown, "window": {"past_days": days.past, "future_days": days.future}}


def _sync_failure(row: RowMapping) -> SyncFailure | None:
    if row["state"] != "connected":
        return None
    if row["sync_failing_since"] is not None and row["sync_failure_code"] is not None:
        code = row["sync_failure_code"]
        message = row["sync_failure_message"] or _UNKNOWN_FAILURE
    elif row["outage_scope"] is not None:
        code, message = "platform_outage", _OUTAGE
    else:
        return None
    return SyncFailure(
        code=code, message=message, count=row["sync_failure_count"], next_attempt_at=row["next_sync_at"]
    )


async def require_calendar(session: AnySession, project_id: str, calendar_id: str) -> None:
    """Check that the calendar exists. Raises CalendarNotFound."""
    if await repository.find_connection(session, project_id, calendar_id) is None:
        raise CalendarNotFound


async def find_existing(session: AnySession, ids: Collection[str]) -> set[str]:
    """Return those of the calendar ids whose calendars exist, in any project."""
    return await repository.find_existing(session, ids)


async def create_calendar(
    session: Session,
    settings: Settings,
    box: SecretBox,
    project_id: str,
    body: ProviderCalendarCreate | SharedCalendarCreate | FeedCalendarCreate,
) -> CalendarRead:
    """Store a calendar of a provider or a feed, due for its first sync now.

    Raises InvalidFields, DeduplicationKeyTaken.
    """
    if isinstance(body, FeedCalendarCreate):
        calendar_id = await connect_feed(
            session, box, project_id, body, allows_http=settings.allows_http_feed
        )
    elif isinstance(body, SharedCalendarCreate):
        calendar_id = await share_account(session, project_id, body)
    else:
        calendar_id = await connect_account(session, box, project_id, body)
    return await get_calendar(session, settings, project_id, calendar_id)


async def create_local_calendar(
    session: Session,
    settings: Settings,
    project_id: str,
    body: LocalCalendarCreate,
    identity: dict[str, Any] | None,
) -> CalendarRead:
    """Store a calendar that is hosted here.

    `identity`: see app/hosted/identity.py. Raises DeduplicationKeyTaken.
    """
    calendar_id = await local.create_local(session, project_id, body, identity)
    return await get_calendar(session, settings, project_id, calendar_id)


async def get_local_owner(session: AnySession, project_id: str, calendar_id: str, *, field: str) -> str:
    """Return the owner's address of a local calendar.

    Raises CalendarNotFound; InvalidFields on `field` for other platforms.
    """
    row = await repository.find_calendar(session, project_id, calendar_id)
    if row is None:
        raise CalendarNotFound
    if row["platform"] != "local" or row["owner_email"] is None:
        raise InvalidFields.one(field, no_such_field(row["platform"]))
    owner_email: str = row["owner_email"]
    return owner_email


async def update_calendar(
    session: Session,
    settings: Settings,
    box: SecretBox,
    project_id: str,
    calendar_id: str,
    *,
    body: CalendarUpdate,
    identity: dict[str, Any] | None = None,
) -> CalendarRead:
    """Apply the change and make the calendar due for a sync, like `queue_sync`.

    `identity`: the identity that `sending_identity` names. New secrets reconnect every calendar that shares them.
    Raises CalendarNotFound, InvalidFields.
    """
    found = await repository.find_connection(session, project_id, calendar_id)
    if found is None:
        raise CalendarNotFound
    platform, credentials_id = found
    secrets = body.model_dump(include={"client_secret", "refresh_token", "feed_url"}, exclude_none=True)
    _refuse_fields_of_others(platform, secrets.keys() | (body.model_fields_set & (local.FIELDS | {"window"})))
    if body.model_fields_set & local.FIELDS:
        await local.update_local(session, project_id, calendar_id, body, identity)
    if "feed_url" in secrets:
        secrets["feed_url"] = normalized_feed_url(secrets["feed_url"], settings.allows_http_feed)
    reconnected: Sequence[Calendar] = []
    if secrets and credentials_id is not None:
        reconnected = await connection.renew_secrets(session, box, project_id, calendar_id, secrets)
    if "metadata" in body.model_fields_set:
        await repository.set_metadata(session, calendar_id, body.metadata)
    if "window" in body.model_fields_set:
        await repository.set_window(session, calendar_id, connection.window_columns(body.window))
    await request_sync(session, calendar_id)
    await connection.announce_reconnected(session, reconnected)
    return await get_calendar(session, settings, project_id, calendar_id)


def _refuse_fields_of_others(platform: str, given: set[str]) -> None:
    """Raise InvalidFields if a field is given that calendars of this platform do not have."""
    own = local.FIELDS if platform == "local" else connection.SECRETS_OF.get(platform, set()) | {"window"}
    if foreign := given - own:
        raise InvalidFields({name: [no_such_field(platform)] for name in sorted(foreign)})


async def set_metadata(session: Session, calendar_id: str, metadata: dict[str, Any] | None) -> None:
    await repository.set_metadata(session, calendar_id, metadata)


async def queue_sync(session: Session, project_id: str, calendar_id: str) -> None:
    """Make the calendar due, within the limits of `request_sync`.

    Raises CalendarNotFound, CalendarDisconnected.
    """
    row = await repository.find_calendar(session, project_id, calendar_id)
    if row is None:
        raise CalendarNotFound
    if row["state"] == "disconnected":
        raise CalendarDisconnected
    await request_sync(session, calendar_id)


async def delete_calendar(
    session: Session, settings: Settings, box: SecretBox, project_id: str, calendar_id: str
) -> None:
    """Delete the calendar and everything that belongs to it. Raises CalendarNotFound.

    A sync that is running loses its lease and writes nothing more.
    """
    calendar = await repository.lock_calendar(session, project_id, calendar_id)
    if calendar is None:
        raise CalendarNotFound
    await delete_pending_of_calendar(session, calendar_id)
    await release_channels(session, box, calendar_id=calendar_id, credentials_id=calendar.credentials_id)
    await leave_calendar(session, settings, project_id, calendar_id)
    await drop_bots_of_calendar(session, calendar_id, "calendar_deleted")
    await repository.delete_calendar(session, calendar_id)
    if calendar.credentials_id is not None:
        await delete_unless_used(session, calendar.credentials_id)
