"""Composing the mails about one change of an event: iCalendar object, words and thread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from app.core.addresses import fold_address
from app.core.clock import isoformat, utcnow
from app.invitations.repository.mails import Thread
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

log = structlog.get_logger()

# ATTENDEE lines in one mail, of a series with its changed instances.
_MOST_ATTENDEE_LINES = 300


@dataclass(frozen=True, slots=True)
class Sender:
    """The sender of mails. `mailbox_id` is None for SMTP; `email` is then the address of EMAIL_FROM.

    `owner_email` is the calendar's owner, whose right to send is checked again before each mail. It is the Reply-To of
    mails by SMTP.
    """

    mailbox_id: str | None
    email: str
    name: str | None
    owner_email: str


@dataclass(frozen=True, slots=True)
class ComposedMail:
    """A mail as it will be sent. `thread_id` is None for the first mail of a thread."""

    message_id: str
    thread_id: str | None
    thread_subject: str
    mail: bytes


class MailDraft:
    """The mails of one change to an event: what they have in common is written once.

    `locale` is the language for recipients without one; `replying` is the guest whose reply a REPLY reports.
    """

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

    def compose_all(
        self, recipients: Sequence[tuple[str, Guest | Person, Thread | None]]
    ) -> list[ComposedMail]:
        """Compose the mails of (key, recipient, thread), in this order. Takes up to 20 ms for each."""
        return [self._compose(person, thread) for _, person, thread in recipients]

    def _compose(self, person: Guest | Person, thread: Thread | None) -> ComposedMail:
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
            # Two changes may share a SEQUENCE, and a guest may reply twice.
            isoformat(self._stamp),
            self._replying.email if self._replying is not None else None,
        )
        is_reply = self._replying is not None
        thread_subject = None
        if thread is not None and not is_reply:
            thread_subject = thread.subject or first_subject(event, locale)
        rendered = render(
            event,
            kind=kind,
            locale=locale,
            replying=self._replying,
            links=self._links.get(person.email),
            thread_subject=thread_subject,
        )
        # A reply is not part of a thread: its subject says who replied what.
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
        # The sender checks the whole mail before it submits it. Checked here too, a fault is logged at once.
        try:
            check_addressing(mail, sender_email=sender.email, recipient_email=person.email)
        except MailUnsafe as err:
            log.error("mail_unsafe", event_uid=event.uid, reason=str(err))  # noqa: TRY400 - about the mail, not this code
        return ComposedMail(message_id, thread_id, rendered.thread_subject, mail)

    def _reply_to(self) -> str | None:
        """The guest who replied; by SMTP the calendar's owner, because the mailbox is not the owner's."""
        if self._replying is not None:
            return self._replying.email
        return self._sender.owner_email if self._sender.mailbox_id is None else None

    def _own_ics(self, person: Guest | Person) -> bytes:
        """An object with this recipient as the only guest: for large events, and for guests who are uninvited."""
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
