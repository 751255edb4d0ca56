"""First syncs with a window of 28 and of 730 days: how long they take, and the memory that a worker needs."""

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import psutil
from sqlalchemy import text
from starlette.responses import Response

from app.core.db import create_engine, create_sessions, transaction
from app.core.ids import new_id
from app.settings import Settings
from bench.support import Provider, google_process, microsoft_process, resident_mb, servers, settings_for
from bench.sync import settings_values
from tests import factories
from tests.fakes.server import serve

_EVENTS = 40_000
_DAYS = 730
_SERIES = _EVENTS // _DAYS

Platform = Literal["google", "microsoft", "ics"]


def _feed() -> bytes:
    """A feed of daily series, with as many instances as the other calendars have events."""
    start = datetime.now(UTC) - timedelta(days=400)
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:bench"]
    for number in range(_SERIES):
        lines += [
            "BEGIN:VEVENT",
            f"UID:series-{number}",
            f"DTSTART;TZID=Europe/Paris:{start:%Y%m%d}T{number % 24:02d}0000",
            "DURATION:PT30M",
            "RRULE:FREQ=DAILY",
            f"SUMMARY:Series {number}",
            "DESCRIPTION:" + "words " * 500,
            "END:VEVENT",
        ]
    return "\r\n".join([*lines, "END:VCALENDAR", ""]).encode()


@asynccontextmanager
async def _feed_server() -> AsyncIterator[Provider]:
    body = _feed()

    async def serve_feed(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await Response(body, media_type="text/calendar")(scope, receive, send)

    async with serve(serve_feed) as url:
        yield Provider(url, "", "", "")


def _run(platform: Platform, provider: Provider, days: int, values: dict[str, Any]) -> str:
    return asyncio.run(_first_sync(platform, provider, days, settings_for(**values)))


async def _first_sync(platform: Platform, provider: Provider, days: int, settings: Settings) -> str:
    """Sync a calendar for the first time in this new process, and return what that took."""
    engine = create_engine(settings.required_database_url())
    sessions = create_sessions(engine)
    peak = peak_of_reader = 0.0

    async def watch() -> None:
        nonlocal peak, peak_of_reader
        while True:
            peak = max(peak, resident_mb())
            for child in psutil.Process().children():
                peak_of_reader = max(peak_of_reader, child.memory_info().rss / 1e6)
            await asyncio.sleep(0.02)

    project_id = new_id("proj")
    async with transaction(sessions) as session:
        await session.execute(
            text("INSERT INTO projects (id, name) VALUES (:id, 'bench')"), {"id": project_id}
        )
    secrets = {"client_secret": provider.client_secret, "refresh_token": provider.refresh_token}
    if platform == "ics":
        secrets = {"feed_url": f"{provider.url}/feed.ics"}
    async with factories.sync_engine(settings, sessions) as syncs:
        calendar_id = await factories.add_calendar(
            sessions,
            settings,
            project_id,
            platform=platform,
            platform_uuid="many" if platform == "google" else None,
            client_id=provider.client_id or None,
            secrets=secrets,
            window_past_days=1,
            window_future_days=days,
        )
        before = resident_mb()
        watching = asyncio.create_task(watch())
        started = time.perf_counter()
        await factories.sync_now(syncs, sessions, calendar_id)
        took = time.perf_counter() - started
        watching.cancel()
    async with transaction(sessions) as session:
        count = await session.scalar(
            text("SELECT count(*) FROM calendar_events WHERE calendar_id = :id"), {"id": calendar_id}
        )
    await engine.dispose()
    reader = f", and {peak_of_reader:.0f} MB in the process that reads it" if peak_of_reader else ""
    return f"{count} events in {took:.1f} s; the worker's memory rises from {before:.0f} by {peak - before:.0f} MB{reader}"


async def _main(database_url: str, redis_url: str) -> None:
    context = multiprocessing.get_context("spawn")

    async def measure(platform: Platform, provider: Provider, **addresses: str) -> None:
        values = settings_values(settings_for(database_url, redis_url))
        for days in (28, _DAYS):
            with context.Pool(1) as pool:
                arguments = (platform, provider, days, {**values, **addresses})
                found = await asyncio.to_thread(pool.apply, _run, arguments)
            print(f"{platform}, {days} days ahead: {found}", flush=True)

    async with google_process({"many": _EVENTS}, days=_DAYS) as google:
        await measure(
            "google",
            google,
            google_api_base_url=google.url,
            google_oauth_token_url=f"{google.url}/token",
        )
    async with microsoft_process(_EVENTS, days=_DAYS) as microsoft:
        await measure(
            "microsoft",
            microsoft,
            microsoft_graph_base_url=f"{microsoft.url}/v1.0",
            microsoft_oauth_token_url=f"{microsoft.url}/common/oauth2/v2.0/token",
        )
    async with _feed_server() as feed:
        await measure("ics", feed)


def main() -> None:
    with servers() as (database_url, redis_url):
        asyncio.run(_main(database_url, redis_url))


if __name__ == "__main__":
    main()
