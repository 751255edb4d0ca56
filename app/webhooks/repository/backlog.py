"""Counting unfinished and failed deliveries, for the operator."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ARRAY, Text, bindparam, text

from app.core.backlog import Backlog
from app.core.db import AnySession


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointBacklog(Backlog):
    """The unfinished and failed deliveries of one endpoint."""

    endpoint_id: str
    project_id: str
    url: str
    is_active: bool
    failing_since: datetime | None
    paused_until: datetime | None


# A merged delivery is closed as `failed`, but the newer one carries its changes: nothing failed.
_BACKLOG = text(
    """
    SELECT s.id AS endpoint_id, s.project_id, s.url, s.is_active, s.failing_since, s.paused_until,
           count(*) FILTER (WHERE d.status = 'pending') AS pending,
           count(*) FILTER (WHERE d.lease_token IS NOT NULL AND d.next_attempt_at > now()) AS in_flight,
           count(*) FILTER (WHERE d.status = 'failed') AS failed,
           count(*) FILTER (WHERE d.status = 'failed' AND d.finished_at > now() - interval '1 day') AS failed_last_day,
           min(d.created_at) FILTER (WHERE d.status = 'pending') AS oldest_at,
           min(d.next_attempt_at) FILTER (
               WHERE d.lease_token IS NULL OR d.next_attempt_at <= now()) AS next_attempt_at
    FROM webhook_deliveries d JOIN webhook_subscriptions s ON s.id = d.subscription_id
    WHERE d.status IN ('pending', 'failed') AND d.merged_into IS NULL
      AND (CAST(:project_id AS text) IS NULL OR s.project_id = :project_id)
    GROUP BY s.id
    """
)
_LAST_ERRORS = text(
    """
    SELECT given.id, failing.attempts -> -1 ->> 'error'
    FROM unnest(:ids) AS given (id)
    CROSS JOIN LATERAL (
        SELECT d.attempts FROM webhook_deliveries d
        WHERE d.subscription_id = given.id AND d.status IN ('pending', 'failed') AND d.attempts <> '[]'
        ORDER BY d.created_at DESC, d.id DESC LIMIT 1) AS failing
    """
).bindparams(bindparam("ids", type_=ARRAY(Text)))


async def list_backlogs(session: AnySession, project_id: str | None) -> list[EndpointBacklog]:
    """List the endpoints of one project, or of all, that have unfinished or failed deliveries."""
    return [
        EndpointBacklog(**row._mapping)  # noqa: SLF001 - the documented way to a row's names
        for row in await session.execute(_BACKLOG, {"project_id": project_id})
    ]


async def find_last_errors(session: AnySession, endpoint_ids: Sequence[str]) -> dict[str, str | None]:
    """Return {endpoint id: error of the last attempt of its newest delivery that was attempted}."""
    rows = await session.execute(_LAST_ERRORS, {"ids": list(endpoint_ids)})
    return {row[0]: row[1] for row in rows}
