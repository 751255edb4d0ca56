"""The credentials of calendars.

They have their own table, since several calendars may share one account.
"""

from datetime import datetime

from sqlalchemy import ForeignKey, String, func
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId, Sealed


class Credentials(Base):
    """The credentials of one account, or the address of one feed.

    - `account_id`: the provider's id of the account that agreed in the browser; null if it is not known.
    - `sealed`: {"client_secret", "refresh_token"} or {"feed_url"}, encrypted (app/core/crypto.py).
    - `version`: grows when the application sends new credentials. The result of a token refresh that began with the old
      ones is then discarded.
    - `access_token_sealed`, `access_token_expires_at`: the current access token, encrypted.
    - `refresh_lease_until`: the lease of the process that refreshes the token, so that one does it at a time.
    - `client_secret_set_at`: when the client's secret was set. A newer one of the OAuth app replaces it
      (OAuthClientSecret). Null counts as older than any.
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
