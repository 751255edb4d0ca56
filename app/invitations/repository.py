"""SQL of the outbox of mails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ARRAY, Text, and_, bindparam, case, exists, func, insert, or_, select, text, update
from sqlalchemy.orm import aliased, defer

from app.core.db import AnySession, Session
from app.core.pagination import Cursor, Ordering, Page, page_of, seek
from app.models import CalendarEvent, InvitationMail

_mail = InvitationMail

_NEWEST = Ordering("-created_at", _mail.created_at.expression, _mail.id.expression, descending=True)


# Writing


@dataclass(frozen=True, slots=True)
class Thread:
    """What a recipient has had, or will, about an event: the Message-ID of the first mail, and the last method or None."""

    first_message_id: str
    last_method: str | None


_THREADS = text(
    """
    SELECT recipient_key,
           (array_agg(message_id ORDER BY position))[1] AS first_message_id,
           (array_agg(method ORDER BY position DESC) FILTER (
               WHERE method IN ('REQUEST', 'CANCEL')
                 AND (recurrence_id IS NULL OR recurrence_id = CAST(:recurrence_id AS timestamptz))
           ))[1] AS last_method
    FROM invitation_mails
    WHERE calendar_id = :calendar_id AND event_uid = :event_uid AND recipient_key = ANY(:recipient_keys)
      AND status <> 'failed'
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
    """By recipient key, for those who have had a mail. Mails about other instances count for the thread alone."""
    rows = await session.execute(
        _THREADS,
        {
            "calendar_id": calendar_id,
            "event_uid": event_uid,
            "recurrence_id": recurrence_id,
            "recipient_keys": list(recipient_keys),
        },
    )
    return {row.recipient_key: Thread(row.first_message_id, row.last_method) for row in rows}


async def find_highest_sequence(session: AnySession, calendar_id: str, event_uid: str) -> int:
    """Of all mails about an event, its series and its instances; -1 if there is none."""
    statement = select(func.max(_mail.sequence)).where(
        _mail.calendar_id == calendar_id, _mail.event_uid == event_uid, _mail.method != "REPLY"
    )
    found: int | None = await session.scalar(statement)
    return -1 if found is None else found


async def find_told_sequence(
    session: AnySession, calendar_id: str, event_uid: str, recurrence_id: datetime | None, recipient_key: str
) -> int:
    """The highest that this guest was told of the event, or of its series or this instance; -1 if there is none."""
    statement = select(func.max(_mail.sequence)).where(
        _mail.calendar_id == calendar_id,
        _mail.event_uid == event_uid,
        _mail.recipient_key == recipient_key,
        _mail.method == "REQUEST",
        or_(_mail.recurrence_id.is_(None), _mail.recurrence_id == recurrence_id),
    )
    found: int | None = await session.scalar(statement)
    return -1 if found is None else found


async def find_told_instances(
    session: AnySession, calendar_id: str, event_uid: str
) -> dict[str, set[datetime]]:
    """By recipient key, the original starts of the instances that had a mail of their own."""
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
    told: dict[str, set[datetime]] = {}
    for key, recurrence_id in await session.execute(statement):
        if recurrence_id is not None:
            told.setdefault(key, set()).add(recurrence_id)
    return told


async def find_organizers(session: AnySession, calendar_id: str, event_uid: str) -> list[str]:
    """The ORGANIZERs that invitations to this event have named: the mailbox, or by SMTP the owner."""
    statement = (
        select(case((_mail.mailbox_id.is_(None), _mail.owner_email), else_=_mail.sender_email))
        .where(_mail.calendar_id == calendar_id, _mail.event_uid == event_uid, _mail.method == "REQUEST")
        .distinct()
    )
    return list(await session.scalars(statement))


async def insert_mails(
    session: Session, rows: Sequence[Mapping[str, Any]], *, due_at: datetime | None = None
) -> None:
    """In this order, which is the order of sending. Due at `due_at`, or at once."""
    if rows:
        at = func.now() if due_at is None else due_at
        await session.execute(insert(_mail).values(next_attempt_at=at), list(rows))


_TAKE_PLACE = text(
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

_NEXT_REPLY = text(
    """
    SELECT created_at + CAST(:within AS interval) FROM invitation_mails
    WHERE calendar_id = :calendar_id AND event_uid = :event_uid AND recipient_key = ANY(:recipient_keys)
      AND replying_key = :replying_key AND recurrence_id IS NOT DISTINCT FROM CAST(:recurrence_id AS timestamptz)
      AND created_at > now() - CAST(:within AS interval)
    ORDER BY created_at DESC OFFSET :most - 1 LIMIT 1
    """
).bindparams(bindparam("recipient_keys", type_=ARRAY(Text())))


async def take_place_of_reply(
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
    """Deletes this guest's REPLY that waits, and says when the newer one is due; None: now.

    Of one guest's answers to an event at most `most` are sent `within` that time. A mail that a worker holds, or that
    may have been taken, stays.
    """
    values = {
        "calendar_id": calendar_id,
        "event_uid": event_uid,
        "recurrence_id": recurrence_id,
        "recipient_keys": list(recipient_keys),
        "replying_key": replying_key,
    }
    waited = list(await session.scalars(_TAKE_PLACE, values))
    next_at: datetime | None = await session.scalar(_NEXT_REPLY, {**values, "most": most, "within": within})
    return max((at for at in (*waited, next_at) if at is not None), default=None)


# The log


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A guest whom an invitation or a cancellation could not be sent to; about one instance, or the whole event."""

    recurrence_id: datetime | None
    email: str
    method: str
    error: str | None


_UNDELIVERED = text(
    """
    SELECT recurrence_id, recipient_email, method, last_error
    FROM invitation_mails AS failed
    WHERE calendar_id = :calendar_id AND event_uid = :event_uid AND status = 'failed' AND method <> 'REPLY'
      AND NOT EXISTS (
        SELECT FROM invitation_mails AS later
        WHERE later.calendar_id = failed.calendar_id AND later.event_uid = failed.event_uid
          AND later.recipient_key = failed.recipient_key AND later.position > failed.position
          AND later.method <> 'REPLY' AND later.status <> 'pending'
          AND (later.recurrence_id IS NULL OR later.recurrence_id = failed.recurrence_id)
      )
    ORDER BY position
    """
)


async def find_undelivered(session: AnySession, calendar_id: str, event_uid: str) -> list[Undelivered]:
    """Those whom no later mail about the same has reached."""
    rows = await session.execute(_UNDELIVERED, {"calendar_id": calendar_id, "event_uid": event_uid})
    return [Undelivered(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class EventOfMails:
    """What tells an event's mails; `original_start_time` only of an instance."""

    calendar_id: str
    uid: str
    original_start_time: datetime | None


async def find_event(session: AnySession, project_id: str, event_id: str) -> EventOfMails | None:
    """The project's event, deleted or not."""
    event = CalendarEvent
    statement = select(event.calendar_id, func.coalesce(event.ical_uid, ""), event.original_start_time).where(
        event.id == event_id, event.project_id == project_id
    )
    row = (await session.execute(statement)).one_or_none()
    return None if row is None else EventOfMails(*row)


async def list_mails(
    session: AnySession, event: EventOfMails, *, cursor: str | None, limit: int
) -> Page[InvitationMail]:
    """Of an instance, those about its series too. Newest first. Raises BadQuery for a bad cursor."""
    place = Cursor.decode(cursor, ordering=_NEWEST.name) if cursor is not None else None
    statement = (
        select(_mail)
        .where(_mail.calendar_id == event.calendar_id, _mail.event_uid == event.uid)
        .options(defer(_mail.mail, raiseload=True))
    )
    if event.original_start_time is not None:
        statement = statement.where(
            or_(_mail.recurrence_id.is_(None), _mail.recurrence_id == event.original_start_time)
        )
    rows = (await session.scalars(seek(statement, _NEWEST, place, limit))).all()
    return page_of(rows, _NEWEST, place, limit, place=lambda row: (row.created_at, row.id))


# Sending again


async def lock_mail(session: Session, project_id: str, mail_id: str) -> InvitationMail | None:
    """The project's mail, which no worker claims until the transaction's end."""
    return await session.scalar(
        select(_mail)
        .where(_mail.id == mail_id, _mail.project_id == project_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


async def has_later_mail(session: Session, mail: InvitationMail) -> bool:
    """Whether this mail's guest has had, or will have, a later one about the same."""
    return bool(
        await session.scalar(
            select(
                exists().where(
                    _mail.calendar_id == mail.calendar_id,
                    _mail.event_uid == mail.event_uid,
                    _mail.recipient_key == mail.recipient_key,
                    _mail.position > mail.position,
                    _mail.method != "REPLY",
                    or_(_mail.recurrence_id.is_(None), _mail.recurrence_id == mail.recurrence_id),
                )
            )
        )
    )


async def requeue(session: Session, mail_id: str) -> InvitationMail:
    """Makes the mail due now, as if it had never been tried."""
    return (
        await session.scalars(
            update(_mail)
            .where(_mail.id == mail_id)
            .values(
                status="pending",
                next_attempt_at=func.now(),
                give_up_at=func.clock_timestamp() + timedelta(days=1),
                attempt_count=0,
                open_submits=0,
                last_error=None,
                lease_token=None,
                finished_at=None,
                updated_at=func.clock_timestamp(),
            )
            .returning(_mail)
            .execution_options(populate_existing=True)
        )
    ).one()


async def forget_contents(session: Session, older_than: timedelta) -> None:
    """Of mails that ended before that and were not sent; their rows stay as the log."""
    await session.execute(
        update(_mail)
        .where(
            _mail.status != text("'pending'"),
            _mail.mail.is_not(None),
            _mail.finished_at < func.now() - older_than,
        )
        .values(mail=None)
        .execution_options(synchronize_session=False)
    )


# Sending


@dataclass(frozen=True, slots=True)
class DueMail:
    """A claimed mail. `open_submits`: earlier submits of which nobody knows how they ended.

    `follows_failure`: an earlier mail about the event to this person has failed.
    """

    id: str
    lease_token: str
    calendar_id: str
    event_uid: str
    method: str
    mailbox_id: str | None
    sender_email: str
    owner_email: str
    recipient_email: str
    mail: bytes
    attempt_count: int
    open_submits: int
    give_up_at: datetime
    follows_failure: bool


async def claim_due(
    session: Session, *, by_smtp: bool, limit: int, lease_token: str, lease_for: timedelta
) -> list[DueMail]:
    """Up to `limit` due mails of one way out that nobody else has locked, under a lease.

    A mail waits for the earlier ones to the same recipient about the same event: a late invitation must not undo
    a cancellation.
    """
    earlier = aliased(InvitationMail)
    of_same_guest = and_(
        earlier.calendar_id == _mail.calendar_id,
        earlier.event_uid == _mail.event_uid,
        earlier.recipient_key == _mail.recipient_key,
    )
    is_behind = exists().where(
        of_same_guest, earlier.status == text("'pending'"), earlier.position < _mail.position
    )
    due = (
        select(_mail.id)
        .where(
            _mail.status == text("'pending'"),
            _mail.next_attempt_at <= func.now(),
            _mail.mailbox_id.is_(None) if by_smtp else _mail.mailbox_id.is_not(None),
            ~is_behind,
        )
        .order_by(_mail.next_attempt_at, _mail.position)
        .limit(limit)
        .with_for_update(skip_locked=True, of=_mail)
        .cte("due")
    )
    follows_failure = exists().where(of_same_guest, earlier.status == text("'failed'"))
    rows = await session.execute(
        update(_mail)
        .where(_mail.id.in_(select(due.c.id)))
        .values(
            lease_token=lease_token,
            next_attempt_at=func.clock_timestamp() + lease_for,
            attempt_count=_mail.attempt_count + 1,
        )
        .returning(
            _mail.id,
            _mail.lease_token,
            _mail.calendar_id,
            _mail.event_uid,
            _mail.method,
            _mail.mailbox_id,
            _mail.sender_email,
            _mail.owner_email,
            _mail.recipient_email,
            _mail.mail,
            _mail.attempt_count,
            _mail.open_submits,
            _mail.give_up_at,
            follows_failure.label("follows_failure"),
        )
        .execution_options(synchronize_session=False)
    )
    return [DueMail(**row) for row in rows.mappings()]


async def begin_submit(session: Session, mail_id: str, lease_token: str, *, lease_for: timedelta) -> bool:
    """Notes that a submit is about to go out; False if the lease is lost, and nothing may be sent.

    The lease is renewed: if this process dies, nobody tries again before that.
    """
    found = await session.scalar(
        update(_mail)
        .where(_mail.id == mail_id, _mail.lease_token == lease_token, _mail.next_attempt_at > func.now())
        .values(
            open_submits=_mail.open_submits + 1,
            next_attempt_at=func.clock_timestamp() + lease_for,
        )
        .returning(_mail.id)
        .execution_options(synchronize_session=False)
    )
    return found is not None


async def finish(
    session: Session,
    due: DueMail,
    *,
    status: str,
    error: str | None,
    messages_id: str | None,
    open_submits: int,
) -> bool:
    """The last word on a mail; False if the lease is lost."""
    return await _settle(
        session,
        due,
        {
            "status": status,
            "last_error": error,
            "messages_id": messages_id,
            "open_submits": open_submits,
            # Those that may not have arrived are kept for `requeue`.
            "mail": None if status == "sent" else _mail.mail,
            "next_attempt_at": None,
            "finished_at": func.clock_timestamp(),
        },
    )


async def retry_later(
    session: Session, due: DueMail, *, wait_seconds: float, error: str, open_submits: int
) -> bool:
    """Another attempt after `wait_seconds`; False if the lease is lost."""
    return await _settle(
        session,
        due,
        {
            "last_error": error,
            "open_submits": open_submits,
            "next_attempt_at": func.clock_timestamp() + timedelta(seconds=wait_seconds),
        },
    )


async def _settle(session: Session, due: DueMail, values: Mapping[str, Any]) -> bool:
    settled = await session.scalar(
        update(_mail)
        .where(_mail.id == due.id, _mail.lease_token == due.lease_token)
        .values(**values, lease_token=None, updated_at=func.clock_timestamp())
        .returning(_mail.id)
        .execution_options(synchronize_session=False)
    )
    return settled is not None


_HOLD = text(
    """
    UPDATE invitation_mails SET next_attempt_at = now() + CAST(:wait AS interval)
    WHERE id IN (
        SELECT id FROM invitation_mails
        WHERE status = 'pending' AND lease_token IS NULL AND mailbox_id IS NOT NULL
          AND next_attempt_at < now() + CAST(:wait AS interval)
        ORDER BY id
        FOR UPDATE SKIP LOCKED
    )
    """
)


async def hold_messages(session: Session, *, wait_seconds: float) -> None:
    """No mail through Messages before `wait_seconds` are over: it told us to wait, and counts by channel."""
    await session.execute(_HOLD, {"wait": timedelta(seconds=wait_seconds)})
