"""Push channels of one calendar, and steps that tests of push share."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select, text

from app.core.clock import utcnow
from app.core.crypto import SecretBox
from app.core.db import Sessions, transaction
from app.core.http import httpx, operator_client
from app.credentials.budgets import Budgets
from app.credentials.store import CredentialStore
from app.models import Calendar, PushChannel
from app.push.channels import PushChannelWorker
from app.settings import Settings
from tests import factories
from tests.conftest import TestProject
from tests.fakes.microsoft import FakeMicrosoft
from tests.fakes.microsoft_push import Subscription

SOON = timedelta(seconds=1)
LATER = timedelta(minutes=20)
WEEK = timedelta(days=7)


@contextlib.asynccontextmanager
async def channel_worker(settings: Settings, sessions: Sessions) -> AsyncIterator[PushChannelWorker]:
    """The push worker with the dependencies that a worker process gives it."""
    box = SecretBox(settings.fernet_keys)
    budgets = Budgets(settings.required_redis_url())
    async with operator_client() as client:
        credentials = CredentialStore(settings=settings, sessions=sessions, box=box, client=client)
        yield PushChannelWorker(
            settings=settings,
            sessions=sessions,
            box=box,
            credentials=credentials,
            budgets=budgets,
            client=client,
        )
    await budgets.aclose()


@dataclass
class Push:
    """Channels of the calendar under test, and what a worker does about them."""

    worker: PushChannelWorker
    sessions: Sessions
    calendar_id: str

    async def work(self) -> list[Any]:
        """Do what is due, once; return what was claimed."""
        due = list(await self.worker.claim(100))
        for item in due:
            await self.worker.handle(item)
        return due

    async def make_due(self) -> None:
        """Make all waiting work due now."""
        async with transaction(self.sessions) as session:
            await session.execute(
                text("UPDATE calendars SET push_due_at = now() WHERE push_due_at IS NOT NULL")
            )
            await session.execute(
                text("UPDATE push_channels SET next_attempt_at = now() WHERE state = 'closing'")
            )

    async def channels(self, state: str | None = None) -> list[PushChannel]:
        async with self.sessions() as session:
            rows = await session.scalars(select(PushChannel).order_by(PushChannel.created_at))
            return [row for row in rows if state in {None, row.state}]

    async def calendar(self) -> Calendar:
        async with self.sessions() as session:
            return (
                await session.execute(select(Calendar).where(Calendar.id == self.calendar_id))
            ).scalar_one()

    async def push_due_in(self) -> timedelta:
        due_at = (await self.calendar()).push_due_at
        assert due_at is not None
        return due_at - utcnow()

    async def sync_due_in(self) -> timedelta:
        return (await self.calendar()).next_sync_at - utcnow()


async def until(condition: Callable[[], Awaitable[bool]], *, within: float = 20) -> None:
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.02)


async def subscribe(client: httpx.AsyncClient) -> None:
    webhook = {"url": f"{client.base_url}/healthz", "triggers": ["calendar.events_update"]}
    assert (await client.post("/api/v1/webhooks", json=webhook)).status_code == 201


async def has_sent(sessions: Sessions, *, webhooks: int) -> bool:
    """Test whether exactly this number of webhooks has been sent."""
    async with sessions() as session:
        count = await session.scalar(text("SELECT count(*) FROM webhook_deliveries WHERE attempts <> '[]'"))
        return bool(count == webhooks)


async def has_channels(push: Push) -> bool:
    return bool(await push.channels())


@dataclass
class MicrosoftPushed(Push):
    fake: FakeMicrosoft
    settings: Settings

    async def rest(self) -> None:
        """Schedule the next sync as if the calendar had just been synced."""
        async with transaction(self.sessions) as session:
            await session.execute(text("UPDATE calendars SET next_sync_at = now() + interval '30 minutes'"))

    async def subscription(self) -> Subscription:
        [subscription] = self.fake.subscriptions.values()
        return subscription

    def add(self, subject: str = "new") -> str:
        start = utcnow() + timedelta(hours=2)
        return self.fake.add_event(start=start, end=start + timedelta(hours=1), subject=subject)


async def add_microsoft_calendar(
    fake: FakeMicrosoft, settings: Settings, sessions: Sessions, project: TestProject
) -> str:
    return await factories.add_calendar(
        sessions,
        settings,
        project.id,
        platform="microsoft",
        client_id=fake.client_id,
        secrets={"client_secret": fake.client_secret, "refresh_token": fake.refresh_token},
        push_due_at=utcnow(),
    )
