"""Alembic environment: the URL comes from DATABASE_URL (or from the caller), never from a file."""

import asyncio

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

from app.core.db import database_url
from app.models import Base
from app.settings import load_settings


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        # Two processes that start together migrate one after the other.
        connection.execute(text("SELECT pg_advisory_xact_lock(7142201)"))
        context.run_migrations()


async def _main(url: str) -> None:
    engine = create_async_engine(database_url(url), poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(_run)
        await connection.commit()
    await engine.dispose()


asyncio.run(_main(context.config.attributes.get("database_url") or load_settings().required_database_url()))
