"""OAuth apps, and connecting a calendar by browser (contract 7).

What a session decides (project, redirect_uri, deduplication key, metadata) is fixed when the application opens it;
the browser brings back nothing but `state` and `code`. The state is random, single-use and stored as its hash; the
PKCE verifier makes a code of another session worthless here.

The browser is first seen at the callback, so nothing here can tell whose it is. That is for the application: before
it trusts `calendar_id`, it compares the calendar's `deduplication_key` or `metadata` with the person who is signed
in in that browser (docs/guide.md).

No transaction is open while a provider is asked. If the process dies in between, the state is used up and the
person starts again.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog

from app.api.not_found import CalendarNotFound
from app.calendars.errors import DeduplicationKeyTaken, OtherAccount
from app.calendars.repository import set_metadata
from app.calendars.schemas import ProviderCalendarCreate
from app.calendars.service import create_calendar, reconnect_calendar
from app.core.clock import utcnow
from app.core.crypto import SealBroken, SecretBox, sha256_hex
from app.core.db import AnySession, ReadSession, Session, Sessions, transaction
from app.core.errors import InvalidFields, NotFound
from app.core.http import httpx
from app.core.ids import new_id
from app.credentials.account import Account
from app.credentials.store import client_secret_context
from app.models import OAuthApp, OAuthSession
from app.oauth import flow, repository
from app.oauth.flow import Client, FlowFailed, Granted
from app.oauth.schemas import (
    OAuthAppCreate,
    OAuthAppRead,
    OAuthAppUpdate,
    OAuthPlatform,
    OAuthSessionCreate,
    OAuthSessionRead,
)
from app.outages.breakers import probe_client_now
from app.settings import Settings
from app.sync.repository import request_sync

log = structlog.get_logger()

SESSION_FOR = timedelta(minutes=10)


class OAuthAppNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("OAuth app not found")


class StateRefused(Exception):
    """The state is unknown, used, expired or another platform's: the browser is sent nowhere."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Where the browser goes now. `connected`: a calendar was created or reconnected."""

    location: str
    connected: bool


# --- apps ------------------------------------------------------------------------------------------------


async def list_apps(session: ReadSession, settings: Settings, project_id: str) -> list[OAuthAppRead]:
    return [_read(settings, app) for app in await repository.list_apps(session, project_id)]


async def get_app(session: AnySession, settings: Settings, project_id: str, app: str) -> OAuthAppRead:
    """`app` is an id or a platform, here and below. Raises OAuthAppNotFound."""
    found = await repository.find_app(session, project_id, app)
    if found is None:
        raise OAuthAppNotFound
    return _read(settings, found)


async def create_app(
    session: Session, box: SecretBox, settings: Settings, project_id: str, body: OAuthAppCreate
) -> OAuthAppRead:
    """Raises InvalidFields where the project has an app for this platform."""
    app_id = new_id("oapp")
    inserted = await repository.insert_app(
        session,
        {
            "id": app_id,
            "project_id": project_id,
            "platform": body.platform,
            "client_id": body.client_id,
            "sealed": box.seal(_app_context(app_id), {"client_secret": body.client_secret}),
            "redirect_uris": body.redirect_uris,
        },
    )
    if not inserted:
        sentence = "This project has an OAuth app for this platform: change it with PATCH."
        raise InvalidFields.one("platform", sentence)
    return await get_app(session, settings, project_id, app_id)


async def update_app(
    session: Session, box: SecretBox, settings: Settings, *, project_id: str, app: str, body: OAuthAppUpdate
) -> OAuthAppRead:
    """A new secret is from now on that of all calendars that are connected with this client, too.

    Raises OAuthAppNotFound.
    """
    stored = await repository.lock_app(session, project_id, app)
    if stored is None:
        raise OAuthAppNotFound
    values = body.model_dump(exclude_unset=True)
    secret = values.pop("client_secret", None)
    if secret is not None:
        values["sealed"] = box.seal(_app_context(stored.id), {"client_secret": secret})
    if values:
        await repository.update_app(session, stored.id, values)
    if secret is not None:
        client_id = values.get("client_id", stored.client_id)
        await _put_client_secret(
            session, box, project_id=project_id, platform=stored.platform, client_id=client_id, secret=secret
        )
    return await get_app(session, settings, project_id, stored.id)


async def delete_app(session: Session, project_id: str, app: str) -> None:
    """Calendars that were connected with it go on. Raises OAuthAppNotFound."""
    stored = await repository.lock_app(session, project_id, app)
    if stored is None:
        raise OAuthAppNotFound
    await repository.delete_app(session, stored.id)


async def _put_client_secret(
    session: Session, box: SecretBox, *, project_id: str, platform: str, client_id: str, secret: str
) -> None:
    """One row, however many calendars there are: each refresh of an access token looks there."""
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


def _read(settings: Settings, app: OAuthApp) -> OAuthAppRead:
    return OAuthAppRead(
        id=app.id,
        platform=app.platform,
        client_id=app.client_id,
        redirect_uris=app.redirect_uris,
        callback_url=flow.callback_url(settings, app.platform),  # type: ignore[arg-type] # checked by the table
        created_at=app.created_at,
        updated_at=app.updated_at,
    )


def _app_context(app_id: str) -> str:
    return f"oauth_apps:{app_id}"


def _session_context(state_sha256: str) -> str:
    return f"oauth_sessions:{state_sha256}"


def _client(box: SecretBox, settings: Settings, app: OAuthApp) -> Client:
    """Raises SealBroken."""
    return Client(
        platform=app.platform,  # type: ignore[arg-type] # checked by the table
        client_id=app.client_id,
        client_secret=box.open(_app_context(app.id), app.sealed)["client_secret"],
        callback_url=flow.callback_url(settings, app.platform),  # type: ignore[arg-type] # checked by the table
    )


# --- the way to the provider -----------------------------------------------------------------------------


async def create_session(
    session: Session, box: SecretBox, settings: Settings, project_id: str, body: OAuthSessionCreate
) -> OAuthSessionRead:
    """Raises InvalidFields."""
    app = await repository.find_app(session, project_id, body.platform)
    if app is None:
        sentence = f"This project has no OAuth app for {body.platform}: POST /api/v1/oauth/apps first."
        raise InvalidFields.one("platform", sentence)
    if body.redirect_uri not in app.redirect_uris:
        sentence = "Not one of the OAuth app's redirect_uris. It must equal one of them, letter for letter."
        raise InvalidFields.one("redirect_uri", sentence)
    has_live_credentials = False
    if body.deduplication_key is not None:
        holder = await repository.find_holder(session, project_id, body.deduplication_key)
        if holder is not None:
            if holder.platform != body.platform:
                raise InvalidFields.one("deduplication_key", _other_platform(holder.platform))
            if body.platform_uuid is not None and body.platform_uuid != holder.platform_uuid:
                sentence = "The calendar with this deduplication key has another one, and that is fixed."
                raise InvalidFields.one("platform_uuid", sentence)
            has_live_credentials = holder.state == "connected" and holder.client_id == app.client_id
    try:
        client = _client(box, settings, app)
    except SealBroken:
        sentence = "The app's stored secret can no longer be decrypted: PATCH the app with its client_secret."
        raise InvalidFields.one("platform", sentence) from None
    await repository.forget_old_sessions(session, project_id)
    url, expires_at = await _open_session(
        session,
        box,
        settings,
        client,
        ask_consent=not has_live_credentials,
        login_hint=body.login_hint,
        values={
            "project_id": project_id,
            "app_id": app.id,
            "platform": body.platform,
            "redirect_uri": body.redirect_uri,
            "deduplication_key": body.deduplication_key,
            "metadata_": body.metadata,
            "platform_uuid": body.platform_uuid,
            "same_account": body.same_account,
        },
    )
    return OAuthSessionRead(authorization_url=url, expires_at=expires_at)


async def _open_session(
    session: Session,
    box: SecretBox,
    settings: Settings,
    client: Client,
    *,
    ask_consent: bool,
    login_hint: str | None,
    values: dict[str, Any],
) -> tuple[str, Any]:
    """The authorization URL, and until when the browser must be back."""
    state, verifier = flow.new_state(), flow.new_code_verifier()
    state_sha256 = sha256_hex(state)
    expires_at = utcnow() + SESSION_FOR
    await repository.insert_session(
        session,
        {
            **values,
            "state_sha256": state_sha256,
            "sealed": box.seal(_session_context(state_sha256), {"code_verifier": verifier}),
            "login_hint": login_hint,
            "consent_asked": ask_consent,
            "expires_at": expires_at,
        },
    )
    url = flow.authorization_url(
        settings,
        client,
        state=state,
        code_verifier=verifier,
        login_hint=login_hint,
        ask_consent=ask_consent,
    )
    return url, expires_at


# --- the way back ----------------------------------------------------------------------------------------


async def finish_session(
    *,
    sessions: Sessions,
    box: SecretBox,
    settings: Settings,
    http: httpx.AsyncClient,
    platform: OAuthPlatform,
    state: str,
    code: str | None,
    error: str | None,
) -> Finished:
    """Redeems the code and connects the calendar. Raises StateRefused.

    Every other failure is told to the application, at the session's redirect_uri.
    """
    started = await _use_session(sessions, platform, state)
    redirect_uri = started.session.redirect_uri
    try:
        connected = await _connect(sessions, box, settings, http, started, code=code, error=error)
    except FlowFailed as err:
        log.info(
            "oauth_session.failed", project_id=started.session.project_id, platform=platform, error=err.error
        )
        told = {"error": err.error, "error_description": err.description}
        return Finished(flow.with_query(redirect_uri, told), connected=False)
    if connected.again_at is not None:
        return Finished(connected.again_at, connected=False)
    return Finished(flow.with_query(redirect_uri, {"calendar_id": connected.calendar_id}), connected=True)


@dataclass(frozen=True, slots=True)
class _Started:
    session: OAuthSession
    app: OAuthApp


@dataclass(frozen=True, slots=True)
class _Connected:
    """`again_at`: nothing is connected yet, the browser has to go to the provider once more."""

    calendar_id: str = ""
    again_at: str | None = None


async def _use_session(sessions: Sessions, platform: OAuthPlatform, state: str) -> _Started:
    """Uses the state up, in a transaction of its own: whatever comes after, it works once. Raises StateRefused."""
    async with transaction(sessions) as session:
        used = await repository.use_session(session, sha256_hex(state), platform)
        if used is None:
            raise StateRefused
        app = await repository.find_app(session, used.project_id, used.app_id)
    # The application may have taken the address from its list since.
    if app is None or used.redirect_uri not in app.redirect_uris:
        raise StateRefused
    return _Started(used, app)


async def _connect(
    sessions: Sessions,
    box: SecretBox,
    settings: Settings,
    http: httpx.AsyncClient,
    started: _Started,
    *,
    code: str | None,
    error: str | None,
) -> _Connected:
    """Raises FlowFailed."""
    used = started.session
    platform: OAuthPlatform = used.platform  # type: ignore[assignment] # checked by the table
    if error is not None:
        raise flow.refused_by_person(platform, error)
    if not code:
        raise FlowFailed(
            "invalid_request", f"{flow.provider_name(platform)} sent neither a code nor an error."
        )
    try:
        client = _client(box, settings, started.app)
        verifier = box.open(_session_context(used.state_sha256), used.sealed)["code_verifier"]
    except SealBroken:
        raise FlowFailed("server_error", "The service cannot decrypt what it stored.") from None
    granted = await flow.redeem_code(settings, http, client, code=code, code_verifier=verifier)
    account = await flow.load_account(settings, http, platform, granted.access_token)
    # Somebody else may take the deduplication key between the look and the insert: then it is there to reconnect.
    for _ in range(2):
        try:
            async with transaction(sessions) as session:
                return await _write(
                    session, box, settings, used=used, client=client, granted=granted, account=account
                )
        except (DeduplicationKeyTaken, CalendarNotFound):
            continue
        except OtherAccount:
            raise _other_account(platform) from None
    raise FlowFailed("temporarily_unavailable", "The calendar was changed at the same time. Try again.")


async def _write(
    session: Session,
    box: SecretBox,
    settings: Settings,
    *,
    used: OAuthSession,
    client: Client,
    granted: Granted,
    account: Account,
) -> _Connected:
    """Creates or reconnects the calendar. Raises FlowFailed, DeduplicationKeyTaken, CalendarNotFound, OtherAccount."""
    holder = None
    if used.deduplication_key is not None:
        holder = await repository.find_holder(session, used.project_id, used.deduplication_key)
    if holder is not None and holder.platform != client.platform:
        raise FlowFailed("invalid_request", _other_platform(holder.platform))
    if granted.refresh_token is None:
        # What is stored goes on only if it is this very account's.
        keeps = (
            holder is not None
            and holder.state == "connected"
            and holder.client_id == client.client_id
            and account.is_known_to_be(holder.account)
        )
        if not keeps or holder is None:
            if used.same_account and holder is not None and not account.is_known_to_be(holder.account):
                raise OtherAccount
            return await _ask_again(session, box, settings, used, client)
        if used.metadata_ is not None:
            await set_metadata(session, holder.id, used.metadata_)
        await request_sync(session, holder.id, force=True)
        return _Connected(holder.id)
    if holder is not None:
        await reconnect_calendar(
            session,
            box,
            used.project_id,
            holder.id,
            client_id=client.client_id,
            secrets={"client_secret": client.client_secret, "refresh_token": granted.refresh_token},
            account=account,
            metadata=used.metadata_,
            only_same_account=used.same_account,
        )
        return _Connected(holder.id)
    created = await create_calendar(
        session,
        box,
        used.project_id,
        ProviderCalendarCreate(
            platform=client.platform,
            client_id=client.client_id,
            client_secret=client.client_secret,
            refresh_token=granted.refresh_token,
            platform_uuid=used.platform_uuid,
            metadata=used.metadata_,
            deduplication_key=used.deduplication_key,
        ),
        allows_http=settings.allows_http_feed,
        account=account,
    )
    return _Connected(created.id)


async def _ask_again(
    session: Session, box: SecretBox, settings: Settings, used: OAuthSession, client: Client
) -> _Connected:
    """Once more to the provider, this time with its consent screen. Raises FlowFailed if that was so already."""
    if used.consent_asked:
        name = flow.provider_name(client.platform)
        raise FlowFailed(
            "invalid_grant",
            f"{name} gave no refresh token. Remove the app's access in the {name} account, and connect again.",
        )
    url, _ = await _open_session(
        session,
        box,
        settings,
        client,
        ask_consent=True,
        login_hint=used.login_hint,
        values={
            "project_id": used.project_id,
            "app_id": used.app_id,
            "platform": used.platform,
            "redirect_uri": used.redirect_uri,
            "deduplication_key": used.deduplication_key,
            "metadata_": used.metadata_,
            "platform_uuid": used.platform_uuid,
            "same_account": used.same_account,
        },
    )
    return _Connected(again_at=url)


def _other_account(platform: OAuthPlatform) -> FlowFailed:
    name = flow.provider_name(platform)
    return FlowFailed(
        "account_mismatch",
        f"The calendar is connected with another {name} account. Connect again and choose that account.",
    )


def _other_platform(platform: str) -> str:
    return f"The calendar with this deduplication key is of platform {platform}."
