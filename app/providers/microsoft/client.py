"""Requests to Microsoft Graph, and its errors (docs/reference/microsoft.md, "API errors")."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import structlog

from app.core.fetch import Response, load_object, retry_after
from app.core.http import httpx
from app.events import limits
from app.providers.base import (
    AccessDenied,
    CalendarRemoved,
    CredentialsRevoked,
    CursorExpired,
    ProviderError,
    RateLimited,
    TokenSource,
    Unavailable,
)
from app.providers.http import request, require_object, send_authorized

log = structlog.get_logger(__name__)

_MAX_BODY_BYTES = 64 * 1024 * 1024
_DEADLINE_SECONDS = 60.0
_MOST_PAGES = 2_000
_MAILBOX_MOVE_PAUSE_SECONDS = 3600.0

# Codes are compared without regard to case.
_RATE_CODES = frozenset({"applicationthrottled", "toomanyrequests", "activitylimitreached"})
_RESYNC_CODES = frozenset({"syncstatenotfound", "resyncrequired"})
_NO_MAILBOX_CODES = frozenset({"mailboxnotenabledforrestapi", "errorinvaliduser", "errormissingemailaddress"})
_MOVING_CODES = frozenset({"mailboxmoveinprogress", "errormailboxmoveinprogress"})
_NOT_FOUND_CODES = frozenset({"erroritemnotfound", "itemnotfound", "errorinvalididmalformed"})
_NO_MAILBOX = "This Microsoft account has no mailbox in Exchange Online, so it has no calendar to read."
# Comes under several codes, which have only this sentence in common ("API errors").
_NO_MAILBOX_TEXT = "mailbox is either inactive, soft-deleted, or is hosted on-premise"


class GraphClient:
    """Microsoft Graph as one account sees it. `base_url` is MICROSOFT_GRAPH_BASE_URL, with the version."""

    def __init__(self, *, client: httpx.AsyncClient, tokens: TokenSource, base_url: str) -> None:
        self._client = client
        self._tokens = tokens
        self.base_url = base_url.rstrip("/")
        self._origin = _origin(httpx.URL(base_url))

    async def send(
        self,
        method: str,
        url: str,
        *,
        prefer: str,
        params: Mapping[str, str] | None = None,
        document: Any = None,
        max_bytes: int | None = None,
        deadline_seconds: float | None = None,
    ) -> Response:
        """Send one request with the account's token, and once more with a fresh one after a 401.

        `prefer` is the Prefer header. Raises Unavailable, and the errors of the TokenSource.
        """

        async def send(token: str) -> Response:
            return await request(
                self._client,
                method,
                url,
                provider="Microsoft Graph",
                params=params,
                document=document,
                headers={"Authorization": f"Bearer {token}", "Prefer": prefer},
                max_bytes=max_bytes or _MAX_BODY_BYTES,
                deadline_seconds=deadline_seconds or _DEADLINE_SECONDS,
            )

        return await send_authorized(self._tokens, send)

    async def get(
        self,
        url: str,
        query: dict[str, str] | None,
        *,
        prefer: str,
        max_bytes: int | None = None,
        deadline_seconds: float | None = None,
    ) -> dict[str, Any]:
        """The JSON object at `url`. Raises ProviderError."""
        response = await self.send(
            "GET",
            url,
            params=query,
            prefer=prefer,
            max_bytes=max_bytes,
            deadline_seconds=deadline_seconds,
        )
        if response.status != 200:
            error = classify_error(response.status, response.body, response.headers)
            # What Microsoft's support asks for.
            request_id = limits.cut(response.headers.get("request-id"), limits.NAME)
            log.info("microsoft.refused", status=response.status, code=error.code, request_id=request_id)
            raise error
        return require_object(response, "Microsoft")

    async def pages(
        self, url: str, query: dict[str, str] | None, *, prefer: str
    ) -> AsyncIterator[dict[str, Any]]:
        """The pages of a collection; in each, `value` is a list. Links are followed as they are.

        See docs/reference/microsoft.md, "Collections". Raises ProviderError.
        """
        seen: set[str] = set()
        while True:
            try:
                document = await self.get(url, query, prefer=prefer)
            except ProviderError as err:
                if seen and err.code == "bad_request":
                    raise Unavailable(
                        "Microsoft refused its own page link.", code="page_link_refused"
                    ) from err
                raise
            if not isinstance(document.get("value"), list):
                raise Unavailable("Microsoft's response is not a list.", code="broken_answer")
            yield document
            link = document.get("@odata.nextLink")
            if link is None:
                return
            if not isinstance(link, str) or not self.is_own(link):
                raise Unavailable("Microsoft's response leads on to another address.", code="broken_answer")
            if link in seen or len(seen) >= _MOST_PAGES:
                raise Unavailable("Microsoft's pages go round in a circle.", code="broken_answer")
            seen.add(link)
            url, query = link, None

    def is_own(self, link: str) -> bool:
        """Whether a link leads to the server to which tokens may be sent."""
        try:
            url = httpx.URL(link)
        except httpx.InvalidURL:
            return False
        return _origin(url) == self._origin and not url.userinfo


def classify_error(status: int, body: bytes, headers: Mapping[str, str]) -> ProviderError:
    """The error for a response that is not 200. Texts of the response are never taken into the message.

    See docs/reference/microsoft.md, "API errors", and docs/reference/http-api.md, "Disconnecting".
    """
    codes, text = _error(body)
    if status == 429 or codes & _RATE_CODES:
        return RateLimited("Microsoft asks to slow down.", retry_after=retry_after(headers))
    if status in {401, 403} and _asks_for_claims(headers):
        return CredentialsRevoked(
            "The organisation's access rules want this person to sign in again: connect the calendar again.",
            code="conditional_access",
            is_final=True,
        )
    if status == 401:
        return CredentialsRevoked(
            "Microsoft does not accept the access token, not even a fresh one.", code="token_rejected"
        )
    if status == 410 or codes & _RESYNC_CODES:
        return CursorExpired("Microsoft asks for a full synchronisation.")
    if codes & _MOVING_CODES:
        return Unavailable(
            "Microsoft is moving this mailbox.",
            code="mailbox_moving",
            retry_after=retry_after(headers) or _MAILBOX_MOVE_PAUSE_SECONDS,
        )
    if 400 <= status < 500 and (codes & _NO_MAILBOX_CODES or _NO_MAILBOX_TEXT in text):
        return AccessDenied(_NO_MAILBOX, code="mailbox_not_enabled")
    if status in {403, 404} and codes:
        return _refusal(status, codes)
    if status == 400 and codes & _NOT_FOUND_CODES:
        return _refusal(404, codes)
    if status == 400:
        return ProviderError("Microsoft refused the request as malformed.", code="bad_request")
    if status in {403, 404, 408, 423} or status >= 500 or status < 400:
        # A 403 or 404 without an error code comes from something in between, not from the calendar.
        return Unavailable(f"Microsoft returned HTTP status {status}.", retry_after=retry_after(headers))
    return ProviderError(f"Microsoft returned HTTP status {status}.", code="unexpected_status")


def _refusal(status: int, codes: frozenset[str]) -> ProviderError:
    if status == 403:
        return AccessDenied("Microsoft refuses access to this calendar: connect again and allow it.")
    if "resourcenotfound" in codes:
        # Only sometimes a missing mailbox ("API errors").
        return CalendarRemoved(_NO_MAILBOX, code="mailbox_not_enabled")
    if codes == {"unknownerror"}:
        return Unavailable(f"Microsoft returned HTTP status {status}.")
    return CalendarRemoved("Microsoft does not know this calendar, or the account may not see it any more.")


def _asks_for_claims(headers: Mapping[str, str]) -> bool:
    challenge = headers.get("WWW-Authenticate", "").lower()
    return "claims=" in challenge or "insufficient_claims" in challenge


def _error(body: bytes) -> tuple[frozenset[str], str]:
    """All codes in an error body, and its message, in lower case; nothing if it is no JSON."""
    error = (load_object(body) or {}).get("error")
    message = error.get("message") if isinstance(error, dict) else None
    codes: set[str] = set()
    while isinstance(error, dict):
        code = error.get("code")
        if isinstance(code, str) and code:
            codes.add(code.lower())
        error = error.get("innerError") or error.get("innererror")
    return frozenset(codes), message.lower() if isinstance(message, str) else ""


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
