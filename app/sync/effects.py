"""Effects of a sync on other features, as rows in its transaction: webhooks, push channels, bots."""

from app.bots.service import drop_bots_of_calendar
from app.core.db import Session
from app.events.data import Unannounced
from app.events.writer import WrittenChanges, announce_changes
from app.join_rules.service import leave_calendar, return_calendar
from app.push.service import close_channels
from app.settings import Settings
from app.sync.repository import Claim, Settled
from app.webhooks.outbox import announce
from app.webhooks.payloads import CalendarFacts, state_data


async def follow_success(
    session: Session, claim: Claim, settled: Settled, written: WrittenChanges, *, is_reconnected: bool
) -> None:
    """Announce the changes that are written, and that the calendar is connected again."""
    if is_reconnected:
        await _announce_state(session, claim, settled)
        await return_calendar(session, claim.project_id, claim.calendar_id)
    await announce_changes(session, claim.project_id, _facts(claim, settled), settled, written)


async def follow_failure(
    session: Session,
    settings: Settings,
    claim: Claim,
    settled: Settled,
    unannounced: Unannounced,
    *,
    is_disconnected: bool,
) -> None:
    """Announce the changes that were written before a failure.

    Of a calendar that is disconnected by it, the push channels are closed and the scheduled bots deleted.
    """
    written = WrittenChanges(unannounced, [])
    await announce_changes(session, claim.project_id, _facts(claim, settled), settled, written)
    if is_disconnected:
        await close_channels(session, claim.calendar_id)
        await leave_calendar(session, settings, claim.project_id, claim.calendar_id)
        await drop_bots_of_calendar(session, claim.calendar_id, "calendar_disconnected")
        await _announce_state(session, claim, settled)


async def _announce_state(session: Session, claim: Claim, settled: Settled) -> None:
    await announce(
        session,
        project_id=claim.project_id,
        trigger="calendar.state_change",
        calendar=_facts(claim, settled),
        data=state_data(settled),
    )


def _facts(claim: Claim, settled: Settled) -> CalendarFacts:
    return CalendarFacts(
        id=claim.calendar_id, deduplication_key=settled.deduplication_key, metadata=settled.metadata
    )
