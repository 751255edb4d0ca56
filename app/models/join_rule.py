"""Join rules: which events get a bot by themselves, and what people decided for single events."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId

BOT_SCOPES = ("event", "meeting")
POLICIES = ("rules", "always", "never")


class JoinRules(Base):
    """The rules of a project, or of one calendar, which then replace the project's.

    - `target`: the project's id, or the calendar's.
    - `rules`: as a client sent them (app/join_rules/schemas.py). JSON, so that the order of fields stays.
    """

    __tablename__ = "join_rules"
    __table_args__ = (CheckConstraint(f"bot_scope IN {BOT_SCOPES}", name="bot_scope"),)

    target: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    calendar_id: Mapped[str | None] = mapped_column(
        ForeignKey("calendars.id", ondelete="CASCADE"), unique=True
    )
    rules: Mapped[Any] = mapped_column(JSON)
    bot_scope: Mapped[str]
    updated_at: Mapped[CreatedAt]


class EventBotPolicy(Base):
    """What a client decided about the bot of one event. An event without a row follows the rules.

    `calendar_event_id`: not a foreign key, like that of a bot.
    """

    __tablename__ = "event_bot_policies"
    __table_args__ = (CheckConstraint(f"policy IN {POLICIES}", name="policy"),)

    calendar_event_id: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    calendar_id: Mapped[str] = mapped_column(ForeignKey("calendars.id", ondelete="CASCADE"), index=True)
    policy: Mapped[str]
    updated_at: Mapped[CreatedAt]


class JoinRuleRun(Base):
    """Events that are to be judged again: those of a project, of a calendar, or one event.

    A project's run becomes one for each of its calendars, unless events share bots. A run is deleted in the transaction that ends it, unless
    `requested_at` has changed meanwhile.

    - `target`: the id of the project, the calendar, or the event.
    - `after_event_id`: how far it came, as it takes several transactions. Of a calendar: the end and id of the last event
      that was judged. Of a project whose events share bots: the hash of a link and a start.
    - `meeting_url`, `join_at`: of an event's run: the meeting that its bot was for.
    """

    __tablename__ = "join_rule_runs"

    target: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    calendar_id: Mapped[str | None] = mapped_column(
        ForeignKey("calendars.id", ondelete="CASCADE"), index=True
    )
    calendar_event_id: Mapped[str | None]
    after_event_id: Mapped[str] = mapped_column(server_default="")
    meeting_url: Mapped[str | None]
    join_at: Mapped[datetime | None]
    requested_at: Mapped[CreatedAt]


BotScope = Literal["event", "meeting"]

Policy = Literal["rules", "always", "never"]
