"""Running a command's work on the database."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.cli.errors import database_failures
from app.core.db import Session, Sessions, create_engine, create_sessions, transaction
from app.environment import command_settings
from app.settings import Settings

Result = TypeVar("Result")


def with_database(settings: Settings, work: Callable[[Sessions], Awaitable[Result]]) -> Result:
    """Run `work` in its own event loop. Raises CommandFailed if the database cannot be used."""

    async def run() -> Result:
        engine = create_engine(settings.required_database_url(), pool_size=1)
        try:
            return await work(create_sessions(engine))
        finally:
            await engine.dispose()

    with database_failures():
        return asyncio.run(run())


def in_transaction(work: Callable[[Session], Awaitable[Result]]) -> Result:
    """Run `work` in one transaction."""

    async def run(sessions: Sessions) -> Result:
        async with transaction(sessions) as session:
            return await work(session)

    return with_database(command_settings("database_url"), run)
