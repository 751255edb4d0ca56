"""A feed whose requests a test may hold back."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from starlette.responses import Response

from tests.fakes.server import serve

_EMPTY = b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nEND:VCALENDAR\r\n"


@pytest.fixture
async def feed():
    """A feed whose requests the test may hold back: (url, requests, gate)."""
    requests: list[str] = []
    gate = asyncio.Event()
    gate.set()

    async def app(scope, receive, send):
        requests.append(scope["path"])
        await gate.wait()
        await Response(_EMPTY, media_type="text/calendar")(scope, receive, send)

    async with AsyncExitStack() as stack:
        stack.callback(gate.set)
        yield await stack.enter_async_context(serve(app)), requests, gate
