"""An outage of Google with 1,000 calendars of 20 projects: the requests, and the recovery.

It uses one worker process with the default settings. The outage of one hour is compressed to 90 seconds: the times of the
breaker, of all calendars and of their access tokens are moved back repeatedly.
"""

import asyncio
import time
from collections import Counter
from datetime import timedelta

from sqlalchemy import text

from app.core.clock import utcnow
from app.core.db import Sessions, create_engine, create_sessions, transaction
from app.core.ids import new_id
from app.settings import Settings
from bench.support import servers, settings_for, worker
from tests import factories
from tests.fakes.google import FakeGoogle
from tests.fakes.server import serve

_CALENDARS = 1_000
_PROJECTS = 20
_OUTAGE_SECONDS = 90
_SPEED = 40.0  # an hour in 90 seconds
_TARGET_SECONDS = 60.0
_GIVE_UP_AFTER_SECONDS = 300.0

_PASS = (
    """
    UPDATE calendars SET next_sync_at = next_sync_at - make_interval(secs => :seconds)
    WHERE id IN (SELECT id FROM calendars WHERE lease_until IS NULL OR lease_until < now() FOR UPDATE SKIP LOCKED)
    """,
    """
    UPDATE credentials SET access_token_expires_at = access_token_expires_at - make_interval(secs => :seconds)
    """,
    """
    UPDATE sync_breakers SET opened_at = opened_at - make_interval(secs => :seconds),
        outage_since = outage_since - make_interval(secs => :seconds)
    """,
)
_SYNCED_SINCE = "SELECT count(*) FROM calendars WHERE last_successful_sync_at > :since"


async def _seed(sessions: Sessions, settings: Settings, fake: FakeGoogle) -> None:
    projects = [new_id("proj") for _ in range(_PROJECTS)]
    async with transaction(sessions) as session:
        for project_id in projects:
            await session.execute(
                text("INSERT INTO projects (id, name) VALUES (:id, 'bench')"), {"id": project_id}
            )
    start = utcnow() + timedelta(hours=2)
    for n in range(_CALENDARS):
        name = f"calendar{n}"
        fake.add_calendar(name)
        fake.seed(3, start=start, calendar_id=name)
        await factories.add_calendar(
            sessions,
            settings,
            projects[n % _PROJECTS],
            platform_uuid=name,
            client_id=fake.client_id,
            secrets={"client_secret": fake.client_secret, "refresh_token": fake.refresh_token},
        )


async def _count_synced(sessions: Sessions, since: object) -> int:
    async with transaction(sessions) as session:
        return await session.scalar(text(_SYNCED_SINCE), {"since": since}) or 0


async def _until_all_synced(sessions: Sessions, since: object) -> float:
    started = time.monotonic()
    while await _count_synced(sessions, since) < _CALENDARS:
        if time.monotonic() - started > _GIVE_UP_AFTER_SECONDS:
            raise RuntimeError(f"only {await _count_synced(sessions, since)} calendars were synced")
        await asyncio.sleep(0.25)
    return time.monotonic() - started


async def _main(database_url: str, redis_url: str) -> None:
    fake = FakeGoogle()
    async with serve(fake) as url:
        addresses = {"google_api_base_url": url, "google_oauth_token_url": f"{url}/token"}
        settings = settings_for(database_url, redis_url, **addresses)
        engine = create_engine(database_url)
        sessions = create_sessions(engine)
        await _seed(sessions, settings, fake)
        before = utcnow()
        with worker(settings, **{name.upper(): value for name, value in addresses.items()}):
            print(f"{_CALENDARS} first syncs: {await _until_all_synced(sessions, before):.1f} s")

            fake.inject_fault("*", 503, body=b"<html>Service Unavailable</html>", count=10**9)
            fake.requests.clear()
            per_second: Counter[int] = Counter()
            started = time.monotonic()
            while (elapsed := time.monotonic() - started) < _OUTAGE_SECONDS:
                per_second[int(elapsed)] += len(fake.requests)
                fake.requests.clear()
                for statement in _PASS:
                    async with transaction(sessions) as session:
                        await session.execute(text(statement), {"seconds": _SPEED * 0.5})
                await asyncio.sleep(0.5)
            opening = sum(per_second[second] for second in range(10))
            steady = [per_second[second] for second in range(10, _OUTAGE_SECONDS)]
            print(
                f"requests during the outage: {opening} in its first 10 s; then "
                f"{sum(steady) / len(steady):.1f} a second on average, {max(steady)} at the most"
            )
            fake.clear_faults()
            took = await _until_all_synced(sessions, utcnow())
            print(
                f"all {_CALENDARS} synced again {took:.1f} s after the outage (target: {_TARGET_SECONDS:.0f})"
            )
        async with transaction(sessions) as session:
            lost = await session.scalar(text("SELECT count(*) FROM calendars WHERE state <> 'connected'"))
        print(f"disconnected: {lost}")
        await engine.dispose()


def main() -> None:
    with servers() as (database_url, redis_url):
        asyncio.run(_main(database_url, redis_url))


if __name__ == "__main__":
    main()
