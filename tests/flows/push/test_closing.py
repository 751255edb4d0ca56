"""Closing of push channels at a fake Google."""

import asyncio
from datetime import timedelta

from sqlalchemy import text

from app.core.clock import utcnow
from app.core.crypto import SecretBox
from app.core.db import transaction
from app.core.http import httpx
from app.push.service import sealed_context
from tests.flows.conftest import GoogleCalendarUnderTest
from tests.flows.push.channels import Push, has_channels, until


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
    # Until it is closed, its notifications are accepted and ignored.
    response = await client.post(
        "/notifications/google",
        headers={
            "X-Goog-Channel-ID": channel.id,
            "X-Goog-Channel-Token": channel.token or "",
            "X-Goog-Resource-State": "exists",
        },
    )
    assert response.status_code == 200
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
    await until(lambda: has_channels(push))
    assert (await client.delete(f"/api/v1/calendars/{google.id}")).status_code == 200
    assert await push.work() == []  # the channel to close is not known yet
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


async def test_disconnected_while_the_channel_is_being_opened(
    google: GoogleCalendarUnderTest, push: Push
) -> None:
    google.fake.inject_fault("events.watch", delay=1.0)
    await google.sync()
    [due] = await push.worker.claim(1)
    working = asyncio.create_task(push.worker.handle(due))
    await until(lambda: has_channels(push))
    await google.disconnect()
    await working
    assert (await push.calendar()).push_due_at is None
    await push.work()
    assert google.fake.channels == {}
    assert await push.channels() == []
