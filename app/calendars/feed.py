"""Calendars that are read from an iCal feed."""

from collections.abc import Callable

from app.calendars.connection import insert_calendar, window_columns
from app.calendars.schemas import FeedCalendarCreate
from app.core.crypto import SecretBox
from app.core.db import Session
from app.core.errors import InvalidFields
from app.credentials.service import create_credentials
from app.providers.ics.feed import normalize_feed_url


async def connect_feed(
    session: Session,
    box: SecretBox,
    project_id: str,
    body: FeedCalendarCreate,
    *,
    allows_http: Callable[[str], bool],
) -> str:
    """Store the calendar and return its id. Raises InvalidFields, DeduplicationKeyTaken."""
    credentials_id = await create_credentials(
        session,
        box,
        project_id=project_id,
        platform=body.platform,
        secrets={"feed_url": normalized_feed_url(body.feed_url, allows_http)},
    )
    return await insert_calendar(
        session,
        {
            "project_id": project_id,
            "platform": body.platform,
            "credentials_id": credentials_id,
            "metadata_": body.metadata,
            "deduplication_key": body.deduplication_key,
            **window_columns(body.window),
        },
    )


def normalized_feed_url(text: str, allows_http: Callable[[str], bool]) -> str:
    """Return the feed's address in the form that is stored. Raises InvalidFields."""
    try:
        return normalize_feed_url(text, allow_http=allows_http(text))
    except ValueError as err:
        raise InvalidFields.one("feed_url", str(err)) from None
