"""From a change at the provider to the receiver: API, worker, outbox and receiver together."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select, update

from app.core.db import Sessions, transaction
from app.models import WebhookDelivery
from app.settings import Settings
from app.webhooks.outbox import announce
from tests.conftest import FERNET_KEY, StartWorker, TestProject
from tests.fakes.receiver import Receiver, Response
from tests.fakes.server import serve
from tests.flows.conftest import GoogleCalendarUnderTest


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with serve(receiver) as receiver.url:
        yield receiver


async def subscribe(api: Any, receiver: Receiver, *triggers: str, **fields: Any) -> dict[str, Any]:
    response = await api.post(
        "/api/v1/webhooks", json={"url": receiver.url + "/hook", "triggers": list(triggers), **fields}
    )
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def deliveries(api: Any, webhook: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await api.get(f"/api/v1/webhooks/{webhook['id']}/deliveries")).json()[
        "results"
    ]
    return rows


async def until_delivered(api: Any, webhook: dict[str, Any], count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(10):
        while True:
            rows = await deliveries(api, webhook)
            done = [row for row in rows if row["status"] == "success"]
            if len(done) >= count:
                return done
            await asyncio.sleep(0.02)


async def test_a_change_at_the_provider_reaches_the_application_and_leads_it_to_the_event(
    google: GoogleCalendarUnderTest, api, receiver: Receiver, worker
) -> None:
    webhook = await subscribe(api, receiver, "calendar.events_update", include_events=True)
    event = google.add("before")
    await api.post(f"/api/v1/calendars/{google.id}/sync")
    (first,) = await receiver.wait_for(1)
    payload = first.verify(webhook["secret"])
    assert payload["trigger"] == "calendar.events_update"
    assert payload["calendar_id"] == google.id
    assert payload["data"]["state"] == "connected"
    assert payload["data"]["changes"] == {"created": 1, "updated": 0, "deleted": 0}

    google.fake.update_event(event, summary="after")
    await api.post(f"/api/v1/calendars/{google.id}/sync")
    _, second = await receiver.wait_for(2)
    payload = second.verify(webhook["secret"])
    assert payload["data"]["changes"] == {"created": 0, "updated": 1, "deleted": 0}
    (notified,) = payload["data"]["events"]
    assert notified["change"] == "updated"
    assert notified["changed_fields"]["name"] == {"old": "before", "new": "after"}
    response = await api.get(
        "/api/v1/calendar_events",
        params={"calendar_id": google.id, "updated_after": payload["data"]["updated_after"]},
    )
    assert [row["name"] for row in response.json()["results"]] == ["after"]
    assert [row["id"] for row in response.json()["results"]] == [notified["id"]]
    assert len(await until_delivered(api, webhook, 2)) == 2

    await api.post(f"/api/v1/calendars/{google.id}/sync")
    await api.post(f"/api/v1/webhook_deliveries/{(await deliveries(api, webhook))[0]['id']}/redeliver")
    third = (await receiver.wait_for(3))[2]
    assert (third.id, third.body) == (second.id, second.body)


@pytest.mark.settings(webhook_retry_schedule_seconds=(600.0, 600.0))
async def test_an_endpoint_that_was_unavailable_gets_one_message_with_all_changes(
    google: GoogleCalendarUnderTest, api, receiver: Receiver, worker
) -> None:
    webhook = await subscribe(api, receiver, "calendar.events_update")
    receiver.response = Response(503)
    updated_after = None
    for number in range(3):
        google.add(f"event {number}")
        await api.post(f"/api/v1/calendars/{google.id}/sync")
        await receiver.wait_for(number + 1)
        updated_after = updated_after or receiver.received[0].json["data"]["updated_after"]
        async with asyncio.timeout(5):
            while not (await deliveries(api, webhook))[0]["attempts"]:
                await asyncio.sleep(0.02)
    rows = await deliveries(api, webhook)
    assert [row["status"] for row in rows] == ["pending", "failed", "failed"]
    assert rows[2]["merged_into"] == rows[1]["id"]
    assert rows[1]["merged_into"] == rows[0]["id"]

    receiver.response = Response()
    response = await api.post(
        f"/api/v1/webhooks/{webhook['id']}/replay", json={"since": "2020-01-01T00:00:00Z"}
    )
    assert response.json() == {"count": 1}
    last = (await receiver.wait_for(4))[3]
    data = last.verify(webhook["secret"])["data"]
    assert data["changes"] == {"created": 3, "updated": 0, "deleted": 0}
    assert data["updated_after"] == updated_after
    assert (await until_delivered(api, webhook, 1))[0]["id"] == rows[0]["id"]
    assert len(receiver.received) == 4


async def test_a_disconnect_and_a_reconnect_are_announced_once_each(
    google: GoogleCalendarUnderTest, api, receiver: Receiver, worker
) -> None:
    webhook = await subscribe(api, receiver, "calendar.state_change")
    google.fake.revoke_grant(google.fake.refresh_token)
    google.fake.expire_access_tokens()
    await api.post(f"/api/v1/calendars/{google.id}/sync")
    (lost,) = await receiver.wait_for(1)
    data = lost.verify(webhook["secret"])["data"]
    assert data["state"] == "disconnected"
    assert data["connection_failure_data"]["error"]

    fresh = google.fake.add_grant()
    response = await api.patch(f"/api/v1/calendars/{google.id}", json={"refresh_token": fresh})
    assert response.status_code == 200
    _, back = await receiver.wait_for(2)
    assert back.verify(webhook["secret"])["data"]["state"] == "connected"
    assert len(await until_delivered(api, webhook, 2)) == 2
    assert len(receiver.received) == 2


async def notify(sessions: Sessions, project: TestProject) -> None:
    async with transaction(sessions) as session:
        await announce(
            session,
            project_id=project.id,
            trigger="calendar.state_change",
            calendar=None,
            data={"state": "connected"},
        )


async def test_a_worker_that_is_killed_while_sending_loses_nothing(
    *,
    settings: Settings,
    sessions: Sessions,
    project: TestProject,
    api,
    receiver: Receiver,
    start_worker: StartWorker,
) -> None:
    webhook = await subscribe(api, receiver, "calendar.state_change")
    receiver.script.append(Response(delay=30))
    await notify(sessions, project)
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli.main", "worker"],
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": settings.required_database_url(),
            "REDIS_URL": settings.required_redis_url(),
            "CREDENTIALS_ENCRYPTION_KEYS": FERNET_KEY,
            "ALLOW_PRIVATE_NETWORK_TARGETS": "true",
            "SCHEDULER_TICK_SECONDS": "0.05",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        (first,) = await receiver.wait_for(1, seconds=30)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    await start_worker()
    await asyncio.sleep(0.2)
    assert len(receiver.received) == 1  # its lease protects it as long as the worker could be alive
    async with transaction(sessions) as session:
        await session.execute(update(WebhookDelivery).values(next_attempt_at=WebhookDelivery.created_at))
    _, second = await receiver.wait_for(2)
    assert (second.id, second.body) == (first.id, first.body)
    (delivered,) = await until_delivered(api, webhook, 1)
    assert len(delivered["attempts"]) == 1


@pytest.mark.settings(redis_url="unix:///nonexistent/redis.sock")
async def test_without_redis_everything_is_delivered_all_the_same(
    sessions: Sessions, project: TestProject, api, receiver: Receiver, worker
) -> None:
    webhook = await subscribe(api, receiver, "calendar.state_change")
    for _ in range(10):
        await notify(sessions, project)
    assert len(await until_delivered(api, webhook, 10)) == 10
    assert len(set(receiver.ids)) == 10


@pytest.mark.settings(webhook_retry_schedule_seconds=(0.0,) * 50)
async def test_whatever_an_endpoint_does_every_delivery_arrives_with_one_id_and_one_body(
    sessions: Sessions, project: TestProject, api, receiver: Receiver, start_worker: StartWorker
) -> None:
    webhook = await subscribe(api, receiver, "calendar.state_change")
    moods = [
        Response(),
        Response(500),
        Response(),
        Response(delay=0.02),
        Response(302),
        Response(429),
        Response(404),
    ]
    receiver.script.extend(moods * 12)
    for _ in range(2):
        await start_worker()
    for _ in range(30):
        await notify(sessions, project)
    await until_all_done(sessions)
    async with sessions() as session:
        rows = list(await session.scalars(select(WebhookDelivery)))
    assert {row.status for row in rows} == {"success"}
    assert {row.subscription_id for row in rows} == {webhook["id"]}
    stored = {row.idempotency_key: row.body for row in rows}
    assert {got.id: got.body for got in receiver.received} == stored
    assert len(receiver.received) == sum(len(row.attempts) for row in rows) > 30


async def until_all_done(sessions: Sessions) -> None:
    async with asyncio.timeout(60):
        while True:
            async with sessions() as session:
                pending = select(WebhookDelivery.id).where(WebhookDelivery.status == "pending").limit(1)
                if await session.scalar(pending) is None:
                    return
            await asyncio.sleep(0.02)
