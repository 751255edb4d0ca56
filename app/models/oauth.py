"""OAuth clients of projects, and the sessions in which a person connects a calendar in the browser.

See docs/reference/http-api.md, "OAuth apps and sessions".
"""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, CreatedAt, PublicId, Sealed


class OAuthApp(Base):
    """An OAuth client that the application registered at a provider.

    - `sealed`: {"client_secret"}, encrypted.
    - `redirect_uris`: the addresses to which a session may send the browser back.
    """

    __tablename__ = "oauth_apps"
    __table_args__ = (
        CheckConstraint("platform IN ('google', 'microsoft')", name="platform"),
        Index("uq_oauth_apps_project_id_platform", "project_id", "platform", unique=True),
    )

    id: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    platform: Mapped[str]
    client_id: Mapped[str]
    sealed: Mapped[bytes] = mapped_column(Sealed("oauth_apps:{id}"))
    redirect_uris: Mapped[list[str]] = mapped_column(JSONB)
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]


class OAuthClientSecret(Base):
    """The newest secret of an OAuth client. Credentials with an older one use it instead.

    The row stays when the app is deleted or changed to another client, so that calendars keep working.

    - `sealed`: {"client_secret"}, encrypted.
    """

    __tablename__ = "oauth_client_secrets"
    __table_args__ = (
        Index("uq_oauth_client_secrets_client", "project_id", "platform", "client_id", unique=True),
    )

    id: Mapped[PublicId] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    platform: Mapped[str]
    client_id: Mapped[str]
    sealed: Mapped[bytes] = mapped_column(Sealed("oauth_client_secrets:{id}"))
    set_at: Mapped[CreatedAt]


class OAuthSession(Base):
    """One OAuth flow: a browser is sent to the provider and returns.

    - `state_sha256`: the hash of the `state` parameter, which itself is not stored.
    - `sealed`: {"code_verifier"} (PKCE, RFC 7636), encrypted.
    - `consent_asked`: the provider was asked to show its consent screen. Only then does Google return a refresh token.
    - `same_account`: an existing calendar may only be reconnected with the account that it has.
    - `used_at`: when the browser came back. It can do so once.
    """

    __tablename__ = "oauth_sessions"
    __table_args__ = (Index("ix_oauth_sessions_project_id_expires_at", "project_id", "expires_at"),)

    state_sha256: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[PublicId] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    app_id: Mapped[PublicId] = mapped_column(ForeignKey("oauth_apps.id", ondelete="CASCADE"), index=True)
    platform: Mapped[str]
    redirect_uri: Mapped[str]
    deduplication_key: Mapped[str | None]
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB(none_as_null=True))
    platform_uuid: Mapped[str | None]
    login_hint: Mapped[str | None]
    sealed: Mapped[bytes] = mapped_column(Sealed("oauth_sessions:{state_sha256}"))
    consent_asked: Mapped[bool]
    same_account: Mapped[bool] = mapped_column(server_default="false")
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]
