"""Bots, a fake runner, and launchers with and without a runner."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.bots.launch import Launcher
from app.core.clock import utcnow
from app.core.db import Sessions, transaction
from app.core.ids import new_id
from app.models import Bot, WebhookSubscription
from app.settings import Settings
from tests.conftest import TestProject
from tests.fakes.runner import FakeRunner
from tests.fakes.server import serve
from tests.flows.bots.launching import ZOOM, a_launcher


@pytest.fixture
async def runner() -> AsyncIterator[FakeRunner]:
    runner = FakeRunner()
    async with serve(runner) as url:
        runner.url = url
        yield runner


@pytest.fixture
def runner_settings(settings: Settings, runner: FakeRunner) -> Settings:
    update = {"bot_runner_url": runner.url, "bot_runner_api_key": runner.api_key}
    return Settings(**{**settings.model_dump(), **update})


@pytest.fixture
async def launcher(runner_settings: Settings, sessions: Sessions) -> AsyncIterator[Launcher]:
    async with a_launcher(runner_settings, sessions) as launcher:
        yield launcher


@pytest.fixture
def add_bot(sessions: Sessions, project: TestProject):
    async def add(in_seconds: float = 60, **fields: Any) -> str:
        bot_id = new_id("bot")
        join_at = utcnow() + timedelta(seconds=in_seconds)
        values = {"bot_name": "Notetaker", "meeting_url": ZOOM, "join_at": join_at, **fields}
        async with transaction(sessions) as session:
            session.add(Bot(id=bot_id, project_id=project.id, **values))
        return bot_id

    return add


@pytest.fixture
def load(sessions: Sessions):
    async def load(bot_id: str) -> Bot:
        async with sessions() as session:
            return (await session.execute(select(Bot).where(Bot.id == bot_id))).scalar_one()

    return load


@pytest.fixture
async def subscription(sessions: Sessions, project: TestProject) -> None:
    async with transaction(sessions) as session:
        session.add(
            WebhookSubscription(
                id=new_id("webhook"),
                project_id=project.id,
                url="https://example.com",
                triggers=["bot.state_change"],
                secrets_sealed=b"",
            )
        )
