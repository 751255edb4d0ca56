"""A webhook receiver: a real HTTP server that keeps what it got and responds as a test says."""

import asyncio
import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from standardwebhooks import Webhook


@dataclass(frozen=True)
class Response:
    """`delay`: seconds before it. `dribble`: one byte every so many seconds, without an end."""

    status: int = 200
    body: bytes = b"thanks"
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0
    dribble: float = 0


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes
    client: tuple[str, int]
    at: float  # time.monotonic

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed

    def verify(self, secret: str) -> dict[str, Any]:
        """As an application does it. Raises WebhookVerificationError."""
        verified: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return verified


class Receiver:
    """An ASGI app, at `url` once it is served.

    A response is the path's own in `responses`, else the next of `script`, else `response`.
    """

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.url = ""
        self.response = Response()
        self.responses: dict[str, Response] = {}
        self.script: deque[Response] = deque()
        self.under_way: list[str] = []
        self.most_at_once: dict[str, int] = {}

    @property
    def ids(self) -> list[str]:
        return [received.id for received in self.received]

    @property
    def paths(self) -> list[str]:
        return [received.path for received in self.received]

    async def wait_for(self, count: int, *, seconds: float = 10) -> list[Received]:
        """The first `count` requests, as soon as so many have come."""
        async with asyncio.timeout(seconds):
            while len(self.received) < count:
                await asyncio.sleep(0.005)
        return self.received[:count]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        received = Received(scope["path"], headers, body, scope["client"], time.monotonic())
        response = self._next_response(received.path)
        self.received.append(received)
        self.under_way.append(received.path)
        now = self.under_way.count(received.path)
        self.most_at_once[received.path] = max(now, self.most_at_once.get(received.path, 0))
        try:
            await asyncio.sleep(response.delay)
            await _respond(response, send)
        finally:
            self.under_way.remove(received.path)

    def _next_response(self, path: str) -> Response:
        if path in self.responses:
            return self.responses[path]
        return self.script.popleft() if self.script else self.response


async def _respond(response: Response, send: Any) -> None:
    headers = [(name.encode(), value.encode()) for name, value in response.headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    while response.dribble:
        await send({"type": "http.response.body", "body": b".", "more_body": True})
        await asyncio.sleep(response.dribble)
    await send({"type": "http.response.body", "body": response.body})
