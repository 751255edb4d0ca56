"""Delete the marks of mailed replies that were applied before."""

from datetime import timedelta

from app.core.db import Sessions, delete_in_batches

_KEEP_FOR = timedelta(days=30)


async def prune_inbound_replies(sessions: Sessions, *, older_than: timedelta = _KEEP_FOR) -> int:
    """Delete the marks of replies that were received longer ago, and return how many were deleted."""
    condition = "received_at < now() - CAST(:older_than AS interval)"
    return await delete_in_batches(sessions, "inbound_replies", condition, {"older_than": older_than})
