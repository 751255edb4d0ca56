"""Push channels of Google Calendar (docs/reference/google.md, "Push channels").

Google neither renews nor lists channels: a new one is opened before the old one ends, and then the old one stopped.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from app.core.clock import utcnow
from app.core.fetch import Response
from app.core.http import httpx
from app.providers.base import ClientMisconfigured, TokenSource, Unavailable
from app.providers.google.client import GoogleClient, classify_error
from app.providers.http import rejects_token
from app.providers.push import MAX_BODY_BYTES, OpenedChannel, PushRefused

_LIFE = timedelta(days=7)
_DEADLINE_SECONDS = 20.0
_NO_PUSH = b"pushNotSupportedForRequestedResource"
# `push.webhookUrlNotHttps`, `webhookUrlUnauthorized`: as a 400 or a 401, which says nothing about the token.
_ADDRESS_REFUSED = b"webhookUrl"


class GooglePush:
    """The channels of one Google calendar.

    `base_url` is GOOGLE_API_BASE_URL; `calendar_id` None: the primary one.
    """

    def __init__(
        self, *, client: httpx.AsyncClient, tokens: TokenSource, base_url: str, calendar_id: str | None
    ) -> None:
        self._google = GoogleClient(client=client, tokens=tokens, base_url=base_url)
        self._calendar_id = calendar_id or "primary"

    async def open(self, *, channel_id: str, secret: str, address: str) -> OpenedChannel:
        """Open a channel to `address` that sends `secret`; its first message may come before this returns.

        Raises PushRefused, ClientMisconfigured (the address too), CredentialsRevoked, AccessDenied, CalendarRemoved,
        RateLimited, Unavailable (then the channel may exist), ProviderError.
        """
        calendar = quote(self._calendar_id, safe="", errors="replace")
        response = await self._post(
            f"/calendars/{calendar}/events/watch",
            {
                "id": channel_id,
                "type": "web_hook",
                "address": address,
                "token": secret,
                "params": {"ttl": str(int(_LIFE.total_seconds()))},
            },
        )
        if response.status != 200:
            if _NO_PUSH in response.body:
                raise PushRefused("Google offers no push for this calendar.")
            if _refuses_address(response):
                raise ClientMisconfigured(
                    "Google does not accept the notification address: APP_URL must be https, with a valid certificate.",
                    code="notification_address_refused",
                )
            raise classify_error(response.status, response.body, response.headers)
        document = response.json_object() or {}
        resource_id = document.get("resourceId")
        if not isinstance(resource_id, str) or not resource_id.isprintable():
            raise Unavailable("Google's response is not a channel.", code="broken_answer")
        return OpenedChannel(expires_at=_expires_at(document), resource_id=resource_id)

    async def close(self, *, channel_id: str, provider_id: str | None, resource_id: str | None) -> None:  # noqa: ARG002 - as MicrosoftPush.close
        """Stop a channel; one that is not known any more counts as stopped.

        Only the account and the OAuth client that opened it can do it. Raises the errors of `open`.
        """
        response = await self._post("/channels/stop", {"id": channel_id, "resourceId": resource_id})
        if not 200 <= response.status < 300 and response.status != 404:
            raise classify_error(response.status, response.body, response.headers)

    async def _post(self, path: str, document: dict[str, Any]) -> Response:
        return await self._google.send(
            "POST",
            path,
            document=document,
            max_bytes=MAX_BODY_BYTES,
            deadline_seconds=_DEADLINE_SECONDS,
            is_about_token=lambda response: rejects_token(response) and not _refuses_address(response),
        )


def _refuses_address(response: Response) -> bool:
    return response.status in {400, 401} and _ADDRESS_REFUSED in response.body


def _expires_at(document: dict[str, Any]) -> datetime:
    """Read `expiration`, which is milliseconds as text; the requested time if it cannot be read."""
    try:
        return datetime.fromtimestamp(int(document["expiration"]) / 1000, UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return utcnow() + _LIFE
