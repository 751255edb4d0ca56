"""How much work a queue in the database holds, as `calbridge outbox` shows it."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """Counts of one queue.

    `pending` includes `in_flight`, the rows that a worker has claimed. `failed` counts the rows that are kept after
    their last attempt, `failed_last_day` those of the last 24 hours. `oldest_at`: when the oldest pending row was
    created. `next_attempt_at`: the earliest attempt of a row that is not in flight; in the past if it is overdue.
    """

    pending: int
    in_flight: int
    failed: int
    failed_last_day: int
    oldest_at: datetime | None
    next_attempt_at: datetime | None
