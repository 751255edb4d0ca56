"""Queue the mails of a change, each with the links for its recipient."""

from collections.abc import Sequence

from app.core.db import Session
from app.hosted.calendar import LocalCalendar
from app.hosted.errors import NoSender
from app.hosted.mails import PlannedMail
from app.invitations.links import RsvpTokens, Subject
from app.invitations.service import RsvpLinks, queue_mails
from app.settings import Settings


async def queue_planned(
    session: Session, settings: Settings, calendar: LocalCalendar, mails: Sequence[PlannedMail]
) -> None:
    """Write the mails' outbox rows. Raises NoSender if there are mails and no way to send them."""
    if not mails:
        return
    sender = calendar.sender(settings)
    if sender is None:
        raise NoSender(has_mailbox=calendar.identity is not None)
    tokens = RsvpTokens(settings.required_fernet_keys())
    for mail in mails:
        links: dict[str, RsvpLinks] = {}
        if mail.method == "REQUEST":
            for person in mail.recipients:
                subject = Subject(
                    calendar.calendar_id, mail.component.uid, mail.component.recurrence_key, person.email
                )
                accepted, tentative, declined = tokens.links(subject, settings.app_url)
                links[person.email] = RsvpLinks(accepted=accepted, tentative=tentative, declined=declined)
        await queue_mails(
            session,
            project_id=calendar.project_id,
            calendar_id=calendar.calendar_id,
            event=mail.component.for_mail(
                calendar.organizer,
                hosts=calendar.own_addresses,
                excluded=mail.excluded,
                guests=mail.guests,
                overrides=mail.overrides,
            ),
            method=mail.method,
            recipients=[person.guest for person in mail.recipients],
            sender=sender,
            locale=calendar.locale,
            rsvp_links=links or None,
        )
