"""`calbridge doctor`: check everything that calbridge needs, and say how to fix what is wrong.

It changes nothing. Every check of the network and the database has a short time limit.
"""

import asyncio

from app.cli.doctor.database import check_database
from app.cli.doctor.findings import TIMEOUT_SECONDS, Finding, warning
from app.cli.doctor.network import check_messages, check_providers, check_push, check_redis, check_smtp
from app.core.http import operator_client
from app.settings import Settings, SettingsError, load_settings, misspelt_settings


async def examine() -> list[Finding]:
    """Return all findings, in the order of the report."""
    try:
        settings = load_settings()
    except SettingsError as err:
        return [Finding("settings", False, line) for line in str(err).splitlines()]
    findings = [Finding("settings", True, f"environment {settings.environment}, APP_URL {settings.app_url}")]
    findings += [warning("settings", sentence) for sentence in misspelt_settings()]
    async with operator_client(timeout=TIMEOUT_SECONDS) as client:
        groups = await asyncio.gather(
            check_database(settings),
            check_redis(settings),
            _check_keys(settings),
            check_push(settings, client),
            check_providers(settings, client),
            check_messages(settings, client),
            check_smtp(settings),
        )
    return findings + [finding for group in groups for finding in group]


async def _check_keys(settings: Settings) -> list[Finding]:
    try:
        count = len(settings.required_fernet_keys())
    except SettingsError as err:
        return [Finding("encryption keys", False, str(err))]
    text = "one key" if count == 1 else f"{count} keys; the first encrypts, all decrypt"
    return [Finding("encryption keys", True, text)]
