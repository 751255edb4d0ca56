"""The log of mails: its pages, what did not arrive, sending again, and the counts of the outbox."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    and_,
    exists,
    func,
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
from app.invitations.repository.lanes import ALL_MESSAGES
from app.models import CalendarEvent, InvitationMail, MailLane
from app.models.invitation import LANE

_mail = InvitationMail

_NEWEST = Ordering("-created_at", _mail.created_at.expression, _mail.id.expression, descending=True)


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A guest to whom a mail could not be sent. `recurrence_id` is None if it is about the whole event."""

    recurrence_id: datetime | None
    email: str
    method: str
    error: str | None


# The failed mails that no later mail about the same event or instance replaced.
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
    """Return the guests whom no later mail about the same has reached."""
    rows = await session.execute(_UNDELIVERED, {"calendar_id": calendar_id, "event_uid": event_uid})
    return [Undelivered(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """The event that a log is about. `original_start_time` is set for an instance of a series."""

    calendar_id: str
    uid: str
    original_start_time: datetime | None


async def find_event(session: AnySession, project_id: str, event_id: str) -> LoggedEvent | None:
    """Return the project's event, deleted or not."""
    event = CalendarEvent
    statement = select(event.calendar_id, func.coalesce(event.ical_uid, ""), event.original_start_time).where(
        event.id == event_id, event.project_id == project_id
    )
    row = (await session.execute(statement)).one_or_none()
    return None if row is None else LoggedEvent(*row)


class LoggedMail(NamedTuple):
    """A mail of the log, and the hold that it waits for, if there is one."""

    mail: InvitationMail
    held_until: datetime | None
    hold_reason: str | None


async def list_mails(
    session: AnySession, event: LoggedEvent, *, cursor: str | None, limit: int
) -> Page[LoggedMail]:
    """Return a page of mails, newest first; for an instance also those about its series.

    Raises BadQuery for a bad cursor.
    """
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
                of_all.key == ALL_MESSAGES,
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
    rows = [LoggedMail(*row) for row in await session.execute(seek(statement, _NEWEST, place, limit))]
    return page_of(rows, _NEWEST, place, limit, place=lambda row: (row.mail.created_at, row.mail.id))


async def lock_mail(session: Session, project_id: str, mail_id: str) -> InvitationMail | None:
    """Return the project's mail, locked: no worker claims it until the transaction ends."""
    return await session.scalar(
        select(_mail)
        .where(_mail.id == mail_id, _mail.project_id == project_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


async def has_later_mail(session: Session, mail: InvitationMail) -> bool:
    """Return whether there is a later mail to this guest about the same event or instance."""
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
    """Make the mail due now, before others of its lane and in spite of a hold, without attempts so far."""
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


# Counts of the mails that are not sent.
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
