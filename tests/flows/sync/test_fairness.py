"""A worker between a project whose feeds hang, or cost much, and everybody else's calendars."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import Response

from app.core.db import Sessions, transaction
from app.settings import Settings
from tests import factories
from tests.conftest import StartWorker, TestProject
from tests.fakes.server import serve
from tests.flows.conftest import GoogleCalendarUnderTest
from tests.integration.providers.test_feed_readers import ENDLESS, SMALL, calendar

HANGING = 64


class HangingHost:
    """Accepts every connection and never responds."""

    def __init__(self) -> None:
        self.open = 0
        self.accepted = 0
        self.url = ""
        self.ends = asyncio.Event()

    async def hold(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.accepted += 1
        await self.ends.wait()
        self.open -= 1
        writer.close()


@pytest.fixture
async def hanging() -> AsyncIterator[HangingHost]:
    host = HangingHost()
    server = await asyncio.start_server(host.hold, "127.0.0.1", 0)
    host.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield host
    host.ends.set()
    server.close()


@contextlib.asynccontextmanager
async def feed_host(body_of: Callable[[Request], bytes]) -> AsyncIterator[str]:
    async def respond(scope, receive, send) -> None:
        await Response(body_of(Request(scope, receive)))(scope, receive, send)

    async with serve(respond) as url:
        # A host of its own: the hanging one is 127.0.0.1.
        yield url.replace("127.0.0.1", "localhost")


async def until(condition: Callable[[], Awaitable[bool]], *, within: float = 40) -> None:
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.05)


async def add_feed(sessions: Sessions, settings: Settings, project: TestProject, url: str) -> str:
    return await factories.add_calendar(
        sessions, settings, project.id, platform="ics", secrets={"feed_url": url}
    )


async def hold_with(
    sessions: Sessions, settings: Settings, project: TestProject, url: str, count: int
) -> list[str]:
    """Feeds that are due for long."""
    ids = [await add_feed(sessions, settings, project, f"{url}/{number}.ics") for number in range(count)]
    async with transaction(sessions) as session:
        await session.execute(
            text("UPDATE calendars SET next_sync_at = now() - interval '1 hour' WHERE id = ANY(:ids)"),
            {"ids": ids},
        )
    return ids


async def has_synced(sessions: Sessions, calendar_id: str) -> bool:
    return (await factories.load_calendar(sessions, calendar_id)).last_successful_sync_at is not None


async def test_hanging_feeds_of_a_project_hold_up_neither_accounts_nor_feeds_of_others(
    google: GoogleCalendarUnderTest,
    sessions: Sessions,
    settings: Settings,
    other_project: TestProject,
    hanging: HangingHost,
    start_worker: StartWorker,
) -> None:
    async with transaction(sessions) as session:
        await session.execute(text("UPDATE calendars SET next_sync_at = now() + interval '1 hour'"))
    held = await hold_with(sessions, settings, other_project, hanging.url, HANGING)
    await start_worker()
    await until(lambda: _is(hanging.open >= 8))

    google.add("new")
    async with feed_host(lambda _: SMALL) as url:
        feed_id = await add_feed(sessions, settings, TestProject(google.project_id, ""), f"{url}/feed.ics")
        async with transaction(sessions) as session:
            await session.execute(
                text("UPDATE calendars SET next_sync_at = now() WHERE id = :id"), {"id": google.id}
            )
        await until(lambda: has_synced(sessions, google.id))
        await until(lambda: has_synced(sessions, feed_id))
    # They hang to this moment: no sync waited for one of them to end.
    assert hanging.open == hanging.accepted
    assert hanging.open <= 12
    assert [await has_synced(sessions, one) for one in held[:3]] == [False] * 3
    hanging.ends.set()


async def _is(value: bool) -> bool:
    return value


async def test_feeds_that_cost_much_do_not_hold_up_those_of_others(
    sessions: Sessions,
    settings: Settings,
    project: TestProject,
    other_project: TestProject,
    start_worker: StartWorker,
) -> None:
    def body_of(request: Request) -> bytes:
        name = request.url.path.strip("/").partition(".")[0]
        return SMALL if name == "small" else calendar(ENDLESS, name=f"heavy{name}")

    async with feed_host(body_of) as url:
        heavy = await hold_with(sessions, settings, other_project, url, 5)
        await start_worker()

        async def is_refused(calendar_id: str) -> bool:
            return (
                await factories.load_calendar(sessions, calendar_id)
            ).sync_failure_code == "feed_too_complex"

        async def refused() -> int:
            return sum([await is_refused(one) for one in heavy])

        async def some_are_refused() -> bool:
            return await refused() >= 1

        await until(some_are_refused)
        small = await add_feed(sessions, settings, project, f"{url}/small.ics")
        await until(lambda: has_synced(sessions, small))
        assert await refused() < 5, "it did not wait for all of them"
        (event,) = (await factories.load_events(sessions, small)).values()
        assert event.name == "x"


@pytest.mark.settings(sync_concurrency=4)
async def test_asking_again_and_again_for_failing_feeds_does_not_take_the_slots_of_others(
    api, sessions: Sessions, settings: Settings, project: TestProject, other_project: TestProject, worker
) -> None:
    requests = 0

    def fail(request: Request) -> bytes:
        nonlocal requests
        if "small" in request.url.path:
            return SMALL
        requests += 1
        return b"no calendar"

    async with feed_host(fail) as url:
        failing = await hold_with(sessions, settings, project, url, 3)

        async def all_failed() -> bool:
            rows = [await factories.load_calendar(sessions, one) for one in failing]
            return all(row.sync_failure_count for row in rows)

        await until(all_failed)
        before = requests
        for _ in range(20):
            for one in failing:
                assert (await api.post(f"/api/v1/calendars/{one}/sync")).status_code == 202
        small = await add_feed(sessions, settings, other_project, f"{url}/small.ics")
        await until(lambda: has_synced(sessions, small))
        rows = [await factories.load_calendar(sessions, one) for one in failing]
        assert requests - before <= 2 * len(failing), "60 asks"
        assert all(row.sync_failure_count <= 3 for row in rows)
