"""Microsoft subscriptions: opened, renewed, replaced and deleted."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text

from app.core.clock import utcnow
from app.core.crypto import sha256_hex
from app.core.db import transaction
from app.core.http import httpx
from tests.conftest import TestProject
from tests.flows.push.channels import LATER, SOON, WEEK, MicrosoftPushed, add_microsoft_calendar


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


async def test_a_subscription_that_was_removed_is_opened_anew_and_the_calendar_synced(
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
