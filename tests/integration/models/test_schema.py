"""The migrations make the tables that the models describe."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Connection, Index, text

from app.core.db import create_engine
from app.models import Base


def differences(connection: Connection) -> list[str]:
    """What `alembic check` would report, one line for each.

    PostgreSQL writes an expression of an index in its own way, so alembic takes it for another one. Of an index with
    expressions only its presence is compared.
    """
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    found = compare_metadata(context, Base.metadata)
    removed = {entry[1].name for entry in found if entry[0] == "remove_index"}
    rewritten = {
        entry[1].name
        for entry in found
        if entry[0] == "add_index" and entry[1].name in removed and _has_expression(entry[1])
    }
    return [
        str(entry)
        for entry in found
        if not (entry[0] in {"add_index", "remove_index"} and entry[1].name in rewritten)
    ]


def _has_expression(index: Index) -> bool:
    return any(not isinstance(expression, Column) for expression in index.expressions)


async def test_the_models_and_the_migrated_schema_agree(database_url: str) -> None:
    engine = create_engine(database_url)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


async def test_a_column_and_an_index_that_no_migration_made_are_found(database_url: str) -> None:
    engine = create_engine(database_url)
    async with engine.connect() as connection:
        await connection.execute(text("ALTER TABLE bots DROP COLUMN runner_bot_id"))
        await connection.execute(text("DROP INDEX ix_bots_due"))
        found = await connection.run_sync(differences)
        await connection.rollback()
    await engine.dispose()
    assert len(found) == 2
    assert "runner_bot_id" in "".join(found)
    assert "ix_bots_due" in "".join(found)
