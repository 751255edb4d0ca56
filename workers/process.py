"""One worker process: work loops over PostgreSQL, housekeeping, and arq, which wakes them.

What is due is in PostgreSQL, under leases (docs/adr/0002-leases-in-postgresql-beside-arq.md). arq's jobs only make a loop
look at once and not at its next tick. `calbridge worker` goes on without Redis; workers/main.py is for arq's command.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

import structlog
from arq import cron, func
from arq.worker import Worker

from app.bots.launch import Launcher
from app.core.crypto import SecretBox
from app.core.db import create_engine, create_sessions
from app.core.http import httpx, operator_client, public_client
from app.core.wakeups import (
    ARQ_QUEUE,
    JOB,
    REDIS_UNAVAILABLE,
    WakeUps,
    connect_redis,
    deserialize_job,
    serialize_job,
)
from app.credentials.budgets import Budgets
from app.credentials.store import CredentialStore
from app.hosted.service import schedule_rewrite
from app.invitations.sender import CONCURRENCY as MAIL_CONCURRENCY
from app.invitations.sender import MailSender
from app.join_rules.runs import JoinRuleWorker
from app.join_rules.service import judge_later
from app.mail.lasuite.mailboxes import Messages
from app.outages.breakers import Breakers
from app.push.channels import PushChannelWorker
from app.settings import Settings
from app.sync.engine import SyncEngine
from app.sync.providers import ProviderFactory
from app.sync.queue import SyncQueue
from app.webhooks.delivery import Deliverer
from workers import housekeeping, liveness
from workers.housekeeping import Repeater
from workers.work_loop import Item, Work, WorkLoop

log = structlog.get_logger()

# Process managers kill after 30 s. Loops get 6 s to end, what they handle 14 s to finish and 3 s once cancelled;
# closing everything takes up to 4 s.
_FINISH_TIMEOUT_SECONDS = 14.0
_CANCEL_TIMEOUT_SECONDS = 3.0
_CANCEL_TIMES = 2
_REDIS_RETRY_SECONDS = 2.0
# A delivery that cannot be recorded is sent again, so deliveries do not wait for connections behind syncs.
_DELIVERY_POOL_SIZE = 4
_DELIVERY_POOL_TIMEOUT_SECONDS = 30.0
# Opening and closing push channels is never urgent, and uses the providers' quotas that syncs need.
_CHANNEL_CONCURRENCY = 8
_BOT_CONCURRENCY = 16
_JOIN_RULE_CONCURRENCY = 2
_LISTENER = "redis_listener"
_REPORT_WITHIN_SECONDS = 60.0
# Feeds have a loop of their own, and are woken with the other calendars.
_ALSO_WOKEN = {"syncs": "feeds"}


@dataclass
class Running:
    """The loops of this process. `tasks` run until they are cancelled."""

    loops: dict[str, WorkLoop[Any]]
    pruning: Repeater
    starting: Repeater
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self, name: str, loop: Coroutine[Any, Any, None]) -> None:
        """Run a loop that reports to `liveness` under this name."""
        self.tasks.append(asyncio.create_task(loop, name=name))

    def watch(self) -> None:
        """Have `/healthz` expect a report of each loop from now on."""
        liveness.expect((task.get_name() for task in self.tasks), within_seconds=_REPORT_WITHIN_SECONDS)


# arq's jobs. They take milliseconds: for as long as the slowest job may take, arq holds back the jobs of a worker that
# was killed.


async def wake(ctx: dict[str, Any], queue: str) -> None:
    """Make the loop of a queue look for work. A queue that only a newer release knows is ignored."""
    loops = ctx["running"].loops
    for name in (queue, _ALSO_WOKEN.get(queue)):
        if name in loops:
            loops[name].wake()
    if queue == "starting_soon":
        ctx["running"].starting.wake()


async def prune_expired(ctx: dict[str, Any]) -> None:
    """Have this worker delete expired rows."""
    ctx["running"].pruning.wake()


JOB_OPTIONS: dict[str, Any] = {
    "functions": [func(wake, name=JOB, timeout=5, keep_result=0, max_tries=1)],
    "cron_jobs": [
        cron(prune_expired, name="prune_expired", minute=set(range(0, 60, 10)), timeout=5, max_tries=1)
    ],
    "queue_name": ARQ_QUEUE,
    "job_serializer": serialize_job,
    "job_deserializer": deserialize_job,
    "poll_delay": 0.05,
    "max_jobs": 10,
    "health_check_interval": 15,
}
"""What arq's worker is made with, by `calbridge worker` and by arq's command."""


@contextlib.asynccontextmanager
async def running_loops(settings: Settings) -> AsyncIterator[Running]:
    """Run all loops but arq's while the block runs, then finish the work in progress and close all.

    Raises SettingsError if a setting that a worker needs is missing.
    """
    wakeups = WakeUps(connect_redis(settings.required_redis_url()))
    engine = create_engine(settings.required_database_url(), pool_size=settings.database_pool_size)
    delivery_engine = create_engine(
        settings.required_database_url(),
        pool_size=min(_DELIVERY_POOL_SIZE, settings.database_pool_size),
        pool_timeout=_DELIVERY_POOL_TIMEOUT_SECONDS,
    )
    sessions = create_sessions(engine, after_commit=wakeups.send_requested)
    delivery_sessions = create_sessions(delivery_engine, after_commit=wakeups.send_requested)
    box = SecretBox(settings.required_fernet_keys())
    budgets = Budgets(settings.required_redis_url())
    allow_private = settings.allow_private_network_targets
    demo_hosts = [httpx.URL(settings.demo_feed_url).netloc.decode()] if settings.demo_feed_url else []
    async with (
        operator_client() as client,
        public_client(allow_private=allow_private, allowed_hosts=demo_hosts) as feeds,
        Deliverer(settings=settings, sessions=delivery_sessions, box=box) as deliverer,
    ):
        credentials = CredentialStore(
            settings=settings, sessions=sessions, box=box, client=client, breakers=Breakers(sessions)
        )
        providers = ProviderFactory(
            settings=settings, credentials=credentials, budgets=budgets, client=client, feeds=feeds
        )
        syncs = SyncEngine(settings=settings, sessions=sessions, providers=providers)
        channels = PushChannelWorker(
            settings=settings,
            sessions=sessions,
            box=box,
            credentials=credentials,
            budgets=budgets,
            client=client,
        )
        launcher = Launcher(settings=settings, sessions=sessions, client=client, judge_later=judge_later)
        mails = MailSender(
            settings=settings,
            sessions=sessions,
            messages=Messages(settings, client),
            refresh_event=schedule_rewrite,
        )

        def loop(name: str, work: Work[Item], concurrency: int) -> WorkLoop[Item]:
            return WorkLoop(
                name,
                claim=work.claim,
                handle=work.handle,
                concurrency=concurrency,
                tick_seconds=settings.scheduler_tick_seconds,
            )

        slots = settings.sync_concurrency
        loops: dict[str, WorkLoop[Any]] = {
            "syncs": loop("syncs", SyncQueue(syncs, "account", slots=slots), slots),
            "feeds": loop(
                "feeds", SyncQueue(syncs, "feed", slots=slots, host_of=providers.feed_host_of), slots
            ),
            "deliveries": loop("deliveries", deliverer, settings.webhook_concurrency),
            "bots": loop("bots", launcher, _BOT_CONCURRENCY),
            "join_rules": loop(
                "join_rules", JoinRuleWorker(settings=settings, sessions=sessions), _JOIN_RULE_CONCURRENCY
            ),
            "mails": loop("mails", mails, MAIL_CONCURRENCY),
            "channels": loop("channels", channels, _CHANNEL_CONCURRENCY),
        }
        pruning = housekeeping.prune_expired(sessions, settings)
        starting = housekeeping.announce_starting(sessions, settings)
        running = Running(loops, pruning, starting)
        for name, work_loop in loops.items():
            running.start(name, work_loop.run())
        for repeater in (
            housekeeping.heartbeat(sessions),
            pruning,
            housekeeping.prune_deleted(sessions),
            housekeeping.extend_series(sessions, settings),
            housekeeping.continue_replays(sessions),
            housekeeping.fill_events(sessions),
            starting,
            housekeeping.watch_lanes(sessions),
        ):
            running.start(repeater.name, repeater.run())
        running.start("event_loop", liveness.watch_event_loop())
        log.info("worker_started", concurrency=slots)
        try:
            yield running
        finally:
            liveness.expect(())  # loops end one after the other now: none is late
            await _cancel(running.tasks)
            await asyncio.gather(*(loop.finish(_FINISH_TIMEOUT_SECONDS) for loop in loops.values()))
            await providers.aclose()
    await budgets.aclose()
    await wakeups.aclose()
    await delivery_engine.dispose()
    await engine.dispose()


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks, twice if needed: before Python 3.12, wait_for may swallow a cancellation."""
    pending = set(tasks)
    for _ in range(_CANCEL_TIMES):
        for task in pending:
            task.cancel()
        if pending:
            _, pending = await asyncio.wait(pending, timeout=_CANCEL_TIMEOUT_SECONDS)
    if pending:
        log.warning("worker_loops_left", names=sorted(task.get_name() for task in pending))


async def run_worker(settings: Settings) -> None:
    """Work until cancelled, also while Redis is unavailable; then finish what is being handled.

    Raises SettingsError if a setting that a worker needs is missing.
    """
    async with running_loops(settings) as running:
        running.start(_LISTENER, _listen(settings, running))
        running.watch()
        try:
            # No loop ends by itself. One that does has a bug, and the process manager starts the worker again.
            await asyncio.gather(*running.tasks)
        except asyncio.CancelledError:
            log.info("worker_stopping")


class _Listener(Worker):
    """arq's worker. It calls `heart_beat` in each round of its loop, after a response of Redis."""

    has_connected = False

    async def heart_beat(self) -> None:
        liveness.report(_LISTENER, within_seconds=_REPORT_WITHIN_SECONDS)
        self.has_connected = True
        await super().heart_beat()


async def _listen(settings: Settings, running: Running) -> None:
    """Run arq's jobs until cancelled, and connect again when Redis was unavailable."""
    is_logged = False
    while True:
        liveness.report(_LISTENER, within_seconds=_REPORT_WITHIN_SECONDS)
        redis = connect_redis(settings.required_redis_url())
        worker = _Listener(**JOB_OPTIONS, redis_pool=redis, ctx={"running": running}, handle_signals=False)
        try:
            await worker.async_run()
        except REDIS_UNAVAILABLE as err:
            if worker.has_connected or not is_logged:
                is_logged = True
                log.warning("redis_unavailable", error=type(err).__name__)
        finally:
            # arq's close waits for jobs that it has just cancelled, and raises their CancelledError.
            with contextlib.suppress(*REDIS_UNAVAILABLE, asyncio.CancelledError):
                await worker.close()
            # Jobs that are still ending would open connections of a pool that is closed.
            ending = [task for task in worker.tasks.values() if not task.done()]
            if ending:
                await asyncio.wait(ending, timeout=2)
            await redis.aclose(close_connection_pool=True)
        await asyncio.sleep(_REDIS_RETRY_SECONDS)
