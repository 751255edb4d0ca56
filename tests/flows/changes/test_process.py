"""Clients that wait, and a process that ends (docs/adr/0008-waiting-for-changes.md)."""

import asyncio
import time

import pytest

from app.core.http import httpx
from tests import factories
from tests.flows.changes.processes import ApiProcess
from tests.integration.changes.following import URL, Ref, streaming


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_process_that_is_told_to_end_ends_what_waits(workers, settings, sessions, project):
    ref = Ref(await factories.add_calendar(sessions, settings, project.id, secrets={}), project.id)
    server = ApiProcess(settings, workers=workers)
    await server.start()
    headers = {"Authorization": f"Token {project.api_key}"}
    try:
        async with (
            httpx.AsyncClient(base_url=server.url, headers=headers, timeout=40) as http,
            streaming(server.url, project.api_key) as first,
            streaming(server.url, project.api_key, calendar_id=ref.calendar_id) as second,
        ):
            waiting = asyncio.create_task(http.get(URL, params={"wait": 30}))
            await asyncio.sleep(0.5)
            assert server.process is not None
            started = time.monotonic()
            server.process.terminate()
            async with asyncio.timeout(6):
                response = await waiting
                await first.is_over.wait()
                await second.is_over.wait()
                await server.process.wait()
            # Without a word to those who wait, the server would wait for them for 7 s.
            assert time.monotonic() - started < 5
            assert (response.status_code, response.json()["results"]) == (200, [])
            # Ended, and not cut off.
            assert (first.error, second.error) == (None, None)
    finally:
        await server.kill()
