"""Projects whose join rules are tried; a fake runner and a launcher for it."""

import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from app.core.ids import new_id
from app.join_rules import runs
from tests.conftest import _client, _make_project
from tests.flows.bots.conftest import launcher, runner, runner_settings
from tests.flows.bots.launching import a_launcher
from tests.flows.join_rules.played import Played

__all__ = ["launcher", "new_project", "runner", "runner_settings"]

NewProject = Callable[[], contextlib.AbstractAsyncContextManager[Played]]


@pytest.fixture
async def new_project(app, sessions, settings, monkeypatch) -> NewProject:
    """`async with new_project() as played`: each story has a project of its own."""
    # Few events in a transaction: the rules of a story are applied in several.
    monkeypatch.setattr(runs, "_EVENTS_AT_ONCE", 2)
    monkeypatch.setattr(runs, "_CALENDARS_AT_ONCE", 2)
    # The launcher hands over what is in the first hours, which has no other bots.
    near = settings.model_copy(update={"bot_launch_lead_seconds": 5 * 3600})

    @contextlib.asynccontextmanager
    async def begin() -> AsyncIterator[Played]:
        project = await _make_project(sessions, new_id("proj"))
        async with _client(app, project.api_key) as api, a_launcher(near, sessions) as launcher:
            yield await Played.begin(api, sessions, settings, project.id, launcher)

    return begin
