"""Outages of a platform, as all workers see them (app/outages/breakers.py)."""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId


class SyncBreaker(Base):
    """Open while `opened_at` is set: calendars of the scope are then held, save for one probe at a time.

    `outage_since`: the first of the failures that opened it. `probe_until`: the lease of the probe under way.
    `probe_project_id`: whose calendar probed last. `release_until`: it has closed, and calendars that wait for it
    are being made due, spread until then.
    """

    __tablename__ = "sync_breakers"

    scope: Mapped[str] = mapped_column(primary_key=True)
    opened_at: Mapped[datetime | None]
    outage_since: Mapped[datetime | None]
    next_probe_at: Mapped[datetime | None]
    probe_until: Mapped[datetime | None]
    probe_project_id: Mapped[str | None]
    closed_at: Mapped[datetime | None]
    release_until: Mapped[datetime | None]


class SyncVote(Base):
    """How a project's syncs in a scope go: `failing` counts the calendars that began to fail since the last success."""

    __tablename__ = "sync_votes"

    scope: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    failing: Mapped[int] = mapped_column(server_default="0")
    failing_since: Mapped[datetime | None]
    voted_at: Mapped[CreatedAt]
