"""Slow, hanging and failing endpoints, which do not delay the deliveries of others."""

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from app.core.clock import utcnow
from tests.conftest import TestProject
from tests.fakes.receiver import Receiver, Response
from tests.integration.webhooks.deliveries import Webhooks, deliver_due
from workers.work_loop import WorkLoop


async def test_endpoints_take_turns(webhooks: Webhooks) -> None:
    subscriptions = [await webhooks.subscribe(f"/{number}") for number in range(5)]
    for subscription in subscriptions:
        await webhooks.add(subscription, 4)
    async with webhooks.deliverer() as deliverer:
        seen = [await deliverer.claim(2) for _ in range(5)]
    first_ten = [claimed.due.endpoint_id for claims in seen for claimed in claims]
    assert sorted(first_ten) == sorted(subscriptions * 2)
    async with webhooks.deliverer() as deliverer:
        at_once = [claimed.due.endpoint_id for claimed in await deliverer.claim(7)]
    assert len(at_once) == 7
    assert set(at_once) == set(subscriptions)


async def test_an_endpoints_deliveries_go_out_oldest_first(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    times = [utcnow() - timedelta(minutes=minutes) for minutes in (5, 1, 9, 3)]
    ids = [(await webhooks.add(subscription, next_attempt_at=at))[0] for at in times]
    async with webhooks.deliverer(webhook_endpoint_concurrency=1) as deliverer:
        await deliver_due(deliverer, limit=1)
    expected = [f"key-of-{ids[place]}" for place in (2, 0, 3, 1)]
    assert webhooks.receiver.ids == expected


async def test_a_hanging_endpoint_delays_no_other(webhooks: Webhooks) -> None:
    hanging, lively = await webhooks.subscribe("/hang"), await webhooks.subscribe("/lively")
    await webhooks.add(hanging, 40)
    await webhooks.add(lively, 10)
    webhooks.receiver.responses["/hang"] = Response(delay=30)
    async with webhooks.deliverer() as deliverer:
        tasks = []
        async with asyncio.timeout(5):
            while webhooks.receiver.paths.count("/lively") < 10:
                tasks += [
                    asyncio.create_task(deliverer.handle(claimed)) for claimed in await deliverer.claim(8)
                ]
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    done = [row for row in await webhooks.rows() if row.status == "success"]
    assert [row.subscription_id for row in done] == [lively] * 10


@contextlib.asynccontextmanager
async def working(webhooks: Webhooks, workers: int = 1, **settings: Any) -> AsyncIterator[None]:
    """Workers' loops, of 16 slots each; what they have under way at the end is cut."""
    options = {"webhook_concurrency": 16, "webhook_timeout_seconds": 60.0, **settings}
    async with contextlib.AsyncExitStack() as stack:
        loops = []
        for _ in range(workers):
            deliverer = await stack.enter_async_context(webhooks.deliverer(**options))
            work_loop = WorkLoop(
                "deliveries",
                claim=deliverer.claim,
                handle=deliverer.handle,
                concurrency=options["webhook_concurrency"],
                tick_seconds=0.05,
            )
            stack.push_async_callback(work_loop.finish, 0)
            loops.append(asyncio.create_task(work_loop.run()))
        try:
            yield
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.wait(loops)


async def _until_no_more_comes(receiver: Receiver) -> None:
    async with asyncio.timeout(15):
        before = -1
        while len(receiver.received) > before:
            before = len(receiver.received)
            await asyncio.sleep(0.3)


async def _until_arrived(receiver: Receiver, path: str, count: int) -> None:
    async with asyncio.timeout(15):
        while receiver.paths.count(path) < count:
            await asyncio.sleep(0.01)


async def test_a_hundred_slow_endpoints_of_a_project_do_not_delay_another_projects(
    webhooks: Webhooks, other_project: TestProject
) -> None:
    for number in range(40):
        path = f"/slow/{number}"
        webhooks.receiver.responses[path] = Response(delay=60)  # and then 200
        await webhooks.add(await webhooks.subscribe(path), 4)
    others = dataclasses.replace(webhooks, project_id=other_project.id)
    fast = await others.subscribe("/fast")
    async with working(webhooks, workers=2):
        await _until_no_more_comes(webhooks.receiver)
        under_way = len(webhooks.receiver.under_way)
        await others.add(fast, 20)
        await _until_arrived(webhooks.receiver, "/fast", 20)
        assert len(webhooks.receiver.under_way) == under_way
    assert under_way >= 2 * 12  # an idle system uses most of its slots for one project


async def test_slow_endpoints_do_not_delay_a_fast_one_of_the_same_project(
    webhooks: Webhooks, monkeypatch
) -> None:
    monkeypatch.setattr("app.webhooks.delivery._SLOW_SECONDS", 0.1)
    slow = [await webhooks.subscribe(f"/slow/{number}") for number in range(20)]
    for number, subscription in enumerate(slow):
        webhooks.receiver.responses[f"/slow/{number}"] = Response(delay=0.15)
        await webhooks.add(subscription)
    await webhooks.deliver()
    for number, subscription in enumerate(slow):
        assert (await webhooks.subscription(subscription)).is_slow
        webhooks.receiver.responses[f"/slow/{number}"] = Response(delay=60)
        await webhooks.add(subscription, 4)
    fast = await webhooks.subscribe("/fast")
    async with working(webhooks):
        await _until_no_more_comes(webhooks.receiver)
        await webhooks.add(fast, 20)
        await _until_arrived(webhooks.receiver, "/fast", 20)
        assert len(webhooks.receiver.under_way) <= 8


async def test_an_endpoint_that_takes_long_has_half_of_the_slots_until_it_is_quick_again(
    webhooks: Webhooks, monkeypatch
) -> None:
    monkeypatch.setattr("app.webhooks.delivery._SLOW_SECONDS", 0.2)
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription, 12)
    claimed = []
    async with webhooks.deliverer() as deliverer:
        for delay in (0.25, 0, 0):
            webhooks.receiver.response = Response(delay=delay)
            due = await deliverer.claim(10)
            claimed.append(len(due))
            await asyncio.gather(*(deliverer.handle(delivery) for delivery in due))
    assert claimed == [4, 2, 4]


async def test_dead_and_hanging_endpoints_delay_no_other(
    webhooks: Webhooks, other_project: TestProject
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        for number in range(30):
            path = f"/hangs/{number}"
            webhooks.receiver.responses[path] = Response(delay=60)
            await webhooks.add(await webhooks.subscribe(path), 4)
            await webhooks.add(await webhooks.subscribe(url=dead), 4)
        others = dataclasses.replace(webhooks, project_id=other_project.id)
        fast = [await others.subscribe("/fast"), await webhooks.subscribe("/own")]
        async with working(webhooks, webhook_timeout_seconds=2.0, webhook_retry_schedule_seconds=(3600.0,)):
            await _until_no_more_comes(webhooks.receiver)
            for subscription in fast:
                await webhooks.add(subscription, 20)
            for path in ("/fast", "/own"):
                await _until_arrived(webhooks.receiver, path, 20)


async def test_a_failing_endpoint_is_tried_with_one_delivery_at_a_time_until_it_recovers(
    webhooks: Webhooks,
) -> None:
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription, 12)
    webhooks.receiver.script.extend([Response(503)] * 4)
    async with webhooks.deliverer(webhook_retry_schedule_seconds=(3600.0,)) as deliverer:
        first = await deliverer.claim(10)
        await asyncio.gather(*(deliverer.handle(claimed) for claimed in first))
        assert (await webhooks.subscription(subscription)).failing_since is not None
        second = await deliverer.claim(10)
        assert await deliverer.claim(10) == []
        await asyncio.gather(*(deliverer.handle(claimed) for claimed in second))
        assert (await webhooks.subscription(subscription)).failing_since is None
        third = await deliverer.claim(10)
    assert [len(first), len(second), len(third)] == [4, 1, 4]


async def test_failing_endpoints_use_half_of_a_worker_at_most(webhooks: Webhooks) -> None:
    for number in range(4):
        failing = await webhooks.subscribe(f"/failing/{number}")
        await webhooks.set_subscription(failing, failing_since=utcnow())
        await webhooks.add(failing, 3)
    healthy = await webhooks.subscribe("/healthy")
    async with webhooks.deliverer(
        webhook_concurrency=4, webhook_retry_schedule_seconds=(3600.0,)
    ) as deliverer:
        probes = await deliverer.claim(4)
        assert len(probes) == 2
        assert await deliverer.claim(2) == []
        await webhooks.add(healthy, 2)
        assert [claimed.due.endpoint_id for claimed in await deliverer.claim(2)] == [healthy, healthy]
        webhooks.receiver.response = Response(500)
        await asyncio.gather(*(deliverer.handle(claimed) for claimed in probes))
        assert len(await deliverer.claim(4)) == 2
