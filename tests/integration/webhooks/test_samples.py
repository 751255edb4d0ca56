"""Sample deliveries of `POST /webhooks/{id}/test`: what is sent, what is returned, and their limits."""

import asyncio
import ssl
from collections import Counter
from typing import Any

import pytest
from limits import RateLimitItemPerMinute
from sqlalchemy import select, text, update

from app.core.db import transaction
from app.models import WebhookSubscription
from app.webhooks import samples
from tests.fakes.receiver import Response
from tests.integration.webhooks.webhooks_api import create, stored


async def test_a_test_sends_a_signed_sample_and_returns_what_came_back(api, sessions, receiver) -> None:
    fake, url = receiver
    webhook = await create(api, url=url + "/hook", triggers=["calendar.state_change"])
    fake.script.append(Response(201, b"hello"))
    response = await api.post(f"/api/v1/webhooks/{webhook['id']}/test")
    assert response.status_code == 200
    result = response.json()
    assert result["status"] == "success"
    assert result["status_code"] == 201
    assert result["response"] == "hello"
    assert result["error"] is None
    assert result["duration_ms"] >= 0
    got = fake.received[0]
    sample = got.verify(webhook["secret"])
    assert got.path == "/hook"
    assert sample["trigger"] == "calendar.state_change"
    assert sample["data"]["test"] is True
    assert sample["idempotency_key"] == got.id == result["idempotency_key"]
    assert await stored(sessions) == []


async def test_a_test_reports_a_failure(api, receiver) -> None:
    fake, url = receiver
    webhook = await create(api, url=url, is_active=False)
    fake.script.append(Response(500, b"oops"))
    result = (await api.post(f"/api/v1/webhooks/{webhook['id']}/test")).json()
    assert (result["status"], result["status_code"], result["response"]) == ("failed", 500, "oops")
    assert result["error"].startswith("status: ")


async def test_no_transaction_is_open_while_a_test_waits_for_the_endpoint(api, sessions, receiver) -> None:
    fake, url = receiver
    webhook = await create(api, url=url)
    fake.response = Response(delay=0.3)
    sending = asyncio.create_task(api.post(f"/api/v1/webhooks/{webhook['id']}/test"))
    await fake.wait_for(1)
    open_ones = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND state <> 'idle'"
    )
    async with sessions() as session:
        assert await session.scalar(open_ones) == 0
    assert (await sending).json()["status"] == "success"


async def test_a_secret_that_cannot_be_decrypted_is_reported_and_fixed_by_rotating(
    api, sessions, receiver
) -> None:
    fake, url = receiver
    webhook, other = await create(api, url=url), await create(api, url=url)
    async with transaction(sessions) as session:
        foreign = await session.scalar(
            select(WebhookSubscription.secrets_sealed).where(WebhookSubscription.id == other["id"])
        )
        await session.execute(
            update(WebhookSubscription)
            .where(WebhookSubscription.id == webhook["id"])
            .values(secrets_sealed=foreign)
        )
    path = f"/api/v1/webhooks/{webhook['id']}"
    response = await api.post(f"{path}/test")
    assert response.status_code == 400
    assert "rotate_secret" in response.json()["non_field_errors"][0]
    secret = (await api.post(f"{path}/rotate_secret")).json()["secret"]
    assert (await api.post(f"{path}/test")).json()["status"] == "success"
    fake.received[0].verify(secret)


async def test_tests_are_held_to_a_rate_by_project(api, other_api, receiver, monkeypatch) -> None:
    monkeypatch.setattr(samples, "_PER_MINUTE", RateLimitItemPerMinute(3))
    fake, url = receiver
    path = f"/api/v1/webhooks/{(await create(api, url=url))['id']}/test"
    responses = [await api.post(path) for _ in range(5)]
    assert [response.status_code for response in responses] == [200, 200, 200, 429, 429]
    assert responses[-1].headers["retry-after"] == "60"
    assert "a minute" in responses[-1].json()["error"]
    assert len(fake.received) == 3
    theirs = f"/api/v1/webhooks/{(await create(other_api, url=url))['id']}/test"
    assert (await other_api.post(theirs)).status_code == 200


@pytest.mark.settings(redis_url="unix:///nonexistent/redis.sock")
async def test_few_tests_are_under_way_at_once_also_without_redis(api, other_api, receiver) -> None:
    fake, url = receiver
    fake.response = Response(delay=0.5)
    path = f"/api/v1/webhooks/{(await create(api, url=url))['id']}/test"
    theirs = f"/api/v1/webhooks/{(await create(other_api, url=url))['id']}/test"
    responses = await asyncio.gather(*(api.post(path) for _ in range(8)), other_api.post(theirs))
    assert Counter(response.status_code for response in responses) == {200: 5, 429: 4}
    assert responses[-1].status_code == 200
    assert fake.most_at_once["/"] <= 5
    assert (
        int(next(response for response in responses if response.status_code == 429).headers["retry-after"])
        > 0
    )
    assert (await api.post(path)).status_code == 200


async def test_tests_share_one_tls_context(api, receiver, monkeypatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(ssl, "create_default_context", lambda *args, **options: made.append(args))
    webhook = await create(api, url=receiver[1])
    for _ in range(3):
        assert (await api.post(f"/api/v1/webhooks/{webhook['id']}/test")).json()["status"] == "success"
    assert made == []
