"""A fake Google with a calendar connected to it, and a sync engine."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from app.core.clock import utcnow
from app.core.db import Sessions
from app.models import Calendar, CalendarEvent
from app.settings import Settings
from app.sync.engine import SyncEngine
from tests import factories
from tests.conftest import TestProject
from tests.fakes.google import FakeGoogle
from tests.fakes.server import serve


@dataclass
class GoogleCalendarUnderTest:
    fake: FakeGoogle
    settings: Settings
    sessions: Sessions
    engine: SyncEngine
    project_id: str
    id: str

    async def sync(self) -> None:
        await factories.sync_now(self.engine, self.sessions, self.id)

    async def disconnect(self) -> None:
        """End the grant by a response of the token endpoint; with the same credentials it would work again."""
        self.fake.expire_access_tokens()
        self.fake.inject_fault("token", 400, "invalid_grant")
        await self.sync()

    async def row(self) -> Calendar:
        return await factories.load_calendar(self.sessions, self.id)

    async def events(self) -> dict[str, CalendarEvent]:
        return await factories.load_events(self.sessions, self.id)

    async def names(self) -> list[str]:
        return await factories.live_names(self.sessions, self.id)

    def add(self, name: str, *, in_hours: float = 24, **fields: Any) -> str:
        start = utcnow().replace(microsecond=0) + timedelta(hours=in_hours)
        return self.fake.add_event(start=start, end=start + timedelta(hours=1), summary=name, **fields)

    def move(self, event_id: str, *, in_hours: float) -> None:
        start = utcnow().replace(microsecond=0) + timedelta(hours=in_hours)
        self.fake.move(event_id, start=start, end=start + timedelta(hours=1))


@pytest.fixture
async def fake_google() -> AsyncIterator[tuple[FakeGoogle, str]]:
    fake = FakeGoogle()
    async with serve(fake) as url:
        yield fake, url


@pytest.fixture
def google_settings(settings: Settings, fake_google: tuple[FakeGoogle, str]) -> Settings:
    """The test's settings with the fake's addresses, for engines, workers and the application alike."""
    _, url = fake_google
    settings.google_api_base_url = url
    settings.google_oauth_token_url = f"{url}/token"
    settings.google_userinfo_url = f"{url}/oauth2/v2/userinfo"
    settings.google_oauth_authorize_url = f"{url}/o/oauth2/v2/auth"
    return settings


@pytest.fixture
async def google(
    google_settings: Settings,
    fake_google: tuple[FakeGoogle, str],
    sessions: Sessions,
    project: TestProject,
) -> AsyncIterator[GoogleCalendarUnderTest]:
    fake, _ = fake_google
    calendar_id = await factories.add_calendar(
        sessions,
        google_settings,
        project.id,
        client_id=fake.client_id,
        secrets={"client_secret": fake.client_secret, "refresh_token": fake.refresh_token},
    )
    async with factories.sync_engine(google_settings, sessions) as engine:
        yield GoogleCalendarUnderTest(fake, google_settings, sessions, engine, project.id, calendar_id)
