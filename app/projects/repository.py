"""SQL of projects and API keys."""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import RowMapping, func, insert, or_, select, update

from app.core.db import AnySession, Session
from app.models import ApiKey, Project

# How often `last_used_at` is written at most.
_USE_WRITTEN_EVERY = timedelta(minutes=1)


class LiveKey(NamedTuple):
    """A key that is not disabled. `is_use_due`: `last_used_at` is to be written again."""

    id: str
    project_id: str
    is_use_due: bool


_use_is_due = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - _USE_WRITTEN_EVERY)


async def find_live_key(session: AnySession, key_sha256: str) -> LiveKey | None:
    found = await session.execute(
        select(ApiKey.id, ApiKey.project_id, _use_is_due).where(
            ApiKey.key_sha256 == key_sha256, ApiKey.disabled_at.is_(None)
        )
    )
    row = found.one_or_none()
    return LiveKey(*row) if row is not None else None


async def find_live_key_ids(session: AnySession, ids: Collection[str]) -> set[str]:
    """Find those of the keys that are not disabled."""
    found = await session.scalars(select(ApiKey.id).where(ApiKey.id.in_(ids), ApiKey.disabled_at.is_(None)))
    return set(found)


async def note_use(session: Session, key_id: str) -> None:
    """Write that the key was used now, at most once a minute. A row that is locked is left unchanged."""
    free = (
        select(ApiKey.id)
        .where(ApiKey.id == key_id, _use_is_due)
        .with_for_update(skip_locked=True, key_share=True)
    )
    await session.execute(update(ApiKey).where(ApiKey.id.in_(free)).values(last_used_at=func.now()))


async def insert_project(session: Session, project_id: str, name: str) -> None:
    await session.execute(insert(Project).values(id=project_id, name=name))


async def project_exists(session: AnySession, project_id: str) -> bool:
    return await session.scalar(select(Project.id).where(Project.id == project_id)) is not None


async def list_projects(session: AnySession) -> Sequence[RowMapping]:
    """Return rows of project_id, name, created_at and live_keys, oldest first."""
    live_keys = (
        select(func.count())
        .where(ApiKey.project_id == Project.id, ApiKey.disabled_at.is_(None))
        .scalar_subquery()
    )
    statement = select(
        Project.id.label("project_id"), Project.name, Project.created_at, live_keys.label("live_keys")
    )
    return (await session.execute(statement.order_by(Project.created_at, Project.id))).mappings().all()


async def list_api_keys(session: AnySession, project_id: str | None) -> Sequence[RowMapping]:
    """Return the keys of a project or of all projects, with the project's name, oldest first."""
    statement = (
        select(
            ApiKey.id.label("key_id"),
            ApiKey.name,
            ApiKey.project_id,
            Project.name.label("project_name"),
            ApiKey.created_at,
            ApiKey.last_used_at,
            ApiKey.disabled_at,
        )
        .join(Project, Project.id == ApiKey.project_id)
        .order_by(ApiKey.created_at, ApiKey.id)
    )
    if project_id is not None:
        statement = statement.where(ApiKey.project_id == project_id)
    return (await session.execute(statement)).mappings().all()


async def insert_api_key(
    session: Session, *, key_id: str, project_id: str, name: str, key_sha256: str
) -> None:
    await session.execute(
        insert(ApiKey).values(id=key_id, project_id=project_id, name=name, key_sha256=key_sha256)
    )


async def disable_api_key(session: Session, key_id: str) -> bool:
    """Disable the key. Return False if there is none. Disabling it again changes nothing."""
    found = await session.scalar(
        update(ApiKey)
        .where(ApiKey.id == key_id)
        .values(disabled_at=func.coalesce(ApiKey.disabled_at, func.now()))
        .returning(ApiKey.id)
    )
    return found is not None
