"""Push: channels opened, renewed and closed at real fakes that notify the running application."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from limits import RateLimitItemPerMinute
from sqlalchemy import select, text

from app.core.clock import utcnow
from app.core.crypto import SecretBox, sha256_hex
from app.core.db import Sessions, transaction
from app.core.http import httpx, operator_client
from app.credentials.budgets import _USER, Budgets
from app.credentials.store import CredentialStore
from app.main import create_app
from app.models import Calendar, PushChannel
from app.push.channels import PushChannelWorker
from app.push.service import sealed_context
from app.schedule import mark_due
from app.settings import Settings
from app.sync.engine import LEASE_FOR
from app.sync.repository import claim_due
from tests import factories
from tests.conftest import StartWorker, TestProject
from tests.fakes.microsoft import FakeMicrosoft
from tests.fakes.microsoft_push import LifecycleEvent, Subscription
from tests.fakes.server import serve
from tests.flows.conftest import GoogleCalendarUnderTest

WEEK = timedelta(days=7)


@pytest.fixture
async def application(settings: Settings) -> AsyncIterator[str]:
    """The application, served where the providers can notify it; its URL."""
    async with serve(create_app(settings)) as url:
        settings.app_url = url
        settings.calendar_push_enabled = True
        yield url


@pytest.fixture
async def client(application: str, project: TestProject) -> AsyncIterator[httpx.AsyncClient]:
    async with operator_client() as client:
        client.base_url = httpx.URL(application)
        client.headers["Authorization"] = f"Token {project.api_key}"
        yield client


@contextlib.asynccontextmanager
async def channel_worker(settings: Settings, sessions: Sessions) -> AsyncIterator[PushChannelWorker]:
    """As a worker has it."""
    box = SecretBox(settings.fernet_keys)
    budgets = Budgets(settings.required_redis_url())
    async with operator_client() as client:
        credentials = CredentialStore(settings=settings, sessions=sessions, box=box, client=client)
        yield PushChannelWorker(
            settings=settings,
            sessions=sessions,
            box=box,
            credentials=credentials,
            budgets=budgets,
            client=client,
        )
    await budgets.aclose()


@dataclass
class Push:
    """Channels of the calendar under test, and what a worker does about them."""

    worker: PushChannelWorker
    sessions: Sessions
    calendar_id: str

    async def work(self) -> list[Any]:
        """Works off what is due, once."""
        due = list(await self.worker.claim(100))
        for item in due:
            await self.worker.handle(item)
        return due

    async def make_due(self) -> None:
        """As if the time of everything had come."""
        async with transaction(self.sessions) as session:
            await session.execute(
                text("UPDATE calendars SET push_due_at = now() WHERE push_due_at IS NOT NULL")
            )
            await session.execute(
                text("UPDATE push_channels SET next_attempt_at = now() WHERE state = 'closing'")
            )

    async def channels(self, state: str | None = None) -> list[PushChannel]:
        async with self.sessions() as session:
            rows = await session.scalars(select(PushChannel).order_by(PushChannel.created_at))
            return [row for row in rows if state in {None, row.state}]

    async def calendar(self) -> Calendar:
        async with self.sessions() as session:
            return (
                await session.execute(select(Calendar).where(Calendar.id == self.calendar_id))
            ).scalar_one()

    async def push_due_in(self) -> timedelta:
        due_at = (await self.calendar()).push_due_at
        assert due_at is not None
        return due_at - utcnow()

    async def sync_due_in(self) -> timedelta:
        return (await self.calendar()).next_sync_at - utcnow()


SOON = timedelta(seconds=1)
LATER = timedelta(minutes=20)


async def until(condition: Callable[[], Awaitable[bool]], *, within: float = 20) -> None:
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.02)


async def subscribe(client: httpx.AsyncClient) -> None:
    webhook = {"url": f"{client.base_url}/healthz", "triggers": ["calendar.events_update"]}
    assert (await client.post("/api/v1/webhooks", json=webhook)).status_code == 201


async def has_told(sessions: Sessions, *, webhooks: int) -> bool:
    """Whether so many webhooks have been sent."""
    async with sessions() as session:
        count = await session.scalar(text("SELECT count(*) FROM webhook_deliveries WHERE attempts <> '[]'"))
        return bool(count == webhooks)


# --- Google ----------------------------------------------------------------------------------------------


@pytest.fixture
async def push(application: str, google: GoogleCalendarUnderTest) -> AsyncIterator[Push]:
    google.fake.allow_http_push = True
    async with channel_worker(google.settings, google.sessions) as worker:
        yield Push(worker, google.sessions, google.id)


@pytest.fixture
async def opened(google: GoogleCalendarUnderTest, push: Push) -> Push:
    """Synced, with an open channel, and synced again as the open channel asks for."""
    await google.sync()
    await push.work()
    await google.fake.drain_notifications()
    await google.sync()
    assert await push.sync_due_in() > LATER
    return push


async def test_a_channel_is_opened_after_the_first_sync(
    google: GoogleCalendarUnderTest, push: Push, application: str
) -> None:
    assert await push.work() == []
    await google.sync()
    assert await push.sync_due_in() > LATER
    await push.work()
    [row] = await push.channels()
    [channel] = google.fake.channels.values()
    assert (row.id, row.state, row.resource_id) == (channel.id, "open", channel.resource_id)
    assert channel.address == f"{application}/notifications/google"
    assert channel.token is not None
    assert row.secret_sha256 == sha256_hex(channel.token)
    assert row.expires_at is not None
    assert abs(row.expires_at - channel.expires_at) < timedelta(seconds=1)
    assert 0.39 * WEEK < await push.push_due_in() < 0.5 * WEEK
    # What changed between the first sync and the opening was told by nobody.
    assert await push.sync_due_in() < SOON
    assert await push.work() == []


async def test_nothing_is_opened_before_a_sync_succeeds(google: GoogleCalendarUnderTest, push: Push) -> None:
    google.fake.inject_fault("events.list", 503, count=3)
    await google.sync()
    assert await push.work() == []


async def test_with_push_switched_off_calendars_are_polled(
    google: GoogleCalendarUnderTest, push: Push
) -> None:
    google.settings.calendar_push_enabled = False
    await google.sync()
    assert await push.work() == []
    assert (await push.calendar()).push_due_at is None


async def test_a_change_reaches_the_webhooks_by_the_bell_alone(
    google: GoogleCalendarUnderTest, opened: Push, client: httpx.AsyncClient, start_worker: StartWorker
) -> None:
    await subscribe(client)
    # Neither the tick nor the poll would get there in time.
    google.settings.scheduler_tick_seconds = 60
    await start_worker()
    await asyncio.sleep(0.5)
    google.add("new")
    await until(lambda: has_told(google.sessions, webhooks=1))
    assert await google.names() == ["new"]


async def test_a_burst_makes_one_sync(google: GoogleCalendarUnderTest, opened: Push) -> None:
    for n in range(5):
        google.add(f"event {n}")
        await asyncio.sleep(0)
    await google.fake.drain_notifications()
    first_due_at = (await opened.calendar()).next_sync_at
    assert first_due_at - utcnow() < SOON
    for n in range(5, 20):
        google.add(f"event {n}")
        await asyncio.sleep(0)
    google.fake.duplicate_notifications = True
    google.add("event 20")
    await google.fake.drain_notifications()
    # Later notifications neither put the sync off nor add one.
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
    await google.fake.drain_notifications()
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
    await google.fake.drain_notifications()
    await syncing
    assert await opened.sync_due_in() > timedelta(seconds=590)
    google.add("while it waits")
    await google.fake.drain_notifications()
    assert await opened.sync_due_in() > timedelta(seconds=590)


async def test_a_channel_is_renewed_with_an_overlap(google: GoogleCalendarUnderTest, opened: Push) -> None:
    [old] = google.fake.channels.values()
    await opened.make_due()
    [due] = await opened.worker.claim(1)
    await opened.worker.handle(due)
    assert len(google.fake.channels) == 2
    # Nothing was missed meanwhile, so no sync is asked for.
    assert await opened.sync_due_in() > LATER
    google.add("told twice")
    await google.fake.drain_notifications()
    assert await opened.sync_due_in() < SOON
    await google.sync()
    await opened.work()
    assert old.id not in google.fake.channels
    [new] = google.fake.channels.values()
    assert [row.id for row in await opened.channels()] == [new.id]
    google.add("told once")
    await google.fake.drain_notifications()
    assert await opened.sync_due_in() < SOON


async def test_a_renewal_after_the_channels_end_asks_for_a_sync(
    google: GoogleCalendarUnderTest, opened: Push
) -> None:
    async with transaction(google.sessions) as session:
        await session.execute(text("UPDATE push_channels SET expires_at = now() - interval '1 hour'"))
    await opened.make_due()
    await opened.work()
    assert await opened.sync_due_in() < SOON
    # What has ended by itself is not stopped.
    await opened.work()
    assert google.fake.requests_to("channels.stop") == []
    assert len(await opened.channels()) == 1


async def test_a_calendar_without_push_is_polled(google: GoogleCalendarUnderTest, push: Push) -> None:
    google.fake.push_unsupported.add(google.fake.email)
    await google.sync()
    await push.work()
    assert await push.channels() == []
    assert timedelta(days=6) < await push.push_due_in() < timedelta(days=8)
    google.add("polled")
    await google.sync()
    row = await push.calendar()
    assert (row.state, row.sync_failing_since) == ("connected", None)
    assert await google.names() == ["polled"]


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (503, None, "answer"),
        (403, "insufficientPermissions", "answer"),
        (401, "webhookUrlUnauthorized", "answer"),
        (None, None, "cut"),
    ],
)
async def test_a_channel_that_fails_holds_up_no_sync(
    google: GoogleCalendarUnderTest, push: Push, status: int | None, reason: str | None, kind: str
) -> None:
    body = b"<html>Error</html>" if kind == "answer" and reason is None else None
    google.fake.inject_fault("events.watch", status, reason, body=body, kind=kind, count=2)
    await google.sync()
    waits = []
    for _ in range(2):
        await push.work()
        await google.fake.drain_notifications()
        waits.append(await push.push_due_in())
        row = await push.calendar()
        assert (row.state, row.sync_failure_count, row.connection_failure_data) == ("connected", 0, None)
        assert len(await push.channels("opening")) == 1
        await push.make_due()
    assert timedelta(seconds=30) < waits[0] < timedelta(seconds=76) < waits[1] < timedelta(seconds=151)
    await push.work()
    assert len(await push.channels("open")) == 1
    assert await push.channels("opening") == []
    await push.make_due()
    await push.work()
    await push.work()
    # Those that were opened though their answer got lost are closed, too.
    assert len(google.fake.channels) == 1
    assert len(google.fake.requests_to("token")) == 1


async def test_retry_after_is_honoured(google: GoogleCalendarUnderTest, push: Push) -> None:
    google.fake.inject_fault("events.watch", 429, "rateLimitExceeded", headers={"Retry-After": "900"})
    await google.sync()
    await push.work()
    assert await push.push_due_in() > timedelta(seconds=890)


async def test_opening_a_channel_counts_into_the_accounts_budget(
    google: GoogleCalendarUnderTest, push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_USER, "google", RateLimitItemPerMinute(1))
    await google.sync()
    await push.work()
    assert google.fake.requests_to("events.watch") == []
    assert timedelta(seconds=10) < await push.push_due_in() < timedelta(seconds=90)


async def test_the_first_message_may_come_before_the_answer(
    google: GoogleCalendarUnderTest, push: Push
) -> None:
    google.fake.sync_message_first = True
    await google.sync()
    await push.work()
    [row] = await push.channels()
    assert row.state == "open"
    assert row.resource_id is not None


async def test_a_worker_that_dies_after_the_request_leaves_no_channel_behind(
    google: GoogleCalendarUnderTest, push: Push
) -> None:
    google.fake.sync_message_first = True
    await google.sync()
    [due] = await push.worker.claim(1)
    working = asyncio.create_task(push.worker.handle(due))

    async def is_there() -> bool:
        return bool(google.fake.channels)

    await until(is_there)
    working.cancel()  # its process is gone: whatever the provider answers is lost
    await asyncio.gather(working, return_exceptions=True)
    [row] = await push.channels()

    async def has_heard() -> bool:
        [row] = await push.channels()
        return row.resource_id is not None

    await until(has_heard)
    assert row.state == "opening"
    assert await push.work() == []  # its lease has not run out
    await push.make_due()
    await push.work()
    await push.work()
    [left] = google.fake.channels.values()
    assert left.id != row.id
    assert [other.id for other in await push.channels()] == [left.id]


async def test_a_worker_that_dies_before_the_request_leaves_no_row_behind(
    google: GoogleCalendarUnderTest, push: Push
) -> None:
    await google.sync()
    google.fake.inject_fault("events.watch", delay=5, count=3)
    known: set[str] = set()
    for _ in range(3):
        [due] = await push.worker.claim(1)
        working = asyncio.create_task(push.worker.handle(due))
        await until(partial(_has_other_channels, push, known))
        known = {row.id for row in await push.channels()}
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        assert len(await push.channels()) == 1
        await push.make_due()
    google.fake.clear_faults()
    await push.work()
    assert [row.state for row in await push.channels()] == ["open"]


async def _has_channels(push: Push) -> bool:
    return bool(await push.channels())


async def _has_other_channels(push: Push, known: set[str]) -> bool:
    return known.isdisjoint(row.id for row in await push.channels()) and bool(await push.channels())


async def test_two_workers_open_one_channel(google: GoogleCalendarUnderTest, push: Push) -> None:
    await google.sync()
    claims = await asyncio.gather(*(push.worker.claim(10) for _ in range(4)))
    assert sum(map(len, claims)) == 1


async def test_an_attempt_whose_row_was_cleared_away_closes_its_channel(
    google: GoogleCalendarUnderTest, push: Push
) -> None:
    google.fake.inject_fault("events.watch", delay=1.0)
    await google.sync()
    [due] = await push.worker.claim(1)
    working = asyncio.create_task(push.worker.handle(due))
    await until(lambda: _has_channels(push))
    await push.make_due()  # its lease has run out: another worker takes over
    await push.work()
    await working
    [row] = await push.channels("open")
    assert list(google.fake.channels) == [row.id]


async def test_deleting_a_calendar_closes_its_channel(
    google: GoogleCalendarUnderTest, opened: Push, client: httpx.AsyncClient
) -> None:
    [channel] = google.fake.channels.values()
    assert (await client.delete(f"/api/v1/calendars/{google.id}")).status_code == 200
    [row] = await opened.channels()
    assert (row.state, row.calendar_id) == ("closing", None)
    assert row.sealed is not None
    assert google.fake.refresh_token.encode() not in row.sealed
    grant = SecretBox(google.settings.fernet_keys).open(sealed_context(row.id), row.sealed)
    assert grant["refresh_token"] == google.fake.refresh_token
    # Until it is closed, its notifications are answered and ignored.
    answer = await client.post(
        "/notifications/google",
        headers={
            "X-Goog-Channel-ID": channel.id,
            "X-Goog-Channel-Token": channel.token or "",
            "X-Goog-Resource-State": "exists",
        },
    )
    assert answer.status_code == 200
    await opened.work()
    assert google.fake.channels == {}
    assert await opened.channels() == []


async def test_deleting_works_at_once_with_the_provider_down_and_closes_later(
    google: GoogleCalendarUnderTest, opened: Push, client: httpx.AsyncClient
) -> None:
    google.fake.inject_fault("*", 503, body=b"<html>Error</html>", count=1000)
    assert (await client.delete(f"/api/v1/calendars/{google.id}")).status_code == 200
    assert google.fake.requests_to("channels.stop") == []
    await opened.work()
    [row] = await opened.channels()
    assert row.next_attempt_at is not None
    assert timedelta(seconds=30) < row.next_attempt_at - utcnow() < timedelta(seconds=76)
    assert await opened.work() == []
    google.fake.clear_faults()
    await opened.make_due()
    await opened.work()
    assert google.fake.channels == {}
    assert await opened.channels() == []


async def test_a_channel_whose_grant_is_revoked_is_given_up(
    google: GoogleCalendarUnderTest, opened: Push, client: httpx.AsyncClient
) -> None:
    google.fake.revoke_grant(google.fake.refresh_token)
    assert (await client.delete(f"/api/v1/calendars/{google.id}")).status_code == 200
    await opened.work()
    assert await opened.channels() == []


async def test_deleting_while_the_channel_is_being_opened_closes_it(
    google: GoogleCalendarUnderTest, push: Push, client: httpx.AsyncClient
) -> None:
    google.fake.inject_fault("events.watch", delay=1.0)
    await google.sync()
    [due] = await push.worker.claim(1)
    working = asyncio.create_task(push.worker.handle(due))
    await until(lambda: _has_channels(push))
    assert (await client.delete(f"/api/v1/calendars/{google.id}")).status_code == 200
    assert await push.work() == []  # nobody knows yet what to close
    await working
    assert len(google.fake.channels) == 1
    await push.work()
    assert google.fake.channels == {}
    assert await push.channels() == []


async def test_deleting_works_though_the_credentials_cannot_be_opened(
    google: GoogleCalendarUnderTest, opened: Push, client: httpx.AsyncClient
) -> None:
    async with transaction(google.sessions) as session:
        await session.execute(text("UPDATE credentials SET sealed = 'broken'"))
    assert (await client.delete(f"/api/v1/calendars/{google.id}")).status_code == 200
    assert await opened.channels() == []


async def test_a_disconnected_calendar_loses_its_channel_and_gets_a_new_one_when_reconnected(
    google: GoogleCalendarUnderTest, opened: Push, client: httpx.AsyncClient
) -> None:
    [old] = google.fake.channels
    await google.disconnect()
    row = await opened.calendar()
    assert (row.state, row.push_due_at) == ("disconnected", None)
    await opened.work()
    assert google.fake.channels == {}
    assert await opened.channels() == []
    assert await opened.work() == []

    answer = await client.patch(
        f"/api/v1/calendars/{google.id}",
        json={"client_secret": google.fake.client_secret, "refresh_token": google.fake.refresh_token},
    )
    assert answer.status_code == 200
    await google.sync()
    await opened.work()
    [new] = google.fake.channels
    assert new != old
    assert [row.id for row in await opened.channels("open")] == [new]


async def test_disconnected_while_the_channel_is_being_opened(
    google: GoogleCalendarUnderTest, push: Push
) -> None:
    google.fake.inject_fault("events.watch", delay=1.0)
    await google.sync()
    [due] = await push.worker.claim(1)
    working = asyncio.create_task(push.worker.handle(due))
    await until(lambda: _has_channels(push))
    await google.disconnect()
    await working
    assert (await push.calendar()).push_due_at is None
    await push.work()
    assert google.fake.channels == {}
    assert await push.channels() == []


async def test_new_credentials_of_a_connected_calendar_bring_a_new_channel(
    google: GoogleCalendarUnderTest, opened: Push, client: httpx.AsyncClient
) -> None:
    [old] = google.fake.channels
    await client.patch(f"/api/v1/calendars/{google.id}", json={"refresh_token": google.fake.add_grant()})
    assert await opened.work() == []
    await google.sync()
    await opened.work()
    await opened.work()
    [new] = google.fake.channels
    assert new != old


async def test_channels_run_out_when_push_is_switched_off(
    google: GoogleCalendarUnderTest, opened: Push
) -> None:
    google.settings.calendar_push_enabled = False
    await opened.make_due()
    assert await opened.work() == []
    google.add("still told")
    await google.fake.drain_notifications()
    assert await opened.sync_due_in() < SOON
    google.settings.calendar_push_enabled = True
    await opened.work()
    await opened.work()
    assert len(google.fake.channels) == 1


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
            answer = await client.post(f"{application}/notifications/google", headers=sent)
            assert (answer.status_code, answer.content) == (200, b""), headers
            assert await opened.sync_due_in() > LATER, headers
        assert (await opened.channels())[0].resource_id == row.resource_id
        for state in ("exists", "update", "not_exists"):
            await google.sync()
            assert await opened.sync_due_in() > LATER
            headers = {**right, "X-Goog-Resource-State": state}
            answer = await client.post(f"{application}/notifications/google", headers=headers)
            assert answer.status_code == 200
            assert await opened.sync_due_in() < SOON, state


async def test_claims_take_each_kind_of_work_up_to_the_limit(
    google: GoogleCalendarUnderTest, opened: Push
) -> None:
    await opened.make_due()
    await opened.work()
    await opened.make_due()
    assert len(await opened.worker.claim(1)) == 1
    assert len(await opened.worker.claim(1)) == 1
    assert await opened.worker.claim(1) == []
    # A claim of push work is none of the syncs'.
    async with transaction(google.sessions) as session:
        assert await claim_due(session, limit=10, lease_for=LEASE_FOR) == []


# --- how often is polled ---------------------------------------------------------------------------------


async def test_polling_is_slow_while_a_channel_is_open_that_has_reached_us(
    google: GoogleCalendarUnderTest, opened: Push
) -> None:
    await google.fake.drain_notifications()
    await google.sync()
    assert timedelta(hours=4) < await opened.sync_due_in() <= timedelta(hours=6)


@pytest.mark.parametrize(
    "change",
    [
        "verified_at = NULL",
        "state = 'closing', next_attempt_at = now()",
        "expires_at = now() - interval '1 s'",
    ],
)
async def test_polling_is_as_without_push_where_no_channel_can_be_trusted(
    google: GoogleCalendarUnderTest, opened: Push, change: str
) -> None:
    await google.fake.drain_notifications()
    async with transaction(opened.sessions) as session:
        await session.execute(text(f"UPDATE push_channels SET {change}"))
    await google.sync()
    assert LATER < await opened.sync_due_in() <= timedelta(minutes=30)


async def test_polling_goes_on_at_the_end_of_a_channel_that_is_not_renewed(
    google: GoogleCalendarUnderTest, opened: Push
) -> None:
    await google.fake.drain_notifications()
    async with transaction(opened.sessions) as session:
        await session.execute(text("UPDATE push_channels SET expires_at = now() + interval '1 hour'"))
    await google.sync()
    assert timedelta(minutes=59) < await opened.sync_due_in() <= timedelta(hours=1)


async def test_polling_is_as_without_push_once_push_is_switched_off(
    google: GoogleCalendarUnderTest, opened: Push
) -> None:
    await google.fake.drain_notifications()
    google.settings.calendar_push_enabled = False
    await google.sync()
    assert await opened.sync_due_in() <= timedelta(minutes=30)


async def test_a_new_channel_that_has_not_reached_us_brings_back_polling(
    google: GoogleCalendarUnderTest, opened: Push
) -> None:
    await google.fake.drain_notifications()
    await google.sync()
    opened.worker._settings.app_url = "http://127.0.0.1:1"
    await opened.make_due()
    await opened.work()
    assert await opened.sync_due_in() <= timedelta(minutes=30)


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


# --- Microsoft -------------------------------------------------------------------------------------------


@dataclass
class MicrosoftPushed(Push):
    fake: FakeMicrosoft
    settings: Settings

    async def rest(self) -> None:
        """As if it had just been synced."""
        async with transaction(self.sessions) as session:
            await session.execute(text("UPDATE calendars SET next_sync_at = now() + interval '30 minutes'"))

    async def subscription(self) -> Subscription:
        [subscription] = self.fake.subscriptions.values()
        return subscription

    def add(self, subject: str = "new") -> str:
        start = utcnow() + timedelta(hours=2)
        return self.fake.add_event(start=start, end=start + timedelta(hours=1), subject=subject)


@pytest.fixture
async def microsoft(
    settings: Settings, application: str, sessions: Sessions, project: TestProject
) -> AsyncIterator[MicrosoftPushed]:
    """A connected calendar that is due for its channel."""
    fake = FakeMicrosoft()
    fake.allow_http_push = True
    async with serve(fake) as url, channel_worker(settings, sessions) as worker:
        settings.microsoft_graph_base_url = f"{url}/v1.0"
        settings.microsoft_oauth_token_url = f"{url}/common/oauth2/v2.0/token"
        calendar_id = await add_microsoft_calendar(fake, settings, sessions, project)
        push = MicrosoftPushed(worker, sessions, calendar_id, fake, settings)
        await push.rest()
        yield push


async def add_microsoft_calendar(
    fake: FakeMicrosoft, settings: Settings, sessions: Sessions, project: TestProject
) -> str:
    return await factories.add_calendar(
        sessions,
        settings,
        project.id,
        platform="microsoft",
        client_id=fake.client_id,
        secrets={"client_secret": fake.client_secret, "refresh_token": fake.refresh_token},
        push_due_at=utcnow(),
    )


async def test_a_change_at_microsoft_reaches_the_webhooks_by_push_alone(
    microsoft: MicrosoftPushed, client: httpx.AsyncClient, start_worker: StartWorker
) -> None:
    async with transaction(microsoft.sessions) as session:
        await session.execute(text("UPDATE calendars SET push_due_at = NULL, next_sync_at = now()"))
    await subscribe(client)
    microsoft.add("before")
    await start_worker()

    async def is_at_rest() -> bool:
        channels = await microsoft.channels("open")
        return len(channels) == 1 and await microsoft.sync_due_in() > LATER

    await until(is_at_rest)
    microsoft.add("after")
    await until(lambda: has_told(microsoft.sessions, webhooks=2))
    assert await factories.live_names(microsoft.sessions, microsoft.calendar_id) == ["after", "before"]


async def test_a_subscription_is_opened_after_the_handshake(
    microsoft: MicrosoftPushed, application: str
) -> None:
    await microsoft.work()
    subscription = await microsoft.subscription()
    [row] = await microsoft.channels()
    assert (row.state, row.provider_id) == ("open", subscription.id)
    assert subscription.notification_url == f"{application}/notifications/microsoft"
    assert subscription.lifecycle_url == subscription.notification_url
    assert subscription.change_types == ("created", "updated", "deleted")
    assert subscription.client_state is not None
    assert row.secret_sha256 == sha256_hex(subscription.client_state)
    assert 0.38 * WEEK < await microsoft.push_due_in() < 0.5 * WEEK
    assert await microsoft.sync_due_in() < SOON


async def test_another_calendar_of_the_account_is_subscribed_by_its_id(
    microsoft: MicrosoftPushed,
) -> None:
    other = microsoft.fake.add_calendar("Team", calendar_id="AQMk/a+b=")
    async with transaction(microsoft.sessions) as session:
        await session.execute(text("UPDATE calendars SET platform_uuid = :id"), {"id": other})
    await microsoft.work()
    assert (await microsoft.subscription()).calendar.id == other


async def test_graphs_notifications_make_the_calendar_due(microsoft: MicrosoftPushed) -> None:
    await microsoft.work()
    await microsoft.rest()
    microsoft.fake.mixes_in_unknown = True
    event_id = microsoft.add()
    await microsoft.fake.drain_notifications()
    assert await microsoft.sync_due_in() < SOON
    await microsoft.rest()
    microsoft.fake.delete_event(event_id)
    await microsoft.fake.drain_notifications()
    assert await microsoft.sync_due_in() < SOON


async def test_a_wrong_client_state_does_not_sync(microsoft: MicrosoftPushed) -> None:
    await microsoft.work()
    await microsoft.rest()
    microsoft.fake.wrong_client_states = 1
    microsoft.add()
    await microsoft.fake.drain_notifications()
    assert await microsoft.sync_due_in() > LATER


async def test_a_subscription_is_renewed_in_place(microsoft: MicrosoftPushed) -> None:
    await microsoft.work()
    await microsoft.rest()
    before = await microsoft.subscription()
    before.expires_at = utcnow() + timedelta(hours=1)
    await microsoft.make_due()
    await microsoft.work()
    after = await microsoft.subscription()
    assert after.id == before.id
    [row] = await microsoft.channels()
    assert row.expires_at is not None
    assert abs(row.expires_at - after.expires_at) < timedelta(seconds=1)
    assert after.expires_at - utcnow() > timedelta(days=6)
    assert await microsoft.push_due_in() > 0.38 * WEEK
    assert await microsoft.sync_due_in() > LATER


async def test_a_renewal_that_fails_is_tried_again_and_the_subscription_stays(
    microsoft: MicrosoftPushed,
) -> None:
    await microsoft.work()
    microsoft.fake.inject_fault("subscriptions.update", 503, count=2)
    waits = []
    for _ in range(2):
        await microsoft.make_due()
        await microsoft.work()
        waits.append(await microsoft.push_due_in())
    assert timedelta(seconds=30) < waits[0] < timedelta(seconds=76) < waits[1] < timedelta(seconds=151)
    [row] = await microsoft.channels()
    assert (row.state, row.attempt_count) == ("open", 2)
    await microsoft.make_due()
    await microsoft.work()
    assert (await microsoft.channels())[0].attempt_count == 0


async def test_a_subscription_that_is_gone_is_opened_anew_and_the_calendar_synced(
    microsoft: MicrosoftPushed,
) -> None:
    await microsoft.work()
    await microsoft.rest()
    microsoft.fake.subscriptions.clear()
    await microsoft.make_due()
    await microsoft.work()
    [row] = await microsoft.channels()
    assert row.provider_id == (await microsoft.subscription()).id
    assert await microsoft.sync_due_in() < SOON


async def test_a_subscription_to_an_address_of_before_is_replaced(microsoft: MicrosoftPushed) -> None:
    await microsoft.work()
    before = await microsoft.subscription()
    before.notification_url = "https://before.example/notifications/microsoft"
    await microsoft.make_due()
    await microsoft.work()
    after = await microsoft.subscription()
    assert after.id != before.id
    assert after.notification_url == f"{microsoft.settings.app_url}/notifications/microsoft"
    assert [row.provider_id for row in await microsoft.channels()] == [after.id]


async def test_lifecycle_reauthorization_is_answered_by_a_renewal(microsoft: MicrosoftPushed) -> None:
    await microsoft.work()
    await microsoft.rest()
    microsoft.fake.send_lifecycle("reauthorizationRequired")
    await microsoft.fake.drain_notifications()
    assert await microsoft.push_due_in() < SOON
    assert await microsoft.sync_due_in() > LATER
    await microsoft.work()
    assert not (await microsoft.subscription()).needs_reauthorization


async def test_lifecycle_removal_brings_a_new_subscription_and_a_sync(microsoft: MicrosoftPushed) -> None:
    await microsoft.work()
    await microsoft.rest()
    microsoft.fake.send_lifecycle("subscriptionRemoved")
    await microsoft.fake.drain_notifications()
    assert await microsoft.channels() == []
    assert await microsoft.sync_due_in() < SOON
    await microsoft.work()
    [row] = await microsoft.channels()
    assert row.provider_id == (await microsoft.subscription()).id


async def test_lifecycle_missed_syncs(microsoft: MicrosoftPushed) -> None:
    await microsoft.work()
    await microsoft.rest()
    microsoft.fake.send_lifecycle("missed")
    await microsoft.fake.drain_notifications()
    assert await microsoft.sync_due_in() < SOON
    assert await microsoft.push_due_in() > 0.3 * WEEK


async def test_forged_lifecycle_events_change_nothing(microsoft: MicrosoftPushed) -> None:
    await microsoft.work()
    await microsoft.rest()
    subscription = await microsoft.subscription()
    events: list[LifecycleEvent] = ["reauthorizationRequired", "missed", "subscriptionRemoved"]
    for event in events:
        microsoft.fake.wrong_client_states = 1
        microsoft.fake.subscriptions[subscription.id] = subscription
        microsoft.fake.send_lifecycle(event)
        await microsoft.fake.drain_notifications()
    assert len(await microsoft.channels("open")) == 1
    assert await microsoft.push_due_in() > 0.3 * WEEK
    assert await microsoft.sync_due_in() > LATER


async def test_a_batch_serves_every_subscription_that_is_known(
    microsoft: MicrosoftPushed, project: TestProject, application: str
) -> None:
    await microsoft.work()
    other = microsoft.fake.add_calendar("Team")
    other_id = await add_microsoft_calendar(microsoft.fake, microsoft.settings, microsoft.sessions, project)
    async with transaction(microsoft.sessions) as session:
        await session.execute(
            text("UPDATE calendars SET platform_uuid = :other WHERE id = :id"),
            {"other": other, "id": other_id},
        )
    await microsoft.work()
    await microsoft.rest()
    first, second = microsoft.fake.subscriptions.values()
    items: list[Any] = [
        {"subscriptionId": "7f105c7d-0000-0000-0000-000000000000", "clientState": first.client_state},
        {"subscriptionId": first.id, "clientState": second.client_state, "lifecycleEvent": "missed"},
        {"subscriptionId": "a\x00b", "clientState": "x"},
        {"subscriptionId": 5},
        {"clientState": "x"},
        "nonsense",
        None,
        {"subscriptionId": first.id, "clientState": None},
        {"subscriptionId": first.id, "clientState": "x" * 5000},
        {"subscriptionId": second.id, "clientState": second.client_state, "lifecycleEvent": "something new"},
    ]
    async with operator_client() as client:
        url = f"{application}/notifications/microsoft"
        answer = await client.post(url, json={"value": items[:-1]})
        assert (answer.status_code, answer.content) == (200, b"")
        answer = await client.post(url, json={"value": items})
        assert answer.status_code == 202
        assert await microsoft.sync_due_in() > LATER
        items += [
            {"subscriptionId": one.id, "clientState": one.client_state, "changeType": "updated"}
            for one in (second, first, second)
        ]
        answer = await client.post(url, json={"value": items})
    assert answer.status_code == 202
    async with microsoft.sessions() as session:
        due = (
            await session.scalars(text("SELECT next_sync_at - now() < interval '1 s' FROM calendars"))
        ).all()
    assert due == [True, True]


async def test_the_handshake_answers_with_the_token_as_plain_text(application: str) -> None:
    token = "Validation: a+b c/ä<script>&=%"
    async with operator_client() as client:
        answer = await client.post(
            f"{application}/notifications/microsoft", params={"validationToken": token}, content=b""
        )
        assert (answer.status_code, answer.text) == (200, token)
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"
        answer = await client.post(
            f"{application}/notifications/microsoft", params={"validationToken": "x" * 5000}
        )
    assert answer.status_code == 400


async def test_bodies_that_are_no_batch_are_refused(application: str) -> None:
    bodies = [
        (b"", 200),
        (b'{"value": []}', 200),
        (b"not json", 400),
        (b"[]", 400),
        (b'"text"', 400),
        (b"null", 400),
        (b"{}", 200),
        (b'{"value": null}', 200),
        (b'{"validationTokens": []}', 200),
        (b'{"value": {}}', 400),
        (b'{"value": ["\\ud800"]}', 400),
        (b"[" * 100_000, 400),
        (b'{"value": [' + b" " * 1_100_000 + b"]}", 413),
    ]
    async with operator_client() as client:
        for body, status in bodies:
            answer = await client.post(
                f"{application}/notifications/microsoft",
                content=body,
                headers={"Content-Type": "application/json"},
            )
            assert answer.status_code == status, body[:50]
            if status == 400:
                assert answer.json()


@pytest.mark.parametrize("refuses_equal_ones", [True, False])
async def test_a_worker_that_dies_leaves_no_subscription_behind(
    microsoft: MicrosoftPushed, refuses_equal_ones: bool
) -> None:
    [due] = await microsoft.worker.claim(1)
    working = asyncio.create_task(microsoft.worker.handle(due))
    while not microsoft.fake.subscriptions:
        await asyncio.sleep(0)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    orphan = await microsoft.subscription()
    if not refuses_equal_ones:
        orphan.change_types = ("updated",)
    assert [row.state for row in await microsoft.channels()] == ["opening"]
    await microsoft.make_due()
    await microsoft.work()
    left = await microsoft.subscription()
    assert left.id != orphan.id
    assert [row.provider_id for row in await microsoft.channels()] == [left.id]


async def test_a_subscription_of_an_earlier_connection_is_replaced(microsoft: MicrosoftPushed) -> None:
    await microsoft.work()
    before = await microsoft.subscription()
    async with transaction(microsoft.sessions) as session:
        await session.execute(text("DELETE FROM push_channels"))
    await microsoft.make_due()
    await microsoft.work()
    after = await microsoft.subscription()
    assert after.id != before.id
    assert len(await microsoft.channels("open")) == 1


async def test_two_calendars_on_one_mailbox_do_not_take_the_subscription_from_each_other(
    microsoft: MicrosoftPushed, project: TestProject
) -> None:
    await microsoft.work()
    first = await microsoft.subscription()
    await add_microsoft_calendar(microsoft.fake, microsoft.settings, microsoft.sessions, project)
    await microsoft.work()
    assert (await microsoft.subscription()).id == first.id
    [row] = await microsoft.channels()
    assert (row.state, row.calendar_id) == ("open", microsoft.calendar_id)


async def test_a_subscription_that_is_just_being_opened_is_no_stray(
    microsoft: MicrosoftPushed, project: TestProject
) -> None:
    await microsoft.work()
    first = await microsoft.subscription()
    # The provider has opened it; the worker has not noted it yet.
    async with transaction(microsoft.sessions) as session:
        await session.execute(text("UPDATE push_channels SET state = 'opening', provider_id = NULL"))
    await add_microsoft_calendar(microsoft.fake, microsoft.settings, microsoft.sessions, project)
    await microsoft.work()
    assert (await microsoft.subscription()).id == first.id
    # The worker died.
    async with transaction(microsoft.sessions) as session:
        await session.execute(
            text(
                "UPDATE push_channels SET created_at = now() - interval '2 minutes' WHERE calendar_id = :id"
            ),
            {"id": microsoft.calendar_id},
        )
        await session.execute(
            text("UPDATE calendars SET push_due_at = now() WHERE id <> :id"), {"id": microsoft.calendar_id}
        )
    await microsoft.work()
    assert (await microsoft.subscription()).id != first.id


async def test_a_subscription_that_is_lost_brings_back_polling(microsoft: MicrosoftPushed) -> None:
    await microsoft.work()
    async with transaction(microsoft.sessions) as session:
        await session.execute(text("UPDATE calendars SET next_sync_at = now() + interval '6 hours'"))
    microsoft.fake.subscriptions.clear()
    microsoft.fake.inject_fault("subscriptions.create", 503)
    await microsoft.make_due()
    await microsoft.work()
    assert await microsoft.channels("open") == []
    assert await microsoft.sync_due_in() <= timedelta(minutes=30)


async def test_an_address_that_cannot_be_validated_is_tried_again(microsoft: MicrosoftPushed) -> None:
    right, microsoft.settings.app_url = microsoft.settings.app_url, "http://127.0.0.1:1"
    await microsoft.work()
    assert microsoft.fake.subscriptions == {}
    assert await microsoft.push_due_in() < timedelta(seconds=80)
    assert (await microsoft.calendar()).state == "connected"
    microsoft.settings.app_url = right
    await microsoft.make_due()
    await microsoft.work()
    assert len(await microsoft.channels("open")) == 1


async def test_deleting_a_microsoft_calendar_deletes_its_subscription_with_the_grant_of_before(
    microsoft: MicrosoftPushed, client: httpx.AsyncClient
) -> None:
    await microsoft.work()
    microsoft.fake.inject_fault("*", 503, body=b"<html>Error</html>", count=1)
    assert (await client.delete(f"/api/v1/calendars/{microsoft.calendar_id}")).status_code == 200
    await microsoft.work()
    assert len(microsoft.fake.subscriptions) == 1
    await microsoft.make_due()
    await microsoft.work()
    assert microsoft.fake.subscriptions == {}
    assert await microsoft.channels() == []
