"""Push channels: Google's notification channels and Microsoft Graph's subscriptions."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId, Sealed


class PushChannel(Base):
    """One channel.

    The row is written before the provider is asked, since a notification may arrive before the response.

    - `id`: made here, and used as Google's channel id.
    - `calendar_id`: null for a channel that is `closing` and whose calendar was deleted.
    - `provider_id`: the id of Microsoft's subscription.
    - `resource_id`: Google's id of the watched resource.
    - `secret_sha256`: the hash of the token (Google) or clientState (Microsoft) that notifications have.
    - `sealed`: the credentials that closing the channel needs, encrypted. Only a channel that is `closing` has them.
    - `verified_at`: when the first notification arrived. Until then the calendar is polled as if it had no channel.
    - `next_attempt_at`: when a channel that is `closing` is due. A worker that claims it moves it to the lease's end.
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
