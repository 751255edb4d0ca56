"""Bots, which are scheduled here and handed over to a runner when they are due."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId


class Bot(Base):
    """One bot. A bot that is deleted leaves no row.

    - `calendar_event_id`: the event that the bot follows. It is not a foreign key: a bot that was handed over still
      names its event after the calendar is deleted, and deleting a calendar of 50,000 events needs no look-up for each.
    - `meeting_url`: null while the event has no link.
    - `events`: the log, oldest first: {"type", "sub_type", "metadata", "created_at"}.
    - `holds_key`: no other bot of the project may have the same deduplication key.
    - `next_attempt_at`: the end of the lease, or the time of the next attempt after a failed one. It is null when there
      is nothing left to do here.
    - `may_be_handed_over`: a call to the runner is in progress, or ended without showing whether the runner has the bot.
      What the bot was handed over with is then not changed.
    - `join_rule`: the name of the join rule that made it; null for a client's bot (app/join_rules/).
    - `join_rule_bot`: a hash of what that rule says of the bot, so that a changed rule is noticed.

    A scheduled bot is due some time before `join_at`. The worker that claims it makes it `launching`, sets `lease_token`
    and moves `next_attempt_at` to the end of the lease.
    """

    __tablename__ = "bots"
    __table_args__ = (
        CheckConstraint("state IN ('scheduled', 'launching', 'launched', 'fatal_error')", name="state"),
        CheckConstraint("next_attempt_at IS NULL OR state = 'launching'", name="only_launching_is_attempted"),
        Index(
            "uq_bots_project_id_deduplication_key",
            "project_id",
            "deduplication_key",
            unique=True,
            postgresql_where=text("holds_key"),
        ),
        Index("ix_bots_project_id_deduplication_key", "project_id", "deduplication_key"),
        Index("ix_bots_project_by_state", "project_id", "state", "created_at", "id"),
        # A link may be longer than PostgreSQL can index, so its hash is indexed.
        Index(
            "ix_bots_project_by_meeting_url",
            "project_id",
            text("md5(meeting_url)"),
            "state",
            "created_at",
            "id",
        ),
        Index("ix_bots_project_by_join_at", "project_id", "join_at"),
        Index("ix_bots_calendar_event_id", "calendar_event_id"),
        Index("ix_bots_due", "join_at", postgresql_where=text("state = 'scheduled'")),
        Index("ix_bots_attempts", "next_attempt_at", postgresql_where=text("next_attempt_at IS NOT NULL")),
    )

    id: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    calendar_event_id: Mapped[str | None]
    meeting_url: Mapped[str | None]
    join_at: Mapped[datetime]
    bot_name: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="scheduled")
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB(none_as_null=True))
    deduplication_key: Mapped[str | None]
    holds_key: Mapped[bool] = mapped_column(server_default="true")
    bot_settings: Mapped[Any] = mapped_column(JSON, server_default="{}")
    events: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default="[]")
    runner_bot_id: Mapped[str | None]
    attempt_count: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime | None]
    lease_token: Mapped[str | None]
    may_be_handed_over: Mapped[bool] = mapped_column(server_default="false")
    join_rule: Mapped[str | None]
    join_rule_bot: Mapped[str | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]


class DeletedRuleBot(Base):
    """An event whose bot was made by a rule and deleted by a client: no rule makes another one.

    `meeting_url`, `join_at`: the meeting that the bot was for. `calendar_event_id`: not a foreign key, like that of a bot.
    """

    __tablename__ = "deleted_rule_bots"
    __table_args__ = (
        Index("ix_deleted_rule_bots_project_by_meeting_url", "project_id", text("md5(meeting_url)")),
    )

    calendar_event_id: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    calendar_id: Mapped[str] = mapped_column(ForeignKey("calendars.id", ondelete="CASCADE"), index=True)
    meeting_url: Mapped[str | None]
    join_at: Mapped[datetime]
    created_at: Mapped[CreatedAt]


State = Literal["scheduled", "launching", "launched", "fatal_error"]

EntryType = Literal[
    "scheduled",
    "updated",
    "event_changed",
    "launching",
    "launch_failed",
    "launched",
    "fatal_error",
    "deleted",
]
