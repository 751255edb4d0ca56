"""Opening of push channels at a fake Google."""

import asyncio
from datetime import timedelta
from functools import partial

import pytest
from limits import RateLimitItemPerMinute

from app.core.crypto import sha256_hex
from app.core.db import transaction
from app.credentials.budgets import _USER
from app.sync.engine import LEASE_FOR
from app.sync.repository import claim_due
from tests.flows.conftest import GoogleCalendarUnderTest
from tests.flows.push.channels import LATER, SOON, WEEK, Push, has_channels, until


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
    # No notification announced what changed between the first sync and the opening.
    assert await push.sync_due_in() < SOON
    assert await push.work() == []


async def test_nothing_is_opened_before_a_sync_succeeds(google: GoogleCalendarUnderTest, push: Push) -> None:
    google.fake.inject_fault("events.list", 503, count=3)
    await google.sync()
    assert await push.work() == []


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (503, None, "response"),
        (403, "insufficientPermissions", "response"),
        (401, "webhookUrlUnauthorized", "response"),
        (None, None, "cut"),
    ],
)
async def test_a_channel_that_fails_holds_up_no_sync(
    google: GoogleCalendarUnderTest, push: Push, status: int | None, reason: str | None, kind: str
) -> None:
    body = b"<html>Error</html>" if kind == "response" and reason is None else None
    google.fake.inject_fault("events.watch", status, reason, body=body, kind=kind, count=2)
    await google.sync()
    waits = []
    for _ in range(2):
        await push.work()
        await google.fake.deliver_notifications()
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
    # Those that were opened though their response was lost are closed, too.
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


async def test_the_first_message_may_come_before_the_response(
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
    working.cancel()  # its process has ended: the response of the provider is lost
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
        await until(partial(has_other_channels, push, known))
        known = {row.id for row in await push.channels()}
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        assert len(await push.channels()) == 1
        await push.make_due()
    google.fake.clear_faults()
    await push.work()
    assert [row.state for row in await push.channels()] == ["open"]


async def has_other_channels(push: Push, known: set[str]) -> bool:
    return known.isdisjoint(row.id for row in await push.channels()) and bool(await push.channels())


async def test_two_workers_open_one_channel(google: GoogleCalendarUnderTest, push: Push) -> None:
    await google.sync()
    claims = await asyncio.gather(*(push.worker.claim(10) for _ in range(4)))
    assert sum(map(len, claims)) == 1


async def test_an_attempt_whose_row_was_deleted_closes_its_channel(
    google: GoogleCalendarUnderTest, push: Push
) -> None:
    google.fake.inject_fault("events.watch", delay=1.0)
    await google.sync()
    [due] = await push.worker.claim(1)
    working = asyncio.create_task(push.worker.handle(due))
    await until(lambda: has_channels(push))
    await push.make_due()  # its lease has run out: another worker takes over
    await push.work()
    await working
    [row] = await push.channels("open")
    assert list(google.fake.channels) == [row.id]


async def test_claims_take_each_kind_of_work_up_to_the_limit(
    google: GoogleCalendarUnderTest, opened: Push
) -> None:
    await opened.make_due()
    await opened.work()
    await opened.make_due()
    assert len(await opened.worker.claim(1)) == 1
    assert len(await opened.worker.claim(1)) == 1
    assert await opened.worker.claim(1) == []
    # A claim of push work is no claim of a sync.
    async with transaction(google.sessions) as session:
        assert await claim_due(session, limit=10, lease_for=LEASE_FOR) == []
