"""The lanes in which mails wait: their leases and holds (docs/adr/0005-mail-outbox-and-lanes.md)."""

from datetime import timedelta

from sqlalchemy import (
    and_,
    func,
    or_,
    text,
    update,
)

from app.core.db import Session
from app.models import InvitationMail, MailLane

_mail = InvitationMail

ALL_MESSAGES = "messages"  # the lane that stands for all mailboxes together


async def release_lane(session: Session, lane: str, lease_token: str) -> None:
    """End the lease of a lane, if it is still this one: the next mail may be sent."""
    await session.execute(
        update(MailLane)
        .where(MailLane.key == lane, MailLane.lease_token == lease_token)
        .values(lease_token=None, leased_until=None)
        .execution_options(synchronize_session=False)
    )


async def end_probe(session: Session, lease_token: str) -> None:
    """End a probe of Messages without a result, if the lease is still this one: another mail may probe."""
    await session.execute(
        update(MailLane)
        .where(MailLane.key == ALL_MESSAGES, MailLane.lease_token == lease_token)
        .values(lease_token=None, held_until=func.clock_timestamp())
        .execution_options(synchronize_session=False)
    )


# Begins or extends a hold.
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
        lease_token = CASE WHEN known.key = '{ALL_MESSAGES}' THEN NULL ELSE known.lease_token END,
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
    """Hold a lane, or with `key` None all of Messages; each hold that follows another is twice as long.

    It lasts at least `wait_seconds`, and at most `longest_seconds`.
    """
    await session.execute(
        _HOLD,
        {
            "key": key or ALL_MESSAGES,
            "wait": timedelta(seconds=max(wait_seconds, first_seconds)),
            "first": timedelta(seconds=first_seconds),
            "longest": timedelta(seconds=longest_seconds),
            "reason": reason,
        },
    )


async def end_holds(session: Session, lane: str, lease_token: str, *, by_messages: bool) -> None:
    """End the lease and hold of a lane after a mail was accepted; `by_messages`: of all mailboxes too."""
    is_own = and_(MailLane.key == lane, MailLane.lease_token == lease_token)
    is_of_all = and_(MailLane.key == ALL_MESSAGES, MailLane.hold_count > 0)
    await session.execute(
        update(MailLane)
        .where(or_(is_own, is_of_all) if by_messages else is_own)
        .values(lease_token=None, leased_until=None, held_until=None, hold_count=0, hold_reason=None)
        .execution_options(synchronize_session=False)
    )
