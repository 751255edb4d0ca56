"""Subscriptions of the fake Graph and their notifications.

See docs/reference/microsoft.md, "Subscriptions".
"""

import asyncio
import contextlib
import dataclasses
import re
import secrets
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote_plus, unquote, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from app.core.clock import utcnow
from app.core.http import httpx, operator_client
from tests.fakes.microsoft_http import GraphError, bad, json_response, not_found, param, preferences_of
from tests.fakes.microsoft_identity import Grant
from tests.fakes.microsoft_store import Calendar, ChangeType, Mailbox, default_id, graph_time

LifecycleEvent = Literal["reauthorizationRequired", "subscriptionRemoved", "missed"]

LONGEST_SUBSCRIPTION = timedelta(minutes=10_080)
_SHORTEST_SUBSCRIPTION = timedelta(minutes=45)
_SUBSCRIBED = re.compile(r"/?me/(?:calendar/|calendars/(?P<calendar>[^/]+)/)?events", re.IGNORECASE)
_NULL_SUBSCRIPTION_FIELDS = (
    "includeResourceData", "encryptionCertificate", "encryptionCertificateId", "notificationQueryOptions",
    "notificationUrlAppId",
)  # fmt: skip


@dataclasses.dataclass(slots=True)
class Subscription:
    id: str
    client_id: str
    mailbox: Mailbox
    calendar: Calendar
    resource: str
    change_types: tuple[str, ...]
    notification_url: str
    lifecycle_url: str | None
    client_state: str | None
    expires_at: datetime
    has_immutable_ids: bool
    needs_reauthorization: bool = False


class PushService:
    """Subscriptions and notifications. Switches are plain attributes."""

    def __init__(self) -> None:
        self.now: Callable[[], datetime] = utcnow
        self.allow_http_push = False
        self.handshake_seconds = 10.0
        self.lost_notifications = 0
        self.duplicate_notifications = False
        self.wrong_client_states = 0
        self.mixes_in_unknown = False  # an item of an unknown subscription in front of each notification
        self.push_retry_seconds = 0.02
        self.subscription_limit = 1000
        self.subscriptions: dict[str, Subscription] = {}
        self._changed: list[tuple[Calendar, ChangeType, str]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def subscribe(self, request: Request, grant: Grant) -> Response:
        asked = await request.json()
        resource = str(asked.get("resource", ""))
        found = _SUBSCRIBED.fullmatch(resource)
        if found is None:
            raise bad(f"Unsupported resource: {resource}", "InvalidRequest")
        calendar_id = unquote(found["calendar"]) if found["calendar"] else grant.mailbox.default.id
        calendar = grant.mailbox.calendars.get(calendar_id)
        if calendar is None:
            raise not_found()
        change_types = tuple(part.strip() for part in str(asked.get("changeType", "")).split(","))
        if not set(change_types) <= {"created", "updated", "deleted"}:
            raise bad("Invalid changeType.", "InvalidRequest")
        client_state = asked.get("clientState")
        if client_state is not None and (not isinstance(client_state, str) or len(client_state) > 128):
            raise bad("clientState is longer than 128 characters.", "InvalidRequest")
        expires_at = self._expiration(asked.get("expirationDateTime"))
        self._drop_expired()
        same_mailbox = [other for other in self.subscriptions.values() if other.mailbox is grant.mailbox]
        if len(same_mailbox) >= self.subscription_limit:
            raise GraphError(403, "ExtensionError", "Too many subscriptions for this mailbox.")
        if any(
            (other.client_id, other.resource.lower(), other.change_types)
            == (grant.client_id, resource.lower(), change_types)
            for other in same_mailbox
        ):
            text = "Subscription already exists for the specified notificationUrl, resource and changeType."
            raise GraphError(409, "Conflict", text)
        urls = [asked.get("notificationUrl"), asked.get("lifecycleNotificationUrl")]
        if urls[0] is None:
            raise bad("notificationUrl is missing.", "InvalidRequest")
        for url in dict.fromkeys(url for url in urls if url is not None):
            await self._shake_hands(url)
        subscription = Subscription(
            id=str(uuid.uuid4()),
            client_id=grant.client_id,
            mailbox=grant.mailbox,
            calendar=calendar,
            resource=resource,
            change_types=change_types,
            notification_url=urls[0],
            lifecycle_url=urls[1],
            client_state=client_state,
            expires_at=expires_at,
            has_immutable_ids=preferences_of(request).has_immutable_ids,
        )
        self.subscriptions[subscription.id] = subscription
        return json_response(_subscription_entry(subscription), 201)

    def _expiration(self, value: Any) -> datetime:
        try:
            at = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise bad("expirationDateTime is missing or malformed.", "InvalidRequest") from None
        at = at.replace(tzinfo=at.tzinfo or UTC)
        now = self.now()
        if at > now + LONGEST_SUBSCRIPTION:
            text = "Subscription expiration can only be 10080 minutes in the future."
            raise bad(text, "ExtensionError")
        if at <= now:
            raise bad("Subscription expiration must be in the future.", "InvalidRequest")
        return max(at, now + _SHORTEST_SUBSCRIPTION)

    async def _shake_hands(self, url: Any) -> None:
        """POSTs a token that must come back decoded, as plain text, in time."""
        if not isinstance(url, str) or not url.startswith(("https://", "http://")):
            raise bad("The notification URL is not valid.", "InvalidRequest")
        if not self.allow_http_push and not url.startswith("https://"):
            raise bad("The notification URL must use HTTPS.", "InvalidRequest")
        token = f"Validation: Testing client application reachability for {secrets.token_hex(8)}+<x>/=&"
        separator = "&" if urlsplit(url).query else "?"
        problem = None
        async with operator_client(timeout=self.handshake_seconds) as client:
            try:
                response = await client.post(
                    f"{url}{separator}validationToken={quote_plus(token)}",
                    headers={"Content-Type": "text/plain; charset=utf-8"},
                )
            except httpx.HTTPError:
                problem = "the endpoint did not respond"
            else:
                content_type = response.headers.get("content-type", "").partition(";")[0].strip()
                if response.status_code != 200:
                    problem = f"HTTP status code {response.status_code}"
                elif content_type != "text/plain":
                    problem = f"content type {content_type}"
                elif response.text != token:
                    problem = "the body is not the validation token"
        if problem:
            text = f"Subscription validation request failed. Notification endpoint: {problem}."
            raise bad(text, "ValidationError")

    def _drop_expired(self) -> None:
        for subscription in list(self.subscriptions.values()):
            if subscription.expires_at <= self.now():
                del self.subscriptions[subscription.id]

    def _subscription_of(self, request: Request, grant: Grant) -> Subscription:
        self._drop_expired()
        subscription = self.subscriptions.get(param(request, "subscription") or "")
        if (
            subscription is None
            or subscription.client_id != grant.client_id
            or subscription.mailbox is not grant.mailbox
        ):
            raise GraphError(404, "ResourceNotFound", "The object was not found.")
        return subscription

    async def list_subscriptions(self, _request: Request, grant: Grant) -> Response:
        self._drop_expired()
        own = [
            _subscription_entry(subscription)
            for subscription in self.subscriptions.values()
            if subscription.client_id == grant.client_id and subscription.mailbox is grant.mailbox
        ]
        return json_response({"value": own})

    async def get_subscription(self, request: Request, grant: Grant) -> Response:
        return json_response(_subscription_entry(self._subscription_of(request, grant)))

    async def renew(self, request: Request, grant: Grant) -> Response:
        subscription = self._subscription_of(request, grant)
        asked = await request.json()
        if unknown := asked.keys() - {"expirationDateTime", "notificationUrl"}:
            raise bad(f"{min(unknown)} cannot be changed.", "InvalidRequest")
        if "notificationUrl" in asked:
            await self._shake_hands(asked["notificationUrl"])
            subscription.notification_url = asked["notificationUrl"]
        if "expirationDateTime" in asked:
            subscription.expires_at = self._expiration(asked["expirationDateTime"])
            subscription.needs_reauthorization = False
        return json_response(_subscription_entry(subscription))

    async def reauthorize(self, request: Request, grant: Grant) -> Response:
        self._subscription_of(request, grant).needs_reauthorization = False
        return Response(status_code=204)

    async def unsubscribe(self, request: Request, grant: Grant) -> Response:
        del self.subscriptions[self._subscription_of(request, grant).id]
        return Response(status_code=204)

    # --- notifications -----------------------------------------------------------------------------------

    def note_change(self, calendar: Calendar, change: ChangeType, event_id: str) -> None:
        """Changes of one turn of the event loop go out together."""
        if not any(subscription.calendar is calendar for subscription in self.subscriptions.values()):
            return
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._notify_changed)
        self._changed.append((calendar, change, event_id))

    def _notify_changed(self) -> None:
        changed, self._changed = self._changed, []
        self._drop_expired()
        batches: dict[str, list[dict[str, Any]]] = {}
        for calendar, change, event_id in changed:
            for subscription in self.subscriptions.values():
                if subscription.calendar is not calendar or change not in subscription.change_types:
                    continue
                if subscription.needs_reauthorization:
                    continue
                if self.lost_notifications > 0:
                    self.lost_notifications -= 1
                    continue
                batches.setdefault(subscription.notification_url, []).append(
                    self._notification(subscription, change, event_id)
                )
        for url, items in batches.items():
            if self.mixes_in_unknown:
                items.insert(0, {**items[0], "subscriptionId": str(uuid.uuid4())})
            for _ in range(2 if self.duplicate_notifications else 1):
                self._send_soon(self._post(url, {"value": items}))

    def _notification(self, subscription: Subscription, change: ChangeType, event_id: str) -> dict[str, Any]:
        shown_id = event_id if subscription.has_immutable_ids else default_id(event_id)
        resource = f"Users/{subscription.mailbox.user_id}/Events/{shown_id}"
        return {
            "id": str(uuid.uuid4()),
            **self._notification_head(subscription),
            "changeType": change,
            "resource": resource,
            "resourceData": {
                "@odata.type": "#Microsoft.Graph.Event",
                "@odata.id": resource,
                "@odata.etag": f'W/"DwAAABYAAAB{subscription.calendar.rev:08d}"',
                "id": shown_id,
            },
        }

    def _notification_head(self, subscription: Subscription) -> dict[str, Any]:
        client_state = subscription.client_state
        if self.wrong_client_states > 0:
            self.wrong_client_states -= 1
            client_state = "not the client state"
        return {
            "subscriptionId": subscription.id,
            "subscriptionExpirationDateTime": subscription.expires_at.isoformat(timespec="seconds"),
            "clientState": client_state,
            "tenantId": subscription.mailbox.tenant_id,
        }

    def send_lifecycle(self, event: LifecycleEvent, subscription_id: str | None = None) -> None:
        """Send to one subscription, or to all. One that needs reauthorization sends nothing until it has it."""
        for subscription in list(self.subscriptions.values()):
            if subscription_id not in {None, subscription.id} or subscription.lifecycle_url is None:
                continue
            if event == "reauthorizationRequired":
                subscription.needs_reauthorization = True
            elif event == "subscriptionRemoved":
                del self.subscriptions[subscription.id]
            item = {**self._notification_head(subscription), "lifecycleEvent": event}
            self._send_soon(self._post(subscription.lifecycle_url, {"value": [item]}))

    def post_notification(self, url: str, items: list[dict[str, Any]]) -> None:
        """Send any body, as any sender could."""
        self._send_soon(self._post(url, {"value": items}))

    def _send_soon(self, sending: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(sending)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def deliver_notifications(self) -> None:
        """Waits until every notification of the changes so far has been sent or given up."""
        await asyncio.sleep(0)
        while self._sending:
            await asyncio.gather(*self._sending)

    async def _post(self, url: str, document: dict[str, Any]) -> None:
        async with operator_client(timeout=self.handshake_seconds) as client:
            for attempt in range(5):
                with contextlib.suppress(httpx.HTTPError):
                    response = await client.post(url, json=document)
                    if response.is_success:
                        return
                await asyncio.sleep(self.push_retry_seconds * 2**attempt)


def _subscription_entry(subscription: Subscription) -> dict[str, Any]:
    return {
        "id": subscription.id,
        "resource": subscription.resource,
        "applicationId": subscription.client_id,
        "changeType": ",".join(subscription.change_types),
        "clientState": subscription.client_state,
        "notificationUrl": subscription.notification_url,
        "lifecycleNotificationUrl": subscription.lifecycle_url,
        "expirationDateTime": f"{graph_time(subscription.expires_at.astimezone(UTC))}Z",
        "creatorId": subscription.mailbox.user_id,
        "latestSupportedTlsVersion": "v1_2",
        **dict.fromkeys(_NULL_SUBSCRIPTION_FIELDS),
    }
