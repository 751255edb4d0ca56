"""Readiness checks, and gauges over all rows."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import cache

import structlog
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from redis.exceptions import RedisError
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from app.core.db import Sessions, reading
from app.core.migrations import head_revision
from app.doorbell import Doorbell
from app.health import repository

log = structlog.get_logger()

_CHECK_WITHIN_SECONDS = 3.0
_WORKER_SEEN_WITHIN_SECONDS = 30.0
_GAUGES_KEPT_SECONDS = 5.0

_OK = "ok"
_AWAY = (SQLAlchemyError, RedisError, OSError, TimeoutError)

_head_revision = cache(head_revision)


async def check_readiness(sessions: Sessions, doorbell: Doorbell) -> dict[str, str]:
    """What each check found, `ok` or a sentence: database, redis, migrations and worker."""
    checks: dict[str, Callable[[], Awaitable[str]]] = {
        "database": lambda: _check_database(sessions),
        "redis": lambda: _check_redis(doorbell),
        "migrations": lambda: _check_migrations(sessions),
        "worker": lambda: _check_worker(sessions),
    }
    outcomes = await asyncio.gather(*(_guarded(name, check) for name, check in checks.items()))
    return dict(zip(checks, outcomes, strict=True))


async def _guarded(name: str, check: Callable[[], Awaitable[str]]) -> str:
    """The check's outcome; a service that is away costs three seconds at most. Says nothing of addresses."""
    try:
        async with asyncio.timeout(_CHECK_WITHIN_SECONDS):
            return await check()
    except _AWAY as err:
        log.warning("not_ready", check=name, error=type(err).__name__)
        return f"No answer ({type(err).__name__})."


async def _check_database(sessions: Sessions) -> str:
    async with reading(sessions) as session:
        await repository.ping(session)
    return _OK


async def _check_redis(doorbell: Doorbell) -> str:
    await doorbell.ping()
    return _OK


async def _check_migrations(sessions: Sessions) -> str:
    wanted = await asyncio.to_thread(_head_revision)
    try:
        async with reading(sessions) as session:
            found = await repository.load_revision(session)
    except ProgrammingError:
        found = None
    if found == wanted:
        return _OK
    return f"The schema is at revision {found}, this code needs {wanted}: run `calbridge migrate`."


async def _check_worker(sessions: Sessions) -> str:
    try:
        async with reading(sessions) as session:
            age = await repository.load_heartbeat_age(session)
    except ProgrammingError:
        age = None
    if age is None:
        return "No worker has ever run: start one with `calbridge worker`."
    if age > _WORKER_SEEN_WITHIN_SECONDS:
        return f"No worker was seen for {age:.0f} seconds: start one with `calbridge worker`."
    return _OK


class GaugeReader:
    """Gauges over all rows as Prometheus text, read at scrape time and kept for some seconds."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._text = b""
        self._read_at = float("-inf")

    async def read(self, sessions: Sessions) -> bytes:
        """While the database is away: `calbridge_database_up 0` and nothing else."""
        async with self._lock:
            if time.monotonic() - self._read_at > _GAUGES_KEPT_SECONDS:
                self._text = await _read_gauges(sessions)
                self._read_at = time.monotonic()
            return self._text


async def _read_gauges(sessions: Sessions) -> bytes:
    registry = CollectorRegistry()
    up = Gauge("calbridge_database_up", "1 if the gauges below could be read", registry=registry)
    try:
        async with asyncio.timeout(_CHECK_WITHIN_SECONDS), reading(sessions) as session:
            calendars = await repository.count_calendars(session)
            lags = await repository.load_sync_lags(session)
            outbox = await repository.load_outbox(session)
            mails = await repository.load_mails(session)
            channels = await repository.count_channels(session)
    except _AWAY as err:
        log.warning("gauges_not_read", error=type(err).__name__)
        return generate_latest(registry)
    up.set(1)

    count = Gauge("calbridge_calendars", "Calendars", ["platform", "state"], registry=registry)
    lag = Gauge(
        "calbridge_sync_lag_seconds",
        "How long the longest overdue calendar has waited for its sync",
        ["platform"],
        registry=registry,
    )
    failing = Gauge("calbridge_calendars_failing", "Calendars whose last sync failed", registry=registry)
    failing_for = Gauge(
        "calbridge_sync_failing_oldest_seconds",
        "How long the longest failing one has been",
        registry=registry,
    )
    pending = Gauge("calbridge_outbox_pending", "Webhook deliveries that are not settled", registry=registry)
    age = Gauge("calbridge_outbox_age_seconds", "Age of the oldest unsettled delivery", registry=registry)
    mails_pending = Gauge(
        "calbridge_invitation_mails_pending",
        "Mails of hosted calendars that are not settled",
        registry=registry,
    )
    mails_age = Gauge(
        "calbridge_invitation_mails_age_seconds", "Age of the oldest unsettled mail", registry=registry
    )
    open_channels = Gauge(
        "calbridge_push_channels_open", "Push channels that are open", ["platform"], registry=registry
    )

    for row in calendars:
        count.labels(row.platform, row.state).set(row.calendars)
        lag.labels(row.platform).set(0)
    for row in lags:
        lag.labels(row.platform).set(row.lag)
    failing.set(sum(row.failing for row in calendars))
    failing_for.set(max((row.failing_for or 0 for row in calendars), default=0))
    pending.set(outbox.pending)
    age.set(outbox.age or 0)
    mails_pending.set(mails.pending)
    mails_age.set(mails.age or 0)
    for channel in channels:
        open_channels.labels(channel.platform).set(channel.channels)
    return generate_latest(registry)
