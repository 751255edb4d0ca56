"""Google's token endpoint (contract/providers.md A.1)."""

from collections.abc import Mapping
from typing import Any

from app.core.http import httpx
from app.providers.base import (
    AccessDenied,
    ClientMisconfigured,
    CredentialsRevoked,
    FreshToken,
    ProviderError,
    RateLimited,
    Unavailable,
)
from app.providers.wire import exchange, is_header_safe, load_json, retry_after

_MAX_BODY_BYTES = 64 * 1024
_DEADLINE_SECONDS = 20.0
_USUAL_LIFETIME_SECONDS = 3600
_CALENDAR_SCOPE = "https://www.googleapis.com/auth/calendar"

_DEAD_GRANT = frozenset({"invalid_grant", "interaction_required", "consent_required"})
_CLIENT_FAULTS = frozenset(
    {
        "invalid_client",
        "deleted_client",
        "unauthorized_client",
        "redirect_uri_mismatch",
        "invalid_request",
        "invalid_scope",
        "unsupported_grant_type",
    }
)
_NOT_ALLOWED = frozenset({"admin_policy_enforced", "access_denied", "org_internal"})


async def refresh_access_token(
    client: httpx.AsyncClient, *, token_url: str, client_id: str, client_secret: str, refresh_token: str
) -> FreshToken:
    """A new access token for a refresh token.

    Raises CredentialsRevoked (the grant is dead), ClientMisconfigured (client id, secret, or the request),
    AccessDenied (`scope_missing`: the person did not grant the calendar; `admin_policy_enforced`, ...),
    RateLimited, Unavailable. No message holds anything that was sent or received.
    """
    answer = await exchange(
        client,
        "POST",
        token_url,
        provider="Google's token endpoint",
        data={
            "grant_type": "refresh_token",
            "client_id": client_id,
            "client_secret": client_secret,
            "refresh_token": refresh_token,
        },
        max_bytes=_MAX_BODY_BYTES,
        deadline_seconds=_DEADLINE_SECONDS,
    )
    try:
        document = load_json(answer.body)
    except ValueError:
        document = None
    fields = document if isinstance(document, dict) else {}
    if answer.status != 200:
        raise _classify(answer.status, fields, answer.headers)
    return _fresh_token(fields)


def _classify(status: int, fields: dict[str, Any], headers: Mapping[str, str]) -> ProviderError:
    word = fields.get("error")
    if status == 429 or word == "rate_limit_exceeded":
        return RateLimited("Google's token endpoint asks to slow down.", retry_after=retry_after(headers))
    if isinstance(word, str) and 400 <= status < 500:
        # By the word alone: the description of one and the same dead token changes.
        if word in _DEAD_GRANT:
            return CredentialsRevoked("Google does not accept the refresh token any more: connect again.")
        if word in _CLIENT_FAULTS:
            return ClientMisconfigured(
                f"Google refuses the OAuth client or its request ({word}): check client_id and client_secret.",
                code=word,
            )
        if word in _NOT_ALLOWED:
            return AccessDenied(f"The Google account may not grant calendar access ({word}).", code=word)
    # An answer that says nothing clear about the grant must never disconnect anybody.
    return Unavailable(
        f"Google's token endpoint answered with HTTP status {status}.", retry_after=retry_after(headers)
    )


def _fresh_token(fields: dict[str, Any]) -> FreshToken:
    access_token, refresh_token, scope = (
        fields.get(name) for name in ("access_token", "refresh_token", "scope")
    )
    if not isinstance(access_token, str) or not is_header_safe(access_token):
        raise Unavailable("Google's token endpoint gave no access token.", code="broken_answer")
    scopes = scope.split() if isinstance(scope, str) else []
    if scopes and not any(
        name == _CALENDAR_SCOPE or name.startswith(_CALENDAR_SCOPE + ".") for name in scopes
    ):
        raise AccessDenied(
            "The calendar permission was not granted: connect again and allow it.", code="scope_missing"
        )
    return FreshToken(
        access_token=access_token,
        expires_in=_seconds(fields.get("expires_in")),
        refresh_token=refresh_token if isinstance(refresh_token, str) and refresh_token else None,
        scope=" ".join(scopes) or None,
    )


def _seconds(value: Any) -> int:
    try:
        return max(int(value), 0)
    except (TypeError, ValueError, OverflowError):
        return _USUAL_LIFETIME_SECONDS
