"""Delayed wake-ups: a worker wakes when what was marked is due, and not before."""

import asyncio
import time

from app.core.wakeups import ARQ_QUEUE, WakeUps, connect_redis


async def test_wake_ups_of_a_tenth_of_a_second_are_one_at_its_end(redis_url: str) -> None:
    redis = connect_redis(redis_url)
    wakeups = WakeUps(redis)
    started = time.time()
    await asyncio.gather(*(wakeups.wake("syncs", after=2) for _ in range(20)))
    took = time.time() - started
    found = await redis.zrange(ARQ_QUEUE, 0, -1, withscores=True)
    assert 1 <= len(found) <= 2 + took / 0.1
    assert len({name for name, _ in found}) == len(found)
    for _, at_ms in found:
        assert started + 2 <= at_ms / 1000 <= started + took + 2.1
    await wakeups.wake("syncs")
    assert len(await redis.zrange(ARQ_QUEUE, 0, -1)) == len(found) + 1
    await wakeups.aclose()


async def test_an_unavailable_redis_costs_the_wake_up_and_no_more() -> None:
    wakeups = WakeUps(connect_redis("redis://127.0.0.1:1/0"))
    await wakeups.wake("syncs", after=2)
    await wakeups.aclose()
