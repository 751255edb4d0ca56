"""The worker as arq's command starts it: `arq workers.main.WorkerSettings`.

Importing this module reads the settings from the environment. `calbridge worker` runs the same code (process.py), serves
/metrics, and goes on without Redis; arq's command ends when Redis is unavailable.
"""

import asyncio
import os
import signal
from contextlib import AsyncExitStack, suppress
from typing import Any

import structlog
from arq.connections import ArqRedis

from app.core.logging import configure_logging
from app.core.wakeups import REDIS_UNAVAILABLE, redis_settings
from app.settings import load_settings
from workers.process import JOB_OPTIONS, running_loops

log = structlog.get_logger()

_DELETE_TIMEOUT_SECONDS = 2.0

_settings = load_settings()


async def startup(ctx: dict[str, Any]) -> None:
    """Start the loops. Raises SettingsError if a setting that a worker needs is missing."""
    configure_logging(level=_settings.log_level, json=_settings.environment == "production")
    _tolerate_failing_delete(ctx["redis"])
    stack = AsyncExitStack()
    running = await stack.enter_async_context(running_loops(_settings))
    running.watch()
    ctx["running"], ctx["stack"] = running, stack
    ctx["watching"] = asyncio.create_task(_end_with(running.tasks))


async def shutdown(ctx: dict[str, Any]) -> None:
    """Finish what is being handled, and close everything. arq also calls this after a failed `startup`.

    Raises the error of a loop that ended, so that the process's exit status shows it.
    """
    if "stack" not in ctx:
        return
    log.info("worker_stopping")
    ctx["watching"].cancel()
    await ctx["stack"].aclose()
    for loop in ctx["running"].tasks:
        if loop.done() and not loop.cancelled():
            loop.result()


def _tolerate_failing_delete(redis: ArqRedis) -> None:
    """Have arq call `shutdown` without Redis, too: before that, it deletes its health key."""
    delete = redis.delete

    async def try_to_delete(*names: Any) -> Any:
        with suppress(*REDIS_UNAVAILABLE):
            async with asyncio.timeout(_DELETE_TIMEOUT_SECONDS):
                return await delete(*names)
        return 0

    redis.delete = try_to_delete  # type: ignore[method-assign]


async def _end_with(loops: list[asyncio.Task[None]]) -> None:
    """End the process with a loop that ends, which is a bug: the process manager starts the worker again."""
    done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
    for loop in done:
        log.error("worker_loop_ended", name=loop.get_name(), exc_info=loop.exception())
    os.kill(os.getpid(), signal.SIGTERM)


class WorkerSettings:
    """arq's settings of a worker: https://arq-docs.helpmanual.io/#arq.worker.Worker."""

    functions = JOB_OPTIONS["functions"]
    cron_jobs = JOB_OPTIONS["cron_jobs"]
    queue_name = JOB_OPTIONS["queue_name"]
    job_serializer = JOB_OPTIONS["job_serializer"]
    job_deserializer = JOB_OPTIONS["job_deserializer"]
    poll_delay = JOB_OPTIONS["poll_delay"]
    max_jobs = JOB_OPTIONS["max_jobs"]
    health_check_interval = JOB_OPTIONS["health_check_interval"]
    redis_settings = redis_settings(_settings.required_redis_url())
    on_startup = startup
    on_shutdown = shutdown
    job_completion_wait = (
        1  # jobs end by themselves: one that is cancelled would keep `on_shutdown` from running
    )
