"""The worker as arq's own command runs it: `arq workers.main.WorkerSettings`."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack

import pytest
from sqlalchemy import text
from starlette.responses import Response

from tests.conftest import FERNET_KEY
from tests.fakes.server import serve
from tests.flows.cli.test_process_metrics import running

COMMAND = ("-m", "arq", "workers.main.WorkerSettings")
EMPTY = b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nEND:VCALENDAR\r\n"
# The first tick comes after 54 s: what is faster was woken.
RARE_TICKS = {"SCHEDULER_TICK_SECONDS": "60", "ALLOW_PRIVATE_NETWORK_TARGETS": "true"}


async def until(sessions, condition, log, *, seconds=45):
    """Wait until the SQL condition holds; with the process's log if it never does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        async with sessions() as session:
            if await session.scalar(text(f"SELECT {condition}")):
                return
        await asyncio.sleep(0.05)
    pytest.fail(f"never: {condition}\n{log.read_text()}")


@pytest.fixture
async def feed():
    """A feed whose requests the test may hold back: (url, requests, gate)."""
    requests: list[str] = []
    gate = asyncio.Event()
    gate.set()

    async def app(scope, receive, send):
        requests.append(scope["path"])
        await gate.wait()
        await Response(EMPTY, media_type="text/calendar")(scope, receive, send)

    async with AsyncExitStack() as stack:
        stack.callback(gate.set)
        yield await stack.enter_async_context(serve(app)), requests, gate


async def connect(api, url):
    created = await api.post("/api/v1/calendars", json={"platform": "ics", "feed_url": f"{url}/feed.ics"})
    assert created.status_code == 201, created.text


async def test_it_syncs_when_it_is_woken_and_ends_on_sigterm(settings, tmp_path, api, sessions, feed):
    url, requests, gate = feed
    log = tmp_path / "log"
    with running(*COMMAND, settings=settings, log=log, **RARE_TICKS) as process:
        await until(sessions, "EXISTS (SELECT FROM worker_heartbeats)", log)
        await connect(api, url)
        await until(sessions, "EXISTS (SELECT FROM calendars WHERE last_successful_sync_at IS NOT NULL)", log)
        # A sync that is running when the process is asked to end may finish.
        gate.clear()
        await connect(api, url)
        async with asyncio.timeout(45):
            while len(requests) < 2:
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert process.poll() is None
        gate.set()
        assert await asyncio.to_thread(process.wait, 30) == 0, log.read_text()
    async with sessions() as session:
        synced = await session.scalar(
            text("SELECT count(*) FROM calendars WHERE last_successful_sync_at IS NOT NULL")
        )
        assert synced == 2
        assert not await session.scalar(text("SELECT count(*) FROM calendars WHERE lease_token IS NOT NULL"))


async def test_what_a_killed_one_was_doing_is_done_by_another(settings, tmp_path, api, sessions, feed):
    url, requests, gate = feed
    log = tmp_path / "log"
    gate.clear()
    with running(*COMMAND, settings=settings, log=log, **RARE_TICKS) as process:
        await until(sessions, "EXISTS (SELECT FROM worker_heartbeats)", log)
        await connect(api, url)
        async with asyncio.timeout(45):
            while not requests:
                await asyncio.sleep(0.02)
        process.kill()
        await asyncio.to_thread(process.wait, 30)
    gate.set()
    async with sessions.begin() as session:  # as if the lease's time were over
        await session.execute(text("UPDATE calendars SET lease_until = now(), next_sync_at = now()"))
    with running(*COMMAND, settings=settings, log=log, **RARE_TICKS):
        await until(sessions, "EXISTS (SELECT FROM calendars WHERE last_successful_sync_at IS NOT NULL)", log)


def test_a_missing_setting_is_named_at_the_start(clean_environment, tmp_path):
    done = subprocess.run(
        [sys.executable, *COMMAND],
        env={
            name: value
            for name, value in {**os.environ, "CREDENTIALS_ENCRYPTION_KEYS": FERNET_KEY}.items()
            if name not in {"REDIS_URL", "DATABASE_URL"}
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert "REDIS_URL" in done.stderr


def test_an_error_at_the_start_is_the_last_line(clean_environment, tmp_path, settings):
    done = subprocess.run(
        [sys.executable, *COMMAND],
        env={
            **{name: value for name, value in os.environ.items() if name != "CREDENTIALS_ENCRYPTION_KEYS"},
            "DATABASE_URL": settings.required_database_url(),
            "REDIS_URL": settings.required_redis_url(),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert "CREDENTIALS_ENCRYPTION_KEYS" in done.stderr.splitlines()[-1], done.stderr
