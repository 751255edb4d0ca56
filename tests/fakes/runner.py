"""A fake bot runner: the part of Attendee's bots API that a hand-over needs, as strict as the real one.

    runner = FakeRunner()
    async with serve(runner) as url:
        ...  # POST {url}/api/v1/bots, GET {url}/api/v1/bots?deduplication_key=...

Like the real one it refuses a time to join in the past, a second bot with the deduplication key of a first, settings
that are null, names with emoji, and links of services that it does not know.
"""

import asyncio
import re
import socket
import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson

from app.core.clock import utcnow
from app.core.ids import new_id

_HOSTS = re.compile(r"(^|\.)(zoom\.us|meet\.google\.com|teams\.(microsoft|live)\.com)$")

Duplicates = Literal["refused", "conflict", "same"]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What happens instead of the response to a POST, before or after the bot was made.

    `status` None: the connection is reset. With `gate` the request waits for it first, and then goes on as usual.
    """

    status: int | None = 500
    body: bytes = b"<html>Server Error</html>"
    headers: Mapping[str, str] = field(default_factory=dict)
    makes_bot: bool = False
    gate: asyncio.Event | None = None


class FakeRunner:
    """An ASGI app. `faults` go to the next POSTs, one each; `bots` are what it has made."""

    def __init__(self) -> None:
        self.api_key = "runner-key-0123456789"
        self.url = ""
        self.bots: list[dict[str, Any]] = []
        self.requests: list[Request] = []
        self.faults: deque[Fault] = deque()
        self.is_down = False  # 503 to everything
        self.lists_bots = True
        self.duplicates: Duplicates = "refused"
        self._under_way = 0

    @property
    def posts(self) -> list[Request]:
        return [request for request in self.requests if request.method == "POST"]

    def forget(self) -> None:
        """What it was asked and made so far."""
        self.bots.clear()
        self.requests.clear()

    async def wait_for_posts(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.posts) < count:
                await asyncio.sleep(0.005)

    async def wait_until_idle(self, *, posts: int = 0) -> None:
        """Until nothing is under way, and so many POSTs have come."""
        async with asyncio.timeout(10):
            while self._under_way or len(self.posts) < posts:
                await asyncio.sleep(0.005)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self._under_way += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self._under_way -= 1

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        request = Request(scope["method"], scope["path"], headers, orjson.loads(body) if body else {})
        self.requests.append(request)
        query = scope["query_string"].decode()
        if self.is_down:
            await _respond(send, 503, b"<html>503 Service Temporarily Unavailable</html>")
        elif headers.get("authorization") != f"Token {self.api_key}":
            await _json(send, 401, {"detail": "Invalid or disabled API key"})
        elif scope["path"] != "/api/v1/bots":
            await _json(send, 404, {"error": "Not found"})
        elif request.method == "POST":
            await self._post(request, send)
        elif request.method == "GET" and self.lists_bots:
            key = query.removeprefix("deduplication_key=")
            found = [bot for bot in self.bots if bot["deduplication_key"] == key]
            await _json(send, 200, {"next": None, "previous": None, "results": found})
        else:
            await _json(send, 405, {"detail": "Method not allowed."})

    async def _post(self, request: Request, send: Any) -> None:
        fault = self.faults.popleft() if self.faults else None
        if fault is not None and fault.gate is not None:
            await fault.gate.wait()
            fault = None
        if fault is None or fault.makes_bot:
            status, response = self._make(request.body)
            if fault is None:
                await _respond(send, status, orjson.dumps(response))
                return
        if fault.status is None:
            transport = send.__self__.transport
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
            return
        await _respond(send, fault.status, fault.body, fault.headers)

    def _make(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        for name in ("meeting_url", "bot_name"):
            if not body.get(name):
                return 400, {name: ["This field is required."]}
        for name, value in body.items():
            if _has_null(value):
                return 400, {name: ["This field may not be null."]}
        if len(body["bot_name"]) > 255 or any(ord(character) > 0xFFFF for character in body["bot_name"]):
            return 400, {"bot_name": ["Not a name."]}
        if not _HOSTS.search(urlsplit(body["meeting_url"]).hostname or ""):
            return 400, {"meeting_url": ["Invalid meeting URL"]}
        join_at = body.get("join_at")
        if join_at is not None and datetime.fromisoformat(join_at) < utcnow():
            return 400, {"join_at": ["join_at cannot be in the past"]}
        key = body.get("deduplication_key")
        same = next((bot for bot in self.bots if key is not None and bot["deduplication_key"] == key), None)
        if same is not None:
            if self.duplicates == "same":
                return 200, same
            sentence = "Deduplication key already in use. A bot with this key already exists."
            return (409 if self.duplicates == "conflict" else 400), {"error": sentence}
        bot = {
            "id": new_id("bot"),
            "state": "scheduled" if join_at else "joining",
            "metadata": body.get("metadata"),
            "meeting_url": body["meeting_url"],
            "join_at": join_at,
            "deduplication_key": key,
            "events": [],
        }
        self.bots.append(bot)
        return 201, bot


def _has_null(value: Any) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is None or any(_has_null(child) for child in children)


async def _json(send: Any, status: int, document: Any) -> None:
    await _respond(send, status, orjson.dumps(document))


async def _respond(send: Any, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    pairs = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
