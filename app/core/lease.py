"""Leases: the right of one process to work on a row, for a limited time.

A worker claims rows in one transaction (`FOR UPDATE SKIP LOCKED`), works with no transaction open, and writes the
result in another one. A worker that dies in between leaves a lease that expires; then another worker claims the row.

The columns of a claimed table, with one meaning everywhere:

`next_attempt_at`   when the row is due. A claim sets it to the end of the lease; a failure to the end of the backoff.
`lease_token`       the claim that holds the row; null if none does. Every write after a claim has
                    `WHERE lease_token = :lease_token`. If it matches no row, the lease is lost and nothing is written.
`lease_until`       the end of the lease, where a request for the next attempt must not be lost meanwhile: a request
                    changes the due time, and so the due time cannot be the end of the lease as well.
`attempt_count`     attempts so far; it decides the backoff (app/core/backoff.py).

The models (app/models/) state where a table differs. All times are the database's: `now()` in claims,
`clock_timestamp()` where a transaction may have waited for a lock.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self
from uuid import uuid4

import structlog

log = structlog.get_logger()


class LeaseLost(Exception):
    """The lease has expired, or the row was changed so that this process must not go on."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A token for one claim, and until when its work may begin on the clock of `time.monotonic`."""

    token: str
    begin_by: float

    @classmethod
    def new(cls, *, begin_within_seconds: float) -> Self:
        """Create a lease for rows that are about to be claimed.

        A lease covers one attempt that begins within this time. It is called before the claim, whose own time counts.
        """
        return cls(uuid4().hex, time.monotonic() + begin_within_seconds)

    @property
    def is_too_late(self) -> bool:
        """Whether this process was held up for so long that an attempt could outlast the lease."""
        return time.monotonic() > self.begin_by


@asynccontextmanager
async def extending(extend: Callable[[], Awaitable[None]], *, every_seconds: float) -> AsyncIterator[None]:
    """Call `extend` regularly while the block runs, so that slow work does not lose its lease.

    It stops at LeaseLost, which the block notices at its next write. Other errors are logged: the database may be
    restarting, and the lease lasts longer than one interval.
    """

    async def extend_regularly() -> None:
        while True:
            await asyncio.sleep(every_seconds)
            try:
                await extend()
            except LeaseLost:
                return
            except Exception as err:  # noqa: BLE001 - see above
                log.warning("lease_not_extended", error=type(err).__name__)

    task = asyncio.create_task(extend_regularly())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
