"""Connections of a worker: syncs that write much leave some to everything else."""

import asyncio

from sqlalchemy import text

from app.core.db import create_engine, create_sessions
from tests import factories
from tests.fakes.google import FakeGoogle
from tests.fakes.server import serve

POOL = 4


async def test_syncs_that_wait_for_the_database_leave_half_of_the_connections(
    settings, sessions, project
) -> None:
    settings.database_pool_size = POOL
    engine = create_engine(settings.required_database_url(), pool_size=POOL)
    fake = FakeGoogle()
    async with serve(fake) as url:
        settings.google_api_base_url = url
        settings.google_oauth_token_url = f"{url}/token"
        for _ in range(2 * POOL):
            await factories.add_calendar(
                sessions,
                settings,
                project.id,
                client_id=fake.client_id,
                secrets={"client_secret": fake.client_secret, "refresh_token": fake.refresh_token},
            )
        async with factories.sync_engine(settings, create_sessions(engine)) as syncs:
            claims = await syncs.claim(100)
            assert len(claims) == 2 * POOL
            async with sessions() as outsider:
                # Every sync can read its calendar, and none can write.
                await outsider.execute(text("SELECT id FROM calendars FOR UPDATE"))
                work = [asyncio.create_task(syncs.handle(claim)) for claim in claims]
                waiting = 0
                async with asyncio.timeout(20):
                    while waiting < POOL // 2:
                        await asyncio.sleep(0.1)
                        waiting = await outsider.scalar(
                            text(
                                "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype IN ('transactionid', 'tuple')"
                            )
                        )
                while fake_is_asked(fake) < 2 * POOL:
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.3)
                assert engine.sync_engine.pool.checkedout() <= POOL // 2  # type: ignore[attr-defined]
                await outsider.rollback()
            await asyncio.gather(*work)
    await engine.dispose()


def fake_is_asked(fake: FakeGoogle) -> int:
    return len(fake.requests_to("events.list"))
