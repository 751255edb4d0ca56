"""One sync of one calendar: pages from the provider in, changed rows and one webhook out.

The changes of a sync are written in batches. The last batch, the cursor, the sync times and the outbox rows
are one transaction; nearly every sync has only that one. A larger one (a first sync of thousands of events)
commits batch by batch, so that memory stays bounded; what it has committed but not yet announced is counted
in the calendar's row, and announced by whatever ends the sync, or by the next one after a kill -9.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import orjson
import structlog

from app.bots.service import drop_bots_of_calendar, follow_events
from app.calendar_events.visibility import enter_as_writer
from app.calendars.service import state_data
from app.core import metrics
from app.core.clock import isoformat, utcnow
from app.core.db import Session, Sessions, transaction
from app.doorbell import Doorbell
from app.providers.base import (
    CalendarGone,
    CalendarProvider,
    ChangePage,
    ClientMisconfigured,
    ConnectionLost,
    CursorExpired,
    ProviderError,
    RemoteEvent,
    Transient,
    Unavailable,
    Window,
)
from app.push.repository import close_channels
from app.settings import Settings
from app.sync import repository
from app.sync.changed_events import describe_changes
from app.sync.diff import EventWrite, content_hash, diff_events
from app.sync.providers import Providers
from app.sync.repository import Claim, LeaseLost, Pick, Settled, SyncState, Unannounced
from app.sync.turns import Kind, pick_oldest
from app.webhooks.service import CalendarFacts, ChangedEvent, announce, wants_events

log = structlog.get_logger()

LEASE_FOR = timedelta(seconds=90)
_EXTEND_EVERY_SECONDS = 30.0
# A sync that goes on for this long is cut and starts over: its committed batches stay.
_SYNC_WITHIN_SECONDS = 1800.0

_BATCH_EVENTS = 2500
_BATCH_BYTES = 8_000_000

# The window is fetched this much further than promised, so that full rounds are needed only so often.
_WINDOW_MARGIN = timedelta(hours=6)
_MICROSECOND = timedelta(microseconds=1)

_RETRY_FIRST_SECONDS = 30.0
_RETRY_LONGEST_SECONDS = 1800.0
_RETRY_AFTER_LONGEST_SECONDS = 3600.0
# A 404 may be replication lag (providers.md A.10): so many in a row before the calendar counts as gone.
_GONE_CONFIRMATIONS = 3
# A cursor that expires again so soon after a full round would have us list everything again and again.
_FULL_ROUND_AGAIN_AFTER = timedelta(minutes=10)


@dataclass(slots=True)
class _Batch:
    """What the pages since the last write brought. A later entry of the same id wins."""

    events: dict[str, RemoteEvent] = field(default_factory=dict)
    gone: dict[str, None] = field(default_factory=dict)
    size: int = 0

    def add(self, page: ChangePage) -> None:
        for platform_uuid in page.gone:
            self.gone[platform_uuid] = None
            self.events.pop(platform_uuid, None)
        for event in page.events:
            self.events[event.platform_uuid] = event
            self.gone.pop(event.platform_uuid, None)
            self.size += len(event.raw)

    @property
    def is_full(self) -> bool:
        return len(self.events) + len(self.gone) >= _BATCH_EVENTS or self.size >= _BATCH_BYTES


class SyncEngine:
    """Claims due calendars and syncs them; any number of engines may run."""

    def __init__(
        self, *, settings: Settings, sessions: Sessions, providers: Providers, doorbell: Doorbell
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._providers = providers
        self._doorbell = doorbell
        # Writing thousands of events takes seconds: half of the connections are left for everything else.
        self._writes = asyncio.Semaphore(max(1, settings.database_pool_size // 2))

    async def claim(
        self, limit: int, *, kinds: Collection[Kind] = ("account", "feed"), pick: Pick = pick_oldest
    ) -> list[Claim]:
        async with transaction(self._sessions) as session:
            return await repository.claim_due(
                session, limit=limit, lease_for=LEASE_FOR, kinds=kinds, pick=pick
            )

    async def handle(self, claim: Claim) -> None:
        """One sync. Never raises for the provider's, the calendar's or an event's fault."""
        structlog.contextvars.bind_contextvars(calendar_id=claim.calendar_id)
        started = time.perf_counter()
        started_at = utcnow()
        outcome = "ok"
        try:
            async with self._kept_lease(claim), asyncio.timeout(_SYNC_WITHIN_SECONDS):
                await self._sync(claim, started_at)
        except LeaseLost:
            outcome = "lease_lost"
            log.info("sync_lease_lost")
        except asyncio.CancelledError:
            outcome = "cancelled"
            await asyncio.shield(self._give_back(claim))
            raise
        except ProviderError as err:
            outcome = err.code
            await self._fail(claim, err, started_at)
        except TimeoutError:
            outcome = "timeout"
            await self._fail(claim, Unavailable("The sync took too long.", code="timeout"), started_at)
        except Exception as err:
            # One bad calendar must not hold up the others.
            outcome = "internal_error"
            log.exception("sync_crashed")
            fault = Unavailable(f"Internal error: {type(err).__name__}.", code="internal_error")
            await self._fail(claim, fault, started_at)
        finally:
            metrics.SYNC_SECONDS.labels(claim.platform, outcome).observe(time.perf_counter() - started)

    async def _sync(self, claim: Claim, started_at: datetime) -> None:
        async with transaction(self._sessions) as session:
            state = await repository.load_state(session, claim)
        provider = await self._providers.open(claim, state)
        kept = self._kept_window(state, started_at)
        if state.cursor is None or kept is None:
            await self._round(claim, provider, None, self._new_window(started_at), started_at)
            return
        try:
            await self._round(claim, provider, state.cursor, kept, started_at)
        except CursorExpired:
            anchored_at = kept.start + self._settings.sync_window_past_for
            if started_at - anchored_at < _FULL_ROUND_AGAIN_AFTER:
                again_in = (anchored_at + _FULL_ROUND_AGAIN_AFTER - started_at).total_seconds()
                raise Transient(
                    "The provider forgot the sync position again.",
                    code="cursor_expired_again",
                    retry_after=again_in,
                ) from None
            log.info("sync_cursor_expired")
            await self._round(claim, provider, None, self._new_window(started_at), started_at)

    async def _round(
        self,
        claim: Claim,
        provider: CalendarProvider,
        cursor: str | None,
        window: Window,
        started_at: datetime,
    ) -> None:
        """All pages of one round, written as they fill batches; ends with the settling transaction."""
        batch = _Batch()
        seen: set[str] = set()
        async for page in provider.changes(cursor=cursor, window=window):
            batch.add(page)
            if page.is_snapshot:
                seen.update(event.platform_uuid for event in page.events)
                seen.difference_update(page.gone)
            if page.is_last:
                await self._finish(
                    claim,
                    batch,
                    cursor=page.next_cursor,
                    snapshot=seen if page.is_snapshot else None,
                    window=window,
                    started_at=started_at,
                )
                return
            if batch.is_full:
                async with self._writes, transaction(self._sessions) as session:
                    await self._write(session, claim, batch, window)
                batch = _Batch()
        raise Unavailable("The provider's answer ended early.", code="round_incomplete")

    async def _finish(
        self,
        claim: Claim,
        batch: _Batch,
        *,
        cursor: str | None,
        snapshot: set[str] | None,
        window: Window,
        started_at: datetime,
    ) -> None:
        """The last batch, the cursor, the sync times and the outbox rows, in one transaction."""
        async with self._writes, transaction(self._sessions) as session:
            unannounced, changed_events = await self._write(session, claim, batch, window, snapshot=snapshot)
            settled = await repository.settle_success(
                session,
                claim,
                cursor=cursor,
                window=window,
                started_at=started_at,
                next_in=self._next_in(self._settings.calendar_sync_interval_seconds),
                next_in_with_push=self._next_in(self._settings.calendar_sync_interval_with_push_seconds),
                wants_push=self._settings.push_enabled,
            )
            await _announce_changes(session, claim, settled, unannounced, changed_events)
        for change in ("created", "updated", "deleted"):
            count = getattr(unannounced, change)
            metrics.SYNC_EVENTS.labels(claim.platform, change).inc(count)
        if unannounced.since is not None:
            log.info(
                "synced",
                created=unannounced.created,
                updated=unannounced.updated,
                deleted=unannounced.deleted,
            )
            await self._doorbell.ring("deliveries")

    async def _write(
        self,
        session: Session,
        claim: Claim,
        batch: _Batch,
        window: Window,
        *,
        snapshot: set[str] | None = None,
    ) -> tuple[Unannounced, list[ChangedEvent]]:
        """Writes what differs. With `snapshot` (all ids of a full round), the rows missing from it are gone.

        Returns everything that is not announced yet, and the content of changes where a webhook wants it.
        """
        unannounced = await repository.lock_calendar(session, claim)
        events = list(batch.events.values())
        hashes = {event.platform_uuid: content_hash(event) for event in events}
        writes: list[EventWrite] = []
        if events:
            stored = await repository.load_stored(session, claim.calendar_id, list(hashes))
            writes = diff_events(events, hashes, stored, window)
        deleted_ids: list[str] = []
        if batch.gone:
            deleted_ids = await repository.find_live_of(
                session, claim.calendar_id, list(batch.gone), batch.events.keys()
            )
        if snapshot is not None:
            missing = await repository.find_live_missing(session, claim.calendar_id, window, snapshot)
            deleted_ids = list(dict.fromkeys([*deleted_ids, *missing]))
        if not writes and not deleted_ids:
            return unannounced, []

        wanted = await wants_events(session, claim.project_id)
        known = [write.stored_id for write in writes if write.stored_id is not None]
        before: dict[str, dict[str, Any]] = {}
        if wanted:
            before = await repository.load_content(session, [*known, *deleted_ids])
        first = await enter_as_writer(session, project_id=claim.project_id, calendar_id=claim.calendar_id)
        times = [first + n * _MICROSECOND for n in range(len(writes) + len(deleted_ids))]
        ids: list[str] = []
        if writes:
            ids = await repository.write_events(session, claim, writes, times[: len(writes)])
        if deleted_ids:
            await repository.mark_deleted(session, deleted_ids, times[len(writes) :])
        await follow_events(session, [*known, *deleted_ids])
        counts = Counter(write.change for write in writes)
        unannounced = Unannounced(
            since=unannounced.since or first,
            created=unannounced.created + counts["created"],
            updated=unannounced.updated + counts["updated"],
            deleted=unannounced.deleted + counts["deleted"] + len(deleted_ids),
        )
        await repository.record_changes(session, claim, unannounced, last_change_at=times[-1])
        return unannounced, describe_changes(writes, ids, deleted_ids, before) if wanted else []

    async def _fail(self, claim: Claim, err: ProviderError, started_at: datetime) -> None:
        """Notes the failure; disconnects where only the person can mend it. Announces what was written before."""
        try:
            async with transaction(self._sessions) as session:
                unannounced = await repository.lock_calendar(session, claim)
                state = await repository.load_state(session, claim)
                disconnects = _disconnects(err, state)
                settled = await repository.settle_failure(
                    session,
                    claim,
                    code=err.code,
                    started_at=started_at,
                    next_in=_retry_in(err, state.failure_count, self._settings),
                    disconnects=disconnects,
                    failure_data=_failure_data(err) if disconnects else None,
                )
                await _announce_changes(session, claim, settled, unannounced, [])
                if disconnects:
                    await close_channels(session, claim.calendar_id)
                    await drop_bots_of_calendar(session, claim.calendar_id, "calendar_disconnected")
                    await announce(
                        session,
                        project_id=claim.project_id,
                        trigger="calendar.state_change",
                        calendar=_facts(claim, settled),
                        data=state_data(settled),
                    )
        except LeaseLost:
            return
        level = log.error if isinstance(err, ClientMisconfigured) else log.warning
        level("sync_failed", code=err.code, error=err.message, disconnected=disconnects)
        await self._doorbell.ring("deliveries")

    async def _give_back(self, claim: Claim) -> None:
        async with transaction(self._sessions) as session:
            await repository.give_back(session, claim)

    @asynccontextmanager
    async def _kept_lease(self, claim: Claim) -> AsyncIterator[None]:
        """Extends the lease while the block runs, so that a slow provider does not cost it."""

        async def extend() -> None:
            while True:
                await asyncio.sleep(_EXTEND_EVERY_SECONDS)
                async with transaction(self._sessions) as session:
                    await repository.extend_lease(session, claim)

        extending = asyncio.create_task(extend())
        try:
            yield
        finally:
            # A lease that could not be extended shows at the next write, which is fenced by it.
            extending.cancel()
            await asyncio.wait([extending])

    def _new_window(self, now: datetime) -> Window:
        return Window(
            start=now - self._settings.sync_window_past_for,
            end=now + self._settings.sync_window_future_for + _WINDOW_MARGIN,
        )

    def _kept_window(self, state: SyncState, now: datetime) -> Window | None:
        """The window of the last full round, or None when it no longer covers what is promised."""
        if state.window_start is None or state.window_end is None:
            return None
        wanted = self._new_window(now)
        reaches = state.window_end >= now + self._settings.sync_window_future_for
        fits = wanted.end - wanted.start == state.window_end - state.window_start
        return Window(state.window_start, state.window_end) if reaches and fits else None

    def _next_in(self, seconds: float) -> timedelta:
        """The time to the next sync, spread so that calendars connected together do not stay in step."""
        return timedelta(seconds=seconds * random.uniform(0.8, 1.0))  # noqa: S311 - jitter


def _disconnects(err: ProviderError, state: SyncState) -> bool:
    if isinstance(err, CalendarGone):
        return state.failure_code == err.code and state.failure_count + 1 >= _GONE_CONFIRMATIONS
    return isinstance(err, ConnectionLost)


def _retry_in(err: ProviderError, failures: int, settings: Settings) -> timedelta:
    """Exponential with jitter, never below what the provider asked for; an operator's fault waits longest."""
    first = min(_RETRY_FIRST_SECONDS, settings.calendar_sync_interval_seconds)
    seconds = min(first * 2 ** min(failures, 10), _RETRY_LONGEST_SECONDS)
    if isinstance(err, ClientMisconfigured):
        seconds = min(_RETRY_LONGEST_SECONDS, settings.calendar_sync_interval_seconds)
    seconds *= random.uniform(0.75, 1.25)  # noqa: S311 - jitter
    if isinstance(err, Transient) and err.retry_after is not None:
        seconds = max(seconds, min(err.retry_after, _RETRY_AFTER_LONGEST_SECONDS))
    return timedelta(seconds=seconds)


def _failure_data(err: ProviderError) -> str:
    data = {"error": err.message, "code": err.code, "timestamp": isoformat(utcnow())}
    return orjson.dumps(data).decode()


def _facts(claim: Claim, settled: Settled) -> CalendarFacts:
    return CalendarFacts(
        id=claim.calendar_id, deduplication_key=settled.deduplication_key, metadata=settled.metadata
    )


async def _announce_changes(
    session: Session,
    claim: Claim,
    settled: Settled,
    unannounced: Unannounced,
    changed_events: Sequence[ChangedEvent],
) -> None:
    """One `calendar.events_update` for everything that is written and not yet announced."""
    if unannounced.since is None:
        return
    changes = {
        "created": unannounced.created,
        "updated": unannounced.updated,
        "deleted": unannounced.deleted,
    }
    await announce(
        session,
        project_id=claim.project_id,
        trigger="calendar.events_update",
        calendar=_facts(claim, settled),
        data={**state_data(settled), "changes": changes, "updated_after": isoformat(unannounced.since)},
        changed_events=changed_events,
    )
