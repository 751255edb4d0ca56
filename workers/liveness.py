"""Whether each loop of this process still comes round; `/healthz` of a worker answers with it.

Loops call `came_round` at the top of each round. It is kept for the whole process, like the metrics,
and read from another thread, so that a blocked event loop is seen as well.
"""

import asyncio
import time
from collections.abc import Iterable

from app.core import metrics

_EVENT_LOOP = "event_loop"
_EVENT_LOOP_WITHIN_SECONDS = 10.0
_LOOK_EVERY_SECONDS = 1.0

_due: dict[str, tuple[float, float]] = {}


def came_round(loop: str, *, within_seconds: float) -> None:
    """Notes that a loop is alive, and comes round again within so many seconds."""
    now = time.monotonic()
    _due[loop] = (now, now + within_seconds)


def expect(loops: Iterable[str], *, within_seconds: float = 0) -> None:
    """Starts anew with these loops: one that never comes round is late, too."""
    _due.clear()
    for loop in loops:
        came_round(loop, within_seconds=within_seconds)


def late() -> dict[str, float]:
    """The loops that should have come round by now, and how many seconds ago each last did."""
    now = time.monotonic()
    return {loop: now - seen for loop, (seen, due) in _due.copy().items() if now > due}


async def watch_event_loop() -> None:
    """Comes round every second, and measures how late it was, until cancelled."""
    while True:
        came_round(_EVENT_LOOP, within_seconds=_EVENT_LOOP_WITHIN_SECONDS)
        asleep_at = time.monotonic()
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
        delay = time.monotonic() - asleep_at - _LOOK_EVERY_SECONDS
        metrics.EVENT_LOOP_DELAY.observe(max(0.0, delay))
