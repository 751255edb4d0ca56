"""The processes that read feeds: limits, shares of projects, and how they end."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from app.events.data import Window
from app.providers.base import Unavailable
from app.providers.ics.events import Reader
from app.providers.ics.process import MAX_MEMORY_BYTES, FeedJob
from app.providers.ics.readers import FeedRead, FeedReaders

WINDOW = Window(datetime(2026, 11, 19, tzinfo=UTC), datetime(2026, 12, 18, tzinfo=UTC))
# dateutil looks at every day until the year 9999 before it says that there is none.
ENDLESS = "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30"
HEAVY = [ENDLESS] * 6  # above the limit on a fast machine, too


def calendar(*rules: str, name: str = "x") -> bytes:
    events = "".join(
        f"BEGIN:VEVENT\r\nUID:{name}{number}\r\nDTSTART:20261124T090000Z\r\nDURATION:PT1H\r\nSUMMARY:{name}\r\n"
        f"{f'RRULE:{rule}' if rule else 'CLASS:PUBLIC'}\r\nEND:VEVENT\r\n"
        for number, rule in enumerate(rules)
    )
    return f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\n{events}END:VCALENDAR\r\n".encode()


SMALL = calendar("")


def job(body: bytes = SMALL) -> FeedJob:
    return FeedJob(body=body, encoding="", max_bytes=10**7, window=WINDOW, reader=Reader(), log_context={})


@pytest.fixture
async def readers() -> AsyncIterator[FeedReaders]:
    readers = FeedReaders(2)
    yield readers
    await readers.aclose()


async def read(readers: FeedReaders, body: bytes = SMALL, project_id: str = "proj_a") -> FeedRead:
    return await readers.read(job(body), project_id=project_id, known_digest=None)


async def code_of(readers: FeedReaders, body: bytes, project_id: str = "proj_a") -> str:
    with pytest.raises(Unavailable) as caught:
        await read(readers, body, project_id)
    return caught.value.code


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "app.providers.ics.process" in " ".join(child.cmdline())
    ]


async def until_reading() -> psutil.Process:
    """The process that has been busy for a while."""
    async with asyncio.timeout(30):
        while True:
            for child in children():
                if child.cpu_times().user > 1.0:
                    return child
            await asyncio.sleep(0.02)


async def until_ended(process: psutil.Process) -> None:
    async with asyncio.timeout(30):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.05)


async def test_a_feed_is_read_and_its_process_used_again(readers):
    first = await read(readers)
    (child,) = children()
    again = await readers.read(job(), project_id="proj_a", known_digest=first.digest)
    assert (again.digest, again.pages) == (first.digest, None)
    assert [event.name for event in await first.events(0)] == ["x"]
    assert children() == [child]


@pytest.mark.parametrize("body", [calendar(*HEAVY), calendar(*["FREQ=MONTHLY;BYMONTH=2;BYMONTHDAY=30"] * 60)])
async def test_a_feed_has_three_seconds_of_processor_time(readers, body):
    assert await code_of(readers, body) == "feed_too_complex"
    (child,) = children()
    used = child.cpu_times().user
    assert used < 5
    # Unchanged but for its times of writing, it is not tried again.
    assert (
        await code_of(readers, body.replace(b"SUMMARY", b"DTSTAMP:20261121T000000Z\r\nSUMMARY"))
        == "feed_too_complex"
    )
    assert children() == [child]
    assert child.cpu_times().user - used < 1
    assert (await read(readers)).pages


async def test_what_takes_too_long_in_one_window_is_tried_in_another(readers):
    """A client that chooses a smaller window need not wait for a day."""
    smaller = replace(job(calendar(*HEAVY)), window=Window(WINDOW.start, WINDOW.start + timedelta(days=7)))
    for known in (1, 1):
        assert await code_of(readers, calendar(*HEAVY)) == "feed_too_complex"
        assert len(readers._refused) == known
    with pytest.raises(Unavailable):
        await readers.read(smaller, project_id="proj_a", known_digest=None)
    assert len(readers._refused) == 2


async def test_heavy_feeds_of_a_project_do_not_hold_up_another(readers):
    await asyncio.gather(read(readers), read(readers, project_id="proj_b"))  # both processes are started
    heavy = [calendar(*HEAVY, name=f"heavy{number}") for number in range(2)]
    done: list[str] = []

    async def one(name: str, body: bytes, project_id: str) -> None:
        try:
            await read(readers, body, project_id)
        except Unavailable as err:
            name += f" {err.code}"
        done.append(name)

    tasks = [asyncio.create_task(one("heavy", body, "proj_a")) for body in heavy]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(one(f"small {number}", SMALL, "proj_b")) for number in range(20)]
    await asyncio.gather(*tasks)
    assert sorted(done[:20]) == sorted(f"small {number}" for number in range(20))
    assert done[20:] == ["heavy feed_too_complex"] * 2


async def test_a_process_that_is_killed_fails_its_feed_alone(readers):
    heavy = asyncio.create_task(code_of(readers, calendar(*HEAVY)))
    busy = await until_reading()
    small = [read(readers, project_id="proj_b") for _ in range(3)]
    busy.kill()
    assert await heavy == "feed_reader_died"
    for one in await asyncio.gather(*small):
        assert one.pages
    assert (await read(readers)).pages
    assert busy not in children()


async def test_an_idle_process_that_was_killed_fails_no_feed(readers):
    await read(readers)
    (child,) = children()
    child.kill()
    await until_ended(child)
    await asyncio.sleep(0.2)
    assert (await read(readers)).pages


async def test_a_reader_that_is_cancelled_leaves_no_process_behind(readers):
    heavy = asyncio.create_task(read(readers, calendar(*HEAVY)))
    busy = await until_reading()
    heavy.cancel()
    await asyncio.wait([heavy])
    await until_ended(busy)
    assert (await read(readers)).pages


async def test_readers_that_are_cancelled_while_they_wait_leave_the_turns_in_order(readers):
    heavy = asyncio.create_task(read(readers, calendar(*HEAVY)))
    await until_reading()
    waiting = [asyncio.create_task(read(readers)) for _ in range(5)]
    await asyncio.sleep(0.05)
    for task in [heavy, *waiting[1:]]:
        task.cancel()
    results = await asyncio.gather(heavy, *waiting, return_exceptions=True)
    assert isinstance(results[1], FeedRead)
    assert all(isinstance(one, asyncio.CancelledError) for one in [results[0], *results[2:]])
    assert (await read(readers)).pages


async def test_the_processes_are_limited_and_know_no_secret(readers, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_ENCRYPTION_KEYS", "secret")
    await read(readers)
    (child,) = children()
    assert child.rlimit(resource.RLIMIT_AS)[0] == MAX_MEMORY_BYTES
    assert 0 < child.rlimit(resource.RLIMIT_CPU)[0] < 30
    assert "CREDENTIALS_ENCRYPTION_KEYS" not in child.environ()
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGINT)
    assert (await read(readers)).pages
    assert children() == [child], "the worker ends it, not a signal to the group"
    await readers.aclose()
    await until_ended(child)


_READS_FOR_EVER = """
import asyncio
from tests.integration.providers.test_feed_readers import ENDLESS, FeedReaders, calendar, read

async def main():
    readers = FeedReaders(2)
    await asyncio.gather(read(readers), read(readers, project_id="proj_b"))
    await read(readers, calendar(*[ENDLESS] * 9))

asyncio.run(main())
"""


async def test_no_process_outlives_a_worker_that_is_killed():
    root = Path(__file__).parents[3]
    worker = subprocess.Popen(
        [sys.executable, "-c", _READS_FOR_EVER], env={**os.environ, "PYTHONPATH": str(root)}
    )
    try:
        busy = await until_reading()
        readers = children()
        assert len(readers) == 2
    finally:
        worker.kill()
        worker.wait()
    ends = time.monotonic() + 30
    while [one for one in readers if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < ends
        await asyncio.sleep(0.05)
    assert busy in readers
