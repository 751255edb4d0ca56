"""Free/busy of 50 calendars and availability of 10 people over 28 days, each with 200 events: the whole HTTP request.

It uses a real PostgreSQL and one uvicorn process. The requests come one after the other over one connection. Events take
about 2.4 kB of the table, and those of one calendar lie scattered, as after incremental syncs. "Just written" is the
same before PostgreSQL has vacuumed the table, so that the indexes alone do not say which rows are visible.
"""

import asyncio
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import orjson
import psutil

from app.core.clock import isoformat
from app.core.crypto import sha256_hex
from app.core.http import httpx
from app.core.logging import configure_logging
from app.settings import Settings
from bench.support import quantile, servers, settings_for

CALENDARS = 60
DAYS = 364
EVENTS_OF_28_DAYS = 200
REQUESTS = 100
FREE_BUSY_TARGET = 20
AVAILABILITY_TARGET = 50

_API_KEY = "bench-key"
_START = datetime(2027, 1, 4, tzinfo=UTC)

_SEED = f"""
    INSERT INTO projects (id, name) VALUES ('proj_bench', 'bench');
    INSERT INTO api_keys (id, project_id, name, key_sha256)
        VALUES ('key_bench', 'proj_bench', 'bench', '{sha256_hex(_API_KEY)}');
    INSERT INTO calendars (id, project_id, platform, deduplication_key, covered_from, covered_until, last_successful_sync_at)
        SELECT 'cal_' || n, 'proj_bench', 'google', 'user-' || n, '2026-01-01', '2029-01-01', now()
        FROM generate_series(0, {CALENDARS - 1}) n;
    INSERT INTO calendar_events (id, project_id, calendar_id, platform_uuid, content_hash, start_time, end_time,
                                 busy_status, response_status, raw)
        SELECT 'evt_' || i, 'proj_bench', 'cal_' || (i % {CALENDARS}), i::text, '\\x00', at,
               at + (1 + abs(hashint4(i + 7)) % 6) * interval '15 minutes',
               (array['busy', 'busy', 'busy', 'tentative', 'out_of_office', 'free', 'busy', 'busy'])[1 + abs(hashint4(i * 3)) % 8],
               'accepted', json_build_object('description', repeat(md5(i::text), 65))
        FROM (SELECT i, timestamptz '{_START - timedelta(days=7)}'
                        + (abs(hashint4(i)::bigint) % ({DAYS} * 96)) * interval '15 minutes' AS at
              FROM generate_series(0, {CALENDARS * EVENTS_OF_28_DAYS * DAYS // 28 - 1}) i) AS events;
"""


@contextmanager
def _api(settings: Settings) -> Iterator[tuple[str, int]]:
    """Run the API in one process. Yields its base URL and process id."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert settings.credentials_encryption_keys is not None
    environment = {
        **os.environ,
        "DATABASE_URL": settings.required_database_url(),
        "REDIS_URL": settings.required_redis_url(),
        "CREDENTIALS_ENCRYPTION_KEYS": settings.credentials_encryption_keys.get_secret_value(),
        "ENVIRONMENT": "production",
        "API_POSTS_PER_MINUTE": "0",
    }
    command = [sys.executable, "-m", "uvicorn", "app.main:create_app_from_env", "--factory"]
    command += ["--no-access-log", "--port", str(port), "--log-level", "warning"]
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


def _cpu_seconds(process_id: int) -> float:
    times = psutil.Process(process_id).cpu_times()
    return float(times.user + times.system)


def _measure(
    api: tuple[str, int], path: str, bodies: list[dict[str, Any]], name: str, target: float | None
) -> None:
    """Send the requests one after the other, and print their quantiles and the CPU time of the API."""
    url, process_id = api
    sent = [orjson.dumps(body) for body in bodies]
    headers = {"Authorization": f"Token {_API_KEY}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    milliseconds, size = [], 0
    used = 0.0
    for number in range(REQUESTS + 20):
        if number == 20:
            used = _cpu_seconds(process_id)
        started = time.perf_counter()
        connection.request("POST", path, sent[number % len(sent)], headers)
        response = connection.getresponse()
        content = response.read()
        if number >= 20:  # the first ones warm up
            milliseconds.append((time.perf_counter() - started) * 1000)
            size += len(content)
        assert response.status == 200, content[:500]
    connection.close()
    cpu = (_cpu_seconds(process_id) - used) / REQUESTS * 1000
    p99 = quantile(milliseconds, 0.99)
    judged = f" (target {target}: {'ok' if p99 < target else 'TOO SLOW'})" if target is not None else ""
    print(
        f"  {name:58} p50 {quantile(milliseconds, 0.5):5.1f} ms, p99 {p99:5.1f} ms{judged}, "
        f"CPU of the API {cpu:.1f} ms, {size / REQUESTS / 1000:.0f} kB"
    )


def _range(start: datetime, days: int) -> dict[str, str]:
    return {"start": isoformat(start), "end": isoformat(start + timedelta(days=days))}


def _free_busy(days: int = 28) -> list[dict[str, Any]]:
    return [
        {"calendars": [f"user-{(number + n) % CALENDARS}" for n in range(50)], **_range(start, days)}
        for number in range(10)
        for start in [_START + timedelta(days=28 * (number % 8), hours=number)]
    ]


def _availability(days: int = 28, people: int = 10, **options: Any) -> list[dict[str, Any]]:
    hours = {"days": ["mon", "tue", "wed", "thu", "fri"], "start": "09:00", "end": "17:30"}
    zones = ("Europe/Paris", "Europe/Helsinki", "Africa/Cairo")
    return [
        {
            "participants": [
                {
                    "calendars": [f"user-{(number * 7 + n) % CALENDARS}"],
                    "open_hours": [{**hours, "timezone": zones[n % 3]}],
                }
                for n in range(people)
            ],
            **_range(_START + timedelta(days=28 * (number % 8)), days),
            "duration_minutes": 30,
            "minimum_free": "all",
            **options,
        }
        for number in range(10)
    ]


async def _run(database_url: str, *statements: str) -> None:
    connection = await asyncpg.connect(database_url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


async def _vacuum(database_url: str) -> None:
    """Vacuum until PostgreSQL knows that all rows are visible: transactions that are open meanwhile prevent it."""
    connection = await asyncpg.connect(database_url)
    visible = "SELECT relallvisible > 0.9 * relpages FROM pg_class WHERE relname = 'calendar_events'"
    while not await connection.fetchval(visible):
        await connection.execute("VACUUM (ANALYZE) calendar_events")
    await connection.close()


def _measure_all(api: tuple[str, int]) -> None:
    free_busy, availability = "/api/v1/free_busy", "/api/v1/availability"
    _measure(api, free_busy, _free_busy(), "free/busy, 50 calendars, 28 days", FREE_BUSY_TARGET)
    _measure(api, availability, _availability(), "availability, 10 people, all of them", AVAILABILITY_TARGET)
    optional = _availability(minimum_free=4, buffer_before_minutes=10, buffer_after_minutes=10)
    for body in optional:
        for one in body["participants"][1:]:
            one["required"] = False
    _measure(api, availability, optional, "availability, 10 people, 4 of them, buffers", AVAILABILITY_TARGET)


def main() -> None:
    configure_logging(level="WARNING", json=False)
    with servers() as (database_url, redis_url):
        # Only the measurement decides when the table is vacuumed.
        asyncio.run(
            _run(
                database_url, "ALTER TABLE calendar_events SET (autovacuum_enabled = false)", _SEED, "ANALYZE"
            )
        )
        with _api(settings_for(database_url, redis_url)) as api:
            print("just written:")
            _measure_all(api)
            asyncio.run(_vacuum(database_url))
            print("vacuumed:")
            _measure_all(api)
            print("the largest requests:")
            _measure(api, "/api/v1/free_busy", _free_busy(92), "free/busy, 50 calendars, 92 days", None)
            everything = _availability(92, 50, minimum_free=1, interval_minutes=1, limit=10_000)
            for body in everything:
                for one in body["participants"]:
                    one["required"] = False
            _measure(
                api,
                "/api/v1/availability",
                everything,
                "availability, 50 people, 92 days, 10,000 slots",
                None,
            )


if __name__ == "__main__":
    main()
