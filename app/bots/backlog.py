"""The state of the hand-overs of bots to the runner, for the operator."""

from dataclasses import dataclass
from datetime import timedelta

from app.bots.repository import backlog as repository
from app.core.backlog import Backlog
from app.core.db import AnySession


@dataclass(frozen=True, slots=True, kw_only=True)
class BotBacklog:
    """All hand-overs together. `scheduled`: bots that are due later, and not pending yet."""

    total: Backlog
    scheduled: int


async def summarize_bots(session: AnySession, project_id: str | None, *, lead: timedelta) -> BotBacklog:
    """Return the counts of one project, or of all. `lead`: how long before its time to join a bot is due."""
    total, scheduled = await repository.count_backlog(session, project_id, lead=lead)
    return BotBacklog(total=total, scheduled=scheduled)
