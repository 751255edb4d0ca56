"""The refresh of an access token at either provider (RFC 6749, sections 6 and 5.1)."""

from collections.abc import Callable, Mapping
from typing import Any

from app.core.http import httpx, is_header_safe
from app.providers.base import AccessDenied, FreshToken, ProviderError, Unavailable
from app.providers.http import request

_MAX_BODY_BYTES = 64 * 1024
_DEADLINE_SECONDS = 20.0
_USUAL_LIFETIME_SECONDS = 3600

# (status, JSON object or empty, headers) of a response that is not 200, to its error.
Classify = Callable[[int, Mapping[str, Any], Mapping[str, str]], ProviderError]


async def refresh(
    client: httpx.AsyncClient,
    *,
    provider: str,
    token_url: str,
    client_id: str,
    client_secret: str,
    refresh_token: str,
    classify: Classify,
    reads_calendars: Callable[[str], bool],
) -> FreshToken:
    """Refresh an access token.

    `reads_calendars`: whether a granted scope allows that; one must, where the response lists scopes.

    Raises the error of `classify`, AccessDenied (`scope_missing`), Unavailable. No message holds anything
    that was sent or received.
    """
    response = await request(
        client,
        "POST",
        token_url,
        provider=f"{provider}'s token endpoint",
        form={
            "grant_type": "refresh_token",
            "client_id": client_id,
            "client_secret": client_secret,
            "refresh_token": refresh_token,
        },
        max_bytes=_MAX_BODY_BYTES,
        deadline_seconds=_DEADLINE_SECONDS,
    )
    fields = response.json_object() or {}
    if response.status != 200:
        raise classify(response.status, fields, response.headers)
    access_token, new_refresh_token, scope = (
        fields.get(name) for name in ("access_token", "refresh_token", "scope")
    )
    if not isinstance(access_token, str) or not is_header_safe(access_token):
        raise Unavailable(f"{provider}'s token endpoint gave no access token.", code="broken_answer")
    scopes = scope.split() if isinstance(scope, str) else []
    if scopes and not any(map(reads_calendars, scopes)):
        raise AccessDenied(
            "The calendar permission was not granted: connect again and allow it.",
            code="scope_missing",
            is_final=True,
        )
    return FreshToken(
        access_token=access_token,
        expires_in=_seconds(fields.get("expires_in")),
        refresh_token=new_refresh_token if isinstance(new_refresh_token, str) and new_refresh_token else None,
        scope=" ".join(scopes) or None,
    )


def _seconds(value: Any) -> int:
    try:
        return max(int(value), 0)
    except (TypeError, ValueError, OverflowError):
        return _USUAL_LIFETIME_SECONDS
