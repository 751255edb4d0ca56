"""SQL of calendars. The state of their sync is written by app/sync/, their push channels by app/push/."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping, and_, case, delete, func, literal_column, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from app.core.db import AnySession, ReadSession, Session
from app.core.pagination import Cursor, Ordering, Page, page_of, seek_each
from app.core.wakeups import wake_after_commit
from app.credentials.account import ConnectedCalendar
from app.models import Calendar, Credentials, Project
from app.models.calendar import FAILING, PLATFORMS, STATES

_FIRST_RETRY_AFTER = timedelta(seconds=30)

_NEWEST_FIRST = Ordering("-created_at", Calendar.created_at, Calendar.id, descending=True)  # type: ignore[arg-type] # a mapped column is a column

# A process of the release before stores the window that it read, but not what is covered: only what is in both was read
# by the last sync. A calendar that only such processes have synced has the window alone (NULL is ignored).
_READ = select(
    Calendar.id,
    Calendar.platform,
    Credentials.client_id,
    Calendar.platform_uuid,
    Calendar.state,
    Calendar.metadata_.label("metadata"),
    Calendar.deduplication_key,
    Calendar.connection_failure_data,
    Calendar.created_at,
    Calendar.updated_at,
    Calendar.last_successful_sync_at,
    Calendar.last_attempted_sync_at,
    Calendar.sync_failing_since,
    Calendar.sync_failure_code,
    Calendar.sync_failure_message,
    Calendar.sync_failure_count,
    Calendar.outage_scope,
    Calendar.next_sync_at,
    Calendar.name,
    Calendar.owner_email,
    Calendar.owner_name,
    Calendar.timezone,
    Calendar.locale,
    Calendar.sending_identity,
    Calendar.window_past_days,
    Calendar.window_future_days,
    func.greatest(Calendar.covered_from, Calendar.window_start).label("covered_from"),
    func.least(Calendar.covered_until, Calendar.window_end).label("covered_until"),
).outerjoin(Credentials, Credentials.id == Calendar.credentials_id)


async def find_calendar(session: AnySession, project_id: str, calendar_id: str) -> RowMapping | None:
    """Return a row with the columns of CalendarRead, or None."""
    statement = _READ.where(Calendar.project_id == project_id, Calendar.id == calendar_id)
    return (await session.execute(statement)).mappings().one_or_none()


async def list_calendars(
    session: ReadSession,
    project_id: str,
    filters: Mapping[str, str],
    cursor_text: str | None,
    limit: int,
    *,
    failing: bool | None = None,
) -> Page[RowMapping]:
    """Return a page of calendars, newest first. Raises BadQuery for a bad cursor.

    `filters`: column names with the values that they must have. `failing`: whether the syncs fail; None for both.
    """
    conditions: list[Any] = [Calendar.project_id == project_id]
    for name, value in filters.items():
        # The state is a literal, as in the partial index of disconnected calendars, so that PostgreSQL can use it.
        wanted = literal_column(f"'{value}'") if name == "state" and value in STATES else value
        conditions.append(getattr(Calendar, name) == wanted)
    if failing is not None:
        conditions.append(text(FAILING) if failing else text(f"NOT ({FAILING})"))
    platforms = [filters["platform"]] if "platform" in filters else PLATFORMS
    kinds = [Calendar.platform == platform for platform in platforms]
    cursor = Cursor.decode(cursor_text, ordering=_NEWEST_FIRST.name) if cursor_text is not None else None
    statement = seek_each(_READ, _NEWEST_FIRST, cursor, limit, conditions=conditions, kinds=kinds)
    rows = (await session.execute(statement)).mappings().all()
    return page_of(rows, _NEWEST_FIRST, cursor, limit, place=lambda row: (row["created_at"], row["id"]))


async def insert_calendar(session: Session, values: Mapping[str, Any]) -> bool:
    """Insert a calendar. Return False if the project has one with the same deduplication key.

    If another transaction inserts the same key at the same time, this waits until it has committed or rolled back.
    """
    inserted = await session.scalar(
        insert(Calendar)
        .values(values)
        .on_conflict_do_nothing(index_elements=[Calendar.project_id, Calendar.deduplication_key])
        .returning(Calendar.id)
    )
    if inserted is not None and values["platform"] != "local":
        wake_after_commit(session, "syncs")
    return inserted is not None


async def find_existing(session: AnySession, ids: Collection[str]) -> set[str]:
    """Find those of the calendars that exist, in any project."""
    return set(await session.scalars(select(Calendar.id).where(Calendar.id.in_(ids))))


async def find_connection(
    session: AnySession, project_id: str, calendar_id: str
) -> tuple[str, str | None] | None:
    """Return (platform, credentials_id), or None.

    Nothing is locked, so the credentials may change at any time.
    """
    row = (
        await session.execute(
            select(Calendar.platform, Calendar.credentials_id).where(
                Calendar.project_id == project_id, Calendar.id == calendar_id
            )
        )
    ).one_or_none()
    return None if row is None else (row.platform, row.credentials_id)


async def find_connected(
    session: AnySession, project_id: str, calendar_ids: Sequence[str]
) -> list[ConnectedCalendar]:
    """Return the calendars and their accounts. Those that the project does not have are left out."""
    is_put_off = and_(
        Calendar.sync_failure_code == "rate_limited", Calendar.next_sync_at > func.clock_timestamp()
    )
    statement = (
        select(
            Calendar.id,
            Calendar.platform,
            Calendar.platform_uuid,
            Calendar.state,
            Calendar.credentials_id,
            Credentials.client_id,
            Calendar.owner_email,
            case((is_put_off, Calendar.next_sync_at)),
        )
        .outerjoin(Credentials, Credentials.id == Calendar.credentials_id)
        .where(Calendar.project_id == project_id, Calendar.id.in_(calendar_ids))
    )
    return [ConnectedCalendar(*row) for row in await session.execute(statement)]


async def lock_calendar(session: Session, project_id: str, calendar_id: str) -> Calendar | None:
    """Return the calendar, locked until the end of the transaction, as all writers of its events do."""
    return await session.scalar(
        select(Calendar)
        .where(Calendar.project_id == project_id, Calendar.id == calendar_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )


async def lock_calendars_of(session: Session, project_id: str, credentials_id: str) -> Sequence[Calendar]:
    """Return all calendars that use these credentials, ordered by id and locked."""
    rows = await session.scalars(
        select(Calendar)
        .where(Calendar.project_id == project_id, Calendar.credentials_id == credentials_id)
        .order_by(Calendar.id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    return rows.all()


async def set_credentials(session: Session, calendar_id: str, credentials_id: str) -> None:
    """Connect the calendar with other credentials. The caller holds its lock."""
    await session.execute(
        update(Calendar)
        .where(Calendar.id == calendar_id)
        .values(credentials_id=credentials_id)
        .execution_options(synchronize_session=False)
    )


async def are_shared(session: Session, credentials_id: str) -> bool:
    """Whether several calendars use these credentials.

    While the caller has locked them, no calendar is added.
    """
    statement = select(Calendar.id).where(Calendar.credentials_id == credentials_id).limit(2)
    return len((await session.scalars(statement)).all()) > 1


async def reconnect(session: Session, calendar_ids: Sequence[str]) -> None:
    """Make the calendars connected and due, and remove their failures and cursors.

    A sync that runs with the old credentials loses its lease, so that it writes nothing more.
    """
    await session.execute(
        update(Calendar)
        .where(Calendar.id.in_(calendar_ids))
        .values(
            state="connected",
            connection_failure_data=None,
            sync_failing_since=None,
            sync_failure_count=0,
            sync_failure_code=None,
            sync_failure_message=None,
            sync_failure_code_since=None,
            sync_failure_code_count=0,
            # The next sync counts as forced by a client: its failure does not confirm a refusal.
            sync_forced_before=func.clock_timestamp() + _FIRST_RETRY_AFTER,
            outage_scope=None,
            held_back_ids=None,
            held_back_since=None,
            cursor_expired_at=None,
            sync_cursor=None,
            lease_token=None,
            lease_until=None,
            push_due_at=None,  # the next sync sets it, for the account of the new credentials
            next_sync_at=func.clock_timestamp(),
            sync_forced=False,
            updated_at=func.clock_timestamp(),
        )
        .execution_options(synchronize_session=False)
    )
    wake_after_commit(session, "syncs")


async def set_metadata(session: Session, calendar_id: str, metadata: dict[str, Any] | None) -> None:
    await session.execute(
        update(Calendar)
        .where(Calendar.id == calendar_id)
        .values(metadata_=metadata, updated_at=func.clock_timestamp())
        .execution_options(synchronize_session=False)
    )


async def set_window(session: Session, calendar_id: str, columns: Mapping[str, int | None]) -> None:
    """Set the window that a client chose. The sync compares it with the one that it read last."""
    is_other = or_(*(getattr(Calendar, name).is_distinct_from(value) for name, value in columns.items()))
    await session.execute(
        update(Calendar)
        .where(Calendar.id == calendar_id, is_other)
        .values(**columns, updated_at=func.clock_timestamp())
        .execution_options(synchronize_session=False)
    )


async def set_owner_email(session: Session, credentials_id: str, owner_email: str | None) -> None:
    """Set the owner's address of all calendars that use these credentials. The caller holds their locks."""
    await session.execute(
        update(Calendar)
        .where(Calendar.credentials_id == credentials_id)
        .values(owner_email=owner_email)
        .execution_options(synchronize_session=False)
    )


async def set_fields(session: Session, calendar_id: str, values: Mapping[str, Any]) -> None:
    await session.execute(
        update(Calendar)
        .where(Calendar.id == calendar_id)
        .values(**values, updated_at=func.clock_timestamp())
        .execution_options(synchronize_session=False)
    )


async def delete_calendar(session: Session, calendar_id: str) -> None:
    """Delete the calendar and its dependent rows.

    Its events are hidden at once and deleted later (DeletedCalendar).
    """
    await session.execute(
        delete(Calendar).where(Calendar.id == calendar_id).execution_options(synchronize_session=False)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRecord:
    """The sync state of a calendar's row, beyond CalendarRead. `now` is the database's time."""

    project_id: str
    project_name: str
    platform: str
    now: datetime
    next_sync_at: datetime
    sync_started_at: datetime | None
    claimed_until: datetime | None
    last_attempted_sync_at: datetime | None
    has_cursor: bool
    cursor_expired_at: datetime | None
    window_start: datetime | None
    window_end: datetime | None
    held_back_events: int
    outage_scope: str | None
    push_due_at: datetime | None


async def find_sync_record(session: AnySession, calendar_id: str) -> SyncRecord | None:
    """Find a calendar of any project. A lease that has expired is no claim."""
    statement = (
        select(
            Calendar.project_id,
            Project.name.label("project_name"),
            Calendar.platform,
            func.clock_timestamp().label("now"),
            Calendar.next_sync_at,
            Calendar.sync_started_at,
            case((Calendar.lease_until > func.clock_timestamp(), Calendar.lease_until)).label(
                "claimed_until"
            ),
            Calendar.last_attempted_sync_at,
            Calendar.sync_cursor.is_not(None).label("has_cursor"),
            Calendar.cursor_expired_at,
            Calendar.window_start,
            Calendar.window_end,
            func.coalesce(func.cardinality(Calendar.held_back_ids), 0).label("held_back_events"),
            Calendar.outage_scope,
            Calendar.push_due_at,
        )
        .join(Project, Project.id == Calendar.project_id)
        .where(Calendar.id == calendar_id)
    )
    row = (await session.execute(statement)).mappings().one_or_none()
    return None if row is None else SyncRecord(**row)
