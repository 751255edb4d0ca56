"""Making many deliveries due again: a replay, and what waits for an endpoint that is enabled again.

The work is done in batches. Each batch saves its progress in the endpoint's row in the same transaction, so no lock is
held for long, and any worker continues after a crash. The request does the first batch itself.
"""

from datetime import datetime
from typing import Any

from app.core.db import Session, Sessions, transaction
from app.models import WebhookSubscription
from app.webhooks.repository import lanes, replay

BATCH = 1_000
COUNTED = 10_000

_NO_REPLAY: dict[str, Any] = {"replay_from": None, "replay_after_id": "", "replay_until": None}


async def begin_replay(session: Session, webhook: WebhookSubscription, since: datetime) -> int:
    """Send everything created since then again; return how many, counted up to 10,000.

    The caller holds the row's lock. An unfinished replay is widened: it continues from the earlier of the two places.
    """
    until = await replay.database_time(session)
    start = (since, "")
    if webhook.replay_from is not None:
        place = min(start, (webhook.replay_from, webhook.replay_after_id))
        await replay.save_progress(session, webhook.id, _replay_at(place, until))
        return await replay.count_replayable(session, webhook.id, start, until, COUNTED)
    batch = await replay.replay_batch(
        session, webhook.id, start, until, BATCH, is_fifo=webhook.ordering == "fifo"
    )
    if batch.place is None:
        return batch.requeued
    await replay.save_progress(session, webhook.id, _replay_at(batch.place, until))
    uncounted = COUNTED - batch.requeued
    return batch.requeued + await replay.count_replayable(session, webhook.id, batch.place, until, uncounted)


async def resume(session: Session, webhook_id: str) -> None:
    """Make everything that waits for an endpoint due now. The caller holds the row's lock."""
    if await replay.resume_batch(session, webhook_id, BATCH) == BATCH:
        await replay.save_progress(session, webhook_id, {"is_resuming": True})


async def requeue_next(sessions: Sessions) -> bool:
    """Do one batch of any endpoint with an unfinished replay or resumption; return whether there was one."""
    async with transaction(sessions) as session:
        webhook = await replay.lock_requeueing(session)
        if webhook is None:
            return False
        if webhook.replay_from is not None and webhook.replay_until is not None:
            place, until = (webhook.replay_from, webhook.replay_after_id), webhook.replay_until
            batch = await replay.replay_batch(
                session, webhook.id, place, until, BATCH, is_fifo=webhook.ordering == "fifo"
            )
            values = _NO_REPLAY if batch.place is None else _replay_at(batch.place, until)
        else:
            resumed = await replay.resume_batch(session, webhook.id, BATCH)
            values = {"is_resuming": resumed == BATCH}
        await replay.save_progress(session, webhook.id, values)
    return True


async def unblock_lanes(sessions: Sessions) -> None:
    """Continue lanes that a worker of the release before has left: it does not make the next message due."""
    await lanes.unblock_lanes(sessions)


def _replay_at(place: tuple[datetime, str], until: datetime) -> dict[str, Any]:
    return {"replay_from": place[0], "replay_after_id": place[1], "replay_until": until}
