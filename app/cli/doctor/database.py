"""Checks of the database: schema, workers, syncs, stored secrets and endpoints."""

import asyncio
from datetime import UTC, timedelta

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from app.cli.doctor.findings import TIMEOUT_SECONDS, Finding, note, warning
from app.cli.errors import DATABASE_ERRORS, explain_database_error
from app.cli.keys import BROKEN_HELP
from app.core.crypto import SecretBox
from app.core.db import Sessions, create_engine, create_sessions, reading
from app.health import overview
from app.keys.service import inspect
from app.settings import Settings, SettingsError
from migrations.revisions import head_revision, is_behind

_OLDEST_POSTGRES = (14,)
_SECRETS_OPENED = 1000  # of each kind
_OUTAGES_SHOWN = 10


async def check_database(settings: Settings) -> list[Finding]:
    try:
        url = settings.required_database_url()
    except SettingsError as err:
        return [Finding("database", False, str(err))]
    engine = None
    try:
        engine = create_engine(url, pool_size=1)
        async with asyncio.timeout(2 * TIMEOUT_SECONDS), engine.connect() as connection:
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
            text = f"at {revision}, which a newer release made"
            findings.append(note("migrations", text))
        sessions = create_sessions(engine)
        findings.append(await _check_workers(sessions))
        findings += await _check_syncs(sessions)
        if settings.fernet_keys:
            findings.append(await _check_secrets(settings, sessions))
        findings += await _check_endpoints(sessions)
        return findings
    except (*DATABASE_ERRORS, ValueError) as err:
        return [Finding("database", False, explain_database_error(err))]
    finally:
        if engine is not None:
            await engine.dispose()


async def _check_workers(sessions: Sessions) -> Finding:
    async with asyncio.timeout(TIMEOUT_SECONDS), reading(sessions) as session:
        found = await overview.load_workers(session)
    age, count = found.seconds_since_last, found.count
    if age is None:
        return note("workers", "none has ever run; start one with `calbridge worker`.")
    if count == 0:
        text = f"none was seen for {age:.0f} seconds, so nothing is synced or sent: start one with `calbridge worker`."
        return Finding("workers", False, text)
    return Finding("workers", True, "one runs" if count == 1 else f"{count} run")


async def _check_syncs(sessions: Sessions) -> list[Finding]:
    """Report outages, failing calendars, and deletions that wait for confirmation."""
    async with reading(sessions) as session:
        found = await overview.load_syncs(
            session, most_outages=_OUTAGES_SHOWN, within=timedelta(seconds=TIMEOUT_SECONDS)
        )
    findings = []
    for row in found.outages:
        why = f" ({row.code})" if row.code else ""
        text = (
            f"it fails since {row.outage_since.astimezone(UTC):%Y-%m-%d %H:%M} UTC{why}; calendars that wait: {row.held}. "
            f"{_outage_help(row.scope)}"
        )
        findings.append(warning(f"outage of {_shown(row.scope)}", text))
    findings += [
        warning(
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
            f"calendars whose last answer left out most events: {found.in_doubt}. These events are deleted when a second "
            "response, CALENDAR_SHRINK_CONFIRM_SECONDS later, confirms it."
        )
        findings.append(note("deletions", text))
    return findings


def _shown(scope: str) -> str:
    """Describe a breaker's scope (app/outages/breakers.py) in words."""
    kind, _, name = scope.partition(":")
    project_id, _, client_id = name.partition(":")
    return {"feed": f"feeds at {name}", "client": f"OAuth client {client_id} of {project_id}"}.get(kind, kind)


def _outage_help(scope: str) -> str:
    if scope.startswith("client:"):
        return "Its secret is wrong or the client was disabled: the project must give a new one."
    return "They are synced as soon as it works again. Check its status page and your network."


async def _check_endpoints(sessions: Sessions) -> list[Finding]:
    async with asyncio.timeout(TIMEOUT_SECONDS), reading(sessions) as session:
        found = await overview.load_dead_endpoints(session)
    if not found.projects:
        return []
    text = (
        f"{found.failing} have failed for more than an hour and {found.disabled} were switched off for failing, in "
        f"{_counted(found.projects, 'project')}; for example {found.example}. GET /api/v1/webhooks shows them."
    )
    return [warning("webhooks", text)]


def _counted(number: int, noun: str) -> str:
    if number >= overview.COUNTED_TO:
        return f"{overview.COUNTED_TO} or more {noun}s"
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


async def _check_secrets(settings: Settings, sessions: Sessions) -> Finding:
    """Decrypt some secrets of each kind, to find a key that was removed too early."""
    box = SecretBox(settings.required_fernet_keys())
    async with asyncio.timeout(6 * TIMEOUT_SECONDS):
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


async def load_used_platforms(settings: Settings) -> set[str]:
    """Return the platforms that calendars or OAuth apps need; all of them if the database cannot be read."""
    try:
        engine = create_engine(settings.required_database_url(), pool_size=1)
    except (SettingsError, ValueError):
        return {"google", "microsoft"}
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), reading(create_sessions(engine)) as session:
            return await overview.load_used_platforms(session)
    except DATABASE_ERRORS:
        return {"google", "microsoft"}
    finally:
        await engine.dispose()
