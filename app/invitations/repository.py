"""SQL of the outbox of mails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    Text,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import aliased, defer

from app.core.backlog import Backlog
from app.core.db import AnySession, Session
from app.core.pagination import Cursor, Ordering, Page, page_of, seek
from app.core.wakeups import wake_after_commit
from app.models import CalendarEvent, InvitationMail, MailLane
from app.models.invitation import LANE

_mail = InvitationMail
_ALL_MESSAGES = "messages"  # the lane that stands for all mailboxes together

_NEWEST = Ordering("-created_at", _mail.created_at.expression, _mail.id.expression, descending=True)


# Writing


@dataclass(frozen=True, slots=True)
class Thread:
    """The thread of the last REQUEST or CANCEL that a recipient has had, or will, about an event.

    `id`: the Message-ID of its first mail. `last_method`: None where all were about other instances. `subject`: None if
    written by a release that did not note it.
    """

    id: str
    subject: str | None
    last_method: str | None


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
    return {row.recipient_key: Thread(row.id, row.subject, row.last_method) for row in rows}


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
        wake_after_commit(session, "mails")


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


class Shown(NamedTuple):
    """A mail of the log, and the hold that it waits for if there is one."""

    mail: InvitationMail
    held_until: datetime | None
    hold_reason: str | None


async def list_mails(
    session: AnySession, event: EventOfMails, *, cursor: str | None, limit: int
) -> Page[Shown]:
    """Of an instance, those about its series too. Newest first. Raises BadQuery for a bad cursor."""
    place = Cursor.decode(cursor, ordering=_NEWEST.name) if cursor is not None else None
    own, of_all = aliased(MailLane), aliased(MailLane)
    is_waiting = and_(_mail.status == "pending", _mail.lease_token.is_(None), ~_mail.goes_first)
    lane: ColumnElement[str] = literal_column(LANE.replace("position", "invitation_mails.position"))
    statement = (
        select(
            _mail,
            func.greatest(own.held_until, of_all.held_until).label("held_until"),
            func.coalesce(own.hold_reason, of_all.hold_reason).label("hold_reason"),
        )
        .outerjoin(own, and_(is_waiting, own.key == lane, own.held_until > func.now()))
        .outerjoin(
            of_all,
            and_(
                is_waiting,
                _mail.mailbox_id.is_not(None),
                of_all.key == _ALL_MESSAGES,
                of_all.held_until > func.now(),
            ),
        )
        .where(_mail.calendar_id == event.calendar_id, _mail.event_uid == event.uid)
        .options(defer(_mail.mail, raiseload=True))
    )
    if event.original_start_time is not None:
        statement = statement.where(
            or_(_mail.recurrence_id.is_(None), _mail.recurrence_id == event.original_start_time)
        )
    rows = [Shown(*row) for row in await session.execute(seek(statement, _NEWEST, place, limit))]
    return page_of(rows, _NEWEST, place, limit, place=lambda row: (row.mail.created_at, row.mail.id))


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
    """Makes the mail due now, before all others of its lane and in spite of a hold, as if it had never been tried."""
    wake_after_commit(session, "mails")
    return (
        await session.scalars(
            update(_mail)
            .where(_mail.id == mail_id)
            .values(
                status="pending",
                next_attempt_at=func.now(),
                goes_first=True,
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


# Sending


@dataclass(frozen=True, slots=True)
class DueMail:
    """A claimed mail. `open_submits`: earlier submits of which nobody knows how they ended.

    `seconds_left`: until it is given up; below 0 afterwards. `follows_failure`: an earlier mail about the event to this
    person has failed.
    """

    id: str
    project_id: str
    lane: str
    lease_token: str
    calendar_id: str
    event_uid: str
    method: str
    mailbox_id: str | None
    sender_email: str
    owner_email: str
    recipient_email: str
    message_id: str
    mail: bytes
    attempt_count: int
    open_submits: int
    seconds_left: float
    follows_failure: bool


# Mails of one recipient about one event go out in their order: a late invitation must not undo a cancellation. To the
# organizer, one guest's answers do not wait for another's; older releases did not note whose answer it is.
_IS_BEHIND = """EXISTS (
    SELECT FROM invitation_mails AS earlier
    WHERE earlier.calendar_id = mail.calendar_id AND earlier.event_uid = mail.event_uid
      AND earlier.recipient_key = mail.recipient_key AND earlier.position < mail.position
      AND earlier.status = 'pending' AND coalesce(earlier.replying_key = mail.replying_key, true)
)"""
_LANE_OF_MAIL = LANE.replace("mailbox_id", "mail.mailbox_id").replace("owner_email", "mail.owner_email")
_LANE_OF_MAIL = _LANE_OF_MAIL.replace("position", "mail.position")

# The next mail of a lane for a project: one asked for by hand, else the one that is due longest. `place` is the
# row that names project_id, lane and is_held.
_HEAD = f"""coalesce(
    (
        SELECT mail.id FROM invitation_mails AS mail
        WHERE mail.status = 'pending' AND mail.goes_first AND {_LANE_OF_MAIL} = place.lane
          AND mail.project_id = place.project_id AND mail.next_attempt_at <= now() AND NOT {_IS_BEHIND}
        ORDER BY mail.position LIMIT 1
    ),
    CASE WHEN NOT place.is_held THEN (
        SELECT mail.id FROM invitation_mails AS mail
        WHERE mail.status = 'pending' AND mail.project_id = place.project_id AND {_LANE_OF_MAIL} = place.lane
          AND mail.next_attempt_at <= now() AND NOT {_IS_BEHIND}
        ORDER BY mail.next_attempt_at, mail.position LIMIT 1
    ) END
)"""  # noqa: S608 - all parts are above
_HOLDS = f"""
    LEFT JOIN mail_lanes AS own ON own.key = found.lane
    LEFT JOIN mail_lanes AS of_all ON of_all.key = '{_ALL_MESSAGES}' AND found.lane LIKE 'mailbox:%'
"""
_IS_HELD = "(coalesce(own.held_until > now(), false) OR coalesce(of_all.held_until > now(), false))"

# From lane to lane by the index, whatever waits in them; then one look into each that is free. Turns go round the
# projects, and within a project round its lanes.
READY = text(
    f"""
    WITH RECURSIVE found AS (
        (
            SELECT mail.project_id, {_LANE_OF_MAIL} AS lane FROM invitation_mails AS mail
            WHERE mail.status = 'pending' ORDER BY 1, 2 LIMIT 1
        )
        UNION ALL
        SELECT following.project_id, following.lane FROM found CROSS JOIN LATERAL (
            SELECT mail.project_id, {_LANE_OF_MAIL} AS lane FROM invitation_mails AS mail
            WHERE mail.status = 'pending' AND (mail.project_id, {_LANE_OF_MAIL}) > (found.project_id, found.lane)
            ORDER BY 1, 2 LIMIT 1
        ) AS following
    ), place AS (
        SELECT found.*, own.served_at, of_project.served_at AS project_served_at, {_IS_HELD} AS is_held,
               found.lane LIKE 'smtp:%' AS by_smtp,
               coalesce(of_all.hold_count > 0, false) AS is_probe
        FROM found {_HOLDS}
        LEFT JOIN mail_lanes AS of_project ON of_project.key = 'project:' || found.project_id
        WHERE own.leased_until IS NULL OR own.leased_until <= now()
    ), ready AS (
        SELECT *, row_number() OVER (
            PARTITION BY by_smtp, project_id ORDER BY served_at NULLS FIRST, lane
        ) AS turn
        FROM place WHERE {_HEAD} IS NOT NULL
    ), ranked AS (
        SELECT *, row_number() OVER (
            PARTITION BY by_smtp ORDER BY turn, project_served_at NULLS FIRST, served_at NULLS FIRST, lane
        ) AS rank
        FROM ready
    )
    SELECT project_id, lane, by_smtp, is_held, is_probe FROM ranked
    WHERE rank <= CASE WHEN by_smtp THEN CAST(:by_smtp AS int) ELSE CAST(:by_messages AS int) END
    ORDER BY rank
    """  # noqa: S608 - all parts are above
)
_BEGIN_PROBE = text(
    f"""
    UPDATE mail_lanes SET held_until = now() + CAST(:lease_for AS interval), lease_token = :lease_token
    WHERE key = '{_ALL_MESSAGES}' AND hold_count > 0 AND held_until <= now()
    RETURNING key
    """  # noqa: S608 - a constant
)
_LEASE_LANES = text(
    """
    INSERT INTO mail_lanes AS known (key, lease_token, leased_until, served_at)
    SELECT lane, :lease_token, now() + CAST(:lease_for AS interval), clock_timestamp()
    FROM unnest(:lanes) AS given (lane) ORDER BY lane
    ON CONFLICT (key) DO UPDATE
    SET lease_token = excluded.lease_token, leased_until = excluded.leased_until, served_at = excluded.served_at
    WHERE known.leased_until IS NULL OR known.leased_until <= now()
    RETURNING key
    """
).bindparams(bindparam("lanes", type_=ARRAY(Text())))
_CLAIM = text(
    f"""
    WITH place AS (
        SELECT found.*, {_IS_HELD} AND NOT found.is_probe AS is_held
        FROM unnest(:projects, :lanes, :probes) AS found (project_id, lane, is_probe) {_HOLDS}
    ), due AS (
        SELECT id FROM invitation_mails
        WHERE id IN (SELECT {_HEAD} FROM place) AND status = 'pending' AND next_attempt_at <= now()
        FOR UPDATE SKIP LOCKED
    )
    UPDATE invitation_mails AS mail
    SET lease_token = :lease_token, next_attempt_at = clock_timestamp() + CAST(:lease_for AS interval),
        attempt_count = mail.attempt_count + 1, goes_first = false
    FROM due WHERE mail.id = due.id
    RETURNING mail.id, mail.project_id, {_LANE_OF_MAIL} AS lane, mail.lease_token, mail.calendar_id, mail.event_uid,
        mail.method, mail.mailbox_id, mail.sender_email, mail.owner_email, mail.recipient_email, mail.message_id,
        mail.mail, mail.attempt_count, mail.open_submits,
        CAST(extract(epoch FROM mail.give_up_at - clock_timestamp()) AS float) AS seconds_left,
        EXISTS (
            SELECT FROM invitation_mails AS earlier
            WHERE earlier.calendar_id = mail.calendar_id AND earlier.event_uid = mail.event_uid
              AND earlier.recipient_key = mail.recipient_key AND earlier.status = 'failed'
        ) AS follows_failure
    """  # noqa: S608 - all parts are above
).bindparams(
    bindparam("projects", type_=ARRAY(Text())),
    bindparam("lanes", type_=ARRAY(Text())),
    bindparam("probes", type_=ARRAY(Boolean())),
)
_NOTE_TURNS = text(
    """
    INSERT INTO mail_lanes (key, served_at)
    SELECT 'project:' || project_id, clock_timestamp() FROM unnest(:projects) AS given (project_id) ORDER BY project_id
    ON CONFLICT (key) DO UPDATE SET served_at = excluded.served_at
    """
).bindparams(bindparam("projects", type_=ARRAY(Text())))


async def claim_due(
    session: Session, *, by_messages: int, by_smtp: int, lease_token: str, lease_for: timedelta
) -> list[DueMail]:
    """Due mails that nobody else works on, under a lease: up to so many of each way out, and one of a lane.

    A lane has one lease for all workers, so that a mailbox has one submit at a time. Lanes that are held are passed
    by, but for mails that were asked for by hand. While all of Messages was held, one mail alone goes out to see.
    """
    probe = None
    ready = (await session.execute(READY, {"by_messages": by_messages, "by_smtp": by_smtp})).all()
    if any(place.is_probe and not place.is_held for place in ready):
        is_ours = await session.scalar(_BEGIN_PROBE, {"lease_for": lease_for, "lease_token": lease_token})
        probe = next(place for place in ready if place.is_probe and not place.is_held) if is_ours else None
        ready = [place for place in ready if not place.is_probe or place.is_held or place is probe]
    places: dict[str, Any] = {}
    for place in ready:
        places.setdefault(place.lane, place)
    if not places:
        return []
    leased = set(
        await session.scalars(
            _LEASE_LANES,
            {"lanes": list(places), "lease_token": lease_token, "lease_for": lease_for},
        )
    )
    mine = [place for lane, place in places.items() if lane in leased]
    rows = await session.execute(
        _CLAIM,
        {
            "projects": [place.project_id for place in mine],
            "lanes": [place.lane for place in mine],
            "probes": [place.is_probe and not place.is_held for place in mine],
            "lease_token": lease_token,
            "lease_for": lease_for,
        },
    )
    found = [DueMail(**row) for row in rows.mappings()]
    await session.execute(_NOTE_TURNS, {"projects": sorted({mail.project_id for mail in found})})
    if probe is not None and probe.lane not in {mail.lane for mail in found}:
        await end_probe(session, lease_token)
    for lane in sorted(leased - {mail.lane for mail in found}):  # somebody else was faster
        await release_lane(session, lane, lease_token)
    return found


async def release_lane(session: Session, lane: str, lease_token: str) -> None:
    """Lets the lane's next mail go, if this lease still has it."""
    await session.execute(
        update(MailLane)
        .where(MailLane.key == lane, MailLane.lease_token == lease_token)
        .values(lease_token=None, leased_until=None)
        .execution_options(synchronize_session=False)
    )


async def end_probe(session: Session, lease_token: str) -> None:
    """If this lease was to find out whether Messages can be asked again: it has not, so the next one may at once."""
    await session.execute(
        update(MailLane)
        .where(MailLane.key == _ALL_MESSAGES, MailLane.lease_token == lease_token)
        .values(lease_token=None, held_until=func.clock_timestamp())
        .execution_options(synchronize_session=False)
    )


_HOLD = text(
    f"""
    INSERT INTO mail_lanes AS known (key, held_until, hold_count, hold_reason)
    VALUES (:key, clock_timestamp() + least(CAST(:longest AS interval), CAST(:wait AS interval)), 1, :reason)
    ON CONFLICT (key) DO UPDATE
    SET held_until = clock_timestamp() + least(
            CAST(:longest AS interval),
            greatest(CAST(:wait AS interval), CAST(:first AS interval) * 2 ^ least(known.hold_count, 20))
        ),
        hold_count = known.hold_count + 1,
        lease_token = CASE WHEN known.key = '{_ALL_MESSAGES}' THEN NULL ELSE known.lease_token END,
        hold_reason = excluded.hold_reason
    """  # noqa: S608 - a constant
)


async def hold(
    session: Session,
    key: str | None,
    *,
    wait_seconds: float,
    first_seconds: float,
    longest_seconds: float,
    reason: str,
) -> None:
    """Nothing goes out of this lane (None: through Messages) for so long; longer with each hold that follows another."""
    await session.execute(
        _HOLD,
        {
            "key": key or _ALL_MESSAGES,
            "wait": timedelta(seconds=max(wait_seconds, first_seconds)),
            "first": timedelta(seconds=first_seconds),
            "longest": timedelta(seconds=longest_seconds),
            "reason": reason,
        },
    )


async def end_holds(session: Session, due: DueMail) -> None:
    """A mail of this lane was taken: nothing is held any more, and the next may go."""
    is_own = and_(MailLane.key == due.lane, MailLane.lease_token == due.lease_token)
    is_of_all = and_(MailLane.key == _ALL_MESSAGES, MailLane.hold_count > 0)
    await session.execute(
        update(MailLane)
        .where(is_own if due.mailbox_id is None else or_(is_own, is_of_all))
        .values(lease_token=None, leased_until=None, held_until=None, hold_count=0, hold_reason=None)
        .execution_options(synchronize_session=False)
    )


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


_BACKLOG = text(
    """
    SELECT count(*) FILTER (WHERE status = 'pending') AS pending,
           count(*) FILTER (WHERE lease_token IS NOT NULL AND next_attempt_at > now()) AS in_flight,
           count(*) FILTER (WHERE status = 'failed') AS failed,
           count(*) FILTER (WHERE status = 'failed' AND finished_at > now() - interval '1 day') AS failed_last_day,
           min(created_at) FILTER (WHERE status = 'pending') AS oldest_at,
           min(next_attempt_at) FILTER (WHERE lease_token IS NULL OR next_attempt_at <= now()) AS next_attempt_at,
           count(*) FILTER (WHERE status = 'unknown') AS unknown
    FROM invitation_mails
    WHERE status <> 'sent' AND (CAST(:project_id AS text) IS NULL OR project_id = :project_id)
    """
)
_LAST_ERROR = text(
    """
    SELECT last_error FROM invitation_mails
    WHERE status IN ('pending', 'failed') AND last_error IS NOT NULL
      AND (CAST(:project_id AS text) IS NULL OR project_id = :project_id)
    ORDER BY updated_at DESC LIMIT 1
    """
)


async def count_backlog(session: AnySession, project_id: str | None) -> tuple[Backlog, int]:
    """Return the mails that are not sent, and how many ended as `unknown`; of one project, or of all."""
    row = (await session.execute(_BACKLOG, {"project_id": project_id})).mappings().one()
    values = dict(row)
    unknown = values.pop("unknown")
    return Backlog(**values), unknown


async def find_last_error(session: AnySession, project_id: str | None) -> str | None:
    """Return the newest error among the mails that are not sent."""
    error: str | None = await session.scalar(_LAST_ERROR, {"project_id": project_id})
    return error
