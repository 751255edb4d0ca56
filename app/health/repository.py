"""What the health endpoints read from the database: a cheap statement each."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, select, text

from app.core.db import AnySession
from app.models import (
    Calendar,
    InvitationMail,
    PushChannel,
    WebhookDelivery,
    WebhookSubscription,
    WorkerHeartbeat,
)

_REVISION = text("SELECT version_num FROM alembic_version")


def _age(at: Any) -> Any:
    """Seconds since a time that an aggregate picked; NULL for none."""
    return func.extract("epoch", func.clock_timestamp() - at)


async def ping(session: AnySession) -> None:
    await session.execute(select(1))


async def load_revision(session: AnySession) -> str | None:
    """The schema's revision. Raises ProgrammingError where no migration ever ran."""
    revision: str | None = await session.scalar(_REVISION)
    return revision


async def load_heartbeat_age(session: AnySession) -> float | None:
    """Seconds since any worker was last seen; None if none ever was."""
    seconds = await session.scalar(select(_age(func.max(WorkerHeartbeat.seen_at))))
    return None if seconds is None else float(seconds)


async def count_calendars(session: AnySession) -> Sequence[Row[Any]]:
    """(platform, state, calendars, failing, failing_for): the longest failing, in seconds or None."""
    failing_since = Calendar.sync_failing_since
    statement = select(
        Calendar.platform,
        Calendar.state,
        func.count().label("calendars"),
        func.count(failing_since).label("failing"),
        _age(func.min(failing_since)).label("failing_for"),
    ).group_by(Calendar.platform, Calendar.state)
    return (await session.execute(statement)).all()


async def load_sync_lags(session: AnySession) -> Sequence[Row[Any]]:
    """(platform, lag): how long the longest overdue calendar has waited, in seconds. Rows where one is due."""
    statement = (
        select(Calendar.platform, _age(func.min(Calendar.next_sync_at)).label("lag"))
        .where(
            # As in ix_calendars_due.
            text("state = 'connected' AND platform <> 'local'"),
            Calendar.next_sync_at <= func.clock_timestamp(),
        )
        .group_by(Calendar.platform)
    )
    return (await session.execute(statement)).all()


async def load_outbox(session: AnySession) -> Row[Any]:
    """(pending, age): deliveries that are not settled, and seconds since the oldest was written or None.

    Those of subscriptions that are switched off wait for nobody but the operator, and do not count.
    """
    statement = (
        select(func.count().label("pending"), _age(func.min(WebhookDelivery.created_at)).label("age"))
        .join(WebhookSubscription, WebhookSubscription.id == WebhookDelivery.subscription_id)
        .where(WebhookDelivery.status == text("'pending'"), WebhookSubscription.is_active)
    )
    return (await session.execute(statement)).one()


async def load_mails(session: AnySession) -> Row[Any]:
    """(pending, age) of the mails that are not settled, as above."""
    statement = select(
        func.count().label("pending"), _age(func.min(InvitationMail.created_at)).label("age")
    ).where(InvitationMail.status == text("'pending'"))
    return (await session.execute(statement)).one()


async def count_channels(session: AnySession) -> Sequence[Row[str, int]]:
    """(platform, channels): push channels that are open."""
    statement = (
        select(PushChannel.platform, func.count().label("channels"))
        .where(PushChannel.state == "open")
        .group_by(PushChannel.platform)
    )
    return (await session.execute(statement)).all()
