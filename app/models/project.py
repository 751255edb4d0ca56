"""Projects, which own everything else, and their API keys."""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId


class Project(Base):
    """One tenant."""

    __tablename__ = "projects"

    id: Mapped[PublicId] = mapped_column(primary_key=True)
    name: Mapped[str]
    created_at: Mapped[CreatedAt]


class ApiKey(Base):
    """An API key of one project.

    - `key_sha256`: the SHA-256 of the key, which itself is not stored.
    - `disabled_at`: null while the key works.
    - `last_used_at`: accurate to the minute.
    """

    __tablename__ = "api_keys"

    id: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    key_sha256: Mapped[str] = mapped_column(unique=True)
    disabled_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]
