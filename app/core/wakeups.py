"""Wake-ups through Redis: workers look for due work at once, and the API for changes.

A wake-up only saves time. What is due is in PostgreSQL, and workers look there every SCHEDULER_TICK_SECONDS. The API
looks for changes every 0.2 s while clients wait for them (app/changes/hub.py).
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Coroutine
from dataclasses import fields
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

import orjson
import structlog
from arq.connections import ArqRedis, RedisSettings
from redis.asyncio import ConnectionPool
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import parse_url
from redis.exceptions import RedisError

from app.core.db import Session

# The only names of the domain in core: one for each loop of workers/process.py that can be woken.
Queue = Literal["syncs", "deliveries", "channels", "bots", "mails", "starting_soon", "join_rules"]

ARQ_QUEUE = "calbridge:wakeups"
# A channel of Redis. A message is the id of a project whose events changed.
CHANGES_CHANNEL = "calbridge:changes"
JOB = "wake"

# JSON and not arq's pickle: write access to Redis must not be enough to run code in a worker.
serialize_job = partial(orjson.dumps, default=repr)
deserialize_job = orjson.loads

REDIS_UNAVAILABLE = (RedisError, OSError, TimeoutError)

_SEND_TIMEOUT_SECONDS = 0.5
_REQUESTED = "wake_ups"  # key in Session.info
_CHANGED = "changed_projects"  # key in Session.info

log = structlog.get_logger()


class _Pipeline(Pipeline):
    """A pipeline that gives its connection back however it ends.

    redis-py first sends UNWATCH. If that is cancelled or times out, it keeps the connection, and the pool runs empty.
    """

    async def reset(self) -> None:
        connection = self.connection
        task = asyncio.current_task()
        try:
            if connection is not None and task is not None and task.cancelling():
                await connection.disconnect(nowait=True)  # the server forgets what was watched
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
    """Make a client that connects when it is first used.

    `url` is `redis://...`, `rediss://...` or `unix:///path`.
    """
    pool = ConnectionPool.from_url(url, socket_connect_timeout=2, socket_timeout=5, max_connections=50)
    return _Redis(
        connection_pool=pool,
        job_serializer=serialize_job,
        job_deserializer=deserialize_job,
        default_queue_name=ARQ_QUEUE,
    )


def redis_settings(url: str) -> RedisSettings:
    """The same address as arq's settings. `RedisSettings.from_dsn` does not decode passwords."""
    parts: dict[str, Any] = dict(parse_url(url))
    names = {"path": "unix_socket_path", "db": "database"}
    known = {field.name for field in fields(RedisSettings)}
    values = {names.get(name, name): value for name, value in parts.items()}
    return RedisSettings(
        **{name: value for name, value in values.items() if name in known}, ssl=url.startswith("rediss:")
    )


def wake_after_commit(session: Session, queue: Queue, *, after: float = 0.0) -> None:
    """Wake a worker for the queue `after` seconds from this transaction's commit.

    Call it where the due row is written. It is sent once however often it is asked for, and not after a rollback.
    """
    session.info.setdefault(_REQUESTED, set()).add((queue, after))


def notify_changes_after_commit(session: Session, project_id: str) -> None:
    """Notify all API processes, at this transaction's commit, that events of the project changed.

    It is sent once however often it is asked for, and not after a rollback.
    """
    session.info.setdefault(_CHANGED, set()).add(project_id)


class WakeUps:
    """Sends wake-ups.

    One per process; `create_sessions(engine, after_commit=wakeups.send_requested)` connects it.
    """

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self._is_unavailable = False
        self._sending: set[asyncio.Task[None]] = set()

    def send_requested(self, session: Session) -> None:
        """Send what was collected on this session, in tasks that the caller does not await."""
        for queue, after in session.info.pop(_REQUESTED, ()):
            self._send(self.wake(queue, after=after))
        for project_id in session.info.pop(_CHANGED, ()):
            self._send(self.notify_changes(project_id))

    def _send(self, sending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(sending)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def wake(self, queue: Queue, *, after: float = 0.0) -> None:
        """Wake one worker in `after` seconds.

        Takes half a second at most, and raises nothing if Redis is unavailable.
        """
        job_id, at = f"{JOB}:{queue}", None
        if after > 0:
            # One wake-up for each tenth of a second, at its end: everything that it is about is due by then.
            tenth = math.ceil((time.time() + after) * 10)
            job_id, at = f"{JOB}:{queue}:{tenth}", datetime.fromtimestamp(tenth / 10, UTC)
        # arq refuses a second job of the same id: one that still waits is enough.
        await self._try(queue, self._redis.enqueue_job(JOB, queue, _job_id=job_id, _defer_until=at))

    async def notify_changes(self, project_id: str) -> None:
        """Notify all API processes that events of the project changed.

        Takes half a second at most, and raises nothing if Redis is unavailable.
        """
        await self._try("changes", self._redis.publish(CHANGES_CHANNEL, project_id))

    async def _try(self, queue: str, sending: Awaitable[Any]) -> None:
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_SECONDS):
                await sending
        except REDIS_UNAVAILABLE as err:
            if not self._is_unavailable:
                self._is_unavailable = True
                log.warning("wakeup_not_sent", queue=queue, error=type(err).__name__)
        else:
            if self._is_unavailable:
                self._is_unavailable = False
                log.info("wakeups_sent_again")

    async def flush(self) -> None:
        """Wait until the wake-ups that are being sent have ended."""
        if self._sending:
            await asyncio.wait(self._sending)

    async def ping(self) -> None:
        """Raises RedisError, OSError or TimeoutError if Redis is unavailable."""
        async with asyncio.timeout(2):
            await self._redis.ping()

    async def aclose(self) -> None:
        await self.flush()
        await self._redis.aclose(close_connection_pool=True)
