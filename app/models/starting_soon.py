"""What `event.starting_soon` has looked at and announced (app/starting_soon)."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId


class StartingSoonPosition(Base):
    """How far the events of a webhook's project were looked at; one row for each webhook with the trigger.

    - `subscription_updated_at`: `updated_at` of the webhook at the last look. After a change of the webhook everything
      within its lead is looked at again.
    - `starts_until`: all events that start up to then were looked at.
    - `changes_until`: all changes of events with an `updated_at` before it were looked at.
    - `next_look_at`: when the next look is due.
    """

    __tablename__ = "starting_soon_positions"

    subscription_id: Mapped[PublicId] = mapped_column(
        ForeignKey("webhook_subscriptions.id", ondelete="CASCADE"), primary_key=True
    )
    subscription_updated_at: Mapped[datetime | None]
    starts_until: Mapped[datetime | None]
    changes_until: Mapped[datetime | None]
    next_look_at: Mapped[CreatedAt] = mapped_column(index=True)


class StartingSoonNotice(Base):
    """An event that starts at a time was announced to a webhook; the key allows it once."""

    __tablename__ = "starting_soon_notices"
    __table_args__ = (Index("ix_starting_soon_notices_start_time", "start_time"),)

    subscription_id: Mapped[PublicId] = mapped_column(
        ForeignKey("webhook_subscriptions.id", ondelete="CASCADE"), primary_key=True
    )
    calendar_event_id: Mapped[PublicId] = mapped_column(primary_key=True)
    start_time: Mapped[datetime] = mapped_column(primary_key=True)
