"""Tables of the service itself: stored responses of Idempotency-Keys, and heartbeats of workers."""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId, Sealed


class StoredResponse(Base):
    """The first response to a POST with an Idempotency-Key, kept for 24 hours.

    See docs/reference/http-api.md, "Idempotency".

    - `request_sha256`: the hash of the request, so that the key with another request is refused.
    - `body`: encrypted.
    """

    __tablename__ = "idempotent_answers"

    project_id: Mapped[PublicId] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[str]
    status_code: Mapped[int | None]
    body: Mapped[bytes | None] = mapped_column(Sealed("idempotent_answers:{project_id}:{key}"))
    created_at: Mapped[CreatedAt] = mapped_column(index=True)


class WorkerHeartbeat(Base):
    """The last sign of life of a worker. `/readyz` reads whether any worker was seen recently."""

    __tablename__ = "worker_heartbeats"

    id: Mapped[str] = mapped_column(primary_key=True)
    started_at: Mapped[CreatedAt]
    seen_at: Mapped[datetime]
