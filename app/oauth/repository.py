"""SQL of OAuth apps and sessions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from app.core.db import AnySession, Session
from app.credentials.account import Account
from app.models import Calendar, Credentials, OAuthApp, OAuthSession

# How long sessions are kept after they expire.
_KEPT_FOR = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Holder:
    """The calendar that has a deduplication key, and the client and account that it is connected with."""

    id: str
    platform: str
    platform_uuid: str | None
    state: str
    owner_email: str | None
    client_id: str | None
    account_id: str | None

    @property
    def account(self) -> Account:
        return Account(self.account_id, self.owner_email)


async def insert_app(session: Session, values: Mapping[str, Any]) -> bool:
    """Insert an app. Return False if the project already has one for this platform."""
    inserted = await session.scalar(
        insert(OAuthApp)
        .values(values)
        .on_conflict_do_nothing(index_elements=[OAuthApp.project_id, OAuthApp.platform])
        .returning(OAuthApp.id)
    )
    return inserted is not None


async def list_apps(session: AnySession, project_id: str) -> Sequence[OAuthApp]:
    statement = select(OAuthApp).where(OAuthApp.project_id == project_id).order_by(OAuthApp.platform)
    return (await session.scalars(statement)).all()


async def find_app(session: AnySession, project_id: str, app: str) -> OAuthApp | None:
    """Return the app, or None. `app` is its id or its platform."""
    return await session.scalar(
        select(OAuthApp)
        .where(OAuthApp.project_id == project_id, or_(OAuthApp.id == app, OAuthApp.platform == app))
        .execution_options(populate_existing=True)
    )


async def lock_app(session: Session, project_id: str, app: str) -> OAuthApp | None:
    """Return the app as `find_app` does, locked until the end of the transaction."""
    return await session.scalar(
        select(OAuthApp)
        .where(OAuthApp.project_id == project_id, or_(OAuthApp.id == app, OAuthApp.platform == app))
        .with_for_update()
        .execution_options(populate_existing=True)
    )


async def update_app(session: Session, app_id: str, values: Mapping[str, Any]) -> None:
    await session.execute(
        update(OAuthApp)
        .where(OAuthApp.id == app_id)
        .values(**values, updated_at=func.clock_timestamp())
        .execution_options(synchronize_session=False)
    )


async def delete_app(session: Session, app_id: str) -> None:
    """Delete the app. A foreign key also deletes its sessions."""
    await session.execute(
        delete(OAuthApp).where(OAuthApp.id == app_id).execution_options(synchronize_session=False)
    )


async def insert_session(session: Session, values: Mapping[str, Any]) -> None:
    await session.execute(insert(OAuthSession).values(values))


async def delete_old_sessions(session: Session, project_id: str) -> None:
    await session.execute(
        delete(OAuthSession)
        .where(
            OAuthSession.project_id == project_id,
            OAuthSession.expires_at < func.clock_timestamp() - _KEPT_FOR,
        )
        .execution_options(synchronize_session=False)
    )


async def use_session(session: Session, state_sha256: str, platform: str) -> OAuthSession | None:
    """Mark the session as used and return it.

    Return None if it is unknown, used, expired or of another platform.

    It is one statement, so that only one of two simultaneous requests gets the session.
    """
    return await session.scalar(
        update(OAuthSession)
        .where(
            OAuthSession.state_sha256 == state_sha256,
            OAuthSession.platform == platform,
            OAuthSession.used_at.is_(None),
            OAuthSession.expires_at > func.clock_timestamp(),
        )
        .values(used_at=func.clock_timestamp())
        .returning(OAuthSession)
    )


async def find_holder(session: AnySession, project_id: str, deduplication_key: str) -> Holder | None:
    """Return the calendar that has this key, or None."""
    row = (
        await session.execute(
            select(
                Calendar.id,
                Calendar.platform,
                Calendar.platform_uuid,
                Calendar.state,
                Calendar.owner_email,
                Credentials.client_id,
                Credentials.account_id,
            )
            .outerjoin(Credentials, Credentials.id == Calendar.credentials_id)
            .where(Calendar.project_id == project_id, Calendar.deduplication_key == deduplication_key)
        )
    ).one_or_none()
    return None if row is None else Holder(*row)
