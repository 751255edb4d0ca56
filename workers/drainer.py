"""The loop behind every kind of background work: claim rows from PostgreSQL, handle each in a task, repeat.

It looks when the bell rings, when a task has ended, and at every tick. Several
drainers, in any number of processes, share the work by the claims' SKIP LOCKED.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

import structlog

from app.core import metrics
from workers.liveness import came_round

log = structlog.get_logger()

Item = TypeVar("Item")

_CUT_WITHIN_SECONDS = 3.0
# A claim may wait for a connection, and then for its statement.
_CLAIMS_WITHIN_SECONDS = 120.0


class Work(Protocol[Item]):
    """What a drainer drains."""

    async def claim(self, limit: int, /) -> Sequence[Item]: ...
    async def handle(self, item: Item, /) -> None: ...


class Drainer(Generic[Item]):
    """`claim(limit)` takes up to `limit` due items under a lease; `handle(item)` works one off."""

    def __init__(
        self,
        name: str,
        *,
        claim: Callable[[int], Awaitable[Sequence[Item]]],
        handle: Callable[[Item], Awaitable[None]],
        concurrency: int,
        tick_seconds: float,
    ) -> None:
        self._name = name
        self._claim = claim
        self._handle = handle
        self._concurrency = concurrency
        self._tick_seconds = tick_seconds
        self._bell = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    def ring(self) -> None:
        """Look now."""
        self._bell.set()

    async def run(self) -> None:
        """Works until it is cancelled; then waits no longer for what it has under way, see `drain`."""
        metrics.WORK_SLOTS.labels(self._name).set(self._concurrency)
        while True:
            came_round(self._name, within_seconds=_CLAIMS_WITHIN_SECONDS + 2 * self._tick_seconds)
            self._bell.clear()
            free = self._concurrency - len(self._running)
            claimed: Sequence[Item] = []
            if free > 0:
                try:
                    claimed = await self._claim(free)
                except Exception as err:  # noqa: BLE001 - the database may be restarting: look again at the next tick
                    metrics.WORK_FAILURES.labels(self._name, "claim").inc()
                    log.error("claim_failed", work=self._name, error=type(err).__name__)  # noqa: TRY400 - a restart needs no traceback
                for item in claimed:
                    task = asyncio.create_task(self._run_one(item), name=f"{self._name}")
                    self._running.add(task)
                    task.add_done_callback(self._on_done)
            metrics.WORK_IN_PROGRESS.labels(self._name).set(len(self._running))
            try:
                async with asyncio.timeout(self._tick_seconds * random.uniform(0.9, 1.1)):  # noqa: S311 - spread
                    await self._bell.wait()
            except TimeoutError:
                pass

    def _on_done(self, task: asyncio.Task[None]) -> None:
        # A claim may have left due items, for want of a free slot here or at an endpoint: look again.
        self._running.discard(task)
        metrics.WORK_IN_PROGRESS.labels(self._name).set(len(self._running))
        self._bell.set()

    async def _run_one(self, item: Item) -> None:
        try:
            await self._handle(item)
        except asyncio.CancelledError:
            raise
        except Exception:
            # The item's lease runs out and it is claimed again.
            metrics.WORK_FAILURES.labels(self._name, "handle").inc()
            log.exception("work_failed", work=self._name)

    async def drain(self, seconds: float) -> None:
        """Lets what is under way end, at most `seconds`; then cuts it, which its leases survive."""
        if not self._running:
            return
        _, late = await asyncio.wait(self._running, timeout=seconds)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_CUT_WITHIN_SECONDS)
