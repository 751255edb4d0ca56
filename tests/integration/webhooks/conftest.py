"""A receiver of webhooks, with endpoints whose deliveries a test sends itself."""

from collections.abc import AsyncIterator

import pytest

from app.core.db import Sessions
from app.settings import Settings
from tests.conftest import TestProject
from tests.fakes.receiver import Receiver
from tests.fakes.server import serve
from tests.integration.webhooks.deliveries import Webhooks


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[Receiver, str]]:
    receiver = Receiver()
    async with serve(receiver) as url:
        yield receiver, url


@pytest.fixture
async def webhooks(settings: Settings, sessions: Sessions, project: TestProject) -> AsyncIterator[Webhooks]:
    receiver = Receiver()
    async with serve(receiver) as url:
        yield Webhooks(settings, sessions, project.id, receiver, url)
