"""Rows of endpoints (`webhook_subscriptions`): what clients set, and the results of attempts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    Float,
    Text,
    any_,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from app.core.db import AnySession, Session
from app.core.pagination import Cursor, Ordering, Page, page_of, seek
from app.models import Calendar, Project, WebhookSubscription

_sub = WebhookSubscription

_NEWEST_FIRST = Ordering("-created_at", _sub.created_at.expression, _sub.id.expression, descending=True)
# A failure this long after the last counted one counts as another day. The schedule's long waits are about as long.
_FAILING_DAY = timedelta(hours=20)


async def count_endpoints(session: Session, project_id: str) -> int:
    """Count the project's endpoints. Requests that would add one wait until this transaction ends."""
    await session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))
    return await session.scalar(select(func.count()).where(_sub.project_id == project_id)) or 0


async def find_calendars(session: AnySession, project_id: str, ids: Sequence[str]) -> set[str]:
    """Return those of the ids that are calendars of the project."""
    found = await session.scalars(
        select(Calendar.id).where(
            Calendar.project_id == project_id, Calendar.id == any_(literal(ids, ARRAY(Text)))
        )
    )
    return set(found)


async def insert_endpoint(session: Session, values: Mapping[str, Any]) -> WebhookSubscription:
    inserted = await session.execute(insert(_sub).values(**values).returning(_sub))
    return inserted.scalar_one()


async def list_endpoints(
    session: AnySession, project_id: str, cursor_text: str | None, limit: int
) -> Page[WebhookSubscription]:
    """List the project's endpoints, newest first. Raises BadQuery for a bad cursor."""
    cursor = Cursor.decode(cursor_text, ordering=_NEWEST_FIRST.name) if cursor_text is not None else None
    statement = seek(select(_sub).where(_sub.project_id == project_id), _NEWEST_FIRST, cursor, limit)
    rows = (await session.scalars(statement)).all()
    return page_of(rows, _NEWEST_FIRST, cursor, limit, place=lambda row: (row.created_at, row.id))


async def find_endpoint(session: AnySession, project_id: str, endpoint_id: str) -> WebhookSubscription | None:
    return await session.scalar(select(_sub).where(_sub.id == endpoint_id, _sub.project_id == project_id))


async def lock_endpoint(session: Session, project_id: str, endpoint_id: str) -> WebhookSubscription | None:
    """Find the row and lock it against other changes until this transaction ends."""
    return await session.scalar(
        select(_sub)
        .where(_sub.id == endpoint_id, _sub.project_id == project_id)
        .with_for_update(key_share=True)
    )


async def update_endpoint(
    session: Session, endpoint_id: str, values: Mapping[str, Any]
) -> WebhookSubscription:
    updated = await session.execute(
        update(_sub)
        .where(_sub.id == endpoint_id)
        .values(**values, updated_at=func.clock_timestamp())
        .returning(_sub)
        .execution_options(populate_existing=True)
    )
    return updated.scalar_one()


async def delete_endpoint(session: Session, project_id: str, endpoint_id: str) -> bool:
    """Delete the endpoint and, by cascade, its deliveries; return whether there was one."""
    deleted = await session.scalar(
        delete(_sub).where(_sub.id == endpoint_id, _sub.project_id == project_id).returning(_sub.id)
    )
    return deleted is not None


# Results of attempts. An update applies only while the URL is the one that was called.


@dataclass(frozen=True, slots=True)
class FailingEndpoint:
    """An endpoint after a failed attempt.

    `failing_days`: on how many days since `failing_since` an attempt has failed.
    """

    is_active: bool
    failing_since: datetime
    failing_for_seconds: float
    failing_days: int


async def note_success(session: Session, endpoint_id: str, url: str) -> None:
    await session.execute(
        update(_sub)
        .where(_sub.id == endpoint_id, _sub.url == url, _sub.failing_since.is_not(None))
        .values(failing_since=None, failing_days=0, failing_day_at=None, paused_until=None)
    )


async def set_slow(session: Session, endpoint_id: str, url: str, is_slow: bool) -> None:
    await session.execute(update(_sub).where(_sub.id == endpoint_id, _sub.url == url).values(is_slow=is_slow))


async def note_failure(
    session: Session, endpoint_id: str, url: str, *, pause_seconds: float | None
) -> FailingEndpoint | None:
    """Count a failed attempt. Return the new state; None if the endpoint is deleted or has a new URL."""
    pause = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, pause_seconds)
    is_first = _sub.failing_since.is_(None)
    is_new_day = or_(is_first, func.coalesce(_sub.failing_day_at <= func.now() - _FAILING_DAY, True))
    row = (
        await session.execute(
            update(_sub)
            .where(_sub.id == endpoint_id, _sub.url == url)
            .values(
                failing_since=func.coalesce(_sub.failing_since, func.now()),
                failing_days=case(
                    (is_first, 1), (is_new_day, _sub.failing_days + 1), else_=_sub.failing_days
                ),
                failing_day_at=case((is_new_day, func.now()), else_=_sub.failing_day_at),
                paused_until=func.greatest(_sub.paused_until, pause),
            )
            .returning(
                _sub.is_active,
                _sub.failing_since,
                func.extract("epoch", func.now() - _sub.failing_since)
                .cast(Float)
                .label("failing_for_seconds"),
                _sub.failing_days,
            )
        )
    ).one_or_none()
    return FailingEndpoint(**row._mapping) if row is not None else None  # noqa: SLF001 - the documented way to a row's names


async def disable(session: Session, endpoint_id: str, reason: str) -> None:
    await session.execute(
        update(_sub).where(_sub.id == endpoint_id).values(is_active=False, disabled_reason=reason)
    )
