"""Listening to a channel of Redis.

Messages may be lost, so who listens also looks by itself from time to time.
"""

import asyncio
from collections.abc import Callable

import structlog
from redis.asyncio import Redis

_RETRY_SECONDS = (0.05, 1.0)
_PING_SECONDS = 5.0

log = structlog.get_logger()


class Listener:
    """Calls `received` with each message, and `connected` when messages may have been lost before.

    Both must not block or raise.
    """

    def __init__(
        self,
        redis_url: str,
        channel: str,
        *,
        received: Callable[[str], None],
        connected: Callable[[], None],
    ) -> None:
        self._redis_url = redis_url
        self._channel = channel
        self._received = received
        self._connected = connected
        self.is_connected = False

    async def run(self) -> None:
        """Listen until cancelled, and connect again as often as needed."""
        first, longest = _RETRY_SECONDS
        again_after = first
        while True:
            try:
                await self._listen()
            except Exception as err:  # noqa: BLE001 - who listens must not become deaf
                if self.is_connected:
                    again_after = first
                    log.warning("listener_disconnected", channel=self._channel, error=type(err).__name__)
            finally:
                self.is_connected = False
            await asyncio.sleep(again_after)
            again_after = min(again_after * 2, longest)

    async def _listen(self) -> None:
        redis = Redis.from_url(
            self._redis_url, socket_connect_timeout=2, decode_responses=True, encoding_errors="replace"
        )
        pubsub = redis.pubsub()
        try:
            async with asyncio.timeout(_PING_SECONDS):
                await pubsub.subscribe(self._channel)
            is_pinged = False
            while True:
                message = await pubsub.get_message(timeout=_PING_SECONDS)
                if message is None:
                    # A connection that ended without a word is noticed by the missing reply to a ping.
                    if is_pinged:
                        raise TimeoutError
                    async with asyncio.timeout(_PING_SECONDS):
                        await pubsub.ping()
                    is_pinged = True
                    continue
                is_pinged = False
                if message["type"] == "subscribe":
                    self.is_connected = True
                    self._connected()
                elif message["type"] == "message":
                    self._received(message["data"])
        finally:
            await pubsub.aclose()
            await redis.aclose(close_connection_pool=True)
