"""A calendar whose events the tests write, the application as a server, and clients of it."""

import pytest

from tests import factories
from tests.fakes.server import serve
from tests.integration.changes.following import Ref


@pytest.fixture
async def ref(sessions, settings, project):
    return Ref(await factories.add_calendar(sessions, settings, project.id, secrets={}), project.id)


@pytest.fixture
async def second(sessions, settings, project):
    return Ref(await factories.add_calendar(sessions, settings, project.id, secrets={}), project.id)


@pytest.fixture
async def notifying(app):
    """Sessions whose commits notify the application through Redis, as those of its own requests do."""
    return app.state.calbridge.sessions


@pytest.fixture
async def base_url(app):
    async with serve(app, lifespan="off") as url:
        yield url
