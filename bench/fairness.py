"""Fairness: the time until a new calendar or feed has its events, while another project's feeds hang.

It uses a real PostgreSQL and Redis and one worker process with the default settings. The hanging feeds are overdue. Their
host accepts connections and never responds, so that each takes a slot for the 60 s of its deadline.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from sqlalchemy import text

from app.core.db import Sessions, create_engine, create_sessions, transaction
from app.core.ids import new_id
from app.settings import Settings
from bench.support import Provider, google_process, servers, settings_for, worker
from tests import factories

_HANGING = (0, 64, 480)
_SLOTS = 16
_DEADLINE_SECONDS = 60
_FEED = (
    b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nBEGIN:VEVENT\r\nUID:1\r\nDTSTART:%s\r\nDURATION:PT1H\r\nEND:VEVENT\r\n"
    b"END:VCALENDAR\r\n"
)


async def _add_project(sessions: Sessions) -> str:
    project_id = new_id("proj")
    async with transaction(sessions) as session:
        await session.execute(
            text("INSERT INTO projects (id, name) VALUES (:id, 'bench')"), {"id": project_id}
        )
    return project_id


async def _until_synced(sessions: Sessions, calendar_id: str) -> None:
    async with asyncio.timeout(_DEADLINE_SECONDS * 10):
        while (await factories.load_calendar(sessions, calendar_id)).last_successful_sync_at is None:
            await asyncio.sleep(0.02)


async def _measure(add: Callable[[], Awaitable[str]], sessions: Sessions) -> float:
    started = time.perf_counter()
    await _until_synced(sessions, await add())
    return time.perf_counter() - started


async def _main(database_url: str, redis_url: str) -> None:
    accepted = 0

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        while await reader.read(65_536):
            pass
        writer.close()

    async def send_feed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = _FEED % time.strftime("%Y%m%dT%H0000Z", time.gmtime(time.time() + 86_400)).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    hanging = await asyncio.start_server(hold, "127.0.0.1", 0)
    healthy = await asyncio.start_server(send_feed, "127.0.0.1", 0)
    hanging_port, healthy_port = (server.sockets[0].getsockname()[1] for server in (hanging, healthy))
    async with google_process({"c1": 100}) as google:
        settings = settings_for(
            database_url,
            redis_url,
            google_api_base_url=google.url,
            google_oauth_token_url=f"{google.url}/token",
        )
        engine = create_engine(database_url)
        sessions = create_sessions(engine)
        alone: tuple[float, float] | None = None
        for count in _HANGING:
            hog, other = await _add_project(sessions), await _add_project(sessions)
            for number in range(count):
                url = f"http://127.0.0.1:{hanging_port}/{number}.ics"
                await factories.add_calendar(
                    sessions, settings, hog, platform="ics", secrets={"feed_url": url}
                )
            accepted = 0
            with worker(
                settings, GOOGLE_API_BASE_URL=google.url, GOOGLE_OAUTH_TOKEN_URL=f"{google.url}/token"
            ):
                await _until_synced(sessions, await _add_google(sessions, settings, other, google))
                while accepted < min(count, 8):
                    await asyncio.sleep(0.05)
                account = await _measure(lambda: _add_google(sessions, settings, other, google), sessions)  # noqa: B023
                feed = await _measure(
                    lambda: factories.add_calendar(
                        sessions,
                        settings,
                        other,  # noqa: B023
                        platform="ics",
                        secrets={"feed_url": f"http://localhost:{healthy_port}/feed.ics"},
                    ),
                    sessions,
                )
            alone = alone or (account, feed)
            fifo = -(-count // _SLOTS) * _DEADLINE_SECONDS
            print(
                f"{count:3} hanging feeds: new Google calendar {account:.2f} s ({account / alone[0]:.1f} x without), "
                f"new feed {feed:.2f} s ({feed / alone[1]:.1f} x); first come, first served: {fifo} s"
            )
            async with transaction(sessions) as session:
                await session.execute(text("DELETE FROM calendars"))
        await engine.dispose()
    hanging.close()
    healthy.close()


async def _add_google(sessions: Sessions, settings: Settings, project_id: str, google: Provider) -> str:
    return await factories.add_calendar(
        sessions,
        settings,
        project_id,
        platform_uuid="c1",
        client_id=google.client_id,
        secrets={"client_secret": google.client_secret, "refresh_token": google.refresh_token},
    )


def main() -> None:
    with servers() as (database_url, redis_url):
        asyncio.run(_main(database_url, redis_url))


if __name__ == "__main__":
    main()
