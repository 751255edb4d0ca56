"""`calbridge doctor`: check everything that a start needs, and say how to fix what is wrong.

It changes nothing. Every network check has a short deadline.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, timedelta
from urllib.parse import urlsplit

import aiosmtplib
from alembic.runtime.migration import MigrationContext
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection

from app.cli.errors import DATABASE_ERRORS, explain_database_error
from app.cli.keys import BROKEN_HELP
from app.core.crypto import SecretBox
from app.core.db import Sessions, create_engine, create_sessions, reading
from app.core.fetch import FetchFailed, Response, fetch
from app.core.http import httpx, is_public_address, operator_client
from app.health import overview
from app.keys.service import inspect
from app.mail.smtp import connected, is_in_the_clear
from app.settings import Settings, SettingsError, load_settings, misspelt_settings
from migrations.revisions import head_revision, is_behind

_OLDEST_POSTGRES = (14,)
_LIMIT_SECONDS = 5.0
_LARGEST_RESPONSE_BYTES = 1024 * 1024
_SECRETS_OPENED = 1000  # of each kind
_OUTAGES_SHOWN = 10


@dataclass(frozen=True)
class Finding:
    """One line of the report. `text` says how to fix what is wrong.

    A note is fine, but the operator may want to know it. A warning needs attention, although the service works.
    """

    subject: str
    is_fine: bool
    text: str
    is_note: bool = False
    is_warning: bool = False

    @property
    def level(self) -> str:
        """ok, note, warn or WRONG."""
        if not self.is_fine:
            return "WRONG"
        return "warn" if self.is_warning else "note" if self.is_note else "ok"

    def __str__(self) -> str:
        return f"{self.level:5} {self.subject}: {self.text}"

    def as_dict(self) -> dict[str, str]:
        return {"level": self.level.lower(), "subject": self.subject, "text": self.text}


def _note(subject: str, text: str) -> Finding:
    return Finding(subject, True, text, is_note=True)


def _warning(subject: str, text: str) -> Finding:
    return Finding(subject, True, text, is_warning=True)


async def examine() -> list[Finding]:
    """Return all findings, in the order of the report."""
    try:
        settings = load_settings()
    except SettingsError as err:
        return [Finding("settings", False, line) for line in str(err).splitlines()]
    findings = [Finding("settings", True, f"environment {settings.environment}, APP_URL {settings.app_url}")]
    findings += [_warning("settings", sentence) for sentence in misspelt_settings()]
    async with operator_client(timeout=_LIMIT_SECONDS) as client:
        groups = await asyncio.gather(
            _database(settings),
            _redis(settings),
            _keys(settings),
            _push(settings, client),
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
    engine = None
    try:
        engine = create_engine(url, pool_size=1)
        async with asyncio.timeout(2 * _LIMIT_SECONDS), engine.connect() as connection:
            version = connection.dialect.server_version_info or ()
            revision = await connection.run_sync(_revision)
        shown = ".".join(str(part) for part in version)
        if version < _OLDEST_POSTGRES:
            return [Finding("database", False, f"PostgreSQL {shown} is too old; use version 14 or newer.")]
        findings = [Finding("database", True, f"PostgreSQL {shown}")]
        if is_behind(revision):
            text = f"the schema is at {revision or 'no revision'}, this release needs {head_revision()}: run `calbridge migrate`."
            return [*findings, Finding("migrations", False, text)]
        if revision == head_revision():
            findings.append(Finding("migrations", True, f"at the newest revision, {revision}"))
        else:
            text = f"at {revision}, which a newer release than this one has made"
            findings.append(_note("migrations", text))
        sessions = create_sessions(engine)
        findings.append(await _workers(sessions))
        findings += await _syncs(sessions)
        if settings.fernet_keys:
            findings.append(await _secrets(settings, sessions))
        findings += await _endpoints(sessions)
        return findings
    except (*DATABASE_ERRORS, ValueError) as err:
        return [Finding("database", False, explain_database_error(err))]
    finally:
        if engine is not None:
            await engine.dispose()


async def _workers(sessions: Sessions) -> Finding:
    async with asyncio.timeout(_LIMIT_SECONDS), reading(sessions) as session:
        found = await overview.load_workers(session)
    age, count = found.seconds_since_last, found.count
    if age is None:
        return _note("workers", "none has ever run; start one with `calbridge worker`.")
    if count == 0:
        text = f"none was seen for {age:.0f} seconds, so nothing is synced or sent: start one with `calbridge worker`."
        return Finding("workers", False, text)
    return Finding("workers", True, "one runs" if count == 1 else f"{count} run")


async def _syncs(sessions: Sessions) -> list[Finding]:
    """Report outages, failing calendars, and deletions that wait for confirmation."""
    async with reading(sessions) as session:
        found = await overview.load_syncs(
            session, most_outages=_OUTAGES_SHOWN, within=timedelta(seconds=_LIMIT_SECONDS)
        )
    findings = []
    for row in found.outages:
        why = f" ({row.code})" if row.code else ""
        text = (
            f"it fails since {row.outage_since.astimezone(UTC):%Y-%m-%d %H:%M} UTC{why}; calendars that wait: {row.held}. "
            f"{_outage_help(row.scope)}"
        )
        findings.append(_warning(f"outage of {_shown(row.scope)}", text))
    findings += [
        _warning(
            "calendars",
            f"{_counted(row.rows, 'calendar')} of {row.platform}, in {_counted(row.projects, 'project')}, "
            f"cannot be synced: {row.code}; for example {row.example}. "
            "GET /api/v1/calendars?failing=true shows each with its reason.",
        )
        for row in found.failing
    ]
    if not found.failing and not found.outages:
        findings.append(Finding("syncs", True, "no calendar failed at its last sync"))
    if found.in_doubt:
        text = (
            f"calendars whose last answer left out most events: {found.in_doubt}. These are deleted when another answer, "
            "CALENDAR_SHRINK_CONFIRM_SECONDS later, says the same."
        )
        findings.append(_note("deletions", text))
    return findings


def _shown(scope: str) -> str:
    """Describe a breaker's scope (app/outages/breakers.py) in words."""
    kind, _, name = scope.partition(":")
    project_id, _, client_id = name.partition(":")
    return {"feed": f"feeds at {name}", "client": f"OAuth client {client_id} of {project_id}"}.get(kind, kind)


def _outage_help(scope: str) -> str:
    if scope.startswith("client:"):
        return "Its secret is wrong or the client was disabled: the project must give a new one."
    return "They are synced as soon as it answers again; check its status page, and the way there from here."


async def _endpoints(sessions: Sessions) -> list[Finding]:
    async with asyncio.timeout(_LIMIT_SECONDS), reading(sessions) as session:
        found = await overview.load_dead_endpoints(session)
    if not found.projects:
        return []
    text = (
        f"{found.failing} have failed for more than an hour and {found.disabled} were switched off for failing, in "
        f"{_counted(found.projects, 'project')}; for example {found.example}. GET /api/v1/webhooks shows them."
    )
    return [_warning("webhooks", text)]


def _counted(number: int, noun: str) -> str:
    if number >= overview.COUNTED_TO:
        return f"{overview.COUNTED_TO} or more {noun}s"
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


async def _used_platforms(settings: Settings) -> set[str]:
    """Return the platforms that calendars or OAuth apps need; all of them if the database cannot be read."""
    try:
        engine = create_engine(settings.required_database_url(), pool_size=1)
    except (SettingsError, ValueError):
        return {"google", "microsoft"}
    try:
        async with asyncio.timeout(_LIMIT_SECONDS), reading(create_sessions(engine)) as session:
            return await overview.load_used_platforms(session)
    except DATABASE_ERRORS:
        return {"google", "microsoft"}
    finally:
        await engine.dispose()


async def _secrets(settings: Settings, sessions: Sessions) -> Finding:
    """Decrypt some secrets of each kind, so that a key that was removed too early is found before the next sync."""
    box = SecretBox(settings.required_fernet_keys())
    async with asyncio.timeout(6 * _LIMIT_SECONDS):
        tallies = [tally async for tally in inspect(sessions, box, most_rows=_SECRETS_OPENED)]
    broken = [
        f"{tally.broken} of {'the first ' if tally.is_sample else ''}{tally.rows} {tally.column}"
        for tally in tallies
        if tally.broken
    ]
    if broken:
        text = f"no key in CREDENTIALS_ENCRYPTION_KEYS opens {', '.join(broken)}. {BROKEN_HELP}"
        return Finding("stored secrets", False, text)
    rows = sum(tally.rows for tally in tallies)
    old = rows - sum(tally.has_first_key for tally in tallies)
    text = f"all {rows} that were looked at open" if rows else "there are none yet"
    if old:
        text += f"; {old} have an older key: run `calbridge rotate-keys` before you drop it"
    return Finding("stored secrets", True, text)


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


async def _push(settings: Settings, client: httpx.AsyncClient) -> list[Finding]:
    """Check whether providers can send notifications, as far as this machine can see."""
    url = settings.app_url
    if not settings.push_enabled:
        text = (
            "off, so changes are seen by polling alone: CALENDAR_PUSH_ENABLED is set to false."
            if url.startswith("https://")
            else f"off, so changes are seen by polling alone: providers notify https:// addresses, and APP_URL is {url}."
        )
        return [_note("push", text)]
    if not url.startswith("https://"):
        text = f"CALENDAR_PUSH_ENABLED is on, but providers notify https:// addresses only, and APP_URL is {url}."
        return [Finding("push", False, text)]
    host = urlsplit(url).hostname or ""
    try:
        with suppress(ValueError):
            if not is_public_address(host):
                text = f"providers cannot reach {host}: set APP_URL to this service's public name."
                return [Finding("push", False, text)]
        response = await _request(client, "GET", f"{url}/healthz")
    except FetchFailed as err:
        text = f"{url} does not answer from here ({err.reason}); providers must reach it."
        return [_note("push", text)]
    if response.status != 200 or (response.json_object() or {}).get("status") != "ok":
        text = f"{url}/healthz is answered ({response.status}), but not by calbridge: check APP_URL and the proxy."
        return [Finding("push", False, text)]
    return [Finding("push", True, f"{url} reaches this service")]


async def _reachable(settings: Settings, client: httpx.AsyncClient) -> list[Finding]:
    """Check that providers can be reached. Any HTTP response counts: without credentials it is 400, 401, 404 or 405.

    A platform that no calendar uses may be unreachable.
    """
    used = await _used_platforms(settings)
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
            response = await _request(client, "GET", address)
        except FetchFailed as err:
            text = (
                f"{host} does not answer ({err.reason}). Check the network, DNS and firewall, or the setting."
            )
            platform = name.partition("_")[0].lower()
            if platform in {"google", "microsoft"} - used:
                return _note(name, f"{text} No calendar or OAuth app needs it so far.")
            return Finding(name, False, text)
        return Finding(name, True, f"{host} answers ({response.status})")

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
        mailboxes = await _request(
            client, "GET", f"{base}/provisioning/mailboxes/?email=doctor@calbridge.invalid", headers=headers
        )
        # Without sender, recipients and text this is refused with 400, but only after the scope was checked.
        submit = await _request(
            client, "POST", f"{base}/submit/", headers={**headers, "Content-Type": "message/rfc822"}
        )
    except FetchFailed as err:
        text = f"no answer ({err.reason}). Check MESSAGES_API_URL."
        return [Finding("Messages", False, text)]
    return [
        # A page with 200 is of somebody else.
        _scope("mailboxes:read", mailboxes.status if _is_json(mailboxes) else 404, fine=200),
        _scope("messages:send", submit.status, fine=400),
    ]


async def _request(
    client: httpx.AsyncClient, method: str, url: str, *, headers: Mapping[str, str] | None = None
) -> Response:
    """One request whose response is only looked at briefly. Raises FetchFailed."""
    return await fetch(
        client,
        method,
        url,
        headers=headers,
        max_bytes=_LARGEST_RESPONSE_BYTES,
        deadline_seconds=_LIMIT_SECONDS,
        truncate=True,
    )


def _is_json(response: Response) -> bool:
    """Whether a successful response is JSON; the status alone decides about any other."""
    return not 200 <= response.status < 300 or response.json_object() is not None


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
