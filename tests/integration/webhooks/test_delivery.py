"""One delivery to a real receiver: its signatures, its connection, and what is recorded."""

import asyncio
import base64
import hashlib
import hmac
from datetime import datetime, timedelta

from app.core.clock import utcnow
from app.core.db import transaction
from app.webhooks import service
from tests.fakes.receiver import Response
from tests.integration.webhooks.deliveries import Webhooks, deliver_due


async def test_a_delivery_is_signed_in_both_schemes_and_recorded(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe("/hook")
    await webhooks.announce()
    webhooks.receiver.response = Response(202, b"tha\x00nks " + "ä".encode() * 600)
    await webhooks.deliver()
    (got,) = webhooks.receiver.received
    (row,) = await webhooks.rows()
    secret = webhooks.secrets[subscription]
    assert got.path == "/hook"
    assert got.headers["content-type"] == "application/json"
    assert got.body == row.body
    payload = got.verify(secret)
    assert payload["idempotency_key"] == got.id == row.idempotency_key
    assert payload["calendar_metadata"] == {"name": "Zoë"}
    attendee = hmac.digest(base64.b64decode(secret), got.body, hashlib.sha256)
    assert got.headers["x-webhook-signature"] == base64.b64encode(attendee).decode()
    assert (row.status, row.next_attempt_at, row.lease_token) == ("success", None, None)
    assert row.finished_at is not None
    (attempt,) = row.attempts
    assert attempt["status_code"] == 202
    assert attempt["error"] is None
    assert attempt["response"] == "tha\ufffdnks " + "ä" * 492
    assert attempt["duration_ms"] >= 0
    assert abs(datetime.fromisoformat(attempt["at"]) - utcnow()) < timedelta(seconds=30)


async def test_after_a_rotation_both_secrets_verify_for_a_day(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    old = webhooks.secrets[subscription]
    async with transaction(webhooks.sessions) as session:
        rotated = await service.rotate_secret(session, webhooks.box, webhooks.project_id, subscription)
    await webhooks.add(subscription)
    await webhooks.deliver()
    (got,) = webhooks.receiver.received
    assert len(got.headers["webhook-signature"].split()) == 2
    got.verify(old)
    got.verify(rotated.secret)
    attendee = hmac.digest(base64.b64decode(rotated.secret), got.body, hashlib.sha256)
    assert got.headers["x-webhook-signature"] == base64.b64encode(attendee).decode()

    box = webhooks.box
    context = f"webhook_subscriptions:{subscription}"
    current, former = box.open(context, (await webhooks.subscription(subscription)).secrets_sealed)
    in_a_day = datetime.fromisoformat(former["until"]) - utcnow()
    assert timedelta(hours=23, minutes=59) < in_a_day <= timedelta(hours=24)
    expired = [current, {**former, "until": "2020-01-01T00:00:00.000000Z"}]
    await webhooks.set_subscription(subscription, secrets_sealed=box.seal(context, expired))
    await webhooks.add(subscription)
    await webhooks.deliver()
    assert len(webhooks.receiver.received[-1].headers["webhook-signature"].split()) == 1


async def test_connections_are_kept_and_used_again(webhooks: Webhooks) -> None:
    await webhooks.add(await webhooks.subscribe(), 6)
    async with webhooks.deliverer(webhook_endpoint_concurrency=1) as deliverer:
        await deliver_due(deliverer)
    assert len(webhooks.receiver.received) == 6
    assert len({got.client for got in webhooks.receiver.received}) == 1


async def test_a_delivery_deleted_while_it_is_sent_ends_quietly(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    await webhooks.add(subscription)
    webhooks.receiver.response = Response(delay=0.1)
    async with webhooks.deliverer() as deliverer:
        (claimed,) = await deliverer.claim(1)
        sending = asyncio.create_task(deliverer.handle(claimed))
        await webhooks.receiver.wait_for(1)
        async with transaction(webhooks.sessions) as session:
            await service.delete_webhook(session, webhooks.project_id, subscription)
        await sending
    assert await webhooks.rows() == []
