"""`ordering: "fifo"` with worker processes that are killed at any step."""

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import func, select, text

from app.core.db import Sessions, transaction
from app.models import WebhookDelivery
from app.settings import Settings
from app.webhooks.event_messages import EventMessage, announce_events
from app.webhooks.payloads import CalendarFacts
from tests.conftest import FERNET_KEY, TestProject
from tests.fakes.receiver import Receiver, Response
from tests.fakes.server import serve

CALENDARS = [CalendarFacts(f"cal_{number:016}", None, None) for number in range(4)]
PATHS = ("/one", "/two")
ROUNDS = 2
MESSAGES = 12  # of each calendar in each round
WORKERS = 2

_END_LEASES = text("UPDATE webhook_deliveries SET next_attempt_at = created_at WHERE lease_token IS NOT NULL")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with serve(receiver) as receiver.url:
        yield receiver


async def start_worker(settings: Settings) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "app.cli.main", "worker"),
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": settings.required_database_url(),
            "REDIS_URL": settings.required_redis_url(),
            "CREDENTIALS_ENCRYPTION_KEYS": FERNET_KEY,
            "ALLOW_PRIVATE_NETWORK_TARGETS": "true",
            "SCHEDULER_TICK_SECONDS": "0.05",
            "WEBHOOK_RETRY_SCHEDULE_SECONDS": ",".join(["0.05"] * 100),
            "LOG_LEVEL": "ERROR",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    )


async def kill(workers: list[asyncio.subprocess.Process]) -> None:
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            worker.send_signal(signal.SIGKILL)
    await asyncio.gather(*(worker.wait() for worker in workers))


async def pending(sessions: Sessions) -> int:
    async with sessions() as session:
        return await session.scalar(select(func.count()).where(WebhookDelivery.status == "pending")) or 0


@pytest.mark.long
async def test_a_calendars_messages_arrive_in_order_whenever_workers_are_killed(
    settings: Settings, sessions: Sessions, project: TestProject, api: Any, receiver: Receiver
) -> None:
    chance = random.Random(7)
    for path in PATHS:
        body = {"url": receiver.url + path, "triggers": ["event.created"], "ordering": "fifo"}
        assert (await api.post("/api/v1/webhooks", json=body)).status_code == 201
    responses = [Response(), Response(), Response(500), Response(delay=0.2)]
    receiver.script.extend(chance.choice(responses) for _ in range(400))

    async def write(first: int) -> None:
        for number in range(first, first + MESSAGES, 2):
            for calendar in chance.sample(CALENDARS, len(CALENDARS)):
                messages = [
                    EventMessage("event.created", calendar, "evt_x", {"number": one, "changed_fields": {}})
                    for one in (number, number + 1)
                ]
                async with transaction(sessions) as session:
                    await announce_events(session, project_id=project.id, messages=messages)
            await asyncio.sleep(0.02)

    workers: list[asyncio.subprocess.Process] = []
    try:
        for number in range(ROUNDS):
            workers = [await start_worker(settings) for _ in range(WORKERS)]
            writing = asyncio.create_task(write(number * MESSAGES))
            # They are killed in the middle of it.
            await receiver.wait_for(len(receiver.received) + chance.randrange(10, 30), seconds=40)
            await asyncio.sleep(chance.random() * 0.1)
            await kill(workers)
            await writing
            async with transaction(sessions) as session:
                await session.execute(_END_LEASES)
        assert await pending(sessions)
        workers = [await start_worker(settings) for _ in range(WORKERS)]
        async with asyncio.timeout(60):
            while await pending(sessions):
                await asyncio.sleep(0.1)
    finally:
        await kill(workers)
    for path in PATHS:
        for calendar in CALENDARS:
            got = [
                received.json["data"]["number"]
                for received in receiver.received
                if (received.path, received.json["calendar_id"]) == (path, calendar.id)
            ]
            assert list(dict.fromkeys(got)) == list(range(ROUNDS * MESSAGES))
            assert got == sorted(got)
