"""Failures of commands, which end them with exit code 1."""

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

_UNDEFINED_TABLE = "42P01"
_INSUFFICIENT_PRIVILEGE = "42501"


class CommandFailed(Exception):
    """A failure with a text for the terminal: what is wrong, and how to fix it."""


DATABASE_ERRORS = (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)


_POOLER_REFUSES = re.compile(r"unsupported startup parameter(?: in options)?: \"?(\w+)")


def explain_database_error(err: BaseException) -> str:
    """Return a sentence for one of DATABASE_ERRORS: what is wrong, and how to fix it."""
    refused = isinstance(err, DBAPIError) and err.statement is not None
    if isinstance(err, DBAPIError) and err.orig is not None:
        err = err.orig.__cause__ or err.orig
    if isinstance(err, ConnectionError) and isinstance(err.__cause__, OSError):
        err = err.__cause__
    reason = (str(err) or type(err).__name__).splitlines()[0].rstrip(".")
    sqlstate = getattr(err, "sqlstate", None)
    if sqlstate == _UNDEFINED_TABLE:
        return "The database has no tables yet: run `calbridge migrate` first."
    if sqlstate == _INSUFFICIENT_PRIVILEGE:
        return f"The database refused a statement: {reason}. {_grants(reason)}"
    if isinstance(err, ssl.SSLCertVerificationError):
        return (
            f"The database's certificate is not believed: {err.verify_message.rstrip('.')}. Check sslrootcert in "
            "DATABASE_URL, and that its host is the one in the certificate."
        )
    pooler = _POOLER_REFUSES.search(reason)
    if pooler is not None:
        return (
            f"A connection pooler stands before PostgreSQL and refuses {pooler[1]}. Set DATABASE_URL to the address of "
            "PostgreSQL itself, since calbridge has its own pool; or let the pooler keep sessions and list in its "
            "ignore_startup_parameters: statement_timeout, lock_timeout, idle_in_transaction_session_timeout."
        )
    if refused:
        return f"The database refused a statement: {reason}."
    return f"The database cannot be used: {reason}. Check DATABASE_URL, and that PostgreSQL runs."


def _grants(reason: str) -> str:
    schema = re.search(r"permission denied for schema (\w+)", reason)
    if schema is not None:
        return (
            "As a superuser or the schema's owner, connected to this database: GRANT USAGE, CREATE ON SCHEMA "
            f"{schema[1]} TO the user of DATABASE_URL."
        )
    return "Let the user of DATABASE_URL own the tables, or give it the rights on them: GRANT ALL ON ALL TABLES IN SCHEMA public."


def explain_redis_error(err: BaseException) -> str:
    """Return a sentence for a Redis that is unavailable."""
    reason = (str(err) or "no response in time").splitlines()[0].rstrip(".")
    return f"Redis cannot be used: {reason}. Check REDIS_URL, and that Redis runs; `calbridge up` without it brings its own."


@contextmanager
def database_failures() -> Iterator[None]:
    """Turn DATABASE_ERRORS into CommandFailed."""
    try:
        yield
    except DATABASE_ERRORS as err:
        raise CommandFailed(explain_database_error(err)) from None
