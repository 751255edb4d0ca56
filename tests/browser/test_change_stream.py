"""A browser's EventSource on the stream of changes, behind a server of the application that adds the API key.

EventSource cannot send an Authorization header, and an API key does not belong in a page (docs/changes.md).
"""

import asyncio
import contextlib
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.routing import Route

from app.core.db import create_sessions
from app.core.http import httpx
from app.core.wakeups import WakeUps, connect_redis
from tests import factories
from tests.browser.conftest import NEEDS_CHROMIUM
from tests.fakes.server import serve
from tests.flows.changes.processes import ApiProcess
from tests.integration.changes.following import Ref, write

pytestmark = [pytest.mark.browser, NEEDS_CHROMIUM]

_PAGE = """
<!doctype html><title>changes</title><script>
    const seen = [], errors = [];
    const source = new EventSource("/changes");
    for (const type of ["event.created", "event.updated", "event.deleted"])
        source.addEventListener(type, (message) => {
            const change = JSON.parse(message.data);
            seen.push(`${message.type} ${change.event.name}`);
            if (change.type !== message.type || !message.lastEventId) errors.push("not as documented");
        });
    source.onmessage = () => errors.push("an event without a type");
</script>
"""


class Application:
    """An application's own server: its pages, and the stream with the key added."""

    def __init__(self, upstream: str, api_key: str) -> None:
        self._upstream = upstream
        self._api_key = api_key
        self.last_event_ids: list[str | None] = []
        self.begun = asyncio.Event()
        self.app = Starlette(routes=[Route("/", self._page), Route("/changes", self._changes)])

    async def _page(self, _request: Request) -> HTMLResponse:
        return HTMLResponse(_PAGE)

    async def _changes(self, request: Request) -> StreamingResponse:
        last = request.headers.get("last-event-id")
        self.last_event_ids.append(last)
        headers = {"Authorization": f"Token {self._api_key}", **({"Last-Event-ID": last} if last else {})}

        async def parts() -> Any:
            async with httpx.AsyncClient(timeout=httpx.Timeout(10, read=20)) as client:
                has_begun = False
                while not has_begun:
                    # A browser gives up after any status but 200, so this one waits for the server.
                    with contextlib.suppress(httpx.TransportError):
                        async with client.stream(
                            "GET", f"{self._upstream}/api/v1/changes/stream", headers=headers
                        ) as response:
                            async for part in response.aiter_raw():
                                has_begun = True
                                self.begun.set()
                                yield part
                    await asyncio.sleep(0.1)

        return StreamingResponse(parts(), media_type="text/event-stream")


async def test_an_event_source_goes_on_after_the_server_was_killed(
    browser: Any, settings: Any, engine: Any, redis_url: str, sessions: Any, project: Any
) -> None:
    ref = Ref(await factories.add_calendar(sessions, settings, project.id, secrets={}), project.id)
    wakeups = WakeUps(connect_redis(redis_url))
    notifying = create_sessions(engine, after_commit=wakeups.send_requested)
    server = ApiProcess(settings, workers=1)
    await server.start()
    application = Application(server.url, project.api_key)
    try:
        async with serve(application.app) as url:
            page = await browser.new_page()
            await page.goto(url)
            await page.wait_for_function("source.readyState === EventSource.OPEN")
            await application.begun.wait()
            await asyncio.sleep(0.2)  # the browser has the first part
            # Killed before any change has come: the id that came first is where the browser goes on.
            await server.kill()
            await write(notifying, ref, "a", "b")
            await server.start()
            await page.wait_for_function("seen.length === 2", timeout=30_000)
            await write(notifying, ref, "a=a2", "c")
            await page.wait_for_function("seen.length === 4", timeout=30_000)
            await server.kill()
            await write(notifying, ref, "d", removed=["b"])
            await server.start()
            await page.wait_for_function("seen.length === 6", timeout=30_000)
            await write(notifying, ref, "e")
            await page.wait_for_function("seen.length === 7", timeout=30_000)
            assert await page.evaluate("seen") == [
                "event.created a", "event.created b", "event.updated a2", "event.created c",
                "event.created d", "event.deleted b", "event.created e",
            ]  # fmt: skip
            assert await page.evaluate("errors") == []
            assert application.last_event_ids[0] is None
            assert all(application.last_event_ids[1:])
            await page.close()
    finally:
        await server.kill()
        await wakeups.aclose()
