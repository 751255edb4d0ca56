"""Rows, secrets and reconnection of calendars, for all kinds of calendars.

All code takes locks in this order: rows of calendars by id, then the row of their credentials.
"""

from collections.abc import Sequence
from typing import Any

from app.api.not_found import CalendarNotFound
from app.calendars import repository
from app.calendars.errors import DeduplicationKeyTaken
from app.calendars.schemas import SyncWindow
from app.core.crypto import SealBroken, SecretBox
from app.core.db import Session
from app.core.errors import InvalidFields
from app.core.ids import new_id
from app.credentials import service as credentials
from app.join_rules.service import return_calendar
from app.models import Calendar, Credentials
from app.webhooks.outbox import announce
from app.webhooks.payloads import CalendarFacts, state_data

# The secrets that a calendar of each platform is connected with.
SECRETS_OF = {
    "google": {"client_secret", "refresh_token"},
    "microsoft": {"client_secret", "refresh_token"},
    "ics": {"feed_url"},
}


async def insert_calendar(session: Session, values: dict[str, Any]) -> str:
    """Insert the row and return the calendar's id. Raises DeduplicationKeyTaken."""
    calendar_id = new_id("cal")
    if not await repository.insert_calendar(session, {"id": calendar_id, **values}):
        raise DeduplicationKeyTaken
    return calendar_id


def window_columns(window: SyncWindow | None) -> dict[str, int | None]:
    """Return the columns of the window that a client chose; None for the settings' window."""
    return {
        "window_past_days": window.past_days if window is not None else None,
        "window_future_days": window.future_days if window is not None else None,
    }


async def lock_account(
    session: Session, project_id: str, calendar_id: str
) -> tuple[Sequence[Calendar], Credentials]:
    """Lock all calendars that share this one's credentials, and the credentials. Raises CalendarNotFound."""
    while True:
        found = await repository.find_connection(session, project_id, calendar_id)
        if found is None or found[1] is None:
            raise CalendarNotFound
        calendars = await repository.lock_calendars_of(session, project_id, found[1])
        if any(calendar.id == calendar_id for calendar in calendars):
            return calendars, await credentials.lock_credentials(session, found[1])
        # The calendar was deleted or reconnected with another account in between: try again.


async def renew_secrets(
    session: Session, box: SecretBox, project_id: str, calendar_id: str, secrets: dict[str, str]
) -> Sequence[Calendar]:
    """Store new secrets and reconnect all calendars that share them; return those that were disconnected.

    Raises CalendarNotFound, InvalidFields.
    """
    calendars, stored = await lock_account(session, project_id, calendar_id)
    await credentials.replace_secrets(
        session,
        box,
        stored.id,
        {**_kept_secrets(box, stored, secrets), **secrets},
        has_client_secret="client_secret" in secrets,
    )
    if "refresh_token" in secrets:
        await credentials.set_account(session, stored.id, None)  # only the application knows the account
    return await reconnect(session, calendars)


async def reconnect(session: Session, calendars: Sequence[Calendar]) -> Sequence[Calendar]:
    """Connect the locked calendars and make them due.

    Return those that were disconnected, to announce them.
    """
    disconnected = [calendar for calendar in calendars if calendar.state == "disconnected"]
    await repository.reconnect(session, [calendar.id for calendar in calendars])
    for calendar in disconnected:
        await return_calendar(session, calendar.project_id, calendar.id)
    return disconnected


async def announce_reconnected(session: Session, calendars: Sequence[Calendar]) -> None:
    for calendar in calendars:
        await session.refresh(calendar)
        facts = CalendarFacts(
            id=calendar.id, deduplication_key=calendar.deduplication_key, metadata=calendar.metadata_
        )
        await announce(
            session,
            project_id=calendar.project_id,
            trigger="calendar.state_change",
            calendar=facts,
            data=state_data(calendar),
        )


def _kept_secrets(box: SecretBox, stored: Credentials, secrets: dict[str, str]) -> dict[str, str]:
    """Return the stored secrets that the new ones do not replace.

    Raises InvalidFields if they cannot be decrypted.
    """
    if secrets.keys() == SECRETS_OF[stored.platform]:
        return {}
    try:
        return credentials.open_secrets(box, stored)
    except SealBroken:
        missing = sorted(SECRETS_OF[stored.platform] - secrets.keys())
        sentence = "The stored value can no longer be decrypted: send this field too."
        raise InvalidFields({name: [sentence] for name in missing}) from None
