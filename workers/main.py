"""One worker process: drainers over PostgreSQL, and an arq worker that hears the bell.

The truth about what is due is in PostgreSQL. arq's only job is `ring`, which makes a drainer look at once
instead of at the next tick; with Redis emptied or away, everything still happens, a tick later.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import structlog
from arq import func
from arq.worker import Worker
from redis.exceptions import RedisError

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
from app.hosted.service import write_rows_soon
from app.invitations.sender import CONCURRENCY as MAIL_CONCURRENCY
from app.invitations.sender import MailSender
from app.mail.mailboxes import Messages
from app.outages.breakers import Breakers
from app.push.channels import ChannelKeeper
from app.settings import Settings
from app.sync.engine import SyncEngine
from app.sync.providers import ProviderFactory
from app.sync.queue import SyncQueue
from app.webhooks.delivery import Deliverer
from workers import liveness
from workers.drainer import Drainer, Item, Work
from workers.housekeeping import beat, requeue, roll, sweep, tidy

log = structlog.get_logger()

# Process managers grant 30 s before they kill: 14 s for what is under way, 3 s for what is then cut (drainer.py),
# 6 s for the loops to end and 4 s to close everything leave a margin.
_FINISH_WITHIN_SECONDS = 14.0
_CANCEL_AGAIN_SECONDS = 3.0  # closing what they have open takes a moment
_CANCEL_TIMES = 2
_REDIS_RETRY_SECONDS = 2.0
# A delivery that cannot be recorded is sent again, so deliveries do not wait for connections behind syncs.
_DELIVERY_POOL_SIZE = 4
_DELIVERY_POOL_TIMEOUT_SECONDS = 30.0
# Opening and closing push channels is never urgent, and shares the providers' quotas with the syncs.
_CHANNEL_CONCURRENCY = 8
_BOT_CONCURRENCY = 16
_LISTENER = "redis_listener"
_ROUND_WITHIN_SECONDS = 60.0

# By name: that of the bell that wakes it. Feeds have no bell of their own.
Drainers = dict[str, Drainer[Any]]
_ALSO_WOKEN = {"syncs": "feeds"}


async def wake(ctx: dict[str, Any], queue: str) -> None:
    """The arq job. A queue that only a newer release knows wakes no loop."""
    for name in (queue, _ALSO_WOKEN.get(queue)):
        drainer = ctx["drainers"].get(name)
        if drainer is not None:
            drainer.ring()


class _Listener(Worker):
    """arq's worker; `heart_beat` is called in each round of its own loop, after Redis has answered."""

    has_heard = False

    async def heart_beat(self) -> None:
        liveness.came_round(_LISTENER, within_seconds=_ROUND_WITHIN_SECONDS)
        self.has_heard = True
        await super().heart_beat()


async def _listen(settings: Settings, drainers: Drainers) -> None:
    """Hears the bell until cancelled; a Redis that is away is tried again."""
    is_told = False
    while True:
        liveness.came_round(_LISTENER, within_seconds=_ROUND_WITHIN_SECONDS)
        redis = connect_redis(settings.required_redis_url())
        worker = _Listener(
            functions=[func(wake, name=JOB, timeout=5, keep_result=0, max_tries=1)],
            queue_name=ARQ_QUEUE,
            redis_pool=redis,
            ctx={"drainers": drainers},
            handle_signals=False,
            poll_delay=0.05,
            max_jobs=10,
            health_check_interval=15,
            job_serializer=serialize_job,
            job_deserializer=deserialize_job,
        )
        try:
            await worker.async_run()
        except REDIS_UNAVAILABLE as err:
            if worker.has_heard or not is_told:
                is_told = True
                log.warning("redis_unavailable", error=type(err).__name__)
        finally:
            # arq's close waits for tasks that it has just cancelled, and lets their CancelledError out.
            with contextlib.suppress(RedisError, OSError, asyncio.CancelledError):
                await worker.close()
            # Jobs that are still ending would open connections of a pool that is closed.
            ending = [task for task in worker.tasks.values() if not task.done()]
            if ending:
                await asyncio.wait(ending, timeout=2)
            await redis.aclose(close_connection_pool=True)
        await asyncio.sleep(_REDIS_RETRY_SECONDS)


@contextlib.asynccontextmanager
async def _drainers(settings: Settings) -> AsyncIterator[tuple[Drainers, list[asyncio.Task[None]]]]:
    engine = create_engine(settings.required_database_url(), pool_size=settings.database_pool_size)
    wakeups = WakeUps(connect_redis(settings.required_redis_url()))
    sessions = create_sessions(engine, after_commit=wakeups.send_requested)
    delivery_engine = create_engine(
        settings.required_database_url(),
        pool_size=min(_DELIVERY_POOL_SIZE, settings.database_pool_size),
        pool_timeout=_DELIVERY_POOL_TIMEOUT_SECONDS,
    )
    box = SecretBox(settings.required_fernet_keys())
    budgets = Budgets(settings.required_redis_url())
    tick = settings.scheduler_tick_seconds
    allow_private = settings.allow_private_network_targets
    demo_hosts = [httpx.URL(settings.demo_feed_url).netloc.decode()] if settings.demo_feed_url else []
    async with (
        operator_client() as client,
        public_client(allow_private=allow_private, allowed_hosts=demo_hosts) as feeds,
        Deliverer(settings=settings, sessions=create_sessions(delivery_engine), box=box) as deliverer,
    ):
        credentials = CredentialStore(
            settings=settings, sessions=sessions, box=box, client=client, breakers=Breakers(sessions)
        )
        providers = ProviderFactory(
            settings=settings, credentials=credentials, budgets=budgets, client=client, feeds=feeds
        )
        syncs = SyncEngine(settings=settings, sessions=sessions, providers=providers)
        channels = ChannelKeeper(
            settings=settings,
            sessions=sessions,
            box=box,
            credentials=credentials,
            budgets=budgets,
            client=client,
        )
        launcher = Launcher(settings=settings, sessions=sessions, client=client)
        mails = MailSender(
            settings=settings,
            sessions=sessions,
            messages=Messages(settings, client),
            refresh_event=write_rows_soon,
        )

        def drainer(name: str, work: Work[Item], concurrency: int) -> Drainer[Item]:
            return Drainer(
                name, claim=work.claim, handle=work.handle, concurrency=concurrency, tick_seconds=tick
            )

        slots = settings.sync_concurrency
        drainers: Drainers = {
            "syncs": drainer("syncs", SyncQueue(syncs, "account", slots=slots), slots),
            "feeds": drainer(
                "feeds", SyncQueue(syncs, "feed", slots=slots, host_of=providers.feed_host_of), slots
            ),
            "deliveries": drainer("deliveries", deliverer, settings.webhook_concurrency),
            "bots": drainer("bots", launcher, _BOT_CONCURRENCY),
            "mails": drainer("mails", mails, MAIL_CONCURRENCY),
            "channels": drainer("channels", channels, _CHANNEL_CONCURRENCY),
        }
        upkeep = [
            asyncio.create_task(beat(sessions), name="heartbeat"),
            asyncio.create_task(tidy(sessions, settings), name="tidy"),
            asyncio.create_task(sweep(sessions), name="sweep"),
            asyncio.create_task(roll(sessions, settings), name="expand"),
            asyncio.create_task(requeue(sessions), name="requeue"),
            asyncio.create_task(liveness.watch_event_loop(), name="event_loop"),
        ]
        yield drainers, upkeep
        await asyncio.gather(*(drainer.drain(_FINISH_WITHIN_SECONDS) for drainer in drainers.values()))
        await providers.aclose()
    await budgets.aclose()
    await wakeups.aclose()
    await delivery_engine.dispose()
    await engine.dispose()


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels again what does not end: before Python 3.12, a wait_for that is just done swallows a cancellation."""
    pending = set(tasks)
    for _ in range(_CANCEL_TIMES):
        for task in pending:
            task.cancel()
        if pending:
            _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_SECONDS)
    if pending:
        log.warning("worker_loops_left", names=sorted(task.get_name() for task in pending))


async def run_worker(settings: Settings) -> None:
    """Works until it is cancelled, then finishes what it has under way and closes everything.

    Raises SettingsError where a setting that it needs is missing.
    """
    async with _drainers(settings) as (drainers, upkeep):
        loops = [asyncio.create_task(drainer.run(), name=name) for name, drainer in drainers.items()]
        listener = asyncio.create_task(_listen(settings, drainers), name=_LISTENER)
        log.info("worker_started", concurrency=settings.sync_concurrency)
        tasks = [*loops, *upkeep, listener]
        # Each comes round under its task's name (`liveness.came_round`).
        liveness.expect((task.get_name() for task in tasks), within_seconds=_ROUND_WITHIN_SECONDS)
        try:
            # None of these ends by itself; one that does has a bug, and the process manager restarts us.
            await asyncio.gather(*tasks)
        except asyncio.CancelledError:
            log.info("worker_stopping")
        finally:
            liveness.expect(())  # loops end one after the other now, which is no fault
            await _end(tasks)
