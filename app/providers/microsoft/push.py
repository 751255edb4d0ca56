"""Subscriptions of Microsoft Graph, renewed in place (docs/reference/microsoft.md, "Subscriptions")."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from app.core.clock import utcnow
from app.core.fetch import Response
from app.core.http import httpx
from app.providers.base import ClientMisconfigured, TokenSource, Unavailable
from app.providers.http import require_object
from app.providers.microsoft.client import GraphClient, classify_error
from app.providers.push import MAX_BODY_BYTES, ChannelExists, ChannelUnknown, OpenedChannel

# "Under 7 days" is the most for Outlook events; an hour less leaves room for clocks that differ.
_LIFE = timedelta(days=6, hours=23)
# Opening waits for the two handshakes, of up to 10 s each.
_DEADLINE_SECONDS = 30.0
_MOST_PAGES = 20
# The code is ValidationError or InvalidRequest, with a sentence on the validation request.
_ADDRESS_REFUSED = b"alidation"
_PREFER = 'IdType="ImmutableId"'


class MicrosoftPush:
    """The subscription of one Outlook calendar.

    `base_url` is MICROSOFT_GRAPH_BASE_URL; `calendar_id` None: the default one.
    """

    def __init__(
        self, *, client: httpx.AsyncClient, tokens: TokenSource, base_url: str, calendar_id: str | None
    ) -> None:
        self._graph = GraphClient(client=client, tokens=tokens, base_url=base_url)
        self._url = f"{self._graph.base_url}/subscriptions"
        self._resource = "me/events"
        if calendar_id is not None:
            self._resource = f"me/calendars/{quote(calendar_id, safe='=', errors='replace')}/events"

    async def open(self, *, channel_id: str, secret: str, address: str) -> OpenedChannel:  # noqa: ARG002 - as GooglePush
        """Subscribe `address`, for lifecycle events too. Graph validates the address before this returns.

        Raises ChannelExists, ClientMisconfigured (the address too), CredentialsRevoked, AccessDenied, CalendarRemoved,
        RateLimited, Unavailable (then the subscription may exist), ProviderError.
        """
        expires_at = utcnow() + _LIFE
        response = await self._send(
            "POST",
            self._url,
            {
                "changeType": "created,updated,deleted",
                "notificationUrl": address,
                "lifecycleNotificationUrl": address,
                "resource": self._resource,
                "expirationDateTime": _written(expires_at),
                "clientState": secret,
                "latestSupportedTlsVersion": "v1_2",
            },
        )
        if response.status == 409:
            raise ChannelExists("Microsoft holds an equal subscription already.")
        if response.status == 400 and _ADDRESS_REFUSED in response.body:
            raise ClientMisconfigured(
                "Microsoft could not validate the notification address: is APP_URL reachable from the internet?",
                code="notification_address_refused",
            )
        if response.status not in {200, 201}:
            raise classify_error(response.status, response.body, response.headers)
        document = require_object(response, "Microsoft")
        provider_id = document.get("id")
        if not isinstance(provider_id, str) or not provider_id.isprintable():
            raise Unavailable("Microsoft's response is not a subscription.", code="broken_answer")
        return OpenedChannel(
            expires_at=_read_time(document.get("expirationDateTime")) or expires_at, provider_id=provider_id
        )

    async def renew(self, provider_id: str, *, address: str) -> datetime:
        """Renew the subscription, which also authorizes it again. Returns its new end.

        Raises ChannelUnknown where there is none any more, or it was for another address (APP_URL has changed): that
        one is closed, since its lifecycle address cannot be changed. Other errors as in `open`.
        """
        expires_at = utcnow() + _LIFE
        url = self._url_of(provider_id)
        response = await self._send("PATCH", url, {"expirationDateTime": _written(expires_at)})
        if response.status != 200:
            err = classify_error(response.status, response.body, response.headers)
            # A 404 without Graph's error body comes from something in between.
            if response.status == 404 and not isinstance(err, Unavailable):
                raise ChannelUnknown("Microsoft does not know the subscription any more.")
            raise err
        document = require_object(response, "Microsoft")
        if document.get("notificationUrl", address) != address:
            await self.close(channel_id="", provider_id=provider_id, resource_id=None)
            raise ChannelUnknown("The subscription was for another address.")
        return _read_time(document.get("expirationDateTime")) or expires_at

    async def close(self, *, channel_id: str, provider_id: str | None, resource_id: str | None) -> None:  # noqa: ARG002 - as GooglePush
        """Delete a subscription; one that is not known any more counts as deleted.

        Raises the errors of `open`.
        """
        response = await self._send("DELETE", self._url_of(provider_id or ""))
        if not 200 <= response.status < 300 and response.status != 404:
            raise classify_error(response.status, response.body, response.headers)

    async def find_equal(self, *, address: str) -> list[str]:
        """Ids of the account's subscriptions to this calendar that notify `address`."""
        return [
            item["id"]
            async for item in self._list()
            if isinstance(item, dict)
            and isinstance(item.get("id"), str)
            and item.get("notificationUrl") == address
            and str(item.get("resource")).strip("/").casefold() == self._resource.casefold()
        ]

    async def _list(self) -> AsyncIterator[Any]:
        url = self._url
        for _ in range(_MOST_PAGES):
            response = await self._send("GET", url)
            if response.status != 200:
                raise classify_error(response.status, response.body, response.headers)
            document = require_object(response, "Microsoft")
            items = document.get("value")
            for item in items if isinstance(items, list) else []:
                yield item
            link = document.get("@odata.nextLink")
            # The token goes to no other address.
            if not isinstance(link, str) or not link.startswith(f"{self._url}?"):
                return
            url = link

    def _url_of(self, provider_id: str) -> str:
        return f"{self._url}/{quote(provider_id, safe='')}"

    async def _send(self, method: str, url: str, document: dict[str, Any] | None = None) -> Response:
        return await self._graph.send(
            method,
            url,
            prefer=_PREFER,
            document=document,
            max_bytes=MAX_BODY_BYTES,
            deadline_seconds=_DEADLINE_SECONDS,
        )


def _written(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")


def _read_time(value: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(value)  # digits of a second past the sixth are dropped
    except (TypeError, ValueError):
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
