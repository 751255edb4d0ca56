"""Push channels of the fake Google and their notifications.

See docs/reference/google.md, "Push channels".
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import random
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from app.core.clock import utcnow
from app.core.http import httpx, operator_client
from tests.fakes.google_http import ApiError, bad, json_response
from tests.fakes.google_identity import Grant
from tests.fakes.google_store import Calendar

PUSH_AGENT = "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)"

_CHANNEL_ID = re.compile(r"[A-Za-z0-9\-_+/=]{1,64}")


@dataclasses.dataclass(slots=True)
class Channel:
    id: str
    resource_id: str
    calendar_id: str
    address: str
    token: str | None
    expires_at: datetime
    client_id: str
    number: int = 1


class PushService:
    """Channels and notifications. Switches are plain attributes."""

    def __init__(self) -> None:
        self.now: Callable[[], datetime] = utcnow
        self.allow_http_push = False
        self.sync_message_first = False
        self.duplicate_notifications = False
        self.lost_notifications = 0  # how many of the next ones get lost
        self.push_unsupported: set[str] = set()
        self.push_retry_seconds = 0.02
        self.channels: dict[str, Channel] = {}
        self._changed: set[str] = set()
        self._sending: set[asyncio.Task[None]] = set()

    async def watch(self, request: Request, calendar: Calendar, grant: Grant) -> Response:
        if calendar.id in self.push_unsupported:
            text = "Push notifications are not supported by this resource."
            raise bad(text, reason="pushNotSupportedForRequestedResource")
        channel = self._read_channel(await request.json(), calendar, grant)
        self.channels[channel.id] = channel
        uri = f"{request.base_url}calendar/v3/calendars/{quote(calendar.id, safe='')}/events?alt=json"
        if self.sync_message_first:
            await self._notify(channel, "sync", uri)
        else:
            self._send_soon(self._notify(channel, "sync", uri))
        response = {
            "kind": "api#channel",
            "id": channel.id,
            "resourceId": channel.resource_id,
            "resourceUri": uri,
            "expiration": str(int(channel.expires_at.timestamp() * 1000)),
        }
        return json_response(response | ({"token": channel.token} if channel.token else {}))

    def _read_channel(self, asked: dict[str, Any], calendar: Calendar, grant: Grant) -> Channel:
        channel_id, address, token = asked.get("id"), asked.get("address"), asked.get("token")
        if not isinstance(channel_id, str) or not _CHANNEL_ID.fullmatch(channel_id):
            raise bad("Invalid channel id.", reason="required", location="id")
        if channel_id in self.channels:
            raise bad(f"Channel id {channel_id} not unique", reason="channelIdNotUnique")
        if asked.get("type") not in {"web_hook", "webhook"}:
            raise bad("Unknown channel type.", reason="unknownChannelType")
        if not isinstance(address, str) or not address.startswith(("https://", "http://")):
            raise bad("Invalid address.", reason="required", location="address")
        if not self.allow_http_push and not address.startswith("https://"):
            raise bad(f"WebHook callback must be HTTPS: {address}", reason="push.webhookUrlNotHttps")
        if token is not None and (not isinstance(token, str) or len(token) > 256):
            raise bad("Channel token too long.", reason="invalidParameter", location="token")
        lifetime = timedelta(seconds=int(asked.get("params", {}).get("ttl", 604_800)))
        if "expiration" in asked:
            lifetime = datetime.fromtimestamp(int(asked["expiration"]) / 1000, UTC) - self.now()
        return Channel(
            id=channel_id,
            resource_id=hashlib.sha256(calendar.id.encode()).hexdigest()[:27],
            calendar_id=calendar.id,
            address=address,
            token=token,
            expires_at=self.now() + min(lifetime, timedelta(days=7)),
            client_id=grant.client_id,
        )

    async def stop(self, request: Request, grant: Grant) -> Response:
        asked = await request.json()
        channel = self.channels.get(str(asked.get("id")))
        is_known = (
            channel is not None
            and (channel.resource_id, channel.client_id) == (asked.get("resourceId"), grant.client_id)
            and channel.expires_at > self.now()
        )
        if channel is None or not is_known:
            raise ApiError(404, "notFound", f"Channel '{asked.get('id')}' not found for project 'fake'")
        del self.channels[channel.id]
        return Response(status_code=204)

    def note_change(self, calendar: Calendar) -> None:
        """Changes of one turn of the event loop are one batch, and one notification."""
        if not any(channel.calendar_id == calendar.id for channel in self.channels.values()):
            return
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._notify_changed)
        self._changed.add(calendar.id)

    def _notify_changed(self) -> None:
        changed, self._changed = self._changed, set()
        for channel in self.channels.values():
            if channel.calendar_id not in changed or channel.expires_at <= self.now():
                continue
            if self.lost_notifications > 0:
                self.lost_notifications -= 1
                continue
            for _ in range(2 if self.duplicate_notifications else 1):
                self._send_soon(
                    self._notify(channel, "exists", "https://www.googleapis.com/calendar/v3/fake")
                )

    def _send_soon(self, sending: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(sending)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def deliver_notifications(self) -> None:
        """Waits until every notification of the changes so far has been sent or given up."""
        await asyncio.sleep(0)
        while self._sending:
            await asyncio.gather(*self._sending)

    async def _notify(self, channel: Channel, state: str, uri: str) -> None:
        headers = {
            "User-Agent": PUSH_AGENT,
            "X-Goog-Channel-ID": channel.id,
            "X-Goog-Channel-Expiration": format_datetime(channel.expires_at, usegmt=True),
            "X-Goog-Resource-ID": channel.resource_id,
            "X-Goog-Resource-URI": uri,
            "X-Goog-Resource-State": state,
            "X-Goog-Message-Number": str(channel.number),
        }
        if channel.token:
            headers["X-Goog-Channel-Token"] = channel.token
        channel.number += random.randint(1, 1000)
        async with operator_client(timeout=5.0) as client:
            for attempt in range(4):
                with contextlib.suppress(httpx.HTTPError):
                    response = await client.post(channel.address, content=b"", headers=headers)
                    if response.status_code not in {500, 502, 503, 504}:
                        return
                await asyncio.sleep(self.push_retry_seconds * 2**attempt)
