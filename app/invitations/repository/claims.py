"""Claiming due mails under a lease, and writing the result of an attempt."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    Boolean,
    Text,
    bindparam,
    func,
    text,
    update,
)

from app.core.db import Session
from app.invitations.repository.lanes import ALL_MESSAGES, end_probe, release_lane
from app.models import InvitationMail
from app.models.invitation import LANE

_mail = InvitationMail


@dataclass(frozen=True, slots=True)
class DueMail:
    """A claimed mail.

    `open_submits` counts earlier submits without a response. `seconds_left` is the time until the mail is given up,
    negative afterwards. `follows_failure`: an earlier mail to this recipient about the event has failed.
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


# Whether an earlier mail to the recipient about the event waits: a late invitation must not undo a cancellation.
# Replies of different guests to one organizer do not wait for each other. Older rows have no `replying_key`.
_IS_BEHIND = """EXISTS (
    SELECT FROM invitation_mails AS earlier
    WHERE earlier.calendar_id = mail.calendar_id AND earlier.event_uid = mail.event_uid
      AND earlier.recipient_key = mail.recipient_key AND earlier.position < mail.position
      AND earlier.status = 'pending' AND coalesce(earlier.replying_key = mail.replying_key, true)
)"""
_LANE_OF_MAIL = LANE.replace("mailbox_id", "mail.mailbox_id").replace("owner_email", "mail.owner_email")
_LANE_OF_MAIL = _LANE_OF_MAIL.replace("position", "mail.position")

# The next mail of a project in a lane: one that was requested by hand, else the one that is due longest.
# `place` is the row with project_id, lane and is_held.
_NEXT_MAIL = f"""coalesce(
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
    LEFT JOIN mail_lanes AS of_all ON of_all.key = '{ALL_MESSAGES}' AND found.lane LIKE 'mailbox:%'
"""
_IS_HELD = "(coalesce(own.held_until > now(), false) OR coalesce(of_all.held_until > now(), false))"

# The lanes that have a mail to send, in turn: projects take turns, and within a project its lanes.
# A loose index scan finds the lanes, so that the cost does not grow with the mails that wait in them.
READY_LANES = text(
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
        FROM place WHERE {_NEXT_MAIL} IS NOT NULL
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
# Takes the right to try one mail after a hold of all of Messages.
_BEGIN_PROBE = text(
    f"""
    UPDATE mail_lanes SET held_until = now() + CAST(:lease_for AS interval), lease_token = :lease_token
    WHERE key = '{ALL_MESSAGES}' AND hold_count > 0 AND held_until <= now()
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
# Claims the next mail of each leased lane.
_CLAIM = text(
    f"""
    WITH place AS (
        SELECT found.*, {_IS_HELD} AND NOT found.is_probe AS is_held
        FROM unnest(:projects, :lanes, :probes) AS found (project_id, lane, is_probe) {_HOLDS}
    ), due AS (
        SELECT id FROM invitation_mails
        WHERE id IN (SELECT {_NEXT_MAIL} FROM place) AND status = 'pending' AND next_attempt_at <= now()
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
# Notes when projects had their turn.
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
    """Claim due mails under a lease: up to `by_messages` and `by_smtp`, one of each lane.

    A lane has one lease for all workers, so that a mailbox has one submit at a time. A lane that is held is skipped,
    except for mails that were requested by hand. After a hold of all of Messages, one mail is claimed as a probe.
    """
    probe = None
    ready = (await session.execute(READY_LANES, {"by_messages": by_messages, "by_smtp": by_smtp})).all()
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
    for lane in sorted(leased - {mail.lane for mail in found}):  # another worker was faster
        await release_lane(session, lane, lease_token)
    return found


async def begin_submit(session: Session, mail_id: str, lease_token: str, *, lease_for: timedelta) -> bool:
    """Count the submit that is about to be made; False if the lease is lost, and nothing may be sent.

    The lease is extended by `lease_for`: if this process dies, no other worker tries the mail before.
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
    """End a mail as sent, failed or unknown; False if the lease is lost."""
    return await _settle(
        session,
        due,
        {
            "status": status,
            "last_error": error,
            "messages_id": messages_id,
            "open_submits": open_submits,
            # Mails that may not have arrived are kept for `requeue`.
            "mail": None if status == "sent" else _mail.mail,
            "next_attempt_at": None,
            "finished_at": func.clock_timestamp(),
        },
    )


async def retry_later(
    session: Session, due: DueMail, *, wait_seconds: float, error: str, open_submits: int
) -> bool:
    """Schedule another attempt after `wait_seconds`; False if the lease is lost."""
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
