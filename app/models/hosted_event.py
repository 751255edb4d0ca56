"""Events of local calendars as they were written, and the mailed replies that were processed."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, LargeBinary, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId


class HostedEvent(Base):
    """One component (app/hosted/components.py): an event or series, or a changed instance of a series.

    Applications see the rows of calendar_events, which are written in the same transaction.

    - `slot`: the recurrence id of a changed instance as text (`recurrence_key` in the code); empty for the event or
      series itself.
    - `attendees`: a list of what `attendee_to_json` returns.
    - `ends_at`: when the event or series is over; null if it never ends. Changed instances have null.
    - `expand_at`: when the rows of calendar_events are to be written again, so that a series reaches further. Null if
      that is not needed. Changed instances have null.
    """

    __tablename__ = "hosted_events"
    __table_args__ = (
        Index("ix_hosted_events_expand_at", "expand_at", postgresql_where=text("expand_at IS NOT NULL")),
    )

    uid: Mapped[str] = mapped_column(primary_key=True)
    slot: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId]
    calendar_id: Mapped[PublicId] = mapped_column(ForeignKey("calendars.id", ondelete="CASCADE"), index=True)
    sequence: Mapped[int]
    name: Mapped[str]
    description: Mapped[str | None]
    location: Mapped[str | None]
    meeting_url: Mapped[str | None]
    start_time: Mapped[datetime]
    end_time: Mapped[datetime]
    is_all_day: Mapped[bool]
    timezone: Mapped[str]
    rrule: Mapped[str | None]
    recurrence_id: Mapped[datetime | None]
    attendees: Mapped[list[Any]] = mapped_column(JSONB)
    is_cancelled: Mapped[bool]
    ends_at: Mapped[datetime | None]
    expand_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]


class InboundReply(Base):
    """A mailed reply that was processed, kept for some weeks. Messages may deliver a mail more than once."""

    __tablename__ = "inbound_replies"

    calendar_id: Mapped[PublicId] = mapped_column(
        ForeignKey("calendars.id", ondelete="CASCADE"), primary_key=True
    )
    message_id_sha256: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    received_at: Mapped[CreatedAt] = mapped_column(index=True)
