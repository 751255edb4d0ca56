"""Rate limits in Redis, shared by all processes. With Redis emptied or away, nothing is held back."""

import structlog
from limits import RateLimitItem
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

log = structlog.get_logger()


class RateLimiter:
    """Approximate sliding windows; one per process."""

    def __init__(self, redis_url: str, *, prefix: str) -> None:
        self._pool = ConnectionPool.from_url(redis_url, socket_connect_timeout=1, socket_timeout=1)
        storage = RedisStorage(
            ("async+redis+" if redis_url.startswith("unix:") else "async+") + redis_url,
            implementation="redispy",
            key_prefix=f"calbridge:{prefix}",
            connection_pool=self._pool,  # type: ignore[arg-type] # handed on to redis-py as it is
        )
        self._limiter = SlidingWindowCounterRateLimiter(storage)

    async def hit(self, item: RateLimitItem, *keys: str) -> bool:
        """Counts one, and tells whether it is within the limit."""
        try:
            return await self._limiter.hit(item, *keys)
        except (RedisError, OSError) as err:
            log.warning("rate_limit_not_counted", error=type(err).__name__)
            return True

    async def aclose(self) -> None:
        await self._pool.aclose()
