"""What makes a command end with exit code 1."""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

_UNDEFINED_TABLE = "42P01"


class CommandFailed(Exception):
    """The text is what the terminal shows: what is wrong, and how to mend it."""


DATABASE_ERRORS = (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)


def explain_database_error(err: BaseException) -> str:
    """What to tell about one of DATABASE_ERRORS."""
    refused = isinstance(err, DBAPIError) and err.statement is not None
    if isinstance(err, DBAPIError) and err.orig is not None:
        err = err.orig.__cause__ or err.orig
    if getattr(err, "sqlstate", None) == _UNDEFINED_TABLE:
        return "The database has no tables yet: run `calbridge migrate` first."
    reason = (str(err) or type(err).__name__).splitlines()[0].rstrip(".")
    if refused:
        return f"The database refused a statement: {reason}."
    return f"The database cannot be used: {reason}. Check DATABASE_URL, and that PostgreSQL runs."


@contextmanager
def database_failures() -> Iterator[None]:
    """Turns what goes wrong with the database into CommandFailed."""
    try:
        yield
    except DATABASE_ERRORS as err:
        raise CommandFailed(explain_database_error(err)) from None
