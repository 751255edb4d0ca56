"""Endpoints that are disabled after failures, and what happens to their deliveries."""

import asyncio
from datetime import timedelta

from structlog.testing import capture_logs

from app.core.clock import utcnow
from tests.fakes.receiver import Response
from tests.integration.webhooks.deliveries import Webhooks


async def test_a_410_switches_off_and_switching_on_again_delivers_what_waits(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription, 3)
    webhooks.receiver.response = Response(410, b"removed")
    with capture_logs() as logs:
        await webhooks.deliver(webhook_endpoint_concurrency=1)
    off = await webhooks.subscription(subscription)
    assert not off.is_active
    assert off.disabled_reason is not None
    assert off.disabled_reason.startswith("The endpoint answered 410 Gone at 2")
    (line,) = [line for line in logs if line["event"] == "webhook_disabled"]
    assert (line["webhook_id"], line["reason"]) == (subscription, off.disabled_reason)
    assert len(webhooks.receiver.received) == 1
    assert {row.status for row in await webhooks.rows()} == {"pending"}
    webhooks.receiver.response = Response()
    await webhooks.patch(subscription, is_active=True)
    await webhooks.deliver()
    assert len(webhooks.receiver.received) == 4
    assert {row.status for row in await webhooks.rows()} == {"success"}


async def test_what_waits_for_an_endpoint_that_is_off_is_kept_and_given_up_after_the_retention(
    webhooks: Webhooks,
) -> None:
    subscription = await webhooks.subscribe()
    kept = await webhooks.add(subscription, 3)
    (old,) = await webhooks.add(subscription, created_at=utcnow() - timedelta(days=31))
    await webhooks.set_subscription(subscription, is_active=False)
    await webhooks.deliver()
    rows = {row.id: row for row in await webhooks.rows()}
    assert [rows[row].status for row in kept] == ["pending"] * 3
    assert all(rows[row].waits for row in kept)  # no claim looks at them now
    assert (rows[old].status, rows[old].next_attempt_at) == ("failed", None)
    assert rows[old].finished_at is not None
    await webhooks.deliver()
    assert webhooks.receiver.received == []
    await webhooks.patch(subscription, is_active=True)
    await webhooks.deliver()
    assert sorted(webhooks.receiver.ids) == sorted(f"key-of-{row}" for row in kept)


async def test_an_endpoint_that_failed_everything_for_five_days_is_switched_off(webhooks: Webhooks) -> None:
    dead, recovering = await webhooks.subscribe("/dead"), await webhooks.subscribe("/recovering")
    for subscription in (dead, recovering):
        await webhooks.set_subscription(subscription, failing_since=utcnow() - timedelta(days=4, hours=23))
        await webhooks.add(subscription)
    webhooks.receiver.response = Response(500)
    await webhooks.deliver(webhook_retry_schedule_seconds=(3600.0, 3600.0))
    assert (await webhooks.subscription(dead)).is_active

    since = utcnow() - timedelta(days=5, minutes=1)
    for subscription in (dead, recovering):
        await webhooks.set_subscription(subscription, failing_since=since, failing_days=5)
    await webhooks.make_due()
    async with webhooks.deliverer(webhook_retry_schedule_seconds=(3600.0, 3600.0)) as deliverer:
        for claimed in await deliverer.claim(10):
            failing = claimed.due.endpoint_id == dead
            webhooks.receiver.response = Response(500 if failing else 200)
            with capture_logs() as logs:
                await deliverer.handle(claimed)
            assert ("webhook_disabled" in [line["event"] for line in logs]) is failing
    off, on = await webhooks.subscription(dead), await webhooks.subscription(recovering)
    assert not off.is_active
    assert off.disabled_reason is not None
    assert "No attempt has succeeded since" in off.disabled_reason
    assert "answered 500" in off.disabled_reason
    assert (on.is_active, on.failing_since) == (True, None)


async def _a_day_passes(webhooks: Webhooks, subscription: str, days: int = 1) -> None:
    row = await webhooks.subscription(subscription)
    assert row.failing_since is not None
    assert row.failing_day_at is not None
    await webhooks.set_subscription(
        subscription,
        failing_since=row.failing_since - timedelta(days=days),
        failing_day_at=row.failing_day_at - timedelta(days=days),
    )


async def test_an_endpoint_is_switched_off_by_failures_on_five_days_and_not_by_one_then_and_one_now(
    webhooks: Webhooks,
) -> None:
    webhooks.receiver.response = Response(500)
    quiet, dead = await webhooks.subscribe("/quiet"), await webhooks.subscribe("/dead")
    for day in range(6):
        assert (await webhooks.subscription(dead)).is_active
        await webhooks.add(dead, 2)
        if day in (0, 5):
            await webhooks.add(quiet, 2)
        await webhooks.deliver(webhook_retry_schedule_seconds=())
        await _a_day_passes(webhooks, dead)
        await _a_day_passes(webhooks, quiet)
    assert not (await webhooks.subscription(dead)).is_active
    after = await webhooks.subscription(quiet)
    assert (after.is_active, after.failing_days) == (True, 2)


async def test_responses_of_an_old_url_do_not_count_for_a_new_one(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe("/old")
    await webhooks.add(subscription)
    webhooks.receiver.script.append(Response(410, delay=0.2))
    async with webhooks.deliverer() as deliverer:
        (claimed,) = await deliverer.claim(10)
        sending = asyncio.create_task(deliverer.handle(claimed))
        await webhooks.receiver.wait_for(1)
        await webhooks.patch(subscription, url=webhooks.url + "/new")
        await sending
    after = await webhooks.subscription(subscription)
    assert (after.is_active, after.failing_since) == (True, None)
    await webhooks.make_due()
    await webhooks.deliver()
    assert [got.path for got in webhooks.receiver.received] == ["/old", "/new"]
