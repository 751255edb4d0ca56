"""Writing mails into the outbox, in the transaction that changes the event."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta

from app.core.addresses import fold_address, is_address
from app.core.db import Session
from app.core.errors import InvalidFields
from app.core.ids import new_id
from app.invitations.drafts import MailDraft, Sender
from app.invitations.repository import mails
from app.itip.build import Method
from app.itip.event import Guest, MailedEvent, Person
from app.mail.rendering import RsvpLinks

# Composing takes up to 20 ms a mail. In batches, other tasks run in between, and the transaction is not idle for long.
_BATCH = 20
# Further replies of a guest to an event within the time wait; the last one is mailed in the end.
_MOST_REPLIES = 3
_REPLIES_WITHIN = timedelta(minutes=1)


async def queue_mails(
    session: Session,
    *,
    project_id: str,
    calendar_id: str,
    event: MailedEvent,
    method: Method,
    recipients: Sequence[Guest | Person],
    sender: Sender,
    locale: str,
    replying: Guest | None = None,
    rsvp_links: Mapping[str, RsvpLinks] | None = None,
) -> int:
    """Write one mail for each recipient, complete as it will be sent; return how many.

    `locale` is the calendar's language, for recipients without one. `replying` is the guest who replied, for a REPLY.
    `rsvp_links` are keyed by the recipient's address as given. A CANCEL that reaches all of `event.guests` cancels the
    event; a CANCEL to fewer people uninvites them. An address that comes twice gets one mail. A REPLY replaces one of
    the same guest that still waits, and waits itself if the guest has replied a few times within a minute.

    Raises InvalidFields for an address that no mail can be sent to (`attendees`) or from; ValueError for a REPLY
    without `replying`.
    """
    if method == "REPLY" and replying is None:
        raise ValueError("a REPLY needs the guest who replied")
    for address in (sender.email, sender.owner_email):
        if not is_address(address):
            raise InvalidFields.one("non_field_errors", f"No mail can be sent from {address[:100]!r}.")
    by_key: dict[str, Guest | Person] = {}
    for person in recipients:
        if not is_address(person.email):
            raise InvalidFields.one("attendees", f"{person.email[:100]!r} is not an e-mail address.")
        by_key.setdefault(fold_address(person.email), person)
    replying_key = fold_address(replying.email) if replying is not None else None
    due_at = None
    if replying_key is not None:
        due_at = await mails.replace_waiting_reply(
            session,
            calendar_id=calendar_id,
            event_uid=event.uid,
            recurrence_id=event.recurrence_id,
            recipient_keys=list(by_key),
            replying_key=replying_key,
            most=_MOST_REPLIES,
            within=_REPLIES_WITHIN,
        )
    threads = await mails.load_threads(session, calendar_id, event.uid, event.recurrence_id, list(by_key))
    draft = MailDraft(
        event=event,
        method=method,
        recipients=tuple(by_key.values()),
        sender=sender,
        locale=locale,
        replying=replying,
        rsvp_links=rsvp_links or {},
    )
    to_write = [(key, person, threads.get(key)) for key, person in by_key.items()]
    for start in range(0, len(to_write), _BATCH):
        batch = to_write[start : start + _BATCH]
        # In a thread: mails to hundreds of guests take seconds, and the event loop must stay free.
        composed = await asyncio.to_thread(draft.compose_all, batch)
        rows = [
            {
                "id": new_id("msg"),
                "project_id": project_id,
                "calendar_id": calendar_id,
                "event_uid": event.uid,
                "recurrence_id": event.recurrence_id,
                "method": method,
                "sequence": event.sequence,
                "recipient_key": key,
                "recipient_email": person.email,
                "recipient_name": person.name,
                "replying_key": replying_key,
                "mailbox_id": sender.mailbox_id,
                "sender_email": sender.email,
                "sender_name": sender.name,
                "owner_email": sender.owner_email,
                "message_id": written.message_id,
                "thread_id": written.thread_id,
                "thread_subject": written.thread_subject,
                "mail": written.mail,
            }
            for (key, person, _), written in zip(batch, composed, strict=True)
        ]
        await mails.insert_mails(session, rows, due_at=due_at)
    return len(by_key)
