"""Circuit breakers for outages, which all workers share (app/outages/breakers.py)."""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId


class SyncBreaker(Base):
    """The breaker of one scope.

    While it is open, the scope's calendars wait, and one at a time is synced as a probe.

    - `opened_at`: when it opened; null while it is closed.
    - `outage_since`: the time of the first of the failures that opened it.
    - `next_probe_at`: when the next probe is due.
    - `probe_until`: the end of the current probe's lease.
    - `probe_project_id`: the project whose calendar probed last.
    - `closed_at`: when it closed last.
    - `release_until`: it has closed, and the calendars that waited are made due, spread over the time until then.
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
    """The results of one project's syncs in a scope.

    - `failing`: how many calendars began to fail since the last success.
    - `failing_since`: when the first of them did.
    - `voted_at`: when the row was written last.
    """

    __tablename__ = "sync_votes"

    scope: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    failing: Mapped[int] = mapped_column(server_default="0")
    failing_since: Mapped[datetime | None]
    voted_at: Mapped[CreatedAt]
