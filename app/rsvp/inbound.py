"""Apply replies that come by mail (RFC 5546 section 3.2.3), if the sender is verified."""

import asyncio
import hmac
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from app.core.addresses import fold_address
from app.core.clock import utcnow
from app.core.db import Session, Sessions, transaction
from app.hosted.components import instant, wall
from app.hosted.service import (
    EventComponent,
    LocalCalendar,
    Outcome,
    Reply,
    find_calendars_of_uid,
    load_event,
    lock_calendar,
    note_inbound_reply,
    record_reply,
)
from app.invitations.service import find_organizers
from app.itip.parse import ParsedReply, parse_reply
from app.rsvp.errors import InvalidWebhookToken, LookupFailed, SenderUnverifiable
from app.rsvp.schemas import IgnoredCode, InboundAnswer, ignored
from app.rsvp.senders import SenderKeys, is_signed_by_sender
from app.settings import Settings

Verdict = Literal["pass", "none", "fail"]
"""Of the sender: verified; could not be verified; looks forged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Deliverer of a mail, and what is known of the mail.

    `project_id` None: La Suite Messages. `mailbox`: the receiving mailbox, if it is known. `body_sha256`: the digest,
    in hex, that the mail must have. `is_spam` None: not known yet.
    """

    project_id: str | None
    mailbox: str | None
    is_spam: bool | None = None
    verdict: Verdict | None = None
    body_sha256: str | None = None


def read_webhook_token(token: str, secrets: Sequence[str]) -> tuple[str, str]:
    """Return the mailbox and the mail's SHA-256 (hex) of a JWT that is signed with one of the secrets.

    Raises InvalidWebhookToken.
    """
    for secret in secrets:
        with suppress(JoseError, ValueError, TypeError):
            claims: dict[str, Any] = jwt.decode(token, OctKey.import_key(secret), algorithms=["HS256"]).claims
            break
    else:
        raise InvalidWebhookToken
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
        raise InvalidWebhookToken from None
    digest, mailbox = claims["body_sha256"], claims["sub"]
    if not isinstance(digest, str) or not isinstance(mailbox, str):
        raise InvalidWebhookToken
    return mailbox, digest.lower()


async def ingest_reply(
    sessions: Sessions, settings: Settings, keys: SenderKeys, source: Source, mail: bytes
) -> InboundAnswer:
    """Apply a mailed reply; it is committed when this returns.

    A mail that no retry would fix is ignored, with the reason. Raises InvalidWebhookToken if the mail is not the one
    that the token names, and SenderUnverifiable if the DNS of the sender's domain does not respond.
    """
    if source.body_sha256 is not None:
        digest = sha256(mail).hexdigest()
        if not hmac.compare_digest(source.body_sha256.encode(), digest.encode()):
            raise InvalidWebhookToken("The webhook's token belongs to another body.")
    # In a thread: a mail of many megabytes would hold up other requests.
    reply = await asyncio.to_thread(parse_reply, mail)
    if reply is None:
        return ignored("no_reply")
    if source.is_spam:
        return ignored("spam")
    if source.is_spam is None:
        return ignored("no_spam_verdict")
    async with transaction(sessions) as session:
        calendar_ids = await find_calendars_of_uid(session, reply.uid, source.project_id)
    if not calendar_ids:
        return ignored("unknown_event")
    # Between two transactions: none is open across the DNS queries.
    doubt = await _find_doubt(settings, keys, source, reply, mail)
    if doubt is not None:
        return ignored(doubt)
    async with transaction(sessions) as session:
        for calendar_id in calendar_ids:
            calendar = await lock_calendar(session, calendar_id, source.project_id)
            if calendar is not None:
                return await _apply(session, settings, calendar, reply, mailbox=source.mailbox, mail=mail)
    return ignored("unknown_event")


async def _find_doubt(
    settings: Settings, keys: SenderKeys, source: Source, reply: ParsedReply, mail: bytes
) -> IgnoredCode | None:
    """Return why the sender is not accepted. Raises SenderUnverifiable.

    All guests know the event's UID and the other guests: only the sender's address shows who replies.
    """
    verdicts = {source.verdict, reply.sender_doubt}
    if "fail" in verdicts:
        return "forged"
    accepted = settings.messages_reply_senders
    if "none" in verdicts:
        # Also for an application with an API key: it has checked the sender, with this result.
        return None if accepted == "unverified" and source.project_id is None else "unverified"
    # An application with an API key may change its project's events anyway, so its mails are accepted.
    if source.verdict == "pass" or source.project_id is not None or accepted != "verified":
        return None
    try:
        is_signed = await is_signed_by_sender(mail, reply.from_email, keys)
    except LookupFailed:
        raise SenderUnverifiable from None
    return None if is_signed else "unsigned"


async def _apply(
    session: Session,
    settings: Settings,
    calendar: LocalCalendar,
    reply: ParsedReply,
    *,
    mailbox: str | None,
    mail: bytes,
) -> InboundAnswer:
    # Guests reply to the organizer that their invitation names, which may be an earlier one.
    organizers = await find_organizers(session, calendar.calendar_id, reply.uid)
    known = {fold_address(email) for email in (calendar.organizer.email, *organizers)}
    if mailbox is not None and fold_address(mailbox) not in known:
        return ignored("other_mailbox")
    if reply.organizer_email is not None and fold_address(reply.organizer_email) not in known:
        return ignored("other_organizer")
    replies = [one for one in (reply, *reply.others) if one.partstat != "needs_action"]
    if not replies:
        return ignored("no_answer")
    mark = sha256((reply.message_id or "").encode() or mail).digest()
    if not await note_inbound_reply(session, calendar.calendar_id, mark):
        return ignored("seen_before")
    event = await load_event(session, calendar, reply.uid)
    if event is None:
        return ignored("no_instance")
    outcomes: list[Outcome] = []
    for one in replies:
        recorded = await record_reply(
            session,
            settings,
            event,
            Reply(
                recurrence_key=_recurrence_key(one, event.series),
                email=one.attendee_email,
                response_status=one.partstat,
                sequence=one.sequence,
                # A clock that is ahead must not make later replies stale.
                replied_at=min(one.dtstamp, utcnow()),
            ),
            notify_organizer=False,
        )
        event = recorded.event
        outcomes.append(recorded.outcome)
    if "applied" in outcomes:
        return InboundAnswer(status="applied")
    first = outcomes[0]
    assert first != "applied"
    return ignored("no_instance" if first == "unknown_event" else first)


def _recurrence_key(reply: ParsedReply, series: EventComponent) -> str:
    """Return the key of the instance that is replied to; '' for the event or series.

    A date names the instance of that day. For an all-day series, a time names the instance of its day.
    """
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
