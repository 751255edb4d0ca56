"""How workers claim deliveries: leases, limits that hold over all workers, and indexes."""

import asyncio
import contextlib
from collections import Counter
from datetime import timedelta
from typing import Any

from sqlalchemy import text
from structlog.testing import capture_logs

from app.core.clock import utcnow
from app.core.db import transaction
from app.webhooks.delivery import Deliverer
from app.webhooks.repository import claims
from tests.fakes.receiver import Response
from tests.integration.webhooks.deliveries import Webhooks, deliver_due


async def test_a_worker_that_dies_while_sending_leaves_a_delivery_that_goes_out_again(
    webhooks: Webhooks,
) -> None:
    subscription = await webhooks.subscribe()
    (delivery,) = await webhooks.add(subscription)
    webhooks.receiver.script.append(Response(delay=30))
    async with webhooks.deliverer() as deliverer:
        (claimed,) = await deliverer.claim(10)
        sending = asyncio.create_task(deliverer.handle(claimed))
        await webhooks.receiver.wait_for(1)
        sending.cancel()
        await asyncio.wait([sending])
    row = await webhooks.row(delivery)
    assert (row.status, row.attempts) == ("pending", [])
    assert row.next_attempt_at is not None
    until = (row.next_attempt_at - utcnow()).total_seconds()
    assert webhooks.settings.webhook_timeout_seconds < until <= webhooks.settings.webhook_timeout_seconds + 10
    await webhooks.deliver()
    assert len(webhooks.receiver.received) == 1  # not while the lease runs
    await webhooks.make_due()
    await webhooks.deliver()
    first, second = webhooks.receiver.received
    assert (first.id, first.body) == (second.id, second.body)
    assert (await webhooks.row(delivery)).status == "success"


async def test_one_whose_lease_ran_out_records_nothing_over_its_successor(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    (delivery,) = await webhooks.add(subscription)
    webhooks.receiver.script.append(Response(500, delay=0.3))
    async with webhooks.deliverer() as slow, webhooks.deliverer() as quick:
        (claimed,) = await slow.claim(10)
        sending = asyncio.create_task(slow.handle(claimed))
        await webhooks.receiver.wait_for(1)
        await webhooks.make_due()
        await deliver_due(quick)
        with capture_logs() as logs:
            await sending
    assert "webhook_lease_lost" in [line["event"] for line in logs]
    row = await webhooks.row(delivery)
    assert (row.status, len(row.attempts)) == ("success", 1)


async def test_an_attempt_that_could_outlast_its_lease_is_not_begun(webhooks: Webhooks, monkeypatch) -> None:
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription)
    async with webhooks.deliverer() as deliverer:
        (claimed,) = await deliverer.claim(10)
        now = asyncio.get_running_loop().time() + 6
        monkeypatch.setattr("app.webhooks.delivery.time.monotonic", lambda: now)
        await deliverer.handle(claimed)
    assert webhooks.receiver.received == []


async def test_several_workers_share_the_work_and_never_send_one_delivery_twice_at_once(
    webhooks: Webhooks,
) -> None:
    paths = [f"/{number}" for number in range(5)]
    for path in paths:
        await webhooks.add(await webhooks.subscribe(path), 12)
    webhooks.receiver.response = Response(delay=0.02)

    async def work(deliverer: Deliverer) -> None:
        async with asyncio.timeout(15):
            while len(webhooks.receiver.received) < 60:
                claimed = await deliverer.claim(7)
                await asyncio.gather(*(deliverer.handle(delivery) for delivery in claimed))

    async with webhooks.deliverer() as first, webhooks.deliverer() as second, webhooks.deliverer() as third:
        await asyncio.gather(work(first), work(second), work(third))
    assert Counter(webhooks.receiver.ids).most_common(1)[0][1] == 1
    assert {row.status for row in await webhooks.rows()} == {"success"}
    assert max(webhooks.receiver.most_at_once.values()) <= webhooks.settings.webhook_endpoint_concurrency


async def test_the_limit_of_an_endpoint_holds_over_all_workers(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription, 30)
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(webhooks.deliverer()) for _ in range(6)]
        claims = await asyncio.gather(*(worker.claim(10) for worker in workers))
        assert sum(len(claimed) for claimed in claims) == webhooks.settings.webhook_endpoint_concurrency
        assert await workers[0].claim(10) == []


async def test_claiming_uses_an_index_at_every_step_also_on_tables_never_analysed(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription, 3)
    walk = {"after": "", "limit": 10, "per_endpoint": 4, "full_projects": [], "projects_full_of_slow": []}
    lease = {
        "endpoints": [subscription],
        "given": [4],
        "slots": [4],
        "lease_token": "t",
        "lease_seconds": 1.0,
    }
    park = {"endpoints": [subscription], "keep_days": 30, "limit": 10}
    steps: list[tuple[Any, dict[str, Any], set[str]]] = [
        (claims._WAKE, {"limit": 10}, {"ix_webhook_deliveries_waiting"}),
        (
            claims._FIND_READY,
            {**walk, "is_full_of_slow": False},
            {"ix_webhook_deliveries_ready", "ix_webhook_deliveries_leased"},
        ),
        (claims._CLAIM, lease, {"ix_webhook_deliveries_ready", "ix_webhook_deliveries_leased"}),
        (claims._PARK, park, {"ix_webhook_deliveries_ready"}),
    ]
    async with transaction(webhooks.sessions) as session:
        await session.execute(claims._USE_INDEXES)
        for statement, values, indexes in steps:
            plan = "\n".join(await session.scalars(text(f"EXPLAIN {statement}"), values))
            assert "Seq Scan" not in plan
            assert indexes <= {word for word in plan.split() if word.startswith("ix_")}


async def test_endpoints_that_have_nothing_due_are_not_looked_at(webhooks: Webhooks) -> None:
    """Thousands that wait for a retry, are switched off or have their due deliveries under way cost a claim nothing."""
    for number in range(50):
        waiting, off = (
            await webhooks.subscribe(f"/waits/{number}"),
            await webhooks.subscribe(f"/off/{number}"),
        )
        await webhooks.add(waiting, 2)
        await webhooks.add(off, 2)
        await webhooks.set_subscription(off, is_active=False)
    webhooks.receiver.response = Response(500)
    await webhooks.deliver(webhook_retry_schedule_seconds=(7200.0,))
    async with transaction(webhooks.sessions) as session:
        await session.execute(claims._USE_INDEXES)
        values = {
            "after": "", "limit": 100, "per_endpoint": 4, "full_projects": [], "projects_full_of_slow": [],
            "is_full_of_slow": False,
        }  # fmt: skip
        (plan,) = (
            await session.execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {claims._FIND_READY}"), values)
        ).scalar_one()
    assert _rows_read(plan["Plan"]) == 0
    assert {row.status for row in await webhooks.rows()} == {"pending"}


def _rows_read(plan: dict[str, Any]) -> int:
    """Rows that came out of tables, at all places of a plan."""
    own = plan["Actual Rows"] * plan["Actual Loops"] if "Relation Name" in plan else 0
    return int(own) + sum(_rows_read(part) for part in plan.get("Plans", []))


async def test_what_an_older_release_makes_due_is_found(webhooks: Webhooks) -> None:
    """It knows nothing of `waits`."""
    subscription = await webhooks.subscribe()
    (delivery,) = await webhooks.add(subscription, waits=True, next_attempt_at=utcnow() + timedelta(days=1))
    await webhooks.deliver()
    assert webhooks.receiver.received == []
    async with transaction(webhooks.sessions) as session:
        await session.execute(text("UPDATE webhook_deliveries SET next_attempt_at = created_at"))
    await webhooks.deliver()
    assert (await webhooks.row(delivery)).status == "success"
