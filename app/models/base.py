"""The declarative base: the naming convention of constraints, and shared column types."""

from datetime import datetime
from typing import Annotated, Any, ClassVar

from sqlalchemy import DateTime, LargeBinary, MetaData, String, Text, TypeDecorator, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

PublicId = Annotated[str, mapped_column(String(32))]
CreatedAt = Annotated[datetime, mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())]


class Sealed(TypeDecorator[bytes]):
    """The type of columns with encrypted values, as `SecretBox.seal(context, ...)` returns them.

    `context` names the row's key columns in braces: "credentials:{id}". `calbridge rotate-keys` and `calbridge doctor`
    find the columns by this type.
    """

    impl = LargeBinary
    cache_ok = True

    def __init__(self, context: str) -> None:
        super().__init__()
        self.context = context


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        str: Text(),
        dict[str, Any]: JSONB(),
    }
