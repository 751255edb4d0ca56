"""Webhooks: deliveries per second, the time from commit to POST, fairness, and claims.

A worker process and a receiver process share the machine with this one, a durable PostgreSQL and a Redis. The receiver
speaks plain HTTP/1.1 and responds at once, unless the path names a delay.
"""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg

from app.core.crypto import SecretBox
from app.core.db import Sessions, create_engine, create_sessions, transaction
from app.core.wakeups import WakeUps, connect_redis
from app.webhooks import outbox, service
from app.webhooks.endpoint_secrets import secrets_context
from app.webhooks.payloads import CalendarFacts
from app.webhooks.repository import claims
from app.webhooks.requeue import requeue_next
from app.webhooks.signing import new_secret
from app.webhooks.turns import Slots
from bench.support import quantile, servers, settings_for, worker

RECEIVERS = 100
BACKLOG = 2_000
BACKLOG_SECONDS = 8.0
COMMITS = 150
PENDING = 500_000
CLAIMS = 200
TARGET_CLAIM_MS = 5.0
WAITING_ENDPOINTS = (500, 2_000, 8_000)
GREEDY_ENDPOINTS = 100
OTHERS_MESSAGES = 20

_PROJECT_ID = "proj_bench000000000000"
_OTHER_PROJECT_ID = "proj_bench000000000001"
_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class _Endpoint(asyncio.Protocol):
    """Records each request's `webhook-id` and time of arrival, on the clock that all processes share.

    It responds to the path `/after/9` after nine seconds, and to any other path at once.
    """

    def __init__(self, arrivals: list[tuple[str, float]]) -> None:
        self._arrivals = arrivals
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            length = int(headers[b"content-length"])
            if len(rest) < length:
                return
            self._arrivals.append((headers[b"webhook-id"].decode(), time.monotonic()))
            self._buffer = rest[length:]
            delay = float(path.rpartition(b"/")[2]) if path.startswith(b"/after/") else 0
            if delay:
                asyncio.get_running_loop().call_later(delay, self._transport.write, _RESPONSE)
            else:
                self._transport.write(_RESPONSE)


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


async def _subscribe(
    database: asyncpg.Connection,
    box: SecretBox,
    number: int,
    port: int,
    *,
    path: str = "/webhooks",
    project_id: str = _PROJECT_ID,
) -> str:
    webhook_id = f"webhook_{number:016d}"
    sealed = box.seal(secrets_context(webhook_id), [{"secret": new_secret(), "until": None}])
    await database.execute(
        """
        INSERT INTO webhook_subscriptions (id, project_id, url, triggers, secrets_sealed)
        VALUES ($1, $2, $3, '{calendar.state_change}', $4)
        """,
        webhook_id,
        project_id,
        f"http://127.0.0.1:{port}{path}",
        sealed,
    )
    return webhook_id


async def _fill(database: asyncpg.Connection, name: str, webhook_ids: list[str], count: int) -> None:
    """Insert and commit due deliveries of about 500 bytes, spread evenly over the endpoints."""
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


async def _deliver_backlog(
    database: asyncpg.Connection,
    wakeups: WakeUps,
    receivers: _Receivers,
    name: str,
    webhook_ids: list[str],
) -> None:
    await _fill(database, name, webhook_ids, BACKLOG)
    started = time.monotonic()
    await wakeups.wake("deliveries")
    arrived = 0
    while arrived < BACKLOG and time.monotonic() - started < BACKLOG_SECONDS:
        await asyncio.sleep(0.05)
        arrived = await receivers.ask("count")
    took = time.monotonic() - started
    print(
        f"one worker, {len(webhook_ids)} receiver(s): {arrived / took:,.0f} deliveries/s ({arrived} in {took:.1f} s)"
    )
    await database.execute("DELETE FROM webhook_deliveries")
    await receivers.ask("take")


async def _commit_to_post(sessions: Sessions, wakeups: WakeUps, receivers: _Receivers) -> None:
    """Measure the time from a commit that announces to all subscriptions to the first POST of each."""
    committed: list[float] = []
    for number in range(COMMITS):
        calendar = CalendarFacts(f"cal_{number:016d}", deduplication_key=None, metadata=None)
        async with transaction(sessions) as session:
            await outbox.announce(
                session,
                project_id=_PROJECT_ID,
                trigger="calendar.state_change",
                calendar=calendar,
                data={"state": "connected"},
            )
        committed.append(time.monotonic())
        await wakeups.wake("deliveries")
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


async def _behind_a_greedy_project(
    database: asyncpg.Connection,
    wakeups: WakeUps,
    receivers: _Receivers,
    box: SecretBox,
    ports: list[int],
    *,
    seconds: int,
) -> None:
    """Measure deliveries to a fast endpoint while another project's endpoints respond slowly or too late."""
    greedy = [
        await _subscribe(database, box, 1_000 + number, port, path=f"/after/{seconds}")
        for number, port in enumerate(ports[:GREEDY_ENDPOINTS])
    ]
    fast = await _subscribe(database, box, 2_000, ports[0], project_id=_OTHER_PROJECT_ID)
    await _fill(database, "greedy", greedy, 10 * GREEDY_ENDPOINTS)
    await wakeups.wake("deliveries")
    await asyncio.sleep(3)
    waits = []
    for batch in range(5):
        name = f"other{batch}-"
        await _fill(database, name, [fast], OTHERS_MESSAGES)
        started = time.monotonic()
        await wakeups.wake("deliveries")
        while sum(got.startswith(name) for got, _ in await receivers.ask("list")) < OTHERS_MESSAGES:
            await asyncio.sleep(0.02)
        waits.append(time.monotonic() - started)
        await asyncio.sleep(2)
    print(
        f"{OTHERS_MESSAGES} messages to a fast endpoint, while {GREEDY_ENDPOINTS} of another project respond after "
        f"{seconds} s: all there after {quantile(waits, 0.5):.2f} s (median of 5), {max(waits):.2f} s (longest)"
    )
    await database.execute("DELETE FROM webhook_subscriptions WHERE id = ANY ($1)", [*greedy, fast])
    await receivers.ask("take")


async def _claim(sessions: Sessions, after: str, limit: int) -> tuple[float, int, str]:
    """Claim as the worker does. Return (milliseconds, number of leased rows, start of the next claim)."""
    held = Slots(64)
    started = time.perf_counter()
    async with transaction(sessions) as session:
        await claims.wake_due(session, 500)
        found = await claims.find_ready(session, after=after, limit=64 + 2 * limit, per_endpoint=4, held=held)
        given = held.share_out(found.endpoints, limit)
        due = []
        if given:
            due = await claims.claim_due(
                session, given=given, slots=found.slots, lease_token="bench", lease_seconds=20
            )
    return (time.perf_counter() - started) * 1000, len(due), found.after


async def _claims_with_nothing_due(database: asyncpg.Connection, sessions: Sessions) -> None:
    """Measure claims when all endpoints wait for a retry in two hours, with two deliveries each."""
    await database.execute("DELETE FROM webhook_subscriptions")
    await database.execute("VACUUM ANALYZE webhook_deliveries")
    for count in WAITING_ENDPOINTS:
        await database.execute(
            """
            INSERT INTO webhook_subscriptions (id, project_id, url, triggers, secrets_sealed, failing_since)
            SELECT 'webhook_w' || n, $1, 'https://example.com/', '{calendar.state_change}', '', now()
            FROM generate_series(1, $2::int) AS n
            ON CONFLICT DO NOTHING
            """,
            _PROJECT_ID,
            count,
        )
        await database.execute(
            """
            INSERT INTO webhook_deliveries
                (id, subscription_id, trigger, idempotency_key, body, next_attempt_at, waits, retry_count)
            SELECT 'dlv_w' || n, 'webhook_w' || (n + 1) / 2, 'calendar.state_change', n, '{}',
                   now() + interval '2 hours', true, 1
            FROM generate_series(1, 2 * $1::int) AS n
            ON CONFLICT DO NOTHING
            """,
            count,
        )
        await database.execute("VACUUM ANALYZE webhook_deliveries")
        times = sorted([(await _claim(sessions, "", 16))[0] for _ in range(CLAIMS)])
        print(
            f"{count:,} endpoints wait for a retry, nothing is due: a claim {quantile(times, 0.5):.1f} ms (p50), "
            f"{quantile(times, 0.95):.1f} ms (p95), target {TARGET_CLAIM_MS:.0f}"
        )


async def _claims(database: asyncpg.Connection, sessions: Sessions, webhook_ids: list[str]) -> None:
    """Measure claims when most rows belong to one unavailable endpoint, and the rest is due at all others."""
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

    after = ""
    busy: list[float] = []
    idle: list[float] = []
    for _ in range(CLAIMS):
        took, found, after = await _claim(sessions, after, 16)
        (busy if found else idle).append(took)
    for name, times in (("of up to 16", busy), ("that finds every endpoint at its limit", idle)):
        if times:
            print(
                f"{PENDING:,} pending, a claim {name}: {quantile(times, 0.5):.1f} ms (p50), "
                f"{quantile(times, 0.95):.1f} ms (p95), target {TARGET_CLAIM_MS:.0f}"
            )


async def _replay(database: asyncpg.Connection, sessions: Sessions, webhook_id: str) -> None:
    """Measure a replay of all deliveries of one endpoint."""
    await database.execute(
        """
        UPDATE webhook_deliveries SET status = 'success', next_attempt_at = NULL, finished_at = now(),
            lease_token = NULL WHERE subscription_id = $1
        """,
        webhook_id,
    )
    await database.execute("VACUUM ANALYZE webhook_deliveries")
    started = time.perf_counter()
    async with transaction(sessions) as session:
        await service.replay(session, _PROJECT_ID, webhook_id, datetime(2020, 1, 1, tzinfo=UTC))
    responded = time.perf_counter() - started
    longest = 0.0
    while True:
        began = time.perf_counter()
        if not await requeue_next(sessions):
            break
        longest = max(longest, time.perf_counter() - began)
    print(
        f"a replay of {PENDING * 4 // 5:,}: a response after {responded * 1000:.0f} ms, all due after "
        f"{time.perf_counter() - started:.1f} s; the endpoint's row is locked for {longest * 1000:.0f} ms at most"
    )


async def _main(database_url: str, redis_url: str) -> None:
    settings = settings_for(database_url, redis_url)
    box = SecretBox(settings.fernet_keys)
    engine = create_engine(database_url)
    sessions = create_sessions(engine)
    wakeups = WakeUps(connect_redis(redis_url))
    database = await asyncpg.connect(database_url)
    await database.execute(
        "INSERT INTO projects (id, name) VALUES ($1, 'bench'), ($2, 'other')", _PROJECT_ID, _OTHER_PROJECT_ID
    )
    async with _receivers() as (receivers, ports):
        webhook_ids = [await _subscribe(database, box, 0, ports[0])]
        with worker(settings):
            await _until_it_works(database)
            await _commit_to_post(sessions, wakeups, receivers)
            await _deliver_backlog(database, wakeups, receivers, "one", webhook_ids)
            webhook_ids += [
                await _subscribe(database, box, number, port) for number, port in enumerate(ports[1:], 1)
            ]
            await _deliver_backlog(database, wakeups, receivers, "hundred", webhook_ids)
            for seconds in (9, 3_600):
                await _behind_a_greedy_project(database, wakeups, receivers, box, ports, seconds=seconds)
        await _claims(database, sessions, webhook_ids)
        await _replay(database, sessions, webhook_ids[0])
        await _claims_with_nothing_due(database, sessions)
    await database.close()
    await wakeups.aclose()
    await engine.dispose()


def main() -> None:
    with servers() as (database_url, redis_url):
        asyncio.run(_main(database_url, redis_url))


if __name__ == "__main__":
    main()
