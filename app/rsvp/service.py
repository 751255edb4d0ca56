"""Answers to invitations: by the page's click, and by mail (contract/messages.md)."""

import asyncio
import hmac
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from app.core.addresses import fold_address
from app.core.clock import utcnow
from app.core.db import AnySession, Session
from app.core.errors import Unauthorized
from app.hosted import repository as events
from app.hosted.entries import Entry, instant, wall
from app.hosted.expand import last_end
from app.hosted.service import Answer, Hosting, find_entry, has_no_instance, organizer_of, record_answer
from app.invitations.repository import find_organizers
from app.itip.parse import InboundReply, parse_reply
from app.rsvp.schemas import ACTIONS, Action, InboundAnswer, Page
from app.rsvp.tokens import Subject

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
    """Records what was clicked. The caller rings "deliveries" and "mails".

    `seen`: the `when` of the event that was shown. An answer to a former time is none to the new one.
    """
    subject = hosting.tokens.read(token)
    chosen: Action | None = next((known for known in ACTIONS if known == action), None)
    if subject is None or chosen is None:
        return Page(kind="bad_link")
    calendar = await events.lock_calendar(session, subject.calendar_id)
    page = await _page(session, subject, calendar)
    if page.kind != "ask" or calendar is None or page.entry is None:
        return page
    if seen and seen != page.entry.when:
        return replace(page, action=chosen, token=token, has_changed=True)
    await record_answer(
        session,
        hosting,
        calendar,
        Answer(
            uid=subject.uid,
            slot=subject.slot,
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
    entries = await events.load_entries(session, subject.calendar_id, subject.uid)
    entry = find_entry(entries, subject.slot)
    if entry is None:
        return Page(kind="cancelled")
    ends_at = last_end(entry)
    if ends_at is not None and ends_at + EXPIRES_AFTER <= utcnow():
        return Page(kind="expired")
    person = entry.find(subject.email)
    if person is None:
        return Page(kind="not_invited")
    if entry.is_cancelled or entries[""].is_cancelled or await has_no_instance(session, calendar, entry):
        kind = "cancelled"
    elif ends_at is not None and ends_at <= utcnow():
        kind = "over"
    else:
        kind = "ask"
    return Page(kind=kind, calendar=calendar, entry=entry, attendee=person)  # type: ignore[arg-type] # one of the three above


# -- replies by mail ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """Who brings a mail. `mailbox`: the receiving mailbox, as far as it is known; `project_id` None: Messages.

    `body_sha256`: the digest, in hex, that the mail must have.
    """

    project_id: str | None
    mailbox: str | None
    body_sha256: str | None = None


def read_webhook_token(token: str, secret: str) -> Source:
    """Messages, by the JWT of its webhook. Raises Unauthorized."""
    try:
        key = OctKey.import_key(secret)
        claims: dict[str, Any] = jwt.decode(token, key, algorithms=["HS256"]).claims
        jwt.JWTClaimsRegistry(
            leeway=30,
            iss={"essential": True, "value": "messages-webhook"},
            exp={"essential": True},
            iat={"essential": True},
            sub={"essential": True},
            body_sha256={"essential": True},
        ).validate(claims)
    except (JoseError, ValueError, TypeError):
        raise Unauthorized("The webhook's token is not valid.") from None
    digest, mailbox = claims["body_sha256"], claims["sub"]
    if not isinstance(digest, str) or not isinstance(mailbox, str):
        raise Unauthorized("The webhook's token is not valid.")
    return Source(project_id=None, mailbox=mailbox, body_sha256=digest.lower())


async def take_in(
    session: Session, hosting: Hosting, source: Source, mail: bytes, *, is_spam: bool
) -> InboundAnswer:
    """Applies a mailed reply. The caller rings "deliveries". Raises Unauthorized for a mail that is not the source's.

    Ignored: spam, what is no reply, unknown events, other mailboxes, strangers, stale answers, and what was seen before.
    """
    if source.body_sha256 is not None:
        digest = sha256(mail).hexdigest()
        if not hmac.compare_digest(source.body_sha256.encode(), digest.encode()):
            raise Unauthorized("The webhook's token belongs to another body.")
    if is_spam:
        return _ignored("The mail is flagged as spam.")
    # In a thread: a mail of many megabytes takes its time, and the server has others to serve.
    reply = await asyncio.to_thread(parse_reply, mail)
    if reply is None:
        return _ignored("There is no calendar reply of the mail's sender in it.")
    for calendar_id in await events.find_calendars_of_uid(session, reply.uid, source.project_id):
        calendar = await events.lock_calendar(session, calendar_id, source.project_id)
        if calendar is not None:
            return await _apply(session, hosting, calendar, reply, mailbox=source.mailbox, mail=mail)
    return _ignored("The event is not known.")


async def _apply(
    session: Session,
    hosting: Hosting,
    calendar: events.LocalCalendar,
    reply: InboundReply,
    *,
    mailbox: str | None,
    mail: bytes,
) -> InboundAnswer:
    # Of the calendar now, or when the guests were invited: they answer whom their invitation names.
    organizers = await find_organizers(session, calendar.calendar_id, reply.uid)
    known = {fold_address(email) for email in (organizer_of(calendar).email, *organizers)}
    if mailbox is not None and fold_address(mailbox) not in known:
        return _ignored("The event's organizer is another mailbox.")
    if reply.organizer_email is not None and fold_address(reply.organizer_email) not in known:
        return _ignored("The reply is to another organizer.")
    answers = [one for one in (reply, *reply.others) if one.partstat != "needs_action"]
    if not answers:
        return _ignored("The reply does not say an answer.")
    mark = sha256((reply.message_id or "").encode() or mail).digest()
    if not await events.note_inbound_reply(session, calendar.calendar_id, mark):
        return _ignored("This mail was taken in before.")
    entries = await events.load_entries(session, calendar.calendar_id, reply.uid)
    recorded = [
        await record_answer(
            session,
            hosting,
            calendar,
            Answer(
                uid=one.uid,
                slot=_slot(one, entries[""]) if "" in entries else "",
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
    sentences = {
        "unchanged": "The answer was the same before.",
        "stale": "A newer answer was applied before.",
        "unknown_event": "The event has no such instance.",
        "cancelled": "The event was cancelled.",
        "not_invited": "The sender is not invited to this event.",
        "over": "The event is over.",
    }
    return InboundAnswer(status="applied") if "applied" in recorded else _ignored(sentences[recorded[0]])


def _slot(reply: InboundReply, series: Entry) -> str:
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


def _ignored(reason: str) -> InboundAnswer:
    return InboundAnswer(status="ignored", reason=reason)
