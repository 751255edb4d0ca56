"""What a worker does now and then: its sign of life, and clearing away what is kept only for a time."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, cast
from uuid import uuid4

import structlog
from sqlalchemy import CursorResult, TextClause, func, text
from sqlalchemy.dialects.postgresql import insert

from app.api.idempotency import KEPT_FOR
from app.core.db import Session, Sessions, transaction
from app.events.retention import clear_deleted, clear_expired
from app.hosted.repository import forget_inbound_replies
from app.hosted.service import Hosting, keep_all_expanded
from app.invitations.repository import forget_contents, forget_lanes
from app.models import WorkerHeartbeat
from app.settings import Settings
from app.webhooks.delivery import prune
from app.webhooks.requeue import requeue_next
from workers.liveness import came_round

log = structlog.get_logger()

HEARTBEAT_SECONDS = 5.0
_FORGET_WORKERS_AFTER = timedelta(hours=1)
_FORGET_REPLIES_AFTER = timedelta(days=30)
_FORGET_MAILS_AFTER = timedelta(days=30)
_FORGET_LANES_AFTER = timedelta(days=1)
_PRUNE_SECONDS = 600.0
_SWEEP_SECONDS = 5.0
_BATCH = 1_000
_EXPAND_SECONDS = 5.0
_REQUEUE_SECONDS = 1.0
_ROUND_WITHIN_SECONDS = 120.0
_TIDY_WITHIN_SECONDS = 3600.0  # a backlog is cleared away in many short transactions


async def beat(sessions: Sessions) -> None:
    """Renews this worker's row every few seconds, until cancelled."""
    worker_id = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
    while True:
        came_round("heartbeat", within_seconds=_ROUND_WITHIN_SECONDS)
        try:
            async with transaction(sessions) as session:
                # The database's clock: it is the one that /readyz compares with.
                row = insert(WorkerHeartbeat).values(id=worker_id, seen_at=func.clock_timestamp())
                await session.execute(
                    row.on_conflict_do_update(
                        index_elements=[WorkerHeartbeat.id], set_={"seen_at": row.excluded.seen_at}
                    )
                )
        except Exception as err:  # noqa: BLE001 - the database may be restarting
            log.warning("heartbeat_failed", error=type(err).__name__)
        await asyncio.sleep(HEARTBEAT_SECONDS)


async def tidy(sessions: Sessions, settings: Settings) -> None:
    """Clears expired rows away at once and every ten minutes, until cancelled.

    In short transactions; a step that fails does not keep the others from theirs.
    """
    steps: dict[str, Callable[[], Awaitable[object]]] = {
        "answers": lambda: _in_batches(sessions, _forget_answers),
        "workers": lambda: _in_batches(sessions, _forget_workers),
        "replies": lambda: _in_batches(
            sessions, partial(forget_inbound_replies, older_than=_FORGET_REPLIES_AFTER)
        ),
        "mails": lambda: _in_batches(sessions, partial(forget_contents, older_than=_FORGET_MAILS_AFTER)),
        "lanes": lambda: _in_batches(sessions, partial(forget_lanes, older_than=_FORGET_LANES_AFTER)),
        "deliveries": lambda: prune(sessions, settings),
        "events": lambda: clear_expired(sessions, settings),
    }
    while True:
        came_round("tidy", within_seconds=_PRUNE_SECONDS + _TIDY_WITHIN_SECONDS)
        for name, step in steps.items():
            try:
                await step()
            except Exception as err:  # noqa: BLE001 - the next round tries again
                log.warning("tidy_failed", step=name, error=type(err).__name__)
        await asyncio.sleep(_PRUNE_SECONDS)


class _Batch(Protocol):
    async def __call__(self, session: Session, *, limit: int) -> int: ...


async def _in_batches(sessions: Sessions, batch: _Batch) -> None:
    while True:
        async with transaction(sessions) as session:
            done = await batch(session, limit=_BATCH)
        if done < _BATCH:
            return


def _old_rows(table: str, column: str) -> TextClause:
    return text(
        f"""
        DELETE FROM {table} WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM {table} WHERE {column} < now() - CAST(:older_than AS interval)
            LIMIT :limit FOR UPDATE SKIP LOCKED))
        """  # noqa: S608 - constants
    )


_ANSWERS = _old_rows("idempotent_answers", "created_at")
_WORKERS = _old_rows("worker_heartbeats", "seen_at")


async def _forget_answers(session: Session, *, limit: int) -> int:
    done = await session.execute(_ANSWERS, {"older_than": KEPT_FOR, "limit": limit})
    return cast("CursorResult[Any]", done).rowcount


async def _forget_workers(session: Session, *, limit: int) -> int:
    done = await session.execute(_WORKERS, {"older_than": _FORGET_WORKERS_AFTER, "limit": limit})
    return cast("CursorResult[Any]", done).rowcount


async def sweep(sessions: Sessions) -> None:
    """Clears away what deleted calendars have left, until cancelled."""
    while True:
        came_round("sweep", within_seconds=_SWEEP_SECONDS + _TIDY_WITHIN_SECONDS)
        try:
            await clear_deleted(sessions)
        except Exception as err:  # noqa: BLE001 - the next round tries again
            log.warning("sweep_failed", error=type(err).__name__)
        await asyncio.sleep(_SWEEP_SECONDS)


async def requeue(sessions: Sessions) -> None:
    """Goes on with replays of webhooks, batch by batch, until cancelled."""
    while True:
        came_round("requeue", within_seconds=_REQUEUE_SECONDS + _TIDY_WITHIN_SECONDS)
        try:
            while await requeue_next(sessions):
                pass
        except Exception as err:  # noqa: BLE001 - the next round tries again
            log.warning("requeueing_failed", error=type(err).__name__)
        await asyncio.sleep(_REQUEUE_SECONDS)


async def roll(sessions: Sessions, settings: Settings) -> None:
    """Expands hosted series as time goes on, until cancelled."""
    while True:
        came_round("expand", within_seconds=_EXPAND_SECONDS + _TIDY_WITHIN_SECONDS)
        try:
            await keep_all_expanded(sessions, Hosting(settings))
        except Exception as err:  # noqa: BLE001 - the next round tries again
            log.warning("expanding_failed", error=type(err).__name__)
        await asyncio.sleep(_EXPAND_SECONDS)
