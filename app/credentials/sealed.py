"""Reading of sealed credentials, and the contexts that each secret is sealed with."""

from datetime import datetime
from typing import Any

from sqlalchemy import and_, func, or_, select

from app.core.crypto import SecretBox
from app.core.db import AnySession
from app.models import Credentials, OAuthClientSecret


def context_of(credentials_id: str) -> str:
    """The context that `credentials.sealed` is sealed with."""
    return f"credentials:{credentials_id}"


def client_secret_context(secret_id: str) -> str:
    """The context that `oauth_client_secrets.sealed` is sealed with."""
    return f"oauth_client_secrets:{secret_id}"


def access_token_context(credentials_id: str) -> str:
    """The context that `credentials.access_token_sealed` is sealed with."""
    return f"credentials.access_token:{credentials_id}"


async def load_credentials(
    session: AnySession, box: SecretBox, credentials_id: str
) -> tuple[Credentials, dict[str, Any]] | None:
    """The row and its secrets; the client's secret is the newest that is known. Raises SealBroken."""
    found = await load_credentials_at(session, box, credentials_id)
    return None if found is None else found[:2]


async def load_credentials_at(
    session: AnySession, box: SecretBox, credentials_id: str
) -> tuple[Credentials, dict[str, Any], datetime] | None:
    """As `load_credentials`, and the database's time: other workers have other clocks."""
    found = (
        await session.execute(
            select(Credentials, OAuthClientSecret, func.clock_timestamp())
            .outerjoin(
                OAuthClientSecret,
                and_(
                    OAuthClientSecret.project_id == Credentials.project_id,
                    OAuthClientSecret.platform == Credentials.platform,
                    OAuthClientSecret.client_id == Credentials.client_id,
                    or_(
                        Credentials.client_secret_set_at.is_(None),
                        Credentials.client_secret_set_at < OAuthClientSecret.set_at,
                    ),
                ),
            )
            .where(Credentials.id == credentials_id)
        )
    ).one_or_none()
    if found is None:
        return None
    stored, newer, now = found
    secrets: dict[str, Any] = box.open(context_of(stored.id), stored.sealed)
    if newer is not None:
        secrets |= box.open(client_secret_context(newer.id), newer.sealed)
    return stored, secrets, now
