"""Webhooks over the API: their fields, their secrets, lists and limits."""

import asyncio
import base64
from typing import Any

import pytest
from sqlalchemy import select

from app.models import StoredResponse, WebhookSubscription
from app.webhooks import service
from tests.integration.webhooks.webhooks_api import URL, announce_change, create, stored


async def test_a_webhook_is_created_and_its_secret_is_shown_once(api) -> None:
    created = await create(api, triggers=["bot.state_change", "calendar.events_update"], include_events=True)
    assert len(base64.b64decode(created["secret"], validate=True)) == 32
    assert created["id"].startswith("webhook_")
    assert created["url"] == URL
    assert created["triggers"] == ["calendar.events_update", "bot.state_change"]
    assert created["is_active"] is True
    assert created["include_events"] is True
    assert created["disabled_reason"] is None
    shown = (await api.get(f"/api/v1/webhooks/{created['id']}")).json()
    assert shown == {name: value for name, value in created.items() if name != "secret"}
    assert (await api.get("/api/v1/webhooks")).json() == {"next": None, "previous": None, "results": [shown]}


async def test_secrets_are_stored_encrypted_only(api, sessions) -> None:
    body = {"url": URL, "triggers": ["calendar.events_update"]}
    response = await api.post("/api/v1/webhooks", json=body, headers={"Idempotency-Key": "a"})
    secret = response.json()["secret"].encode()
    async with sessions() as session:
        webhook = (await session.scalars(select(WebhookSubscription))).one()
        kept = (await session.scalars(select(StoredResponse))).one()
    for sealed in (webhook.secrets_sealed, kept.body):
        assert secret not in sealed
        assert base64.b64decode(secret) not in sealed


async def test_an_idempotency_key_gives_the_first_response_with_its_secret_again(api) -> None:
    body = {"url": URL, "triggers": ["calendar.events_update"]}
    first, again = [
        await api.post("/api/v1/webhooks", json=body, headers={"Idempotency-Key": "a"}) for _ in range(2)
    ]
    assert (again.status_code, again.json()) == (201, first.json())
    assert len((await api.get("/api/v1/webhooks")).json()["results"]) == 1
    other = await api.post(
        "/api/v1/webhooks", json={**body, "is_active": False}, headers={"Idempotency-Key": "a"}
    )
    assert other.status_code == 409


async def test_rotating_twice_with_one_idempotency_key_rotates_once(api) -> None:
    webhook = await create(api)
    path = f"/api/v1/webhooks/{webhook['id']}/rotate_secret"
    first, again = [await api.post(path, headers={"Idempotency-Key": "r"}) for _ in range(2)]
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert first.json()["secret"] != webhook["secret"]


BAD_INPUT: list[tuple[dict[str, Any], str, str]] = [
    ({"triggers": ["bot.state_change"]}, "url", "required"),
    ({"url": URL}, "triggers", "required"),
    ({"url": URL, "triggers": []}, "triggers", "at least 1"),
    (
        {"url": URL, "triggers": ["calendar.updated"]},
        "triggers",
        "There is no trigger 'calendar.updated'",
    ),
    ({"url": URL, "triggers": "bot.state_change"}, "triggers", "Not a list"),
    ({"url": URL, "triggers": [7]}, "triggers", "Not a string"),
    ({"url": 7, "triggers": ["bot.state_change"]}, "url", "Not a string"),
    ({"url": "", "triggers": ["bot.state_change"]}, "url", "blank"),
    ({"url": "https://a\x00.example", "triggers": ["bot.state_change"]}, "url", "NUL"),
    ({"url": "https://a.example/" + "x" * 2000, "triggers": ["bot.state_change"]}, "url", "2000"),
    ({"url": URL, "triggers": ["bot.state_change"], "is_active": "yes"}, "is_active", "boolean"),
    ({"url": URL, "triggers": ["bot.state_change"], "is_active": None}, "is_active", "boolean"),
    ({"url": URL, "triggers": ["bot.state_change"], "secret": "x"}, "secret", "Unknown field"),
    ({"url": "ftp://hooks.example", "triggers": ["bot.state_change"]}, "url", "full URL"),
    ({"url": "https://me:pw@hooks.example", "triggers": ["bot.state_change"]}, "url", "passwords"),
]


async def test_bad_input_names_the_field(api) -> None:
    for body, field, sentence in BAD_INPUT:
        response = await api.post("/api/v1/webhooks", json=body)
        assert response.status_code == 400, body
        assert list(response.json()) == [field]
        assert sentence in response.json()[field][0]


@pytest.mark.settings(allow_private_network_targets=False, webhook_allowed_hosts="hooks.internal")
async def test_only_public_https_urls_are_taken_save_for_allowed_hosts(api) -> None:
    webhook = await create(api)
    path = f"/api/v1/webhooks/{webhook['id']}"
    for url in ("http://hooks.example/", "https://127.0.0.1/", "https://localhost/", "https://[::1]/"):
        body = {"url": url, "triggers": ["bot.state_change"]}
        assert (await api.post("/api/v1/webhooks", json=body)).status_code == 400
        changed = await api.patch(path, json={"url": url})
        assert changed.status_code == 400
        assert list(changed.json()) == ["url"]
    await create(api, url="http://hooks.internal:8080/")
    assert (await api.get(path)).json()["url"] == URL


@pytest.mark.settings(allow_private_network_targets=False)
async def test_a_receiver_on_this_machine_is_refused_with_the_settings_that_allow_it(api) -> None:
    for url in ("http://localhost:8001/hook", "http://127.0.0.1:8001/hook", "https://localhost/hook"):
        response = await api.post("/api/v1/webhooks", json={"url": url, "triggers": ["bot.state_change"]})
        assert "ALLOW_PRIVATE_NETWORK_TARGETS=true" in response.json()["url"][0]
        assert "WEBHOOK_ALLOWED_HOSTS" in response.json()["url"][0]


async def test_a_webhook_is_changed_in_part(api) -> None:
    webhook = await create(api)
    path = f"/api/v1/webhooks/{webhook['id']}"
    changed = (await api.patch(path, json={"triggers": ["event.rsvp_update"], "is_active": False})).json()
    assert changed["triggers"] == ["event.rsvp_update"]
    assert changed["is_active"] is False
    assert changed["url"] == URL
    assert changed["updated_at"] > webhook["updated_at"]
    assert (await api.patch(path, json={})).json() == changed
    assert (await api.patch(path, json={"url": None})).status_code == 400
    assert (await api.patch(path, json={"triggers": []})).status_code == 400
    assert (await api.get(path)).json() == changed


async def test_a_webhook_is_deleted_with_its_deliveries(api, sessions, project) -> None:
    webhook, other = await create(api), await create(api)
    assert await announce_change(sessions, project) == 2
    response = await api.delete(f"/api/v1/webhooks/{webhook['id']}")
    assert (response.status_code, response.content) == (200, b"")
    assert (await api.get(f"/api/v1/webhooks/{webhook['id']}")).status_code == 404
    assert [delivery.subscription_id for delivery in await stored(sessions)] == [other["id"]]
    assert (await api.delete(f"/api/v1/webhooks/{webhook['id']}")).status_code == 404


async def test_another_projects_webhooks_do_not_exist(api, other_api, sessions, project) -> None:
    webhook = await create(api)
    await announce_change(sessions, project)
    delivery = (await stored(sessions))[0]
    path = f"/api/v1/webhooks/{webhook['id']}"
    responses = [
        await other_api.get(path),
        await other_api.patch(path, json={"is_active": False}),
        await other_api.delete(path),
        await other_api.post(f"{path}/rotate_secret"),
        await other_api.post(f"{path}/test"),
        await other_api.get(f"{path}/deliveries"),
        await other_api.post(f"{path}/replay", json={"since": "2020-01-01T00:00:00Z"}),
        await api.get("/api/v1/webhooks/webhook_0000000000000000"),
        await api.get("/api/v1/webhooks/7"),
    ]
    assert [(response.status_code, response.json()) for response in responses] == [
        (404, {"error": "Webhook not found"})
    ] * len(responses)
    foreign = await other_api.post(f"/api/v1/webhook_deliveries/{delivery.id}/redeliver")
    assert (foreign.status_code, foreign.json()) == (404, {"error": "Webhook delivery not found"})
    assert (await other_api.get("/api/v1/webhooks")).json()["results"] == []
    assert (await api.get(path)).json()["is_active"] is True


async def test_webhooks_are_listed_page_by_page(api) -> None:
    ids = [(await create(api))["id"] for _ in range(27)]
    first = (await api.get("/api/v1/webhooks")).json()
    second = (await api.get(first["next"])).json()
    listed = [webhook["id"] for webhook in [*first["results"], *second["results"]]]
    assert listed == ids[::-1]
    assert len(first["results"]) == 25
    assert second["next"] is None
    assert (await api.get(second["previous"])).json()["results"] == first["results"]
    assert (await api.get("/api/v1/webhooks?cursor=x")).status_code == 400


async def test_a_project_has_a_bounded_number_of_webhooks_also_under_concurrent_requests(
    api, monkeypatch
) -> None:
    monkeypatch.setattr(service, "MOST_WEBHOOKS", 2)
    body = {"url": URL, "triggers": ["bot.state_change"]}
    responses = await asyncio.gather(*(api.post("/api/v1/webhooks", json=body) for _ in range(5)))
    assert sorted(response.status_code for response in responses) == [201, 201, 400, 400, 400]
    refused = next(response for response in responses if response.status_code == 400)
    assert refused.json() == {
        "non_field_errors": ["A project has at most 2 webhooks. Delete one that is no longer used."]
    }
