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
    """A row's key, what its value is bound to, and the value."""

    key: Key
    context: str
    sealed: bytes


@dataclass(frozen=True)
class SealedColumn:
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
    """All there are, by name."""
    return [
        SealedColumn(table, column, column.type.context)
        for table in sorted(Base.metadata.tables.values(), key=lambda table: table.name)
        for column in table.columns
        if isinstance(column.type, Sealed)
    ]


async def load_batch(
    session: AnySession, column: SealedColumn, *, after: Key | None, limit: int
) -> list[SealedValue]:
    """The values of the next rows in the order of their keys."""
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
    """The values of these rows, without those that are gone."""
    statement = select(*column.key, column.column).where(
        column.column.is_not(None), tuple_(*column.key).in_(keys)
    )
    return [column.value_of(row) for row in await session.execute(statement)]


async def lock_values(session: Session, column: SealedColumn, keys: Sequence[Key]) -> list[SealedValue]:
    """The values of these rows as they are now, and nobody else changes them until the transaction's end.

    Without those that are gone or that somebody else has locked: it waits for nobody.
    """
    statement = (
        select(*column.key, column.column)
        .where(column.column.is_not(None), tuple_(*column.key).in_(keys))
        .order_by(*column.key)
        .with_for_update(skip_locked=True, key_share=True)
    )
    return [column.value_of(row) for row in await session.execute(statement)]


async def replace_values(session: Session, column: SealedColumn, sealed: Mapping[Key, bytes]) -> None:
    """Writes values of rows that `lock_values` has locked; touches nothing else in them."""
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
