"""Rings for later: a worker wakes when what was marked is due, and not before."""

import asyncio
import time

from app.core.wakeups import QUEUE, Doorbell, connect_redis


async def test_rings_of_a_tenth_of_a_second_are_one_at_its_end(redis_url: str) -> None:
    redis = connect_redis(redis_url)
    doorbell = Doorbell(redis)
    started = time.time()
    await asyncio.gather(*(doorbell.ring("syncs", after=2) for _ in range(20)))
    took = time.time() - started
    rings = await redis.zrange(QUEUE, 0, -1, withscores=True)
    assert 1 <= len(rings) <= 2 + took / 0.1
    assert len({name for name, _ in rings}) == len(rings)
    for _, at_ms in rings:
        assert started + 2 <= at_ms / 1000 <= started + took + 2.1
    await doorbell.ring("syncs")
    assert len(await redis.zrange(QUEUE, 0, -1)) == len(rings) + 1
    await doorbell.aclose()


async def test_a_redis_that_is_away_costs_the_ring_and_no_more() -> None:
    doorbell = Doorbell(connect_redis("redis://127.0.0.1:1/0"))
    await doorbell.ring("syncs", after=2)
    await doorbell.aclose()
