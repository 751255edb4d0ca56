"""The state of the outbox of webhook deliveries, for the operator."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from app.core.backlog import Backlog
from app.core.db import AnySession
from app.webhooks.repository import backlog as repository
from app.webhooks.repository.backlog import EndpointBacklog

_TOP_ENDPOINTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSummary:
    """One endpoint with deliveries that wait or failed.

    `origin` is the scheme and host of its URL. The path is left out, since it may contain a secret.
    """

    webhook_id: str
    project_id: str
    origin: str
    is_active: bool
    pending: int
    failed_last_day: int
    failing_since: datetime | None
    oldest_at: datetime | None
    next_attempt_at: datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryBacklog:
    """All deliveries together.

    Those of disabled endpoints wait until they are enabled, and count in `on_hold` alone.
    """

    total: Backlog
    on_hold: int
    endpoints: list[EndpointSummary]


async def summarize_deliveries(session: AnySession, project_id: str | None) -> DeliveryBacklog:
    """Return the counts over all endpoints, and the endpoints with the most pending and failed deliveries."""
    rows = await repository.list_backlogs(session, project_id)
    active = [row for row in rows if row.is_active]
    total = Backlog(
        pending=sum(row.pending for row in active),
        in_flight=sum(row.in_flight for row in rows),
        failed=sum(row.failed for row in rows),
        failed_last_day=sum(row.failed_last_day for row in rows),
        oldest_at=_earliest(row.oldest_at for row in active),
        next_attempt_at=_earliest(_next_attempt(row) for row in active),
    )
    top = sorted(rows, key=lambda row: (row.pending, row.failed_last_day, row.failed), reverse=True)
    return DeliveryBacklog(
        total=total,
        on_hold=sum(row.pending for row in rows if not row.is_active),
        endpoints=await _summaries(session, top[:_TOP_ENDPOINTS]),
    )


async def _summaries(session: AnySession, rows: Sequence[EndpointBacklog]) -> list[EndpointSummary]:
    errors = await repository.find_last_errors(session, [row.endpoint_id for row in rows])
    return [
        EndpointSummary(
            webhook_id=row.endpoint_id,
            project_id=row.project_id,
            origin=_origin(row.url),
            is_active=row.is_active,
            pending=row.pending,
            failed_last_day=row.failed_last_day,
            failing_since=row.failing_since,
            oldest_at=row.oldest_at,
            next_attempt_at=_next_attempt(row) if row.is_active else None,
            last_error=errors.get(row.endpoint_id),
        )
        for row in rows
    ]


def _next_attempt(row: EndpointBacklog) -> datetime | None:
    """Nothing is sent before the end of a pause that the endpoint has asked for."""
    if row.next_attempt_at is None or row.paused_until is None:
        return row.next_attempt_at
    return max(row.next_attempt_at, row.paused_until)


def _earliest(times: Iterable[datetime | None]) -> datetime | None:
    return min((time for time in times if time is not None), default=None)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
