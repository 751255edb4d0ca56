"""The processes that read feeds, so that no feed delays the worker or another project's feeds.

A process that dies, or is killed because it does not respond, fails the feed that it was reading and no other.
"""

import asyncio
import logging
import os
import pickle
import sys
import time
from asyncio.subprocess import Process
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from app.core.logging import is_json_logging
from app.events.data import RemoteEvent
from app.providers.base import Unavailable
from app.providers.ics.process import LENGTH, TOO_COMPLEX, Digest, Done, FeedJob, Refused, Selected, frame

log = structlog.get_logger()

# A process uses 4 s of processor time for a feed, and 9 s for one of 20 MB; on a busy machine that takes a while.
_WITHIN_SECONDS = 60.0
_END_WITHIN_SECONDS = 2.0
# A feed that was too complex is not tried again for so long, unless it has changed.
_REFUSED_FOR_SECONDS = 86_400.0
_REFUSED_KEPT = 10_000
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "HOME", "NO_COLOR")
_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class FeedRead:
    """A feed that was read.

    `digest` is the same for bodies with the same events. `pages` are None where it is the one already known.
    `complete_until`: as of `app.ical.feed.Feed`.
    """

    digest: str
    pages: list[bytes] | None
    complete_until: datetime | None = None

    async def events(self, page: int) -> list[RemoteEvent]:
        assert self.pages is not None
        events: list[RemoteEvent] = await asyncio.to_thread(pickle.loads, self.pages[page])
        return events


class FeedReaders:
    """Up to `size` processes, started when needed; one project uses at most all but one of them."""

    def __init__(self, size: int | None = None) -> None:
        self._size = size or min(max(os.cpu_count() or 1, 2), 4)
        self._idle: list[Process] = []
        self._busy: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._refused: OrderedDict[str, float] = (
            OrderedDict()
        )  # digest and days -> until when, by time.monotonic

    async def read(self, job: FeedJob, *, project_id: str, known_digest: str | None) -> FeedRead:
        """Read a feed in a process.

        Raises Unavailable: with the codes of `Feed`, `feed_too_complex`, `feed_reader_died`, `timeout`.
        """
        async with self._turn(project_id):
            process = self._take_idle() or await _start()
            is_reusable = False
            try:
                async with asyncio.timeout(_WITHIN_SECONDS):
                    found, is_reusable = await self._converse(process, job, known_digest)
            except (asyncio.IncompleteReadError, ConnectionError):
                log.warning("feed_reader_died", return_code=await _ended(process))
                raise Unavailable("The process that read it died.", code="feed_reader_died") from None
            except TimeoutError:
                raise Unavailable("The feed was not read in time.", code="timeout") from None
            finally:
                if is_reusable:
                    self._idle.append(process)
                else:
                    _kill(process)
        if isinstance(found, Refused):
            raise Unavailable(found.message, code=found.code)
        return found

    async def aclose(self) -> None:
        """End the processes that are idle. One that reads ends when the task that waits for it is cancelled."""
        idle, self._idle = self._idle, []
        for process in idle:
            assert process.stdin is not None
            process.stdin.close()
        await asyncio.gather(*map(_ended, idle))

    async def _converse(
        self, process: Process, job: FeedJob, known_digest: str | None
    ) -> tuple[FeedRead | Refused, bool]:
        """The content of the feed, and whether the process can read another."""
        await _send(process, job)
        reply = await _receive(process)
        digest, pages, complete_until = "", None, None
        # What takes too long in a window of years may not in one of weeks.
        days = (job.window.end - job.window.start).days
        if isinstance(reply, Digest):
            digest = reply.digest
            refused = f"{digest}/{days}"
            is_refused = self._is_refused(refused)
            goes_on = digest != known_digest and not is_refused
            await _send(process, goes_on)
            reply = await _receive(process)
            if isinstance(reply, Refused) and reply.code == TOO_COMPLEX.code:
                self._refuse(refused)
            elif isinstance(reply, Selected) and goes_on:
                pages = [await _receive_bytes(process) for _ in range(reply.pages)]
                complete_until = reply.complete_until
            elif is_refused:
                reply = TOO_COMPLEX
        done: Done = await _receive(process)
        found = reply if isinstance(reply, Refused) else FeedRead(digest, pages, complete_until)
        return found, not done.recycle

    def _take_idle(self) -> Process | None:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return None

    def _is_refused(self, feed: str) -> bool:
        return self._refused.get(feed, 0.0) > time.monotonic()

    def _refuse(self, feed: str) -> None:
        self._refused[feed] = time.monotonic() + _REFUSED_FOR_SECONDS
        if len(self._refused) > _REFUSED_KEPT:
            self._refused.popitem(last=False)

    @asynccontextmanager
    async def _turn(self, project_id: str) -> AsyncIterator[None]:
        """Wait for a process; of the projects that wait, the one that has the fewest is next."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(project_id, deque()).append(turn)
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._busy[project_id] -= 1
            elif turn in self._waiting.get(project_id, ()):
                self._waiting[project_id].remove(turn)
            self._busy += Counter()  # drops the zeros
            self._waiting = {key: queue for key, queue in self._waiting.items() if queue}
            self._admit()

    def _admit(self) -> None:
        while self._busy.total() < self._size:
            may = [
                key
                for key, queue in self._waiting.items()
                if queue and self._busy[key] < max(1, self._size - 1)
            ]
            if not may:
                return
            project_id = min(may, key=lambda key: self._busy[key])
            turn = self._waiting[project_id].popleft()
            if not turn.cancelled():
                turn.set_result(None)
                self._busy[project_id] += 1


async def _start() -> Process:
    # Nothing of the environment but this: the processes need no secret, and so are given none.
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-c",  # not -m: as a module of its own name, its classes can be pickled
        "from app.providers.ics.process import main; main()",
        logging.getLevelName(logging.getLogger().getEffectiveLevel()),
        "json" if is_json_logging() else "text",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**environment, "PYTHONPATH": str(_ROOT)},
        limit=1024**2,
    )


async def _send(process: Process, message: object) -> None:
    assert process.stdin is not None
    process.stdin.write(frame(message))
    await process.stdin.drain()


async def _receive_bytes(process: Process) -> bytes:
    assert process.stdout is not None
    (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
    return await process.stdout.readexactly(length)


async def _receive(process: Process) -> Any:
    return pickle.loads(await _receive_bytes(process))  # noqa: S301 - of our own process


def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


async def _ended(process: Process) -> int | None:
    """Its return code. It is killed if it does not end by itself."""
    try:
        async with asyncio.timeout(_END_WITHIN_SECONDS):
            return await process.wait()
    except TimeoutError:
        _kill(process)
        return await process.wait()
