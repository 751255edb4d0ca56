"""SQL over every column of type `Sealed` (app/models/base.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Column, Table, bindparam, select, tuple_, update

from app.core.db import AnySession, Session
from app.models import Base
from app.models.base import Sealed

Key = tuple[Any, ...]


class SealedValue(NamedTuple):
    """A row's primary key, the context that its value is bound to, and the encrypted value."""

    key: Key
    context: str
    sealed: bytes


@dataclass(frozen=True)
class SealedColumn:
    """A column with encrypted values. `context`: the template of its contexts (app/models/base.py)."""

    table: Table
    column: Column[bytes]
    context: str

    def __str__(self) -> str:
        return f"{self.table.name}.{self.column.name}"

    @property
    def key(self) -> list[Column[Any]]:
        return list(self.table.primary_key.columns)

    def value_of(self, row: Sequence[Any]) -> SealedValue:
        *key, sealed = row
        names = (column.name for column in self.key)
        return SealedValue(tuple(key), self.context.format_map(dict(zip(names, key, strict=True))), sealed)


def sealed_columns() -> list[SealedColumn]:
    """Return all columns with encrypted values, sorted by table."""
    return [
        SealedColumn(table, column, column.type.context)
        for table in sorted(Base.metadata.tables.values(), key=lambda table: table.name)
        for column in table.columns
        if isinstance(column.type, Sealed)
    ]


async def load_batch(
    session: AnySession, column: SealedColumn, *, after: Key | None, limit: int
) -> list[SealedValue]:
    """Return the values of the next `limit` rows after the key `after`, in the order of the primary keys."""
    statement = (
        select(*column.key, column.column)
        .where(column.column.is_not(None))
        .order_by(*column.key)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(tuple_(*column.key) > tuple_(*after))
    return [column.value_of(row) for row in await session.execute(statement)]


async def load_values(session: AnySession, column: SealedColumn, keys: Sequence[Key]) -> list[SealedValue]:
    """Return the values of these rows. Deleted rows are left out."""
    statement = select(*column.key, column.column).where(
        column.column.is_not(None), tuple_(*column.key).in_(keys)
    )
    return [column.value_of(row) for row in await session.execute(statement)]


async def lock_values(session: Session, column: SealedColumn, keys: Sequence[Key]) -> list[SealedValue]:
    """Lock these rows until the end of the transaction and return their current values.

    Rows that are deleted or locked by another transaction are left out. This does not wait for locks.
    """
    statement = (
        select(*column.key, column.column)
        .where(column.column.is_not(None), tuple_(*column.key).in_(keys))
        .order_by(*column.key)
        .with_for_update(skip_locked=True, key_share=True)
    )
    return [column.value_of(row) for row in await session.execute(statement)]


async def replace_values(session: Session, column: SealedColumn, sealed: Mapping[Key, bytes]) -> None:
    """Write the values of rows that `lock_values` has locked. Other columns stay unchanged."""
    if not sealed:
        return
    names = [f"key_{number}" for number, _ in enumerate(column.key)]
    statement = (
        update(column.table)
        .where(*(part == bindparam(name) for part, name in zip(column.key, names, strict=True)))
        .values({column.column: bindparam("new_value")})
    )
    connection = await session.connection()
    await connection.execute(
        statement,
        [dict(zip(names, key, strict=True)) | {"new_value": value} for key, value in sealed.items()],
    )
