"""Heartbeats of workers, which `/readyz` and `calbridge doctor` read."""

from datetime import timedelta

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert

from app.core.db import Session, Sessions, delete_in_batches
from app.models import WorkerHeartbeat

_KEEP_FOR = timedelta(hours=1)


async def record_heartbeat(session: Session, worker_id: str) -> None:
    """Write that this worker is alive now, by the database's clock."""
    row = insert(WorkerHeartbeat).values(id=worker_id, seen_at=func.clock_timestamp())
    await session.execute(
        row.on_conflict_do_update(index_elements=[WorkerHeartbeat.id], set_={"seen_at": row.excluded.seen_at})
    )


async def prune_heartbeats(sessions: Sessions) -> int:
    """Delete the rows of workers that were not seen for an hour. Return how many."""
    condition = "seen_at < now() - CAST(:older_than AS interval)"
    return await delete_in_batches(sessions, "worker_heartbeats", condition, {"older_than": _KEEP_FOR})
