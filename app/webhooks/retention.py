"""How long the log keeps deliveries that are finished."""

from datetime import timedelta

from app.core.db import Sessions, delete_in_batches
from app.settings import Settings


async def prune_deliveries(sessions: Sessions, settings: Settings) -> int:
    """Delete deliveries that finished more than WEBHOOK_DELIVERY_RETENTION_DAYS ago; how many."""
    older_than = timedelta(days=settings.webhook_delivery_retention_days)
    condition = "finished_at < now() - CAST(:older_than AS interval) ORDER BY finished_at"
    return await delete_in_batches(sessions, "webhook_deliveries", condition, {"older_than": older_than})
