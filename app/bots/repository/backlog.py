"""Counting bots that are due or have failed, for the operator."""

from datetime import timedelta

from sqlalchemy import text

from app.core.backlog import Backlog
from app.core.db import AnySession

_BACKLOG = text(
    """
    WITH shown AS (
        SELECT *, state = 'scheduled' AND meeting_url IS NOT NULL
                      AND join_at <= now() + CAST(:lead AS interval) AS is_due
        FROM bots
        WHERE state <> 'launched' AND (CAST(:project_id AS text) IS NULL OR project_id = :project_id))
    SELECT count(*) FILTER (WHERE is_due OR next_attempt_at IS NOT NULL) AS pending,
           count(*) FILTER (WHERE lease_token IS NOT NULL AND next_attempt_at > now()) AS in_flight,
           count(*) FILTER (WHERE state = 'fatal_error') AS failed,
           count(*) FILTER (WHERE state = 'fatal_error' AND updated_at > now() - interval '1 day') AS failed_last_day,
           min(created_at) FILTER (WHERE is_due OR next_attempt_at IS NOT NULL) AS oldest_at,
           min(coalesce(next_attempt_at, join_at - CAST(:lead AS interval))) FILTER (
               WHERE (state = 'scheduled' AND meeting_url IS NOT NULL)
                  OR (next_attempt_at IS NOT NULL AND (lease_token IS NULL OR next_attempt_at <= now()))
           ) AS next_attempt_at,
           count(*) FILTER (WHERE state = 'scheduled' AND NOT is_due) AS scheduled
    FROM shown
    """
)


async def count_backlog(
    session: AnySession, project_id: str | None, *, lead: timedelta
) -> tuple[Backlog, int]:
    """Return the bots that are due or have failed, and how many are due later; of one project, or of all.

    `lead`: how long before its time to join a bot is due.
    """
    row = (await session.execute(_BACKLOG, {"project_id": project_id, "lead": lead})).mappings().one()
    values = dict(row)
    scheduled = values.pop("scheduled")
    return Backlog(**values), scheduled
