"""Replies by a click on the RSVP page."""

from dataclasses import replace

from app.core.clock import utcnow
from app.core.db import AnySession, Session
from app.hosted.service import Reply, find_calendar, load_event, lock_calendar, record_reply
from app.invitations.links import RsvpTokens
from app.rsvp.page import RsvpPage, page_of, read_action
from app.settings import Settings


async def show_page(session: AnySession, settings: Settings, token: str, action: str) -> RsvpPage:
    """Return the page of a link; change nothing."""
    subject = RsvpTokens(settings.required_fernet_keys()).read(token)
    chosen = read_action(action)
    if subject is None or (action and chosen is None):
        return RsvpPage(kind="bad_link")
    calendar = await find_calendar(session, subject.calendar_id)
    event = await load_event(session, calendar, subject.uid) if calendar is not None else None
    return replace(page_of(event, subject, now=utcnow()), action=chosen, token=token)


async def record_click(
    session: Session, settings: Settings, token: str, action: str, *, seen: str = ""
) -> RsvpPage:
    """Record the reply of a click and return the page that follows.

    `seen` is the component's `when` on the page that the guest saw. If it differs, nothing is recorded, and the page
    asks again.
    """
    subject = RsvpTokens(settings.required_fernet_keys()).read(token)
    chosen = read_action(action)
    if subject is None or chosen is None:
        return RsvpPage(kind="bad_link")
    calendar = await lock_calendar(session, subject.calendar_id)
    event = await load_event(session, calendar, subject.uid) if calendar is not None else None
    page = page_of(event, subject, now=utcnow())
    if event is None or page.kind != "ask" or page.invited is None:
        return page
    if seen and seen != page.invited.component.when:
        return replace(page, action=chosen, token=token, has_changed=True)
    reply = Reply(
        recurrence_key=subject.recurrence_key,
        email=subject.email,
        response_status=chosen,
        sequence=None,
        replied_at=utcnow(),
    )
    recorded = await record_reply(session, settings, event, reply, notify_organizer=True)
    after = page_of(recorded.event, subject, now=utcnow())
    return replace(after, kind="done" if after.kind == "ask" else after.kind, token=token)
