"""Finished deliveries and old attempts, which are pruned."""

from datetime import UTC, datetime, timedelta
from typing import Any

from app.core.clock import utcnow
from app.webhooks.retention import prune_deliveries
from tests.integration.webhooks.deliveries import Webhooks


async def test_finished_deliveries_are_pruned_after_the_retention(webhooks: Webhooks, monkeypatch) -> None:
    monkeypatch.setattr("app.core.db._BATCH_ROWS", 2)
    subscription = await webhooks.subscribe()
    old, recent = utcnow() - timedelta(days=31), utcnow() - timedelta(days=29)
    done: dict[str, Any] = {"next_attempt_at": None, "status": "success"}
    await webhooks.add(subscription, 5, **done, finished_at=old, created_at=old)
    kept = await webhooks.add(subscription, 1, **done, finished_at=recent, created_at=old)
    kept += await webhooks.add(subscription, 1, created_at=old, next_attempt_at=old)
    assert await prune_deliveries(webhooks.sessions, webhooks.settings) == 5
    assert sorted(row.id for row in await webhooks.rows()) == sorted(kept)
    assert await prune_deliveries(webhooks.sessions, webhooks.settings) == 0


async def test_the_attempts_of_a_delivery_are_kept_to_the_last_fifty(webhooks: Webhooks) -> None:
    subscription = await webhooks.subscribe()
    before = [{"at": f"{number}"} for number in range(50)]
    (delivery,) = await webhooks.add(subscription, attempts=before)
    await webhooks.deliver()
    row = await webhooks.row(delivery)
    assert [attempt["at"] for attempt in row.attempts[:-1]] == [f"{number}" for number in range(1, 50)]
    assert datetime.fromisoformat(row.attempts[-1]["at"]).tzinfo == UTC
