"""The cost of clients that wait for changes, and the time from a commit to such a client.

1,000 streams, then 1,000 requests with `wait`, at one API process: its processor time while nothing changes, its
database connections, its memory, how long after a commit the changed event is at each client, and the processor time
that this takes. The clients are a process of their own: on a machine with few cores it slows the API down.
"""

import asyncio
import contextlib
import multiprocessing
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from select import EPOLLIN, epoll
from typing import Any

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
_IDLE_SECONDS = 30.0
_COMMITS = 30
# The clients of requests have come back by then.
_BETWEEN_COMMITS_SECONDS = 2.0
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


class _Crowd:
    """Clients in a process of their own, whose time is not the server's. Each costs it a call or two for a change."""

    def __init__(self, pipe: Any, port: int, api_key: str, *, is_stream: bool) -> None:
        self._pipe = pipe
        self._address = ("127.0.0.1", port)
        self._head = f" HTTP/1.1\r\nHost: bench\r\nAuthorization: Token {api_key}\r\n\r\n".encode()
        self._is_stream = is_stream
        self._poll = epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._received: dict[int, bytearray] = {}
        self._arrived: list[float] = []
        self._waiting = 0

    def run(self, count: int, cursor: str) -> None:
        for _ in range(count):
            client = socket.create_connection(self._address)
            client.settimeout(0)
            self._sockets[client.fileno()] = client
            self._received[client.fileno()] = bytearray()
            self._poll.register(client, EPOLLIN)
            self._ask(client, cursor)
            if not self._is_stream:
                time.sleep(_BETWEEN_REQUESTS_SECONDS)
            self._read(0)
        while self._is_stream and self._waiting < count:
            self._read(0.1)
        self._pipe.send("ready")
        while not self._pipe.poll():
            self._read(0.5)
            if len(self._arrived) >= count:
                self._pipe.send(self._arrived)
                self._arrived = []

    def _ask(self, client: socket.socket, cursor: str) -> None:
        path = (
            "/api/v1/changes/stream" if self._is_stream else f"/api/v1/changes?wait=30&cursor={cursor}"
        ).encode()
        client.sendall(b"GET " + path + self._head)

    def _read(self, seconds: float) -> None:
        for number, _ in self._poll.poll(seconds):
            client, received = self._sockets[number], self._received[number]
            part = client.recv(65_536)
            if not part:
                raise ConnectionError(f"the server closed the connection after {bytes(received[:300])!r}")
            received += part
            if self._is_stream and received.endswith(b"\n\n\r\n"):
                if b"\ndata: " in received:
                    self._arrived.append(time.monotonic())
                elif b"\nid: " in received:
                    self._waiting += 1
                received.clear()
            elif not self._is_stream and received.endswith((b'"has_more":false}', b'"has_more":true}')):
                if b'"results":[]' not in received:
                    self._arrived.append(time.monotonic())
                cursor = bytes(received).rpartition(b'"next_cursor":"')[2].partition(b'"')[0].decode()
                received.clear()
                self._ask(client, cursor)


def _run_crowd(pipe: Any, port: int, api_key: str, count: int, cursor: str, *, is_stream: bool) -> None:
    _Crowd(pipe, port, api_key, is_stream=is_stream).run(count, cursor)


@contextlib.asynccontextmanager
async def _crowd(
    port: int, api_key: str, count: int, cursor: str, *, is_stream: bool
) -> AsyncIterator[tuple[Any, psutil.Process]]:
    """Run waiting clients. Yields a pipe with the times at which all have a change, and their process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_run_crowd, args=(theirs, port, api_key, count, cursor), kwargs={"is_stream": is_stream}
    )
    process.start()
    theirs.close()  # so that the end of the process ends the pipe
    try:
        assert await asyncio.to_thread(ours.recv) == "ready"
        yield ours, psutil.Process(process.pid)
    finally:
        with contextlib.suppress(OSError):
            ours.send("stop")
        await asyncio.to_thread(process.join, 10)


async def _write(sessions: Sessions, ref: _Ref, number: int) -> float:
    """Write one event of 3 kB; returns the time after its commit, on the clock of all processes."""
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
    return time.monotonic()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _idle(process: psutil.Process, sessions: Sessions) -> str:
    """Return the processor time of the API while nothing changes, in percent of a core, and its connections."""
    before, started = _cpu(process), time.monotonic()
    connections = []
    while time.monotonic() - started < _IDLE_SECONDS:
        await asyncio.sleep(0.5)
        async with sessions() as session:
            query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'calbridge' AND state <> 'idle' AND pid <> pg_backend_pid()"
            connections.append(await session.scalar(text(query)) or 0)
    share = (_cpu(process) - before) / (time.monotonic() - started) * 100
    memory = process.memory_info().rss / 1e6
    return f"{share:.2f} % of a core, {statistics.mean(connections):.2f} connections in use, {memory:.0f} MB"


async def _latency(
    pipe: Any, write: Callable[[], Awaitable[float]], api: psutil.Process, crowd: psutil.Process
) -> str:
    """Return the times from a commit to the clients, and the processor time that a change takes."""
    delays: list[float] = []
    lasts: list[float] = []
    of_api, of_crowd = _cpu(api), _cpu(crowd)
    for _ in range(_COMMITS):
        committed = await write()
        found = [(arrived - committed) * 1000 for arrived in await asyncio.to_thread(pipe.recv)]
        delays += found
        lasts.append(max(found))
        await asyncio.sleep(_BETWEEN_COMMITS_SECONDS)
    of_api, of_crowd = (
        (_cpu(process) - before) / _COMMITS * 1000 for process, before in ((api, of_api), (crowd, of_crowd))
    )
    return (
        f"p50 {quantile(delays, 0.5):.0f} ms, p95 {quantile(delays, 0.95):.0f} ms, "
        f"the last client: median {statistics.median(lasts):.0f} ms; "
        f"processor time for a change: {of_api:.0f} ms of the API, {of_crowd:.0f} ms of the clients"
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

    def write() -> Awaitable[float]:
        return _write(sessions, ref, next(numbers))

    async with (
        _api(settings) as (address, process_id),
        httpx.AsyncClient(headers={"Authorization": f"Token {key.api_key}"}) as http,
    ):
        api = psutil.Process(process_id)
        port = int(address.rpartition(":")[2])
        print(f"an API process without clients: {await _idle(api, sessions)}")
        for kind, is_stream in (("streams", True), ("requests that wait", False)):
            for count in (_CLIENTS, 1):
                cursor = (await http.get(f"http://{address}/api/v1/changes")).json()["next_cursor"]
                async with _crowd(port, key.api_key, count, cursor, is_stream=is_stream) as (pipe, crowd):
                    if count > 1:
                        await asyncio.sleep(4)  # they are all waiting
                        print(f"{count} {kind}, nothing changes: {await _idle(api, sessions)}")
                    found = await _latency(pipe, write, api, crowd)
                    print(f"{count} {kind}, from a commit to the client: {found}", flush=True)
    await wakeups.aclose()
    await engine.dispose()


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8_192)), hard))
    with servers() as (database_url, redis_url):
        asyncio.run(_measure(database_url, redis_url))
