"""Syncs of a Google calendar, compared with a script that only fetches, parses and COPYs the events."""

import asyncio
import multiprocessing
from typing import Any

import asyncpg
import orjson
from sqlalchemy import text

from app.core.db import Sessions, create_engine, create_sessions, transaction
from app.core.http import httpx
from app.core.ids import new_id
from app.settings import Settings
from app.sync.engine import SyncEngine
from bench.support import (
    Provider,
    google_process,
    measured,
    microsoft_process,
    resident_mb,
    servers,
    settings_for,
)
from tests import factories

_EVENTS = 5_000
_MANY = 50_000
_IDLE_SYNCS = 50
_FULL_SYNCS = 5
_WINDOW = {"singleEvents": "true", "showDeleted": "true", "maxResults": "2500"}


async def _bare(google: Provider, database_url: str, calendar: str) -> None:
    """Fetch, parse and COPY the events, which every sync has to do."""
    async with httpx.AsyncClient() as client:  # deliberately without the layers of the application
        form = {
            "client_id": google.client_id,
            "client_secret": google.client_secret,
            "refresh_token": google.refresh_token,
            "grant_type": "refresh_token",
        }
        token = (await client.post(f"{google.url}/token", data=form)).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        connection = await asyncpg.connect(database_url)
        params = dict(_WINDOW)
        async with connection.transaction():
            await connection.execute(
                "CREATE TABLE bare (id text PRIMARY KEY, start_time text, name text, raw json)"
            )
            while True:
                response = await client.get(
                    f"{google.url}/calendar/v3/calendars/{calendar}/events", params=params, timeout=60
                )
                page = orjson.loads(response.content)
                await connection.copy_records_to_table(
                    "bare",
                    records=[
                        (e["id"], e["start"]["dateTime"], e["summary"], orjson.dumps(e).decode())
                        for e in page["items"]
                    ],
                )
                if "nextPageToken" not in page:
                    break
                params["pageToken"] = page["nextPageToken"]
        await connection.execute("DROP TABLE bare")
        await connection.close()


async def _add_calendar(
    sessions: Any, settings: Settings, provider: Provider, calendar: str | None, platform: str = "google"
) -> str:
    project_id = new_id("proj")
    async with transaction(sessions) as session:
        await session.execute(
            text("INSERT INTO projects (id, name) VALUES (:id, 'bench')"), {"id": project_id}
        )
    return await factories.add_calendar(
        sessions,
        settings,
        project_id,
        platform=platform,
        platform_uuid=calendar,
        client_id=provider.client_id,
        secrets={"client_secret": provider.client_secret, "refresh_token": provider.refresh_token},
    )


async def _main(database_url: str, redis_url: str) -> None:
    async with google_process({"c1": _EVENTS, "c2": _EVENTS, "many": _MANY}) as google:
        settings = settings_for(
            database_url,
            redis_url,
            google_api_base_url=google.url,
            google_oauth_token_url=f"{google.url}/token",
        )
        engine = create_engine(database_url)
        sessions = create_sessions(engine)
        async with factories.sync_engine(settings, sessions) as syncs:
            # Warm up imports, connections and the servers' caches for both.
            await _bare(google, database_url, "c1")
            await factories.sync_now(syncs, sessions, await _add_calendar(sessions, settings, google, "c1"))
            bare_runs, sync_runs = [], []
            for _ in range(3):
                with measured() as bare:
                    await _bare(google, database_url, "c2")
                calendar_id = await _add_calendar(sessions, settings, google, "c2")
                with measured() as cold:
                    await factories.sync_now(syncs, sessions, calendar_id)
                bare_runs.append(bare)
                sync_runs.append(cold)
            assert len(await factories.load_events(sessions, calendar_id)) == _EVENTS
            bare = min(bare_runs, key=lambda run: run.wall)
            cold = min(sync_runs, key=lambda run: run.wall)
            print(f"bare script, {_EVENTS} events: {bare.wall:.2f} s wall, {bare.cpu:.2f} s CPU")
            print(f"cold sync,   {_EVENTS} events: {cold.wall:.2f} s wall, {cold.cpu:.2f} s CPU")
            print(f"ratios: wall {cold.wall / bare.wall:.2f}, CPU {cold.cpu / bare.cpu:.2f} (target: 3)")

            await _measure_idle("Google", syncs, sessions, calendar_id)
            await _measure_full(syncs, sessions, calendar_id)
        await _measure_microsoft(settings, sessions)
        await engine.dispose()
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            added, peak = pool.apply(_measure_memory, (google, settings_values(settings)))
        print(
            f"a calendar of {_MANY} events adds {peak:.0f} MB at its peak, {added:.0f} MB after (target: 150)"
        )


async def _measure_idle(name: str, syncs: SyncEngine, sessions: Sessions, calendar_id: str) -> None:
    with measured() as idle:
        for _ in range(_IDLE_SYNCS):
            await factories.sync_now(syncs, sessions, calendar_id)
    print(
        f"{name}, a sync without changes: {idle.wall / _IDLE_SYNCS * 1000:.1f} ms wall, "
        f"{idle.cpu / _IDLE_SYNCS * 1000:.1f} ms CPU, {_IDLE_SYNCS / idle.cpu:.0f} per worker CPU second"
    )


async def _measure_full(syncs: SyncEngine, sessions: Sessions, calendar_id: str) -> None:
    runs = []
    for _ in range(_FULL_SYNCS):
        async with transaction(sessions) as session:
            statement = text("UPDATE calendars SET sync_cursor = NULL WHERE id = :id")
            await session.execute(statement, {"id": calendar_id})
        with measured() as full:
            await factories.sync_now(syncs, sessions, calendar_id)
        runs.append(full)
    print(
        f"a full round without changes, {_EVENTS} events: {min(run.wall for run in runs):.2f} s wall, "
        f"{min(run.cpu for run in runs):.2f} s CPU"
    )


async def _measure_microsoft(settings: Settings, sessions: Sessions) -> None:
    async with microsoft_process(1000) as microsoft:
        values = {
            "microsoft_graph_base_url": f"{microsoft.url}/v1.0",
            "microsoft_oauth_token_url": f"{microsoft.url}/common/oauth2/v2.0/token",
        }
        settings = settings.model_copy(update=values)
        async with factories.sync_engine(settings, sessions) as syncs:
            calendar_id = await _add_calendar(sessions, settings, microsoft, None, "microsoft")
            await factories.sync_now(syncs, sessions, calendar_id)
            await _measure_idle("Graph", syncs, sessions, calendar_id)


def settings_values(settings: Settings) -> dict[str, Any]:
    return {
        "database_url": settings.required_database_url(),
        "redis_url": settings.required_redis_url(),
        "google_api_base_url": settings.google_api_base_url,
        "google_oauth_token_url": settings.google_oauth_token_url,
    }


def _measure_memory(google: Provider, values: dict[str, Any]) -> tuple[float, float]:
    """Return the MB that a sync of the large calendar adds in a new process, afterwards and at its peak."""

    async def main() -> tuple[float, float]:
        settings = settings_for(**values)
        engine = create_engine(settings.required_database_url())
        sessions = create_sessions(engine)
        peak = 0.0

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, resident_mb())
                await asyncio.sleep(0.01)

        async with factories.sync_engine(settings, sessions) as syncs:
            small = await _add_calendar(sessions, settings, google, "c1")
            await factories.sync_now(syncs, sessions, small)
            calendar_id = await _add_calendar(sessions, settings, google, "many")
            before = resident_mb()
            watching = asyncio.create_task(watch())
            await factories.sync_now(syncs, sessions, calendar_id)
            watching.cancel()
            after = resident_mb()
        await engine.dispose()
        return after - before, peak - before

    return asyncio.run(main())


def main() -> None:
    with servers() as (database_url, redis_url):
        asyncio.run(_main(database_url, redis_url))


if __name__ == "__main__":
    main()
