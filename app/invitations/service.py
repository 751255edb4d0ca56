"""Writing mails into the outbox, in the transaction that changes the event; and reading its log."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog

from app.api.not_found import CalendarEventNotFound
from app.core.addresses import fold_address, is_address
from app.core.clock import isoformat, utcnow
from app.core.db import AnySession, Session
from app.core.errors import Conflict, InvalidFields, NotFound
from app.core.ids import new_id
from app.core.pagination import Page
from app.invitations import repository
from app.invitations.repository import (
    Thread,
    Undelivered,
    find_highest_sequence,
    find_organizers,
    find_told_instances,
    find_told_sequence,
    find_undelivered,
)
from app.invitations.schemas import InvitationRead, InvitationRecipient, InvitationSender, InvitationsQuery
from app.itip.build import (
    MOST_GUESTS_LISTED,
    Method,
    RequestsToOne,
    build_cancel,
    build_reply,
    build_request,
    is_whole_cancel,
)
from app.itip.event import Guest, MailedEvent, Person
from app.mail.check import MailUnsafe, check_addressing
from app.mail.mime import Mailing, compose, make_message_id
from app.mail.rendering import Kind, RsvpLinks, first_subject, kind_of, render
from app.models import InvitationMail

__all__ = [
    "Method",
    "RsvpLinks",
    "Sender",
    "Undelivered",
    "find_highest_sequence",
    "find_organizers",
    "find_told_instances",
    "find_told_sequence",
    "find_undelivered",
    "list_invitations",
    "lock_for_resend",
    "queue_mails",
    "requeue",
]

log = structlog.get_logger()

_PAGE_SIZE = 100
# Composing takes up to 20 ms a mail: others get their turn in between, and the transaction is not idle for long.
_WRITTEN_AT_ONCE = 20
# A guest who clicks to and fro: the last answer is mailed in the end.
_MOST_REPLIES = 3
_REPLIES_WITHIN = timedelta(minutes=1)
# Of a series with its changed instances, in one mail.
_MOST_ATTENDEE_LINES = 300


class InvitationNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Invitation not found")


@dataclass(frozen=True, slots=True)
class Sender:
    """Who the mails come from. `mailbox_id` None: the way out by SMTP, with `email` of EMAIL_FROM.

    `owner_email` is whose right to send is checked again before each mail, and the Reply-To of mails by SMTP.
    """

    mailbox_id: str | None
    email: str
    name: str | None
    owner_email: str


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
    """Writes one mail for each recipient, complete as it will be sent; how many.

    `locale`: the calendar's language, for recipients without one. `replying`: the guest who answered, for a REPLY.
    `rsvp_links` go by the recipient's address as given. A CANCEL that reaches all of `event.guests` calls the event
    off; to fewer people, it uninvites them. An address that comes twice gets one mail. A REPLY takes the place of one
    of the same guest that still waits, and waits itself where the guest has answered a few times within a minute.
    Raises InvalidFields for an address that no mail can go to (`attendees`) or come from; ValueError for a REPLY without `replying`.
    """
    if method == "REPLY" and replying is None:
        raise ValueError("a REPLY needs the guest who answered")
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
        due_at = await repository.take_place_of_reply(
            session,
            calendar_id=calendar_id,
            event_uid=event.uid,
            recurrence_id=event.recurrence_id,
            recipient_keys=list(by_key),
            replying_key=replying_key,
            most=_MOST_REPLIES,
            within=_REPLIES_WITHIN,
        )
    threads = await repository.load_threads(
        session, calendar_id, event.uid, event.recurrence_id, list(by_key)
    )
    draft = _Draft(
        event=event,
        method=method,
        recipients=tuple(by_key.values()),
        sender=sender,
        locale=locale,
        replying=replying,
        rsvp_links=rsvp_links or {},
    )
    everybody = [(key, person, threads.get(key)) for key, person in by_key.items()]
    for start in range(0, len(everybody), _WRITTEN_AT_ONCE):
        batch = everybody[start : start + _WRITTEN_AT_ONCE]
        # In a thread: mails to hundreds of guests take seconds, and the server has others to serve.
        mails = await asyncio.to_thread(draft.mails_to, batch)
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
            for (key, person, thread), written in zip(batch, mails, strict=True)
        ]
        await repository.insert_mails(session, rows, due_at=due_at)
    return len(by_key)


@dataclass(frozen=True, slots=True)
class _Written:
    message_id: str
    thread_id: str | None
    thread_subject: str
    mail: bytes


class _Draft:
    """What the mails of one change have in common. The same words are rendered once, whoever they go to."""

    def __init__(
        self,
        *,
        event: MailedEvent,
        method: Method,
        recipients: Sequence[Guest | Person],
        sender: Sender,
        locale: str,
        replying: Guest | None,
        rsvp_links: Mapping[str, RsvpLinks],
    ) -> None:
        self._event = event
        self._method = method
        self._sender = sender
        self._locale = locale
        self._replying = replying
        self._links = rsvp_links
        self._stamp = utcnow()
        self._is_whole = method == "CANCEL" and is_whole_cancel(event, recipients)
        self._common_ics: bytes | None = None
        self._requests: RequestsToOne | None = None
        lines = sum(len(one.guests) for one in (event, *event.overrides))
        self._lists_all = len(event.guests) <= MOST_GUESTS_LISTED and lines <= _MOST_ATTENDEE_LINES
        if method == "REQUEST" and self._lists_all:
            self._common_ics = build_request(event, stamp=self._stamp, sent_by=sender.email)
        elif method == "REPLY" and replying is not None:
            self._common_ics = build_reply(event, stamp=self._stamp, replying=replying)
        elif self._is_whole and self._lists_all:
            self._common_ics = build_cancel(
                event, stamp=self._stamp, uninvited=event.guests, is_whole=True, sent_by=sender.email
            )

    def mails_to(self, people: Sequence[tuple[str, Guest | Person, Thread | None]]) -> list[_Written]:
        return [self.mail_to(person, thread) for _, person, thread in people]

    def mail_to(self, person: Guest | Person, thread: Thread | None) -> _Written:
        """The complete mail."""
        event, sender = self._event, self._sender
        ics = self._common_ics or self._own_ics(person)
        kind: Kind = kind_of(
            self._method,
            is_update=thread is not None and thread.last_method == "REQUEST",
            is_whole=self._is_whole,
        )
        locale = person.locale if isinstance(person, Guest) and person.locale else self._locale
        message_id = make_message_id(
            sender.email,
            event.uid,
            isoformat(event.recurrence_id) if event.recurrence_id is not None else None,
            fold_address(person.email),
            event.sequence,
            self._method,
            # Two changes may share a SEQUENCE, and a guest may answer twice.
            isoformat(self._stamp),
            self._replying.email if self._replying is not None else None,
        )
        is_answer = self._replying is not None
        thread_subject = None
        if thread is not None and not is_answer:
            thread_subject = thread.subject or first_subject(event, locale)
        rendered = render(
            event,
            kind=kind,
            locale=locale,
            replying=self._replying,
            links=self._links.get(person.email),
            thread_subject=thread_subject,
        )
        # An answer is no part of a thread: its subject says who answered what.
        thread_id = thread.id if thread is not None and rendered.thread_subject == thread_subject else None
        mail = compose(
            Mailing(
                sender_email=sender.email,
                sender_name=sender.name,
                recipient_email=person.email,
                recipient_name=person.name,
                reply_to=self._reply_to(),
                message_id=message_id,
                thread_id=thread_id,
                date=self._stamp,
                method=self._method,
                ics=ics,
                rendered=rendered,
            )
        )
        # The sender looks at all of it, and sends nothing that fails; here, so that a fault is seen at once.
        try:
            check_addressing(mail, sender_email=sender.email, recipient_email=person.email)
        except MailUnsafe as err:
            log.error("mail_unsafe", event_uid=event.uid, reason=str(err))  # noqa: TRY400 - about the mail, not this code
        return _Written(message_id, thread_id, rendered.thread_subject, mail)

    def _reply_to(self) -> str | None:
        """Whoever the mail is of: the guest who answered, or the owner where the mailbox is not hers."""
        if self._replying is not None:
            return self._replying.email
        return self._sender.owner_email if self._sender.mailbox_id is None else None

    def _own_ics(self, person: Guest | Person) -> bytes:
        """With this recipient as the only guest: of large events, and for who is uninvited, which is nobody else's business."""
        if self._method == "CANCEL":
            return build_cancel(
                self._event,
                stamp=self._stamp,
                uninvited=[person],
                is_whole=self._is_whole,
                sent_by=self._sender.email,
            )
        if self._requests is None:
            self._requests = RequestsToOne(self._event, stamp=self._stamp, sent_by=self._sender.email)
        return self._requests.to(person.email)


async def list_invitations(
    session: AnySession, project_id: str, event_id: str, query: InvitationsQuery
) -> Page[Any]:
    """The mails about an event, newest first, 100 a page. Raises CalendarEventNotFound, BadQuery."""
    event = await repository.find_event(session, project_id, event_id)
    if event is None:
        raise CalendarEventNotFound
    page = await repository.list_mails(session, event, cursor=query.cursor, limit=query.rows_of(_PAGE_SIZE))
    return Page([_read(*row) for row in page.rows], page.next, page.previous)


async def lock_for_resend(session: Session, project_id: str, mail_id: str) -> InvitationMail:
    """Lock a mail that may be sent again.

    Raises InvitationNotFound; Conflict if it was sent, is not kept any more, or a later mail took its place.
    """
    mail = await repository.lock_mail(session, project_id, mail_id)
    if mail is None:
        raise InvitationNotFound
    if mail.status == "sent":
        raise Conflict("This mail was sent.")
    if mail.mail is None:
        raise Conflict("This mail is not kept any more: change the event to invite anew.")
    if mail.method != "REPLY" and await repository.has_later_mail(session, mail):
        raise Conflict("A later mail to this guest took the place of this one.")
    return mail


async def requeue(session: Session, mail: InvitationMail) -> InvitationRead:
    """Make a locked mail due now, before others and in spite of a hold; one that is being sent stays as it is."""
    if mail.lease_token is None:
        mail = await repository.requeue(session, mail.id)
    return _read(mail)


def _read(
    row: InvitationMail, held_until: datetime | None = None, hold_reason: str | None = None
) -> InvitationRead:
    """A mail that is held waits for the end of the hold, and says why."""
    next_attempt_at = row.next_attempt_at
    if next_attempt_at is not None and held_until is not None:
        next_attempt_at = max(next_attempt_at, held_until)
    return InvitationRead.model_validate(
        {
            "id": row.id,
            "method": row.method,
            "status": row.status,
            "recipient": InvitationRecipient(email=row.recipient_email, name=row.recipient_name),
            "sender": InvitationSender(
                mailbox_id=row.mailbox_id, email=row.sender_email, name=row.sender_name
            ),
            "sequence": row.sequence,
            "recurrence_id": row.recurrence_id,
            "message_id": row.message_id,
            "attempt_count": row.attempt_count,
            "last_error": row.last_error or hold_reason,
            "next_attempt_at": next_attempt_at,
            "finished_at": row.finished_at,
            "created_at": row.created_at,
            "updated_at": row.updated_at,
        }
    )
