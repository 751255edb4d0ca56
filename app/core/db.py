"""Engine, transactions, and the only place that commits.

One request or one step of a job is one transaction; application code never commits. Reads and writes have
different session types, so that mypy sees a write through a read session.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NewType

import orjson
from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

Session = NewType("Session", AsyncSession)
ReadSession = NewType("ReadSession", AsyncSession)
AnySession = Session | ReadSession
Sessions = async_sessionmaker[AsyncSession]

# What a statement raises where the database is away, or takes too long.
AWAY = (SQLAlchemyError, OSError, TimeoutError)

# PostgreSQL itself ends a transaction that waits for something else than the database, such as the network.
_SERVER_SETTINGS = {
    "application_name": "calbridge",
    "statement_timeout": "30000",
    "lock_timeout": "5000",
    "idle_in_transaction_session_timeout": "15000",
}


def database_url(value: str) -> URL:
    """The configured DATABASE_URL with the asyncpg driver; `?host=/folder` means a socket."""
    return make_url(value).set(drivername="postgresql+asyncpg")


def create_engine(value: str, *, pool_size: int = 10, pool_timeout: float = 10) -> AsyncEngine:
    """`pool_timeout`: seconds to wait for a connection while all of them, half of `pool_size` more, are in use."""
    return create_async_engine(
        database_url(value),
        pool_size=pool_size,
        max_overflow=pool_size // 2,
        pool_recycle=1800,
        pool_timeout=pool_timeout,
        json_serializer=lambda item: orjson.dumps(item).decode(),
        json_deserializer=orjson.loads,
        hide_parameters=True,  # an exception must not carry row contents into a log
        connect_args={"timeout": 10, "command_timeout": 60, "server_settings": _SERVER_SETTINGS},
    )


def create_sessions(engine: AsyncEngine) -> Sessions:
    return async_sessionmaker(engine, expire_on_commit=False)


@asynccontextmanager
async def transaction(sessions: Sessions) -> AsyncIterator[Session]:
    """One read-committed transaction: committed at the end of the block, rolled back on any exception."""
    async with sessions.begin() as session:
        yield Session(session)


@asynccontextmanager
async def reading(sessions: Sessions) -> AsyncIterator[ReadSession]:
    """A session for reading only; whatever it did is rolled back."""
    async with sessions() as session:
        yield ReadSession(session)
