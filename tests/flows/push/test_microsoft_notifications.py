"""Notifications and lifecycle events of Microsoft Graph."""

from typing import Any

from sqlalchemy import text

from app.core.db import transaction
from app.core.http import httpx, operator_client
from tests import factories
from tests.conftest import StartWorker, TestProject
from tests.fakes.microsoft_push import LifecycleEvent
from tests.flows.push.channels import (
    LATER,
    SOON,
    WEEK,
    MicrosoftPushed,
    add_microsoft_calendar,
    has_sent,
    subscribe,
    until,
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
    await until(lambda: has_sent(microsoft.sessions, webhooks=2))
    assert await factories.live_names(microsoft.sessions, microsoft.calendar_id) == ["after", "before"]


async def test_graphs_notifications_make_the_calendar_due(microsoft: MicrosoftPushed) -> None:
    await microsoft.work()
    await microsoft.rest()
    microsoft.fake.mixes_in_unknown = True
    event_id = microsoft.add()
    await microsoft.fake.deliver_notifications()
    assert await microsoft.sync_due_in() < SOON
    await microsoft.rest()
    microsoft.fake.delete_event(event_id)
    await microsoft.fake.deliver_notifications()
    assert await microsoft.sync_due_in() < SOON


async def test_a_wrong_client_state_does_not_sync(microsoft: MicrosoftPushed) -> None:
    await microsoft.work()
    await microsoft.rest()
    microsoft.fake.wrong_client_states = 1
    microsoft.add()
    await microsoft.fake.deliver_notifications()
    assert await microsoft.sync_due_in() > LATER


async def test_lifecycle_reauthorization_causes_a_renewal(microsoft: MicrosoftPushed) -> None:
    await microsoft.work()
    await microsoft.rest()
    microsoft.fake.send_lifecycle("reauthorizationRequired")
    await microsoft.fake.deliver_notifications()
    assert await microsoft.push_due_in() < SOON
    assert await microsoft.sync_due_in() > LATER
    await microsoft.work()
    assert not (await microsoft.subscription()).needs_reauthorization


async def test_lifecycle_removal_brings_a_new_subscription_and_a_sync(microsoft: MicrosoftPushed) -> None:
    await microsoft.work()
    await microsoft.rest()
    microsoft.fake.send_lifecycle("subscriptionRemoved")
    await microsoft.fake.deliver_notifications()
    assert await microsoft.channels() == []
    assert await microsoft.sync_due_in() < SOON
    await microsoft.work()
    [row] = await microsoft.channels()
    assert row.provider_id == (await microsoft.subscription()).id


async def test_lifecycle_missed_syncs(microsoft: MicrosoftPushed) -> None:
    await microsoft.work()
    await microsoft.rest()
    microsoft.fake.send_lifecycle("missed")
    await microsoft.fake.deliver_notifications()
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
        await microsoft.fake.deliver_notifications()
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
        response = await client.post(url, json={"value": items[:-1]})
        assert (response.status_code, response.content) == (200, b"")
        response = await client.post(url, json={"value": items})
        assert response.status_code == 202
        assert await microsoft.sync_due_in() > LATER
        items += [
            {"subscriptionId": one.id, "clientState": one.client_state, "changeType": "updated"}
            for one in (second, first, second)
        ]
        response = await client.post(url, json={"value": items})
    assert response.status_code == 202
    async with microsoft.sessions() as session:
        due = (
            await session.scalars(text("SELECT next_sync_at - now() < interval '1 s' FROM calendars"))
        ).all()
    assert due == [True, True]


async def test_the_handshake_returns_the_token_as_plain_text(application: str) -> None:
    token = "Validation: a+b c/ä<script>&=%"
    async with operator_client() as client:
        response = await client.post(
            f"{application}/notifications/microsoft", params={"validationToken": token}, content=b""
        )
        assert (response.status_code, response.text) == (200, token)
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.headers["x-content-type-options"] == "nosniff"
        response = await client.post(
            f"{application}/notifications/microsoft", params={"validationToken": "x" * 5000}
        )
    assert response.status_code == 400


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
            response = await client.post(
                f"{application}/notifications/microsoft",
                content=body,
                headers={"Content-Type": "application/json"},
            )
            assert response.status_code == status, body[:50]
            if status == 400:
                assert response.json()
