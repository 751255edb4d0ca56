"""A process that reads feeds, one after the other; `FeedReaders` (readers.py) starts several of them.

Frames on stdin and stdout: four bytes with the length of the pickle that follows.

    > FeedJob
    < Digest            by which the parent may know the content of the feed
    > bool              whether to go on
    < Selected          and so many lists of events; or, here or instead of the Digest, Refused
    < Done

A job that takes too long is ended from within (SIGPROF, which counts the processor time of this process), and if
that has no effect, by the kernel (RLIMIT_CPU). Both work without the parent, whose end is noticed by the closed pipe.
"""

import contextlib
import os
import pickle
import resource
import signal
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import structlog

from app.core.logging import configure_logging
from app.events.data import KnownEvent, Window
from app.ical.errors import CalendarUnreadable
from app.ical.feed import Feed, InstanceRef
from app.providers.base import Unavailable
from app.providers.ics.events import FeedEvents, Reader

EVENTS_PER_PAGE = 1_000
# Processor time for a feed, whatever its rules are, and for each MB of it.
MAX_CPU_SECONDS = 3.0
_CPU_SECONDS_PER_MB = 0.3
_CPU_SECONDS_TO_STOP = 2
MAX_MEMORY_BYTES = 1024**3
_RECYCLE_ABOVE_BYTES = 300 * 1024**2

LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class FeedJob:
    """A body as transferred, with its Content-Encoding. `log_context`: what log lines are to carry.

    `wanted`: read these events, wherever they are, and not those of the window.
    """

    body: bytes
    encoding: str
    max_bytes: int  # of the decoded body
    window: Window
    reader: Reader
    log_context: dict[str, Any]
    wanted: tuple[KnownEvent, ...] | None = None


@dataclass(frozen=True, slots=True)
class Digest:
    digest: str


@dataclass(frozen=True, slots=True)
class Selected:
    """`complete_until`: as of `app.ical.feed.Feed`."""

    pages: int
    complete_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """`recycle`: this process has grown, and ends now."""

    recycle: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """The code and message of an Unavailable."""

    code: str
    message: str


TOO_COMPLEX = Refused("feed_too_complex", "The feed's recurring events take too long to expand.")


class _TooMuchTime(BaseException):
    """Not an Exception: code that tolerates a broken event must not catch it."""


def frame(message: object) -> bytes:
    """The message with its length before it."""
    pickled = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(pickled)) + pickled


def too_large(max_bytes: int) -> Unavailable:
    return Unavailable(f"The feed is larger than {max_bytes // 1024**2} MB.", code="feed_too_large")


def _decode(body: bytes, encoding: str, max_bytes: int) -> bytes:
    if encoding in {"", "identity"}:
        return body
    if encoding not in {"gzip", "x-gzip"}:
        raise Unavailable("The feed comes in an encoding that was not asked for.", code="feed_not_ics")
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        text = decoder.decompress(body, max_bytes + 1)
    except zlib.error:
        raise Unavailable("The feed's compression is broken.", code="feed_truncated") from None
    if len(text) > max_bytes:
        raise too_large(max_bytes)
    if not decoder.eof and body:
        raise Unavailable("The feed breaks off before its end.", code="feed_truncated")
    return text


class _Pipe:
    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source = source
        self._sink = sink

    def receive(self) -> Any:
        """Read the next message. Raises EOFError when the parent has ended."""
        length = LENGTH.unpack(self._exactly(LENGTH.size))[0]
        return pickle.loads(self._exactly(length))  # noqa: S301 - of our own parent

    def _exactly(self, size: int) -> bytes:
        data = self._source.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def send(self, data: bytes) -> None:
        self._sink.write(data)
        self._sink.flush()


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise _TooMuchTime in the block once this process has used so much processor time in it."""
    used = time.process_time()
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    last = int(used + seconds) + 1 + _CPU_SECONDS_TO_STOP
    resource.setrlimit(resource.RLIMIT_CPU, (last, hard))
    # It repeats, should the first be swallowed.
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _raise_too_much_time(_signal: int, _frame: object) -> None:
    raise _TooMuchTime


def _allowed(size: int) -> float:
    return MAX_CPU_SECONDS + _CPU_SECONDS_PER_MB * size / 1024**2


def _has_grown() -> bool:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # not on Linux
        return False
    return pages * resource.getpagesize() > _RECYCLE_ABOVE_BYTES


def _read_pages(events: FeedEvents) -> list[bytes]:
    offsets = range(0, len(events), EVENTS_PER_PAGE)
    return [frame(events.page(offset, EVENTS_PER_PAGE)) for offset in offsets]


def _ref(event: KnownEvent) -> InstanceRef:
    uid = event.recurring_event_id or event.platform_uuid
    return InstanceRef(event.platform_uuid, uid, event.original_start_time)


def _work(pipe: _Pipe, job: FeedJob) -> None:
    started = time.process_time()
    frames: list[bytes] = []
    try:
        with _limited(_allowed(job.max_bytes)):
            text = _decode(job.body, job.encoding, job.max_bytes)
            feed = Feed(text)
        allowed = _allowed(len(text))
        del text
        pipe.send(frame(Digest(feed.digest)))
        frames = [frame(Selected(0))]
        if pipe.receive():
            with _limited(max(allowed - (time.process_time() - started), 0.1)):
                if job.wanted is None:
                    instances = feed.select(job.window)
                else:
                    instances = feed.find([_ref(event) for event in job.wanted])
                pages = _read_pages(FeedEvents(instances, job.reader))
            frames = [frame(Selected(len(pages), feed.complete_until)), *pages]
    except (CalendarUnreadable, Unavailable) as err:
        frames = [frame(Refused(err.code, err.message))]
    except (_TooMuchTime, MemoryError, RecursionError):
        frames = [frame(TOO_COMPLEX)]
    for data in frames:
        pipe.send(data)


def main() -> None:
    log_level, log_json = sys.argv[1], sys.argv[2] == "json"
    configure_logging(level=log_level, json=log_json)
    # What libraries print must not get between the frames.
    pipe = _Pipe(sys.stdin.buffer, os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    # The end of the worker ends this process: by closing the pipe, when the feed at hand has been read.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, _raise_too_much_time)
    with contextlib.suppress(ValueError, OSError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            job: FeedJob = pipe.receive()
            structlog.contextvars.clear_contextvars()
            structlog.contextvars.bind_contextvars(**job.log_context)
            _work(pipe, job)
            del job
            grown = _has_grown()
            pipe.send(frame(Done(recycle=grown)))
            if grown:
                return
