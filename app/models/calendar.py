"""Calendars: what the API shows, and the state of their syncs."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ARRAY, CheckConstraint, ForeignKey, Index, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId

PLATFORMS = ("google", "microsoft", "ics", "local")
STATES = ("connected", "disconnected")

# The calendars that the API shows with a `sync_failure`.
FAILING = "state = 'connected' AND (sync_failing_since IS NOT NULL OR outage_scope IS NOT NULL)"


class Calendar(Base):
    """One calendar: of an account, of a feed, or hosted here (`platform` is `local`).

    Only local calendars have `name`, `owner_name`, `timezone`, `locale` and `sending_identity`.

    A calendar is due when `next_sync_at` has come. The worker that claims it sets `lease_token` and `lease_until`, and
    moves `next_sync_at` to the end of the lease: if the worker dies, the calendar is due again then. A request during
    the sync moves `next_sync_at`, so the worker sees it when the sync ends (app/sync/repository.py).

    - `connection_failure_data`: why the calendar was disconnected: {"error", "code", "timestamp"}.
    - `sync_failing_since`: when the first sync failed since the last success.
    - `sync_failure_count`: the failed syncs since the last success.
    - `sync_failure_code_since`, `sync_failure_code_count`: since when and how often in a row syncs failed with the same
      code. Attempts that a client forced do not count.
    - `sync_forced_before`: an attempt before this time was forced by a client; without the request it was due then.
    - `sync_cursor`: the provider's cursor; null if the next sync reads everything.
    - `cursor_expired_at`: when an expired cursor last caused a full round.
    - `held_back_ids`: events that a complete response left out. They are deleted only when a second one confirms it.
    - `held_back_since`: when such a response came first.
    - `outage_scope`: the scope whose outage may have caused the failures, or whose breaker the calendar waits for
      (app/outages/breakers.py).
    - `window_past_days`, `window_future_days`: the sync window that a client chose; null for the settings' window.
    - `window_start`, `window_end`: the range of time that the cursor covers.
    - `covered_from`, `covered_until`: the range of time that the last successful sync covered.
    - `sync_started_at`: when the last sync was claimed.
    - `sync_forced`: a client asked for the next sync, which would not be due yet otherwise.
    - `sync_trial`: the calendar is disconnected and is synced once, to find out whether access is back.
    - `push_due_at`: when a push channel is to be opened or renewed. It is null before the first sync and while the
      calendar is disconnected (app/push/).
    - `last_change_at`: the largest `updated_at` that any event of this calendar ever had.
    - `unannounced_since`, `unannounced_created`, `unannounced_updated`, `unannounced_deleted`: changes that are
      committed but not yet announced by webhook. A sync commits page by page. If it is interrupted, the next one
      announces them.
    """

    __tablename__ = "calendars"
    __table_args__ = (
        CheckConstraint(f"platform IN {PLATFORMS}", name="platform"),
        CheckConstraint(f"state IN {STATES}", name="state"),
        Index("uq_calendars_project_id_deduplication_key", "project_id", "deduplication_key", unique=True),
        Index("ix_calendars_project_by_platform", "project_id", "platform", "created_at", "id"),
        Index(
            "ix_calendars_project_disconnected",
            "project_id",
            "platform",
            "created_at",
            "id",
            postgresql_where=text("state = 'disconnected'"),
        ),
        Index(
            "ix_calendars_project_failing",
            "project_id",
            "platform",
            "created_at",
            "id",
            postgresql_where=text(FAILING),
        ),
        Index(
            "ix_calendars_due",
            "next_sync_at",
            postgresql_where=text("state = 'connected' AND platform <> 'local'"),
        ),
        Index(
            "ix_calendars_turns",
            text("(CASE platform WHEN 'ics' THEN 'feed' ELSE 'account' END)"),
            "project_id",
            "next_sync_at",
            postgresql_where=text("state = 'connected' AND platform <> 'local'"),
        ),
        Index("ix_calendars_leased", "lease_until", postgresql_where=text("lease_until IS NOT NULL")),
        Index(
            "ix_calendars_outage",
            "outage_scope",
            "project_id",
            "id",
            postgresql_where=text("outage_scope IS NOT NULL"),
        ),
        Index("ix_calendars_trials", "next_sync_at", postgresql_where=text("sync_trial")),
        Index("ix_calendars_push_due", "push_due_at", postgresql_where=text("push_due_at IS NOT NULL")),
    )

    id: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    platform: Mapped[str]
    platform_uuid: Mapped[str | None]
    credentials_id: Mapped[str | None] = mapped_column(ForeignKey("credentials.id"), index=True)
    state: Mapped[str] = mapped_column(server_default="connected")
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB(none_as_null=True))
    deduplication_key: Mapped[str | None]
    connection_failure_data: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    name: Mapped[str | None]
    owner_email: Mapped[str | None]
    owner_name: Mapped[str | None]
    timezone: Mapped[str | None]
    locale: Mapped[str | None]
    sending_identity: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]

    last_successful_sync_at: Mapped[datetime | None]
    last_attempted_sync_at: Mapped[datetime | None]
    sync_failing_since: Mapped[datetime | None]
    sync_failure_count: Mapped[int] = mapped_column(server_default="0")
    sync_failure_code: Mapped[str | None]
    sync_failure_message: Mapped[str | None]
    sync_failure_code_since: Mapped[datetime | None]
    sync_failure_code_count: Mapped[int] = mapped_column(server_default="0")
    sync_forced_before: Mapped[datetime | None]
    sync_cursor: Mapped[str | None]
    cursor_expired_at: Mapped[datetime | None]
    held_back_ids: Mapped[list[str] | None] = mapped_column(ARRAY(Text()))
    held_back_since: Mapped[datetime | None]
    outage_scope: Mapped[str | None]
    window_past_days: Mapped[int | None]
    window_future_days: Mapped[int | None]
    window_start: Mapped[datetime | None]
    window_end: Mapped[datetime | None]
    covered_from: Mapped[datetime | None]
    covered_until: Mapped[datetime | None]
    next_sync_at: Mapped[CreatedAt]
    lease_token: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    sync_started_at: Mapped[datetime | None]
    sync_forced: Mapped[bool] = mapped_column(server_default="false")
    sync_trial: Mapped[bool] = mapped_column(server_default="false")

    push_due_at: Mapped[datetime | None]

    last_change_at: Mapped[datetime | None]
    unannounced_since: Mapped[datetime | None]
    unannounced_created: Mapped[int] = mapped_column(server_default="0")
    unannounced_updated: Mapped[int] = mapped_column(server_default="0")
    unannounced_deleted: Mapped[int] = mapped_column(server_default="0")


Platform = Literal["google", "microsoft", "ics", "local"]

State = Literal["connected", "disconnected"]
