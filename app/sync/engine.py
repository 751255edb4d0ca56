"""One sync of one calendar: pages from the provider in, changed rows and one webhook out.

The changes of a sync are written in batches. The last batch, the cursor, the sync times and the outbox rows
are one transaction; nearly every sync has only that one. A larger one (a first sync of thousands of events)
commits batch by batch, so that memory stays bounded; what it has committed but not yet announced is counted
in the calendar's row, and announced by whatever ends the sync, or by the next one after a kill -9.
"""

import asyncio
import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import orjson
import structlog

from app.bots.service import drop_bots_of_calendar
from app.core import lease, metrics
from app.core.backoff import Backoff, respect_retry_after, spread
from app.core.clock import isoformat, utcnow
from app.core.db import Session, Sessions, transaction
from app.core.lease import LeaseLost
from app.events import service as stored_events
from app.events.data import RemoteEvent, Window
from app.events.diff import is_in_window
from app.events.writer import WrittenChanges, announce_changes, apply_changes
from app.outages import breakers
from app.outages.breakers import Breakers
from app.providers.base import (
    CalendarProvider,
    ChangePage,
    ClientMisconfigured,
    ConnectionLost,
    CursorExpired,
    NotAsked,
    ProviderError,
    Transient,
    Unavailable,
)
from app.push.repository import close_channels
from app.settings import Settings
from app.sync import repository
from app.sync.providers import ProviderFactory
from app.sync.repository import Claim, HeldBack, Pick, Settled, SyncState
from app.sync.turns import Kind, pick_oldest
from app.webhooks.payloads import state_data
from app.webhooks.service import CalendarFacts, announce

log = structlog.get_logger()

LEASE_FOR = timedelta(seconds=90)
_EXTEND_EVERY_SECONDS = 30.0
# A sync that goes on for this long is cut and starts over: its committed batches stay.
_SYNC_WITHIN_SECONDS = 1800.0

_BATCH_EVENTS = 2500
_BATCH_BYTES = 8_000_000

# The window is fetched this much further than promised, so that full rounds are needed only so often. The margin
# varies, so that calendars which were connected together do not do their full rounds together.
_WINDOW_MARGIN = timedelta(hours=6)
_WINDOW_MARGIN_LEAST = timedelta(hours=4.5)

_RETRY_FIRST_SECONDS = 30.0
_RETRY_LONGEST_SECONDS = 1800.0
_RETRY_JITTER = (0.75, 1.25)
_INTERVAL_JITTER = (0.8, 1.0)
# A refusal is believed after so many attempts, at the least.
_GONE_CONFIRMATIONS = 3
# So many calendars that began to fail alike at about the same time are an outage, or might be one.
_ALIKE = 10
_ALIKE_WITHIN = timedelta(minutes=30)
# What a complete answer may not leave out without a second one: all of so many events ahead, most of so many.
_SHRINKS_ALL_OF = 3
_SHRINKS_MOST_OF = 5
# The next round, where some of what an answer left out could not be asked for yet: Google counts by the minute.
_READ_ON_AFTER = timedelta(minutes=1)

# A hiccup: tried again within the same sync.
_TRIES_AGAIN = 2
_TRY_AGAIN_AFTER_SECONDS = 1.0
_TRY_AGAIN_WITHIN_SECONDS = 15.0
_SHORT_RETRY_AFTER_SECONDS = 2.0
# What does not pass within seconds.
_LASTING = frozenset(
    {"address_refused", "answer_too_large", "feed_too_large", "feed_too_complex", "too_many_redirects"}
)
# Our own doing, or about this one calendar alone: says nothing about its platform.
_NOT_THE_PLATFORMS = _LASTING | {
    "cursor_expired_again",
    "feed_reader_died",
    "internal_error",
    "mailbox_moving",
    "seal_broken",
}
# A cursor that expires again so soon after a full round would have us list everything again and again.
_FULL_ROUND_AGAIN_AFTER = timedelta(minutes=10)


@dataclass(slots=True)
class _Batch:
    """What the pages since the last write brought. A later entry of the same id wins."""

    events: dict[str, RemoteEvent] = field(default_factory=dict)
    removed: dict[str, str | None] = field(
        default_factory=dict
    )  # to the cancelled event's `raw`, where there is one
    size: int = 0

    def add(self, page: ChangePage) -> None:
        for platform_uuid, raw in page.removed.items():
            self.removed[platform_uuid] = raw
            self.events.pop(platform_uuid, None)
            self.size += len(raw or "")
        for platform_uuid in page.unlisted:
            self.events.pop(platform_uuid, None)
        for event in page.events:
            self.events[event.platform_uuid] = event
            self.removed.pop(event.platform_uuid, None)
            self.size += len(event.raw)

    @property
    def is_full(self) -> bool:
        return len(self.events) + len(self.removed) >= _BATCH_EVENTS or self.size >= _BATCH_BYTES


@dataclass(slots=True)
class _Absent:
    """Live rows in the window that a full round did not list, by their ids.

    `removed`: deleted or cancelled, each by the provider's own word; to the `raw` of the cancelled event, if any.
    `unclear`: the provider has them in the window all the same, or does not say. `unread`: not asked for yet.
    """

    removed: dict[str, str | None] = field(default_factory=dict)
    unclear: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    count: int = 0


@dataclass(slots=True)
class _Attempt:
    """One sync under way. Times are the database's.

    `state` is what it started from. `scope`: of the breaker, once it is known. `is_probe`: the breaker is open, and
    this sync tries whether the platform is back.
    """

    claim: Claim
    started: float = field(default_factory=time.monotonic)
    state: SyncState | None = None
    scope: str | None = None
    is_probe: bool = False

    @property
    def started_at(self) -> datetime:
        return self.state.now if self.state is not None else utcnow()

    @property
    def is_forced(self) -> bool:
        """Whether a client's request made it start before it was due."""
        forced_before = self.state.forced_before if self.state is not None else None
        return forced_before is not None and forced_before > self.started_at


class SyncEngine:
    """Claims due calendars and syncs them; any number of engines may run."""

    def __init__(self, *, settings: Settings, sessions: Sessions, providers: ProviderFactory) -> None:
        self._settings = settings
        self._sessions = sessions
        self._providers = providers
        self._breakers = Breakers(sessions)
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
        """One sync. Never raises for the provider's, the calendar's or an event's fault."""
        structlog.contextvars.bind_contextvars(
            calendar_id=claim.calendar_id, project_id=claim.project_id, platform=claim.platform
        )
        started = time.perf_counter()
        attempt = _Attempt(claim)
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
            await self._put_off(attempt, err)
        except ProviderError as err:
            outcome = err.code
            await self._fail(attempt, err)
        except Exception as err:
            # One bad calendar must not hold up the others. Another TimeoutError than ours is the database's.
            if isinstance(err, TimeoutError) and within.expired():
                outcome = "timeout"
                fault = Unavailable("The sync took too long.", code=outcome)
            else:
                outcome = "internal_error"
                log.exception("sync_crashed")
                fault = Unavailable(f"Internal error: {type(err).__name__}.", code=outcome)
            await self._fail(attempt, fault)
        finally:
            metrics.SYNC_SECONDS.labels(claim.platform, outcome).observe(time.perf_counter() - started)
        if attempt.is_probe and attempt.scope is not None:
            await self._breakers.end_probe(attempt.scope)

    async def _sync(self, attempt: _Attempt) -> bool:
        """Whether it was done: False where the calendar is held, because its platform's breaker is open."""
        claim = attempt.claim
        async with transaction(self._sessions) as session:
            attempt.state = state = await repository.load_state(session, claim)
            # The scope of a feed is known only once its address is: see below.
            breaker = await breakers.load_state(session, claim.platform)
        if not await self._admit(attempt, claim.platform, breaker):
            return False
        provider, scope = await self._providers.for_calendar(claim, state)
        if scope != claim.platform:
            async with transaction(self._sessions) as session:
                breaker = await breakers.load_state(session, scope)
            if not await self._admit(attempt, scope, breaker):
                return False
        for tried in range(_TRIES_AGAIN + 1):
            try:
                await self._sync_with(attempt, provider, state)
                break
            except Unavailable as err:
                if tried == _TRIES_AGAIN or not _is_hiccup(err, attempt, state):
                    raise
                log.info("sync_tried_again", code=err.code)
                pause = _TRY_AGAIN_AFTER_SECONDS * (tried + random.uniform(0.6, 1.0))  # noqa: S311 - jitter
                await asyncio.sleep(max(pause, err.retry_after or 0))
        await self._breakers.vote_fine(scope, claim.project_id)
        return True

    async def _admit(self, attempt: _Attempt, scope: str, breaker: breakers.State) -> bool:
        """Whether the sync may go on: the breaker is closed, or this sync is its probe. Else holds the calendar."""
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
                    next_in=self._next_in(self._settings.calendar_sync_interval_seconds),
                    outage_scope=scope,
                )
                is_held = True
        if is_held and attempt.state is not None and attempt.state.window_start is None:
            await self._breakers.hasten_probe(scope)
        return not is_held

    async def _sync_with(self, attempt: _Attempt, provider: CalendarProvider, state: SyncState) -> None:
        kept = self._kept_window(state)
        if state.cursor is None or kept is None:
            await self._round(attempt, provider, None, self._new_window(state.now))
            return
        try:
            await self._round(attempt, provider, state.cursor, kept)
        except CursorExpired:
            expired_at = None
            anchored_at = kept.start + self._settings.sync_window_past_for
            if state.now - anchored_at < _FULL_ROUND_AGAIN_AFTER:
                # It may expire soon after a full round once; again and again would be a loop.
                expired_at = state.now
                last = state.cursor_expired_at
                if last is not None and state.now - last < _FULL_ROUND_AGAIN_AFTER:
                    raise Transient(
                        "The provider forgot the sync position again.",
                        code="cursor_expired_again",
                        retry_after=(last + _FULL_ROUND_AGAIN_AFTER - state.now).total_seconds(),
                    ) from None
            log.info("sync_cursor_expired")
            window = self._new_window(state.now)
            await self._round(attempt, provider, None, window, cursor_expired_at=expired_at)

    async def _round(
        self,
        attempt: _Attempt,
        provider: CalendarProvider,
        cursor: str | None,
        window: Window,
        *,
        cursor_expired_at: datetime | None = None,
    ) -> None:
        """All pages of one round, written as they fill batches; ends with the settling transaction."""
        batch = _Batch()
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
                if page.is_snapshot:
                    absent = await self._find_absent(attempt, provider, batch, seen, window)
                await self._finish(
                    attempt,
                    batch,
                    cursor=page.next_cursor,
                    absent=absent,
                    window=window,
                    cursor_expired_at=cursor_expired_at,
                )
                return
            if batch.is_full:
                async with self._writes, transaction(self._sessions) as session:
                    await self._write(session, attempt, batch, window)
                batch = _Batch()
        raise Unavailable("The provider's answer ended early.", code="round_incomplete")

    async def _find_absent(
        self, attempt: _Attempt, provider: CalendarProvider, batch: _Batch, seen: set[str], window: Window
    ) -> _Absent:
        """Asks for each live row that a full round did not list. Those that moved are put into the batch."""
        async with transaction(self._sessions) as session:
            missing = await stored_events.find_live_missing(session, attempt.claim.calendar_id, window, seen)
        # What is named as removed needs no second word.
        missing = {
            event_id: known
            for event_id, known in missing.items()
            if known.platform_uuid not in batch.removed and known.recurring_event_id not in batch.removed
        }
        if not missing:
            return _Absent()
        reread = await provider.reread(list(missing.values()))
        moved = {event.platform_uuid for event in reread.found if not is_in_window(event, window)}
        batch.events.update(
            {event.platform_uuid: event for event in reread.found if event.platform_uuid in moved}
        )
        unread = frozenset(reread.unread)
        absent = _Absent(count=len(missing))
        for event_id, known in missing.items():
            platform_uuid = known.platform_uuid
            if platform_uuid in reread.removed:
                absent.removed[event_id] = reread.removed[platform_uuid]
            elif platform_uuid in unread:
                absent.unread.append(event_id)
            elif platform_uuid not in moved:
                absent.unclear.append(event_id)
        log.info(
            "sync_reread",
            count=len(missing),
            removed=len(absent.removed),
            moved=len(moved),
            unclear=len(absent.unclear),
            unread=len(absent.unread),
        )
        return absent

    async def _finish(
        self,
        attempt: _Attempt,
        batch: _Batch,
        *,
        cursor: str | None,
        absent: _Absent | None,
        window: Window,
        cursor_expired_at: datetime | None,
    ) -> None:
        """The last batch, the cursor, the sync times and the outbox rows, in one transaction."""
        claim = attempt.claim
        async with self._writes, transaction(self._sessions) as session:
            written, held_back = await self._write(session, attempt, batch, window, absent=absent)
            next_in = self._next_in(self._settings.calendar_sync_interval_seconds)
            next_in_with_push = self._next_in(self._settings.calendar_sync_interval_with_push_seconds)
            if absent is not None and absent.unread:
                # The next round must be a full one: a cursor of this answer would never tell of them again.
                cursor = None
                if len(absent.unread) < absent.count:
                    next_in = min(next_in, _READ_ON_AFTER)
                    next_in_with_push = next_in
            if held_back is not None:
                # Here too.
                cursor = None
                confirm_for = timedelta(seconds=self._settings.calendar_shrink_confirm_seconds)
                next_in = max(held_back.since + confirm_for - attempt.started_at, _READ_ON_AFTER)
                next_in_with_push = next_in
                log.warning("sync_deletions_held_back", count=len(held_back.ids))
            settled = await repository.settle_success(
                session,
                claim,
                cursor=cursor,
                window=window,
                started_at=attempt.started_at,
                next_in=next_in,
                next_in_with_push=next_in_with_push,
                wants_push=self._settings.push_enabled,
                held_back=held_back,
                cursor_expired_at=cursor_expired_at,
            )
            if attempt.state is not None and attempt.state.is_trial:
                await _announce_state(session, claim, settled)
                log.info("reconnected")
            await announce_changes(session, claim.project_id, _facts(claim, settled), settled, written)
        unannounced = written.unannounced
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

    async def _write(
        self,
        session: Session,
        attempt: _Attempt,
        batch: _Batch,
        window: Window,
        *,
        absent: _Absent | None = None,
    ) -> tuple[WrittenChanges, HeldBack | None]:
        """Write what differs. `absent`: what became of the rows that a full round did not list."""
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
            believed, held_back = await self._believe(
                session, attempt, list(removed), unclear=absent.unclear, unread=absent.unread
            )
            removed = {event_id: removed.get(event_id) for event_id in believed}
        written = await apply_changes(
            session,
            claim,
            batch.events.values(),
            window=window,
            removed=removed,
            earlier=unannounced,
            is_announced_now=False,
        )
        return written, held_back

    async def _believe(
        self,
        session: Session,
        attempt: _Attempt,
        removed: list[str],
        *,
        unclear: list[str],
        unread: list[str],
    ) -> tuple[list[str], HeldBack | None]:
        """Which of the events that a complete answer leaves out are deleted now, and what is held back.

        An answer may leave out most of a calendar by mistake: a mass is believed once a second answer, a while
        later, leaves out the same, and so is what is `unclear`. Only omissions are doubted. In a list of changes
        each deletion is named by itself, and no mistake of that kind makes a mass of them. What is `unread` counts
        for the mass, and is not deleted.
        """
        missing = [*removed, *unclear, *unread]
        assert attempt.state is not None
        now, since = attempt.state.now, attempt.state.held_back_since
        held = set(attempt.state.held_back_ids or ())

        async def is_mass(ids: list[str], *, besides: Sequence[str] = ()) -> bool:
            # What came while an answer was in doubt does not make the doubtful part smaller.
            ahead, lost, others = await stored_events.count_ahead(
                session, claim.calendar_id, ids, besides, known_before=since or now
            )
            ahead -= others
            return (lost == ahead >= _SHRINKS_ALL_OF) or (ahead >= _SHRINKS_MOST_OF and lost * 2 > ahead)

        claim = attempt.claim
        all_doubted = bool(missing) and await is_mass(missing)
        doubted = missing if all_doubted else unclear
        if not doubted:
            return removed, None
        same = [event_id for event_id in doubted if event_id in held]
        fresh = [event_id for event_id in doubted if event_id not in held]
        left = set(unread)
        held_back: HeldBack | None
        if since is None or not same:
            held_back = HeldBack(doubted, now)
            left.update(doubted)
        elif now - since < timedelta(seconds=self._settings.calendar_shrink_confirm_seconds):
            held_back = HeldBack(same, since)
            left.update(doubted)
        elif fresh and (not all_doubted or await is_mass(fresh, besides=same)):
            held_back = HeldBack(fresh, now)
            left.update(fresh)
        else:
            # The rest of a mass that is believed by now.
            held_back = HeldBack(unread, since) if all_doubted and unread else None
        return [event_id for event_id in missing if event_id not in left], held_back

    async def _fail(self, attempt: _Attempt, err: ProviderError) -> None:
        """Notes the failure; disconnects where only the person can mend it. Announces what was written before."""
        claim, scope = attempt.claim, attempt.scope
        may_be_outage = scope is not None and _may_be_outage(err)
        begins = disconnects = False
        waits_for = scope if may_be_outage else None
        if isinstance(err, ClientMisconfigured):
            waits_for = err.scope
        try:
            async with transaction(self._sessions) as session:
                unannounced = await repository.lock_calendar(session, claim)
                state = await repository.load_state(session, claim)
                is_open = scope is not None and await breakers.load_state(session, scope) != "closed"
                is_outage = is_open and await self._is_outage(session, scope, err)
                if attempt.is_probe and may_be_outage and is_outage:
                    # It was asked on behalf of all, and goes on waiting with them.
                    await repository.put_off(
                        session,
                        claim,
                        next_in=self._next_in(self._settings.calendar_sync_interval_seconds),
                        outage_scope=scope,
                        attempted_at=attempt.started_at,
                    )
                    return
                begins = may_be_outage and not is_open and state.failure_count == 0 and not state.is_trial
                confirms = not attempt.is_forced and not is_outage
                is_same = state.failure_code == err.code
                code_since = state.failure_code_since if is_same else None
                code_count = state.failure_code_count if is_same else 0
                if confirms:
                    code_since, code_count = code_since or attempt.started_at, code_count + 1
                if isinstance(err, ConnectionLost) and not state.is_trial:
                    disconnects = err.is_final or (
                        confirms
                        and code_count >= _GONE_CONFIRMATIONS
                        and self._is_long(code_since, state.now)
                        and not await self._many_fail_alike(session, scope, err.code, state)
                    )
                next_in = _retry_in(err, attempt, state, self._settings)
                settled = await repository.settle_failure(
                    session,
                    claim,
                    code=err.code,
                    message=err.message,
                    code_since=code_since,
                    code_count=code_count,
                    is_forced=attempt.is_forced,
                    outage_scope=waits_for if not disconnects else None,
                    started_at=attempt.started_at,
                    next_in=next_in,
                    failure_data=_failure_data(err) if disconnects else None,
                    # A refusal stands; an outage says nothing, and is waited out.
                    ends_trial=isinstance(err, ConnectionLost),
                )
                await announce_changes(
                    session,
                    claim.project_id,
                    _facts(claim, settled),
                    settled,
                    WrittenChanges(unannounced, []),
                )
                if disconnects:
                    await close_channels(session, claim.calendar_id)
                    await drop_bots_of_calendar(session, claim.calendar_id, "calendar_disconnected")
                    await _announce_state(session, claim, settled)
        except LeaseLost:
            return
        level = log.error if isinstance(err, ClientMisconfigured) else log.warning
        level(
            "sync_failed",
            code=err.code,
            error=err.message,
            failures=state.failure_count + 1,
            disconnected=disconnects,
            next_attempt_in=None if disconnects else round(next_in.total_seconds()),
        )
        if begins and scope is not None:
            await self._breakers.vote_failing(scope, claim.project_id)

    def _is_long(self, since: datetime | None, now: datetime) -> bool:
        confirm_for = timedelta(seconds=self._settings.calendar_gone_confirm_seconds)
        return since is not None and now - since >= confirm_for

    @staticmethod
    async def _is_outage(session: Session, scope: str | None, err: ProviderError) -> bool:
        """Whether the failure is that of an open breaker, and so not the calendar's.

        A refusal is its own where only a few wait: those may be all that there are, and all of them removed.
        """
        if scope is None or not isinstance(err, ConnectionLost):
            return True
        return await repository.count_waiting(session, scope=scope, most=_ALIKE) >= _ALIKE

    @staticmethod
    async def _many_fail_alike(session: Session, scope: str | None, code: str, state: SyncState) -> bool:
        """Whether this looks like an outage of a part of the platform, too small to open the breaker."""
        if scope is None or state.failing_since is None:
            return False
        alike = await repository.count_alike(
            session, scope=scope, code=code, since=state.failing_since, within=_ALIKE_WITHIN
        )
        return alike >= _ALIKE

    async def _put_off(self, attempt: _Attempt, err: NotAsked) -> None:
        """The request was not made, so nothing is known and nothing is noted: later."""
        seconds = (err.retry_after or _RETRY_FIRST_SECONDS) * random.uniform(1.0, 1.5)  # noqa: S311 - jitter
        async with transaction(self._sessions) as session:
            await repository.put_off(
                session, attempt.claim, next_in=timedelta(seconds=seconds), outage_scope=err.scope
            )
        log.info("sync_put_off", code=err.code)

    async def _give_back(self, claim: Claim) -> None:
        async with transaction(self._sessions) as session:
            await repository.give_back(session, claim)

    async def _extend_lease(self, claim: Claim) -> None:
        async with transaction(self._sessions) as session:
            await repository.extend_lease(session, claim)

    def _new_window(self, now: datetime) -> Window:
        margin = _WINDOW_MARGIN - (_WINDOW_MARGIN - _WINDOW_MARGIN_LEAST) * random.random()  # noqa: S311 - jitter
        return Window(
            start=now - self._settings.sync_window_past_for,
            end=now + self._settings.sync_window_future_for + self._longest_interval + margin,
        )

    def _kept_window(self, state: SyncState) -> Window | None:
        """The window of the last full round, or None when it will not cover what is promised until the next sync."""
        if state.window_start is None or state.window_end is None:
            return None
        settings, interval = self._settings, self._longest_interval
        reaches = state.window_end >= state.now + settings.sync_window_future_for + interval
        # Of the settings that hold today.
        margin = (state.window_end - state.window_start) - (
            settings.sync_window_past_for + settings.sync_window_future_for + interval
        )
        fits = _WINDOW_MARGIN_LEAST - interval <= margin <= _WINDOW_MARGIN
        return Window(state.window_start, state.window_end) if reaches and fits else None

    @property
    def _longest_interval(self) -> timedelta:
        settings = self._settings
        seconds = max(
            settings.calendar_sync_interval_seconds, settings.calendar_sync_interval_with_push_seconds
        )
        return timedelta(seconds=seconds)

    def _next_in(self, seconds: float) -> timedelta:
        """The time to the next sync, spread so that calendars connected together do not stay in step."""
        return timedelta(seconds=spread(seconds, _INTERVAL_JITTER))


def _is_hiccup(err: Unavailable, attempt: _Attempt, state: SyncState) -> bool:
    """Whether the same may work a second later. One that fails already, or that probes, has its own pace."""
    return (
        not attempt.is_probe
        and state.failure_count == 0
        and err.code not in _LASTING
        and (err.retry_after is None or err.retry_after <= _SHORT_RETRY_AFTER_SECONDS)
        and time.monotonic() - attempt.started < _TRY_AGAIN_WITHIN_SECONDS
    )


def _may_be_outage(err: ProviderError) -> bool:
    """Whether an outage of the platform makes calendars fail like this."""
    if isinstance(err, ConnectionLost):
        return not err.is_final
    return isinstance(err, Unavailable) and err.code not in _NOT_THE_PLATFORMS


def _retry_in(err: ProviderError, attempt: _Attempt, state: SyncState, settings: Settings) -> timedelta:
    """Exponential with jitter, never below what the provider asked for; an operator's fault waits longest.

    An attempt that a client forced leaves the next one where it was.
    """
    interval = settings.calendar_sync_interval_seconds
    if isinstance(err, ClientMisconfigured):
        seconds = spread(min(_RETRY_LONGEST_SECONDS, interval), _RETRY_JITTER)
    else:
        first = min(_RETRY_FIRST_SECONDS, interval)
        backoff = Backoff.exponential(first, _RETRY_LONGEST_SECONDS, jitter=_RETRY_JITTER)
        seconds = backoff.delay(state.failure_count + 1)
    if attempt.is_forced and attempt.state is not None and attempt.state.forced_before is not None:
        due_in = max((attempt.state.forced_before - state.now).total_seconds(), 0)
        seconds = due_in if state.failure_count else min(seconds, due_in)
    retry_after = err.retry_after if isinstance(err, Transient) else None
    return timedelta(seconds=respect_retry_after(seconds, retry_after))


def _failure_data(err: ProviderError) -> str:
    data = {"error": err.message, "code": err.code, "timestamp": isoformat(utcnow())}
    return orjson.dumps(data).decode()


def _facts(claim: Claim, settled: Settled) -> CalendarFacts:
    return CalendarFacts(
        id=claim.calendar_id, deduplication_key=settled.deduplication_key, metadata=settled.metadata
    )


async def _announce_state(session: Session, claim: Claim, settled: Settled) -> None:
    await announce(
        session,
        project_id=claim.project_id,
        trigger="calendar.state_change",
        calendar=_facts(claim, settled),
        data=state_data(settled),
    )
