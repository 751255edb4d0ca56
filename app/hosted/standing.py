"""Check that a mail that was written earlier is still right to send."""

from datetime import datetime
from typing import Literal

from app.core.addresses import same_address
from app.core.clock import utcnow
from app.core.db import AnySession
from app.hosted import repository
from app.hosted.rules import last_end


async def explain_outdated(
    session: AnySession,
    calendar_id: str,
    uid: str,
    *,
    method: Literal["REQUEST", "CANCEL", "REPLY"],
    recurrence_id: datetime | None,
    recipient_email: str,
) -> str | None:
    """Return why an invitation or cancellation is out of date, as a sentence; None if it may be sent."""
    if method == "REPLY":
        return None
    components = await repository.load_components(session, calendar_id, uid)
    master = components.get("")
    instance = next(
        (component for component in components.values() if component.recurrence_id == recurrence_id), None
    )
    component = instance or master
    is_off = master is None or component is None or master.is_cancelled or component.is_cancelled
    is_invited = not is_off and component is not None and component.find(recipient_email) is not None
    if method == "CANCEL":
        return "This guest is invited again: nothing is cancelled." if is_invited and instance else None
    if is_off:
        return "The event was deleted: no one is invited to it any more."
    if not is_invited:
        return "This guest is not invited any more."
    ends_at = last_end(component) if component is not None else None
    if ends_at is not None and ends_at <= utcnow():
        return "The event is over."
    return None


async def explain_changed_sender(
    session: AnySession, calendar_id: str, *, sender_email: str, is_by_smtp: bool
) -> str | None:
    """Return a sentence if the calendar has another sender now; None if it has the mail's sender."""
    calendar = await repository.find_calendar(session, calendar_id)
    if calendar is None:
        return "The calendar was deleted."
    present = None if calendar.identity is None else calendar.identity["email"]
    if (present is None and is_by_smtp) or (
        present is not None and not is_by_smtp and same_address(present, sender_email)
    ):
        return None
    return (
        f"This mail was written to come from {sender_email}, and the calendar sends from {present or 'EMAIL_FROM'} now. "
        "Change the event, or add the guest anew, to write another one."
    )
