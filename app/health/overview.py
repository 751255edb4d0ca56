"""The state of workers, syncs and endpoints, for `calbridge doctor`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Row

from app.core.db import AnySession
from app.health import repository

COUNTED_TO = repository.COUNTED


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers that were seen recently.

    `seconds_since_last`: the time since any worker was seen; None if none ever ran. `count`: seen within 30 seconds.
    """

    seconds_since_last: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Syncs:
    """The syncs that fail or wait.

    `outages`: (scope, outage_since, held, code) of open breakers.
    `failing`: (platform, code, rows, projects, example) of connected calendars whose last sync failed.
    `in_doubt`: how many calendars wait for a second response before missing events are deleted.
    """

    outages: Sequence[Row[Any]]
    failing: Sequence[Row[Any]]
    in_doubt: int


async def load_workers(session: AnySession) -> Workers:
    return Workers(await repository.load_heartbeat_age(session), await repository.count_workers(session))


async def load_syncs(session: AnySession, *, most_outages: int, within: timedelta) -> Syncs:
    """Return the syncs that fail or wait.

    Raises the database's error if a statement takes longer than `within`.
    """
    await repository.limit_time(session, within)
    return Syncs(
        outages=await repository.load_outages(session, limit=most_outages),
        failing=await repository.count_failing_calendars(session),
        in_doubt=await repository.count_in_doubt(session),
    )


async def load_dead_endpoints(session: AnySession) -> Row[Any]:
    """Return (failing, disabled, projects, example) of endpoints.

    `failing`: how many have failed for an hour. `disabled`: how many were disabled for failing.
    """
    return await repository.count_dead_endpoints(session)


async def load_used_platforms(session: AnySession) -> set[str]:
    """Return the platforms with accounts (google, microsoft) that a calendar or an OAuth app has."""
    return await repository.load_used_platforms(session)
