"""The work loop: bounded concurrency, woken at once, surviving a failing claim or handler."""

import asyncio
from collections.abc import Sequence

from workers.work_loop import WorkLoop


class Work:
    """Items to claim; records how many were handled at once."""

    def __init__(self, items: int = 0) -> None:
        self.items = list(range(items))
        self.at_once = 0
        self.most_at_once = 0
        self.done: list[int] = []
        self.claims = 0
        self.failures = 0

    async def claim(self, limit: int) -> Sequence[int]:
        self.claims += 1
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the database restarts")
        taken, self.items = self.items[:limit], self.items[limit:]
        return taken

    async def handle(self, item: int) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if item == 3:
            raise ValueError("one bad item")
        self.done.append(item)


async def run_until(work: Work, count: int, **options) -> None:
    loop = WorkLoop("test", claim=work.claim, handle=work.handle, concurrency=4, **options)
    running = asyncio.create_task(loop.run())
    async with asyncio.timeout(5):
        while len(work.done) < count:
            loop.wake()
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_everything_is_worked_off_with_bounded_concurrency_and_a_bad_item_stops_nothing() -> None:
    work = Work(50)
    await run_until(work, 49, tick_seconds=60)
    assert sorted(work.done) == [n for n in range(50) if n != 3]
    assert work.most_at_once == 4


async def test_a_failing_claim_is_tried_again() -> None:
    work = Work(3)
    work.failures = 2
    await run_until(work, 3, tick_seconds=0.01)
    assert sorted(work.done) == [0, 1, 2]


async def test_the_tick_alone_finds_work() -> None:
    work = Work()
    loop = WorkLoop("test", claim=work.claim, handle=work.handle, concurrency=4, tick_seconds=0.01)
    running = asyncio.create_task(loop.run())
    async with asyncio.timeout(5):
        while work.claims < 2:
            await asyncio.sleep(0.01)
        work.items = [1, 2]
        while len(work.done) < 2:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_idle_loops_do_not_spin() -> None:
    work = Work()
    loop = WorkLoop("test", claim=work.claim, handle=work.handle, concurrency=4, tick_seconds=60)
    running = asyncio.create_task(loop.run())
    await asyncio.sleep(0.05)
    assert work.claims == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
