"""The log of deliveries over the API, and deliveries that are sent once more."""

from datetime import timedelta

from app.core.clock import isoformat, utcnow
from tests.integration.webhooks.webhooks_api import (
    ATTEMPT,
    CALENDAR,
    announce_change,
    change,
    create,
    finish,
    stored,
)


async def test_the_log_has_filters_and_pages(api, sessions, project) -> None:
    webhook = await create(api, triggers=["calendar.state_change"])
    for _ in range(30):
        await announce_change(sessions, project, "calendar.state_change")
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
    await announce_change(sessions, project)
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
        response = await client.get(missing)
        assert (response.status_code, response.json()) == (404, {"error": "Webhook delivery not found"})


async def test_a_finished_delivery_is_made_due_again_with_its_id_and_bytes(api, sessions, project) -> None:
    await create(api)
    await announce_change(sessions, project)
    (before,) = await stored(sessions)
    for status in ("success", "failed"):
        await finish(sessions, before.id, status)
        await change(sessions, before.id, retry_count=9)
        response = await api.post(f"/api/v1/webhook_deliveries/{before.id}/redeliver")
        assert response.status_code == 202
        shown = response.json()
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
        await announce_change(sessions, project, "calendar.state_change")
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
