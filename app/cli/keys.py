"""`calbridge rotate-keys`: encrypt all secrets with the first key, and print the progress."""

import sys

from app.cli.errors import CommandFailed
from app.core.crypto import SecretBox
from app.core.db import create_engine, create_sessions
from app.keys import service
from app.keys.service import Tally
from app.settings import Settings

BROKEN_HELP = (
    "Put the key that they were stored with back into CREDENTIALS_ENCRYPTION_KEYS, at the end. If it is lost: "
    "calendars need their credentials again (PATCH, or the consent flow), OAuth apps their client_secret (PATCH), "
    "webhooks a new secret (rotate_secret, or delete and create); idempotent_answers, oauth_sessions and "
    "push_channels expire within days."
)


async def rotate_all(settings: Settings) -> None:
    """Encrypt all secrets again and print a line for each kind.

    Raises CommandFailed if some could not be encrypted.
    """
    keys = settings.required_fernet_keys()
    engine = create_engine(settings.required_database_url(), pool_size=1)
    tallies: list[Tally] = []
    try:
        async for tally in service.rotate(create_sessions(engine), SecretBox(keys)):
            tallies.append(tally)
            print(_line(tally), flush=True)
    finally:
        await engine.dispose()
    faults = []
    if any(tally.broken for tally in tallies):
        faults.append(f"No key opens some of them. {BROKEN_HELP}")
    if any(tally.locked for tally in tallies):
        faults.append("Some were locked by others all the time: run this again.")
    if faults:
        raise CommandFailed("\n".join(faults))
    if len(keys) > 1:
        print(
            "Everything is encrypted with the first key. The others can go once every process runs with it in the "
            "first place; links in invitations that were mailed before then stop working.",
            file=sys.stderr,
        )


def _line(tally: Tally) -> str:
    parts = [
        f"{tally.rows} in all",
        f"{tally.resealed} encrypted anew",
        f"{tally.has_first_key} had the first key",
    ]
    if tally.broken:
        parts.append(f"{tally.broken} that no key opens")
    if tally.locked:
        parts.append(f"{tally.locked} locked by others")
    return f"{tally.column}: {', '.join(parts)}"
