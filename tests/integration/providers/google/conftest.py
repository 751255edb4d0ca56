"""The Google provider, connected to the fake over HTTP."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog

from app.core.http import operator_client
from app.providers.google import sync as google_sync
from tests.fakes.google import FakeGoogle
from tests.fakes.server import serve
from tests.integration.providers.google.calendar import NOW, Tokens, World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    fake = FakeGoogle()
    fake.now = lambda: NOW
    async with serve(fake) as url, operator_client(timeout=5.0) as client:
        yield World(fake, url, client, Tokens(client, url, fake))


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the provider logs, however other tests have configured and cached the loggers."""
    capture = structlog.testing.LogCapture()
    monkeypatch.setattr(google_sync, "log", structlog.wrap_logger(None, processors=[capture]))
    return capture.entries
