"""Webhooks: deliveries per second, time from commit to POST, and claiming with 500,000 pending deliveries.

A real worker process, a receiver process (plain HTTP/1.1, answers at once), a durable PostgreSQL and a Redis
share the machine with this one.
"""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg

from app.core.crypto import SecretBox
from app.core.db import Sessions, create_engine, create_sessions, transaction
from app.doorbell import Doorbell, connect_redis
from app.webhooks import repository, service
from app.webhooks.delivery import secrets_context
from app.webhooks.events import CalendarFacts
from app.webhooks.signing import new_secret
from bench.support import quantile, servers, settings_for, worker

RECEIVERS = 100
BACKLOG = 2_000
DRAIN_SECONDS = 8.0
COMMITS = 150
PENDING = 500_000
CLAIMS = 200
TARGET_CLAIM_MS = 5.0

_PROJECT_ID = "proj_bench000000000000"
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class _Endpoint(asyncio.Protocol):
    """Keeps each request's `webhook-id` and arrival, on the clock that all processes of the machine share."""

    def __init__(self, arrivals: list[tuple[str, float]]) -> None:
        self._arrivals = arrivals
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            length = int(headers[b"content-length"])
            if len(rest) < length:
                return
            self._arrivals.append((headers[b"webhook-id"].decode(), time.monotonic()))
            self._buffer = rest[length:]
            self._transport.write(_ANSWER)


def _receive(pipe: Any) -> None:
    async def main() -> None:
        arrivals: list[tuple[str, float]] = []
        loop = asyncio.get_running_loop()
        listening = [
            await loop.create_server(lambda: _Endpoint(arrivals), "127.0.0.1", 0) for _ in range(RECEIVERS)
        ]
        pipe.send([server.sockets[0].getsockname()[1] for server in listening])
        while True:
            while not pipe.poll():
                await asyncio.sleep(0.01)
            asked = pipe.recv()
            if asked == "stop":
                return
            pipe.send(len(arrivals) if asked == "count" else arrivals)
            if asked == "take":
                arrivals.clear()

    asyncio.run(main())


class _Receivers:
    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    async def ask(self, question: str) -> Any:
        self._pipe.send(question)
        return await asyncio.to_thread(self._pipe.recv)


@contextlib.asynccontextmanager
async def _receivers() -> AsyncIterator[tuple[_Receivers, list[int]]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_receive, args=(theirs,), daemon=True)
    process.start()
    try:
        yield _Receivers(ours), await asyncio.to_thread(ours.recv)
    finally:
        ours.send("stop")
        await asyncio.to_thread(process.join, 10)


async def _until_it_works(database: asyncpg.Connection) -> None:
    async with asyncio.timeout(30):
        while not await database.fetchval("SELECT count(*) FROM worker_heartbeats"):
            await asyncio.sleep(0.05)


async def _subscribe(database: asyncpg.Connection, box: SecretBox, number: int, port: int) -> str:
    webhook_id = f"webhook_{number:016d}"
    sealed = box.seal(secrets_context(webhook_id), [{"secret": new_secret(), "until": None}])
    await database.execute(
        """
        INSERT INTO webhook_subscriptions (id, project_id, url, triggers, secrets_sealed)
        VALUES ($1, $2, $3, '{calendar.state_change}', $4)
        """,
        webhook_id,
        _PROJECT_ID,
        f"http://127.0.0.1:{port}/webhooks",
        sealed,
    )
    return webhook_id


async def _fill(database: asyncpg.Connection, name: str, webhook_ids: list[str], count: int) -> None:
    """Pending deliveries of about 500 bytes, due now, spread evenly; committed when this returns."""
    await database.execute(
        """
        INSERT INTO webhook_deliveries
            (id, subscription_id, trigger, calendar_id, idempotency_key, body, next_attempt_at)
        SELECT 'dlv_' || $1 || n, ($2::text[])[1 + n % cardinality($2::text[])], 'calendar.state_change',
               'cal_' || n, $1 || n, convert_to('{"idempotency_key":"' || $1 || n || repeat('"', 450) || '}', 'UTF8'), now()
        FROM generate_series(1, $3::int) AS n
        """,
        name,
        webhook_ids,
        count,
    )


async def _drain(
    database: asyncpg.Connection,
    doorbell: Doorbell,
    receivers: _Receivers,
    name: str,
    webhook_ids: list[str],
) -> None:
    await _fill(database, name, webhook_ids, BACKLOG)
    started = time.monotonic()
    await doorbell.ring("deliveries")
    arrived = 0
    while arrived < BACKLOG and time.monotonic() - started < DRAIN_SECONDS:
        await asyncio.sleep(0.05)
        arrived = await receivers.ask("count")
    took = time.monotonic() - started
    print(
        f"one worker, {len(webhook_ids)} receiver(s): {arrived / took:,.0f} deliveries/s ({arrived} in {took:.1f} s)"
    )
    await database.execute("DELETE FROM webhook_deliveries")
    await receivers.ask("take")


async def _commit_to_post(sessions: Sessions, doorbell: Doorbell, receivers: _Receivers) -> None:
    """Every commit announces to all subscriptions; the first POST of each counts."""
    committed: list[float] = []
    for number in range(COMMITS):
        calendar = CalendarFacts(f"cal_{number:016d}", deduplication_key=None, metadata=None)
        async with transaction(sessions) as session:
            await service.announce(
                session,
                project_id=_PROJECT_ID,
                trigger="calendar.state_change",
                calendar=calendar,
                data={"state": "connected"},
            )
        committed.append(time.monotonic())
        await doorbell.ring("deliveries")
        await asyncio.sleep(0.02)
    async with asyncio.timeout(15):
        while await receivers.ask("count") < COMMITS:
            await asyncio.sleep(0.05)
    arrivals = sorted(at for _, at in await receivers.ask("take"))
    took = [(at - commit) * 1000 for commit, at in zip(committed, arrivals, strict=True)]
    print(
        f"from commit to POST: {quantile(took, 0.5):.0f} ms (p50), {quantile(took, 0.95):.0f} ms (p95) "
        f"at about 40 commits/s"
    )


async def _claims(database: asyncpg.Connection, sessions: Sessions, webhook_ids: list[str]) -> None:
    """Most rows belong to one endpoint that is away, half of those due; the rest is due at all the others."""
    dead, *others = webhook_ids
    await database.execute(
        "SET session_replication_role = replica"
    )  # without a look-up of the key for each row
    await _fill(database, "dead", [dead], PENDING * 4 // 5)
    await _fill(database, "due", others, PENDING // 5)
    await database.execute("SET session_replication_role = origin")
    await database.execute(
        "UPDATE webhook_subscriptions SET failing_since = now() - interval '1 hour' WHERE id = $1", dead
    )

    async def claim(after: str) -> tuple[float, int, str]:
        started = time.perf_counter()
        async with transaction(sessions) as session:
            after, due = await repository.claim_due(
                session,
                after=after,
                limit=16,
                per_endpoint=4,
                probes=32,
                lease_token="bench",
                lease_seconds=20,
            )
        return (time.perf_counter() - started) * 1000, len(due), after

    after = ""
    busy: list[float] = []
    idle: list[float] = []
    for _ in range(CLAIMS):
        took, found, after = await claim(after)
        (busy if found else idle).append(took)
    for name, times in (("of up to 16", busy), ("that finds every endpoint at its limit", idle)):
        if times:
            print(
                f"{PENDING:,} pending, a claim {name}: {quantile(times, 0.5):.1f} ms (p50), "
                f"{quantile(times, 0.95):.1f} ms (p95), target {TARGET_CLAIM_MS:.0f}"
            )


async def _main(database_url: str, redis_url: str) -> None:
    settings = settings_for(database_url, redis_url)
    box = SecretBox(settings.fernet_keys)
    engine = create_engine(database_url)
    sessions = create_sessions(engine)
    doorbell = Doorbell(connect_redis(redis_url))
    database = await asyncpg.connect(database_url)
    await database.execute("INSERT INTO projects (id, name) VALUES ($1, 'bench')", _PROJECT_ID)
    async with _receivers() as (receivers, ports):
        webhook_ids = [await _subscribe(database, box, 0, ports[0])]
        with worker(settings):
            await _until_it_works(database)
            await _commit_to_post(sessions, doorbell, receivers)
            await _drain(database, doorbell, receivers, "one", webhook_ids)
            webhook_ids += [
                await _subscribe(database, box, number, port) for number, port in enumerate(ports[1:], 1)
            ]
            await _drain(database, doorbell, receivers, "hundred", webhook_ids)
        await _claims(database, sessions, webhook_ids)
    await database.close()
    await doorbell.aclose()
    await engine.dispose()


def main() -> None:
    with servers() as (database_url, redis_url):
        asyncio.run(_main(database_url, redis_url))


if __name__ == "__main__":
    main()
