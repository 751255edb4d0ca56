"""Live reads with fake providers."""

from collections.abc import AsyncIterator

import pytest

from app.core.db import Sessions
from app.settings import Settings
from tests.conftest import TestProject
from tests.fakes.google import FakeGoogle
from tests.fakes.microsoft import FakeMicrosoft
from tests.fakes.server import serve
from tests.integration.availability.live_access import Reads, live_access


@pytest.fixture
async def fake_google(settings: Settings) -> AsyncIterator[FakeGoogle]:
    fake = FakeGoogle()
    async with serve(fake) as url:
        settings.google_api_base_url = url
        settings.google_oauth_token_url = f"{url}/token"
        yield fake


@pytest.fixture
async def fake_microsoft(settings: Settings) -> AsyncIterator[FakeMicrosoft]:
    fake = FakeMicrosoft()
    async with serve(fake) as url:
        settings.microsoft_graph_base_url = f"{url}/v1.0"
        settings.microsoft_oauth_token_url = f"{url}/common/oauth2/v2.0/token"
        yield fake


@pytest.fixture
async def reads(settings: Settings, sessions: Sessions, project: TestProject) -> AsyncIterator[Reads]:
    async with live_access(settings, sessions) as access:
        yield Reads(access, settings, sessions, project)
