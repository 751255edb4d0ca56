"""OAuth sessions: sending a browser to the provider.

The application fixes the project, redirect_uri, deduplication key and metadata when it creates the session. The browser
brings back only `state` and `code`. The state is random, works once, and is stored as a hash. With PKCE (RFC 7636), the
code of another session cannot be redeemed.
"""

from datetime import datetime, timedelta
from typing import Any

from app.core.clock import utcnow
from app.core.crypto import SealBroken, SecretBox, sha256_hex
from app.core.db import Session
from app.core.errors import InvalidFields
from app.oauth import flow, repository
from app.oauth.apps import open_client
from app.oauth.flow import Client
from app.oauth.schemas import OAuthSessionCreate, OAuthSessionRead
from app.settings import Settings

SESSION_FOR = timedelta(minutes=10)


def session_context(state_sha256: str) -> str:
    """Return the context that `oauth_sessions.sealed` is encrypted with."""
    return f"oauth_sessions:{state_sha256}"


async def create_session(
    session: Session, box: SecretBox, settings: Settings, project_id: str, body: OAuthSessionCreate
) -> OAuthSessionRead:
    """Start a connection and return the address to send the browser to. Raises InvalidFields."""
    app = await repository.find_app(session, project_id, body.platform)
    if app is None:
        sentence = f"This project has no OAuth app for {body.platform}: POST /api/v1/oauth/apps first."
        raise InvalidFields.one("platform", sentence)
    if body.redirect_uri not in app.redirect_uris:
        sentence = "Not one of the OAuth app's redirect_uris. It must be exactly equal to one of them."
        raise InvalidFields.one("redirect_uri", sentence)
    has_live_credentials = False
    if body.deduplication_key is not None:
        holder = await repository.find_holder(session, project_id, body.deduplication_key)
        if holder is not None:
            if holder.platform != body.platform:
                raise InvalidFields.one("deduplication_key", other_platform(holder.platform))
            if body.platform_uuid is not None and body.platform_uuid != holder.platform_uuid:
                sentence = (
                    "The calendar with this deduplication key has another one, which cannot be changed."
                )
                raise InvalidFields.one("platform_uuid", sentence)
            has_live_credentials = holder.state == "connected" and holder.client_id == app.client_id
    try:
        client = open_client(box, settings, app)
    except SealBroken:
        sentence = "The app's stored secret can no longer be decrypted: PATCH the app with its client_secret."
        raise InvalidFields.one("platform", sentence) from None
    await repository.delete_old_sessions(session, project_id)
    url, expires_at = await open_session(
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


async def open_session(
    session: Session,
    box: SecretBox,
    settings: Settings,
    client: Client,
    *,
    ask_consent: bool,
    login_hint: str | None,
    values: dict[str, Any],
) -> tuple[str, datetime]:
    """Store a session. Return the authorization URL, and the time until which the browser must return."""
    state, verifier = flow.new_state(), flow.new_code_verifier()
    state_sha256 = sha256_hex(state)
    expires_at = utcnow() + SESSION_FOR
    await repository.insert_session(
        session,
        {
            **values,
            "state_sha256": state_sha256,
            "sealed": box.seal(session_context(state_sha256), {"code_verifier": verifier}),
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


def other_platform(platform: str) -> str:
    return f"The calendar with this deduplication key is of platform {platform}."
