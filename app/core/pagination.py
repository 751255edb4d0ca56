"""Keyset pagination by opaque cursors over (sort key, id).

While rows are written, no other row is repeated or skipped.
"""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

import orjson
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    bindparam,
    literal_column,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.types import TypeEngine

from app.core.clock import isoformat
from app.core.errors import BadQuery

Row = TypeVar("Row")

# The sort key of rows that have none: they come after all others.
_LAST: ColumnElement[Any] = literal_column("'infinity'::timestamptz")
_BAD = "The cursor is not one that this list gave out. Start again without it."


@dataclass(frozen=True, slots=True)
class Ordering:
    """A sort order: its public name, the column or indexed expression, and the id that breaks ties."""

    name: str
    key: ColumnElement[Any]
    id: ColumnElement[Any]
    descending: bool


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a list: after the row that has this key and id, or with `backward` before it."""

    ordering: str
    key: datetime | None
    id: str
    backward: bool = False

    def encode(self) -> str:
        key = isoformat(self.key) if self.key is not None else None
        parts = [self.ordering, key, self.id, self.backward]
        return base64.urlsafe_b64encode(orjson.dumps(parts)).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str, *, ordering: str) -> "Cursor":
        """Parse what `encode` returned. Raises BadQuery for any other text, and for another ordering's cursor."""
        try:
            padded = text + "=" * (-len(text) % 4)
            name, key, row_id, backward = orjson.loads(
                base64.b64decode(padded, altchars=b"-_", validate=True)
            )
            at = None if key is None else datetime.fromisoformat(key)
        except (binascii.Error, ValueError, TypeError):
            raise BadQuery(_BAD) from None
        if (
            name != ordering
            or not isinstance(row_id, str)
            or not row_id.isascii()
            or not row_id.replace("_", "").isalnum()
            or not isinstance(backward, bool)
            or (at is not None and at.utcoffset() != timedelta(0))
        ):
            raise BadQuery(_BAD)
        return cls(name, at, row_id, backward)


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    rows: Sequence[Row]
    next: Cursor | None
    previous: Cursor | None


def seek(statement: Select[Any], ordering: Ordering, cursor: Cursor | None, limit: int) -> Select[Any]:
    """Return `statement`, ordered and starting at the cursor. It selects one row more than `limit`.

    The values of the cursor and the limit are parameters (`seek_values`). So the statement can be cached and executed
    with the values of another cursor that has the same ordering and direction, and a key if this one has one.
    """
    backward = cursor is not None and cursor.backward
    descending = ordering.descending != backward
    values = seek_values(cursor, limit)
    if cursor is not None:
        place = tuple_(ordering.key, ordering.id)
        key = _LAST if cursor.key is None else _parameter("cursor_key", values, ordering.key.type)
        at = tuple_(key, _parameter("cursor_id", values))
        statement = statement.where(place < at if descending else place > at)
    return statement.order_by(*_order(ordering, cursor)).limit(_parameter("row_limit", values))


def _order(ordering: Ordering, cursor: Cursor | None) -> list[ColumnElement[Any]]:
    keys = [ordering.key, ordering.id]
    backward = cursor is not None and cursor.backward
    return [key.desc() if ordering.descending != backward else key.asc() for key in keys]


def seek_each(
    statement: Select[Any],
    ordering: Ordering,
    cursor: Cursor | None,
    limit: int,
    *,
    conditions: Sequence[ColumnElement[bool]],
    kinds: Sequence[ColumnElement[bool]],
) -> Select[Any]:
    """Return `statement` as `seek` does, for rows that meet all `conditions` and one of `kinds`.

    The kinds must exclude each other. The first rows of each kind are selected separately, so that an index with the
    kind before the key finds them.
    """
    place = select(ordering.id.label("id")).where(*conditions)
    places = union_all(*(seek(place.where(kind), ordering, cursor, limit) for kind in kinds)).subquery()
    found = statement.join(places, places.c.id == ordering.id)
    return found.order_by(*_order(ordering, cursor)).limit(
        _parameter("row_limit", seek_values(cursor, limit))
    )


def seek_values(cursor: Cursor | None, limit: int) -> dict[str, Any]:
    """Return the parameters of a statement that `seek` returned."""
    values: dict[str, Any] = {"row_limit": limit + 1}
    if cursor is not None:
        values["cursor_id"] = cursor.id
        if cursor.key is not None:
            values["cursor_key"] = cursor.key
    return values


def _parameter(
    name: str, values: Mapping[str, Any], kind: TypeEngine[Any] | None = None
) -> BindParameter[Any]:
    return bindparam(name, values[name], kind)


def page_of(
    rows: Sequence[Row],
    ordering: Ordering,
    cursor: Cursor | None,
    limit: int,
    *,
    place: Callable[[Row], tuple[datetime | None, str]],
) -> Page[Row]:
    """Return the page from the rows that `seek` selected. `place` returns a row's sort key and id."""
    more = len(rows) > limit
    rows = rows[:limit]
    backward = cursor is not None and cursor.backward
    if backward:
        rows = rows[::-1]
    if not rows:
        return Page(rows, None, None)
    has_next = more if not backward else True
    has_previous = more if backward else cursor is not None
    first, last = place(rows[0]), place(rows[-1])
    return Page(
        rows,
        Cursor(ordering.name, *last) if has_next else None,
        Cursor(ordering.name, *first, backward=True) if has_previous else None,
    )
