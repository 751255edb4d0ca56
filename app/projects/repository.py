"""SQL of projects and API keys."""

from sqlalchemy import func, insert, select, update

from app.core.db import AnySession, Session
from app.models import ApiKey, Project


async def find_project_of_key(session: AnySession, key_sha256: str) -> str | None:
    """The id of the project that a live key belongs to."""
    return await session.scalar(
        select(ApiKey.project_id).where(ApiKey.key_sha256 == key_sha256, ApiKey.disabled_at.is_(None))
    )


async def insert_project(session: Session, project_id: str, name: str) -> None:
    await session.execute(insert(Project).values(id=project_id, name=name))


async def project_exists(session: AnySession, project_id: str) -> bool:
    return await session.scalar(select(Project.id).where(Project.id == project_id)) is not None


async def insert_api_key(
    session: Session, *, key_id: str, project_id: str, name: str, key_sha256: str
) -> None:
    await session.execute(
        insert(ApiKey).values(id=key_id, project_id=project_id, name=name, key_sha256=key_sha256)
    )


async def disable_api_key(session: Session, key_id: str) -> bool:
    """Whether there is such a key; disabling it again changes nothing."""
    found = await session.scalar(
        update(ApiKey)
        .where(ApiKey.id == key_id)
        .values(disabled_at=func.coalesce(ApiKey.disabled_at, func.now()))
        .returning(ApiKey.id)
    )
    return found is not None
