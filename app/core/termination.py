"""A call when a signal ends the process, before its server waits for open responses."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def before_termination(call: Callable[[], None]) -> Iterator[None]:
    """While the block runs, call `call` in the running loop when a signal ends the process.

    The server's own handler runs, too. Without one, or in another thread than the main one, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    replaced: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(call)
        replaced[number](number, frame)

    for number in map(int, _SIGNALS):
        handler = signal.getsignal(number)
        if callable(handler) and handler is not signal.default_int_handler:
            replaced[number] = handler
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)
