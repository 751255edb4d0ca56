"""Engine, transactions, and the only place that commits.

A request, or one step of a job, is one transaction. Features never commit. Reads and writes have different session
types, so that mypy finds a write through a read session.
"""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NewType, cast

import asyncpg
import orjson
from sqlalchemy import CursorResult, TextClause, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from app.core.database_url import DatabaseUrl, parse_database_url

Session = NewType("Session", AsyncSession)
ReadSession = NewType("ReadSession", AsyncSession)
AnySession = Session | ReadSession
Sessions = async_sessionmaker[AsyncSession]

# What a statement raises if the database is unavailable or takes too long.
DATABASE_UNAVAILABLE = (SQLAlchemyError, OSError, TimeoutError)

# PostgreSQL ends a transaction that waits for anything but the database, such as the network.
_LIMITS = {
    "statement_timeout": "30000",
    "lock_timeout": "5000",
    "idle_in_transaction_session_timeout": "15000",
}

_BATCH_ROWS = 1_000
_AFTER_COMMIT = "after_commit"  # key in Session.info

_DIALECT = "postgresql+asyncpg://"  # without an address: see _connecting


def create_engine(value: str, *, pool_size: int = 10, pool_timeout: float = 10) -> AsyncEngine:
    """Make an engine for a DATABASE_URL. Raises ValueError with a sentence for a URL that cannot be used.

    It opens up to 1.5 times `pool_size` connections. `pool_timeout`: seconds to wait for one while all are in use.
    """
    return create_async_engine(
        _DIALECT,
        async_creator=_connecting(value, _LIMITS, command_timeout=60),
        pool_size=pool_size,
        max_overflow=pool_size // 2,
        pool_recycle=1800,
        pool_timeout=pool_timeout,
        json_serializer=lambda item: orjson.dumps(item).decode(),
        json_deserializer=orjson.loads,
        hide_parameters=True,  # an exception must not carry row contents into a log
    )


def create_migration_engine(value: str) -> AsyncEngine:
    """Make an engine without time limits for statements. It keeps no connection."""
    return create_async_engine(_DIALECT, async_creator=_connecting(value, {}), poolclass=NullPool)


def _connecting(
    value: str, server_settings: Mapping[str, str], *, command_timeout: float | None = None
) -> Callable[[], Awaitable[asyncpg.Connection]]:
    url = parse_database_url(value)
    settings = {"application_name": url.application_name or "calbridge", **server_settings}

    async def connect() -> asyncpg.Connection:
        try:
            return await asyncpg.connect(
                url.dsn,
                ssl=_system_tls(url) if url.has_system_roots else None,
                timeout=url.connect_within_seconds,
                command_timeout=command_timeout,
                server_settings=settings,
            )
        except ConnectionError:
            raise
        except OSError as err:
            # The name does not resolve, the host is unreachable or silent, or its certificate is not trusted.
            raise ConnectionError(str(err) or "no response in time") from err

    return connect


def _system_tls(url: DatabaseUrl) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if url.certificate is not None:
        file, key, password = url.certificate
        context.load_cert_chain(file, keyfile=key, password=password)
    return context


def create_sessions(
    engine: AsyncEngine, *, after_commit: Callable[[Session], None] | None = None
) -> Sessions:
    """Make sessions of an engine.

    `after_commit` runs after each committed `transaction`; it must not block or raise.
    """
    return async_sessionmaker(engine, expire_on_commit=False, info={_AFTER_COMMIT: after_commit})


@asynccontextmanager
async def transaction(sessions: Sessions) -> AsyncIterator[Session]:
    """One read-committed transaction: committed at the end of the block, rolled back on any exception.

    After the commit, the `after_commit` of `create_sessions` is called.
    """
    async with sessions() as session:
        async with session.begin():
            yield Session(session)
        after_commit = session.info[_AFTER_COMMIT]
        if after_commit is not None:
            after_commit(Session(session))


@asynccontextmanager
async def reading(sessions: Sessions) -> AsyncIterator[ReadSession]:
    """A session for reading only. Anything that it did is rolled back."""
    async with sessions() as session:
        yield ReadSession(session)


async def delete_in_batches(sessions: Sessions, table: str, condition: str, values: Mapping[str, Any]) -> int:
    """Delete the rows of `table` that meet `condition`, one transaction per batch. Returns how many.

    Both are SQL text with parameters for `values`, and must be constants. `condition` may end with ORDER BY. Rows that
    another transaction has locked are left.
    """
    statement = text(
        f"""
        DELETE FROM {table} WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM {table} WHERE {condition}
            LIMIT :limit FOR UPDATE SKIP LOCKED))
        """  # noqa: S608 - constants
    )
    return await run_in_batches(sessions, statement, values)


async def run_in_batches(sessions: Sessions, statement: TextClause, values: Mapping[str, Any]) -> int:
    """Repeat a statement until it changes fewer rows than its parameter `:limit`. Returns the total."""
    total = 0
    while True:
        async with transaction(sessions) as session:
            done = await session.execute(statement, {**values, "limit": _BATCH_ROWS})
        changed = cast("CursorResult[Any]", done).rowcount
        total += changed
        if changed < _BATCH_ROWS:
            return total
