"""The state of the outbox of mails, for the operator."""

from dataclasses import dataclass

from app.core.backlog import Backlog
from app.core.db import AnySession
from app.invitations.repository import log


@dataclass(frozen=True, slots=True, kw_only=True)
class MailBacklog:
    """All mails together.

    `unknown`: submitted without a response that says whether they were accepted (docs/messages.md). `last_error` is
    the newest error among the mails that are not sent.
    """

    total: Backlog
    unknown: int
    last_error: str | None


async def summarize_mails(session: AnySession, project_id: str | None) -> MailBacklog:
    """Return the counts of one project, or of all."""
    total, unknown = await log.count_backlog(session, project_id)
    last_error = await log.find_last_error(session, project_id)
    return MailBacklog(total=total, unknown=unknown, last_error=last_error)
