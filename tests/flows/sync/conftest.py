"""A calendar at each provider, for tests that hold for all of them."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from app.core.db import Sessions
from app.core.http import httpx
from app.settings import Settings
from app.sync import engine as sync_engine
from tests import factories
from tests.conftest import TestProject
from tests.fakes.microsoft import FakeMicrosoft
from tests.fakes.server import serve
from tests.flows.conftest import GoogleCalendarUnderTest
from tests.flows.sync.stories import Feed, Story, google_story, microsoft_story


@pytest.fixture(params=["google", "microsoft", "feed"])
def story(request: pytest.FixtureRequest) -> Story:
    story: Story = request.getfixturevalue(f"{request.param}_calendar")
    return story


@pytest.fixture
async def google_calendar(
    google: GoogleCalendarUnderTest, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> Story:
    monkeypatch.setattr(sync_engine, "_FULL_ROUND_AGAIN_AFTER", timedelta(0))
    return google_story(google, api)


@pytest.fixture
async def fake_microsoft(settings: Settings) -> AsyncIterator[FakeMicrosoft]:
    fake = FakeMicrosoft()
    async with serve(fake) as url:
        settings.microsoft_graph_base_url = f"{url}/v1.0"
        settings.microsoft_oauth_token_url = f"{url}/common/oauth2/v2.0/token"
        yield fake


@pytest.fixture
async def microsoft_calendar(
    fake_microsoft: FakeMicrosoft,
    settings: Settings,
    sessions: Sessions,
    project: TestProject,
    api: httpx.AsyncClient,
) -> AsyncIterator[Story]:
    fake = fake_microsoft
    calendar_id = await factories.add_calendar(
        sessions,
        settings,
        project.id,
        platform="microsoft",
        client_id=fake.client_id,
        secrets={"client_secret": fake.client_secret, "refresh_token": fake.refresh_token},
    )
    async with factories.sync_engine(settings, sessions) as engine:
        yield microsoft_story(fake, sessions, engine, calendar_id, api)


@pytest.fixture
async def feed_calendar(
    settings: Settings, sessions: Sessions, project: TestProject, api: httpx.AsyncClient
) -> AsyncIterator[Story]:
    feed = Feed()
    async with serve(feed) as url, factories.sync_engine(settings, sessions) as engine:
        calendar_id = await factories.add_calendar(
            sessions, settings, project.id, platform="ics", secrets={"feed_url": f"{url}/secret.ics"}
        )
        yield Story(
            sessions,
            engine,
            calendar_id,
            api,
            add=feed.add,
            move=feed.move,
            delete=feed.delete,
            add_series=feed.add_series,
            change_rule=feed.change_rule,
            instance=feed.instance,
            forget=lambda: None,
        )
