"""arq's own command, `arq workers.main.WorkerSettings`, as the tests of this folder run it."""

import asyncio
import os
import subprocess
import sys
import time

import pytest
from sqlalchemy import text

COMMAND = ("-m", "arq", "workers.main.WorkerSettings")
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


async def connect(api, url):
    created = await api.post("/api/v1/calendars", json={"platform": "ics", "feed_url": f"{url}/feed.ics"})
    assert created.status_code == 201, created.text


def run_to_its_end(folder, *, without=(), **environment):
    """Run arq's command until it ends by itself, without these variables of the environment and with others."""
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return subprocess.run(
        [sys.executable, *COMMAND],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
    )
