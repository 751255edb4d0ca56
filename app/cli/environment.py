"""The environment of a command: settings, the servers of a running `calbridge up`, and the database."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from app.cli.errors import database_failures
from app.core.db import Session, Sessions, create_engine, create_sessions, transaction
from app.settings import Settings, SettingsError, load_settings, misspelt_settings

DEFAULT_DATA_DIR = Path(".data")

Result = TypeVar("Result")


def command_settings(*needed: str) -> Settings:
    """Return the settings, with the servers of a running `up` where none are configured.

    `needed`: database_url, redis_url, fernet_keys. Raises SettingsError with a line for each that is not set.
    """
    use_running_servers()
    settings = load_settings()
    if settings.demo_feed_url is None:  # otherwise `up` started this process and has printed the warnings
        warn_about_misspelt_settings()
    missing = []
    for name in needed:
        try:
            getattr(settings, f"required_{name}")()
        except SettingsError as err:
            missing.append(str(err))
    if missing:
        raise SettingsError("\n".join(missing))
    return settings


def warn_about_misspelt_settings() -> None:
    for sentence in misspelt_settings():
        print(f"Warning: {sentence}", file=sys.stderr)


def use_running_servers() -> None:
    """Use the servers of a running `calbridge up` if no settings name others."""
    from app.cli.devserver.up import running_up

    try:
        settings = load_settings()
    except SettingsError:
        return  # the caller loads the settings again and reports the error
    if settings.database_url is not None or settings.redis_url is not None:
        return
    found = running_up(DEFAULT_DATA_DIR)
    if found is not None:
        print(f"(using the `calbridge up` that runs on {DEFAULT_DATA_DIR})", file=sys.stderr)
        os.environ["DATABASE_URL"] = found.database_url
        os.environ["REDIS_URL"] = found.redis_url
        # A worker that is started here reads the same feed, and its mails link to the same API.
        if found.demo_feed_url is not None:
            os.environ["DEMO_FEED_URL"] = found.demo_feed_url
        if found.app_url is not None and "app_url" not in settings.model_fields_set:
            os.environ["APP_URL"] = found.app_url
        if not settings.fernet_keys:
            os.environ["CREDENTIALS_ENCRYPTION_KEYS"] = found.credentials_encryption_keys


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
