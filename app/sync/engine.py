"""Syncs of calendars: pages of changes from the provider in, changed rows and one webhook out.

The changes of a sync are written in batches. The last batch, the cursor, the sync times and the outbox rows are one
transaction, and most syncs have no other. A larger one, such as a first sync of thousands of events, commits batch by
batch to bound its memory. The calendar's row counts what is committed and not announced yet; the end of the sync
announces it, or the next sync if the process is killed.

app/sync/effects.py has what follows a sync in other features.
"""

import asyncio
import time
from collections.abc import Collection
from datetime import datetime, timedelta

import structlog

from app.core import lease, metrics
from app.core.db import Session, Sessions, transaction
from app.core.lease import LeaseLost
from app.events import service as stored_events
from app.events.data import Window
from app.events.writer import WrittenChanges, apply_changes
from app.outages import breakers
from app.outages.breakers import Breakers
from app.providers.base import (
    CalendarProvider,
    CursorExpired,
    NotAsked,
    ProviderError,
    Transient,
    Unavailable,
)
from app.settings import Settings
from app.sync import repository
from app.sync.attempt import Attempt, Batch
from app.sync.deletions import Absent, EventsAhead, sort_absent, split_missing
from app.sync.effects import follow_success
from app.sync.failures import RETRIES_WITHIN_SYNC, FailureRecorder, hiccup_pause, is_hiccup
from app.sync.providers import ProviderFactory
from app.sync.repository import Claim, HeldBack, Pick, SyncState
from app.sync.turns import Kind, pick_oldest
from app.sync.window import anchored_at, kept_window, new_window, next_in

log = structlog.get_logger()

LEASE_FOR = timedelta(seconds=90)
_EXTEND_EVERY_SECONDS = 30.0
# A longer sync is cut off and starts over. Its committed batches stay.
_SYNC_WITHIN_SECONDS = 1800.0
# Until the next round, if not all of what a response left out could be asked for: Google limits requests per minute.
_READ_ON_AFTER = timedelta(minutes=1)
# A cursor that expires this soon after a full round would lead to one full round after another.
_FULL_ROUND_AGAIN_AFTER = timedelta(minutes=10)


class SyncEngine:
    """Claims due calendars and syncs them; any number of engines may run."""

    def __init__(self, *, settings: Settings, sessions: Sessions, providers: ProviderFactory) -> None:
        self._settings = settings
        self._sessions = sessions
        self._providers = providers
        self._breakers = Breakers(sessions)
        self._failures = FailureRecorder(settings=settings, sessions=sessions, breakers=self._breakers)
        # Writing thousands of events takes seconds: half of the connections are left for everything else.
        self._writes = asyncio.Semaphore(max(1, settings.database_pool_size // 2))

    async def claim(
        self, limit: int, *, kinds: Collection[Kind] = ("account", "feed"), pick: Pick = pick_oldest
    ) -> list[Claim]:
        await self._breakers.look()
        async with transaction(self._sessions) as session:
            return await repository.claim_due(
                session, limit=limit, lease_for=LEASE_FOR, kinds=kinds, pick=pick
            )

    async def handle(self, claim: Claim) -> None:
        """Sync a claimed calendar. Faults of the provider, the calendar or an event are not raised."""
        structlog.contextvars.bind_contextvars(
            calendar_id=claim.calendar_id, project_id=claim.project_id, platform=claim.platform
        )
        started = time.perf_counter()
        attempt = Attempt(claim)
        outcome = "ok"
        within = asyncio.timeout(_SYNC_WITHIN_SECONDS)
        try:
            async with (
                lease.extending(lambda: self._extend_lease(claim), every_seconds=_EXTEND_EVERY_SECONDS),
                within,
            ):
                if not await self._sync(attempt):
                    outcome = "held"
        except LeaseLost:
            outcome = "lease_lost"
            log.info("sync_lease_lost")
        except asyncio.CancelledError:
            outcome = "cancelled"
            await asyncio.shield(self._give_back(claim))
            raise
        except NotAsked as err:
            outcome = err.code
            await self._failures.put_off(attempt, err)
        except ProviderError as err:
            outcome = err.code
            await self._failures.record(attempt, err)
        except Exception as err:
            # One bad calendar must not stop the worker. Any other TimeoutError is the database's.
            if isinstance(err, TimeoutError) and within.expired():
                outcome = "timeout"
                fault = Unavailable("The sync took too long.", code=outcome)
            else:
                outcome = "internal_error"
                log.exception("sync_crashed")
                fault = Unavailable(f"Internal error: {type(err).__name__}.", code=outcome)
            await self._failures.record(attempt, fault)
        finally:
            metrics.SYNC_SECONDS.labels(claim.platform, outcome).observe(time.perf_counter() - started)
        if attempt.is_probe and attempt.scope is not None:
            await self._breakers.end_probe(attempt.scope)

    async def _sync(self, attempt: Attempt) -> bool:
        """Run the sync; returns False if the calendar is held instead, because a breaker is open."""
        claim = attempt.claim
        async with transaction(self._sessions) as session:
            attempt.state = state = await repository.load_state(session, claim)
            # The scope of a feed is known only once its address is read: see below.
            breaker = await breakers.load_state(session, claim.platform)
        if not await self._admit(attempt, claim.platform, breaker):
            return False
        provider, scope = await self._providers.for_calendar(claim, state)
        if scope != claim.platform:
            async with transaction(self._sessions) as session:
                breaker = await breakers.load_state(session, scope)
            if not await self._admit(attempt, scope, breaker):
                return False
        for tried in range(RETRIES_WITHIN_SYNC + 1):
            try:
                await self._sync_with(attempt, provider, state)
                break
            except Unavailable as err:
                if tried == RETRIES_WITHIN_SYNC or not is_hiccup(err, attempt, state):
                    raise
                log.info("sync_tried_again", code=err.code)
                await asyncio.sleep(hiccup_pause(err, tried))
        await self._breakers.vote_fine(scope, claim.project_id)
        return True

    async def _admit(self, attempt: Attempt, scope: str, breaker: breakers.State) -> bool:
        """Check that the breaker is closed or this sync is its probe. If not, hold the calendar."""
        claim = attempt.claim
        attempt.scope = scope
        if breaker == "closed":
            return True
        if breaker == "ready" and await self._breakers.take_probe(scope, claim.project_id):
            attempt.is_probe = True
            return True
        is_held = False
        async with transaction(self._sessions) as session:
            await repository.lock_calendar(session, claim)
            if await breakers.stays_open(session, scope):
                await repository.put_off(
                    session,
                    claim,
                    next_in=next_in(self._settings.calendar_sync_interval_seconds),
                    outage_scope=scope,
                )
                is_held = True
        if is_held and attempt.state is not None and attempt.state.window_start is None:
            await self._breakers.hasten_probe(scope)
        return not is_held

    async def _sync_with(self, attempt: Attempt, provider: CalendarProvider, state: SyncState) -> None:
        """Run a round from the cursor, or a full one if there is no cursor that is still good."""
        kept = kept_window(self._settings, state)
        if state.cursor is None or kept is None:
            await self._round(attempt, provider, None, new_window(self._settings, state))
            return
        try:
            await self._round(attempt, provider, state.cursor, kept)
        except CursorExpired:
            expired_at = None
            if state.now - anchored_at(self._settings, state, kept) < _FULL_ROUND_AGAIN_AFTER:
                # It may expire soon after a full round once. Twice would be a loop.
                expired_at = state.now
                last = state.cursor_expired_at
                if last is not None and state.now - last < _FULL_ROUND_AGAIN_AFTER:
                    raise Transient(
                        "The provider forgot the sync position again.",
                        code="cursor_expired_again",
                        retry_after=(last + _FULL_ROUND_AGAIN_AFTER - state.now).total_seconds(),
                    ) from None
            log.info("sync_cursor_expired")
            window = new_window(self._settings, state)
            await self._round(attempt, provider, None, window, cursor_expired_at=expired_at)

    async def _round(
        self,
        attempt: Attempt,
        provider: CalendarProvider,
        cursor: str | None,
        window: Window,
        *,
        cursor_expired_at: datetime | None = None,
    ) -> None:
        """Read all pages of one round, write them as they fill batches, and store the result of the sync."""
        batch = Batch()
        seen: set[str] = set()
        async for page in provider.changes(cursor=cursor, window=window):
            if attempt.is_probe and attempt.scope is not None:
                attempt.is_probe = False
                await self._breakers.close(attempt.scope)
            batch.add(page)
            if page.is_snapshot:
                seen.update(event.platform_uuid for event in page.events)
                seen.difference_update(page.removed, page.unlisted)
            if page.is_last:
                absent = None
                complete_until = None
                if page.is_snapshot:
                    complete_until = page.complete_until or window.end
                    listed = Window(window.start, complete_until)
                    absent = await self._find_absent(
                        attempt, provider, batch, seen, window=window, listed=listed
                    )
                await self._finish(
                    attempt,
                    batch,
                    cursor=page.next_cursor,
                    absent=absent,
                    window=window,
                    complete_until=complete_until,
                    cursor_expired_at=cursor_expired_at,
                )
                return
            if batch.is_full:
                async with self._writes, transaction(self._sessions) as session:
                    await self._write(session, attempt, batch, window)
                batch = Batch()
        raise Unavailable("The provider's response ended early.", code="round_incomplete")

    async def _find_absent(
        self,
        attempt: Attempt,
        provider: CalendarProvider,
        batch: Batch,
        seen: set[str],
        *,
        window: Window,
        listed: Window,
    ) -> Absent:
        """Ask for each live row that a full round did not list. Those that moved are put into the batch.

        `listed`: the part of the window whose events were all listed. What exists outside of it counts as moved.
        """
        async with transaction(self._sessions) as session:
            missing = await stored_events.find_live_missing(session, attempt.claim.calendar_id, window, seen)
        # What the provider has named as removed is not asked for.
        missing = {
            event_id: known
            for event_id, known in missing.items()
            if known.platform_uuid not in batch.removed and known.recurring_event_id not in batch.removed
        }
        if not missing:
            return Absent()
        absent = sort_absent(missing, await provider.reread(list(missing.values())), listed)
        batch.events.update({event.platform_uuid: event for event in absent.moved})
        log.info(
            "sync_reread",
            count=absent.count,
            removed=len(absent.removed),
            moved=len(absent.moved),
            unclear=len(absent.unclear),
            unread=len(absent.unread),
        )
        return absent

    async def _finish(
        self,
        attempt: Attempt,
        batch: Batch,
        *,
        cursor: str | None,
        absent: Absent | None,
        window: Window,
        complete_until: datetime | None,
        cursor_expired_at: datetime | None,
    ) -> None:
        """Write the last batch, the cursor, the sync times and the outbox rows, in one transaction."""
        claim, state = attempt.claim, attempt.state
        assert state is not None
        async with self._writes, transaction(self._sessions) as session:
            written, held_back = await self._write(session, attempt, batch, window, absent=absent)
            due_in = next_in(self._settings.calendar_sync_interval_seconds)
            due_in_with_push = next_in(self._settings.calendar_sync_interval_with_push_seconds)
            if absent is not None and absent.unread:
                # The next round must be a full one: changes since this cursor would not name these events again.
                cursor = None
                if len(absent.unread) < absent.count:
                    due_in = min(due_in, _READ_ON_AFTER)
                    due_in_with_push = due_in
            if held_back is not None:
                # Here, too.
                cursor = None
                confirm_for = timedelta(seconds=self._settings.calendar_shrink_confirm_seconds)
                due_in = max(held_back.since + confirm_for - attempt.started_at, _READ_ON_AFTER)
                due_in_with_push = due_in
                log.warning("sync_deletions_held_back", count=len(held_back.ids))
            settled = await repository.settle_success(
                session,
                claim,
                cursor=cursor,
                window=window,
                days=(state.window_past_days, state.window_future_days),
                complete_until=complete_until,
                started_at=attempt.started_at,
                next_in=due_in,
                next_in_with_push=due_in_with_push,
                wants_push=self._settings.push_enabled,
                held_back=held_back,
                cursor_expired_at=cursor_expired_at,
            )
            await follow_success(session, claim, settled, written, is_reconnected=attempt.is_trial)
        unannounced = written.unannounced
        for change in ("created", "updated", "deleted"):
            count = getattr(unannounced, change)
            metrics.SYNC_EVENTS.labels(claim.platform, change).inc(count)
        if attempt.is_trial:
            log.info("reconnected")
        if unannounced.since is not None:
            log.info(
                "synced",
                created=unannounced.created,
                updated=unannounced.updated,
                deleted=unannounced.deleted,
            )

    async def _write(
        self,
        session: Session,
        attempt: Attempt,
        batch: Batch,
        window: Window,
        *,
        absent: Absent | None = None,
    ) -> tuple[WrittenChanges, HeldBack | None]:
        """Write the changes of a batch, and the deletions that are confirmed; returns what is held back, too."""
        claim = attempt.claim
        held_back: HeldBack | None = None
        unannounced = await repository.lock_calendar(session, claim)
        removed: dict[str, str | None] = {}
        if batch.removed:
            named = await stored_events.find_live_of(
                session, claim.calendar_id, batch.removed, batch.events.keys()
            )
            removed = {
                event_id: batch.removed.get(platform_uuid) for event_id, platform_uuid in named.items()
            }
        if absent is not None:
            removed |= absent.removed
            believed, held_back = await self._believe(session, attempt, list(removed), absent, window)
            removed = {event_id: removed.get(event_id) for event_id in believed}
        written = await apply_changes(
            session,
            claim,
            batch.events.values(),
            window=window,
            removed=removed,
            earlier=unannounced,
            is_announced_now=False,
            bot_platforms=self._settings.bot_runner_platforms,
        )
        return written, held_back

    async def _believe(
        self, session: Session, attempt: Attempt, removed: list[str], absent: Absent, window: Window
    ) -> tuple[list[str], HeldBack | None]:
        """Split what a complete response leaves out into what is deleted now, and what is held back."""
        missing = [*removed, *absent.unclear, *absent.unread]
        if not missing:
            return [], None
        state = attempt.state
        assert state is not None
        held = None
        if state.held_back_since is not None:
            held = HeldBack(state.held_back_ids or [], state.held_back_since)
        held_ids = set(held.ids) if held is not None else set()
        ahead = EventsAhead(
            *await stored_events.count_ahead(
                session,
                attempt.claim.calendar_id,
                missing,
                [event_id for event_id in missing if event_id in held_ids],
                window=window,
                # What came while a response was in doubt does not make the doubtful part smaller.
                known_before=held.since if held is not None else state.now,
            )
        )
        return split_missing(
            removed=removed,
            unclear=absent.unclear,
            unread=absent.unread,
            held=held,
            ahead=ahead,
            now=state.now,
            confirm_for=timedelta(seconds=self._settings.calendar_shrink_confirm_seconds),
        )

    async def _give_back(self, claim: Claim) -> None:
        async with transaction(self._sessions) as session:
            await repository.give_back(session, claim)

    async def _extend_lease(self, claim: Claim) -> None:
        async with transaction(self._sessions) as session:
            await repository.extend_lease(session, claim)
