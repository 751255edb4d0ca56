"""Storing what calendars are connected with: secrets, sealed, and whose account they are for.

Locks, in this order everywhere: rows of calendars by id, then the row of their credentials.
"""

from typing import Any

from app.core.crypto import SecretBox
from app.core.db import Session
from app.core.ids import new_id
from app.credentials import repository
from app.credentials.sealed import client_secret_context, context_of
from app.models import Credentials
from app.outages.breakers import probe_client_now


async def create_credentials(
    session: Session,
    box: SecretBox,
    *,
    project_id: str,
    platform: str,
    secrets: dict[str, str],
    client_id: str | None = None,
    account_id: str | None = None,
) -> str:
    """Store new credentials; return their id."""
    credentials_id = new_id("cred")
    await repository.insert_credentials(
        session,
        {
            "id": credentials_id,
            "project_id": project_id,
            "platform": platform,
            "client_id": client_id,
            "sealed": box.seal(context_of(credentials_id), secrets),
            "account_id": account_id,
        },
    )
    return credentials_id


async def lock_credentials(session: Session, credentials_id: str) -> Credentials:
    """Lock the row. The caller holds the locks of the calendars that use it."""
    return await repository.lock_credentials(session, credentials_id)


def open_secrets(box: SecretBox, stored: Credentials) -> dict[str, Any]:
    """Decrypt the secrets of a row. Raises SealBroken."""
    secrets: dict[str, Any] = box.open(context_of(stored.id), stored.sealed)
    return secrets


async def replace_secrets(
    session: Session,
    box: SecretBox,
    credentials_id: str,
    secrets: dict[str, str],
    *,
    client_id: str | None = None,
    has_client_secret: bool,
) -> None:
    """Store new secrets, and `client_id` if they belong to another OAuth client.

    `has_client_secret`: the client's secret is new too, and counts instead of the one in `oauth_client_secrets`.
    """
    sealed = box.seal(context_of(credentials_id), secrets)
    project_id, of_client = await repository.replace_secrets(
        session, credentials_id, sealed, client_id=client_id, has_client_secret=has_client_secret
    )
    if of_client is not None:
        await probe_client_now(session, project_id, of_client)


async def set_account(session: Session, credentials_id: str, account_id: str | None) -> None:
    """Store the account that the credentials are for; None if only the application knows it."""
    await repository.set_account(session, credentials_id, account_id)


async def delete_unless_used(session: Session, credentials_id: str) -> None:
    """Delete credentials that no calendar uses any more. The caller has deleted or reconnected one."""
    # Under their lock: of two calendars that are deleted at once, the second sees that it was the last.
    await repository.lock_credentials(session, credentials_id)
    await repository.delete_unless_used(session, credentials_id)


async def put_client_secret(
    session: Session, box: SecretBox, *, project_id: str, platform: str, client_id: str, secret: str
) -> None:
    """Store an OAuth client's newest secret, for all calendars that are connected with it.

    The caller holds the lock of the OAuth app's row, so that only one writes the row.
    """
    secret_id = await repository.find_client_secret_id(session, project_id, platform, client_id)
    secret_id = secret_id or new_id("osec")
    await repository.put_client_secret(
        session,
        {
            "id": secret_id,
            "project_id": project_id,
            "platform": platform,
            "client_id": client_id,
            "sealed": box.seal(client_secret_context(secret_id), {"client_secret": secret}),
        },
    )
    await probe_client_now(session, project_id, client_id)
