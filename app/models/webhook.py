"""Webhook subscriptions, and the outbox of their messages. Finished deliveries are kept as the log."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    Sequence,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId, Sealed


class WebhookSubscription(Base):
    """One endpoint of a project.

    - `calendar_ids`, `metadata`: only messages about these calendars are sent, and about calendars whose metadata has
      these pairs. Null: about all.
    - `changed_fields`: `event.updated` is sent only if one of these changed.
    - `ordering`: with `fifo`, the messages about one calendar are sent one at a time, in order.
    - `starting_soon_minutes`: how long before an event's start `event.starting_soon` is sent.
    - `is_active`: false while the endpoint is disabled.
    - `disabled_reason`: why calbridge disabled it; null if a client did.
    - `secrets_sealed`: [{"secret": base64, "until": null}, ...], encrypted: the current secret, then the rotated ones,
      which also sign until the time `until`.
    - `failing_since`: no attempt has succeeded since then.
    - `failing_days`: on how many days since then an attempt failed.
    - `failing_day_at`: when the last of these days began.
    - `is_slow`: the endpoint takes long to respond.
    - `paused_until`: the endpoint asked for a pause (Retry-After). No attempt is made before.
    - `replay_from`, `replay_after_id`: the place that a replay has reached.
    - `replay_until`: the replay includes deliveries that were created up to this time.
    - `is_resuming`: the endpoint was enabled again, and some waiting deliveries are not due yet.

    Replaying and resuming work in batches (app/webhooks/requeue.py).
    """

    __tablename__ = "webhook_subscriptions"
    __table_args__ = (
        Index("ix_webhook_subscriptions_project_id_created_at", "project_id", "created_at", "id"),
        Index(
            "ix_webhook_subscriptions_requeueing",
            "id",
            postgresql_where=text("replay_from IS NOT NULL OR is_resuming"),
        ),
        Index(
            "ix_webhook_subscriptions_starting_soon",
            "id",
            postgresql_where=text("is_active AND 'event.starting_soon' = ANY (triggers)"),
        ),
        CheckConstraint("ordering IN ('any', 'fifo')", name="ordering"),
    )

    id: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    url: Mapped[str]
    triggers: Mapped[list[str]] = mapped_column(ARRAY(Text))
    is_active: Mapped[bool] = mapped_column(server_default="true")
    include_events: Mapped[bool] = mapped_column(server_default="false")
    calendar_ids: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB(none_as_null=True))
    changed_fields: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    ordering: Mapped[str] = mapped_column(server_default="any")
    starting_soon_minutes: Mapped[int] = mapped_column(server_default="10")
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


# Positions are given under the lock of the calendar's row, where the order of changes matters.
delivery_positions = Sequence("webhook_delivery_positions", metadata=Base.metadata)


class WebhookDelivery(Base):
    """One message to one endpoint.

    A pending row is due when `next_attempt_at` has come. The worker that claims it sets `lease_token` and moves
    `next_attempt_at` to the end of the lease: if the worker dies, the row is due again then. A finished row has neither.

    - `body`: the exact bytes that are signed and sent, the same on every attempt.
    - `can_merge`: a newer message about the same calendar may replace this one (app/webhooks/merge.py).
    - `merged_into`: the id of the message that replaced this one.
    - `retry_count`: the place in the retry schedule.
    - `waits`: the row was not due when it was written. Such rows are found by their time, and the others by their
      endpoint. The flag does not decide whether a row is due.
    - `position`: the place in its lane: the messages about one calendar for a `fifo` endpoint
      (app/webhooks/repository/lanes.py). Null outside of lanes.
    - `attempts`: the last attempts, oldest first: {"at", "status_code", "duration_ms", "response", "error"}.
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
        Index(
            "ix_webhook_deliveries_lanes",
            "subscription_id",
            "calendar_id",
            "position",
            postgresql_where=text("status = 'pending' AND position IS NOT NULL"),
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
        # Dead rows at the low end of the index of due rows would slow down every claim.
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
    position: Mapped[int | None] = mapped_column(BigInteger)
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default="[]")
    finished_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]
