"""What a calendar is connected with. A row of its own, since several calendars may share one account."""

from datetime import datetime

from sqlalchemy import ForeignKey, String, func
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId, Sealed


class Credentials(Base):
    """`sealed` opens to {"client_secret", "refresh_token"}, or {"feed_url"}; see app/core/crypto.py.

    `version` grows when the application brings new credentials, so that the answer of a refresh that was
    under way with the old ones is thrown away. `refresh_lease_until`: one process refreshes at a time.
    `client_secret_set_at`: one that the OAuth app was given later takes its place (OAuthClientSecret); null:
    before any.
    `account_id`: the provider's id of the account that agreed by browser; null where it is not known.
    """

    __tablename__ = "credentials"

    id: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    platform: Mapped[str]
    client_id: Mapped[str | None]
    account_id: Mapped[str | None] = mapped_column(String)
    sealed: Mapped[bytes] = mapped_column(Sealed("credentials:{id}"))
    version: Mapped[int] = mapped_column(server_default="1")
    access_token_sealed: Mapped[bytes | None] = mapped_column(Sealed("credentials.access_token:{id}"))
    access_token_expires_at: Mapped[datetime | None]
    refresh_lease_until: Mapped[datetime | None]
    client_secret_set_at: Mapped[datetime | None] = mapped_column(server_default=func.clock_timestamp())
    created_at: Mapped[CreatedAt]
