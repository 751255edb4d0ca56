"""arq's own command when it has to stop: Redis ends, a setting is missing, or one of its loops ends."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from sqlalchemy import text

from app.cli.devserver.embedded import start_redis
from tests.conftest import FERNET_KEY
from tests.flows.cli.test_process_metrics import running
from tests.flows.workers.arq_command import COMMAND, RARE_TICKS, connect, run_to_its_end


@pytest.fixture
def own_redis():
    """A Redis that the test may end."""
    with tempfile.TemporaryDirectory(prefix="calbridge-test-") as folder:
        Path(folder).chmod(0o711)
        server = start_redis(Path(folder))
        yield server
        server.stop()


async def test_what_is_being_handled_is_finished_when_redis_ends(
    settings,
    tmp_path,
    api,
    sessions,
    feed,
    own_redis,
):
    url, requests, gate = feed
    log = tmp_path / "log"
    gate.clear()
    await connect(api, url)
    with running(*COMMAND, settings=settings, log=log, **RARE_TICKS, REDIS_URL=own_redis.url) as process:
        async with asyncio.timeout(45):
            while not requests:
                await asyncio.sleep(0.02)
        await asyncio.to_thread(own_redis.stop)
        await asyncio.sleep(1)
        gate.set()
        await asyncio.to_thread(process.wait, 40)
    async with sessions() as session:
        synced = text("SELECT last_successful_sync_at IS NOT NULL AND lease_token IS NULL FROM calendars")
        assert await session.scalar(synced), log.read_text()


def test_a_missing_setting_is_the_only_error_of_the_start(redis_url, tmp_path):
    done = run_to_its_end(
        tmp_path,
        without={"DATABASE_URL"},
        CREDENTIALS_ENCRYPTION_KEYS=FERNET_KEY,
        REDIS_URL=redis_url,
    )
    assert done.returncode != 0
    assert "DATABASE_URL" in done.stderr
    assert "KeyError" not in done.stderr


def test_a_loop_that_ends_is_an_error_of_the_process(settings, tmp_path):
    broken = """
import sys
from arq.cli import cli
from workers import liveness

async def end():
    raise ZeroDivisionError

liveness.watch_event_loop = end
sys.argv = ["arq", "workers.main.WorkerSettings"]
cli()
"""
    log = tmp_path / "log"
    with running("-c", broken, settings=settings, log=log, **RARE_TICKS) as process:
        assert process.wait(60) != 0, log.read_text()
    assert "worker_loop_ended" in log.read_text()
