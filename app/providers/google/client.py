"""Requests to the Google Calendar API v3, and its errors (docs/reference/google.md, "API errors")."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from app.core.fetch import Response, load_object, retry_after
from app.core.http import httpx
from app.providers.base import (
    AccessDenied,
    CalendarRemoved,
    ClientMisconfigured,
    CredentialsRevoked,
    CursorExpired,
    ProviderError,
    RateLimited,
    TokenSource,
    Unavailable,
)
from app.providers.http import rejects_token, request, require_object, send_authorized

_MAX_BODY_BYTES = 64 * 1024 * 1024
_DEADLINE_SECONDS = 60.0

_RATE_REASONS = frozenset(
    {
        "rateLimitExceeded",
        "userRateLimitExceeded",
        "quotaExceeded",
        "RATE_LIMIT_EXCEEDED",
        "RESOURCE_EXHAUSTED",
    }
)
_CLIENT_REASONS = frozenset(
    {
        "accessNotConfigured",
        "SERVICE_DISABLED",
        "dailyLimitExceeded",
        "dailyLimitExceededUnreg",
        "CONSUMER_INVALID",
    }
)
_SCOPE_REASONS = frozenset({"insufficientPermissions", "ACCESS_TOKEN_SCOPE_INSUFFICIENT"})
_TRANSIENT_REASONS = frozenset({"backendError", "internalError"})


class GoogleClient:
    """The Calendar API as one account sees it. `base_url` is GOOGLE_API_BASE_URL, without `/calendar/v3`."""

    def __init__(self, *, client: httpx.AsyncClient, tokens: TokenSource, base_url: str) -> None:
        self._client = client
        self._tokens = tokens
        self._base_url = base_url.rstrip("/") + "/calendar/v3"

    async def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        document: Any = None,
        max_bytes: int | None = None,
        deadline_seconds: float | None = None,
        is_about_token: Callable[[Response], bool] = rejects_token,
    ) -> Response:
        """Send one request with the account's token, and again with a fresh one if `is_about_token`.

        Raises Unavailable, and the errors of the TokenSource.
        """

        async def send(token: str) -> Response:
            return await request(
                self._client,
                method,
                self._base_url + path,
                provider="Google",
                params=params,
                document=document,
                headers={"Authorization": f"Bearer {token}"},
                max_bytes=max_bytes or _MAX_BODY_BYTES,
                deadline_seconds=deadline_seconds or _DEADLINE_SECONDS,
            )

        return await send_authorized(self._tokens, send, is_about_token=is_about_token)

    async def get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        """The JSON object at `path`. Raises ProviderError."""
        response = await self.send("GET", path, params=query)
        if response.status != 200:
            raise classify_error(response.status, response.body, response.headers)
        return require_object(response, "Google")

    async def pages(self, path: str, query: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
        """The pages of a list. In each, `items` is a list and the two tokens are texts or None.

        Raises ProviderError; CursorExpired where Google does not understand the sync token in `query`.
        """
        page_token: str | None = None
        seen: set[str] = set()
        while True:
            try:
                # Every other parameter is repeated unchanged, the sync token too (docs/reference/google.md, "Pages").
                document = await self.get(path, {**query, "pageToken": page_token} if page_token else query)
            except ProviderError as err:
                if err.code != "bad_request":
                    raise
                if "syncToken" in query:
                    raise CursorExpired("Google does not understand the sync token any more.") from err
                if page_token:
                    raise Unavailable(
                        "Google refused its own page token.", code="page_token_refused"
                    ) from err
                raise
            _check_page(document)
            yield document
            page_token = document["nextPageToken"]
            if not page_token:
                return
            if page_token in seen:
                raise Unavailable("Google's pages go round in a circle.", code="broken_answer")
            seen.add(page_token)


def classify_error(status: int, body: bytes, headers: Mapping[str, str]) -> ProviderError:
    """The error for a response that is not 200. Texts of the response are never taken into the message.

    See docs/reference/google.md, "API errors", and docs/reference/http-api.md, "Disconnecting".
    """
    reasons = _reasons(body)
    is_about_usage = bool(reasons & _RATE_REASONS) or (
        "usageLimits" in reasons and not reasons & _CLIENT_REASONS
    )
    if status == 429 or (status == 403 and is_about_usage):
        return RateLimited("Google asks to slow down.", retry_after=retry_after(headers))
    if status == 401:
        return CredentialsRevoked(
            "Google does not accept the access token, not even a fresh one.", code="token_rejected"
        )
    if status == 410:
        return CursorExpired("Google asks for a full synchronisation.")
    if status == 400:
        return ProviderError("Google refused the request as malformed.", code="bad_request")
    if status in {403, 404} and reasons and not reasons & _TRANSIENT_REASONS:
        return _refusal(status, reasons)
    if status in {403, 404, 408} or status >= 500 or status < 400:
        # A 403 or 404 without JSON comes from something in between, not from the calendar.
        return Unavailable(f"Google returned HTTP status {status}.", retry_after=retry_after(headers))
    return ProviderError(f"Google returned HTTP status {status}.", code="unexpected_status")


def _refusal(status: int, reasons: frozenset[str]) -> ProviderError:
    if status == 404:
        return CalendarRemoved("Google does not know this calendar, or the account may not see it any more.")
    if reasons & _CLIENT_REASONS:
        return ClientMisconfigured(
            "The Google Cloud project may not use the Calendar API: enable it, and check its daily quota.",
            code="api_not_usable",
        )
    if reasons & _SCOPE_REASONS:
        return AccessDenied("The connection lacks the permission to read calendars.", code="scope_missing")
    if "notACalendarUser" in reasons:
        return AccessDenied("This Google account has no Google Calendar.", code="not_a_calendar_user")
    return AccessDenied("Google refuses access to this calendar.")


def _reasons(body: bytes) -> frozenset[str]:
    """Every reason word in an error body of either style; empty if the body is no JSON object."""
    document = load_object(body)
    if document is None:
        return frozenset()
    error = document.get("error")
    entries = [error]
    for name in ("errors", "details"):
        value = error.get(name) if isinstance(error, dict) else None
        entries += value if isinstance(value, list) else []
    words = [
        entry.get(key)
        for entry in entries
        if isinstance(entry, dict)
        for key in ("reason", "status", "domain")
    ]
    return frozenset(word for word in words if isinstance(word, str)) or frozenset({"unknown"})


def _check_page(document: dict[str, Any]) -> None:
    """Raise Unavailable for JSON that is not a list: taken for an empty one, it would delete everything."""
    if not document.keys() & {"kind", "items", "nextPageToken", "nextSyncToken"}:
        raise Unavailable("Google's response is not a list.", code="broken_answer")
    items = document.setdefault("items", [])
    tokens = [document.setdefault(name, None) for name in ("nextPageToken", "nextSyncToken")]
    if not isinstance(items, list) or not all(token is None or isinstance(token, str) for token in tokens):
        raise Unavailable("Google's response is not a list.", code="broken_answer")
