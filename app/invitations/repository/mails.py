"""Writing mails into the outbox, and what was sent about an event before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    Text,
    bindparam,
    case,
    func,
    insert,
    or_,
    select,
    text,
)

from app.core.db import AnySession, Session
from app.core.wakeups import wake_after_commit
from app.models import InvitationMail

_mail = InvitationMail


@dataclass(frozen=True, slots=True)
class Thread:
    """The thread of the last REQUEST or CANCEL to a recipient about an event, sent or waiting.

    `id` is the Message-ID of its first mail. `subject` is None if an older release wrote the mail. `last_method` is
    None if all mails were about other instances.
    """

    id: str
    subject: str | None
    last_method: str | None


# For each recipient, the thread of the last mail about the event that did not fail.
_THREADS = text(
    """
    SELECT recipient_key,
           (array_agg(coalesce(thread_id, message_id) ORDER BY position DESC))[1] AS id,
           (array_agg(thread_subject ORDER BY position DESC))[1] AS subject,
           (array_agg(method ORDER BY position DESC) FILTER (
               WHERE recurrence_id IS NULL OR recurrence_id = CAST(:recurrence_id AS timestamptz)
           ))[1] AS last_method
    FROM invitation_mails
    WHERE calendar_id = :calendar_id AND event_uid = :event_uid AND recipient_key = ANY(:recipient_keys)
      AND status <> 'failed' AND method IN ('REQUEST', 'CANCEL')
    GROUP BY recipient_key
    """
).bindparams(bindparam("recipient_keys", type_=ARRAY(Text())))


async def load_threads(
    session: Session,
    calendar_id: str,
    event_uid: str,
    recurrence_id: datetime | None,
    recipient_keys: Sequence[str],
) -> dict[str, Thread]:
    """Return threads by recipient key, without recipients who have none.

    Mails about other instances count for the thread, but not for `last_method`.
    """
    rows = await session.execute(
        _THREADS,
        {
            "calendar_id": calendar_id,
            "event_uid": event_uid,
            "recurrence_id": recurrence_id,
            "recipient_keys": list(recipient_keys),
        },
    )
    return {row.recipient_key: Thread(row.id, row.subject, row.last_method) for row in rows}


async def find_highest_sequence(session: AnySession, calendar_id: str, event_uid: str) -> int:
    """Return the highest SEQUENCE of mails about an event and its instances; -1 without mails."""
    statement = select(func.max(_mail.sequence)).where(
        _mail.calendar_id == calendar_id, _mail.event_uid == event_uid, _mail.method != "REPLY"
    )
    found: int | None = await session.scalar(statement)
    return -1 if found is None else found


async def find_sent_sequence(
    session: AnySession, calendar_id: str, event_uid: str, recurrence_id: datetime | None, recipient_key: str
) -> int:
    """Return the highest SEQUENCE sent to this guest about the event or this instance; -1 without mails."""
    statement = select(func.max(_mail.sequence)).where(
        _mail.calendar_id == calendar_id,
        _mail.event_uid == event_uid,
        _mail.recipient_key == recipient_key,
        _mail.method == "REQUEST",
        or_(_mail.recurrence_id.is_(None), _mail.recurrence_id == recurrence_id),
    )
    found: int | None = await session.scalar(statement)
    return -1 if found is None else found


async def find_sent_instances(
    session: AnySession, calendar_id: str, event_uid: str
) -> dict[str, set[datetime]]:
    """Return the original starts of the instances that had mails of their own, by recipient key."""
    statement = (
        select(_mail.recipient_key, _mail.recurrence_id)
        .where(
            _mail.calendar_id == calendar_id,
            _mail.event_uid == event_uid,
            _mail.method != "REPLY",
            _mail.recurrence_id.is_not(None),
        )
        .distinct()
    )
    sent: dict[str, set[datetime]] = {}
    for key, recurrence_id in await session.execute(statement):
        if recurrence_id is not None:
            sent.setdefault(key, set()).add(recurrence_id)
    return sent


async def find_organizers(session: AnySession, calendar_id: str, event_uid: str) -> list[str]:
    """Return the ORGANIZER addresses of the invitations to this event: the mailbox, or by SMTP the owner."""
    statement = (
        select(case((_mail.mailbox_id.is_(None), _mail.owner_email), else_=_mail.sender_email))
        .where(_mail.calendar_id == calendar_id, _mail.event_uid == event_uid, _mail.method == "REQUEST")
        .distinct()
    )
    return list(await session.scalars(statement))


async def insert_mails(
    session: Session, rows: Sequence[Mapping[str, Any]], *, due_at: datetime | None = None
) -> None:
    """Add mails in the order in which they will be sent; due at `due_at`, or at once."""
    if rows:
        at = func.now() if due_at is None else due_at
        await session.execute(insert(_mail).values(next_attempt_at=at), list(rows))
        wake_after_commit(session, "mails")


# The replies of one guest that no worker has and that were not submitted.
_DELETE_WAITING_REPLY = text(
    """
    DELETE FROM invitation_mails
    WHERE id IN (
        SELECT id FROM invitation_mails
        WHERE calendar_id = :calendar_id AND event_uid = :event_uid AND recipient_key = ANY(:recipient_keys)
          AND replying_key = :replying_key AND recurrence_id IS NOT DISTINCT FROM CAST(:recurrence_id AS timestamptz)
          AND status = 'pending' AND lease_token IS NULL AND open_submits = 0
        FOR UPDATE SKIP LOCKED
    )
    RETURNING next_attempt_at
    """
).bindparams(bindparam("recipient_keys", type_=ARRAY(Text())))

# When the next reply of one guest may be sent, if `most` of them were written within the time.
_NEXT_REPLY = text(
    """
    SELECT created_at + CAST(:within AS interval) FROM invitation_mails
    WHERE calendar_id = :calendar_id AND event_uid = :event_uid AND recipient_key = ANY(:recipient_keys)
      AND replying_key = :replying_key AND recurrence_id IS NOT DISTINCT FROM CAST(:recurrence_id AS timestamptz)
      AND created_at > now() - CAST(:within AS interval)
    ORDER BY created_at DESC OFFSET :most - 1 LIMIT 1
    """
).bindparams(bindparam("recipient_keys", type_=ARRAY(Text())))


async def replace_waiting_reply(
    session: Session,
    *,
    calendar_id: str,
    event_uid: str,
    recurrence_id: datetime | None,
    recipient_keys: Sequence[str],
    replying_key: str,
    most: int,
    within: timedelta,
) -> datetime | None:
    """Delete the waiting REPLY of this guest, and return when the newer one is due; None for now.

    At most `most` replies of one guest to an event are sent `within` that time. A mail that a worker has claimed, or
    that may have been accepted, stays.
    """
    values = {
        "calendar_id": calendar_id,
        "event_uid": event_uid,
        "recurrence_id": recurrence_id,
        "recipient_keys": list(recipient_keys),
        "replying_key": replying_key,
    }
    waited = list(await session.scalars(_DELETE_WAITING_REPLY, values))
    next_at: datetime | None = await session.scalar(_NEXT_REPLY, {**values, "most": most, "within": within})
    return max((at for at in (*waited, next_at) if at is not None), default=None)
