"""Changes as Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import structlog
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from app.api.middleware import count_as_waiting
from app.changes.feed import Follower
from app.changes.hub import Hub
from app.changes.places import Place, Scope, encode_cursor
from app.changes.rendering import Change
from app.changes.service import AGAIN_SECONDS, read_page
from app.core.db import DATABASE_UNAVAILABLE, Sessions

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx sends each part on at once
}

# What a slow client has not taken yet stays in memory.
_PAGE = 100
_PAGE_BYTES = 500_000
_RECONNECT_MS = 2_000
_COMMENT_SECONDS = 12.0  # 15 at most, also when the process is busy
# Without an empty line: some libraries would report it as an event without data.
_COMMENT = b": waiting\n"
# A client that takes nothing for so long is given up.
_SEND_TIMEOUT_SECONDS = 60.0
_PART_BYTES = 65_536

log = structlog.get_logger()


class ChangeStream(Response):
    """Sends changes until the client goes, or must end."""

    def __init__(self, hub: Hub, read_sessions: Sessions, scope: Scope, place: Place, *, key_id: str) -> None:
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["content-length"]
        self._hub = hub
        self._read_sessions = read_sessions
        self._scope = scope
        self._place = place
        self._key_id = key_id

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        with self._hub.follower(self._scope, kind="stream", key_id=self._key_id) as follower:
            watching = asyncio.create_task(end_when_closed(follower, receive))
            started = time.perf_counter()
            try:
                await self._run(follower, send)
            finally:
                watching.cancel()
                count_as_waiting(scope, time.perf_counter() - started)

    async def _run(self, follower: Follower, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            # The id alone is no event for the client, but it is where a broken stream goes on.
            cursor = encode_cursor(self._scope, self._place)
            await _send(send, f": calbridge\nretry: {_RECONNECT_MS}\nid: {cursor}\n\n".encode())
            while not follower.is_over:
                if await self._catch_up(follower, send):
                    await self._follow(follower, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            log.info("change_stream_given_up", reason="slow_client")
        except DATABASE_UNAVAILABLE as err:
            log.warning("change_stream_given_up", reason=type(err).__name__)

    async def _catch_up(self, follower: Follower, send: Send) -> bool:
        """Send one page of older changes. Returns whether the stream follows the newest ones now."""
        follower.leave()
        async with self._hub.catching_up:
            if follower.is_over:
                return False
            page = await read_page(
                self._read_sessions, self._scope, self._place, _PAGE, max_bytes=_PAGE_BYTES
            )
        await self._send_changes(page.changes, send)
        if page.has_more:
            return False
        if self._hub.join(follower, self._place, page.knows_until):
            return True
        await asyncio.sleep(AGAIN_SECONDS)
        return False

    async def _follow(self, follower: Follower, send: Send) -> None:
        """Send the newest changes until the follower must end, or is too far behind."""
        follower.comment_at = time.monotonic() + _COMMENT_SECONDS
        while not follower.is_over:
            await follower.news.wait()
            changes = follower.take()
            if changes is None:
                return
            if changes:
                await self._send_changes(changes, send)
            elif time.monotonic() >= follower.comment_at:
                await _send(send, _COMMENT)
            else:
                continue
            follower.comment_at = time.monotonic() + _COMMENT_SECONDS

    async def _send_changes(self, changes: Sequence[Change], send: Send) -> None:
        if not changes:
            return
        frames = (change.as_server_sent_event(self._scope, self._place) for change in changes)
        for part in _parts(frames):
            await _send(send, part)
        self._place = changes[-1].place


def _parts(frames: Iterator[bytes]) -> Iterator[bytes]:
    """Join frames to parts of some size: each part is one write."""
    part: list[bytes] = []
    size = 0
    for frame in frames:
        part.append(frame)
        size += len(frame)
        if size >= _PART_BYTES:
            yield b"".join(part)
            part, size = [], 0
    if part:
        yield b"".join(part)


async def _send(send: Send, body: bytes) -> None:
    """Send a part. It waits while the client is slow. Raises TimeoutError."""
    async with asyncio.timeout(_SEND_TIMEOUT_SECONDS):
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def end_when_closed(follower: Follower, receive: Receive) -> None:
    """End the follower when its client closes the connection."""
    # HTTPException: the client sends a body, and it is too large.
    with suppress(OSError, HTTPException):
        while (await receive())["type"] != "http.disconnect":
            pass
    follower.end()
