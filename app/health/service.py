"""Readiness: whether this process can serve, and which of its services are missing."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache

import structlog
from sqlalchemy.exc import ProgrammingError

from app.core.db import DATABASE_UNAVAILABLE, Sessions, reading
from app.core.wakeups import REDIS_UNAVAILABLE, WakeUps
from app.health import repository
from migrations.revisions import is_behind

log = structlog.get_logger()

_CHECK_TIMEOUT_SECONDS = 3.0

_OK = "ok"
# Every call works without Redis and without a worker. Only its effects come later.
_NEEDED = frozenset({"database", "migrations"})

_is_behind = cache(is_behind)


@dataclass(frozen=True)
class Readiness:
    """The results of the checks of database, redis, migrations and worker: `ok` or a sentence."""

    checks: dict[str, str]

    @property
    def is_ready(self) -> bool:
        return all(self.checks[name] == _OK for name in _NEEDED)

    @property
    def degraded(self) -> list[str]:
        """The failed checks that calls can do without."""
        return [name for name, found in self.checks.items() if found != _OK and name not in _NEEDED]


class ReadinessChecker:
    """Runs the checks, and logs when one begins to fail and when it succeeds again. One per process."""

    def __init__(self, sessions: Sessions, wakeups: WakeUps) -> None:
        self._checks: dict[str, Callable[[], Awaitable[str]]] = {
            "database": lambda: _check_database(sessions),
            "redis": lambda: _check_redis(wakeups),
            "migrations": lambda: _check_migrations(sessions),
            "worker": lambda: _check_worker(sessions),
        }
        self._failing: set[str] = set()

    async def check(self) -> Readiness:
        outcomes = await asyncio.gather(*(self._guarded(name, check) for name, check in self._checks.items()))
        return Readiness(dict(zip(self._checks, outcomes, strict=True)))

    async def _guarded(self, name: str, check: Callable[[], Awaitable[str]]) -> str:
        """Run a check for three seconds at most. The returned sentence never has an address."""
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_SECONDS):
                found = await check()
        except (*DATABASE_UNAVAILABLE, *REDIS_UNAVAILABLE) as err:
            if name not in self._failing:
                self._failing.add(name)
                log.warning("check_failed", check=name, error=type(err).__name__)
            return f"No answer ({type(err).__name__})."
        if name in self._failing:
            self._failing.remove(name)
            log.info("check_well_again", check=name)
        return found


async def _check_database(sessions: Sessions) -> str:
    async with reading(sessions) as session:
        await repository.ping(session)
    return _OK


async def _check_redis(wakeups: WakeUps) -> str:
    await wakeups.ping()
    return _OK


async def _check_migrations(sessions: Sessions) -> str:
    """Check that the schema is not older than this code.

    A newer one is fine: old processes serve during an upgrade.
    """
    try:
        async with reading(sessions) as session:
            found = await repository.load_revision(session)
    except ProgrammingError:
        found = None
    if not await asyncio.to_thread(_is_behind, found):
        return _OK
    return f"The schema is at revision {found}, which is older than this code: run `calbridge migrate`."


async def _check_worker(sessions: Sessions) -> str:
    try:
        async with reading(sessions) as session:
            age = await repository.load_heartbeat_age(session)
    except ProgrammingError:
        age = None
    if age is None:
        return "No worker has ever run: start one with `calbridge worker`."
    if age > repository.WORKER_SEEN_WITHIN.total_seconds():
        return f"No worker was seen for {age:.0f} seconds: start one with `calbridge worker`."
    return _OK
