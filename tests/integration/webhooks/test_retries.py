"""Retries of a delivery: their schedule, and the Retry-After of an endpoint."""

from datetime import timedelta

from structlog.testing import capture_logs

from app.core.clock import utcnow
from tests.fakes.receiver import Response
from tests.integration.webhooks.deliveries import Webhooks, last_attempt


async def test_retries_carry_the_same_id_and_bytes_and_the_last_one_fails(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    (delivery,) = await webhooks.add(subscription)
    webhooks.receiver.response = Response(500, b"down")
    for number, wait in enumerate((60, 600, 6000), 1):
        await webhooks.deliver(webhook_retry_schedule_seconds=(60.0, 600.0, 6000.0))
        row = await webhooks.row(delivery)
        assert (row.status, row.retry_count, row.lease_token) == ("pending", number, None)
        assert row.next_attempt_at is not None
        waits = (row.next_attempt_at - utcnow()).total_seconds()
        assert wait - 30 < waits <= wait * 1.2
        await webhooks.make_due()
    await webhooks.deliver(webhook_retry_schedule_seconds=(60.0, 600.0, 6000.0))
    row = await webhooks.row(delivery)
    assert (row.status, row.next_attempt_at, len(row.attempts)) == ("failed", None, 4)
    assert {(got.id, got.body) for got in webhooks.receiver.received} == {(row.idempotency_key, row.body)}
    assert last_attempt(row)["error"] == "status: answered 500 instead of 2xx"
    assert last_attempt(row)["response"] == "down"
    for got in webhooks.receiver.received:
        got.verify(webhooks.secrets[subscription])


async def test_a_secret_that_cannot_be_opened_is_a_failed_attempt_and_retried_by_the_schedule(
    webhooks: Webhooks,
) -> None:
    subscription = await webhooks.subscribe()
    sealed = (await webhooks.subscription(subscription)).secrets_sealed
    foreign = webhooks.box.seal("webhook_subscriptions:another", [{"secret": "x", "until": None}])
    await webhooks.set_subscription(subscription, secrets_sealed=foreign)
    (delivery,) = await webhooks.add(subscription)
    with capture_logs() as logs:
        await webhooks.deliver(webhook_retry_schedule_seconds=(3600.0,))
    assert webhooks.receiver.received == []
    row = await webhooks.row(delivery)
    assert (row.status, row.retry_count, row.lease_token) == ("pending", 1, None)
    assert row.next_attempt_at is not None
    assert row.next_attempt_at > utcnow() + timedelta(minutes=50)
    assert last_attempt(row)["error"].startswith("secret: the stored secret can no longer be decrypted")
    (line,) = [line for line in logs if line["event"] == "webhook_secret_unreadable"]
    assert (line["webhook_id"], line.get("exc_info")) == (subscription, None)
    assert (await webhooks.subscription(subscription)).failing_since is None  # it is not the endpoint's fault
    await webhooks.set_subscription(subscription, secrets_sealed=sealed)
    await webhooks.make_due()
    await webhooks.deliver()
    assert (await webhooks.row(delivery)).status == "success"


async def test_retry_after_is_honoured_for_the_endpoint_within_a_day(webhooks: Webhooks) -> None:
    for status, value, seconds in ((429, "7200", 7200), (503, "999999999", 86_400)):
        subscription = await webhooks.subscribe()
        delivery, *_ = await webhooks.add(subscription, 5)
        webhooks.receiver.script.append(Response(status, headers={"Retry-After": value}))
        async with webhooks.deliverer() as deliverer:
            (claimed,) = await deliverer.claim(1)
            await deliverer.handle(claimed)
            assert await deliverer.claim(10) == []  # the others wait too
        row = await webhooks.row(delivery)
        assert row.next_attempt_at is not None
        assert seconds - 30 < (row.next_attempt_at - utcnow()).total_seconds() <= seconds
        await webhooks.set_subscription(subscription, paused_until=utcnow())
        webhooks.receiver.received.clear()
        await webhooks.deliver()
        assert len(webhooks.receiver.received) == 4


async def test_the_schedule_holds_where_retry_after_is_shorter_or_given_with_another_status(
    webhooks: Webhooks,
) -> None:
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription, 2)
    webhooks.receiver.script.append(Response(500, headers={"Retry-After": "7200"}))
    webhooks.receiver.script.append(Response(429, headers={"Retry-After": "1"}))
    await webhooks.deliver(webhook_retry_schedule_seconds=(600.0,), webhook_endpoint_concurrency=1)
    await webhooks.set_subscription(subscription, paused_until=None)
    for row in await webhooks.rows():
        assert row.next_attempt_at is not None
        assert 570 < (row.next_attempt_at - utcnow()).total_seconds() <= 720
