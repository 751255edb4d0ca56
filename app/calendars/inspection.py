"""The sync state of one calendar of any project, and a sync on request, for the operator."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from app.api.not_found import CalendarNotFound
from app.calendar_events.service import count_events
from app.calendars import repository, service
from app.calendars.errors import CalendarNotSynced
from app.calendars.repository import SyncRecord
from app.core.db import AnySession, Session
from app.push.service import find_channel
from app.settings import Settings

SyncResult = Literal["succeeded", "failed", "postponed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalendarInspection:
    """The state of a calendar's syncs.

    It contains no secret, and neither the cursor nor the feed's address.

    A local calendar is not synced: its times are null. `claimed_until`: a worker is syncing it and has its lease until
    then. `cursor_age_seconds`: null if there is no cursor, so that the next sync reads everything.
    `window`: the sync window in days. `window_start`, `window_end`: the range that the cursor is for.
    `held_back_events`: events that a response left out in a mass, and that are kept until another one confirms it.
    `push_channel`: `opening`, `open` or null.
    """

    calendar_id: str
    project_id: str
    project_name: str
    platform: str
    state: str
    connection_failure_data: dict[str, Any] | None
    last_successful_sync_at: datetime | None
    last_attempted_sync_at: datetime | None
    next_sync_at: datetime | None
    claimed_until: datetime | None
    cursor_age_seconds: int | None
    cursor_expired_at: datetime | None
    window: dict[str, int] | None
    window_start: datetime | None
    window_end: datetime | None
    covered_from: datetime | None
    covered_until: datetime | None
    failing_since: datetime | None
    failure_code: str | None
    failure_message: str | None
    failure_count: int
    outage_scope: str | None
    held_back_events: int
    push_channel: str | None
    push_verified: bool
    push_expires_at: datetime | None
    push_due_at: datetime | None
    events: int
    deleted_events: int


async def inspect_calendar(session: AnySession, settings: Settings, calendar_id: str) -> CalendarInspection:
    """Return the state of a calendar's syncs. Raises CalendarNotFound."""
    record = await load_sync_record(session, calendar_id)
    calendar = await service.get_calendar(session, settings, record.project_id, calendar_id)
    channel = await find_channel(session, calendar_id)
    events, deleted_events = await count_events(session, calendar_id)
    failure = calendar.sync_failure
    is_synced = calendar.platform != "local"
    return CalendarInspection(
        calendar_id=calendar_id,
        project_id=record.project_id,
        project_name=record.project_name,
        platform=calendar.platform,
        state=calendar.state,
        connection_failure_data=calendar.connection_failure_data,
        last_successful_sync_at=calendar.last_successful_sync_at,
        last_attempted_sync_at=calendar.last_attempted_sync_at,
        next_sync_at=record.next_sync_at if is_synced and calendar.state == "connected" else None,
        claimed_until=record.claimed_until,
        cursor_age_seconds=_cursor_age(record, calendar.last_successful_sync_at),
        cursor_expired_at=record.cursor_expired_at,
        window=calendar.window.model_dump() if calendar.window is not None else None,
        window_start=record.window_start,
        window_end=record.window_end,
        covered_from=calendar.covered_from,
        covered_until=calendar.covered_until,
        failing_since=calendar.sync_failing_since,
        failure_code=failure.code if failure is not None else None,
        failure_message=failure.message if failure is not None else None,
        failure_count=failure.count if failure is not None else 0,
        outage_scope=record.outage_scope,
        held_back_events=record.held_back_events,
        push_channel=channel.state if channel is not None else None,
        push_verified=channel is not None and channel.is_verified,
        push_expires_at=channel.expires_at if channel is not None else None,
        push_due_at=record.push_due_at,
        events=events,
        deleted_events=deleted_events,
    )


async def load_sync_record(session: AnySession, calendar_id: str) -> SyncRecord:
    """Return the sync state of the calendar's row. Raises CalendarNotFound."""
    record = await repository.find_sync_record(session, calendar_id)
    if record is None:
        raise CalendarNotFound
    return record


async def request_sync_by_hand(session: Session, calendar_id: str) -> SyncRecord:
    """Make the calendar due, as `POST /sync` does, and return its record from just after that.

    Raises CalendarNotFound, CalendarDisconnected; CalendarNotSynced for a local calendar.
    """
    record = await load_sync_record(session, calendar_id)
    if record.platform == "local":
        raise CalendarNotSynced
    await service.queue_sync(session, record.project_id, calendar_id)
    return await load_sync_record(session, calendar_id)


async def find_sync_result(
    session: AnySession, settings: Settings, calendar_id: str, requested: SyncRecord
) -> tuple[SyncResult | None, CalendarInspection]:
    """Return the result of the sync that `request_sync_by_hand` requested; None until it has ended.

    Raises CalendarNotFound.

    `postponed`: the provider was not asked, because of an outage, a rate limit or a budget.
    """
    found = await inspect_calendar(session, settings, calendar_id)
    record = await load_sync_record(session, calendar_id)
    if record.claimed_until is not None:
        return None, found
    has_failed = found.failure_code is not None or found.state == "disconnected"
    if record.last_attempted_sync_at is not None and record.last_attempted_sync_at >= requested.now:
        return ("failed" if has_failed else "succeeded"), found
    if record.next_sync_at <= record.now:
        return None, found
    if record.sync_started_at is not None and record.sync_started_at >= requested.now:
        return "postponed", found
    # A sync that ran at the time of the request and then failed: its retry also serves the request.
    if has_failed and record.last_attempted_sync_at != requested.last_attempted_sync_at:
        return "failed", found
    return None, found


def _cursor_age(record: SyncRecord, last_successful_sync_at: datetime | None) -> int | None:
    """Return the cursor's age in seconds, which is the age of the last success: only that stores a cursor."""
    if not record.has_cursor or last_successful_sync_at is None:
        return None
    return max(0, int((record.now - last_successful_sync_at).total_seconds()))
