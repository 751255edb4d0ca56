"""Breakers: in an outage, calendars are held, and one probe at a time finds out when it is over.

A scope is what fails as one: a platform, the host of a feed, or a project's OAuth client, which guards refreshes of
tokens (app/credentials/store.py). The rules: docs/adr/0003-believing-providers.md.

Locks: no transaction here locks a calendar's row while it holds a breaker's, except by SKIP LOCKED.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal
from urllib.parse import urlsplit

import structlog
from sqlalchemy import text

from app.core.db import AnySession, Session, Sessions, transaction
from app.core.ids import new_id

log = structlog.get_logger()

State = Literal["closed", "open", "ready"]

_OPENS_AT = 3
# How long a vote counts.
_VOTES_FOR = timedelta(minutes=5)
# A failure is dated by the start of its sync, which may be before the first vote of the same outage.
_UNDER_WAY_FOR = timedelta(minutes=3)
_PROBE_EVERY_SECONDS = 1.0
# The pause between probes grows to this with the outage, by a sixtieth of its age.
_PROBE_SELDOM_SECONDS = {"platform": 5.0, "feed": 60.0, "client": 60.0}
_PROBE_LEASE = timedelta(seconds=10)
# While a calendar waits that has never been synced, its feed's host is probed this soon.
_PROBE_FOR_NEW_SECONDS = 5.0
# Scopes that get a probe in one look: each takes a few statements.
_APPOINTED_AT_ONCE = 50
_RELEASE_PER_SECOND = 50.0
_RELEASE_LONGEST_SECONDS = 600.0
_RELEASE_BATCH = 500
# Batches in one look. Claims wait for it.
_RELEASE_BATCHES = 4
_LOOK_EVERY_SECONDS = 1.0
_SAY_FINE_EVERY_SECONDS = 60.0
_FORGET_EVERY_SECONDS = 600.0
_FORGET_AFTER = timedelta(days=1)


def client_scope(project_id: str, client_id: str) -> str:
    """The scope of an OAuth client in a project.

    Any project can name another's client, with a wrong secret.
    """
    return f"client:{project_id}:{client_id}"


def feed_scope(feed_url: str) -> str:
    """The scope of a feed. Only its host is in it: the rest of the address is a secret."""
    return f"feed:{(urlsplit(feed_url).hostname or '').lower()}"


@dataclass(frozen=True, slots=True)
class _Open:
    scope: str
    outage_since: object
    probe_project_id: str | None


_STATE = text(
    """
    SELECT CASE WHEN next_probe_at <= clock_timestamp()
                     AND (probe_until IS NULL OR probe_until <= clock_timestamp()) THEN 'ready' ELSE 'open' END
    FROM sync_breakers WHERE scope = :scope AND opened_at IS NOT NULL
    """
)

# The lock lasts until the caller's transaction ends: a breaker that closes waits for it, so its release finds
# the calendar that is being held.
_IS_OPEN_LOCKED = text(
    "SELECT true FROM sync_breakers WHERE scope = :scope AND opened_at IS NOT NULL FOR SHARE"
)

_TAKE_PROBE = text(
    """
    UPDATE sync_breakers
    SET probe_until = clock_timestamp() + CAST(:lease AS interval), probe_project_id = :project_id,
        next_probe_at = clock_timestamp() + make_interval(secs =>
            least(greatest(extract(epoch FROM clock_timestamp() - opened_at) / 60, CAST(:every AS float)),
                  CAST(:seldom AS float)))
    WHERE scope = :scope AND opened_at IS NOT NULL AND next_probe_at <= clock_timestamp()
      AND (probe_until IS NULL OR probe_until <= clock_timestamp())
    RETURNING true
    """
)


async def load_state(session: Session, scope: str) -> State:
    """The breaker's state. `ready`: open, and a probe may start."""
    state: State | None = await session.scalar(_STATE, {"scope": scope})
    return state or "closed"


async def stays_open(session: Session, scope: str) -> bool:
    """Whether it is open. If so, it cannot close before this transaction ends."""
    return bool(await session.scalar(_IS_OPEN_LOCKED, {"scope": scope}))


_OPEN_OF = text("SELECT scope FROM sync_breakers WHERE opened_at IS NOT NULL AND scope = ANY(:scopes)")


async def find_open(session: AnySession, scopes: Collection[str]) -> set[str]:
    """Those of the scopes whose breaker is open."""
    return set(await session.scalars(_OPEN_OF, {"scopes": list(scopes)}))


_END_PROBE = text(
    "UPDATE sync_breakers SET probe_until = NULL WHERE scope = :scope AND opened_at IS NOT NULL"
)

_VOTE_FAILING = text(
    """
    INSERT INTO sync_votes AS v (scope, project_id, failing, failing_since, voted_at)
    VALUES (:scope, :project_id, 1, clock_timestamp(), clock_timestamp())
    ON CONFLICT (scope, project_id) DO UPDATE
    SET failing = v.failing + 1, failing_since = coalesce(v.failing_since, clock_timestamp()),
        voted_at = clock_timestamp()
    """
)

_VOTE_FINE = text(
    """
    INSERT INTO sync_votes AS v (scope, project_id, voted_at) VALUES (:scope, :project_id, clock_timestamp())
    ON CONFLICT (scope, project_id) DO UPDATE
    SET failing = 0, failing_since = NULL, voted_at = clock_timestamp()
    """
)

_OPEN = text(
    """
    INSERT INTO sync_breakers AS b (scope, opened_at, outage_since, next_probe_at)
    SELECT :scope, clock_timestamp(), v.since, clock_timestamp() + make_interval(secs => :every)
    FROM (SELECT count(*) AS active, count(*) FILTER (WHERE failing > 0) AS failing,
                 coalesce(sum(failing), 0) AS calendars,
                 min(failing_since) - CAST(:under_way_for AS interval) AS since
          FROM sync_votes WHERE scope = :scope AND voted_at > clock_timestamp() - CAST(:votes_for AS interval)) AS v
    WHERE v.failing * 2 > v.active AND v.calendars >= :opens_at
    ON CONFLICT (scope) DO UPDATE
    SET opened_at = excluded.opened_at, outage_since = excluded.outage_since,
        next_probe_at = excluded.next_probe_at, probe_until = NULL, release_until = NULL
    WHERE b.opened_at IS NULL
    RETURNING true
    """
)

_CLOSE = text(
    """
    UPDATE sync_breakers
    SET opened_at = NULL, probe_until = NULL, closed_at = clock_timestamp(),
        release_until = clock_timestamp() + make_interval(secs => least(CAST(:longest AS float),
            (SELECT count(*) FROM calendars WHERE outage_scope = :scope) / CAST(:per_second AS float)))
    WHERE scope = :scope AND opened_at IS NOT NULL
    RETURNING true
    """
)

# No calendar waits, so none could be the probe, and nothing is left to protect.
_CLOSE_ABANDONED = text(
    """
    UPDATE sync_breakers SET opened_at = NULL, probe_until = NULL, closed_at = clock_timestamp()
    WHERE scope = :scope AND opened_at IS NOT NULL
      AND NOT EXISTS (SELECT FROM calendars WHERE outage_scope = :scope AND state = 'connected')
    RETURNING true
    """
)

_FORGET_VOTES_OF = text(
    "UPDATE sync_votes SET failing = 0, failing_since = NULL WHERE scope = :scope AND failing > 0"
)

# Feeds last: a client can have any number of hosts of feeds.
_READY_FOR_PROBE = text(
    """
    SELECT scope, outage_since, probe_project_id FROM sync_breakers
    WHERE opened_at IS NOT NULL AND next_probe_at <= clock_timestamp()
      AND (probe_until IS NULL OR probe_until <= clock_timestamp())
    ORDER BY scope LIKE 'feed:%', random() LIMIT :limit
    FOR UPDATE SKIP LOCKED
    """
)

_MAY_PROBE = """outage_scope = :scope AND state = 'connected'
      AND (lease_until IS NULL OR lease_until <= clock_timestamp())"""

# The calendar whose sync says most about the platform comes first: the last one succeeded; it was never synced; it
# did not fail before the outage; any other.
_WITNESSES = (
    "sync_failing_since IS NULL AND last_attempted_sync_at <= last_successful_sync_at",
    "sync_failing_since IS NULL AND last_attempted_sync_at IS NULL",
    "(sync_failing_since IS NULL OR sync_failing_since >= :outage_since)",
    "true",
)

_APPOINT = tuple(
    (
        text(
            f"""
            SELECT project_id FROM calendars
            WHERE {_MAY_PROBE} AND {witness} AND project_id > :after
            ORDER BY project_id LIMIT 1
            """  # noqa: S608 - constants
        ),
        text(
            f"""
            UPDATE calendars SET next_sync_at = clock_timestamp()
            WHERE id = (SELECT id FROM calendars
                        WHERE {_MAY_PROBE} AND {witness} AND project_id = :project_id AND id > :after
                        ORDER BY id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED)
            RETURNING true
            """  # noqa: S608 - constants
        ),
    )
    for witness in _WITNESSES
)

_HASTEN_PROBE = text(
    """
    UPDATE sync_breakers SET next_probe_at = clock_timestamp() + make_interval(secs => :seconds)
    WHERE scope = :scope AND opened_at IS NOT NULL
      AND next_probe_at > clock_timestamp() + make_interval(secs => :seconds)
    """
)

_RELEASING = text("SELECT scope FROM sync_breakers WHERE opened_at IS NULL AND release_until IS NOT NULL")

# A calendar that began to fail in the outage starts afresh; one that failed before it keeps its backoff.
_RELEASE = text(
    """
    WITH released AS (
        SELECT c.id, b.release_until, b.outage_since,
               (c.sync_failing_since IS NULL OR c.sync_failing_since >= b.outage_since) AS by_outage
        FROM sync_breakers b JOIN calendars c ON c.outage_scope = b.scope
        WHERE b.scope = :scope AND b.opened_at IS NULL AND b.release_until IS NOT NULL
        LIMIT :limit
        FOR NO KEY UPDATE OF c SKIP LOCKED)
    UPDATE calendars AS c
    SET outage_scope = NULL,
        sync_failure_count = CASE WHEN by_outage THEN 0 ELSE sync_failure_count END,
        sync_failure_code_count = CASE WHEN by_outage THEN 0 ELSE sync_failure_code_count END,
        sync_failure_code_since = CASE WHEN by_outage THEN NULL ELSE sync_failure_code_since END,
        -- One that is being synced right now, or is due sooner, is left as it is.
        next_sync_at = CASE
            WHEN by_outage AND (lease_until IS NULL OR lease_until <= clock_timestamp())
            THEN least(next_sync_at, clock_timestamp()
                       + random() * greatest(release_until - clock_timestamp(), interval '0'))
            ELSE next_sync_at END
    FROM released WHERE c.id = released.id
    RETURNING c.id
    """
)

_RELEASED = text(
    """
    UPDATE sync_breakers SET release_until = NULL
    WHERE scope = :scope AND opened_at IS NULL
      AND NOT EXISTS (SELECT FROM calendars WHERE outage_scope = :scope)
    """
)

_FORGET = (
    text("DELETE FROM sync_votes WHERE voted_at < clock_timestamp() - CAST(:age AS interval)"),
    text(
        """
        DELETE FROM sync_breakers
        WHERE opened_at IS NULL AND release_until IS NULL AND closed_at < clock_timestamp() - CAST(:age AS interval)
        """
    ),
)


_PROBE_NOW = text(
    """
    UPDATE sync_breakers
    SET opened_at = clock_timestamp(), next_probe_at = clock_timestamp(), probe_until = NULL
    WHERE opened_at IS NOT NULL AND scope = :scope
    """
)


async def probe_client_now(session: Session, project_id: str, client_id: str) -> None:
    """Make the next probe due now, because the client has a new secret."""
    await session.execute(_PROBE_NOW, {"scope": client_scope(project_id, client_id)})


class Breakers:
    """The votes and probes of one process."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._said_fine: dict[tuple[str, str], float] = {}
        self._looked_at = 0.0
        self._forgot_at = time.monotonic()

    async def take_probe(self, scope: str, project_id: str) -> bool:
        """Whether the caller is now the one probe of an open breaker."""
        # In a transaction of its own: even the loser of a race holds the row's lock until its transaction ends.
        async with transaction(self._sessions) as session:
            taken = await session.scalar(
                _TAKE_PROBE,
                {
                    "scope": scope,
                    "project_id": project_id,
                    "lease": _PROBE_LEASE,
                    "every": _PROBE_EVERY_SECONDS,
                    "seldom": _PROBE_SELDOM_SECONDS.get(
                        scope.partition(":")[0], _PROBE_SELDOM_SECONDS["platform"]
                    ),
                },
            )
        return bool(taken)

    async def enter(self, scope: str, project_id: str) -> tuple[bool, bool]:
        """Returns whether the caller may go on, and whether it is the probe."""
        async with transaction(self._sessions) as session:
            state = await load_state(session, scope)
        if state == "closed":
            return True, False
        is_probe = state == "ready" and await self.take_probe(scope, project_id)
        return is_probe, is_probe

    async def vote_failing(self, scope: str, project_id: str) -> None:
        """Note that a calendar of this project has begun to fail as in an outage. May open the breaker."""
        self._said_fine.pop((scope, project_id), None)
        async with transaction(self._sessions) as session:
            await session.execute(_VOTE_FAILING, {"scope": scope, "project_id": project_id})
            opened = await session.scalar(
                _OPEN,
                {
                    "scope": scope,
                    "votes_for": _VOTES_FOR,
                    "opens_at": _OPENS_AT,
                    "under_way_for": _UNDER_WAY_FOR,
                    "every": _PROBE_EVERY_SECONDS,
                },
            )
        if opened:
            log.error("sync_breaker_opened", scope=scope)

    async def vote_fine(self, scope: str, project_id: str) -> None:
        """Note that a sync of this project has succeeded; at most once a minute, except after a failure."""
        key, now = (scope, project_id), time.monotonic()
        if now - self._said_fine.get(key, -_SAY_FINE_EVERY_SECONDS) < _SAY_FINE_EVERY_SECONDS:
            return
        self._said_fine[key] = now
        async with transaction(self._sessions) as session:
            await session.execute(_VOTE_FINE, {"scope": scope, "project_id": project_id})

    async def hasten_probe(self, scope: str) -> None:
        """Make the next probe of a feed's host due soon, because a calendar waits that was never synced."""
        if not scope.startswith("feed:"):
            return  # a platform is probed this often anyway; a client, once it has a new secret
        async with transaction(self._sessions) as session:
            await session.execute(_HASTEN_PROBE, {"scope": scope, "seconds": _PROBE_FOR_NEW_SECONDS})

    async def end_probe(self, scope: str) -> None:
        """Let the next probe follow, because this one failed."""
        async with transaction(self._sessions) as session:
            await session.execute(_END_PROBE, {"scope": scope})

    async def close(self, scope: str) -> None:
        """Close the breaker. `look`, here and in any other worker, releases the calendars that wait for it."""
        async with transaction(self._sessions) as session:
            closed = await session.scalar(
                _CLOSE,
                {
                    "scope": scope,
                    "per_second": _RELEASE_PER_SECOND,
                    "longest": _RELEASE_LONGEST_SECONDS,
                },
            )
            if closed:
                await session.execute(_FORGET_VOTES_OF, {"scope": scope})
        if closed:
            log.warning("sync_breaker_closed", scope=scope)
            self._looked_at = 0.0

    async def look(self) -> None:
        """Appoint probes and go on with releases. Cheap to call often: it looks once a second."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_EVERY_SECONDS:
            return
        self._looked_at = now
        async with transaction(self._sessions) as session:
            for row in (await session.execute(_READY_FOR_PROBE, {"limit": _APPOINTED_AT_ONCE})).all():
                await _appoint(session, _Open(row.scope, row.outage_since, row.probe_project_id))
            releasing = list(await session.scalars(_RELEASING))
        for scope in releasing:
            await self._release(scope)
        if now - self._forgot_at > _FORGET_EVERY_SECONDS:
            self._forgot_at = now
            self._said_fine.clear()
            async with transaction(self._sessions) as session:
                for statement in _FORGET:
                    await session.execute(statement, {"age": _FORGET_AFTER})

    async def _release(self, scope: str) -> None:
        for _ in range(_RELEASE_BATCHES):
            async with transaction(self._sessions) as session:
                released = await session.scalars(_RELEASE, {"scope": scope, "limit": _RELEASE_BATCH})
                count = len(released.all())
                if count < _RELEASE_BATCH:
                    # Rows that another transaction has locked are left for the next look.
                    await session.execute(_RELEASED, {"scope": scope})
            log.info("sync_calendars_released", scope=scope, count=count)
            if count < _RELEASE_BATCH:
                return


async def _appoint(session: Session, breaker: _Open) -> None:
    """Make one of the calendars that wait for this breaker due. Its sync becomes the probe.

    Closes a breaker that no calendar waits for.
    """
    values = {"scope": breaker.scope, "outage_since": breaker.outage_since}
    for next_project, appoint in _APPOINT:
        for after in dict.fromkeys((breaker.probe_project_id or "", "")):
            project_id = await session.scalar(next_project, {**values, "after": after})
            if project_id is None:
                continue
            # From a random place on, so that it is not always the same one.
            for after_id in (new_id("cal"), ""):
                if await session.scalar(appoint, {**values, "project_id": project_id, "after": after_id}):
                    return
    if await session.scalar(_CLOSE_ABANDONED, {"scope": breaker.scope}):
        await session.execute(_FORGET_VOTES_OF, {"scope": breaker.scope})
        log.info("sync_breaker_abandoned", scope=breaker.scope)
