"""A runner's response whose id cannot be stored: the bot is launched all the same, and only once."""

from datetime import timedelta

import pytest
from sqlalchemy import select

from app.bots.launch import Launcher
from app.core.clock import utcnow
from app.core.db import transaction
from app.core.http import operator_client
from app.join_rules.service import judge_later
from app.models import Bot
from app.settings import Settings
from tests.fakes.runner import FakeRunner, Fault
from tests.fakes.server import serve


@pytest.mark.parametrize("written", ["r\\u0000x", "r\\ud800x"])
async def test_an_id_that_cannot_be_stored_is_left_out(
    settings: Settings, sessions, project, written: str
) -> None:
    runner = FakeRunner()
    runner.faults.append(Fault(status=201, body=f'{{"id": "{written}"}}'.encode(), makes_bot=True))
    async with transaction(sessions) as session:
        join_at = utcnow() + timedelta(seconds=60)
        values = {"bot_name": "B", "meeting_url": "https://zoom.us/j/1", "join_at": join_at}
        session.add(Bot(id="bot_0000000000000001", project_id=project.id, **values))
    async with serve(runner) as url, operator_client() as client:
        update = {"bot_runner_url": url, "bot_runner_api_key": runner.api_key}
        runner_settings = Settings(**{**settings.model_dump(), **update})
        launcher = Launcher(
            settings=runner_settings, sessions=sessions, client=client, judge_later=judge_later
        )
        (claimed,) = await launcher.claim(10)
        await launcher.handle(claimed)
        assert await launcher.claim(10) == []
    async with sessions() as session:
        bot = (await session.execute(select(Bot))).scalar_one()
    assert (bot.state, bot.runner_bot_id, len(runner.bots)) == ("launched", None, 1)
