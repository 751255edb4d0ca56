"""Alembic environment.

The database's URL comes from the caller or DATABASE_URL, or is that of a running `calbridge up`.
"""

import asyncio
import time

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, text

from app.core.db import create_migration_engine
from app.environment import command_settings
from app.models import Base
from app.settings import SettingsError
from migrations.revisions import is_known

# Processes that start together migrate one after the other. The lock belongs to the session, since a migration may
# commit in between. It has two keys, since app/events/visibility.py uses locks with one 64-bit key.
_TRY_LOCK = text("SELECT pg_try_advisory_lock(7142201, 1)")
_UNLOCK = text("SELECT pg_advisory_unlock(7142201, 1)")
_LOOK_AGAIN_SECONDS = 0.2


def _run(connection: Connection) -> None:
    # A statement that waits would hold a snapshot, and CREATE INDEX CONCURRENTLY waits for snapshots to end.
    while not connection.scalar(_TRY_LOCK):
        connection.commit()
        time.sleep(_LOOK_AGAIN_SECONDS)
    connection.commit()
    try:
        context.configure(
            connection=connection, target_metadata=Base.metadata, transaction_per_migration=True
        )
        newer = [one for one in context.get_context().get_current_heads() if not is_known(one)]
        connection.commit()
        if newer:
            context.config.attributes["newer_revision"] = newer[0]
            return
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.execute(_UNLOCK)
        connection.commit()


async def _main(url: str) -> None:
    engine = create_migration_engine(url)
    async with engine.connect() as connection:
        await connection.run_sync(_run)
        await connection.commit()
    await engine.dispose()


def _database_url() -> str:
    given: str | None = context.config.attributes.get("database_url")
    if given is not None:
        return given
    try:
        return command_settings("database_url").required_database_url()
    except SettingsError as err:
        raise CommandError(str(err)) from None


asyncio.run(_main(_database_url()))
