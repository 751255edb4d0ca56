"""Making many deliveries due again: a replay, and what waits for an endpoint that is switched on.

Both are marked on the subscription and done in batches, each with its mark in one transaction: no lock is held for
long, and a process that dies leaves a mark from which any worker goes on. The first batch is the request's own.
"""

from datetime import datetime
from typing import Any

from app.core.db import Session, Sessions, transaction
from app.models import WebhookSubscription
from app.webhooks import repository

BATCH = 1_000
COUNTED = 10_000

_NO_REPLAY: dict[str, Any] = {"replay_from": None, "replay_after_id": "", "replay_until": None}


async def begin_replay(session: Session, webhook: WebhookSubscription, since: datetime) -> int:
    """Sends everything created since then again, under the row's lock; how many, counted up to 10,000.

    One that is not at its end yet is widened: it goes on from the earlier of the two places.
    """
    until = await repository.database_time(session)
    start = (since, "")
    if webhook.replay_from is not None:
        place = min(start, (webhook.replay_from, webhook.replay_after_id))
        await repository.keep_requeueing(session, webhook.id, _replay_at(place, until))
        return await repository.count_replayable(session, webhook.id, start, until, COUNTED)
    batch = await repository.replay_batch(session, webhook.id, start, until, BATCH)
    if batch.place is None:
        return batch.requeued
    await repository.keep_requeueing(session, webhook.id, _replay_at(batch.place, until))
    uncounted = COUNTED - batch.requeued
    return batch.requeued + await repository.count_replayable(
        session, webhook.id, batch.place, until, uncounted
    )


async def resume(session: Session, webhook_id: str) -> None:
    """Makes everything that waits for an endpoint due now, under the row's lock."""
    if await repository.resume_batch(session, webhook_id, BATCH) == BATCH:
        await repository.keep_requeueing(session, webhook_id, {"is_resuming": True})


async def requeue_next(sessions: Sessions) -> bool:
    """The worker's side: one batch of any subscription that has some left; whether there was one."""
    async with transaction(sessions) as session:
        webhook = await repository.lock_requeueing(session)
        if webhook is None:
            return False
        if webhook.replay_from is not None and webhook.replay_until is not None:
            place, until = (webhook.replay_from, webhook.replay_after_id), webhook.replay_until
            batch = await repository.replay_batch(session, webhook.id, place, until, BATCH)
            values = _NO_REPLAY if batch.place is None else _replay_at(batch.place, until)
        else:
            resumed = await repository.resume_batch(session, webhook.id, BATCH)
            values = {"is_resuming": resumed == BATCH}
        await repository.keep_requeueing(session, webhook.id, values)
    return True


def _replay_at(place: tuple[datetime, str], until: datetime) -> dict[str, Any]:
    return {"replay_from": place[0], "replay_after_id": place[1], "replay_until": until}
