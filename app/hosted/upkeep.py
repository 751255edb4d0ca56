"""Keep the rows of hosted events up to date as time goes on.

The margins are explained in docs/adr/0004-expansion-of-hosted-series.md.
"""

from datetime import UTC, datetime, timedelta

import structlog

from app.core.clock import utcnow
from app.core.db import AnySession, Session, Sessions, reading, transaction
from app.hosted import repository
from app.hosted.rows import expanded_until, next_expansion, write_rows
from app.settings import Settings

_BATCH = 100
_RETRY_AFTER = timedelta(minutes=1)

log = structlog.get_logger()


async def rewrite_due_events(sessions: Sessions, settings: Settings) -> None:
    """Rewrite the rows of all events that are due for it, one transaction per event."""
    while True:
        async with reading(sessions) as read_session:
            due = await repository.find_to_expand(read_session, _BATCH)
        for calendar_id, uid in due:
            try:
                async with transaction(sessions) as session:
                    await _rewrite_event(session, settings, calendar_id, uid)
            except Exception as err:  # noqa: BLE001 - one bad event must not hold up the others, now or in the next round
                log.warning("event_not_expanded", calendar_id=calendar_id, uid=uid, error=type(err).__name__)
                async with transaction(sessions) as session:
                    await repository.set_expand_at(session, uid, utcnow() + _RETRY_AFTER)
        if len(due) < _BATCH:
            return


async def find_horizon(session: AnySession, settings: Settings) -> datetime:
    """Return the midnight (UTC) up to which every local series has its rows.

    It is beyond the settings' window, unless the workers are late with expanding: then it is earlier by as much.
    """
    horizon = expanded_until(settings, await repository.find_first_due(session)).astimezone(UTC)
    return horizon.replace(hour=0, minute=0, second=0, microsecond=0)


async def _rewrite_event(session: Session, settings: Settings, calendar_id: str, uid: str) -> None:
    """Rewrite an event's rows: a series is expanded to the present end of the window."""
    calendar = await repository.lock_calendar(session, calendar_id)
    if calendar is None:
        return
    components = await repository.load_components(session, calendar_id, uid)
    if "" in components:
        # Before the rows are written: what is scheduled in between stays scheduled.
        await repository.set_expand_at(session, uid, next_expansion(components[""], now=utcnow()))
        await write_rows(session, settings, calendar, components)
