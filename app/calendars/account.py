"""Calendars of Google and Microsoft accounts: connecting, sharing and reconnecting an account."""

import math
from collections.abc import Sequence
from typing import Any

from app.api.not_found import CalendarNotFound
from app.calendars import connection, repository
from app.calendars.errors import OtherAccount
from app.calendars.schemas import ProviderCalendarCreate, SharedCalendarCreate
from app.core.crypto import SecretBox
from app.core.db import AnySession, Session
from app.core.errors import BadGateway, BadQuery, Conflict, InvalidFields, TooManyRequests
from app.core.http import httpx
from app.credentials import service as credentials
from app.credentials.account import Account, ConnectedCalendar
from app.credentials.store import CredentialStore
from app.meeting_urls.hosts import meeting_hosts
from app.providers.base import ConnectionLost, ProviderError, RateLimited, RemoteCalendar
from app.providers.factory import AccountPlatform, account_calendar
from app.settings import Settings


async def connect_account(
    session: Session,
    box: SecretBox,
    project_id: str,
    body: ProviderCalendarCreate,
    *,
    account: Account | None = None,
) -> str:
    """Store a calendar of an account and return its id. `account` is None if it is not known.

    Raises DeduplicationKeyTaken.
    """
    credentials_id = await credentials.create_credentials(
        session,
        box,
        project_id=project_id,
        platform=body.platform,
        secrets={"client_secret": body.client_secret, "refresh_token": body.refresh_token},
        client_id=body.client_id,
        account_id=account.id if account is not None else None,
    )
    return await connection.insert_calendar(
        session,
        {
            "project_id": project_id,
            "platform": body.platform,
            "platform_uuid": body.platform_uuid,
            "credentials_id": credentials_id,
            "metadata_": body.metadata,
            "deduplication_key": body.deduplication_key,
            "owner_email": account.email if account is not None else None,
            **connection.window_columns(body.window),
        },
    )


async def share_account(session: Session, project_id: str, body: SharedCalendarCreate) -> str:
    """Store another calendar of a connected account and return its id.

    Raises InvalidFields, DeduplicationKeyTaken.
    """
    # The lock keeps its credentials from being deleted meanwhile.
    source = await repository.lock_calendar(session, project_id, body.credentials_of)
    if source is None:
        raise InvalidFields.one("credentials_of", "There is no such calendar in this project.")
    if source.platform not in {"google", "microsoft"}:
        raise InvalidFields.one("credentials_of", _has_no_account(source.platform))
    if body.platform not in {None, source.platform}:
        raise InvalidFields.one(
            "platform", f"The calendar in credentials_of is of platform {source.platform}."
        )
    if source.state == "disconnected":
        raise InvalidFields.one("credentials_of", "That calendar is disconnected: reconnect it first.")
    return await connection.insert_calendar(
        session,
        {
            "project_id": project_id,
            "platform": source.platform,
            "platform_uuid": body.platform_uuid,
            "credentials_id": source.credentials_id,
            "metadata_": body.metadata,
            "deduplication_key": body.deduplication_key,
            "owner_email": source.owner_email,
            **connection.window_columns(body.window),
        },
    )


async def reconnect_account(
    session: Session,
    box: SecretBox,
    project_id: str,
    calendar_id: str,
    *,
    client_id: str,
    secrets: dict[str, str],
    account: Account,
    metadata: dict[str, Any] | None = None,
    only_same_account: bool = False,
) -> None:
    """Connect a calendar with new credentials. `metadata` None keeps the metadata.

    If the account is the same, all calendars that share its credentials are reconnected. If it is another one, only this
    calendar gets the new credentials. An account that is not known counts as another one.

    Raises CalendarNotFound; with `only_same_account`, OtherAccount.
    """
    calendars, stored = await connection.lock_account(session, project_id, calendar_id)
    holder = next(calendar for calendar in calendars if calendar.id == calendar_id)
    credentials_id = stored.id
    is_same = account.is_known_to_be(Account(stored.account_id, holder.owner_email))
    if only_same_account and not is_same:
        raise OtherAccount
    if not is_same and await repository.are_shared(session, credentials_id):
        calendars = [holder]
        credentials_id = await credentials.create_credentials(
            session,
            box,
            project_id=project_id,
            platform=stored.platform,
            secrets=secrets,
            client_id=client_id,
        )
        await repository.set_credentials(session, calendar_id, credentials_id)
    else:
        await credentials.replace_secrets(
            session,
            box,
            credentials_id,
            secrets,
            client_id=client_id,
            has_client_secret="client_secret" in secrets,
        )
    await credentials.set_account(session, credentials_id, account.id)
    await repository.set_owner_email(session, credentials_id, account.email)
    if metadata is not None:
        await repository.set_metadata(session, calendar_id, metadata)
    await connection.announce_reconnected(session, await connection.reconnect(session, calendars))


async def find_account(session: AnySession, project_id: str, calendar_id: str) -> tuple[AccountPlatform, str]:
    """Return the platform and the credentials' id.

    Raises CalendarNotFound; BadQuery for calendars without an account.
    """
    found = await repository.find_connection(session, project_id, calendar_id)
    if found is None:
        raise CalendarNotFound
    platform, credentials_id = found
    if credentials_id is None or platform not in {"google", "microsoft"}:
        raise BadQuery(_has_no_account(platform))
    return platform, credentials_id  # type: ignore[return-value] # checked above


async def find_connected(
    session: AnySession, project_id: str, calendar_ids: Sequence[str]
) -> list[ConnectedCalendar]:
    """Return the calendars and their accounts. Those that the project does not have are left out."""
    return await repository.find_connected(session, project_id, calendar_ids)


async def list_remote_calendars(
    *,
    settings: Settings,
    client: httpx.AsyncClient,
    store: CredentialStore,
    platform: AccountPlatform,
    credentials_id: str,
) -> list[RemoteCalendar]:
    """Return the account's calendars, read from the provider.

    Raises Conflict, TooManyRequests, BadGateway.
    """
    account = account_calendar(
        settings=settings,
        client=client,
        tokens=store.tokens(credentials_id),
        platform=platform,
        calendar_id=None,
        hosts=meeting_hosts(settings),
    )
    try:
        return await account.list_calendars()
    except ConnectionLost as err:
        raise Conflict(err.message) from None
    except RateLimited as err:
        raise TooManyRequests(err.message, retry_after=math.ceil(err.retry_after or 10)) from None
    except ProviderError as err:
        raise BadGateway(err.message) from None


def _has_no_account(platform: str) -> str:
    return f"A calendar of platform {platform} has no account with further calendars."
