"""The time to read the gauges of `/metrics` over a large database. The limit for each is 0.8 s."""

import asyncio
import statistics
import time
from datetime import timedelta

from sqlalchemy import text

from app.core.db import create_engine, create_sessions, reading, transaction
from app.health import repository
from bench.support import servers

_CALENDARS = 200_000
_WEBHOOKS = 8_000
_DELIVERIES = 300_000
_MAILS = 100_000
_TIMES = 5

_FILL = (
    "INSERT INTO projects (id, name) SELECT 'proj_' || n, '' FROM generate_series(1, 1000) AS n",
    f"""
    INSERT INTO calendars (id, project_id, platform, next_sync_at, sync_cursor)
    SELECT 'cal_' || n, 'proj_' || 1 + n % 1000, (ARRAY['google', 'microsoft', 'ics'])[1 + n % 3],
           now() + (n % 1800 - 600) * interval '1 second', repeat('x', 300)
    FROM generate_series(1, {_CALENDARS}) AS n
    """,
    f"""
    INSERT INTO push_channels (id, project_id, calendar_id, platform, state, secret_sha256)
    SELECT 'channel_' || n, 'proj_' || 1 + n % 1000, 'cal_' || n, 'google', 'open', repeat('x', 64)
    FROM generate_series(1, {_CALENDARS}) AS n
    """,
    f"""
    INSERT INTO webhook_subscriptions (id, project_id, url, triggers, secrets_sealed)
    SELECT 'webhook_' || n, 'proj_' || 1 + n % 1000, '', ARRAY[]::text[], '' FROM generate_series(1, {_WEBHOOKS}) AS n
    """,
    f"""
    INSERT INTO webhook_deliveries (id, subscription_id, trigger, idempotency_key, body, next_attempt_at)
    SELECT 'dlv_' || n, 'webhook_' || 1 + n % {_WEBHOOKS}, 'x', 'x', repeat('x', 300)::bytea,
           now() + (n % 7200 - 60) * interval '1 second'
    FROM generate_series(1, {_DELIVERIES}) AS n
    """,
    f"""
    INSERT INTO invitation_mails (id, project_id, calendar_id, event_uid, method, sequence, recipient_key,
                                  recipient_email, sender_email, owner_email, message_id, mail, next_attempt_at)
    SELECT 'msg_' || n, 'proj_1', 'cal_1', 'u' || n, 'REQUEST', 0, 'a', 'a', 'b', 'b', n::text, 'x', now() - interval '1 minute'
    FROM generate_series(1, {_MAILS}) AS n
    """,
    f"""
    INSERT INTO bots (id, project_id, meeting_url, join_at, bot_name, metadata)
    SELECT 'bot_' || n, 'proj_1', 'x', now() + (n % 86400) * interval '1 second', 'x', NULL
    FROM generate_series(1, {_MAILS}) AS n
    """,
)


async def _measure(database_url: str) -> None:
    engine = create_engine(database_url)
    sessions = create_sessions(engine)
    async with transaction(sessions) as session:
        await session.execute(text("SET LOCAL statement_timeout = 0"))
        for statement in _FILL:
            await session.execute(text(statement))
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text("VACUUM ANALYZE"))
    readers = {
        "sync lag": repository.load_sync_lags,
        "delivery lag": repository.load_delivery_lag,
        "mail lag": repository.load_mail_lag,
        "bot lag": lambda session: repository.load_bot_lag(session, timedelta(minutes=5)),
        "outbox": repository.count_pending,
        "calendars": repository.count_calendars,
        "push channels": repository.count_channels,
    }
    print(
        f"{_CALENDARS} calendars, {_WEBHOOKS} webhooks with {_DELIVERIES} pending deliveries, {_MAILS} due mails"
    )
    for name, read in readers.items():
        took = []
        for _ in range(_TIMES):
            async with reading(sessions) as snapshot:
                started = time.perf_counter()
                await read(snapshot)
                took.append((time.perf_counter() - started) * 1000)
        print(f"  {name:14} first {took[0]:7.1f} ms, median {statistics.median(took):7.1f} ms")
    await engine.dispose()


def main() -> None:
    with servers() as (database_url, _):
        asyncio.run(_measure(database_url))
