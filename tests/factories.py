"""Rows and engines for tests that start below the API."""

import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, insert, select, update

from app.core.crypto import SecretBox
from app.core.db import Sessions, transaction
from app.core.http import operator_client, public_client
from app.core.ids import new_id
from app.credentials.budgets import Budgets
from app.credentials.sealed import context_of
from app.credentials.store import CredentialStore
from app.models import Calendar, CalendarEvent, Credentials
from app.outages.breakers import Breakers
from app.settings import Settings
from app.sync import repository
from app.sync.engine import LEASE_FOR, SyncEngine
from app.sync.providers import ProviderFactory


def at(days: float) -> str:
    """So many days from now, on the hour, as the API takes it."""
    return (datetime.now(UTC) + timedelta(days=days)).strftime("%Y-%m-%dT%H:00:00Z")


async def add_calendar(
    sessions: Sessions,
    settings: Settings,
    project_id: str,
    *,
    platform: str = "google",
    platform_uuid: str | None = None,
    client_id: str | None = None,
    secrets: dict[str, str],
    **fields: Any,
) -> str:
    """A connected calendar that is due at once; its id."""
    box = SecretBox(settings.fernet_keys)
    calendar_id, credentials_id = new_id("cal"), new_id("cred")
    async with transaction(sessions) as session:
        await session.execute(
            insert(Credentials).values(
                id=credentials_id,
                project_id=project_id,
                platform=platform,
                client_id=client_id,
                sealed=box.seal(context_of(credentials_id), secrets),
            )
        )
        await session.execute(
            insert(Calendar).values(
                id=calendar_id,
                project_id=project_id,
                platform=platform,
                platform_uuid=platform_uuid,
                credentials_id=credentials_id,
                **fields,
            )
        )
    return calendar_id


@contextlib.asynccontextmanager
async def sync_engine(settings: Settings, sessions: Sessions) -> AsyncIterator[SyncEngine]:
    """An engine as a worker has it, without the worker."""
    box = SecretBox(settings.fernet_keys)
    budgets = Budgets(settings.required_redis_url())
    async with operator_client() as client, public_client(allow_private=True) as feeds:
        credentials = CredentialStore(
            settings=settings, sessions=sessions, box=box, client=client, breakers=Breakers(sessions)
        )
        providers = ProviderFactory(
            settings=settings, credentials=credentials, budgets=budgets, client=client, feeds=feeds
        )
        yield SyncEngine(settings=settings, sessions=sessions, providers=providers)
        await providers.aclose()
    await budgets.aclose()


async def sync_now(engine: SyncEngine, sessions: Sessions, calendar_id: str) -> None:
    """One sync of this calendar, as if it were due."""
    async with transaction(sessions) as session:
        await session.execute(
            update(Calendar)
            .where(Calendar.id == calendar_id)
            .values(next_sync_at=func.clock_timestamp(), sync_forced_before=None)
        )
    async with transaction(sessions) as session:
        claims = await repository.claim_due(session, limit=1000, lease_for=LEASE_FOR)
    for claim in claims:
        await engine.handle(claim)
    assert calendar_id in [claim.calendar_id for claim in claims]


async def load_calendar(sessions: Sessions, calendar_id: str) -> Calendar:
    async with sessions() as session:
        return (await session.execute(select(Calendar).where(Calendar.id == calendar_id))).scalar_one()


async def load_events(sessions: Sessions, calendar_id: str) -> dict[str, CalendarEvent]:
    """All rows, deleted ones too, by platform_uuid."""
    async with sessions() as session:
        rows = await session.scalars(select(CalendarEvent).where(CalendarEvent.calendar_id == calendar_id))
        return {row.platform_uuid: row for row in rows}


async def live_names(sessions: Sessions, calendar_id: str) -> list[str]:
    events = await load_events(sessions, calendar_id)
    return sorted(event.name or "" for event in events.values() if not event.is_deleted)
