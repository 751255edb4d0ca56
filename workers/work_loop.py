"""The loop behind every kind of background work: claim due rows, handle each in a task, repeat.

It looks for work when it is woken, when a task has ended, and at every tick. Loops in any number of processes share
the work, because claims use SKIP LOCKED.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

import structlog

from app.core import metrics
from workers import liveness

log = structlog.get_logger()

Item = TypeVar("Item")

_CANCEL_TIMEOUT_SECONDS = 3.0
# A claim may wait for a connection, and then for its statement.
_CLAIM_TIMEOUT_SECONDS = 120.0


class Work(Protocol[Item]):
    """One kind of work: `claim(limit)` takes due items under a lease, `handle(item)` does one of them."""

    async def claim(self, limit: int, /) -> Sequence[Item]: ...
    async def handle(self, item: Item, /) -> None: ...


class WorkLoop(Generic[Item]):
    """Handles up to `concurrency` items at once, and looks for more every `tick_seconds`."""

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
        self._woken = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Look for work now."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled. Items that are being handled then go on: see `finish`."""
        metrics.WORK_SLOTS.labels(self._name).set(self._concurrency)
        while True:
            liveness.report(self._name, within_seconds=_CLAIM_TIMEOUT_SECONDS + 2 * self._tick_seconds)
            self._woken.clear()
            free = self._concurrency - len(self._running)
            claimed: Sequence[Item] = []
            if free > 0:
                try:
                    claimed = await self._claim(free)
                except Exception as err:  # noqa: BLE001 - the database may be restarting: look again at the next tick
                    metrics.WORK_FAILURES.labels(self._name, "claim").inc()
                    log.error("claim_failed", work=self._name, error=type(err).__name__)  # noqa: TRY400 - a restart needs no traceback
                for item in claimed:
                    task = asyncio.create_task(self._run_one(item), name=self._name)
                    self._running.add(task)
                    task.add_done_callback(self._on_done)
            metrics.WORK_IN_PROGRESS.labels(self._name).set(len(self._running))
            try:
                async with asyncio.timeout(self._tick_seconds * random.uniform(0.9, 1.1)):  # noqa: S311 - spread
                    await self._woken.wait()
            except TimeoutError:
                pass

    def _on_done(self, task: asyncio.Task[None]) -> None:
        # A claim may have left due items because no slot was free here or at an endpoint: look again.
        self._running.discard(task)
        metrics.WORK_IN_PROGRESS.labels(self._name).set(len(self._running))
        self._woken.set()

    async def _run_one(self, item: Item) -> None:
        try:
            await self._handle(item)
        except asyncio.CancelledError:
            raise
        except Exception:
            # The item's lease expires, and it is claimed again.
            metrics.WORK_FAILURES.labels(self._name, "handle").inc()
            log.exception("work_failed", work=self._name)

    async def finish(self, seconds: float) -> None:
        """Wait for the items that are being handled, `seconds` at most; then cancel them. Their leases expire."""
        if not self._running:
            return
        _, late = await asyncio.wait(self._running, timeout=seconds)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_CANCEL_TIMEOUT_SECONDS)
