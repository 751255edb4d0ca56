"""The worker as arq's own command runs it: `arq workers.main.WorkerSettings`."""

import asyncio
import signal

from sqlalchemy import text

from tests.conftest import FERNET_KEY
from tests.flows.cli.test_process_metrics import running
from tests.flows.workers.arq_command import COMMAND, RARE_TICKS, connect, run_to_its_end, until


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
    done = run_to_its_end(
        tmp_path, without={"REDIS_URL", "DATABASE_URL"}, CREDENTIALS_ENCRYPTION_KEYS=FERNET_KEY
    )
    assert done.returncode != 0
    assert "REDIS_URL" in done.stderr


def test_an_error_at_the_start_is_the_last_line(clean_environment, tmp_path, settings):
    done = run_to_its_end(
        tmp_path,
        without={"CREDENTIALS_ENCRYPTION_KEYS"},
        DATABASE_URL=settings.required_database_url(),
        REDIS_URL=settings.required_redis_url(),
    )
    assert done.returncode != 0
    assert "CREDENTIALS_ENCRYPTION_KEYS" in done.stderr.splitlines()[-1], done.stderr
