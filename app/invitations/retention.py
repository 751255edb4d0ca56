"""How long the outbox keeps the contents of mails that were not sent, and lanes without mails."""

from datetime import timedelta

from sqlalchemy import text

from app.core.db import Sessions, delete_in_batches, run_in_batches

_KEEP_MAILS_FOR = timedelta(days=30)
_KEEP_LANES_FOR = timedelta(days=1)

_CLEAR_CONTENTS = text(
    """
    UPDATE invitation_mails SET mail = NULL WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM invitation_mails
        WHERE status <> 'pending' AND mail IS NOT NULL AND finished_at < now() - CAST(:older_than AS interval)
        LIMIT :limit FOR UPDATE SKIP LOCKED))
    """
)


async def prune_mail_contents(sessions: Sessions, *, older_than: timedelta = _KEEP_MAILS_FOR) -> int:
    """Clear the text of mails that ended longer ago; how many. Their rows stay as the log."""
    return await run_in_batches(sessions, _CLEAR_CONTENTS, {"older_than": older_than})


async def prune_idle_lanes(sessions: Sessions) -> int:
    """Delete lanes that have had no mail for a day; how many. They are made again when they are needed."""
    condition = """
        coalesce(served_at, held_until) < now() - CAST(:older_than AS interval)
        AND coalesce(held_until, now()) <= now() AND coalesce(leased_until, now()) <= now()
    """
    return await delete_in_batches(sessions, "mail_lanes", condition, {"older_than": _KEEP_LANES_FOR})
