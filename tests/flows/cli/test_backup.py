"""A dump and its restore, as docs/operations.md says: nothing that matters is anywhere but in the database and the key."""

import os
import subprocess

import pytest
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import func, update

from app.cli.devserver.embedded import postgres_binaries
from app.core.db import create_engine, create_sessions, transaction
from app.core.http import httpx
from app.main import create_app
from app.models import Calendar
from tests.fakes.receiver import Receiver
from tests.fakes.server import serve


@pytest.fixture
def restored_database_url(postgres_server):
    def run(program: str, *arguments: str, given: bytes | None = None) -> bytes:
        command = [postgres_binaries() / program, "-h", postgres_server, "-U", "calbridge", *arguments]
        environment = {"PATH": os.environ["PATH"]}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, input=given)
        return done.stdout

    def copy() -> str:
        dump = run("pg_dump", "-Fc", "test")
        run("createdb", "restored")
        run("pg_restore", "-d", "restored", "--no-owner", "--exit-on-error", given=dump)
        return f"postgresql://calbridge@/restored?host={postgres_server}"

    yield copy
    run("dropdb", "--force", "--if-exists", "restored")


async def test_after_a_restore_with_an_empty_redis_everything_goes_on(
    google, google_settings, project, redis_url, restored_database_url, start_worker
) -> None:
    headers = {"Authorization": f"Token {project.api_key}"}
    receiver = Receiver()
    async with serve(receiver) as receiver.url:
        async with (
            serve(create_app(google_settings)) as url,
            httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as api,
        ):
            body = {"url": f"{receiver.url}/hook", "triggers": ["calendar.events_update"]}
            webhook = (await api.post("/api/v1/webhooks", json=body)).json()
            google.add("before the dump")
            await google.sync()  # no worker runs: the delivery stays pending
            before = (await api.get("/api/v1/calendar_events")).json()["results"]
            assert len(before) == 1

        google_settings.database_url = SecretStr(restored_database_url())
        google.add("after the dump")
        with Redis.from_url(redis_url) as redis:
            redis.flushall()
        engine = create_engine(google_settings.required_database_url())
        try:
            sessions = create_sessions(engine)
            async with (
                serve(create_app(google_settings)) as url,
                httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as api,
            ):
                assert (await api.get("/readyz")).json()["checks"]["migrations"] == "ok"
                assert (await api.get("/api/v1/calendar_events")).json()["results"] == before
                await start_worker()
                (first,) = await receiver.wait_for(1)
                assert first.verify(webhook["secret"])["data"]["changes"]["created"] == 1

                # The credentials open, and the provider's cursor still holds: only the change comes.
                async with transaction(sessions) as session:
                    due = {"next_sync_at": func.clock_timestamp()}
                    await session.execute(update(Calendar).where(Calendar.id == google.id).values(**due))
                _, second = await receiver.wait_for(2)
                data = second.verify(webhook["secret"])["data"]
                assert data["changes"] == {"created": 1, "updated": 0, "deleted": 0}
                after = (await api.get("/api/v1/calendar_events")).json()["results"]
                assert {event["name"] for event in after} == {"before the dump", "after the dump"}
                assert before[0] in after
        finally:
            await engine.dispose()
