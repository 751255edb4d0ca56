"""Projects own everything; an API key opens exactly one project and is stored as its SHA-256 only."""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId


class Project(Base):
    __tablename__ = "projects"

    id: Mapped[PublicId] = mapped_column(primary_key=True)
    name: Mapped[str]
    created_at: Mapped[CreatedAt]


class ApiKey(Base):
    __tablename__ = "api_keys"

    id: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    key_sha256: Mapped[str] = mapped_column(unique=True)
    disabled_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]  # to the minute
    created_at: Mapped[CreatedAt]
