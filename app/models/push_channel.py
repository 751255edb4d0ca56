"""Push channels that providers hold for us: Google channels and Microsoft Graph subscriptions."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId, Sealed


class PushChannel(Base):
    """One channel. The row is written (`opening`) before the provider is asked, since the first notification
    may arrive before its answer.

    `id` is ours: Google's channel id. `provider_id` is Graph's subscription id, `resource_id` Google's.
    `secret_sha256`: of the token or clientState that notifications carry. A channel to be closed (`closing`)
    outlives its calendar: `calendar_id` is then null, and `sealed` has the credentials that closing it takes.
    `verified_at`: when the provider had first reached us through it; until then its calendar is polled as if
    there were none.
    `next_attempt_at`: when a closing channel is due; a worker that claims it moves it on (the lease).
    """

    __tablename__ = "push_channels"
    __table_args__ = (
        CheckConstraint("state IN ('opening', 'open', 'closing')", name="state"),
        Index("ix_push_channels_due", "next_attempt_at", postgresql_where=text("state = 'closing'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    calendar_id: Mapped[str | None] = mapped_column(
        ForeignKey("calendars.id", ondelete="SET NULL"), index=True
    )
    platform: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="opening")
    provider_id: Mapped[str | None] = mapped_column(unique=True)
    resource_id: Mapped[str | None]
    secret_sha256: Mapped[str]
    sealed: Mapped[bytes | None] = mapped_column(Sealed("push_channels:{id}"))
    expires_at: Mapped[datetime | None]
    verified_at: Mapped[datetime | None]
    attempt_count: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]
