"""Webhook subscriptions, and the outbox: one row for each thing to tell one endpoint, kept on as the log."""

from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, CheckConstraint, ForeignKey, Index, LargeBinary, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId, Sealed


class WebhookSubscription(Base):
    """One endpoint of a project.

    `secrets_sealed` opens to [{"secret": base64, "until": null}, ...]: the current one first, then those that
    were rotated out and sign along `until` then. `failing_since`: no attempt has succeeded since then; `failing_days`
    is on how many days since then an attempt failed, `failing_day_at` when the last of those began.
    `is_slow`: it takes long to answer. `paused_until`: the endpoint asked for a pause (Retry-After); nothing of
    it is attempted before.

    What was asked for over many deliveries is done in batches (app/webhooks/requeue.py). A replay of those that
    were created up to `replay_until` has come to (`replay_from`, `replay_after_id`). `is_resuming`: it was
    switched on, and not all that waited is due yet.
    """

    __tablename__ = "webhook_subscriptions"
    __table_args__ = (
        Index("ix_webhook_subscriptions_project_id_created_at", "project_id", "created_at", "id"),
        Index(
            "ix_webhook_subscriptions_requeueing",
            "id",
            postgresql_where=text("replay_from IS NOT NULL OR is_resuming"),
        ),
    )

    id: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    url: Mapped[str]
    triggers: Mapped[list[str]] = mapped_column(ARRAY(Text))
    is_active: Mapped[bool] = mapped_column(server_default="true")
    include_events: Mapped[bool] = mapped_column(server_default="false")
    secrets_sealed: Mapped[bytes] = mapped_column(Sealed("webhook_subscriptions:{id}"))
    disabled_reason: Mapped[str | None]
    failing_since: Mapped[datetime | None]
    failing_days: Mapped[int] = mapped_column(server_default="0")
    failing_day_at: Mapped[datetime | None]
    is_slow: Mapped[bool] = mapped_column(server_default="false")
    paused_until: Mapped[datetime | None]
    replay_from: Mapped[datetime | None]
    replay_after_id: Mapped[str] = mapped_column(server_default="")
    replay_until: Mapped[datetime | None]
    is_resuming: Mapped[bool] = mapped_column(server_default="false")
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]


class WebhookDelivery(Base):
    """One message to one endpoint. `body` is the exact bytes that are signed and sent, the same on every attempt.

    A pending row is due when `next_attempt_at` has come. The worker that claims it sets `lease_token` and puts
    `next_attempt_at` at the lease's end: if the worker dies, the row is due again then. A finished row has
    neither. `retry_count` is its place in the retry schedule. `attempts` holds the last ones, oldest first:
    {"at", "status_code", "duration_ms", "response", "error"}.

    A claim looks at the endpoints of pending rows that do not wait. `waits`: the row's time had not come when it
    was written, so it is found by its time, and waits no longer then. The flag only says where to look: a row is
    due by `next_attempt_at` alone.

    `can_merge`: a newer message about the same calendar may take this one's place (app/webhooks/merge.py);
    `merged_into` is then the newer one's id.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'success', 'failed')", name="status"),
        CheckConstraint("(status = 'pending') = (next_attempt_at IS NOT NULL)", name="pending_is_due"),
        Index(
            "ix_webhook_deliveries_due",
            "subscription_id",
            "next_attempt_at",
            postgresql_where=text("status = 'pending'"),
        ),
        Index(
            "ix_webhook_deliveries_ready",
            "subscription_id",
            "next_attempt_at",
            postgresql_where=text("status = 'pending' AND NOT waits"),
        ),
        Index(
            "ix_webhook_deliveries_waiting",
            "next_attempt_at",
            postgresql_where=text("status = 'pending' AND waits"),
        ),
        Index(
            "ix_webhook_deliveries_leased",
            "subscription_id",
            "next_attempt_at",
            postgresql_where=text("lease_token IS NOT NULL"),
        ),
        Index(
            "ix_webhook_deliveries_pending_of_calendar",
            "calendar_id",
            "subscription_id",
            postgresql_where=text("status = 'pending'"),
        ),
        Index("ix_webhook_deliveries_log", "subscription_id", "created_at", "id"),
        Index(
            "ix_webhook_deliveries_failed",
            "subscription_id",
            "created_at",
            "id",
            postgresql_where=text("status = 'failed'"),
        ),
        Index(
            "ix_webhook_deliveries_finished_at",
            "finished_at",
            postgresql_where=text("finished_at IS NOT NULL"),
        ),
        # Rows come and go: dead ones at the low end of the index of due rows would slow every claim.
        {
            "postgresql_with": {
                "autovacuum_vacuum_scale_factor": 0.02,
                "autovacuum_analyze_scale_factor": 0.02,
            }
        },
    )

    id: Mapped[PublicId] = mapped_column(primary_key=True)
    subscription_id: Mapped[PublicId] = mapped_column(
        ForeignKey("webhook_subscriptions.id", ondelete="CASCADE")
    )
    trigger: Mapped[str]
    calendar_id: Mapped[str | None]
    status: Mapped[str] = mapped_column(server_default="pending")
    idempotency_key: Mapped[str]
    body: Mapped[bytes] = mapped_column(LargeBinary)
    can_merge: Mapped[bool] = mapped_column(server_default="false")
    merged_into: Mapped[str | None]
    retry_count: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime | None]
    waits: Mapped[bool] = mapped_column(server_default="false")
    lease_token: Mapped[str | None]
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default="[]")
    finished_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]
