"""Calendars at fake providers that notify the running application."""

from collections.abc import AsyncIterator

import pytest

from app.core.db import Sessions
from app.core.http import httpx, operator_client
from app.main import create_app
from app.settings import Settings
from tests.conftest import TestProject
from tests.fakes.microsoft import FakeMicrosoft
from tests.fakes.server import serve
from tests.flows.conftest import GoogleCalendarUnderTest
from tests.flows.push.channels import LATER, MicrosoftPushed, Push, add_microsoft_calendar, channel_worker


@pytest.fixture
async def application(settings: Settings) -> AsyncIterator[str]:
    """The application, served where the providers can notify it; its URL."""
    async with serve(create_app(settings)) as url:
        settings.app_url = url
        settings.calendar_push_enabled = True
        yield url


@pytest.fixture
async def client(application: str, project: TestProject) -> AsyncIterator[httpx.AsyncClient]:
    async with operator_client() as client:
        client.base_url = httpx.URL(application)
        client.headers["Authorization"] = f"Token {project.api_key}"
        yield client


@pytest.fixture
async def push(application: str, google: GoogleCalendarUnderTest) -> AsyncIterator[Push]:
    google.fake.allow_http_push = True
    async with channel_worker(google.settings, google.sessions) as worker:
        yield Push(worker, google.sessions, google.id)


@pytest.fixture
async def opened(google: GoogleCalendarUnderTest, push: Push) -> Push:
    """A channel that is open and verified, of a calendar that has just been synced."""
    await google.sync()
    await push.work()
    await google.fake.deliver_notifications()
    await google.sync()
    assert await push.sync_due_in() > LATER
    return push


@pytest.fixture
async def microsoft(
    settings: Settings, application: str, sessions: Sessions, project: TestProject
) -> AsyncIterator[MicrosoftPushed]:
    """A connected calendar that is due for its channel."""
    fake = FakeMicrosoft()
    fake.allow_http_push = True
    async with serve(fake) as url, channel_worker(settings, sessions) as worker:
        settings.microsoft_graph_base_url = f"{url}/v1.0"
        settings.microsoft_oauth_token_url = f"{url}/common/oauth2/v2.0/token"
        calendar_id = await add_microsoft_calendar(fake, settings, sessions, project)
        push = MicrosoftPushed(worker, sessions, calendar_id, fake, settings)
        await push.rest()
        yield push
