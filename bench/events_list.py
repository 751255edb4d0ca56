"""GET /calendar_events out of 1,000,000 events: query plans, statements, and requests per second.

It uses a real PostgreSQL and two uvicorn processes. The client is a separate process with 16 connections, each of which
sends the next request after a response. All processes share the machine. An event takes about 3.6 kB of a response. If
other work runs on the machine, compare the CPU time of a request and not the requests per second.
"""

import asyncio
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from urllib.parse import urlencode, urlsplit

import asyncpg
import orjson
import psutil
from sqlalchemy import Engine, event

from app.calendar_events.schemas import OrderingName
from app.core.clock import isoformat
from app.core.crypto import sha256_hex
from app.core.http import httpx
from app.core.logging import configure_logging
from app.core.pagination import Cursor
from app.main import create_app
from app.settings import Settings
from bench.support import quantile, servers, settings_for

EVENTS = 1_000_000
CALENDARS = 256
TEMPLATES = 200
CONNECTIONS = 16
PROCESSES = 2
SECONDS = 4.0
TARGET_PER_SECOND = 300

# Another project with a long history. Most requests are for coming events, which are its smallest part.
HISTORY = 200_000
UPCOMING = 5_000

_URL = "/api/v1/calendar_events"
_PROJECT_ID = "proj_bench000000000000"
_API_KEY = "bench-key"
_HISTORY_KEY = "bench-history-key"
_WORDS = [
    "agenda",
    "budget",
    "client",
    "deadline",
    "design",
    "draft",
    "feedback",
    "follow-up",
    "hiring",
    "incident",
    "interview",
    "launch",
    "legal",
    "margin",
    "minutes",
    "notes",
    "owner",
    "planning",
    "please",
    "quarter",
    "release",
    "review",
    "roadmap",
    "sales",
    "scope",
    "security",
    "sprint",
    "team",
    "vendor",
]


def _text(rng: random.Random, length: int) -> str:
    words = ""
    while len(words) < length:
        words += rng.choice(_WORDS) + " "
    return words[:length].strip()


def _token(rng: random.Random, length: int) -> str:
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=length))


def _template(rng: random.Random) -> tuple[str, str, str, str]:
    """Return (raw, attendees, name, description) of an event as Google returns it."""
    people = [(f"{_token(rng, 8)}@example.com", _text(rng, 14).title()) for _ in range(5)]
    link = f"https://meet.google.com/{_token(rng, 3)}-{_token(rng, 4)}-{_token(rng, 3)}"
    name, description = _text(rng, 40), f"<p>{_text(rng, 300)}</p><a href='{link}'>join</a>"
    moment = {"dateTime": "2026-03-01T10:00:00+01:00", "timeZone": "Europe/Paris"}
    raw = {
        "kind": "calendar#event",
        "etag": f'"{rng.randrange(10**16)}"',
        "id": _token(rng, 26),
        "status": "confirmed",
        "htmlLink": f"https://www.google.com/calendar/event?eid={_token(rng, 70)}",
        "created": "2026-01-02T03:04:05.000Z",
        "updated": "2026-02-03T04:05:06.789Z",
        "summary": name,
        "description": description,
        "location": _text(rng, 50),
        "creator": {"email": people[0][0]},
        "organizer": {"email": people[0][0], "displayName": people[0][1]},
        "start": moment,
        "end": moment,
        "iCalUID": f"{_token(rng, 26)}@google.com",
        "attendees": [{"email": e, "displayName": n, "responseStatus": "needsAction"} for e, n in people],
        "hangoutLink": link,
        "conferenceData": {
            "entryPoints": [
                {"entryPointType": "video", "uri": link, "label": link.removeprefix("https://")},
                {"entryPointType": "phone", "uri": f"tel:+1-{rng.randrange(10**10)}", "pin": _token(rng, 9)},
            ],
            "conferenceSolution": {"key": {"type": "hangoutsMeet"}, "name": "Google Meet"},
            "conferenceId": link.rpartition("/")[2],
        },
        "reminders": {"useDefault": True},
        "eventType": "default",
    }
    attendees = [
        {
            "email": email,
            "name": person,
            "response_status": "needs_action",
            "is_organizer": number == 0,
            "is_optional": False,
            "is_resource": False,
        }
        for number, (email, person) in enumerate(people)
    ]
    return orjson.dumps(raw).decode(), orjson.dumps(attendees).decode(), name, description


# Ids and times alternate between calendars, so that a calendar's rows are scattered over the table, as after syncs.
# The templates are uncompressed, like events that come from a sync.
_INSERT = """
    INSERT INTO calendar_events
        (id, project_id, calendar_id, platform_uuid, content_hash, is_deleted, start_time, end_time, timezone,
         name, description, location, ical_uid, organizer, attendees, response_status, meeting_url,
         meeting_platform, raw, created_at, updated_at)
    SELECT 'evt_' || substr(md5(i::text), 1, 16), $1, 'cal_' || lpad((hashint4(i) & 255)::text, 16, '0'),
           md5(i::text), '\\x00', i % 20 = 0,
           $4::timestamptz + (hashint4(i) & 8388607) * interval '1 second',
           $4::timestamptz + ((hashint4(i) & 8388607) + 3600) * interval '1 second',
           'Europe/Paris', t.name, t.description, 'Room 12', md5(i::text) || '@google.com',
           '{"email":"owner@example.com","name":"Owner"}', t.attendees, 'accepted',
           'https://meet.google.com/abc-defg-hij', 'google_meet', t.raw,
           $4::timestamptz + i * interval '1 second', $4::timestamptz + i * interval '1.7 second'
    FROM generate_series($2::int, $3::int - 1) i JOIN templates t ON t.number = i % 200
"""
_START = datetime(2026, 1, 1, tzinfo=UTC)

_INSERT_HISTORY = """
    INSERT INTO calendar_events
        (id, project_id, calendar_id, platform_uuid, content_hash, is_deleted, start_time, end_time, attendees, raw,
         name, description, created_at, updated_at)
    SELECT 'evt_h' || i, 'proj_history', 'cal_history' || i % 20, i::text, '\\x00', i % 50 = 0,
           now() + (i - $1::int) * interval '5 minutes', now() + (i - $1::int + 12) * interval '5 minutes',
           t.attendees, t.raw, t.name, t.description,
           now() - ($2::int - i) * interval '5 minutes', now() - ($2::int - i) * interval '4 minutes'
    FROM generate_series(0, $2::int - 1) i JOIN templates t ON t.number = i % 200
"""


async def _seed(database_url: str) -> None:
    """Insert a million events of one project in 256 calendars. The indexes are built afterwards."""
    connection = await asyncpg.connect(database_url)
    # The database is deleted afterwards, so it does not have to survive a crash.
    for setting in ("fsync = off", "full_page_writes = off", "max_wal_size = '16GB'"):
        await connection.execute(f"ALTER SYSTEM SET {setting}")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.execute(
        "CREATE UNLOGGED TABLE templates (number int PRIMARY KEY, raw json, attendees json, name text, description text); "
        "ALTER TABLE templates ALTER raw SET STORAGE EXTERNAL, ALTER attendees SET STORAGE EXTERNAL"
    )
    rng = random.Random(20261120)
    templates = [(number, *_template(rng)) for number in range(TEMPLATES)]
    await connection.copy_records_to_table("templates", records=templates)
    await connection.execute("INSERT INTO projects (id, name) VALUES ($1, 'bench')", _PROJECT_ID)
    await connection.execute(
        "INSERT INTO api_keys (id, project_id, name, key_sha256) VALUES ('key_bench', $1, 'bench', $2)",
        _PROJECT_ID,
        sha256_hex(_API_KEY),
    )
    await connection.executemany(
        "INSERT INTO calendars (id, project_id, platform, deduplication_key) VALUES ($1, $2, 'google', $3)",
        [(_calendar_id(number), _PROJECT_ID, f"user-{number}") for number in range(CALENDARS)],
    )
    await connection.execute("INSERT INTO projects (id, name) VALUES ('proj_history', 'history')")
    await connection.execute(
        "INSERT INTO api_keys (id, project_id, name, key_sha256) VALUES ('key_history', 'proj_history', 'h', $1)",
        sha256_hex(_HISTORY_KEY),
    )
    await connection.execute(
        "INSERT INTO calendars (id, project_id, platform) "
        "SELECT 'cal_history' || n, 'proj_history', 'google' FROM generate_series(0, 19) n"
    )
    indexes = [
        row["indexdef"]
        for row in await connection.fetch(
            "SELECT indexdef FROM pg_indexes WHERE tablename = 'calendar_events' AND indexname NOT LIKE 'pk_%'"
        )
    ]
    for definition in indexes:
        await connection.execute(f"DROP INDEX {definition.split()[definition.split().index('INDEX') + 1]}")
    await connection.close()

    async def run(statements: Iterator[tuple[str, tuple[Any, ...]]]) -> None:
        connection = await asyncpg.connect(database_url)
        await connection.execute("SET synchronous_commit = off; SET maintenance_work_mem = '256MB'")
        for statement, arguments in statements:
            await connection.execute(statement, *arguments)
        await connection.close()

    step = EVENTS // 20
    inserts = iter(
        [(_INSERT, (_PROJECT_ID, first, first + step, _START)) for first in range(0, EVENTS, step)]
    )
    await asyncio.gather(run(inserts), run(inserts))
    await run(iter([(_INSERT_HISTORY, (HISTORY - UPCOMING, HISTORY))]))
    await run(iter([("CHECKPOINT", ())]))
    builds = iter([(definition, ()) for definition in indexes])
    await asyncio.gather(run(builds), run(builds))
    await run(iter([("VACUUM (ANALYZE) calendar_events", ()), ("ANALYZE", ())]))


def _calendar_id(number: int) -> str:
    return f"cal_{number:016d}"


async def _show_plans(settings: Settings) -> None:
    """Print the plan of each ordering over the project and in a calendar, from the middle of the list on."""
    seen: list[tuple[str, Any]] = []

    @event.listens_for(Engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    app = create_app(settings)
    explaining = await asyncpg.connect(settings.required_database_url())
    middle = {  # in seconds from _START
        "updated_at": 0.85 * EVENTS,
        "created_at": 0.5 * EVENTS,
        "start_time": 4_194_304,
        "end_time": 4_194_304 + 3600,
    }
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://bench",
            headers={"Authorization": f"Token {_API_KEY}"},
        ) as client,
    ):
        for ordering in get_args(OrderingName):
            at = _START + timedelta(seconds=middle[ordering.removeprefix("-")])
            cursor = Cursor(ordering, at, "evt_m").encode()
            for where in ({}, {"calendar_id": _calendar_id(7)}):
                seen.clear()
                response = await client.get(_URL, params={"ordering": ordering, "cursor": cursor, **where})
                count = len(response.json()["results"])
                statement, parameters = seen[-1]
                plan = await explaining.fetch(
                    f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *parameters
                )
                root = orjson.loads(plan[0][0])[0]
                print(
                    f"  {ordering:12} {'in a calendar' if where else 'in the project':15} "
                    f"{len(seen)} statements, {count} rows, {root['Execution Time']:7.2f} ms  {_steps(root['Plan'])}"
                )
    await explaining.close()
    event.remove(Engine, "before_cursor_execute", note)


async def _show_history(settings: Settings) -> None:
    """Print PostgreSQL's time for pages of the project with a long history."""
    seen: list[tuple[str, Any]] = []

    @event.listens_for(Engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "calendar_events" in statement:
            seen.append((statement, parameters))

    now = isoformat(datetime.now(UTC))
    week_ago = isoformat(datetime.now(UTC) - timedelta(days=7))
    asked: dict[str, dict[str, str]] = {
        "upcoming, soonest first": {"ordering": "start_time", "start_time_gte": now},
        "upcoming in a calendar": {
            "ordering": "start_time",
            "start_time_gte": now,
            "calendar_id": "cal_history7",
        },
        "upcoming, latest change first": {"start_time_gte": now},
        "upcoming, oldest change first": {"start_time_gte": now, "ordering": "updated_at"},
        "past, latest first": {"ordering": "-end_time", "end_time_lte": now},
        "past, latest change first": {"end_time_lte": now},
        "last week's, latest change first": {"start_time_gte": week_ago, "end_time_lte": now},
        "deleted, latest change first": {"is_deleted": "true"},
        "no filter": {},
    }
    app = create_app(settings)
    explaining = await asyncpg.connect(settings.required_database_url())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://bench",
            headers={"Authorization": f"Token {_HISTORY_KEY}"},
        ) as client,
    ):
        for name, query in asked.items():
            milliseconds = []
            for _ in range(5):
                seen.clear()
                response = (await client.get(_URL, params=query)).raise_for_status()
                plans = [
                    orjson.loads(
                        await explaining.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *values)
                    )[0]
                    for sql, values in seen
                ]
                milliseconds.append(sum(plan["Planning Time"] + plan["Execution Time"] for plan in plans))
            buffers = sum(
                plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] for plan in plans
            )
            print(
                f"  {name:34} {len(response.json()['results']):3} rows, {len(seen)} statements, "
                f"{quantile(milliseconds, 0.5):6.1f} ms, {buffers:6} buffers"
            )
    await explaining.close()
    event.remove(Engine, "before_cursor_execute", note)


def _steps(plan: dict[str, Any]) -> str:
    inner = " < ".join(_steps(child) for child in plan.get("Plans", []))
    name: str = plan["Node Type"]
    if "Index Name" in plan:
        name += f" on {plan['Index Name']} ({plan['Actual Rows']:.0f} rows)"
    return f"{name} < {inner}" if inner else name


@contextmanager
def _api_processes(settings: Settings) -> Iterator[tuple[str, int]]:
    """Run the API in PROCESSES processes behind one port. Yields its base URL and the parent's process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert settings.credentials_encryption_keys is not None
    environment = {
        **os.environ,
        "DATABASE_URL": settings.required_database_url(),
        "REDIS_URL": settings.required_redis_url(),
        "CREDENTIALS_ENCRYPTION_KEYS": settings.credentials_encryption_keys.get_secret_value(),
        "ENVIRONMENT": "production",
    }
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "app.main:create_app_from_env",
        "--factory",
        "--no-access-log",
    ]
    command += ["--workers", str(PROCESSES), "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                httpx.get(f"{url}/healthz", timeout=1)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(20)


class _Asker(threading.Thread):
    """One connection that sends a request, reads the whole response, and sends the next request."""

    def __init__(self, url: str, paths: list[str], until: float) -> None:
        super().__init__()
        self._address = urlsplit(url)
        self._paths = paths
        self._until = until
        self.milliseconds: list[float] = []
        self.received = 0
        self.fault: Exception | None = None

    def run(self) -> None:
        try:
            self._ask_on()
        except Exception as err:  # noqa: BLE001 - the main thread reports it
            self.fault = err

    def _ask_on(self) -> None:
        buffer = memoryview(bytearray(1 << 20))
        with socket.create_connection((self._address.hostname, self._address.port)) as connection:
            number = 0
            while (started := time.perf_counter()) < self._until:
                path = self._paths[number % len(self._paths)]
                connection.sendall(
                    f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Token {_API_KEY}\r\n\r\n".encode()
                )
                size = self._receive(connection, buffer)
                if number == 0:
                    _check(bytes(buffer[:size]))
                self.milliseconds.append((time.perf_counter() - started) * 1000)
                self.received += size
                number += 1

    @staticmethod
    def _receive(connection: socket.socket, buffer: memoryview) -> int:
        size, end = 0, None
        while end is None or size < end:
            got = connection.recv_into(buffer[size:])
            assert got, "the server closed the connection"
            size += got
            if end is None:
                head, separator, _ = bytes(buffer[: min(size, 4096)]).partition(b"\r\n\r\n")
                if separator:
                    assert head.startswith(b"HTTP/1.1 200"), head[:200]
                    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                    end = len(head) + 4 + length
        return size


def _check(response: bytes) -> None:
    results = orjson.loads(response.partition(b"\r\n\r\n")[2])["results"]
    assert len(results) == 100
    assert all(result["raw"]["kind"] == "calendar#event" for result in results)


def _cpu_seconds(process_id: int) -> float:
    """Return the CPU time of a process and its children."""
    parent = psutil.Process(process_id)
    total = 0.0
    for process in (parent, *parent.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


async def _postmaster(database_url: str) -> int:
    connection = await asyncpg.connect(database_url)
    backend: int = await connection.fetchval("SELECT pg_backend_pid()")
    postmaster: int = psutil.Process(backend).ppid()
    await connection.close()
    return postmaster


def _load(url: str, servers: dict[str, int], name: str, queries: list[dict[str, str]]) -> None:
    """Measure requests per second. `servers`: names and process ids whose CPU time is printed."""
    paths = [f"{_URL}?{urlencode(query)}" if query else _URL for query in queries]
    for seconds in (1.0, SECONDS):  # the first round warms up
        before = {server: _cpu_seconds(process_id) for server, process_id in servers.items()}
        client_before = time.process_time()
        started = time.perf_counter()
        until = started + seconds
        askers = [_Asker(url, paths[number:] + paths[:number], until) for number in range(CONNECTIONS)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
            if asker.fault is not None:
                raise asker.fault
        took = time.perf_counter() - started
    times = [milliseconds for asker in askers for milliseconds in asker.milliseconds]
    rate = len(times) / took
    size = sum(asker.received for asker in askers) / len(times) / 1000
    cpu = {server: _cpu_seconds(process_id) - before[server] for server, process_id in servers.items()}
    cpu["client"] = time.process_time() - client_before
    used = " + ".join(f"{server} {seconds / len(times) * 1000:.1f}" for server, seconds in cpu.items())
    print(
        f"  {name:34} {rate:4.0f} requests/s (target {TARGET_PER_SECOND}: "
        f"{'ok' if rate >= TARGET_PER_SECOND else 'TOO SLOW'}), p50 {quantile(times, 0.5):.0f} ms, "
        f"p95 {quantile(times, 0.95):.0f} ms, {size:.0f} kB; CPU of a request: {used} ms"
    )


def main() -> None:
    configure_logging(level="WARNING", json=False)
    with servers() as (database_url, redis_url):
        settings = settings_for(database_url, redis_url)
        started = time.perf_counter()
        asyncio.run(_seed(database_url))
        print(f"events list: {EVENTS:,} events seeded in {time.perf_counter() - started:.0f} s")
        print("plans of a page of 100 from the middle of the list:")
        asyncio.run(_show_plans(settings))
        print(
            f"a page of {HISTORY:,} events, {UPCOMING:,} of them upcoming (planning and execution, median of 5):"
        )
        asyncio.run(_show_history(settings))
        rng = random.Random(1)
        calendars = [{"calendar_id": _calendar_id(rng.randrange(CALENDARS))} for _ in range(400)]
        moments = [_START + rng.random() * timedelta(seconds=EVENTS * 1.6) for _ in range(400)]
        since = [{"updated_after": isoformat(moment), "ordering": "updated_at"} for moment in moments]
        print(f"a page of 100, {CONNECTIONS} connections, {PROCESSES} API processes, one machine for all:")
        with _api_processes(settings) as (url, api):
            processes = {"API": api, "PostgreSQL": asyncio.run(_postmaster(database_url))}
            _load(url, processes, "a calendar's latest changes", calendars)
            _load(url, processes, "the project's changes since a time", since)
            _load(url, processes, "the project's latest changes", [{}])


if __name__ == "__main__":
    main()
