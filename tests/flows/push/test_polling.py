"""Intervals of polling, with and without a push channel."""

from datetime import timedelta

import pytest
from sqlalchemy import text

from app.core.db import transaction
from app.core.http import httpx
from tests.flows.conftest import GoogleCalendarUnderTest
from tests.flows.push.channels import LATER, Push


async def test_with_push_switched_off_calendars_are_polled(
    google: GoogleCalendarUnderTest, push: Push
) -> None:
    google.settings.calendar_push_enabled = False
    await google.sync()
    assert await push.work() == []
    assert (await push.calendar()).push_due_at is None


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


# --- how often is polled ---------------------------------------------------------------------------------


async def test_polling_is_slow_while_a_channel_is_open_that_has_reached_us(
    google: GoogleCalendarUnderTest, opened: Push
) -> None:
    await google.fake.deliver_notifications()
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
    await google.fake.deliver_notifications()
    async with transaction(opened.sessions) as session:
        await session.execute(text(f"UPDATE push_channels SET {change}"))
    await google.sync()
    assert LATER < await opened.sync_due_in() <= timedelta(minutes=30)


async def test_polling_goes_on_at_the_end_of_a_channel_that_is_not_renewed(
    google: GoogleCalendarUnderTest, opened: Push
) -> None:
    await google.fake.deliver_notifications()
    async with transaction(opened.sessions) as session:
        await session.execute(text("UPDATE push_channels SET expires_at = now() + interval '1 hour'"))
    await google.sync()
    assert timedelta(minutes=59) < await opened.sync_due_in() <= timedelta(hours=1)


async def test_polling_is_as_without_push_once_push_is_switched_off(
    google: GoogleCalendarUnderTest, opened: Push
) -> None:
    await google.fake.deliver_notifications()
    google.settings.calendar_push_enabled = False
    await google.sync()
    assert await opened.sync_due_in() <= timedelta(minutes=30)


async def test_a_new_channel_that_has_not_reached_us_brings_back_polling(
    google: GoogleCalendarUnderTest, opened: Push
) -> None:
    await google.fake.deliver_notifications()
    await google.sync()
    opened.worker._settings.app_url = "http://127.0.0.1:1"
    await opened.make_due()
    await opened.work()
    assert await opened.sync_due_in() <= timedelta(minutes=30)


async def test_a_wider_window_keeps_the_channel_and_its_interval(
    client: httpx.AsyncClient, google: GoogleCalendarUnderTest, opened: Push
) -> None:
    [channel] = await opened.channels("open")
    body = {"window": {"past_days": 1, "future_days": 200}}
    assert (await client.patch(f"/api/v1/calendars/{google.id}", json=body)).status_code == 200
    assert await opened.sync_due_in() < timedelta(seconds=6)
    google.add("far", in_hours=24 * 100)
    await google.fake.deliver_notifications()
    await google.sync()
    assert await google.names() == ["far"]
    assert await opened.sync_due_in() > LATER
    [kept] = await opened.channels("open")
    assert (kept.id, kept.verified_at) == (channel.id, channel.verified_at)
    assert await opened.work() == []
    # A notification leads to a sync of the changes in the added time.
    google.add("later", in_hours=24 * 150)
    await google.fake.deliver_notifications()
    assert await opened.sync_due_in() < timedelta(seconds=6)
    await google.sync()
    assert await google.names() == ["far", "later"]
