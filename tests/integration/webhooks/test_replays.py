"""Replays, and what waits for an enabled webhook: made due at once or in batches."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text, update

from app.core.clock import isoformat, utcnow
from app.core.db import Sessions, transaction
from app.models import WebhookDelivery, WebhookSubscription
from app.webhooks import requeue
from app.webhooks.repository import replay
from tests.integration.webhooks.webhooks_api import announce_change, change, create, finish, stored


async def test_a_replay_makes_everything_since_then_due_oldest_first(api, sessions, project) -> None:
    webhook = await create(api, triggers=["calendar.state_change"])
    for _ in range(4):
        await announce_change(sessions, project, "calendar.state_change")
    rows = await stored(sessions)
    for row in rows[:3]:
        await finish(sessions, row.id, "failed")
    await change(sessions, rows[2].id, merged_into=rows[3].id)
    await change(sessions, rows[3].id, next_attempt_at=utcnow() + timedelta(hours=10))
    path = f"/api/v1/webhooks/{webhook['id']}/replay"
    response = await api.post(path, json={"since": isoformat(rows[1].created_at)})
    assert (response.status_code, response.json()) == (202, {"count": 2})
    after = await stored(sessions)
    assert [row.status for row in after] == ["failed", "pending", "failed", "pending"]
    assert [row.next_attempt_at for row in after] == [None, rows[1].created_at, None, rows[3].created_at]
    assert (await api.post(path, json={"since": "2999-01-01T00:00:00Z"})).json() == {"count": 0}


async def test_a_replay_needs_a_time(api) -> None:
    webhook = await create(api)
    bodies: list[Any] = [{}, {"since": "yesterday"}, {"since": None}, {"since": 7}, {"until": "x"}, []]
    for body in bodies:
        response = await api.post(f"/api/v1/webhooks/{webhook['id']}/replay", json=body)
        assert response.status_code == 400, body


async def test_nothing_is_sent_again_to_a_webhook_that_is_off(api, sessions, project) -> None:
    webhook = await create(api)
    await announce_change(sessions, project)
    (row,) = await stored(sessions)
    path = f"/api/v1/webhooks/{webhook['id']}"
    await api.patch(path, json={"is_active": False})
    responses = [
        await api.post(f"{path}/replay", json={"since": "2020-01-01T00:00:00Z"}),
        await api.post(f"/api/v1/webhook_deliveries/{row.id}/redeliver"),
    ]
    for response in responses:
        assert response.status_code == 400
        assert "is_active" in response.json()["non_field_errors"][0]


async def test_switching_on_again_makes_what_waits_due_and_forgets_the_failures(
    api, sessions, project
) -> None:
    webhook = await create(api, triggers=["calendar.state_change"])
    for _ in range(2):
        await announce_change(sessions, project, "calendar.state_change")
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
async def test_a_large_replay_gets_its_response_at_once_and_is_done_in_batches(api, sessions) -> None:
    webhook = await create(api, triggers=["calendar.state_change"])
    await _finished(sessions, webhook["id"], 95)
    path = f"/api/v1/webhooks/{webhook['id']}"
    response = await api.post(f"{path}/replay", json={"since": "2020-01-01T00:00:00Z"})
    assert (response.status_code, response.json()) == (202, {"count": 95})
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
        assert not await requeue.requeue_next(sessions)  # another transaction has it: no waiting
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
    fake, url = receiver
    webhook = await create(api, url=url + "/hook", triggers=["calendar.state_change"])
    await _finished(sessions, webhook["id"], 23)
    await api.post(f"/api/v1/webhooks/{webhook['id']}/replay", json={"since": "2020-01-01T00:00:00Z"})
    await fake.wait_for(23)
    assert sorted(fake.ids) == sorted(f"key-{n}" for n in range(1, 24))
