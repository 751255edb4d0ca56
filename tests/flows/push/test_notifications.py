"""Notifications of changes by a fake Google."""

import asyncio
from datetime import timedelta

from sqlalchemy import text

from app.core.clock import utcnow
from app.core.db import transaction
from app.core.http import httpx, operator_client
from app.schedule import mark_due
from app.sync.engine import LEASE_FOR
from tests.conftest import StartWorker
from tests.flows.conftest import GoogleCalendarUnderTest
from tests.flows.push.channels import LATER, SOON, Push, has_sent, subscribe, until


async def test_a_change_reaches_the_webhooks_by_push_alone(
    google: GoogleCalendarUnderTest, opened: Push, client: httpx.AsyncClient, start_worker: StartWorker
) -> None:
    await subscribe(client)
    # The tick and the poll would both be too late.
    google.settings.scheduler_tick_seconds = 60
    await start_worker()
    await asyncio.sleep(0.5)
    google.add("new")
    await until(lambda: has_sent(google.sessions, webhooks=1))
    assert await google.names() == ["new"]


async def test_a_burst_makes_one_sync(google: GoogleCalendarUnderTest, opened: Push) -> None:
    for n in range(5):
        google.add(f"event {n}")
        await asyncio.sleep(0)
    await google.fake.deliver_notifications()
    first_due_at = (await opened.calendar()).next_sync_at
    assert first_due_at - utcnow() < SOON
    for n in range(5, 20):
        google.add(f"event {n}")
        await asyncio.sleep(0)
    google.fake.duplicate_notifications = True
    google.add("event 20")
    await google.fake.deliver_notifications()
    # Later notifications do not postpone the sync, and do not add one.
    assert (await opened.calendar()).next_sync_at <= first_due_at
    before = len(google.fake.requests_to("events.list"))
    await google.sync()
    assert len(google.fake.requests_to("events.list")) == before + 1
    assert len(await google.names()) == 21
    assert await opened.sync_due_in() > LATER


async def test_a_change_while_a_sync_runs_makes_one_more(
    google: GoogleCalendarUnderTest, opened: Push
) -> None:
    google.fake.inject_fault("events.list", delay=1.0)
    syncing = asyncio.create_task(google.sync())
    await until(lambda: _leased(opened))
    google.add("new")
    await google.fake.deliver_notifications()
    assert not syncing.done()
    await syncing
    assert await opened.sync_due_in() < SOON


async def _leased(push: Push) -> bool:
    return (await push.calendar()).lease_token is not None


async def test_notifications_do_not_cut_a_backoff_short(
    google: GoogleCalendarUnderTest, opened: Push
) -> None:
    google.fake.inject_fault(
        "events.list", 429, "rateLimitExceeded", headers={"Retry-After": "600"}, delay=1.0
    )
    syncing = asyncio.create_task(google.sync())
    await until(lambda: _leased(opened))
    google.add("while it runs")
    await google.fake.deliver_notifications()
    await syncing
    assert await opened.sync_due_in() > timedelta(seconds=590)
    google.add("while it waits")
    await google.fake.deliver_notifications()
    assert await opened.sync_due_in() > timedelta(seconds=590)


async def test_notifications_that_are_forged_or_of_no_change_do_not_sync(
    google: GoogleCalendarUnderTest, opened: Push, application: str
) -> None:
    [channel] = google.fake.channels.values()
    token = channel.token or ""
    right = {
        "X-Goog-Channel-ID": channel.id,
        "X-Goog-Channel-Token": token,
        "X-Goog-Resource-State": "exists",
    }
    [row] = await opened.channels()
    attempts: list[dict[str, str]] = [
        {},
        {"X-Goog-Channel-ID": channel.id},
        {**right, "X-Goog-Channel-Token": ""},
        {**right, "X-Goog-Channel-Token": token[:-1]},
        {**right, "X-Goog-Channel-Token": "é"},
        {**right, "X-Goog-Channel-Token": row.secret_sha256},
        {**right, "X-Goog-Channel-ID": "00000000-0000-0000-0000-000000000000"},
        {**right, "X-Goog-Channel-ID": "x" * 5000},
        {**right, "X-Goog-Resource-State": "sync", "X-Goog-Resource-ID": "other"},
        {**right, "X-Goog-Resource-State": "something new"},
    ]
    async with operator_client() as client:
        for headers in attempts:
            sent = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            response = await client.post(f"{application}/notifications/google", headers=sent)
            assert (response.status_code, response.content) == (200, b""), headers
            assert await opened.sync_due_in() > LATER, headers
        assert (await opened.channels())[0].resource_id == row.resource_id
        for state in ("exists", "update", "not_exists"):
            await google.sync()
            assert await opened.sync_due_in() > LATER
            headers = {**right, "X-Goog-Resource-State": state}
            response = await client.post(f"{application}/notifications/google", headers=headers)
            assert response.status_code == 200
            assert await opened.sync_due_in() < SOON, state


async def test_a_notification_during_a_sync_is_kept_however_long_the_debounce_is(
    google: GoogleCalendarUnderTest, opened: Push
) -> None:
    await google.sync()
    async with transaction(opened.sessions) as session:
        await session.execute(text("UPDATE calendars SET next_sync_at = now()"))
    [claim] = await google.engine.claim(1)
    for moved in (1, 0):
        async with transaction(opened.sessions) as session:
            assert await mark_due(session, sync_ids=[google.id], delay=timedelta(hours=1)) == moved
    await google.engine.handle(claim)
    assert await opened.sync_due_in() < LEASE_FOR
