"""SQL that writes credentials and the secrets of OAuth clients. Access tokens are cached by store.py."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from app.core.db import AnySession, Session
from app.models import Calendar, Credentials, OAuthClientSecret


async def insert_credentials(session: Session, values: Mapping[str, Any]) -> None:
    await session.execute(insert(Credentials).values(values))


async def lock_credentials(session: Session, credentials_id: str) -> Credentials:
    return (
        await session.scalars(
            select(Credentials)
            .where(Credentials.id == credentials_id)
            .with_for_update()
            .execution_options(populate_existing=True)
        )
    ).one()


async def replace_secrets(
    session: Session, credentials_id: str, sealed: bytes, *, client_id: str | None, has_client_secret: bool
) -> tuple[str, str | None]:
    """Store new secrets; return the project's id and the OAuth client's id.

    `client_id` None keeps the client. Access tokens that are cached, or being fetched, with the old secrets no longer
    count.
    """
    row = (
        await session.execute(
            update(Credentials)
            .where(Credentials.id == credentials_id)
            .values(
                sealed=sealed,
                client_id=Credentials.client_id if client_id is None else client_id,
                version=Credentials.version + 1,
                client_secret_set_at=(
                    func.clock_timestamp() if has_client_secret else Credentials.client_secret_set_at
                ),
                access_token_sealed=None,
                access_token_expires_at=None,
                refresh_lease_until=None,
            )
            .returning(Credentials.project_id, Credentials.client_id)
            .execution_options(synchronize_session=False)
        )
    ).one()
    return row.project_id, row.client_id


async def set_account(session: Session, credentials_id: str, account_id: str | None) -> None:
    await session.execute(
        update(Credentials)
        .where(Credentials.id == credentials_id)
        .values(account_id=account_id)
        .execution_options(synchronize_session=False)
    )


async def delete_unless_used(session: Session, credentials_id: str) -> None:
    used = select(Calendar.id).where(Calendar.credentials_id == credentials_id).exists()
    await session.execute(
        delete(Credentials)
        .where(Credentials.id == credentials_id, ~used)
        .execution_options(synchronize_session=False)
    )


async def find_client_secret_id(
    session: AnySession, project_id: str, platform: str, client_id: str
) -> str | None:
    """Find the row that holds this OAuth client's newest secret."""
    return await session.scalar(
        select(OAuthClientSecret.id).where(
            OAuthClientSecret.project_id == project_id,
            OAuthClientSecret.platform == platform,
            OAuthClientSecret.client_id == client_id,
        )
    )


async def put_client_secret(session: Session, values: Mapping[str, Any]) -> None:
    """Insert or replace the newest secret of an OAuth client."""
    row = insert(OAuthClientSecret).values(**values)
    await session.execute(
        row.on_conflict_do_update(
            index_elements=[OAuthClientSecret.id],
            set_={"sealed": row.excluded.sealed, "set_at": func.clock_timestamp()},
        )
    )
