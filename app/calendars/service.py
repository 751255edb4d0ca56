"""Connecting, changing and removing calendars. What their sync does is in app/sync/."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import RowMapping

from app.api.not_found import CalendarNotFound
from app.bots.service import drop_bots_of_calendar
from app.calendars import repository
from app.calendars.errors import CalendarDisconnected, DeduplicationKeyTaken, OtherAccount
from app.calendars.schemas import (
    CalendarRead,
    CalendarsQuery,
    CalendarUpdate,
    FeedCalendarCreate,
    LocalCalendarCreate,
    ProviderCalendarCreate,
    SharedCalendarCreate,
    SyncFailure,
)
from app.core.crypto import SealBroken, SecretBox
from app.core.db import AnySession, ReadSession, Session
from app.core.errors import BadGateway, BadQuery, Conflict, InvalidFields, TooManyRequests
from app.core.http import httpx
from app.core.ids import new_id
from app.core.pagination import Page
from app.credentials.account import Account
from app.credentials.store import CredentialStore, context_of
from app.hosted.service import write_rows_soon
from app.meeting_urls.hosts import meeting_hosts
from app.models import Calendar, Credentials
from app.providers.base import ConnectionLost, ProviderError, RateLimited, RemoteCalendar
from app.providers.factory import AccountPlatform, account_calendar
from app.providers.ics.feed import normalize_feed_url
from app.push.service import release_channels
from app.settings import Settings
from app.sync.repository import request_sync
from app.webhooks.outbox import announce, delete_pending_of_calendar
from app.webhooks.payloads import CalendarFacts, state_data

PAGE_SIZE = 25

_SECRETS_OF = {
    "google": {"client_secret", "refresh_token"},
    "microsoft": {"client_secret", "refresh_token"},
    "ics": {"feed_url"},
}
_OUTAGE = "The platform fails for many calendars: this one is synced as soon as the platform answers again."
_UNTOLD_FAILURE = "The last sync failed."
_LOCAL_FIELDS = {"name", "owner_name", "timezone", "locale", "sending_identity"}


async def get_calendar(session: AnySession, project_id: str, calendar_id: str) -> CalendarRead:
    """Raises CalendarNotFound."""
    row = await repository.find_calendar(session, project_id, calendar_id)
    if row is None:
        raise CalendarNotFound
    return _read(row)


async def list_calendars(session: ReadSession, project_id: str, query: CalendarsQuery) -> Page[CalendarRead]:
    """Raises BadQuery for a bad cursor."""
    if query.finds_nothing:
        return Page([], None, None)
    filters = query.model_dump(exclude={"cursor", "page_size", "failing"}, exclude_none=True)
    page = await repository.list_calendars(
        session, project_id, filters, query.cursor, query.rows_of(PAGE_SIZE), failing=query.failing
    )
    return Page([_read(row) for row in page.rows], page.next, page.previous)


def _read(row: RowMapping) -> CalendarRead:
    return CalendarRead(**row, sync_failure=_sync_failure(row))


def _sync_failure(row: RowMapping) -> SyncFailure | None:
    if row["state"] != "connected":
        return None
    if row["sync_failing_since"] is not None and row["sync_failure_code"] is not None:
        code = row["sync_failure_code"]
        message = row["sync_failure_message"] or _UNTOLD_FAILURE
    elif row["outage_scope"] is not None:
        code, message = "platform_outage", _OUTAGE
    else:
        return None
    return SyncFailure(
        code=code, message=message, count=row["sync_failure_count"], next_attempt_at=row["next_sync_at"]
    )


async def create_calendar(
    session: Session,
    box: SecretBox,
    project_id: str,
    body: ProviderCalendarCreate | SharedCalendarCreate | FeedCalendarCreate,
    *,
    allows_http: Callable[[str], bool],
    account: Account | None = None,
) -> CalendarRead:
    """Stores the calendar, due for its first sync now. Raises InvalidFields, DeduplicationKeyTaken."""
    if isinstance(body, SharedCalendarCreate):
        return await _share_credentials(session, project_id, body)
    platform_uuid = client_id = None
    if isinstance(body, FeedCalendarCreate):
        secrets = {"feed_url": _feed_url(body.feed_url, allows_http)}
    else:
        secrets = {"client_secret": body.client_secret, "refresh_token": body.refresh_token}
        platform_uuid, client_id = body.platform_uuid, body.client_id
    credentials_id = new_id("cred")
    await repository.insert_credentials(
        session,
        credentials_id=credentials_id,
        project_id=project_id,
        platform=body.platform,
        client_id=client_id,
        sealed=box.seal(context_of(credentials_id), secrets),
        account_id=account.id if account is not None else None,
    )
    return await _insert_calendar(
        session,
        {
            "project_id": project_id,
            "platform": body.platform,
            "platform_uuid": platform_uuid,
            "credentials_id": credentials_id,
            "metadata_": body.metadata,
            "deduplication_key": body.deduplication_key,
            "owner_email": account.email if account is not None else None,
        },
    )


async def create_local_calendar(
    session: Session, project_id: str, body: LocalCalendarCreate, identity: dict[str, Any] | None
) -> CalendarRead:
    """Stores a calendar that is hosted here. `identity`: of app/hosted/identity.py. Raises DeduplicationKeyTaken."""
    calendar_id = new_id("cal")
    inserted = await repository.insert_calendar(
        session,
        {
            "id": calendar_id,
            "project_id": project_id,
            "platform": "local",
            "metadata_": body.metadata,
            "deduplication_key": body.deduplication_key,
            "name": body.name,
            "owner_email": body.owner_email,
            "owner_name": body.owner_name,
            "timezone": body.timezone,
            "locale": body.locale,
            "sending_identity": identity,
        },
    )
    if not inserted:
        raise DeduplicationKeyTaken
    return await get_calendar(session, project_id, calendar_id)


async def get_local_owner(session: AnySession, project_id: str, calendar_id: str, *, field: str) -> str:
    """The owner's address of a local calendar. Raises CalendarNotFound; InvalidFields on `field` for other platforms."""
    calendar = await get_calendar(session, project_id, calendar_id)
    if calendar.platform != "local" or calendar.owner_email is None:
        raise InvalidFields.one(field, _no_such_field(calendar.platform))
    return calendar.owner_email


async def require_calendar(session: AnySession, project_id: str, calendar_id: str) -> None:
    """Raises CalendarNotFound."""
    if await repository.find_connection(session, project_id, calendar_id) is None:
        raise CalendarNotFound


async def update_calendar(
    session: Session,
    box: SecretBox,
    project_id: str,
    calendar_id: str,
    body: CalendarUpdate,
    *,
    allows_http: Callable[[str], bool],
    identity: dict[str, Any] | None = None,
) -> CalendarRead:
    """Applies the change and makes the calendar due for a sync, like `queue_sync`. `identity`: what `sending_identity` stands for.

    New secrets reconnect every calendar that shares them. Raises CalendarNotFound, InvalidFields.
    """
    connection = await repository.find_connection(session, project_id, calendar_id)
    if connection is None:
        raise CalendarNotFound
    platform, credentials_id = connection
    secrets = body.model_dump(include={"client_secret", "refresh_token", "feed_url"}, exclude_none=True)
    local_fields = body.model_fields_set & _LOCAL_FIELDS
    foreign = secrets.keys() - _SECRETS_OF.get(platform, set())
    if platform != "local":
        foreign |= local_fields
    if foreign:
        raise InvalidFields({name: [_no_such_field(platform)] for name in sorted(foreign)})
    if local_fields:
        await _update_local(session, project_id, calendar_id, body, identity)
    if "feed_url" in secrets:
        secrets["feed_url"] = _feed_url(secrets["feed_url"], allows_http)
    reconnected: Sequence[Calendar] = []
    if secrets and credentials_id is not None:
        reconnected = await _renew_secrets(session, box, project_id, calendar_id, secrets)
    if "metadata" in body.model_fields_set:
        await repository.set_metadata(session, calendar_id, body.metadata)
    await request_sync(session, calendar_id, force=True)
    await _announce_reconnected(session, reconnected)
    return await get_calendar(session, project_id, calendar_id)


async def reconnect_calendar(
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
    """A person agreed anew: new secrets, of any client and account. `metadata` None: as it is.

    The same account revives all calendars that are connected with it. Another one gets this calendar alone: the
    others keep the credentials that they have. An account that is not known counts as another one.

    Raises CalendarNotFound; with `only_same_account`, OtherAccount.
    """
    calendars, stored = await _lock_account(session, project_id, calendar_id)
    holder = next(calendar for calendar in calendars if calendar.id == calendar_id)
    credentials_id = stored.id
    is_same = account.is_known_to_be(Account(stored.account_id, holder.owner_email))
    if only_same_account and not is_same:
        raise OtherAccount
    if not is_same and await repository.are_shared(session, credentials_id):
        calendars, credentials_id = [holder], new_id("cred")
        await repository.insert_credentials(
            session,
            credentials_id=credentials_id,
            project_id=project_id,
            platform=stored.platform,
            client_id=client_id,
            sealed=box.seal(context_of(credentials_id), secrets),
        )
        await repository.set_credentials(session, calendar_id, credentials_id)
    else:
        sealed = box.seal(context_of(credentials_id), secrets)
        await repository.replace_secrets(
            session, credentials_id, sealed, client_id=client_id, has_client_secret="client_secret" in secrets
        )
    await repository.set_account(session, credentials_id, account.id)
    await repository.set_owner_email(session, credentials_id, account.email)
    if metadata is not None:
        await repository.set_metadata(session, calendar_id, metadata)
    await _announce_reconnected(session, await _revive(session, calendars))


async def find_account(session: AnySession, project_id: str, calendar_id: str) -> tuple[AccountPlatform, str]:
    """The platform and credentials of an account's calendar. Raises CalendarNotFound, BadQuery for other kinds."""
    connection = await repository.find_connection(session, project_id, calendar_id)
    if connection is None:
        raise CalendarNotFound
    platform, credentials_id = connection
    if credentials_id is None or platform not in {"google", "microsoft"}:
        raise BadQuery(f"A calendar of platform {platform} has no account with further calendars.")
    return platform, credentials_id  # type: ignore[return-value] # checked above


async def list_remote_calendars(
    *,
    settings: Settings,
    client: httpx.AsyncClient,
    credentials: CredentialStore,
    platform: AccountPlatform,
    credentials_id: str,
) -> list[RemoteCalendar]:
    """What the account has at the provider. Raises Conflict, TooManyRequests, BadGateway; changes no state."""
    account = account_calendar(
        settings=settings,
        client=client,
        tokens=credentials.tokens(credentials_id),
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


async def _update_local(
    session: Session,
    project_id: str,
    calendar_id: str,
    body: CalendarUpdate,
    identity: dict[str, Any] | None,
) -> None:
    """Raises CalendarNotFound, InvalidFields."""
    values = body.model_dump(include=_LOCAL_FIELDS & body.model_fields_set)
    fixed = [name for name in ("name", "timezone", "locale") if name in values and values[name] is None]
    if fixed:
        raise InvalidFields({name: ["This field may not be null."] for name in fixed})
    if "sending_identity" in values:
        values["sending_identity"] = identity
    if await repository.lock_calendar(session, project_id, calendar_id) is None:
        raise CalendarNotFound
    await repository.set_fields(session, calendar_id, values)
    if values.keys() & {"sending_identity", "owner_name"}:
        # The events' organizer: the worker writes them anew.
        await write_rows_soon(session, calendar_id)


def _no_such_field(platform: str) -> str:
    return f"A calendar of platform {platform} has no such field."


async def delete_calendar(session: Session, box: SecretBox, project_id: str, calendar_id: str) -> None:
    """Removes the calendar and everything that hangs on it. Raises CalendarNotFound.

    A sync that is under way finds its lease gone and writes nothing more.
    """
    calendar = await repository.lock_calendar(session, project_id, calendar_id)
    if calendar is None:
        raise CalendarNotFound
    await delete_pending_of_calendar(session, calendar_id)
    await release_channels(session, box, calendar_id=calendar_id, credentials_id=calendar.credentials_id)
    await drop_bots_of_calendar(session, calendar_id, "calendar_deleted")
    await repository.delete_calendar(session, calendar_id)
    if calendar.credentials_id is not None:
        # Under their lock, so that of two calendars deleted at once the second sees that it was the last.
        await repository.lock_credentials(session, calendar.credentials_id)
        await repository.delete_credentials_unless_used(session, calendar.credentials_id)


async def queue_sync(session: Session, project_id: str, calendar_id: str) -> None:
    """Makes the calendar due, within the limits of `request_sync`. Raises CalendarNotFound, CalendarDisconnected."""
    calendar = await get_calendar(session, project_id, calendar_id)
    if calendar.state == "disconnected":
        raise CalendarDisconnected
    await request_sync(session, calendar_id, force=True)


async def _share_credentials(session: Session, project_id: str, body: SharedCalendarCreate) -> CalendarRead:
    # Locked, so that its credentials do not go with it meanwhile.
    source = await repository.lock_calendar(session, project_id, body.credentials_of)
    if source is None:
        raise InvalidFields.one("credentials_of", "There is no such calendar in this project.")
    if source.platform not in {"google", "microsoft"}:
        sentence = f"A calendar of platform {source.platform} has no account with further calendars."
        raise InvalidFields.one("credentials_of", sentence)
    if body.platform not in {None, source.platform}:
        raise InvalidFields.one(
            "platform", f"The calendar that credentials_of names is of {source.platform}."
        )
    if source.state == "disconnected":
        raise InvalidFields.one("credentials_of", "That calendar is disconnected: reconnect it first.")
    return await _insert_calendar(
        session,
        {
            "project_id": project_id,
            "platform": source.platform,
            "platform_uuid": body.platform_uuid,
            "credentials_id": source.credentials_id,
            "metadata_": body.metadata,
            "deduplication_key": body.deduplication_key,
            "owner_email": source.owner_email,
        },
    )


async def _insert_calendar(session: Session, values: dict[str, Any]) -> CalendarRead:
    calendar_id = new_id("cal")
    if not await repository.insert_calendar(session, {"id": calendar_id, **values}):
        raise DeduplicationKeyTaken
    return await get_calendar(session, values["project_id"], calendar_id)


async def _lock_account(
    session: Session, project_id: str, calendar_id: str
) -> tuple[Sequence[Calendar], Credentials]:
    """All calendars that share this one's credentials, and the credentials, locked. Raises CalendarNotFound."""
    while True:
        connection = await repository.find_connection(session, project_id, calendar_id)
        if connection is None or connection[1] is None:
            raise CalendarNotFound
        calendars = await repository.lock_calendars_of(session, project_id, connection[1])
        if any(calendar.id == calendar_id for calendar in calendars):
            return calendars, await repository.lock_credentials(session, connection[1])
        # Deleted meanwhile, or reconnected with another account.


async def _renew_secrets(
    session: Session, box: SecretBox, project_id: str, calendar_id: str, secrets: dict[str, str]
) -> Sequence[Calendar]:
    """Of all calendars that share the credentials: reconnects them. Like `_revive`.

    Raises CalendarNotFound, InvalidFields.
    """
    calendars, stored = await _lock_account(session, project_id, calendar_id)
    sealed = box.seal(context_of(stored.id), {**_kept_secrets(box, stored, secrets), **secrets})
    await repository.replace_secrets(session, stored.id, sealed, has_client_secret="client_secret" in secrets)
    if "refresh_token" in secrets:
        await repository.set_account(session, stored.id, None)  # whose it is, only the application knows
    return await _revive(session, calendars)


async def _revive(session: Session, calendars: Sequence[Calendar]) -> Sequence[Calendar]:
    """Connects and syncs the locked calendars anew. Those that were disconnected are to be announced."""
    disconnected = [calendar for calendar in calendars if calendar.state == "disconnected"]
    await repository.reconnect(session, [calendar.id for calendar in calendars])
    return disconnected


async def _announce_reconnected(session: Session, calendars: Sequence[Calendar]) -> None:
    for calendar in calendars:
        await session.refresh(calendar)
        facts = CalendarFacts(
            id=calendar.id, deduplication_key=calendar.deduplication_key, metadata=calendar.metadata_
        )
        await announce(
            session,
            project_id=calendar.project_id,
            trigger="calendar.state_change",
            calendar=facts,
            data=state_data(calendar),
        )


def _kept_secrets(box: SecretBox, stored: Credentials, secrets: dict[str, str]) -> dict[str, str]:
    """The stored secrets that the new ones do not replace. Raises InvalidFields if they cannot be opened."""
    if secrets.keys() == _SECRETS_OF[stored.platform]:
        return {}
    try:
        kept: dict[str, str] = box.open(context_of(stored.id), stored.sealed)
    except SealBroken:
        missing = sorted(_SECRETS_OF[stored.platform] - secrets.keys())
        sentence = "The stored value can no longer be decrypted: send this field too."
        raise InvalidFields({name: [sentence] for name in missing}) from None
    return kept


def _feed_url(text: str, allows_http: Callable[[str], bool]) -> str:
    try:
        return normalize_feed_url(text, allow_http=allows_http(text))
    except ValueError as err:
        raise InvalidFields.one("feed_url", str(err)) from None
