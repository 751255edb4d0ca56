"""`calbridge doctor`: looks at everything that a start needs, and says how to mend what is wrong.

Changes nothing. Every network check has a short limit of time.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiosmtplib
from alembic.runtime.migration import MigrationContext
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection

from app.cli.errors import DATABASE_ERRORS, explain_database_error
from app.core.db import create_engine
from app.core.http import httpx, operator_client
from app.core.migrations import head_revision
from app.messages.smtp import connected, is_in_the_clear
from app.providers.wire import load_json
from app.settings import Settings, SettingsError, load_settings

_OLDEST_POSTGRES = (14,)
_LIMIT_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """One line of the report; where something is wrong, `text` says how to mend it."""

    subject: str
    is_fine: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok   ' if self.is_fine else 'WRONG'} {self.subject}: {self.text}"


async def examine() -> list[Finding]:
    """All findings, in the order of the report."""
    try:
        settings = load_settings()
    except SettingsError as err:
        return [Finding("settings", False, line) for line in str(err).splitlines()]
    findings = [Finding("settings", True, f"environment {settings.environment}, APP_URL {settings.app_url}")]
    async with operator_client(timeout=_LIMIT_SECONDS) as client:
        groups = await asyncio.gather(
            _database(settings),
            _redis(settings),
            _keys(settings),
            _reachable(settings, client),
            _messages(settings, client),
            _smtp(settings),
        )
    return findings + [finding for group in groups for finding in group]


async def _database(settings: Settings) -> list[Finding]:
    try:
        url = settings.required_database_url()
    except SettingsError as err:
        return [Finding("database", False, str(err))]
    try:
        engine = create_engine(url, pool_size=1)
        try:
            async with asyncio.timeout(2 * _LIMIT_SECONDS), engine.connect() as connection:
                version = connection.dialect.server_version_info or ()
                revision = await connection.run_sync(_revision)
        finally:
            await engine.dispose()
    except (*DATABASE_ERRORS, ValueError) as err:
        return [Finding("database", False, explain_database_error(err))]
    shown = ".".join(str(part) for part in version)
    if version < _OLDEST_POSTGRES:
        return [Finding("database", False, f"PostgreSQL {shown} is too old; use version 14 or newer.")]
    findings = [Finding("database", True, f"PostgreSQL {shown}")]
    if revision == head_revision():
        findings.append(Finding("migrations", True, f"at the newest revision, {revision}"))
    else:
        text = f"the schema is at {revision or 'no revision'}, this release needs {head_revision()}: run `calbridge migrate`."
        findings.append(Finding("migrations", False, text))
    return findings


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


async def _redis(settings: Settings) -> list[Finding]:
    try:
        url = settings.required_redis_url()
    except SettingsError as err:
        return [Finding("redis", False, str(err))]
    try:
        async with asyncio.timeout(_LIMIT_SECONDS), Redis.from_url(url) as redis:
            version = (await redis.info("server"))["redis_version"]
    except (RedisError, OSError, TimeoutError, ValueError) as err:
        reason = str(err) or "no answer in time"
        return [Finding("redis", False, f"{reason.rstrip('.')}. Check REDIS_URL, and that Redis runs.")]
    return [Finding("redis", True, f"Redis {version}")]


async def _keys(settings: Settings) -> list[Finding]:
    try:
        count = len(settings.required_fernet_keys())
    except SettingsError as err:
        return [Finding("encryption keys", False, str(err))]
    text = "one key" if count == 1 else f"{count} keys; the first encrypts, all decrypt"
    return [Finding("encryption keys", True, text)]


async def _reachable(settings: Settings, client: httpx.AsyncClient) -> list[Finding]:
    """Any HTTP answer counts: without credentials these addresses say 400, 401, 404 or 405."""
    addresses = {
        "GOOGLE_API_BASE_URL": f"{settings.google_api_base_url}/calendar/v3/users/me/calendarList",
        "GOOGLE_OAUTH_TOKEN_URL": settings.google_oauth_token_url,
        "MICROSOFT_GRAPH_BASE_URL": f"{settings.microsoft_graph_base_url}/me",
        "MICROSOFT_OAUTH_TOKEN_URL": settings.microsoft_oauth_token_url,
    }
    if settings.bot_runner_url is not None:
        addresses["BOT_RUNNER_URL"] = settings.bot_runner_url

    async def look(name: str, address: str) -> Finding:
        host = urlsplit(address).netloc.rpartition("@")[2]
        try:
            response = await client.get(address)
        except httpx.HTTPError as err:
            reason = str(err) or type(err).__name__
            text = f"{host} does not answer ({reason}). Check the network, DNS and firewall, or the setting."
            return Finding(name, False, text)
        return Finding(name, True, f"{host} answers ({response.status_code})")

    return await asyncio.gather(*(look(name, address) for name, address in addresses.items()))


async def _messages(settings: Settings, client: httpx.AsyncClient) -> list[Finding]:
    """Both scopes of the channel, without sending anything (contract/messages.md)."""
    if not settings.feature_messages_integration:
        return []
    assert settings.messages_api_key is not None
    assert settings.messages_channel_id is not None
    base = f"{settings.messages_api_url}/api/v1.0"
    headers = {
        "X-API-Key": settings.messages_api_key.get_secret_value(),
        "X-Channel-Id": settings.messages_channel_id,
    }
    try:
        mailboxes = await client.get(
            f"{base}/provisioning/mailboxes/", params={"email": "doctor@calbridge.invalid"}, headers=headers
        )
        # Without sender, recipients and text this is refused with 400, but only after the scope was checked.
        submit = await client.post(
            f"{base}/submit/", content=b"", headers={**headers, "Content-Type": "message/rfc822"}
        )
    except httpx.HTTPError as err:
        text = f"no answer ({str(err) or type(err).__name__}). Check MESSAGES_API_URL."
        return [Finding("Messages", False, text)]
    return [
        # A page with 200 is of somebody else.
        _scope("mailboxes:read", mailboxes.status_code if _is_json(mailboxes) else 404, fine=200),
        _scope("messages:send", submit.status_code, fine=400),
    ]


def _is_json(response: httpx.Response) -> bool:
    """Whether a good answer is JSON; a bad one tells by its status alone."""
    try:
        return not response.is_success or isinstance(load_json(response.content), dict)
    except ValueError:
        return False


def _scope(scope: str, status_code: int, *, fine: int) -> Finding:
    subject = f"Messages, scope {scope}"
    if status_code == fine:
        return Finding(subject, True, "granted")
    text = {
        301: "it redirects: MESSAGES_API_URL must begin with https://.",
        401: "it refuses the key or the channel: check MESSAGES_API_KEY and MESSAGES_CHANNEL_ID.",
        403: f"the channel may not do this: give it the scope {scope} (mailboxes:read needs a global channel).",
        404: "nothing there: check MESSAGES_API_URL (the address of Messages alone, without a path).",
    }.get(status_code, f"unexpected answer {status_code}: look at Messages' own log.")
    return Finding(subject, False, text)


async def _smtp(settings: Settings) -> list[Finding]:
    if settings.smtp_url is None:
        return []
    url = settings.smtp_url.get_secret_value()
    host, user = urlsplit(url).hostname, urlsplit(url).username
    try:
        async with connected(url, within_seconds=_LIMIT_SECONDS) as client:
            in_the_clear = is_in_the_clear(client)
            with suppress(aiosmtplib.SMTPException):
                await client.quit()
    except (aiosmtplib.SMTPException, OSError, ValueError) as err:
        return [Finding("SMTP", False, f"{host}: {str(err).rstrip('.')}. Check SMTP_URL.")]
    if in_the_clear and user:
        text = f"{host} takes mail, but the password goes to it in the clear: add ?starttls=true to SMTP_URL, or use smtps://."
        return [Finding("SMTP", False, text)]
    return [Finding("SMTP", True, f"{host} takes mail{'' if not in_the_clear else ', unencrypted'}")]
