"""Settings, read from environment variables and `.env` (docs/settings.md).

Nothing here opens a connection.
"""

import os
import re
from datetime import timedelta
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from cryptography.fernet import Fernet
from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from redis.asyncio.connection import parse_url

from app.core.addresses import parse_mailbox
from app.core.database_url import parse_database_url
from app.meeting_links.platforms import PLATFORMS

_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_MAX_SECONDS = 31_536_000


def _split(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _check_http_url(value: str) -> str:
    AnyHttpUrl(value)
    return value.rstrip("/")


def _check_no_password(value: str) -> str:
    if "@" in urlsplit(value).netloc:
        raise ValueError("must hold no user name and no password: it is used in mails and links")
    return value


def _check_no_api_path(value: str) -> str:
    if value.endswith("/api/v1.0"):
        raise ValueError("must NOT end with /api/v1.0/: the client appends it; give the base address alone")
    return value


def _check_uuid(value: str) -> str:
    if not _UUID.fullmatch(value):
        raise ValueError("must be the UUID of the Messages channel")
    return value


def _check_header_value(value: SecretStr) -> SecretStr:
    # Without this check, the error of a header that cannot be sent would quote the key.
    if not re.fullmatch(r"[!-~]+", value.get_secret_value()):
        raise ValueError("must be ASCII characters without spaces and line breaks")
    return value


def _check_postgres_url(value: SecretStr) -> SecretStr:
    parse_database_url(value.get_secret_value())
    return value


def _check_redis_url(value: SecretStr) -> SecretStr:
    try:
        parse_url(value.get_secret_value())
    except ValueError:
        raise ValueError("must look like redis://host:6379/0 or unix:///path/to/socket") from None
    return value


def _check_smtp_url(value: SecretStr) -> SecretStr:
    try:
        url = urlsplit(value.get_secret_value())
        is_fine = url.scheme in {"smtp", "smtps"} and bool(url.hostname) and url.port != 0
    except ValueError:
        is_fine = False
    if not is_fine:
        raise ValueError(
            "must look like smtp://user:password@host:587?starttls=true, or smtps:// for TLS from the first byte"
        )
    return value


def _check_mailbox(value: str) -> str:
    try:
        parse_mailbox(value)
    except ValueError:
        raise ValueError(
            "must be an address such as calendars@example.org or Calendars <calendars@example.org>"
        ) from None
    return value


def _check_fernet_keys(value: SecretStr) -> SecretStr:
    for number, key in enumerate(_split(value.get_secret_value()), 1):
        try:
            Fernet(key)
        except ValueError:
            raise ValueError(
                f"key {number} is not a Fernet key (32 url-safe base64-encoded bytes); make one with: "
                'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
            ) from None
    return value


def _parse_waits(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        waits = tuple(float(part) for part in _split(value))
    except ValueError:
        raise ValueError("must be seconds separated by commas, for example 5,300,1800") from None
    if not all(0 <= wait <= _MAX_SECONDS for wait in waits):
        raise ValueError(f"every wait must be between 0 and {_MAX_SECONDS} seconds")
    return waits


def _parse_host_names(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    hosts = frozenset(part.lower() for part in _split(value))
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ValueError("must be host names separated by commas, without scheme, port or path")
    return hosts


def _parse_platforms(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    platforms = frozenset(part.lower() for part in _split(value))
    if not platforms or not platforms <= set(PLATFORMS):
        raise ValueError(f"must be platforms separated by commas, out of {', '.join(PLATFORMS)}")
    return platforms


# The types of the fields. Lists are written in the environment as text with commas.
Seconds = Annotated[float, Field(gt=0, le=_MAX_SECONDS)]
HttpUrl = Annotated[str, AfterValidator(_check_http_url)]
PublicUrl = Annotated[HttpUrl, AfterValidator(_check_no_password)]
MessagesUrl = Annotated[HttpUrl, AfterValidator(_check_no_api_path)]
PostgresUrl = Annotated[SecretStr, AfterValidator(_check_postgres_url)]
RedisUrl = Annotated[SecretStr, AfterValidator(_check_redis_url)]
SmtpUrl = Annotated[SecretStr, AfterValidator(_check_smtp_url)]
FernetKeys = Annotated[SecretStr, AfterValidator(_check_fernet_keys)]
HeaderSecret = Annotated[SecretStr, AfterValidator(_check_header_value)]
ChannelId = Annotated[str, AfterValidator(_check_uuid)]
Mailbox = Annotated[str, AfterValidator(_check_mailbox)]
Waits = Annotated[tuple[float, ...], NoDecode, BeforeValidator(_parse_waits)]
HostNames = Annotated[frozenset[str], NoDecode, BeforeValidator(_parse_host_names)]
MeetingPlatforms = Annotated[frozenset[str], NoDecode, BeforeValidator(_parse_platforms)]


class SettingsError(Exception):
    """The environment cannot be used.

    The text has one line for each variable: its name, what is wrong, the fix.
    """


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", extra="ignore", env_ignore_empty=True)

    database_url: PostgresUrl | None = None
    redis_url: RedisUrl | None = None
    app_url: PublicUrl = "http://localhost:8000"
    credentials_encryption_keys: FernetKeys | None = None
    environment: Literal["development", "production"] = "development"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    database_pool_size: int = Field(default=10, ge=1, le=500)
    # For each API key. 0 means no limit.
    api_posts_per_minute: int = Field(default=3000, ge=0, le=1_000_000)

    calendar_sync_interval_seconds: Seconds = 1800
    calendar_sync_interval_with_push_seconds: Seconds = 21_600
    # How long a provider must give the same refusal before the calendar is disconnected.
    calendar_gone_confirm_seconds: float = Field(default=21_600, ge=0, le=_MAX_SECONDS)
    # How long after a response that leaves out most events the calendar is read again to confirm it.
    calendar_shrink_confirm_seconds: float = Field(default=300, ge=0, le=86_400)
    calendar_sync_window_past_days: int = Field(default=1, ge=0, le=3650)
    calendar_sync_window_future_days: int = Field(default=28, ge=1, le=1800)
    event_retention_days: int = Field(default=90, ge=0, le=36_500)
    calendar_push_debounce_seconds: float = Field(default=2, ge=0, le=3600)
    calendar_push_enabled: bool | None = None
    scheduler_tick_seconds: float = Field(default=1, ge=0.05, le=60)
    sync_concurrency: int = Field(default=16, ge=1, le=200)

    google_api_base_url: HttpUrl = "https://www.googleapis.com"
    google_oauth_token_url: HttpUrl = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address
    google_oauth_authorize_url: HttpUrl = "https://accounts.google.com/o/oauth2/v2/auth"
    google_userinfo_url: HttpUrl = "https://www.googleapis.com/oauth2/v2/userinfo"
    microsoft_oauth_token_url: HttpUrl = "https://login.microsoftonline.com/common/oauth2/v2.0/token"  # noqa: S105 - an address
    microsoft_oauth_authorize_url: HttpUrl = "https://login.microsoftonline.com/common/oauth2/v2.0/authorize"
    microsoft_graph_base_url: HttpUrl = "https://graph.microsoft.com/v1.0"

    feature_messages_integration: bool = False
    messages_api_url: MessagesUrl | None = None
    messages_api_key: HeaderSecret | None = None
    messages_channel_id: ChannelId | None = None
    messages_webhook_secret: SecretStr | None = None
    messages_reply_senders: Literal["verified", "unmarked", "unverified"] = "verified"
    smtp_url: SmtpUrl | None = None
    email_from: Mailbox | None = None

    webhook_timeout_seconds: float = Field(default=10, gt=0, le=60)
    webhook_retry_schedule_seconds: Waits = (
        5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400,
    )  # fmt: skip
    webhook_allowed_hosts: HostNames = frozenset()
    webhook_delivery_retention_days: int = Field(default=30, ge=1, le=3650)
    webhook_concurrency: int = Field(default=64, ge=1, le=1000)
    webhook_endpoint_concurrency: int = Field(default=4, ge=1, le=100)
    allow_private_network_targets: bool = False

    meeting_url_visio_hosts: HostNames = frozenset()
    meeting_url_jitsi_hosts: HostNames = frozenset()

    # Set by `calbridge up` to the address of its own sample feed, the one private feed that is always allowed.
    demo_feed_url: str | None = None

    bot_runner_url: HttpUrl | None = None
    bot_runner_api_key: SecretStr | None = None
    # The platforms whose meetings the runner can join.
    bot_runner_platforms: MeetingPlatforms = frozenset({"zoom", "google_meet", "teams"})
    bot_launch_lead_seconds: float = Field(default=300, ge=0, le=86_400)

    @model_validator(mode="after")
    def _messages_is_complete(self) -> Self:
        if self.feature_messages_integration:
            missing = [
                name.upper()
                for name in ("messages_api_url", "messages_api_key", "messages_channel_id")
                if getattr(self, name) is None
            ]
            if missing:
                raise ValueError(f"FEATURE_MESSAGES_INTEGRATION is on, so set {' and '.join(missing)} too")
        if self.smtp_url is not None and self.email_from is None:
            raise ValueError("SMTP_URL is set, so set EMAIL_FROM (the sender's address) too")
        return self

    @property
    def fernet_keys(self) -> list[str]:
        value = self.credentials_encryption_keys
        return _split(value.get_secret_value()) if value else []

    @property
    def webhook_secrets(self) -> list[str]:
        """The secrets of the webhook channels of Messages, from MESSAGES_WEBHOOK_SECRET."""
        return _split(self.messages_webhook_secret.get_secret_value()) if self.messages_webhook_secret else []

    def allows_http_feed(self, feed_url: str) -> bool:
        """Whether this feed may be read over plain HTTP."""
        return self.allow_private_network_targets or feed_url == self.demo_feed_url

    @property
    def push_enabled(self) -> bool:
        if self.calendar_push_enabled is not None:
            return self.calendar_push_enabled
        return self.app_url.startswith("https://")

    @property
    def smtp_sender(self) -> tuple[str, str | None] | None:
        """(address, display name or None) from EMAIL_FROM; None if mails cannot be sent by SMTP."""
        if self.smtp_url is None or self.email_from is None:
            return None
        return parse_mailbox(self.email_from)

    @property
    def sync_window_past_for(self) -> timedelta:
        return timedelta(days=self.calendar_sync_window_past_days)

    @property
    def sync_window_future_for(self) -> timedelta:
        return timedelta(days=self.calendar_sync_window_future_days)

    def required_database_url(self) -> str:
        if self.database_url is None:
            raise SettingsError(
                "DATABASE_URL is not set. Set it to postgresql://user:password@host/database, "
                "or run `calbridge up`, which brings its own PostgreSQL."
            )
        return self.database_url.get_secret_value()

    def required_redis_url(self) -> str:
        if self.redis_url is None:
            raise SettingsError(
                "REDIS_URL is not set. Set it to redis://host:6379/0, or run `calbridge up`, which brings its own Redis."
            )
        return self.redis_url.get_secret_value()

    def required_fernet_keys(self) -> list[str]:
        if not self.fernet_keys:
            raise SettingsError(
                "CREDENTIALS_ENCRYPTION_KEYS is not set: credentials are stored only in encrypted form. Make a key with: "
                'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
            )
        return self.fernet_keys


# Read by the container's start script, by uvicorn, or by other programs that run beside this one.
_NOT_MISSPELT = frozenset({"LISTEN", "POSTGRES_PASSWORD", "FORWARDED_ALLOW_IPS", "PROMETHEUS_MULTIPROC_DIR"})
# `.env` is for calbridge alone. The environment is shared, so there only a difference of a letter or two counts.
_CLOSE_IN_FILE, _CLOSE_IN_ENVIRONMENT = 0.75, 0.92


def misspelt_settings() -> list[str]:
    """Return a sentence for each variable whose name looks like a misspelt setting."""
    ours = [name.upper() for name in Settings.model_fields]
    sources = (
        (".env", dotenv_values(".env"), _CLOSE_IN_FILE),
        ("the environment", os.environ, _CLOSE_IN_ENVIRONMENT),
    )
    found: dict[str, str] = {}
    for where, names, closeness in sources:
        for name in names:
            upper = name.upper()
            if upper in ours or upper in _NOT_MISSPELT:
                continue
            meant = get_close_matches(upper, ours, n=1, cutoff=closeness)
            if meant:
                found.setdefault(name, f"{name} in {where} is no setting: {meant[0]} may be meant.")
    return list(found.values())


def load_settings(**overrides: Any) -> Settings:
    """Return the settings.

    Raises SettingsError with one line for each faulty variable; it never has a value.
    """
    try:
        return Settings(**overrides)
    except ValidationError as err:
        lines = []
        for problem in err.errors(include_input=False, include_url=False):
            name = ".".join(str(part) for part in problem["loc"][:1]).upper()
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {message}" if name else message)
        raise SettingsError("\n".join(lines)) from None
