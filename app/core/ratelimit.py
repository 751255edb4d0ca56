"""Rate limits in Redis, shared by all processes.

While Redis is unavailable, each process counts for itself.
"""

import asyncio
import math
import time

import structlog
from limits import RateLimitItem
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

# While Redis is unavailable, one request in five seconds waits for it, this long.
_TIMEOUT_SECONDS = 0.5
_RETRY_AFTER_SECONDS = 5.0

log = structlog.get_logger()


class RateLimiter:
    """Approximate sliding windows. One per process."""

    def __init__(self, redis_url: str, *, prefix: str) -> None:
        self._pool = ConnectionPool.from_url(redis_url, socket_connect_timeout=1, socket_timeout=1)
        storage = RedisStorage(
            ("async+redis+" if redis_url.startswith("unix:") else "async+") + redis_url,
            implementation="redispy",
            key_prefix=f"calbridge:{prefix}",
            connection_pool=self._pool,  # type: ignore[arg-type] # limits passes it to redis-py
        )
        self._shared = SlidingWindowCounterRateLimiter(storage)
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._ask_redis_at = 0.0  # on the clock of `time.monotonic`
        self._is_unavailable = False

    async def hit(self, item: RateLimitItem, *keys: str) -> bool:
        """Count one hit of `keys`. Returns whether it is within the limit."""
        if time.monotonic() >= self._ask_redis_at:
            try:
                async with asyncio.timeout(_TIMEOUT_SECONDS):
                    is_within = await self._shared.hit(item, *keys)
            except (RedisError, StorageError, OSError, TimeoutError) as err:
                self._ask_redis_at = time.monotonic() + _RETRY_AFTER_SECONDS
                if not self._is_unavailable:
                    log.warning("rate_limit_not_shared", error=type(err).__name__)
                self._is_unavailable = True
            else:
                if self._is_unavailable:
                    log.info("rate_limit_shared_again")
                self._is_unavailable = False
                return is_within
        return await self._own.hit(item, *keys)

    async def retry_after(self, item: RateLimitItem, *keys: str) -> int:
        """Seconds until a hit of `keys`, which are over the limit, may be within it again."""
        limiter = self._shared if time.monotonic() >= self._ask_redis_at else self._own
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                stats = await limiter.get_window_stats(item, *keys)
        except (RedisError, StorageError, OSError, TimeoutError):
            return item.get_expiry()
        return max(1, min(math.ceil(stats.reset_time - time.time()), item.get_expiry()))

    async def aclose(self) -> None:
        await self._pool.aclose()
