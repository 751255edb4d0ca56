"""Steps of a launcher, and what it leaves behind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import select, text, update

from app.bots.launch import ClaimedBot, Launcher
from app.core.db import Sessions, transaction
from app.core.http import operator_client
from app.join_rules.service import judge_later
from app.models import Bot, WebhookDelivery
from app.settings import Settings

ZOOM = "https://zoom.us/j/5551112222?pwd=hidden-1"


@contextlib.asynccontextmanager
async def a_launcher(settings: Settings, sessions: Sessions) -> AsyncIterator[Launcher]:
    async with operator_client() as client:
        yield Launcher(settings=settings, sessions=sessions, client=client, judge_later=judge_later)


async def announced(sessions: Sessions) -> list[dict[str, Any]]:
    async with sessions() as session:
        rows = await session.scalars(select(WebhookDelivery.body).order_by(WebhookDelivery.created_at))
        return [orjson.loads(body)["data"] for body in rows]


async def make_due(sessions: Sessions) -> None:
    """Make the next attempts due, as if waits and leases were over."""
    async with transaction(sessions) as session:
        await session.execute(
            text("UPDATE bots SET next_attempt_at = now() WHERE next_attempt_at IS NOT NULL")
        )


async def pass_time(sessions: Sessions, bot_id: str, join_at: datetime) -> None:
    async with transaction(sessions) as session:
        await session.execute(update(Bot).where(Bot.id == bot_id).values(join_at=join_at))


async def launch_due(launcher: Launcher) -> list[ClaimedBot]:
    claimed = await launcher.claim(100)
    await asyncio.gather(*(launcher.handle(bot) for bot in claimed))
    return claimed


async def launch_to_the_end(launcher: Launcher, sessions: Sessions) -> None:
    """Make all attempts, without the time between them."""
    for _ in range(20):
        await make_due(sessions)
        if not await launch_due(launcher):
            return
    raise AssertionError("it does not end")


def entry_types(bot: Bot) -> list[str]:
    return [entry["type"] for entry in bot.events]
