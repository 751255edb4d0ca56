"""Webhook subscriptions, what is announced to them, the log, redelivery and replay, over the API."""

import asyncio
import base64
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import orjson
import pytest
from limits import RateLimitItemPerMinute
from sqlalchemy import select, text, update

from app.core.clock import isoformat, utcnow
from app.core.db import Session, Sessions, transaction
from app.models import StoredResponse, WebhookDelivery, WebhookSubscription
from app.webhooks import requeue, samples, service
from app.webhooks.outbox import announce, delete_pending_of_calendar, wants_events
from app.webhooks.payloads import CalendarFacts, ChangedEvent
from app.webhooks.repository import replay
from app.webhooks.repository.outbox import lock_subscribers
from tests.conftest import TestProject
from tests.fakes.receiver import Answer, Receiver
from tests.fakes.server import serve

URL = "https://hooks.example/calbridge"
CALENDAR = CalendarFacts("cal_0123456789abcdef", deduplication_key="user-7", metadata={"user": "7"})


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[Receiver, str]]:
    receiver = Receiver()
    async with serve(receiver) as url:
        yield receiver, url


async def create(api: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {"url": URL, "triggers": ["calendar.events_update"], **fields}
    answer = await api.post("/api/v1/webhooks", json=body)
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


async def tell(
    sessions: Sessions,
    project: TestProject,
    trigger: Any = "calendar.events_update",
    *,
    calendar: CalendarFacts | None = CALENDAR,
    created: int = 1,
    **options: Any,
) -> int:
    data: dict[str, Any] = {"state": "connected"}
    if trigger == "calendar.events_update":
        data |= {
            "changes": {"created": created, "updated": 0, "deleted": 0},
            "updated_after": options.pop("updated_after", isoformat(utcnow())),
        }
    async with transaction(sessions) as session:
        return await announce(
            session, project_id=project.id, trigger=trigger, calendar=calendar, data=data, **options
        )


async def stored(sessions: Sessions) -> list[WebhookDelivery]:
    async with sessions() as session:
        return list(await session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.created_at)))


async def change(sessions: Sessions, delivery_id: str, **values: Any) -> None:
    async with transaction(sessions) as session:
        await session.execute(
            update(WebhookDelivery).where(WebhookDelivery.id == delivery_id).values(**values)
        )


ATTEMPT = {
    "at": "2026-01-31T09:00:00.000000Z",
    "status_code": 500,
    "duration_ms": 12,
    "response": "oops",
    "error": "status: answered 500 instead of 2xx",
}


async def finish(sessions: Sessions, delivery_id: str, status: str = "success") -> None:
    await change(
        sessions, delivery_id, status=status, next_attempt_at=None, finished_at=utcnow(), attempts=[ATTEMPT]
    )


# -- subscriptions ------------------------------------------------------------------------------------------


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
    answer = await api.post("/api/v1/webhooks", json=body, headers={"Idempotency-Key": "a"})
    secret = answer.json()["secret"].encode()
    async with sessions() as session:
        webhook = (await session.scalars(select(WebhookSubscription))).one()
        kept = (await session.scalars(select(StoredResponse))).one()
    for sealed in (webhook.secrets_sealed, kept.body):
        assert secret not in sealed
        assert base64.b64decode(secret) not in sealed


async def test_an_idempotency_key_gives_the_first_answer_with_its_secret_again(api) -> None:
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
        answer = await api.post("/api/v1/webhooks", json=body)
        assert answer.status_code == 400, body
        assert list(answer.json()) == [field]
        assert sentence in answer.json()[field][0]


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
        answer = await api.post("/api/v1/webhooks", json={"url": url, "triggers": ["bot.state_change"]})
        assert "ALLOW_PRIVATE_NETWORK_TARGETS=true" in answer.json()["url"][0]
        assert "WEBHOOK_ALLOWED_HOSTS" in answer.json()["url"][0]


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


async def test_a_deleted_webhook_is_gone_with_its_deliveries(api, sessions, project) -> None:
    webhook, other = await create(api), await create(api)
    assert await tell(sessions, project) == 2
    answer = await api.delete(f"/api/v1/webhooks/{webhook['id']}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert (await api.get(f"/api/v1/webhooks/{webhook['id']}")).status_code == 404
    assert [delivery.subscription_id for delivery in await stored(sessions)] == [other["id"]]
    assert (await api.delete(f"/api/v1/webhooks/{webhook['id']}")).status_code == 404


async def test_another_projects_webhooks_do_not_exist(api, other_api, sessions, project) -> None:
    webhook = await create(api)
    await tell(sessions, project)
    delivery = (await stored(sessions))[0]
    path = f"/api/v1/webhooks/{webhook['id']}"
    answers = [
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
    assert [(answer.status_code, answer.json()) for answer in answers] == [
        (404, {"error": "Webhook not found"})
    ] * len(answers)
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
    answers = await asyncio.gather(*(api.post("/api/v1/webhooks", json=body) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [201, 201, 400, 400, 400]
    refused = next(answer for answer in answers if answer.status_code == 400)
    assert refused.json() == {
        "non_field_errors": ["A project has at most 2 webhooks. Delete one that is no longer used."]
    }


# -- test ---------------------------------------------------------------------------------------------------


async def test_a_test_sends_a_signed_sample_and_answers_with_what_came_back(api, sessions, receiver) -> None:
    fake, url = receiver
    webhook = await create(api, url=url + "/hook", triggers=["calendar.state_change"])
    fake.script.append(Answer(201, b"hello"))
    answer = await api.post(f"/api/v1/webhooks/{webhook['id']}/test")
    assert answer.status_code == 200
    result = answer.json()
    assert result["status"] == "success"
    assert result["status_code"] == 201
    assert result["response"] == "hello"
    assert result["error"] is None
    assert result["duration_ms"] >= 0
    got = fake.received[0]
    sample = got.verify(webhook["secret"])
    assert got.path == "/hook"
    assert sample["trigger"] == "calendar.state_change"
    assert sample["data"]["test"] is True
    assert sample["idempotency_key"] == got.id == result["idempotency_key"]
    assert await stored(sessions) == []


async def test_a_test_tells_of_a_failure(api, receiver) -> None:
    fake, url = receiver
    webhook = await create(api, url=url, is_active=False)
    fake.script.append(Answer(500, b"oops"))
    result = (await api.post(f"/api/v1/webhooks/{webhook['id']}/test")).json()
    assert (result["status"], result["status_code"], result["response"]) == ("failed", 500, "oops")
    assert result["error"].startswith("status: ")


async def test_no_transaction_is_open_while_a_test_waits_for_the_endpoint(api, sessions, receiver) -> None:
    fake, url = receiver
    webhook = await create(api, url=url)
    fake.answer = Answer(delay=0.3)
    sending = asyncio.create_task(api.post(f"/api/v1/webhooks/{webhook['id']}/test"))
    await fake.wait_for(1)
    open_ones = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND state <> 'idle'"
    )
    async with sessions() as session:
        assert await session.scalar(open_ones) == 0
    assert (await sending).json()["status"] == "success"


async def test_a_secret_that_cannot_be_decrypted_is_said_and_mended_by_rotating(
    api, sessions, receiver
) -> None:
    fake, url = receiver
    webhook, other = await create(api, url=url), await create(api, url=url)
    async with transaction(sessions) as session:
        foreign = await session.scalar(
            select(WebhookSubscription.secrets_sealed).where(WebhookSubscription.id == other["id"])
        )
        await session.execute(
            update(WebhookSubscription)
            .where(WebhookSubscription.id == webhook["id"])
            .values(secrets_sealed=foreign)
        )
    path = f"/api/v1/webhooks/{webhook['id']}"
    answer = await api.post(f"{path}/test")
    assert answer.status_code == 400
    assert "rotate_secret" in answer.json()["non_field_errors"][0]
    secret = (await api.post(f"{path}/rotate_secret")).json()["secret"]
    assert (await api.post(f"{path}/test")).json()["status"] == "success"
    fake.received[0].verify(secret)


# -- announcing ---------------------------------------------------------------------------------------------


async def test_announcing_writes_one_delivery_for_each_active_subscription_to_the_trigger(
    api, other_api, sessions, project
) -> None:
    wanted = {(await create(api))["id"], (await create(api))["id"]}
    await create(api, triggers=["bot.state_change"])
    await create(api, is_active=False)
    await create(other_api)
    assert await tell(sessions, project) == 2
    deliveries = await stored(sessions)
    assert {delivery.subscription_id for delivery in deliveries} == wanted
    assert len({delivery.idempotency_key for delivery in deliveries}) == 2
    for delivery in deliveries:
        body = orjson.loads(delivery.body)
        assert body["idempotency_key"] == delivery.idempotency_key
        assert body["calendar_id"] == delivery.calendar_id == CALENDAR.id
        assert body["calendar_deduplication_key"] == "user-7"
        assert body["calendar_metadata"] == {"user": "7"}
        assert body["data"]["changes"] == {"created": 1, "updated": 0, "deleted": 0}
        assert delivery.status == "pending"


async def test_what_is_rolled_back_is_not_announced(api, sessions, project) -> None:
    await create(api, triggers=["calendar.state_change"])
    async with sessions() as session:
        told = await announce(
            Session(session),
            project_id=project.id,
            trigger="calendar.state_change",
            calendar=CALENDAR,
            data={"state": "connected"},
        )
        await session.rollback()
    assert told == 1
    assert await stored(sessions) == []


async def test_a_subscription_is_not_deleted_under_an_announcement(api, sessions, project) -> None:
    webhook = await create(api)
    async with transaction(sessions) as session:
        # As `announce` does first; were it deleted now, the delivery could not be written.
        assert len(await lock_subscribers(session, project.id, "calendar.events_update")) == 1
        deleting = asyncio.create_task(api.delete(f"/api/v1/webhooks/{webhook['id']}"))
        patched = await api.patch(f"/api/v1/webhooks/{webhook['id']}", json={"include_events": True})
        assert patched.status_code == 200  # a change of other kinds does not wait
        await asyncio.sleep(0.05)
        assert not deleting.done()
    assert (await deleting).status_code == 200
    assert await tell(sessions, project) == 0


async def test_changed_events_go_only_to_those_who_ask_for_them(api, sessions, project) -> None:
    plain = await create(api)
    async with sessions() as session:
        assert not await wants_events(session, project.id)
    full = await create(api, include_events=True)
    async with sessions() as session:
        assert await wants_events(session, project.id)
    changed = ChangedEvent("evt_1", "updated", {"id": "evt_1", "name": "b"}, {"name": ("a", "b")})
    await tell(sessions, project, changed_events=[changed])
    bodies = {row.subscription_id: orjson.loads(row.body) for row in await stored(sessions)}
    assert "events" not in bodies[plain["id"]]["data"]
    assert bodies[full["id"]]["data"]["events"] == [
        {
            "id": "evt_1",
            "name": "b",
            "change": "updated",
            "changed_fields": {"name": {"old": "a", "new": "b"}},
        }
    ]
    assert bodies[full["id"]]["data"]["truncated"] is False


# -- merging ------------------------------------------------------------------------------------------------


async def test_a_newer_update_takes_the_place_of_an_older_one_that_was_not_yet_tried(
    api, sessions, project
) -> None:
    await create(api)
    early = isoformat(utcnow() - timedelta(minutes=5))
    await tell(sessions, project, created=2, updated_after=early)
    await tell(sessions, project, created=3)
    (delivery,) = await stored(sessions)
    data = orjson.loads(delivery.body)["data"]
    assert data["changes"] == {"created": 5, "updated": 0, "deleted": 0}
    assert data["updated_after"] == early
    assert delivery.status == "pending"


async def test_an_older_update_that_was_tried_is_closed_with_its_bytes_and_attempts_kept(
    api, sessions, project
) -> None:
    webhook = await create(api)
    early = isoformat(utcnow() - timedelta(minutes=5))
    await tell(sessions, project, created=2, updated_after=early)
    (older,) = await stored(sessions)
    later = utcnow() + timedelta(hours=5)
    await change(sessions, older.id, attempts=[ATTEMPT], retry_count=4, next_attempt_at=later)
    await tell(sessions, project, created=3)
    closed, newer = await stored(sessions)
    assert (closed.id, closed.status, closed.next_attempt_at) == (older.id, "failed", None)
    assert closed.merged_into == newer.id
    assert closed.body == older.body
    assert newer.idempotency_key != older.idempotency_key
    assert newer.next_attempt_at is not None
    assert newer.next_attempt_at < utcnow()
    data = orjson.loads(newer.body)["data"]
    assert data["changes"]["created"] == 5
    assert data["updated_after"] == early
    log = (await api.get(f"/api/v1/webhooks/{webhook['id']}/deliveries")).json()["results"]
    assert [(row["id"], row["merged_into"]) for row in log] == [(newer.id, None), (older.id, newer.id)]
    assert log[1]["attempts"] == [ATTEMPT]


async def test_a_run_of_updates_that_fail_one_after_the_other_adds_up(api, sessions, project) -> None:
    await create(api, include_events=True)
    for number in range(5):
        event = ChangedEvent(f"evt_{number}", "created", {"id": f"evt_{number}"}, {})
        await tell(sessions, project, changed_events=[event])
        pending = [row for row in await stored(sessions) if row.status == "pending"]
        assert len(pending) == 1
        await change(sessions, pending[0].id, attempts=[ATTEMPT])
    data = orjson.loads(pending[0].body)["data"]
    assert data["changes"]["created"] == 5
    assert [event["id"] for event in data["events"]] == [f"evt_{number}" for number in range(5)]
    assert data["truncated"] is False


async def test_what_must_not_be_merged_is_not(api, sessions, project) -> None:
    first, second = await create(api), await create(api, triggers=["calendar.state_change"])
    other_calendar = CalendarFacts("cal_other", deduplication_key=None, metadata=None)
    # Another calendar, another trigger, and one that a worker has under way.
    await tell(sessions, project, calendar=other_calendar)
    await tell(sessions, project, "calendar.state_change")
    await tell(sessions, project, "calendar.state_change")
    await tell(sessions, project)
    under_way = (await stored(sessions))[-1]
    await change(sessions, under_way.id, lease_token="t", next_attempt_at=utcnow() + timedelta(seconds=9))
    await tell(sessions, project)
    rows = await stored(sessions)
    assert {row.status for row in rows} == {"pending"}
    assert [row.subscription_id for row in rows] == [first["id"], *[second["id"]] * 2, *[first["id"]] * 2]
    assert [orjson.loads(row.body)["data"].get("changes", {}).get("created") for row in rows] == [
        1, None, None, 1, 1,
    ]  # fmt: skip


async def test_a_delivery_that_was_asked_for_again_is_not_merged(api, sessions, project) -> None:
    await create(api)
    await tell(sessions, project)
    (row,) = await stored(sessions)
    await finish(sessions, row.id)
    await api.post(f"/api/v1/webhook_deliveries/{row.id}/redeliver")
    await tell(sessions, project)
    assert [kept.status for kept in await stored(sessions)] == ["pending", "pending"]


async def test_a_calendars_pending_deliveries_go_with_it(api, sessions, project) -> None:
    await create(api, triggers=["calendar.state_change"])
    for _ in range(2):
        await tell(sessions, project, "calendar.state_change")
    done, _ = await stored(sessions)
    await finish(sessions, done.id)
    async with transaction(sessions) as session:
        await delete_pending_of_calendar(session, CALENDAR.id)
    assert [row.id for row in await stored(sessions)] == [done.id]


# -- log and replay -----------------------------------------------------------------------------------------


async def test_the_log_has_filters_and_pages(api, sessions, project) -> None:
    webhook = await create(api, triggers=["calendar.state_change"])
    for _ in range(30):
        await tell(sessions, project, "calendar.state_change")
    rows = (await stored(sessions))[::-1]
    await finish(sessions, rows[3].id, "failed")
    await finish(sessions, rows[5].id, "success")
    path = f"/api/v1/webhooks/{webhook['id']}/deliveries"
    first = (await api.get(path)).json()
    second = (await api.get(first["next"])).json()
    assert [row["id"] for row in [*first["results"], *second["results"]]] == [row.id for row in rows]
    failed = (await api.get(path, params={"status": "failed"})).json()["results"]
    assert failed == [
        {
            "id": rows[3].id,
            "trigger": "calendar.state_change",
            "status": "failed",
            "idempotency_key": rows[3].idempotency_key,
            "calendar_id": CALENDAR.id,
            "created_at": isoformat(rows[3].created_at),
            "next_attempt_at": None,
            "merged_into": None,
            "attempts": [ATTEMPT],
        }
    ]
    succeeded = (await api.get(path, params={"status": "success"})).json()["results"]
    assert [row["id"] for row in succeeded] == [rows[5].id]
    pending = (await api.get(path, params={"status": "pending"})).json()
    pending_next = (await api.get(pending["next"])).json()
    assert len(pending["results"]) + len(pending_next["results"]) == 28
    assert (await api.get(path, params={"status": "lost"})).status_code == 400
    assert (await api.get(path, params={"cursor": "!"})).status_code == 400


async def test_a_delivery_is_shown_with_what_is_sent(api, other_api, sessions, project) -> None:
    secret = (await create(api))["secret"]
    await tell(sessions, project)
    (row,) = await stored(sessions)
    path = f"/api/v1/webhook_deliveries/{row.id}"
    shown = (await api.get(path)).json()
    assert shown["body"].encode() == row.body
    assert shown["webhook_id"] == row.subscription_id
    assert shown["headers"] == {"Content-Type": "application/json", "webhook-id": row.idempotency_key}
    assert secret not in str(shown)
    (listed,) = (await api.get(f"/api/v1/webhooks/{row.subscription_id}/deliveries")).json()["results"]
    assert shown.items() >= listed.items()
    for client, missing in ((other_api, path), (api, "/api/v1/webhook_deliveries/dlv_aaaaaaaaaaaaaaaa")):
        answer = await client.get(missing)
        assert (answer.status_code, answer.json()) == (404, {"error": "Webhook delivery not found"})


async def test_a_finished_delivery_is_made_due_again_with_its_id_and_bytes(api, sessions, project) -> None:
    await create(api)
    await tell(sessions, project)
    (before,) = await stored(sessions)
    for status in ("success", "failed"):
        await finish(sessions, before.id, status)
        await change(sessions, before.id, retry_count=9)
        answer = await api.post(f"/api/v1/webhook_deliveries/{before.id}/redeliver")
        assert answer.status_code == 202
        shown = answer.json()
        assert (shown["id"], shown["status"], shown["attempts"]) == (before.id, "pending", [ATTEMPT])
        (after,) = await stored(sessions)
        assert (after.status, after.retry_count, after.finished_at) == ("pending", 0, None)
        assert after.next_attempt_at is not None
        assert after.next_attempt_at <= utcnow()
        assert (after.body, after.idempotency_key) == (before.body, before.idempotency_key)


async def test_a_waiting_delivery_is_brought_forward_and_one_under_way_is_left_alone(
    api, sessions, project
) -> None:
    await create(api, triggers=["calendar.state_change"])
    for _ in range(2):
        await tell(sessions, project, "calendar.state_change")
    waiting, under_way = await stored(sessions)
    later = utcnow() + timedelta(hours=1)
    await change(sessions, waiting.id, next_attempt_at=later)
    await change(sessions, under_way.id, next_attempt_at=later, lease_token="t")
    for row in (waiting, under_way):
        assert (await api.post(f"/api/v1/webhook_deliveries/{row.id}/redeliver")).status_code == 202
    waiting, under_way = await stored(sessions)
    assert waiting.next_attempt_at is not None
    assert waiting.next_attempt_at < later
    assert (under_way.next_attempt_at, under_way.lease_token) == (later, "t")


async def test_a_replay_makes_everything_since_then_due_oldest_first(api, sessions, project) -> None:
    webhook = await create(api, triggers=["calendar.state_change"])
    for _ in range(4):
        await tell(sessions, project, "calendar.state_change")
    rows = await stored(sessions)
    for row in rows[:3]:
        await finish(sessions, row.id, "failed")
    await change(sessions, rows[2].id, merged_into=rows[3].id)
    await change(sessions, rows[3].id, next_attempt_at=utcnow() + timedelta(hours=10))
    path = f"/api/v1/webhooks/{webhook['id']}/replay"
    answer = await api.post(path, json={"since": isoformat(rows[1].created_at)})
    assert (answer.status_code, answer.json()) == (202, {"count": 2})
    after = await stored(sessions)
    assert [row.status for row in after] == ["failed", "pending", "failed", "pending"]
    assert [row.next_attempt_at for row in after] == [None, rows[1].created_at, None, rows[3].created_at]
    assert (await api.post(path, json={"since": "2999-01-01T00:00:00Z"})).json() == {"count": 0}


async def test_a_replay_needs_a_time(api) -> None:
    webhook = await create(api)
    bodies: list[Any] = [{}, {"since": "yesterday"}, {"since": None}, {"since": 7}, {"until": "x"}, []]
    for body in bodies:
        answer = await api.post(f"/api/v1/webhooks/{webhook['id']}/replay", json=body)
        assert answer.status_code == 400, body


async def test_nothing_is_sent_again_to_a_webhook_that_is_off(api, sessions, project) -> None:
    webhook = await create(api)
    await tell(sessions, project)
    (row,) = await stored(sessions)
    path = f"/api/v1/webhooks/{webhook['id']}"
    await api.patch(path, json={"is_active": False})
    answers = [
        await api.post(f"{path}/replay", json={"since": "2020-01-01T00:00:00Z"}),
        await api.post(f"/api/v1/webhook_deliveries/{row.id}/redeliver"),
    ]
    for answer in answers:
        assert answer.status_code == 400
        assert "is_active" in answer.json()["non_field_errors"][0]


async def test_switching_on_again_makes_what_waits_due_and_forgets_the_failures(
    api, sessions, project
) -> None:
    webhook = await create(api, triggers=["calendar.state_change"])
    for _ in range(2):
        await tell(sessions, project, "calendar.state_change")
    for row in await stored(sessions):
        await change(sessions, row.id, next_attempt_at=utcnow() + timedelta(hours=20))
    async with transaction(sessions) as session:
        await session.execute(
            update(WebhookSubscription).values(
                is_active=False,
                disabled_reason="because",
                failing_since=utcnow() - timedelta(days=6),
                paused_until=utcnow() + timedelta(hours=1),
            )
        )
    path = f"/api/v1/webhooks/{webhook['id']}"
    assert (await api.get(path)).json()["disabled_reason"] == "because"
    changed = (await api.patch(path, json={"is_active": True})).json()
    assert (changed["is_active"], changed["disabled_reason"], changed["failing_since"]) == (True, None, None)
    rows = await stored(sessions)
    assert [row.next_attempt_at for row in rows] == [row.created_at for row in rows]
    async with sessions() as session:
        assert await session.scalar(select(WebhookSubscription.paused_until)) is None


# -- replays in batches -------------------------------------------------------------------------------------


async def _finished(sessions: Sessions, webhook_id: str, count: int) -> None:
    """Deliveries that succeeded, a second apart, oldest first."""
    async with transaction(sessions) as session:
        await session.execute(
            text(
                """
                INSERT INTO webhook_deliveries
                    (id, subscription_id, trigger, idempotency_key, body, status, finished_at, created_at)
                SELECT 'dlv_' || n, :webhook_id, 'calendar.state_change', 'key-' || n, '{}', 'success', now(),
                       now() - make_interval(secs => CAST(:count AS int) - n + 1)
                FROM generate_series(1, CAST(:count AS int)) AS n
                """
            ),
            {"webhook_id": webhook_id, "count": count},
        )


async def _statuses(sessions: Sessions) -> dict[str, str]:
    return {row.id: row.status for row in await stored(sessions)}


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requeue, "BATCH", 10)


@pytest.mark.usefixtures("small_batches")
async def test_a_large_replay_is_answered_at_once_and_done_in_batches(api, sessions) -> None:
    webhook = await create(api, triggers=["calendar.state_change"])
    await _finished(sessions, webhook["id"], 95)
    path = f"/api/v1/webhooks/{webhook['id']}"
    answer = await api.post(f"{path}/replay", json={"since": "2020-01-01T00:00:00Z"})
    assert (answer.status_code, answer.json()) == (202, {"count": 95})
    pending = [n for n in range(1, 96) if (await _statuses(sessions))[f"dlv_{n}"] == "pending"]
    assert pending == list(range(1, 11))  # the oldest, already due
    assert (await api.get(path)).json()["updated_at"] == webhook["updated_at"]
    batches = 0
    while await requeue.requeue_next(sessions):
        batches += 1
    assert batches == 9
    assert set((await _statuses(sessions)).values()) == {"pending"}
    rows = await stored(sessions)
    assert [row.next_attempt_at for row in rows] == [row.created_at for row in rows]


@pytest.mark.usefixtures("small_batches")
async def test_a_replay_survives_workers_that_die_between_and_within_batches(
    api, sessions, monkeypatch
) -> None:
    webhook = await create(api, triggers=["calendar.state_change"])
    await _finished(sessions, webhook["id"], 60)
    await api.post(f"/api/v1/webhooks/{webhook['id']}/replay", json={"since": "2020-01-01T00:00:00Z"})

    async def killed(*_args: Any) -> None:
        raise KeyboardInterrupt

    await requeue.requeue_next(sessions)
    with monkeypatch.context() as patch:
        patch.setattr(replay, "save_progress", killed)  # after the rows, before the mark
        with pytest.raises(KeyboardInterrupt):
            await requeue.requeue_next(sessions)
    assert list((await _statuses(sessions)).values()).count("pending") == 20  # all of the batch or nothing
    # What was sent meanwhile is not sent once more by the rest of the replay.
    await change(sessions, "dlv_3", status="success", next_attempt_at=None, finished_at=utcnow())
    while any(await asyncio.gather(*(requeue.requeue_next(sessions) for _ in range(3)))):
        pass
    statuses = await _statuses(sessions)
    assert [name for name, status in statuses.items() if status != "pending"] == ["dlv_3"]


@pytest.mark.usefixtures("small_batches")
async def test_a_second_replay_widens_one_that_is_under_way(api, sessions) -> None:
    webhook = await create(api, triggers=["calendar.state_change"])
    await _finished(sessions, webhook["id"], 50)
    path = f"/api/v1/webhooks/{webhook['id']}/replay"
    rows = await stored(sessions)
    assert (await api.post(path, json={"since": isoformat(rows[20].created_at)})).json() == {"count": 30}
    assert (await api.post(path, json={"since": isoformat(rows[5].created_at)})).json() == {"count": 45}
    assert (await api.post(path, json={"since": isoformat(rows[45].created_at)})).json() == {"count": 5}
    while await requeue.requeue_next(sessions):
        pass
    assert [row.status for row in await stored(sessions)] == ["success"] * 5 + ["pending"] * 45


@pytest.mark.usefixtures("small_batches")
async def test_a_replay_holds_no_lock_between_its_batches_and_waits_while_the_webhook_is_off(
    api, sessions
) -> None:
    webhook = await create(api, triggers=["calendar.state_change"])
    await _finished(sessions, webhook["id"], 35)
    path = f"/api/v1/webhooks/{webhook['id']}"
    await api.post(f"{path}/replay", json={"since": "2020-01-01T00:00:00Z"})
    async with transaction(sessions) as session:
        await session.execute(
            text("SELECT FROM webhook_subscriptions WHERE id = :id FOR UPDATE NOWAIT"), {"id": webhook["id"]}
        )
        assert not await requeue.requeue_next(sessions)  # somebody else has it: no waiting
    await api.patch(path, json={"is_active": False})
    assert not await requeue.requeue_next(sessions)
    await api.patch(path, json={"is_active": True})
    while await requeue.requeue_next(sessions):
        pass
    assert set((await _statuses(sessions)).values()) == {"pending"}


@pytest.mark.usefixtures("small_batches")
async def test_what_waits_for_a_webhook_that_is_switched_on_is_made_due_in_batches(api, sessions) -> None:
    webhook = await create(api, triggers=["calendar.state_change"])
    await _finished(sessions, webhook["id"], 45)
    later = utcnow() + timedelta(hours=20)
    async with transaction(sessions) as session:
        values: dict[str, Any] = {"status": "pending", "next_attempt_at": later, "waits": True}
        await session.execute(update(WebhookDelivery).values(**values, finished_at=None))
    path = f"/api/v1/webhooks/{webhook['id']}"
    await api.patch(path, json={"is_active": False})
    await api.patch(path, json={"is_active": True})
    assert [row.next_attempt_at for row in await stored(sessions)].count(later) == 35
    while await requeue.requeue_next(sessions):
        pass
    rows = await stored(sessions)
    assert [(row.next_attempt_at, row.waits) for row in rows] == [(row.created_at, False) for row in rows]


@pytest.mark.usefixtures("small_batches")
async def test_a_long_replay_does_not_hold_up_others(api, sessions) -> None:
    webhook_ids = [(await create(api, triggers=["calendar.state_change"]))["id"] for _ in range(4)]
    await _finished(sessions, webhook_ids[0], 2_000)
    async with transaction(sessions) as session:
        await session.execute(update(WebhookSubscription).values(is_resuming=True))
        values = {"replay_from": utcnow() - timedelta(days=9), "replay_until": utcnow(), "is_resuming": False}
        await session.execute(
            update(WebhookSubscription).where(WebhookSubscription.id == webhook_ids[0]).values(**values)
        )
    for _ in range(100):
        assert await requeue.requeue_next(sessions)
    async with sessions() as session:
        left = select(WebhookSubscription.id).where(WebhookSubscription.is_resuming)
        assert list(await session.scalars(left)) == []


async def test_a_workers_loop_ends_a_replay(api, sessions, receiver, worker, monkeypatch) -> None:
    monkeypatch.setattr(requeue, "BATCH", 5)
    answering, url = receiver
    webhook = await create(api, url=url + "/hook", triggers=["calendar.state_change"])
    await _finished(sessions, webhook["id"], 23)
    await api.post(f"/api/v1/webhooks/{webhook['id']}/replay", json={"since": "2020-01-01T00:00:00Z"})
    await answering.wait_for(23)
    assert sorted(answering.ids) == sorted(f"key-{n}" for n in range(1, 24))


# -- tests are limited --------------------------------------------------------------------------------------


async def test_tests_are_held_to_a_rate_by_project(api, other_api, receiver, monkeypatch) -> None:
    monkeypatch.setattr(samples, "_PER_MINUTE", RateLimitItemPerMinute(3))
    answering, url = receiver
    path = f"/api/v1/webhooks/{(await create(api, url=url))['id']}/test"
    answers = [await api.post(path) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[-1].headers["retry-after"] == "60"
    assert "a minute" in answers[-1].json()["error"]
    assert len(answering.received) == 3
    theirs = f"/api/v1/webhooks/{(await create(other_api, url=url))['id']}/test"
    assert (await other_api.post(theirs)).status_code == 200


@pytest.mark.settings(redis_url="unix:///nonexistent/redis.sock")
async def test_few_tests_are_under_way_at_once_also_without_redis(api, other_api, receiver) -> None:
    answering, url = receiver
    answering.answer = Answer(delay=0.5)
    path = f"/api/v1/webhooks/{(await create(api, url=url))['id']}/test"
    theirs = f"/api/v1/webhooks/{(await create(other_api, url=url))['id']}/test"
    answers = await asyncio.gather(*(api.post(path) for _ in range(8)), other_api.post(theirs))
    assert Counter(answer.status_code for answer in answers) == {200: 5, 429: 4}
    assert answers[-1].status_code == 200
    assert answering.most_at_once["/"] <= 5
    assert int(next(answer for answer in answers if answer.status_code == 429).headers["retry-after"]) > 0
    assert (await api.post(path)).status_code == 200


async def test_tests_share_one_tls_context(api, receiver, monkeypatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(ssl, "create_default_context", lambda *args, **options: made.append(args))
    webhook = await create(api, url=receiver[1])
    for _ in range(3):
        assert (await api.post(f"/api/v1/webhooks/{webhook['id']}/test")).json()["status"] == "success"
    assert made == []
