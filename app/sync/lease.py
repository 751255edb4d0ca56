"""The lease on a calendar, kept while its sync runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog

from app.core.db import Sessions, transaction
from app.sync import repository
from app.sync.repository import Claim, LeaseLost

LEASE_FOR = timedelta(seconds=90)
_EXTEND_EVERY_SECONDS = 30.0

log = structlog.get_logger()


@asynccontextmanager
async def kept_lease(sessions: Sessions, claim: Claim) -> AsyncIterator[None]:
    """Extend the lease while the block runs, so that a slow provider does not cost it."""
    extending = asyncio.create_task(_extend(sessions, claim))
    try:
        yield
    finally:
        extending.cancel()
        await asyncio.wait([extending])


async def _extend(sessions: Sessions, claim: Claim) -> None:
    while True:
        await asyncio.sleep(_EXTEND_EVERY_SECONDS)
        try:
            async with transaction(sessions) as session:
                await repository.extend_lease(session, claim)
        except LeaseLost:
            return  # the next write finds out, because the lease fences it
        except Exception as err:  # noqa: BLE001 - the database may be restarting: the lease lasts a while yet
            log.warning("lease_not_extended", error=type(err).__name__)
