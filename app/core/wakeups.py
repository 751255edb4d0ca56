"""Redis rings the bell: "there is work, look into PostgreSQL now". Nothing is lost with a bell that is not heard.

Workers look by themselves every SCHEDULER_TICK_SECONDS; the bell only makes it sooner.
"""

import asyncio
import math
import time
from datetime import UTC, datetime
from functools import partial
from typing import Literal

import orjson
import structlog
from arq.connections import ArqRedis
from redis.asyncio import ConnectionPool
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

Bell = Literal["syncs", "deliveries", "channels", "bots", "mails"]

QUEUE = "calbridge:bells"
JOB = "ring"

# No pickle: whoever can write to Redis must not be able to run code here.
serialize_job = partial(orjson.dumps, default=repr)
deserialize_job = orjson.loads

REDIS_AWAY = (RedisError, OSError, TimeoutError)

_RING_WITHIN_SECONDS = 0.5

log = structlog.get_logger()


class _Pipeline(Pipeline):
    """Gives its connection back however it ends.

    redis-py asks the server for an UNWATCH first. If it is cancelled there, or the server does not answer, it keeps the
    connection: with enough of these the pool is empty for good, and nobody is woken any more.
    """

    async def reset(self) -> None:
        connection = self.connection
        task = asyncio.current_task()
        try:
            if connection is not None and task is not None and task.cancelling():
                await connection.disconnect(nowait=True)  # what it watched is forgotten with it
                self.watching = False
            await super().reset()  # type: ignore[no-untyped-call] # of redis-py
        except BaseException:
            if connection is not None and self.connection is connection:
                self.connection = None
                await connection.disconnect(nowait=True)
                await self.connection_pool.release(connection)
            raise


class _Redis(ArqRedis):
    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


def connect_redis(url: str) -> ArqRedis:
    """A lazily connecting client. `unix:///path` works as well as `redis://`."""
    pool = ConnectionPool.from_url(url, socket_connect_timeout=2, socket_timeout=5, max_connections=50)
    return _Redis(
        connection_pool=pool,
        job_serializer=serialize_job,
        job_deserializer=deserialize_job,
        default_queue_name=QUEUE,
    )


class Doorbell:
    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self._is_away = False

    async def ring(self, bell: Bell, *, after: float = 0.0) -> None:
        """Wakes one worker, in `after` seconds. Call it after the commit.

        A Redis that is away costs half a second at most.
        """
        job_id, at = f"ring:{bell}", None
        if after > 0:
            # Rings of the same tenth of a second are one, at its end: by then all that they are about is due.
            tenth = math.ceil((time.time() + after) * 10)
            job_id, at = f"ring:{bell}:{tenth}", datetime.fromtimestamp(tenth / 10, UTC)
        try:
            async with asyncio.timeout(_RING_WITHIN_SECONDS):
                # One waiting ring of a kind is enough: arq refuses a second job of the same id.
                await self._redis.enqueue_job(JOB, bell, _job_id=job_id, _defer_until=at)
        except REDIS_AWAY as err:
            # Once, and not at every request.
            if not self._is_away:
                self._is_away = True
                log.warning("doorbell_not_rung", bell=bell, error=type(err).__name__)
        else:
            if self._is_away:
                self._is_away = False
                log.info("doorbell_rings_again")

    async def ping(self) -> None:
        """Raises RedisError, OSError or TimeoutError when Redis is away."""
        async with asyncio.timeout(2):
            await self._redis.ping()

    async def aclose(self) -> None:
        await self._redis.aclose(close_connection_pool=True)
