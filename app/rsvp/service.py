"""Answers to invitations: by the page's click, and by mail (contract/messages.md)."""

import asyncio
import hmac
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Literal

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from app.core.addresses import fold_address
from app.core.clock import utcnow
from app.core.db import AnySession, Session, Sessions, transaction
from app.core.errors import TryLater, Unauthorized
from app.hosted import repository as events
from app.hosted.components import EventComponent, instant, wall
from app.hosted.expand import last_end
from app.hosted.service import Answer, Hosting, find_component, has_no_instance, organizer_of, record_answer
from app.invitations.links import Subject
from app.invitations.repository import find_organizers
from app.itip.parse import ParsedReply, parse_reply
from app.rsvp.schemas import ACTIONS, Action, IgnoredCode, InboundAnswer, Page, ignored
from app.rsvp.senders import LookupFailed, SenderKeys, is_signed_by_sender
from app.settings import Settings

# How long after the event's end a link still says that it is over; later it only says that it has expired.
EXPIRES_AFTER = timedelta(days=7)


async def show(session: AnySession, hosting: Hosting, token: str, action: str) -> Page:
    """The page of a link; changes nothing."""
    subject = hosting.tokens.read(token)
    if subject is None or (action and action not in ACTIONS):
        return Page(kind="bad_link")
    calendar = await events.find_calendar(session, subject.calendar_id)
    page = await _page(session, subject, calendar)
    chosen = next((known for known in ACTIONS if known == action), None)
    return replace(page, action=chosen, token=token)


async def answer(session: Session, hosting: Hosting, token: str, action: str, *, seen: str = "") -> Page:
    """Records what was clicked.

    `seen`: the `when` of the event that was shown. An answer to a former time is none to the new one.
    """
    subject = hosting.tokens.read(token)
    chosen: Action | None = next((known for known in ACTIONS if known == action), None)
    if subject is None or chosen is None:
        return Page(kind="bad_link")
    calendar = await events.lock_calendar(session, subject.calendar_id)
    page = await _page(session, subject, calendar)
    if page.kind != "ask" or calendar is None or page.component is None:
        return page
    if seen and seen != page.component.when:
        return replace(page, action=chosen, token=token, has_changed=True)
    await record_answer(
        session,
        hosting,
        calendar,
        Answer(
            uid=subject.uid,
            recurrence_key=subject.slot,
            email=subject.email,
            response_status=chosen,
            sequence=None,
            replied_at=utcnow(),
        ),
        tell_organizer=True,
    )
    after = await _page(session, subject, calendar)
    return replace(after, kind="done" if after.kind == "ask" else after.kind, token=token)


async def _page(session: AnySession, subject: Subject, calendar: events.LocalCalendar | None) -> Page:
    """`ask` where the attendee may answer, else why not."""
    if calendar is None:
        return Page(kind="cancelled")
    components = await events.load_components(session, subject.calendar_id, subject.uid)
    component = find_component(components, subject.slot)
    if component is None:
        return Page(kind="cancelled")
    ends_at = last_end(component)
    if ends_at is not None and ends_at + EXPIRES_AFTER <= utcnow():
        return Page(kind="expired")
    person = component.find(subject.email)
    if person is None:
        return Page(kind="not_invited")
    if (
        component.is_cancelled
        or components[""].is_cancelled
        or await has_no_instance(session, calendar, component)
    ):
        kind = "cancelled"
    elif ends_at is not None and ends_at <= utcnow():
        kind = "over"
    else:
        kind = "ask"
    return Page(kind=kind, calendar=calendar, component=component, attendee=person)  # type: ignore[arg-type] # one of the three above


# -- replies by mail ----------------------------------------------------------------------------------------


Verdict = Literal["pass", "none", "fail"]
"""Of the sender: verified; could not be verified; looks forged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who brings a mail, and what they say of it. `project_id` None: Messages.

    `mailbox`: the receiving mailbox, as far as it is known. `body_sha256`: the digest, in hex, that the mail must have.
    `is_spam` None: not known yet.
    """

    project_id: str | None
    mailbox: str | None
    is_spam: bool | None = None
    verdict: Verdict | None = None
    body_sha256: str | None = None


def read_webhook_token(token: str, secrets: Sequence[str]) -> tuple[str, str]:
    """(mailbox, SHA-256 of the mail in hex) of Messages' JWT, signed with one of the secrets. Raises Unauthorized."""
    refused = Unauthorized("The webhook's token is not valid.")
    for secret in secrets:
        with suppress(JoseError, ValueError, TypeError):
            claims: dict[str, Any] = jwt.decode(token, OctKey.import_key(secret), algorithms=["HS256"]).claims
            break
    else:
        raise refused
    try:
        jwt.JWTClaimsRegistry(
            leeway=30,
            iss={"essential": True, "value": "messages-webhook"},
            exp={"essential": True},
            iat={"essential": True},
            sub={"essential": True},
            body_sha256={"essential": True},
        ).validate(claims)
    except (JoseError, ValueError, TypeError):
        raise refused from None
    digest, mailbox = claims["body_sha256"], claims["sub"]
    if not isinstance(digest, str) or not isinstance(mailbox, str):
        raise refused
    return mailbox, digest.lower()


async def take_in(
    sessions: Sessions, hosting: Hosting, keys: SenderKeys, source: Source, mail: bytes
) -> InboundAnswer:
    """Applies a mailed reply; committed when this returns.

    Ignored, with the reason: whatever no retry would mend. Raises Unauthorized for a mail that is not the source's,
    and TryLater where the sender's DNS does not answer.
    """
    if source.body_sha256 is not None:
        digest = sha256(mail).hexdigest()
        if not hmac.compare_digest(source.body_sha256.encode(), digest.encode()):
            raise Unauthorized("The webhook's token belongs to another body.")
    # In a thread: a mail of many megabytes takes its time, and the server has others to serve.
    reply = await asyncio.to_thread(parse_reply, mail)
    if reply is None:
        return ignored("no_reply")
    if source.is_spam:
        return ignored("spam")
    if source.is_spam is None:
        return ignored("no_spam_verdict")
    async with transaction(sessions) as session:
        found = await events.find_calendars_of_uid(session, reply.uid, source.project_id)
    if not found:
        return ignored("unknown_event")
    # Neither a transaction nor a lock waits for the network.
    doubt = await _doubt(hosting.settings, keys, source, reply, mail)
    if doubt is not None:
        return ignored(doubt)
    async with transaction(sessions) as session:
        for calendar_id in found:
            calendar = await events.lock_calendar(session, calendar_id, source.project_id)
            if calendar is not None:
                return await _apply(session, hosting, calendar, reply, mailbox=source.mailbox, mail=mail)
    return ignored("unknown_event")


async def _doubt(
    settings: Settings, keys: SenderKeys, source: Source, reply: ParsedReply, mail: bytes
) -> IgnoredCode | None:
    """Why the sender is not believed. Raises TryLater.

    Everybody who is invited knows the event's UID and the other guests: only the sender's address tells them apart.
    """
    verdicts = {source.verdict, reply.sender_doubt}
    if "fail" in verdicts:
        return "forged"
    accepted = settings.messages_reply_senders
    if "none" in verdicts:
        # Of an application too: who says that a sender was not verified has looked.
        return None if accepted == "unverified" and source.project_id is None else "unverified"
    # An application with an API key may do with its project's events what it likes: it is believed without a word.
    if source.verdict == "pass" or source.project_id is not None or accepted != "verified":
        return None
    try:
        is_signed = await is_signed_by_sender(mail, reply.from_email, keys)
    except LookupFailed:
        raise TryLater("The DNS of the sender's domain does not answer. Send the mail again later.") from None
    return None if is_signed else "unsigned"


async def _apply(
    session: Session,
    hosting: Hosting,
    calendar: events.LocalCalendar,
    reply: ParsedReply,
    *,
    mailbox: str | None,
    mail: bytes,
) -> InboundAnswer:
    # Of the calendar now, or when the guests were invited: they answer whom their invitation names.
    organizers = await find_organizers(session, calendar.calendar_id, reply.uid)
    known = {fold_address(email) for email in (organizer_of(calendar).email, *organizers)}
    if mailbox is not None and fold_address(mailbox) not in known:
        return ignored("other_mailbox")
    if reply.organizer_email is not None and fold_address(reply.organizer_email) not in known:
        return ignored("other_organizer")
    answers = [one for one in (reply, *reply.others) if one.partstat != "needs_action"]
    if not answers:
        return ignored("no_answer")
    mark = sha256((reply.message_id or "").encode() or mail).digest()
    if not await events.note_inbound_reply(session, calendar.calendar_id, mark):
        return ignored("seen_before")
    components = await events.load_components(session, calendar.calendar_id, reply.uid)
    recorded = [
        await record_answer(
            session,
            hosting,
            calendar,
            Answer(
                uid=one.uid,
                recurrence_key=_slot(one, components[""]) if "" in components else "",
                email=one.attendee_email,
                response_status=one.partstat,
                sequence=one.sequence,
                # A clock that is ahead must not shut out later answers.
                replied_at=min(one.dtstamp, utcnow()),
            ),
            tell_organizer=False,
        )
        for one in answers
    ]
    if "applied" in recorded:
        return InboundAnswer(status="applied")
    first = recorded[0]
    assert first != "applied"
    return ignored("no_instance" if first == "unknown_event" else first)


def _slot(reply: ParsedReply, series: EventComponent) -> str:
    """Of the instance that is answered. A date stands for that day's instance, and a time for its day."""
    at = reply.recurrence_id
    if at is None:
        return ""
    day = at if reply.recurrence_is_date else wall(at, series.timezone)
    if series.is_all_day:
        return f"{day:%Y%m%d}"
    if reply.recurrence_is_date:
        clock = wall(series.start, series.timezone).time()
        at = instant(datetime.combine(day.date(), clock), series.timezone)
    return f"{at:%Y%m%dT%H%M%SZ}"
