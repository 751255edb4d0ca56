"""Join rules: changing those of a project with 100,000 events ahead, other requests meanwhile, and what a sync pays.

One API process and one worker process, a durable PostgreSQL; the client is this process. All share the machine, so that
the ratios say more than the times.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
from sqlalchemy import select

from app.core.clock import utcnow
from app.core.crypto import sha256_hex
from app.core.db import Sessions, create_engine, create_sessions, transaction
from app.core.http import httpx
from app.core.ids import new_id
from app.core.logging import configure_logging
from app.events.data import RemoteAttendee, RemoteEvent, Unannounced, Window
from app.events.writer import apply_changes
from app.main import create_app
from app.models import Calendar
from app.settings import Settings
from bench.support import measured, quantile, servers, settings_for, worker

_EVENTS = 100_000
_CALENDARS = 250
_OTHERS = 5_000
_TARGET_SECONDS = 5.0
_SYNCED = 5_000
_BATCH = 500
_SHARING = 10
_SHARED = 200

_PROJECT = "proj_benchrules000000"
_OTHER = "proj_benchother000000"
_KEYS = {_PROJECT: "bench-rules-key", _OTHER: "bench-other-key"}
_LINK = "https://zoom.us/j/5551112222"

# Every event is ahead and has a link of its own; one in 20 is named "customer".
_INSERT = """
    INSERT INTO calendar_events
        (id, project_id, calendar_id, platform_uuid, content_hash, start_time, end_time, name, attendees, organizer,
         response_status, meeting_url, meeting_platform, busy_status, visibility, event_type, raw, created_at, updated_at)
    SELECT 'evt_' || substr(md5($1 || i), 1, 16), $1, 'cal_' || substr(md5($1 || i % $3), 1, 16), i::text, '\\x00',
           date_trunc('hour', now()) + interval '2 hours' + (hashint4(i) & 2097151) * interval '1 second',
           date_trunc('hour', now()) + interval '3 hours' + (hashint4(i) & 2097151) * interval '1 second',
           CASE WHEN i % 20 = 0 THEN 'Customer call ' ELSE 'Weekly sync ' END || i,
           '[{"email":"ada@example.com","name":"Ada"},{"email":"guest@customer.test","name":null}]',
           '{"email":"ada@example.com","name":"Ada"}', 'accepted', 'https://zoom.us/j/' || (5550000000 + i), 'zoom',
           'busy', 'default', 'default', json_build_object('description', repeat('x', 2000)), now(), now()
    FROM generate_series(1, $2::int) i
"""


def _rules(*, joined: str | None, bot_name: str = "Notetaker", scope: str = "event") -> dict[str, Any]:
    """Ten rules, the last of which joins the events with `joined` in their name; None joins none."""
    others = [
        {
            "name": f"never {number}",
            "when": {
                "has_meeting_url": True,
                "attendees_min": 2,
                "has_external_attendee": True,
                "name_contains": [f"not in any name {number}", "nor this"],
                "response_status_in": ["accepted", "tentative"],
            },
            "join": True,
            "bot": {"bot_name": f"Bot {number}"},
        }
        for number in range(9)
    ]
    last = {
        "name": "last",
        "when": {"name_contains": [joined if joined is not None else "not this either"]},
        "join": True,
        "bot": {"bot_name": bot_name, "recording_settings": {"format": "mp3"}},
    }
    return {"rules": [*others, last], "bot_scope": scope}


async def _seed(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    for project_id, key in _KEYS.items():
        await connection.execute("INSERT INTO projects (id, name) VALUES ($1, 'bench')", project_id)
        await connection.execute(
            "INSERT INTO api_keys (id, project_id, name, key_sha256) VALUES ($1, $2, 'bench', $3)",
            new_id("key"),
            project_id,
            sha256_hex(key),
        )
        count, calendars = (_EVENTS, _CALENDARS) if project_id == _PROJECT else (_OTHERS, 10)
        await connection.execute(
            "INSERT INTO calendars (id, project_id, platform, owner_email, next_sync_at) "
            "SELECT 'cal_' || substr(md5($1 || n), 1, 16), $1, 'google', 'ada@example.com', now() + interval '1 day' "
            "FROM generate_series(0, $2::int - 1) n",
            project_id,
            calendars,
        )
        await connection.execute(_INSERT, project_id, count, calendars)
    await connection.execute("VACUUM (ANALYZE) calendar_events")
    await connection.execute("ANALYZE")
    await connection.close()


@contextlib.contextmanager
def _api(settings: Settings) -> Iterator[str]:
    """Run the API in a process. Yields its base URL."""
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
        "LOG_LEVEL": "WARNING",
    }
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "app.main:create_app_from_env",
        "--factory",
        "--no-access-log",
    ]
    command += ["--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                httpx.get(f"{url}/healthz", timeout=1)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


_REQUESTS = {
    "events list, other project": (_OTHER, "/api/v1/calendar_events?ordering=start_time"),
    "bots list, other project": (_OTHER, "/api/v1/bots"),
    "events list, same project": (_PROJECT, "/api/v1/calendar_events?ordering=start_time"),
    "bots list, same project": (_PROJECT, "/api/v1/bots"),
}


class _Asker:
    """Asks one request after the other, one at a time of each kind, and keeps their times."""

    def __init__(self, clients: dict[str, httpx.AsyncClient]) -> None:
        self._clients = clients
        self.milliseconds: dict[str, list[float]] = {name: [] for name in _REQUESTS}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[dict[str, list[float]]]:
        self.milliseconds = {name: [] for name in _REQUESTS}
        task = asyncio.create_task(self._ask())
        yield self.milliseconds
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _ask(self) -> None:
        while True:
            for name, (project_id, path) in _REQUESTS.items():
                started = time.perf_counter()
                (await self._clients[project_id].get(path)).raise_for_status()
                self.milliseconds[name].append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(0.01)


@dataclass(frozen=True)
class _Expected:
    """How many bots there must be when the rules are applied, and how many with this name."""

    bots: int
    name: str = "Notetaker"


async def _change(
    client: httpx.AsyncClient, database: asyncpg.Connection, body: dict[str, Any], expected: _Expected
) -> tuple[float, float]:
    """Return the seconds until the response to the PUT, and until all bots are as expected."""
    started = time.perf_counter()
    (await client.put("/api/v1/join_rules", json=body)).raise_for_status()
    responded = time.perf_counter() - started
    async with asyncio.timeout(300):
        while True:
            row = await database.fetchrow(
                "SELECT count(*) AS bots, count(*) FILTER (WHERE bot_name = $2) AS named FROM bots "
                "WHERE project_id = $1 AND state = 'scheduled'",
                _PROJECT,
                expected.name,
            )
            runs = await database.fetchval(
                "SELECT count(*) FROM join_rule_runs WHERE project_id = $1", _PROJECT
            )
            if runs == 0 and row["bots"] == row["named"] == expected.bots:
                return responded, time.perf_counter() - started
            await asyncio.sleep(0.05)


async def _measure_changes(url: str, database_url: str) -> None:
    customers = _EVENTS // 20
    changes = {
        "rules that join 1 of 20": (_rules(joined="customer"), _Expected(customers)),
        "another bot name for those": (
            _rules(joined="customer", bot_name="Scribe"),
            _Expected(customers, "Scribe"),
        ),
        "rules that change no bot": (
            {
                **_rules(joined="customer", bot_name="Scribe"),
                "rules": _rules(joined="customer", bot_name="Scribe")["rules"][1:],
            },
            _Expected(customers, "Scribe"),
        ),
        "rules that join all": (_rules(joined="c"), _Expected(_EVENTS)),
        "another bot name for all": (_rules(joined="c", bot_name="Scribe"), _Expected(_EVENTS, "Scribe")),
        "no rules": ({"rules": [], "bot_scope": "event"}, _Expected(0)),
        "one bot for a meeting": (_rules(joined="customer", scope="meeting"), _Expected(customers)),
    }
    database = await asyncpg.connect(database_url)
    async with contextlib.AsyncExitStack() as stack:
        clients = {
            project_id: await stack.enter_async_context(
                httpx.AsyncClient(base_url=url, headers={"Authorization": f"Token {key}"}, timeout=120)
            )
            for project_id, key in _KEYS.items()
        }
        asker = _Asker(clients)
        async with asker.running():
            await asyncio.sleep(2)
        async with asker.running() as idle:
            await asyncio.sleep(5)
        for name, (body, expected) in changes.items():
            async with asker.running() as busy:
                responded, took = await _change(clients[_PROJECT], database, body, expected)
            verdict = "ok" if took < _TARGET_SECONDS else "TOO SLOW"
            print(
                f"{_EVENTS:,} events ahead, {name}: response after {responded:.2f} s, applied after {took:.2f} s "
                f"(target {_TARGET_SECONDS:.0f}: {verdict})",
                flush=True,
            )
            for asked, times in busy.items():
                if times:
                    before, now = quantile(idle[asked], 0.5), quantile(times, 0.5)
                    print(
                        f"    {asked:27} p50 {before:.1f} -> {now:.1f} ms (x{now / before:.1f}), "
                        f"p95 {quantile(idle[asked], 0.95):.1f} -> {quantile(times, 0.95):.1f} ms, max {max(times):.0f} ms"
                    )
    await database.close()


@dataclass(frozen=True)
class _Ref:
    calendar_id: str
    project_id: str


async def _new_project(settings: Settings, rules: dict[str, Any] | None) -> str:
    """A project with these rules, put over the API of this process."""
    project_id, key = new_id("proj"), new_id("key")
    database = await asyncpg.connect(settings.required_database_url())
    await database.execute("INSERT INTO projects (id, name) VALUES ($1, 'bench')", project_id)
    await database.execute(
        "INSERT INTO api_keys (id, project_id, name, key_sha256) VALUES ($1, $2, 'bench', $3)",
        new_id("key"),
        project_id,
        sha256_hex(key),
    )
    await database.close()
    if rules is not None:
        app = create_app(settings)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app),
                base_url="http://bench",
                headers={"Authorization": f"Token {key}"},
                timeout=60,
            ) as client,
        ):
            (await client.put("/api/v1/join_rules", json=rules)).raise_for_status()
    return project_id


async def _new_calendar(sessions: Sessions, project_id: str) -> _Ref:
    calendar_id = new_id("cal")
    async with transaction(sessions) as session:
        session.add(
            Calendar(
                id=calendar_id,
                project_id=project_id,
                platform="google",
                owner_email="ada@example.com",
                next_sync_at=utcnow() + timedelta(days=1),
            )
        )
    return _Ref(calendar_id, project_id)


def _events(count: int, *, name: str = "Customer call") -> list[RemoteEvent]:
    start = utcnow().replace(minute=0, second=0, microsecond=0) + timedelta(hours=2)
    people = (RemoteAttendee("ada@example.com", "Ada"), RemoteAttendee("guest@customer.test", None))
    return [
        RemoteEvent(
            platform_uuid=f"event{number}",
            raw='{"description": "' + "x" * 3000 + '"}',
            start_time=start + number * timedelta(minutes=5),
            end_time=start + number * timedelta(minutes=5) + timedelta(minutes=30),
            name=f"{name} {number}",
            attendees=people,
            response_status="accepted",
            meeting_url=f"{_LINK}{number}",
            meeting_platform="zoom",
        )
        for number in range(count)
    ]


async def _write(sessions: Sessions, ref: _Ref, events: list[RemoteEvent]) -> None:
    """Write events as a sync does, in transactions of some hundred."""
    window = Window(utcnow() - timedelta(days=1), utcnow() + timedelta(days=400))
    for first in range(0, len(events), _BATCH):
        async with transaction(sessions) as session:
            await session.execute(
                select(Calendar.id).where(Calendar.id == ref.calendar_id).with_for_update(key_share=True)
            )
            await apply_changes(
                session,
                ref,
                events[first : first + _BATCH],
                window=window,
                removed={},
                earlier=Unannounced(),
                is_announced_now=True,
                bot_platforms=frozenset({"zoom", "google_meet", "teams"}),
            )


async def _measure_syncs(settings: Settings) -> None:
    engine = create_engine(settings.required_database_url())
    sessions = create_sessions(engine)
    cases = {
        "no rules": None,
        "10 rules that join none": _rules(joined=None),
        "10 rules that join all": _rules(joined="customer"),
        "10 rules that join all, one bot for a meeting": _rules(joined="customer", scope="meeting"),
    }
    events, renamed = _events(_SYNCED), _events(_SYNCED, name="Customer call, moved room")
    base: dict[str, tuple[float, float]] = {}
    await _write(sessions, await _new_calendar(sessions, await _new_project(settings, None)), events)
    for name, rules in cases.items():
        for phase, written in (("first sync", events), ("all changed", renamed)):
            runs = []
            for _ in range(3):
                ref = await _new_calendar(sessions, await _new_project(settings, rules))
                if phase == "all changed":
                    await _write(sessions, ref, events)
                with measured() as run:
                    await _write(sessions, ref, written)
                runs.append(run)
            best = min(runs, key=lambda run: run.wall)
            base.setdefault(phase, (best.wall, best.cpu))
            wall, cpu = base[phase]
            print(
                f"writing {_SYNCED} events, {phase}, {name}: {best.wall:.2f} s wall (x{best.wall / wall:.2f}), "
                f"{best.cpu:.2f} s CPU (x{best.cpu / cpu:.2f})",
                flush=True,
            )
    for scope in ("event", "meeting"):
        project_id = await _new_project(settings, _rules(joined="customer", scope=scope))
        refs = [await _new_calendar(sessions, project_id) for _ in range(_SHARING)]
        shared = events[:_SHARED]
        with measured() as run:
            await asyncio.gather(*(_write(sessions, ref, shared) for ref in refs))
        async with transaction(sessions) as session:
            connection = await session.connection()
            bots = (
                await connection.exec_driver_sql(
                    "SELECT count(*) FROM bots WHERE project_id = $1", (project_id,)
                )
            ).scalar_one()
        print(
            f"{_SHARING} calendars that share {_SHARED} meetings, written at once, scope {scope}: {run.wall:.2f} s wall, "
            f"{run.cpu:.2f} s CPU, {bots} bots"
        )
    await engine.dispose()


def main() -> None:
    configure_logging(level="WARNING", json=False)
    with servers() as (database_url, redis_url):
        settings = settings_for(database_url, redis_url)
        asyncio.run(_measure_syncs(settings))
        asyncio.run(_seed(database_url))
        with _api(settings) as url, worker(settings):
            asyncio.run(_measure_changes(url, database_url))


if __name__ == "__main__":
    main()
