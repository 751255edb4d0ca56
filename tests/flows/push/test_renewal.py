"""Renewal and replacement of push channels at a fake Google."""

from sqlalchemy import text

from app.core.db import transaction
from app.core.http import httpx
from tests.flows.conftest import GoogleCalendarUnderTest
from tests.flows.push.channels import LATER, SOON, Push


async def test_a_channel_is_renewed_with_an_overlap(google: GoogleCalendarUnderTest, opened: Push) -> None:
    [old] = google.fake.channels.values()
    await opened.make_due()
    [due] = await opened.worker.claim(1)
    await opened.worker.handle(due)
    assert len(google.fake.channels) == 2
    # Nothing was missed meanwhile, so no sync is asked for.
    assert await opened.sync_due_in() > LATER
    google.add("notified twice")
    await google.fake.deliver_notifications()
    assert await opened.sync_due_in() < SOON
    await google.sync()
    await opened.work()
    assert old.id not in google.fake.channels
    [new] = google.fake.channels.values()
    assert [row.id for row in await opened.channels()] == [new.id]
    google.add("notified once")
    await google.fake.deliver_notifications()
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

    response = await client.patch(
        f"/api/v1/calendars/{google.id}",
        json={"client_secret": google.fake.client_secret, "refresh_token": google.fake.refresh_token},
    )
    assert response.status_code == 200
    await google.sync()
    await opened.work()
    [new] = google.fake.channels
    assert new != old
    assert [row.id for row in await opened.channels("open")] == [new]


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
    google.add("still notified")
    await google.fake.deliver_notifications()
    assert await opened.sync_due_in() < SOON
    google.settings.calendar_push_enabled = True
    await opened.work()
    await opened.work()
    assert len(google.fake.channels) == 1
