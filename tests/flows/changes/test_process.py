"""Clients that wait, and a process that ends (docs/adr/0008-waiting-for-changes.md)."""

import asyncio

import pytest

from app.core.http import httpx
from tests import factories
from tests.flows.changes.processes import ApiProcess
from tests.integration.changes.following import URL, Ref, streaming


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_process_that_gets_sigterm_ends_what_waits(workers, settings, sessions, project):
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
            waiting = asyncio.create_task(http.get(URL, params={"since": "9999-01-01T00:00:00Z", "wait": 30}))
            await asyncio.sleep(0.5)
            assert server.process is not None
            server.process.terminate()
            async with asyncio.timeout(40):
                response = await waiting
                await first.is_over.wait()
                await second.is_over.wait()
                await server.process.wait()
            # The server waits 7 s for open responses, and then cuts them off without an end.
            assert (response.status_code, response.json()["results"]) == (200, [])
            assert (first.error, second.error) == (None, None)
    finally:
        await server.kill()
