"""Clients that follow changes in every way see each one once, while writers commit in any order.

See docs/reference/http-api.md, "Changes".
"""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select

from app.core.clock import isoformat
from app.core.db import Sessions, create_sessions, transaction
from app.core.http import httpx
from app.core.wakeups import WakeUps, connect_redis
from app.models import CalendarEvent
from tests import factories
from tests.conftest import TestProject
from tests.fakes.server import serve
from tests.flows.changes.processes import ApiProcess
from tests.integration.changes.following import URL, Ref, event, messages, write_in

_CALENDARS = 6
_EVENTS = 12


class Killed(Exception):
    """A writer died before its commit."""


class Client:
    """A client that stores its cursor with what it applied, and knows what it received."""

    def __init__(self, name: str, url: str, project: TestProject, calendar_id: str | None = None) -> None:
        self.name = name
        self.url = url
        self.scope = {} if calendar_id is None else {"calendar_id": calendar_id}
        self.calendar_id = calendar_id
        self.headers = {"Authorization": f"Token {project.api_key}"}
        self.cursor: str | None = None
        self.received: list[tuple[str, str]] = []
        self.state: dict[str, tuple[str, bool]] = {}
        self.types: dict[str, list[str]] = {}
        self.breaks = 0

    def apply(self, result: dict[str, Any]) -> None:
        found = result["event"]
        assert self.calendar_id in (None, result["calendar_id"])
        self.received.append((found["updated_at"], found["id"]))
        self.state[found["id"]] = (found["updated_at"], found["is_deleted"])
        self.types.setdefault(found["id"], []).append(result["type"])

    def check(self, expected: dict[str, tuple[str, bool]]) -> None:
        assert len(set(self.received)) == len(self.received), f"{self.name} received one twice"
        assert self.received == sorted(self.received), f"{self.name} received them out of order"
        assert self.state == expected, self.name
        for types in self.types.values():
            # Only what was deleted comes again, and that is an update.
            assert "event.created" not in types[1:], (self.name, types)


async def follow_pages(client: Client, wait: float, choose: random.Random) -> None:
    async with httpx.AsyncClient(base_url=client.url, headers=client.headers, timeout=40) as http:
        while True:
            query: dict[str, str | int | float] = {
                "wait": wait,
                "limit": choose.choice([1, 3, 100]),
                **client.scope,
            }
            if client.cursor is not None:
                query["cursor"] = client.cursor
            try:
                response = await http.get(URL, params=query)
            except httpx.TransportError:
                client.breaks += 1
                await asyncio.sleep(0.05)
                continue
            body = response.raise_for_status().json()
            for result in body["results"]:
                client.apply(result)
            client.cursor = body["next_cursor"]
            if not wait:
                await asyncio.sleep(choose.random() / 20)


async def follow_stream(client: Client, choose: random.Random) -> None:
    """Follow the stream, and break it off after some time, again and again."""
    async with httpx.AsyncClient(base_url=client.url, headers=client.headers, timeout=40) as http:
        while True:
            headers = {"Last-Event-ID": client.cursor} if client.cursor is not None else {}
            with contextlib.suppress(httpx.TransportError, TimeoutError):
                async with (
                    asyncio.timeout(choose.uniform(0.1, 1.5)),
                    http.stream("GET", f"{URL}/stream", params=client.scope, headers=headers) as response,
                ):
                    assert response.status_code == 200
                    async for message in messages(response):
                        if message.data:
                            client.apply(message.result)
                        if message.id:
                            client.cursor = message.id
            client.breaks += 1
            await asyncio.sleep(choose.random() / 20)


async def write_at_random(sessions: Sessions, ref: Ref, seed: int, rounds: int) -> None:
    choose = random.Random(seed)
    live: set[str] = set()
    for number in range(rounds):
        names = choose.sample([f"e{n}" for n in range(_EVENTS)], choose.choice([1, 1, 2, _EVENTS]))
        removed = [name for name in names if name in live and choose.random() < 0.3]
        kept = [name for name in names if name not in removed]
        events = [event(name, f"{name} round {number}") for name in kept]
        with contextlib.suppress(Killed):
            async with transaction(sessions) as session:
                await write_in(session, sessions, ref, events, removed)
                await asyncio.sleep(choose.choice([0, 0, 0.01, 0.1]))
                if choose.random() < 0.1:
                    raise Killed
            live = (live | set(kept)) - set(removed)
        await asyncio.sleep(choose.random() / 20)


async def stored(sessions: Sessions, calendar_id: str | None) -> dict[str, tuple[str, bool]]:
    async with sessions() as session:
        rows = await session.scalars(select(CalendarEvent))
        return {
            row.id: (isoformat(row.updated_at), row.is_deleted)
            for row in rows
            if calendar_id in (None, row.calendar_id)
        }


@contextlib.asynccontextmanager
async def notified_after_commit(engine: Any, redis_url: str) -> AsyncIterator[Sessions]:
    wakeups = WakeUps(connect_redis(redis_url))
    yield create_sessions(engine, after_commit=wakeups.send_requested)
    await wakeups.aclose()


async def run(
    clients: list[Client],
    sessions: Sessions,
    refs: list[Ref],
    *,
    rounds: int,
    disturb: Callable[[asyncio.Event], Awaitable[None]],
) -> None:
    """Let all follow while all write; then wait until each has seen what is stored."""
    following = []
    for number, client in enumerate(clients):
        choose = random.Random(number)
        if client.name.startswith("stream"):
            following.append(follow_stream(client, choose))
        else:
            following.append(follow_pages(client, 20 if client.name.startswith("wait") else 0, choose))
    tasks = [asyncio.create_task(one) for one in following]
    try:
        async with asyncio.timeout(20):
            while any(client.cursor is None for client in clients if not client.name.startswith("wait")):
                await asyncio.sleep(0.01)
                assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
        written = asyncio.Event()
        disturbing = asyncio.ensure_future(disturb(written))
        await asyncio.gather(*(write_at_random(sessions, ref, n, rounds) for n, ref in enumerate(refs)))
        written.set()
        await disturbing
        expected = {client.calendar_id: await stored(sessions, client.calendar_id) for client in clients}
        assert len(expected[None]) > _CALENDARS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                while any(client.state != expected[client.calendar_id] for client in clients):
                    assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
                    await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # what comes too much would come now
        for client in clients:
            client.check(expected[client.calendar_id])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def refs(sessions, settings, project) -> list[Ref]:
    return [
        Ref(await factories.add_calendar(sessions, settings, project.id, secrets={}), project.id)
        for _ in range(_CALENDARS)
    ]


def all_kinds(url: str, project: TestProject, refs: list[Ref]) -> list[Client]:
    one = refs[0].calendar_id
    return [
        Client("poll", url, project),
        Client("poll one", url, project, one),
        *(Client(f"wait {n}", url, project) for n in range(3)),
        Client("wait one", url, project, one),
        *(Client(f"stream {n}", url, project) for n in range(3)),
        Client("stream one", url, project, one),
    ]


async def begin(clients: list[Client]) -> None:
    """Give those that wait a cursor: before it, a broken connection means to begin again."""
    for client in clients:
        if client.name.startswith("wait"):
            async with httpx.AsyncClient(base_url=client.url, headers=client.headers) as http:
                body = (await http.get(URL, params=client.scope)).raise_for_status().json()
            client.cursor = body["next_cursor"]


async def test_each_change_comes_once_though_redis_fails(settings, engine, redis_url, app, refs, project):
    async def disturb(written: asyncio.Event) -> None:
        """Empty Redis and cut the connections to it."""
        async with Redis.from_url(redis_url) as redis:
            while not written.is_set():
                await asyncio.sleep(0.3)
                await redis.flushall()
                await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    async with serve(app, lifespan="off") as url, notified_after_commit(engine, redis_url) as sessions:
        clients = all_kinds(url, project, refs)
        await begin(clients)
        await run(clients, sessions, refs, rounds=40, disturb=disturb)
        assert all(client.breaks for client in clients if client.name.startswith("stream"))


@pytest.mark.long
async def test_each_change_comes_once_though_servers_are_killed(settings, engine, redis_url, refs, project):
    servers = [ApiProcess(settings, workers=2), ApiProcess(settings, workers=1)]
    await asyncio.gather(*(server.start() for server in servers))

    async def disturb(written: asyncio.Event) -> None:
        for number, server in enumerate(itertools.cycle(servers)):
            await asyncio.sleep(0.5)
            if written.is_set() and number >= len(servers):
                return
            await server.kill()
            await server.start()

    try:
        async with notified_after_commit(engine, redis_url) as sessions:
            clients = [*all_kinds(servers[0].url, project, refs), *all_kinds(servers[1].url, project, refs)]
            await begin(clients)
            await run(clients, sessions, refs, rounds=40, disturb=disturb)
            assert all(client.breaks for client in clients if client.name.startswith(("stream", "wait")))
    finally:
        for server in servers:
            await server.kill()
