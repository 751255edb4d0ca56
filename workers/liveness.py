"""Whether each loop of this process is still running; `/healthz` of a worker responds with it.

Loops call `report` at the top of each round. Reports are kept for the whole process, like metrics, and are read from
another thread, so that a blocked event loop is seen as well.
"""

import asyncio
import time
from collections.abc import Iterable

from app.core import metrics

_EVENT_LOOP = "event_loop"
_EVENT_LOOP_WITHIN_SECONDS = 10.0
_MEASURE_EVERY_SECONDS = 1.0

_due: dict[str, tuple[float, float]] = {}


def report(loop: str, *, within_seconds: float) -> None:
    """Note that a loop is alive, and that it is to report again within so many seconds."""
    now = time.monotonic()
    _due[loop] = (now, now + within_seconds)


def expect(loops: Iterable[str], *, within_seconds: float = 0) -> None:
    """Start again with these loops: one that never reports is late, too."""
    _due.clear()
    for loop in loops:
        report(loop, within_seconds=within_seconds)


def late() -> dict[str, float]:
    """Loops that should have reported by now, with the seconds since their last report."""
    now = time.monotonic()
    return {loop: now - seen for loop, (seen, due) in _due.copy().items() if now > due}


async def watch_event_loop() -> None:
    """Report every second, and measure how late that was, until cancelled."""
    while True:
        report(_EVENT_LOOP, within_seconds=_EVENT_LOOP_WITHIN_SECONDS)
        asleep_at = time.monotonic()
        await asyncio.sleep(_MEASURE_EVERY_SECONDS)
        delay = time.monotonic() - asleep_at - _MEASURE_EVERY_SECONDS
        metrics.EVENT_LOOP_DELAY.observe(max(0.0, delay))
