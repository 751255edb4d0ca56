"""Google's token endpoint (docs/reference/google.md, "Token endpoint" and "Token errors")."""

from collections.abc import Mapping
from typing import Any

from app.core.fetch import retry_after
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
from app.providers.token_endpoint import refresh

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
    return await refresh(
        client,
        provider="Google",
        token_url=token_url,
        client_id=client_id,
        client_secret=client_secret,
        refresh_token=refresh_token,
        classify=_classify,
        reads_calendars=_reads_calendars,
    )


def _classify(status: int, fields: Mapping[str, Any], headers: Mapping[str, str]) -> ProviderError:
    word = fields.get("error")
    if status == 429 or word == "rate_limit_exceeded":
        return RateLimited("Google's token endpoint asks to slow down.", retry_after=retry_after(headers))
    if isinstance(word, str) and 400 <= status < 500:
        # By the word alone: the description of one and the same dead token changes.
        if word in _DEAD_GRANT:
            return CredentialsRevoked(
                f"Google does not accept the refresh token any more: connect again ({word})",
                code=word,
                is_final=True,
            )
        if word in _CLIENT_FAULTS:
            return ClientMisconfigured(
                f"Google refuses the OAuth client or its request ({word}): check client_id and client_secret.",
                code=word,
            )
        if word in _NOT_ALLOWED:
            return AccessDenied(
                f"The Google account may not grant calendar access ({word})", code=word, is_final=True
            )
    # A response that says nothing clear about the grant must not disconnect the calendar.
    return Unavailable(
        f"Google's token endpoint returned HTTP status {status}.", retry_after=retry_after(headers)
    )


def _reads_calendars(scope: str) -> bool:
    return scope == _CALENDAR_SCOPE or scope.startswith(_CALENDAR_SCOPE + ".")
