"""SQL of push channels. Rows are locked in this order: calendars by id, then their channels."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import ARRAY, Interval, Text, bindparam, text

from app.core.db import AnySession, Session
from app.core.wakeups import wake_after_commit
from app.schedule import sync_within

Platform = Literal["google", "microsoft"]


@dataclass(frozen=True, slots=True)
class DueCalendar:
    """A calendar whose channel is to be opened or renewed. `leased_until` is its `push_due_at` meanwhile."""

    id: str
    platform: Platform
    platform_uuid: str | None
    credentials_id: str | None
    client_id: str | None
    owner_email: str | None
    leased_until: datetime


@dataclass(frozen=True, slots=True)
class ClosingChannel:
    """A channel to be closed: with the `credentials_id` of its calendar, or `sealed` if that is deleted."""

    id: str
    platform: Platform
    platform_uuid: str | None
    provider_id: str | None
    resource_id: str | None
    credentials_id: str | None
    sealed: bytes | None
    attempt_count: int
    has_expired: bool


@dataclass(frozen=True, slots=True)
class KnownChannel:
    """A channel, as far as a notification is checked against it."""

    id: str
    provider_id: str | None
    calendar_id: str | None
    state: str
    secret_sha256: str
    is_verified: bool


# --- the worker's side -----------------------------------------------------------------------------------

_CLAIM_CALENDARS = text(
    """
    WITH due AS (
        SELECT id, credentials_id FROM calendars
        WHERE push_due_at <= now() AND state = 'connected' AND platform IN ('google', 'microsoft')
        ORDER BY push_due_at
        LIMIT :limit
        FOR NO KEY UPDATE SKIP LOCKED)
    UPDATE calendars AS c SET push_due_at = clock_timestamp() + :lease_for
    FROM due LEFT JOIN credentials ON credentials.id = due.credentials_id
    WHERE c.id = due.id
    RETURNING c.id, c.platform, c.platform_uuid, c.credentials_id, credentials.client_id, c.owner_email,
              c.push_due_at
    """
)


async def claim_calendars(session: Session, *, limit: int, lease_for: timedelta) -> list[DueCalendar]:
    """Claim up to `limit` calendars whose channel is due, longest overdue first."""
    rows = await session.execute(_CLAIM_CALENDARS, {"limit": limit, "lease_for": lease_for})
    return [DueCalendar(*row) for row in rows]


_CLAIM_CLOSING = text(
    """
    WITH due AS (
        SELECT id FROM push_channels
        WHERE state = 'closing' AND next_attempt_at <= now()
        ORDER BY next_attempt_at
        LIMIT :limit
        FOR UPDATE SKIP LOCKED),
    claimed AS (
        UPDATE push_channels AS p SET next_attempt_at = clock_timestamp() + :lease_for
        FROM due WHERE p.id = due.id
        RETURNING p.*)
    SELECT p.id, p.platform, c.platform_uuid, p.provider_id, p.resource_id, c.credentials_id, p.sealed,
           p.attempt_count, coalesce(p.expires_at <= now(), false)
    FROM claimed p LEFT JOIN calendars c ON c.id = p.calendar_id
    """
)


async def claim_closing(session: Session, *, limit: int, lease_for: timedelta) -> list[ClosingChannel]:
    """Claim up to `limit` channels that are due to be closed."""
    rows = await session.execute(_CLAIM_CLOSING, {"limit": limit, "lease_for": lease_for})
    return [ClosingChannel(*row) for row in rows]


_FIND_OPEN = text(
    """
    SELECT id, provider_id FROM push_channels
    WHERE calendar_id = :calendar_id AND state = 'open' AND provider_id IS NOT NULL
    ORDER BY created_at DESC LIMIT 1
    """
)


async def find_open(session: Session, calendar_id: str) -> tuple[str, str] | None:
    """Find the id and provider_id of the calendar's open channel."""
    row = (await session.execute(_FIND_OPEN, {"calendar_id": calendar_id})).one_or_none()
    return None if row is None else (row.id, row.provider_id)


_LOCK_DUE = text(
    """
    SELECT id FROM calendars
    WHERE id = :calendar_id AND push_due_at = :leased_until AND state = 'connected'
    FOR NO KEY UPDATE
    """
)
# Rows that a killed worker or a failed attempt left. Google's first message has the resource id: the channel exists
# then, and has to be closed.
_CLEAR_OPENING = text(
    """
    WITH kept AS (
        UPDATE push_channels SET state = 'closing', next_attempt_at = clock_timestamp()
        WHERE calendar_id = :calendar_id AND state = 'opening' AND resource_id IS NOT NULL
        RETURNING attempt_count),
    dropped AS (
        DELETE FROM push_channels
        WHERE calendar_id = :calendar_id AND state = 'opening' AND resource_id IS NULL
        RETURNING attempt_count)
    SELECT attempt_count FROM kept UNION ALL SELECT attempt_count FROM dropped
    """
)
_INSERT_OPENING = text(
    """
    INSERT INTO push_channels (id, project_id, calendar_id, platform, secret_sha256, attempt_count)
    SELECT :id, project_id, id, platform, :secret_sha256, :attempt_count
    FROM calendars WHERE id = :calendar_id
    """
)


async def begin_opening(
    session: Session, due: DueCalendar, *, channel_id: str, secret_sha256: str
) -> bool | None:
    """Insert the row of a new channel.

    Returns whether an earlier attempt was left unfinished; None if the lease is lost.
    """
    locked = await session.scalar(_LOCK_DUE, {"calendar_id": due.id, "leased_until": due.leased_until})
    if locked is None:
        return None
    attempts = (await session.scalars(_CLEAR_OPENING, {"calendar_id": due.id})).all()
    await session.execute(
        _INSERT_OPENING,
        {
            "id": channel_id,
            "secret_sha256": secret_sha256,
            "attempt_count": max(attempts, default=0),
            "calendar_id": due.id,
        },
    )
    return bool(attempts)


_LOCK_CALENDAR = text("SELECT state = 'connected' FROM calendars WHERE id = :calendar_id FOR NO KEY UPDATE")
# The row is `closing` by now if the calendar was deleted meanwhile.
_SETTLE_OPENED = text(
    """
    UPDATE push_channels
    SET provider_id = :provider_id, resource_id = :resource_id, expires_at = :expires_at, attempt_count = 0,
        -- Graph tries the address before it responds. Of Google, the first message verifies it.
        verified_at = CASE platform WHEN 'microsoft' THEN clock_timestamp() ELSE verified_at END,
        state = CASE WHEN state = 'opening' AND :is_connected THEN 'open' ELSE 'closing' END,
        next_attempt_at = CASE WHEN state = 'opening' AND :is_connected THEN NULL ELSE clock_timestamp() END
    WHERE id = :id
    RETURNING state, verified_at IS NOT NULL AS is_verified
    """
)
_CLOSE_OLDER = text(
    """
    UPDATE push_channels SET state = 'closing', next_attempt_at = clock_timestamp(), attempt_count = 0
    WHERE calendar_id = :calendar_id AND id <> :id AND state = 'open'
    RETURNING expires_at > clock_timestamp()
    """
)


async def settle_opened(
    session: Session,
    due: DueCalendar,
    *,
    channel_id: str,
    provider_id: str | None,
    resource_id: str | None,
    expires_at: datetime,
    poll_in: timedelta,
) -> tuple[str | None, bool]:
    """Note the provider's response, and close the older channels.

    `poll_in`: until the next sync at the latest, if the channel is not verified yet. Returns the channel's state (None
    if its row is deleted), and whether an older channel was notifying all along.
    """
    is_connected = bool(await session.scalar(_LOCK_CALENDAR, {"calendar_id": due.id}))
    settled = (
        await session.execute(
            _SETTLE_OPENED,
            {
                "id": channel_id,
                "provider_id": provider_id,
                "resource_id": resource_id,
                "expires_at": expires_at,
                "is_connected": is_connected,
            },
        )
    ).one_or_none()
    if settled is None or settled.state != "open":
        return None if settled is None else settled.state, False
    if not settled.is_verified:
        await sync_within(session, due.id, poll_in)
    older = await session.scalars(_CLOSE_OLDER, {"calendar_id": due.id, "id": channel_id})
    return settled.state, any(older.all())


_SETTLE_RENEWED = text(
    "UPDATE push_channels SET expires_at = :expires_at, attempt_count = 0 WHERE id = :id AND state = 'open'"
)


async def settle_renewed(session: Session, channel_id: str, expires_at: datetime) -> None:
    await session.execute(_SETTLE_RENEWED, {"id": channel_id, "expires_at": expires_at})


# If another request has made the calendar due since, that time stays.
_SCHEDULE = text(
    """
    UPDATE calendars SET push_due_at = clock_timestamp() + :due_in
    WHERE id = :calendar_id AND push_due_at = :leased_until
    """
)


async def schedule(session: Session, due: DueCalendar, due_in: timedelta) -> None:
    """Give the lease back: the calendar's channel is due again in `due_in`."""
    await session.execute(
        _SCHEDULE, {"calendar_id": due.id, "leased_until": due.leased_until, "due_in": due_in}
    )


_SCHEDULE_RENEWAL = text(
    """
    UPDATE calendars
    SET push_due_at = clock_timestamp()
        + greatest(CAST(:expires_at AS timestamptz) - clock_timestamp(), CAST(:shortest_life AS interval))
          * CAST(:share AS float8)
    WHERE id = :calendar_id AND push_due_at = :leased_until
    """
)


async def schedule_renewal(
    session: Session, due: DueCalendar, expires_at: datetime, *, share: float, shortest_life: timedelta
) -> None:
    """Give the lease back. The renewal is due after this share of the channel's life."""
    await session.execute(
        _SCHEDULE_RENEWAL,
        {
            "calendar_id": due.id,
            "leased_until": due.leased_until,
            "expires_at": expires_at,
            "shortest_life": shortest_life,
            "share": share,
        },
    )


_COUNT_FAILURE = text(
    """
    UPDATE push_channels SET attempt_count = attempt_count + 1
    WHERE id = (SELECT id FROM push_channels WHERE calendar_id = :calendar_id AND state <> 'closing'
                ORDER BY created_at DESC LIMIT 1)
    RETURNING attempt_count
    """
)


async def count_failure(session: Session, calendar_id: str) -> int:
    """Count a failure to open or renew; returns how many there were in a row."""
    return await session.scalar(_COUNT_FAILURE, {"calendar_id": calendar_id}) or 1


_DROP_OPENING = text("DELETE FROM push_channels WHERE calendar_id = :calendar_id AND state = 'opening'")


async def drop_opening(session: Session, calendar_id: str) -> None:
    """Delete the row of an attempt that the provider refused."""
    await session.execute(_DROP_OPENING, {"calendar_id": calendar_id})


_DROP = text("DELETE FROM push_channels WHERE id = ANY(:ids)").bindparams(
    bindparam("ids", type_=ARRAY(Text()))
)


async def drop_channels(session: Session, channel_ids: Collection[str]) -> None:
    """Delete the rows of channels that ended at the provider, or that cannot be closed."""
    await session.execute(_DROP, {"ids": list(channel_ids)})


_RETRY_CLOSING = text(
    """
    UPDATE push_channels SET attempt_count = attempt_count + 1, next_attempt_at = clock_timestamp() + :retry_in
    WHERE id = :id
    """
)


async def retry_closing(session: Session, channel_id: str, retry_in: timedelta) -> None:
    await session.execute(_RETRY_CLOSING, {"id": channel_id, "retry_in": retry_in})


_FIND_HELD = text(
    "SELECT provider_id FROM push_channels WHERE provider_id = ANY(:provider_ids) AND state = 'open'"
).bindparams(bindparam("provider_ids", type_=ARRAY(Text())))


async def find_held(session: Session, provider_ids: Sequence[str]) -> set[str]:
    """Find those of the provider's channels that serve a calendar."""
    return set(await session.scalars(_FIND_HELD, {"provider_ids": list(provider_ids)}))


# A calendar of the same mailbox, or of one that may be the same.
_IS_OPENING_EQUAL = text(
    """
    SELECT EXISTS (
        SELECT FROM push_channels p
        JOIN calendars c ON c.id = p.calendar_id
        JOIN credentials k ON k.id = c.credentials_id
        WHERE p.state = 'opening' AND p.platform = :platform AND c.id <> :calendar_id
          AND p.created_at > clock_timestamp() - :opens_within
          AND c.platform_uuid IS NOT DISTINCT FROM :platform_uuid
          AND k.client_id = :client_id
          AND (c.credentials_id = :credentials_id OR lower(c.owner_email) = lower(:owner_email)
               OR c.owner_email IS NULL OR :owner_email IS NULL))
    """
).bindparams(
    *(bindparam(name, type_=Text()) for name in ("platform_uuid", "client_id", "owner_email")),
    bindparam("opens_within", type_=Interval()),
)


async def is_opening_equal(session: Session, due: DueCalendar, *, opens_within: timedelta) -> bool:
    """Find out whether a channel to the same calendar, connected a second time, is being opened now."""
    return bool(
        await session.scalar(
            _IS_OPENING_EQUAL,
            {
                "calendar_id": due.id,
                "platform": due.platform,
                "platform_uuid": due.platform_uuid,
                "client_id": due.client_id,
                "credentials_id": due.credentials_id,
                "owner_email": due.owner_email,
                "opens_within": opens_within,
            },
        )
    )


_CLOSE_ALL = text(
    """
    UPDATE push_channels SET state = 'closing', next_attempt_at = clock_timestamp(), attempt_count = 0
    WHERE calendar_id = :calendar_id AND state = 'open'
    """
)


async def close_channels(session: Session, calendar_id: str) -> None:
    """Mark the open channels of a calendar to be closed. The caller holds the calendar's row lock."""
    await session.execute(_CLOSE_ALL, {"calendar_id": calendar_id})
    wake_after_commit(session, "channels")


_LOCK_CHANNELS = text("SELECT id FROM push_channels WHERE calendar_id = :calendar_id FOR UPDATE")


async def lock_channels(session: Session, calendar_id: str) -> list[str]:
    """Lock all channels of the calendar; returns their ids. The caller holds the calendar's row lock."""
    return list(await session.scalars(_LOCK_CHANNELS, {"calendar_id": calendar_id}))


# A channel that is being opened gets the provider's ids in a moment. Without them it cannot be closed.
_RELEASE = text(
    """
    UPDATE push_channels
    SET state = 'closing', sealed = :sealed, attempt_count = 0,
        next_attempt_at = CASE WHEN coalesce(provider_id, resource_id) IS NULL
                               THEN clock_timestamp() + :opens_within ELSE clock_timestamp() END
    WHERE id = :id
    """
)


async def release_channel(
    session: Session, channel_id: str, *, sealed: bytes, opens_within: timedelta
) -> None:
    """Detach a channel from its calendar; `sealed` has the tokens that closing it takes."""
    await session.execute(_RELEASE, {"id": channel_id, "sealed": sealed, "opens_within": opens_within})
    wake_after_commit(session, "channels")


# --- notifications ---------------------------------------------------------------------------------------

_FIND_CHANNEL = text(
    """
    SELECT id, provider_id, calendar_id, state, secret_sha256, verified_at IS NOT NULL FROM push_channels
    WHERE id = :id AND platform = 'google'
    """
)


async def find_channel(session: Session, channel_id: str) -> KnownChannel | None:
    """Find a Google channel by the id that calbridge gave it."""
    row = (await session.execute(_FIND_CHANNEL, {"id": channel_id})).one_or_none()
    return None if row is None else KnownChannel(*row)


_FIND_SUBSCRIPTIONS = text(
    """
    SELECT id, provider_id, calendar_id, state, secret_sha256, verified_at IS NOT NULL FROM push_channels
    WHERE provider_id = ANY(:provider_ids) AND platform = 'microsoft'
    """
).bindparams(bindparam("provider_ids", type_=ARRAY(Text())))


async def find_subscriptions(session: Session, provider_ids: Collection[str]) -> dict[str, KnownChannel]:
    """Find channels of Microsoft by its subscription ids."""
    rows = await session.execute(_FIND_SUBSCRIPTIONS, {"provider_ids": list(provider_ids)})
    return {row.provider_id: KnownChannel(*row) for row in rows}


_NOTE_RESOURCE = text(
    "UPDATE push_channels SET resource_id = :resource_id WHERE id = :id AND resource_id IS NULL"
)


async def note_resource(session: Session, channel_id: str, resource_id: str) -> None:
    await session.execute(_NOTE_RESOURCE, {"id": channel_id, "resource_id": resource_id})


_NOTE_VERIFIED = text(
    "UPDATE push_channels SET verified_at = clock_timestamp() WHERE id = ANY(:ids) AND verified_at IS NULL"
).bindparams(bindparam("ids", type_=ARRAY(Text())))


async def note_verified(session: Session, channel_ids: Collection[str]) -> None:
    """Note that a notification has arrived through these channels: their calendars are polled less often."""
    await session.execute(_NOTE_VERIFIED, {"ids": list(channel_ids)})


@dataclass(frozen=True, slots=True)
class CalendarChannel:
    """The newest channel of a calendar, `opening` or `open`. `is_verified`: a notification has arrived."""

    state: str
    is_verified: bool
    expires_at: datetime | None


_FIND_NEWEST = text(
    """
    SELECT state, verified_at IS NOT NULL, expires_at FROM push_channels
    WHERE calendar_id = :calendar_id AND state <> 'closing'
    ORDER BY state = 'open' DESC, created_at DESC LIMIT 1
    """
)


async def find_newest(session: AnySession, calendar_id: str) -> CalendarChannel | None:
    """Return the calendar's open channel, else the one that is being opened."""
    row = (await session.execute(_FIND_NEWEST, {"calendar_id": calendar_id})).one_or_none()
    return None if row is None else CalendarChannel(*row)
