"""The cost of clients that wait for changes, and the time from a commit to such a client.

1,000 streams, then 1,000 requests with `wait`, at one API process: its processor time while nothing changes, its
database connections, its memory, and how long after a commit the changed event is at each of a sample of clients.
"""

import asyncio
import contextlib
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import orjson
import psutil
from sqlalchemy import select, text

from app.core.db import Sessions, create_engine, create_sessions, transaction
from app.core.http import httpx
from app.core.ids import new_id
from app.core.wakeups import WakeUps, connect_redis
from app.events.data import RemoteEvent, Unannounced, Window
from app.events.writer import apply_changes
from app.models import Calendar
from app.projects.service import create_project
from app.settings import Settings
from bench.support import quantile, servers, settings_for

_CLIENTS = 1_000
_IDLE_SECONDS = 13.0
_COMMITS = 30
# 1,000 requests at once would measure how long they queue.
_BETWEEN_REQUESTS_SECONDS = 0.01
_NOW = datetime.now(UTC)


class _Ref:
    def __init__(self, calendar_id: str, project_id: str) -> None:
        self.calendar_id = calendar_id
        self.project_id = project_id


@contextlib.asynccontextmanager
async def _api(settings: Settings) -> AsyncIterator[tuple[str, int]]:
    """Run `calbridge api`. Yields the port and the process id."""
    assert settings.credentials_encryption_keys is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "DATABASE_URL": settings.required_database_url(),
        "REDIS_URL": settings.required_redis_url(),
        "CREDENTIALS_ENCRYPTION_KEYS": settings.credentials_encryption_keys.get_secret_value(),
        "LOG_LEVEL": "WARNING",
    }
    command = [sys.executable, "-m", "app.cli.main", "api", "--port", str(port)]
    process = subprocess.Popen(command, env=environment)
    try:
        async with httpx.AsyncClient() as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    await http.get(f"http://127.0.0.1:{port}/healthz")
                    break
                await asyncio.sleep(0.05)
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait()


class _Client:
    """A raw connection, which costs this process little. `arrived` has the time of each part that came."""

    def __init__(self, address: str, api_key: str) -> None:
        self._address = address
        self._api_key = api_key
        self._received = asyncio.Event()
        self.arrived = 0.0

    async def open(self, path: str) -> None:
        host, port = self._address.split(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        await self.ask(path)

    async def ask(self, path: str) -> None:
        self._path = path
        request = f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Token {self._api_key}\r\n\r\n"
        self._writer.write(request.encode())
        await self._writer.drain()

    async def next_change(self) -> bytes:
        """Read until a change has come completely."""
        received = b""
        while b'"has_more":' not in received and not (
            b'"event":{' in received and received.endswith(b"\n\n\r\n")
        ):
            part = await self._reader.read(65_536)
            if not part:
                raise ConnectionError(f"the server closed the connection after {received[:300]!r}")
            received += part
            if b'"results":[],' in received and b'"has_more":' in received:
                received = b""
                await self.ask(self._path)  # the wait was over
        self.arrived = time.perf_counter()
        return received

    async def head(self) -> None:
        """Read the head of a stream, with its first block."""
        await self._reader.readuntil(b"id: ")
        await self._reader.readuntil(b"\n\n")

    def close(self) -> None:
        self._writer.close()


async def _write(sessions: Sessions, ref: _Ref, number: int) -> float:
    """Write one event of 3 kB; returns the time after its commit."""
    raw = orjson.dumps({"summary": f"event {number}", "description": "x" * 3_000}).decode()
    event = RemoteEvent(
        platform_uuid=f"e{number}", name=f"event {number}", start_time=_NOW, end_time=_NOW, raw=raw
    )
    async with transaction(sessions) as session:
        await session.execute(select(Calendar.id).where(Calendar.id == ref.calendar_id).with_for_update())
        await apply_changes(
            session,
            ref,
            [event],
            window=Window(_NOW - timedelta(days=1), _NOW + timedelta(days=28)),
            removed={},
            earlier=Unannounced(),
            is_announced_now=True,
            bot_platforms=(),
        )
    return time.perf_counter()


async def _idle(process_id: int, sessions: Sessions) -> str:
    """Return the processor time of the API while nothing changes, in percent of a core, and its connections."""
    process = psutil.Process(process_id)

    def cpu() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    before, started = cpu(), time.perf_counter()
    connections = []
    while time.perf_counter() - started < _IDLE_SECONDS:
        await asyncio.sleep(0.5)
        async with sessions() as session:
            query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'calbridge' AND state <> 'idle' AND pid <> pg_backend_pid()"
            connections.append(await session.scalar(text(query)) or 0)
    share = (cpu() - before) / (time.perf_counter() - started) * 100
    memory = process.memory_info().rss / 1e6
    return f"{share:.2f} % of a core, {statistics.mean(connections):.2f} connections in use, {memory:.0f} MB"


async def _latency(
    clients: list[_Client],
    reading: list[asyncio.Task[bytes]],
    write: Callable[[int], Awaitable[float]],
    again: Callable[[_Client, bytes], Awaitable[None]],
    *,
    commits: int,
    pause: float,
) -> str:
    delays: list[float] = []
    lasts: list[float] = []
    for number in range(commits):
        await asyncio.sleep(pause)
        committed = await write(number)
        received = await asyncio.gather(*reading)
        # This process reads all connections one after the other, so its own time is in these numbers.
        found = [(client.arrived - committed) * 1000 for client in clients]
        delays += found
        lasts.append(max(found))
        for client, part in zip(clients, received, strict=True):
            await again(client, part)
        reading = [asyncio.create_task(client.next_change()) for client in clients]
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    return (
        f"p50 {quantile(delays, 0.5):.0f} ms, p95 {quantile(delays, 0.95):.0f} ms, "
        f"the last client: median {statistics.median(lasts):.0f} ms"
    )


async def _measure(database_url: str, redis_url: str) -> None:
    settings = settings_for(database_url, redis_url)
    engine = create_engine(database_url)
    wakeups = WakeUps(connect_redis(redis_url))
    sessions = create_sessions(engine, after_commit=wakeups.send_requested)
    async with transaction(sessions) as session:
        key = await create_project(session, "bench")
    ref = _Ref(new_id("cal"), key.project_id)
    async with transaction(sessions) as session:
        session.add(Calendar(id=ref.calendar_id, project_id=key.project_id, platform="google"))
    numbers = iter(range(1_000_000))

    def write(_: int) -> Awaitable[float]:
        return _write(sessions, ref, next(numbers))

    async def stay(_client: _Client, _received: bytes) -> None:
        return

    async with _api(settings) as (address, process_id):
        print(f"an API process without clients: {await _idle(process_id, sessions)}")
        for count in (_CLIENTS, 1):
            clients = [_Client(address, key.api_key) for _ in range(count)]
            for client in clients:
                await client.open("/api/v1/changes/stream")
                await client.head()
            reading = [asyncio.create_task(client.next_change()) for client in clients]
            if count > 1:
                print(f"{count} streams, nothing changes: {await _idle(process_id, sessions)}")
            found = await _latency(clients, reading, write, stay, commits=_COMMITS, pause=0.3)
            print(f"{count} streams, from a commit to the client: {found}")
            for client in clients:
                client.close()
        async with httpx.AsyncClient(headers={"Authorization": f"Token {key.api_key}"}) as http:
            body = (await http.get(f"http://{address}/api/v1/changes")).json()
        path = f"/api/v1/changes?wait=30&cursor={body['next_cursor']}"

        async def ask_again(client: _Client, received: bytes) -> None:
            cursor = received.rpartition(b'"next_cursor":"')[2].partition(b'"')[0].decode()
            await client.ask(f"/api/v1/changes?wait=30&cursor={cursor}")
            await asyncio.sleep(_BETWEEN_REQUESTS_SECONDS)

        for count in (_CLIENTS, 1):
            clients = [_Client(address, key.api_key) for _ in range(count)]
            reading = []
            for client in clients:
                await client.open(path)
                reading.append(asyncio.create_task(client.next_change()))
                await asyncio.sleep(_BETWEEN_REQUESTS_SECONDS)
            if count > 1:
                await asyncio.sleep(4)  # they are all waiting
                print(f"{count} requests that wait, nothing changes: {await _idle(process_id, sessions)}")
            found = await _latency(clients, reading, write, ask_again, commits=5, pause=1)
            print(f"{count} requests that wait, from a commit to the client: {found}")
            for client in clients:
                client.close()
            async with httpx.AsyncClient(headers={"Authorization": f"Token {key.api_key}"}) as http:
                body = (await http.get(f"http://{address}/api/v1/changes")).json()
            path = f"/api/v1/changes?wait=30&cursor={body['next_cursor']}"
    await wakeups.aclose()
    await engine.dispose()


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8_192)), hard))
    with servers() as (database_url, redis_url):
        asyncio.run(_measure(database_url, redis_url))
