"""What a worker does now and then: its sign of life, and clearing away what is kept only for a time."""

import asyncio
import os
import socket
from datetime import timedelta
from uuid import uuid4

import structlog
from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert

from app.api.idempotency import KEPT_FOR
from app.core.clock import utcnow
from app.core.db import Sessions, transaction
from app.doorbell import Doorbell
from app.hosted.repository import forget_inbound_replies
from app.hosted.service import Hosting, keep_all_expanded
from app.invitations.repository import forget_contents, forget_lanes
from app.models import IdempotentAnswer, WorkerHeartbeat
from app.settings import Settings
from app.webhooks.delivery import prune

log = structlog.get_logger()

HEARTBEAT_SECONDS = 5.0
_FORGET_WORKERS_AFTER = timedelta(hours=1)
_FORGET_REPLIES_AFTER = timedelta(days=30)
_FORGET_MAILS_AFTER = timedelta(days=30)
_FORGET_LANES_AFTER = timedelta(days=1)
_PRUNE_SECONDS = 600.0
_EXPAND_SECONDS = 5.0


async def beat(sessions: Sessions) -> None:
    """Renews this worker's row every few seconds, until cancelled."""
    worker_id = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
    while True:
        try:
            async with transaction(sessions) as session:
                row = insert(WorkerHeartbeat).values(id=worker_id, seen_at=utcnow())
                await session.execute(
                    row.on_conflict_do_update(
                        index_elements=[WorkerHeartbeat.id], set_={"seen_at": row.excluded.seen_at}
                    )
                )
        except Exception as err:  # noqa: BLE001 - the database may be restarting
            log.warning("heartbeat_failed", error=type(err).__name__)
        await asyncio.sleep(HEARTBEAT_SECONDS)


async def tidy(sessions: Sessions, settings: Settings) -> None:
    """Deletes expired rows every ten minutes, until cancelled."""
    while True:
        try:
            async with transaction(sessions) as session:
                now = func.now()
                await session.execute(
                    delete(IdempotentAnswer).where(IdempotentAnswer.created_at < now - KEPT_FOR)
                )
                await session.execute(
                    delete(WorkerHeartbeat).where(WorkerHeartbeat.seen_at < now - _FORGET_WORKERS_AFTER)
                )
                await forget_inbound_replies(session, _FORGET_REPLIES_AFTER)
                await forget_contents(session, _FORGET_MAILS_AFTER)
                await forget_lanes(session, _FORGET_LANES_AFTER)
            await prune(sessions, settings)
        except Exception as err:  # noqa: BLE001 - the next round tries again
            log.warning("tidy_failed", error=type(err).__name__)
        await asyncio.sleep(_PRUNE_SECONDS)


async def roll(sessions: Sessions, settings: Settings, doorbell: Doorbell) -> None:
    """Expands hosted series as time goes on, until cancelled."""
    while True:
        try:
            await keep_all_expanded(sessions, Hosting(settings), doorbell)
        except Exception as err:  # noqa: BLE001 - the next round tries again
            log.warning("expanding_failed", error=type(err).__name__)
        await asyncio.sleep(_EXPAND_SECONDS)
