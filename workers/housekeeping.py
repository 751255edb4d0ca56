"""Work that a worker repeats: its heartbeat, deleting expired rows, and batches of long jobs."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from uuid import uuid4

import structlog

from app.api.idempotency import prune_stored_responses
from app.core.db import Sessions, transaction
from app.events.retention import clear_deleted, clear_expired
from app.health.heartbeats import prune_heartbeats, record_heartbeat
from app.hosted.retention import prune_inbound_replies
from app.hosted.service import rewrite_due_events
from app.invitations.retention import prune_idle_lanes, prune_mail_contents
from app.settings import Settings
from app.starting_soon import service as starting_soon
from app.sync.backfill import fill_old_events
from app.webhooks.requeue import requeue_next, unblock_lanes
from app.webhooks.retention import prune_deliveries
from workers import liveness

log = structlog.get_logger()

_HEARTBEAT_SECONDS = 5.0
_HEARTBEAT_TIMEOUT_SECONDS = 115.0
# arq's cron wakes one of the workers every ten minutes; this is for installations without Redis.
_PRUNE_EXPIRED_SECONDS = 3600.0
_PRUNE_DELETED_SECONDS = 5.0
_EXTEND_SERIES_SECONDS = 5.0
_REPLAYS_SECONDS = 1.0
_FILL_EVENTS_SECONDS = 60.0
_LANES_SECONDS = 30.0
_BACKLOG_TIMEOUT_SECONDS = 3600.0  # a backlog is worked off in many short transactions


class Repeater:
    """Repeats `work` every `every_seconds`, and at once when woken. A failure is logged.

    `timeout_seconds`: after which the loop counts as late in `/healthz`; the work goes on.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[None]],
        *,
        every_seconds: float,
        timeout_seconds: float = _BACKLOG_TIMEOUT_SECONDS,
    ) -> None:
        self.name = name
        self._work = work
        self._every_seconds = every_seconds
        self._timeout_seconds = timeout_seconds
        self._woken = asyncio.Event()
        self.is_woken = False
        """Whether the present round is one that was asked for."""

    def wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        """Repeat until cancelled."""
        while True:
            liveness.report(self.name, within_seconds=self._every_seconds + self._timeout_seconds)
            self.is_woken = self._woken.is_set()
            self._woken.clear()
            try:
                await self._work()
            except Exception as err:  # noqa: BLE001 - the database may be restarting: the next round tries again
                log.warning("housekeeping_failed", loop=self.name, error=type(err).__name__)
            try:
                async with asyncio.timeout(self._every_seconds):
                    await self._woken.wait()
            except TimeoutError:
                pass


def heartbeat(sessions: Sessions) -> Repeater:
    """Renews this worker's row: `/readyz` says whether any worker is running."""
    worker_id = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"

    async def beat() -> None:
        async with transaction(sessions) as session:
            await record_heartbeat(session, worker_id)

    return Repeater(
        "heartbeat", beat, every_seconds=_HEARTBEAT_SECONDS, timeout_seconds=_HEARTBEAT_TIMEOUT_SECONDS
    )


def prune_expired(sessions: Sessions, settings: Settings) -> Repeater:
    """Deletes expired rows in short transactions. A step that fails does not keep the others from running."""
    steps: dict[str, Callable[[], Awaitable[int]]] = {
        "stored_responses": lambda: prune_stored_responses(sessions),
        "heartbeats": lambda: prune_heartbeats(sessions),
        "inbound_replies": lambda: prune_inbound_replies(sessions),
        "mail_contents": lambda: prune_mail_contents(sessions),
        "mail_lanes": lambda: prune_idle_lanes(sessions),
        "deliveries": lambda: prune_deliveries(sessions, settings),
        "events": lambda: clear_expired(sessions, settings),
        "notices": lambda: starting_soon.prune_notices(sessions),
    }

    async def prune() -> None:
        for name, step in steps.items():
            try:
                await step()
            except Exception as err:  # noqa: BLE001 - the next round tries again
                log.warning("housekeeping_failed", loop="prune_expired", step=name, error=type(err).__name__)

    return Repeater("prune_expired", prune, every_seconds=_PRUNE_EXPIRED_SECONDS)


def prune_deleted(sessions: Sessions) -> Repeater:
    """Deletes the events of deleted calendars."""

    async def prune() -> None:
        await clear_deleted(sessions)

    return Repeater("prune_deleted", prune, every_seconds=_PRUNE_DELETED_SECONDS)


def continue_replays(sessions: Sessions) -> Repeater:
    """Makes the deliveries of long replays due, batch by batch."""

    async def requeue_all() -> None:
        while await requeue_next(sessions):
            pass

    return Repeater("continue_replays", requeue_all, every_seconds=_REPLAYS_SECONDS)


def fill_events(sessions: Sessions) -> Repeater:
    """Fills columns of events that an earlier release wrote without them."""

    async def fill() -> None:
        if filled := await fill_old_events(sessions):
            log.info("events_filled", count=filled)

    return Repeater("fill_events", fill, every_seconds=_FILL_EVENTS_SECONDS)


def announce_starting(sessions: Sessions, settings: Settings) -> Repeater:
    """Announces events that start soon."""

    async def announce() -> None:
        await starting_soon.announce_starting(sessions, settings, is_woken=repeater.is_woken)

    repeater = Repeater("starting_soon", announce, every_seconds=settings.scheduler_tick_seconds)
    return repeater


def watch_lanes(sessions: Sessions) -> Repeater:
    """Continues the lanes of webhooks that a worker of the release before has left."""

    async def unblock() -> None:
        await unblock_lanes(sessions)

    return Repeater("watch_lanes", unblock, every_seconds=_LANES_SECONDS)


def extend_series(sessions: Sessions, settings: Settings) -> Repeater:
    """Expands hosted series further as time goes on."""

    async def expand() -> None:
        await rewrite_due_events(sessions, settings)

    return Repeater("extend_series", expand, every_seconds=_EXTEND_SERIES_SECONDS)
