"""Invitations: events with many guests, clicks on the RSVP page, mails per second, fairness, claims.

The API runs in this process. The worker and a fake Messages, which takes 70 ms for a mail like the real one, have their
own processes. They share the machine with a durable PostgreSQL and a Redis.
"""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from app.core.db import create_engine, create_sessions, transaction
from app.core.http import httpx
from app.invitations.links import RsvpTokens, Subject
from app.invitations.repository import claims
from app.main import create_app
from app.projects.service import create_project
from app.settings import Settings
from bench.support import measured, quantile, servers, settings_for, worker
from tests.fakes.messages import FakeMessages
from tests.fakes.server import serve

OWNER = "ada@example.com"
OTHER = "rem@example.com"
LIMITED = "lim@example.com"  # may send nothing until midnight
TAKES_SECONDS = 0.07
GUESTS = (1, 20, 100, 500)
CLICKS = 25  # an address may click 60 times a minute
MAILS = 200
WAITING = 100_000
CLAIMS = 100
LARGE = 200
LANES = 1_000


def _serve_messages(pipe: Any) -> None:
    async def main() -> None:
        fake = FakeMessages()
        for address in (OWNER, OTHER, LIMITED):
            fake.limits[fake.add_mailbox(address, admin=address).id] = 0 if address == LIMITED else 1_000_000

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(TAKES_SECONDS)
            await fake(scope, receive, send)

        async with serve(slow) as url:
            pipe.send(
                {
                    "messages_api_url": url,
                    "messages_api_key": fake.api_key,
                    "messages_channel_id": fake.channel_id,
                }
            )
            while not pipe.poll():
                await asyncio.sleep(0.05)

    asyncio.run(main())


@contextlib.asynccontextmanager
async def _messages() -> AsyncIterator[dict[str, str]]:
    """Run a fake Messages and yield the settings with its address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_messages, args=(theirs,), daemon=True)
    process.start()
    try:
        yield await asyncio.to_thread(ours.recv)
    finally:
        ours.send("stop")
        await asyncio.to_thread(process.join, 10)


async def _create(api: httpx.AsyncClient, calendar_id: str, guests: int, **more: Any) -> dict[str, Any]:
    start = datetime.now(UTC) + timedelta(days=3)
    body = {
        "calendar_id": calendar_id,
        "name": "Analysis",
        "description": "Bring your books.\n" * 20,
        "location": "Room 1",
        "start_time": start.isoformat(),
        "end_time": (start + timedelta(hours=1)).isoformat(),
        "attendees": [
            {"email": f"guest{number}@example.org", "name": f"Guest {number}"} for number in range(guests)
        ],
        **more,
    }
    response = await api.post("/api/v1/calendar_events", json=body)
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


async def _creating(api: httpx.AsyncClient, calendar_id: str) -> None:
    await _create(api, calendar_id, 1)  # warms up imports and caches
    await api.get("/healthz")
    for guests in GUESTS:
        others: list[float] = []

        async def ask(stop: asyncio.Event, others: list[float] = others) -> None:
            while not stop.is_set():
                started = time.perf_counter()
                await api.get("/healthz")
                others.append((time.perf_counter() - started) * 1000)
                await asyncio.sleep(0.01)

        stop = asyncio.Event()
        asking = asyncio.create_task(ask(stop))
        with measured() as used:
            await _create(api, calendar_id, guests)
        stop.set()
        await asking
        print(
            f"event with {guests:>3} guests created in {used.wall * 1000:6,.0f} ms ({used.cpu * 1000 / guests:.1f} ms CPU "
            f"a guest); another request meanwhile: {quantile(others, 0.5):.0f} ms (p50), {max(others):.0f} ms at most"
        )


async def _clicking(api: httpx.AsyncClient, calendar_id: str, settings: Settings) -> None:
    tokens = RsvpTokens(settings.fernet_keys)
    for name, more in (
        ("an event", {}),
        ("a daily series without an end", {"recurrence": ["RRULE:FREQ=DAILY"]}),
    ):
        event = await _create(api, calendar_id, CLICKS, **more)
        times = []
        for number in range(CLICKS):
            subject = Subject(calendar_id, event["ical_uid"], "", f"guest{number}@example.org")
            started = time.perf_counter()
            page = await api.post("/rsvp/", data={"token": tokens.sign(subject), "action": "accepted"})
            times.append((time.perf_counter() - started) * 1000)
            assert page.status_code == 200, page.text
        print(
            f"{name} with {CLICKS} guests, a click: {quantile(times, 0.5):.0f} ms (p50), {quantile(times, 0.95):.0f} ms (p95)"
        )


async def _sending(
    api: httpx.AsyncClient,
    database: asyncpg.Connection,
    calendar_id: str,
    settings: Settings,
    messages: dict[str, str],
) -> None:
    await database.execute("DELETE FROM invitation_mails")
    for _ in range(MAILS // 20):
        await _create(api, calendar_id, 20)
    environment = {name.upper(): value for name, value in messages.items()}
    with worker(settings, FEATURE_MESSAGES_INTEGRATION="true", **environment):
        sent, started, last = 0, 0.0, 0.0
        async with asyncio.timeout(300):
            while sent < MAILS:
                await asyncio.sleep(0.02)
                sent = await database.fetchval("SELECT count(*) FROM invitation_mails WHERE status = 'sent'")
                started = started or (time.monotonic() if sent else 0.0)
                last = time.monotonic()
    print(
        f"one worker, one mailbox: {MAILS / (last - started):.0f} mails/s to a Messages that takes {TAKES_SECONDS * 1000:.0f} ms for each"
    )


async def _taking_turns(
    api: httpx.AsyncClient,
    database: asyncpg.Connection,
    calendars: dict[str, str],
    settings: Settings,
    messages: dict[str, str],
) -> None:
    """Measure one mail of a mailbox that waits behind a large event of another mailbox."""
    environment = {name.upper(): value for name, value in messages.items()}
    waited = """
        SELECT extract(epoch FROM max(finished_at) - min(created_at))::float FROM invitation_mails
        WHERE sender_email = $1 AND status = 'sent' HAVING count(*) = $2
    """
    for first, sent in ((OWNER, LARGE), (LIMITED, 0)):
        await database.execute("DELETE FROM invitation_mails")
        with worker(settings, FEATURE_MESSAGES_INTEGRATION="true", **environment):
            await _create(api, calendars[first], LARGE)
            async with asyncio.timeout(300):
                tried = "SELECT count(*) FROM invitation_mails WHERE attempt_count > 0"
                while not await database.fetchval(tried):  # until the worker is up
                    await asyncio.sleep(0.02)
                await _create(api, calendars[OTHER], 1)
                while (behind := await database.fetchval(waited, OTHER, 1)) is None:
                    await asyncio.sleep(0.02)
                while sent and (await database.fetchval(waited, first, sent)) is None:
                    await asyncio.sleep(0.1)
        if sent:
            whole = await database.fetchval(waited, first, sent)
            print(
                f"one mail behind an event with {LARGE} guests of another mailbox: sent after {behind:.1f} s, those after {whole:.1f} s"
            )
        else:
            print(f"one mail while a mailbox with {LARGE} mails is at its limit: sent after {behind:.1f} s")


async def _claiming(settings: Settings, database: asyncpg.Connection) -> None:
    """Measure claims of due mails among many that wait for a retry."""
    await database.execute(
        """
        INSERT INTO invitation_mails (id, project_id, calendar_id, event_uid, method, sequence, recipient_key, recipient_email,
            mailbox_id, sender_email, owner_email, message_id, mail, next_attempt_at)
        SELECT 'msg_' || n, c.project_id, c.id, 'uid-' || n / 20, 'REQUEST', 0, 'g' || n || '@example.org', 'g' || n || '@example.org',
            'x', 'a@example.org', 'a@example.org', '<' || n || '>', convert_to(repeat('x', 6000), 'UTF8'),
            now() + CASE WHEN n % 50 = 0 THEN interval '-1 minute' ELSE interval '1 hour' END
        FROM generate_series(1, $1::int) AS n, (SELECT id, project_id FROM calendars LIMIT 1) AS c
        """,
        WAITING,
    )
    await database.execute("ANALYZE invitation_mails")
    engine = create_engine(settings.required_database_url())
    sessions = create_sessions(engine)
    for lanes in (20, LANES):
        await database.execute("UPDATE invitation_mails SET mailbox_id = 'box-' || position / 50 % $1", lanes)
        await database.execute("DELETE FROM mail_lanes")
        # Half of the mailboxes are at their limits.
        await database.execute(
            "INSERT INTO mail_lanes (key, held_until, hold_count) SELECT 'mailbox:box-' || n, now() + interval '1 hour', 1 "
            "FROM generate_series(1, $1::int, 2) AS n",
            lanes,
        )
        await database.execute("VACUUM ANALYZE invitation_mails")
        times = []
        for _ in range(CLAIMS):
            started = time.perf_counter()
            async with transaction(sessions) as session:
                claimed = await claims.claim_due(
                    session, by_messages=3, by_smtp=0, lease_token="bench", lease_for=timedelta(minutes=2)
                )
            times.append((time.perf_counter() - started) * 1000)
            assert len(claimed) == 3
            await database.execute("UPDATE mail_lanes SET leased_until = NULL WHERE leased_until IS NOT NULL")
        print(
            f"{WAITING:,} mails of {lanes:,} mailboxes waiting, half of them at their limits, a claim of 3: "
            f"{quantile(times, 0.5):.1f} ms (p50), {quantile(times, 0.95):.1f} ms (p95)"
        )
    await engine.dispose()


async def _main(database_url: str, redis_url: str) -> None:
    async with _messages() as messages:
        settings = settings_for(
            database_url, redis_url, feature_messages_integration=True, log_level="WARNING", **messages
        )
        engine = create_engine(database_url)
        async with transaction(create_sessions(engine)) as session:
            api_key = (await create_project(session, "bench")).api_key
        await engine.dispose()
        database = await asyncpg.connect(database_url)
        app = create_app(settings)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app),
                base_url="http://bench",
                headers={"Authorization": f"Token {api_key}"},
                timeout=60,
            ) as api,
        ):
            calendars = {}
            for owner in (OWNER, OTHER, LIMITED):
                calendar = {
                    "platform": "local",
                    "name": "Bench",
                    "owner_email": owner,
                    "timezone": "Europe/Paris",
                }
                calendars[owner] = (await api.post("/api/v1/calendars", json=calendar)).json()["id"]
            calendar_id = calendars[OWNER]
            await _creating(api, calendar_id)
            await _clicking(api, calendar_id, settings)
            await _sending(api, database, calendar_id, settings, messages)
            await _taking_turns(api, database, calendars, settings, messages)
        await _claiming(settings, database)
        await database.close()


def main() -> None:
    with servers() as (database_url, redis_url):
        asyncio.run(_main(database_url, redis_url))


if __name__ == "__main__":
    main()
