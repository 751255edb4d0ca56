"""How often one address may ask for the RSVP page. Counted in Redis; with Redis away, everybody may."""

import asyncio

import structlog
from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import StorageError
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

PER_MINUTE = 60  # an office behind one address answers an invitation within minutes
RETRY_AFTER_SECONDS = 60
_WITHIN_SECONDS = 0.5

log = structlog.get_logger()


class RsvpLimiter:
    def __init__(self, redis_url: str) -> None:
        self._pool = ConnectionPool.from_url(
            redis_url, socket_connect_timeout=_WITHIN_SECONDS, socket_timeout=_WITHIN_SECONDS
        )
        storage = RedisStorage(
            "async+redis://",  # the pool knows where
            implementation="redispy",
            key_prefix="calbridge:limits",
            connection_pool=self._pool,  # type: ignore[arg-type] # its options are not only for URLs
        )
        self._limiter = FixedWindowRateLimiter(storage)
        self._item = RateLimitItemPerMinute(PER_MINUTE)

    async def allows(self, address: str) -> bool:
        """Counts one request of this address."""
        try:
            async with asyncio.timeout(_WITHIN_SECONDS):
                return bool(await self._limiter.hit(self._item, "rsvp", address))
        except (RedisError, StorageError, OSError, TimeoutError) as err:
            log.warning("rsvp_not_limited", error=type(err).__name__)
            return True

    async def aclose(self) -> None:
        await self._pool.aclose()
