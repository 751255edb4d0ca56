"""Failures of syncs: when the next attempt is, and whether the calendar is disconnected.

See docs/adr/0003-believing-providers.md.
"""

import time
from datetime import datetime, timedelta

import orjson
import structlog

from app.core.backoff import Backoff, respect_retry_after, spread
from app.core.clock import isoformat, utcnow
from app.core.db import Session, Sessions, transaction
from app.core.lease import LeaseLost
from app.outages import breakers
from app.outages.breakers import Breakers
from app.providers.base import (
    ClientMisconfigured,
    ConnectionLost,
    NotAsked,
    ProviderError,
    Transient,
    Unavailable,
)
from app.settings import Settings
from app.sync import repository
from app.sync.attempt import Attempt
from app.sync.effects import follow_failure
from app.sync.repository import SyncState
from app.sync.window import next_in

log = structlog.get_logger()

_RETRY_FIRST_SECONDS = 30.0
_RETRY_LONGEST_SECONDS = 1800.0
_RETRY_JITTER = (0.75, 1.25)
_NOT_ASKED_JITTER = (1.0, 1.5)
_HICCUP_JITTER = (0.6, 1.0)
# A refusal disconnects a calendar after this many attempts at the earliest.
_REFUSAL_CONFIRMATIONS = 3
# This many calendars that began to fail alike at about the same time are an outage, or might be one.
_ALIKE = 10
_ALIKE_WITHIN = timedelta(minutes=30)

# A hiccup is tried again within the same sync.
RETRIES_WITHIN_SYNC = 2
_RETRY_WITHIN_SYNC_AFTER_SECONDS = 1.0
_HICCUP_WITHIN_SECONDS = 15.0
_SHORT_RETRY_AFTER_SECONDS = 2.0
# What does not pass within seconds.
_LASTING = frozenset(
    {"address_refused", "answer_too_large", "feed_too_large", "feed_too_complex", "too_many_redirects"}
)
# Failures of our own, or of this one calendar: they say nothing about its platform.
_NOT_THE_PLATFORMS = _LASTING | {
    "cursor_expired_again",
    "feed_reader_died",
    "internal_error",
    "mailbox_moving",
    "seal_broken",
}


class FailureRecorder:
    """Notes the failures of syncs."""

    def __init__(self, *, settings: Settings, sessions: Sessions, breakers: Breakers) -> None:
        self._settings = settings
        self._sessions = sessions
        self._breakers = breakers

    async def put_off(self, attempt: Attempt, err: NotAsked) -> None:
        """Give the lease back for later. No request was made, so nothing is known and nothing is noted."""
        seconds = spread(err.retry_after or _RETRY_FIRST_SECONDS, _NOT_ASKED_JITTER)
        async with transaction(self._sessions) as session:
            await repository.put_off(
                session, attempt.claim, next_in=timedelta(seconds=seconds), outage_scope=err.scope
            )
        log.info("sync_put_off", code=err.code)

    async def record(self, attempt: Attempt, err: ProviderError) -> None:
        """Note the failure; disconnect the calendar where only a person can fix it.

        The changes that were written before the failure are announced.
        """
        claim, scope = attempt.claim, attempt.scope
        begins = disconnects = False
        try:
            async with transaction(self._sessions) as session:
                unannounced = await repository.lock_calendar(session, claim)
                state = await repository.load_state(session, claim)
                is_open = scope is not None and await breakers.load_state(session, scope) != "closed"
                is_outage = is_open and await self._is_outage(session, scope, err)
                if attempt.is_probe and _may_be_outage(scope, err) and is_outage:
                    # It was asked on behalf of all, and goes on waiting with them.
                    await repository.put_off(
                        session,
                        claim,
                        next_in=next_in(self._settings.calendar_sync_interval_seconds),
                        outage_scope=scope,
                        attempted_at=attempt.started_at,
                    )
                    return
                begins = (
                    _may_be_outage(scope, err)
                    and not is_open
                    and state.failure_count == 0
                    and not state.is_trial
                )
                confirms = not attempt.is_forced and not is_outage
                code_since, code_count = _count_code(err, attempt, state, confirms=confirms)
                if isinstance(err, ConnectionLost) and not state.is_trial:
                    disconnects = err.is_final or (
                        confirms
                        and code_count >= _REFUSAL_CONFIRMATIONS
                        and self._is_long(code_since, state.now)
                        and not await self._many_fail_alike(session, scope, err.code, state)
                    )
                retry_in = _retry_in(err, attempt, state, self._settings)
                settled = await repository.settle_failure(
                    session,
                    claim,
                    code=err.code,
                    message=err.message,
                    code_since=code_since,
                    code_count=code_count,
                    is_forced=attempt.is_forced,
                    outage_scope=None if disconnects else _waits_for(scope, err),
                    started_at=attempt.started_at,
                    next_in=retry_in,
                    failure_data=_failure_data(err) if disconnects else None,
                    # A refusal stands; an outage says nothing, and is waited out.
                    ends_trial=isinstance(err, ConnectionLost),
                )
                await follow_failure(
                    session, self._settings, claim, settled, unannounced, is_disconnected=disconnects
                )
        except LeaseLost:
            return
        level = log.error if isinstance(err, ClientMisconfigured) else log.warning
        level(
            "sync_failed",
            code=err.code,
            error=err.message,
            failures=state.failure_count + 1,
            disconnected=disconnects,
            next_attempt_in=None if disconnects else round(retry_in.total_seconds()),
        )
        if begins and scope is not None:
            await self._breakers.vote_failing(scope, claim.project_id)

    def _is_long(self, since: datetime | None, now: datetime) -> bool:
        confirm_for = timedelta(seconds=self._settings.calendar_gone_confirm_seconds)
        return since is not None and now - since >= confirm_for

    @staticmethod
    async def _is_outage(session: Session, scope: str | None, err: ProviderError) -> bool:
        """Whether the failure is that of an open breaker, and so not the calendar's.

        A refusal is the calendar's own where only a few wait: those may be all that there are, and all removed.
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


def is_hiccup(err: Unavailable, attempt: Attempt, state: SyncState) -> bool:
    """Whether the same may work a second later.

    A calendar that fails already, or that is the probe, has its own pace.
    """
    return (
        not attempt.is_probe
        and state.failure_count == 0
        and err.code not in _LASTING
        and (err.retry_after is None or err.retry_after <= _SHORT_RETRY_AFTER_SECONDS)
        and time.monotonic() - attempt.started < _HICCUP_WITHIN_SECONDS
    )


def hiccup_pause(err: Unavailable, tried: int) -> float:
    """Seconds to wait before a hiccup is tried again, after `tried` earlier repetitions."""
    pause = _RETRY_WITHIN_SYNC_AFTER_SECONDS * (tried + spread(1, _HICCUP_JITTER))
    return max(pause, err.retry_after or 0)


def _may_be_outage(scope: str | None, err: ProviderError) -> bool:
    """Whether an outage of the platform makes calendars fail like this."""
    if scope is None:
        return False
    if isinstance(err, ConnectionLost):
        return not err.is_final
    return isinstance(err, Unavailable) and err.code not in _NOT_THE_PLATFORMS


def _waits_for(scope: str | None, err: ProviderError) -> str | None:
    """The scope whose breaker the calendar waits for, where an outage may be the cause."""
    if isinstance(err, ClientMisconfigured):
        return err.scope
    return scope if _may_be_outage(scope, err) else None


def _count_code(
    err: ProviderError, attempt: Attempt, state: SyncState, *, confirms: bool
) -> tuple[datetime | None, int]:
    """Count the failures with this code: since when, and how often in a row.

    This one counts if it `confirms` the others.
    """
    is_same = state.failure_code == err.code
    since = state.failure_code_since if is_same else None
    count = state.failure_code_count if is_same else 0
    return (since or attempt.started_at, count + 1) if confirms else (since, count)


def _retry_in(err: ProviderError, attempt: Attempt, state: SyncState, settings: Settings) -> timedelta:
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
