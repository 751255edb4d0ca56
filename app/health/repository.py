"""SQL of the health endpoints. Each statement is cheap for tables of any size."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, func, select, text

from app.core.db import AnySession
from app.models import WorkerHeartbeat
from app.models.calendar import FAILING
from app.models.invitation import LANE

WORKER_SEEN_WITHIN = timedelta(seconds=30)

_REVISION = text("SELECT version_num FROM alembic_version")


async def ping(session: AnySession) -> None:
    await session.execute(select(1))


async def limit_time(session: AnySession, limit: timedelta) -> None:
    """Limit the time of each later statement of this transaction."""
    milliseconds = str(int(limit.total_seconds() * 1000))
    await session.execute(select(func.set_config("statement_timeout", milliseconds, True)))  # noqa: FBT003 - for this transaction


async def load_revision(session: AnySession) -> str | None:
    """Return the schema's revision. Raises ProgrammingError if no migration ever ran."""
    revision: str | None = await session.scalar(_REVISION)
    return revision


async def load_heartbeat_age(session: AnySession) -> float | None:
    """Return the seconds since any worker was last seen; None if none ever was."""
    age = func.extract("epoch", func.clock_timestamp() - func.max(WorkerHeartbeat.seen_at))
    seconds = await session.scalar(select(age))
    return None if seconds is None else float(seconds)


async def count_workers(session: AnySession) -> int:
    statement = select(func.count()).where(WorkerHeartbeat.seen_at > func.now() - WORKER_SEEN_WITHIN)
    return await session.scalar(statement) or 0


# Calendars are due as in app/sync/repository.py. The thousand longest overdue ones are enough for an alert.
_SYNC_LAGS = text(
    """
    SELECT platform, extract(epoch FROM now() - min(next_sync_at))
    FROM (SELECT platform, next_sync_at FROM calendars
          WHERE state = 'connected' AND platform <> 'local'
            AND next_sync_at <= now() AND (lease_until IS NULL OR lease_until <= now())
          ORDER BY next_sync_at LIMIT 1000) AS due
    GROUP BY platform
    """
)


async def load_sync_lags(session: AnySession) -> dict[str, float]:
    """Return {platform: seconds that its longest overdue calendar has waited}.

    Platforms without one are left out.
    """
    return {platform: float(lag) for platform, lag in await session.execute(_SYNC_LAGS)}


# Endpoints that fail, pause, or are being sent to right now do not count: they determine their own pace.
_DELIVERY_LAG = text(
    """
    SELECT coalesce(extract(epoch FROM now() - min(first.next_attempt_at)), 0)
    FROM webhook_subscriptions s
    CROSS JOIN LATERAL (
        SELECT d.next_attempt_at FROM webhook_deliveries d
        WHERE d.subscription_id = s.id AND d.status = 'pending' AND d.next_attempt_at <= now()
        ORDER BY d.next_attempt_at LIMIT 1) AS first
    WHERE s.is_active AND s.failing_since IS NULL AND (s.paused_until IS NULL OR s.paused_until <= now())
      AND NOT EXISTS (SELECT FROM webhook_deliveries d
                      WHERE d.subscription_id = s.id AND d.lease_token IS NOT NULL AND d.next_attempt_at > now())
    """
)


async def load_delivery_lag(session: AnySession) -> float:
    """Return the seconds that the longest overdue delivery has waited; 0 if none is overdue."""
    return float(await session.scalar(_DELIVERY_LAG) or 0)


# A mail is not overdue while it waits for an earlier one to the same person about the same event, or while its mailbox
# or all of Messages is held after a 429.
_MAIL_LAG = text(
    f"""
    SELECT coalesce(extract(epoch FROM now() - min(next_attempt_at)), 0)
    FROM (SELECT * FROM invitation_mails
          WHERE status = 'pending' AND next_attempt_at <= now()
          ORDER BY next_attempt_at, position LIMIT 1000) AS due
    WHERE NOT EXISTS (
        SELECT FROM invitation_mails before
        WHERE before.calendar_id = due.calendar_id AND before.event_uid = due.event_uid
          AND before.recipient_key = due.recipient_key AND before.position < due.position
          AND before.status = 'pending' AND coalesce(before.replying_key = due.replying_key, true))
      AND NOT EXISTS (
        SELECT FROM mail_lanes held
        WHERE held.held_until > now()
          AND (held.key = {LANE} OR (held.key = 'messages' AND due.mailbox_id IS NOT NULL)))
    """  # noqa: S608 - a constant
)


async def load_mail_lag(session: AnySession) -> float:
    """Return the seconds that the longest overdue mail has waited; 0 if none is overdue."""
    return float(await session.scalar(_MAIL_LAG) or 0)


# A bot that is scheduled or moved shortly before its meeting is due from that moment on.
_BOT_LAG = text(
    """
    SELECT coalesce(extract(epoch FROM now() - least(
        (SELECT next_attempt_at FROM bots WHERE next_attempt_at <= now() ORDER BY next_attempt_at LIMIT 1),
        (SELECT min(greatest(join_at - CAST(:lead AS interval), updated_at))
         FROM (SELECT join_at, updated_at FROM bots
               WHERE state = 'scheduled' AND join_at <= now() + CAST(:lead AS interval) AND meeting_url IS NOT NULL
               ORDER BY join_at LIMIT 1000) AS due))), 0)
    """
)


async def load_bot_lag(session: AnySession, lead: timedelta) -> float:
    """Return the seconds since the longest overdue bot was to be handed over; 0 if none is overdue."""
    return float(await session.scalar(_BOT_LAG, {"lead": lead}) or 0)


_PENDING = text(
    """
    SELECT
        (SELECT count(*) FROM (
            SELECT FROM webhook_subscriptions s
            CROSS JOIN LATERAL (SELECT FROM webhook_deliveries d
                                WHERE d.subscription_id = s.id AND d.status = 'pending' LIMIT 10000) AS pending
            WHERE s.is_active LIMIT 10000) AS deliveries),
        (SELECT count(*) FROM (
            SELECT FROM invitation_mails WHERE status = 'pending' LIMIT 10000) AS mails)
    """
)


async def count_pending(session: AnySession) -> tuple[int, int]:
    """Return the numbers of deliveries and mails that are not finished, each counted up to 10,000.

    Deliveries of disabled endpoints do not count, since they wait until the endpoint is enabled.
    """
    deliveries, mails = (await session.execute(_PENDING)).one()
    return deliveries, mails


# Tables of up to this many pages (8 MB) are counted exactly. For larger ones, this many pages are sampled. The fixed
# seed samples the same pages each time, so that estimates change with the table and not at random.
_SAMPLED_PAGES = 1000
_SAMPLED_PERCENT = text(
    """
    SELECT least(100, 100.0 * :pages * current_setting('block_size')::int
                      / greatest(1, pg_relation_size(CAST(:table AS regclass))))
    """
)


async def _sampled_percent(session: AnySession, table: str) -> float:
    return float(await session.scalar(_SAMPLED_PERCENT, {"pages": _SAMPLED_PAGES, "table": table}))


# The failure's code; null if the last sync did not fail.
_FAILURE = "CASE WHEN state = 'connected' AND sync_failing_since IS NOT NULL THEN coalesce(sync_failure_code, 'unknown') END"
# The code that the API shows as `sync_failure`.
_FAILURE_SHOWN = f"coalesce({_FAILURE}, 'platform_outage')"

_COUNT_CALENDARS = text(
    f"""
    SELECT platform, state, round(count(*) * 100 / :percent) AS rows, {_FAILURE} AS failure,
           round(count(*) FILTER (WHERE outage_scope IN (SELECT scope FROM sync_breakers WHERE opened_at IS NOT NULL))
                 * 100 / :percent) AS held,
           round(count(held_back_since) * 100 / :percent) AS in_doubt
    FROM calendars TABLESAMPLE SYSTEM (CAST(:percent AS real)) REPEATABLE (1)
    GROUP BY platform, state, failure
    """  # noqa: S608 - a condition of ours
)


async def count_calendars(session: AnySession) -> Sequence[Row[Any]]:
    """Return rows of (platform, state, rows, failure, held, in_doubt).

    - `failure`: the code of calendars whose last sync failed; null for the others.
    - `held`: how many wait for an outage to end. Some of them have a failure from before the breaker opened.
    - `in_doubt`: how many had a response that left out most events and is not confirmed yet.
    """
    percent = await _sampled_percent(session, "calendars")
    return (await session.execute(_COUNT_CALENDARS, {"percent": percent})).all()


# The kind of a breaker is the first part of its scope (app/outages/breakers.py). It names no project.
_COUNT_OPEN_BREAKERS = text(
    """
    SELECT split_part(scope, ':', 1) AS kind, count(*) AS rows,
           coalesce(extract(epoch FROM now() - min(outage_since)), 0) AS seconds
    FROM sync_breakers WHERE opened_at IS NOT NULL
    GROUP BY kind
    """
)


async def count_open_breakers(session: AnySession) -> Sequence[Row[Any]]:
    """Return rows of (kind, rows, seconds).

    `kind`: a platform, `feed` or `client`. `seconds`: the longest outage.
    """
    return (await session.execute(_COUNT_OPEN_BREAKERS)).all()


_OUTAGES = text(
    """
    SELECT b.scope, b.outage_since, count(c.id) AS held,
           mode() WITHIN GROUP (ORDER BY c.sync_failure_code) AS code
    FROM sync_breakers b LEFT JOIN calendars c ON c.outage_scope = b.scope AND c.state = 'connected'
    WHERE b.opened_at IS NOT NULL
    GROUP BY b.scope, b.outage_since
    ORDER BY held DESC, b.scope LIMIT :limit
    """
)


async def load_outages(session: AnySession, *, limit: int) -> Sequence[Row[Any]]:
    """Return rows of (scope, outage_since, held, code) of open breakers, by the number of held calendars.

    `code`: the most frequent failure.
    """
    return (await session.execute(_OUTAGES, {"limit": limit})).all()


_IN_DOUBT = text("SELECT count(*) FROM calendars WHERE state = 'connected' AND held_back_since IS NOT NULL")


async def count_in_doubt(session: AnySession) -> int:
    """Count connected calendars with a response that left out most events and is not confirmed.

    Reads the whole table.
    """
    return await session.scalar(_IN_DOUBT) or 0


_USED_PLATFORMS = text(
    """
    SELECT platform FROM (VALUES ('google'), ('microsoft')) AS names(platform)
    WHERE EXISTS (SELECT FROM calendars c WHERE c.platform = names.platform)
       OR EXISTS (SELECT FROM oauth_apps a WHERE a.platform = names.platform)
    """
)


async def load_used_platforms(session: AnySession) -> set[str]:
    """Return the platforms with accounts (google, microsoft) that a calendar or an OAuth app has."""
    return set(await session.scalars(_USED_PLATFORMS))


COUNTED = 10_000

_COUNT_FAILING = text(
    f"""
    SELECT platform, code, count(*) AS rows, count(DISTINCT project_id) AS projects, min(id) AS example
    FROM (SELECT platform, project_id, id, {_FAILURE_SHOWN} AS code FROM calendars
          WHERE {FAILING} LIMIT {COUNTED}) AS failing
    GROUP BY platform, code
    ORDER BY rows DESC, platform, code
    LIMIT 20
    """  # noqa: S608 - numbers and conditions of ours
)


async def count_failing_calendars(session: AnySession) -> Sequence[Row[Any]]:
    """Return rows of (platform, code, rows, projects, example), most frequent first.

    Counts COUNTED calendars at most.

    `example`: the id of one of the calendars.
    """
    return (await session.execute(_COUNT_FAILING)).all()


_DEAD_ENDPOINTS = text(
    """
    SELECT count(*) FILTER (WHERE is_active) AS failing, count(*) FILTER (WHERE NOT is_active) AS disabled,
           count(DISTINCT project_id) AS projects,
           (array_agg(id ORDER BY is_active DESC, failing_since NULLS LAST))[1] AS example
    FROM webhook_subscriptions
    WHERE (is_active AND failing_since < now() - interval '1 hour') OR (NOT is_active AND disabled_reason IS NOT NULL)
    """
)


async def count_dead_endpoints(session: AnySession) -> Row[Any]:
    """Return (failing, disabled, projects, example) of endpoints.

    `failing`: how many have failed for an hour. `disabled`: how many were disabled for failing.
    """
    return (await session.execute(_DEAD_ENDPOINTS)).one()


_COUNT_CHANNELS = text(
    """
    SELECT platform, round(count(*) * 100 / :percent) AS rows
    FROM push_channels TABLESAMPLE SYSTEM (CAST(:percent AS real)) REPEATABLE (1)
    WHERE state = 'open'
    GROUP BY platform
    """
)


async def count_channels(session: AnySession) -> Sequence[Row[Any]]:
    """Return rows of (platform, rows) of open push channels."""
    percent = await _sampled_percent(session, "push_channels")
    return (await session.execute(_COUNT_CHANNELS, {"percent": percent})).all()
