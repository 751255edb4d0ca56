"""Pure: the state machine of a bot.

It changes with its event, when it is due, and with the runner's response.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from app.core.backoff import Backoff
from app.core.clock import isoformat
from app.models.bot import EntryType, State
from app.webhooks.payloads import CalendarFacts

RemovalReason = Literal["event_cancelled", "event_over", "calendar_disconnected", "calendar_deleted"]

# Failed hand-overs are tried again for this long after the time to join (docs/bots.md, "Launching").
RETRY_FOR = timedelta(minutes=5)
# A meeting without an end counts as over this long after its start.
USUAL_LENGTH = timedelta(hours=4)

_BACKOFF = Backoff.exponential(1.0, 60.0, jitter=(0.75, 1.25))


@dataclass(frozen=True, slots=True)
class FollowedEvent:
    """The event that a bot is for, as it is now. `removal_reason`: why the bot can no longer follow it."""

    removal_reason: RemovalReason | None
    start_time: datetime | None
    end_time: datetime | None
    meeting_url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BotState:
    """The columns of a bot that transitions change (app/models/bot.py), and what its webhooks say of it.

    `event` is None for a bot that is not for an event. `is_of_rule`: a join rule made it. `is_attempted`: hand-overs are under way or to come.
    `lease_token` and `next_in`, the time until the next attempt, are only written: a transition sets or clears them.
    """

    id: str
    project_id: str
    calendar_event_id: str | None
    metadata: dict[str, Any] | None
    state: State
    join_at: datetime
    meeting_url: str | None
    holds_key: bool
    runner_bot_id: str | None
    attempt_count: int
    is_attempted: bool
    may_be_handed_over: bool
    event: FollowedEvent | None
    calendar: CalendarFacts | None
    is_of_rule: bool = False
    lease_token: str | None = None
    next_in: timedelta | None = None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry of a bot's log. `is_announced`: a webhook is sent, too."""

    type: EntryType
    sub_type: str | None = None
    metadata: Mapping[str, Any] | None = None
    is_announced: bool = True


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of a bot.

    `after` is None if the bot is deleted, `entry` if clients do not see the change.
    """

    before: BotState
    after: BotState | None
    entry: LogEntry | None


@dataclass(frozen=True, slots=True)
class Launched:
    """The runner has the bot. `runner_bot_id`: its id there, if the response has one."""

    runner_bot_id: str | None


@dataclass(frozen=True, slots=True)
class Refused:
    """The runner refuses the bot for good."""

    status_code: int
    response: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The runner has no bot, or it is unknown whether it has (`is_unclear`). `retry_after` is in seconds."""

    error: str
    is_unclear: bool
    status_code: int | None = None
    response: str | None = None
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class UnknownToRunner:
    """The runner does not have the bot whose hand-over had an unclear result."""


Outcome = Launched | Refused | Failed | UnknownToRunner


def is_over(start: datetime, end: datetime | None, now: datetime) -> bool:
    """Whether a meeting is over. Without an end after its start, it is taken to last four hours."""
    return end <= now if end is not None and end > start else start <= now - USUAL_LENGTH


def follow(bot: BotState, now: datetime) -> Transition | None:
    """Return the transition that makes a bot match its event; None if there is nothing to do.

    A bot that the runner has, or may have, keeps its values. It only releases its deduplication key when the event is no
    longer the one that it was handed over for, so that another bot can replace it.
    """
    event = bot.event
    if event is None:
        return None
    join_at = event.start_time or bot.join_at
    differs = (
        event.removal_reason is not None or join_at != bot.join_at or event.meeting_url != bot.meeting_url
    )
    if bot.state in {"launched", "fatal_error"} or (bot.state == "launching" and not bot.is_attempted):
        return Transition(bot, replace(bot, holds_key=False), None) if bot.holds_key and differs else None
    if bot.may_be_handed_over or not differs:
        return None
    reason = event.removal_reason
    if reason is None and is_over(join_at, event.end_time, now):
        reason = "event_over"
    if reason is not None:
        return Transition(bot, None, LogEntry("deleted", reason))
    changes: dict[str, Any] = {}
    if join_at != bot.join_at:
        changes["join_at"] = {"old": isoformat(bot.join_at), "new": isoformat(join_at)}
    if event.meeting_url != bot.meeting_url:
        changes["meeting_url"] = {"old": bot.meeting_url, "new": event.meeting_url}
    after = replace(
        bot,
        state="scheduled",
        join_at=join_at,
        meeting_url=event.meeting_url,
        attempt_count=0,
        is_attempted=False,
        next_in=None,
    )
    return Transition(bot, after, LogEntry("event_changed", metadata={"changes": changes}))


def claim(
    bot: BotState, now: datetime, *, has_runner: bool, lease_token: str, lease_for: timedelta
) -> Transition:
    """Return the transition of a due bot: `fatal_error`, or `launching` (with a runner, under a lease)."""
    if bot.state == "scheduled":
        if bot.meeting_url is None:
            return _fatal(bot, "no_meeting_url")
        if is_over(bot.join_at, bot.event.end_time if bot.event else None, now):
            return _fatal(bot, "too_late")
    entry = LogEntry("launching") if bot.state == "scheduled" else None
    if not has_runner:
        return Transition(bot, replace(bot, state="launching", is_attempted=False), entry)
    after = replace(
        bot,
        state="launching",
        attempt_count=bot.attempt_count + 1,
        is_attempted=True,
        may_be_handed_over=True,
        lease_token=lease_token,
        next_in=lease_for,
    )
    return Transition(bot, after, entry)


def settle(bot: BotState, outcome: Outcome, now: datetime, *, was_unclear: bool) -> list[Transition]:
    """Return the transitions after an attempt, each from the state that the one before leads to.

    The last one may follow the event. `was_unclear`: after an earlier attempt it was unknown whether the runner has
    the bot.
    """
    if isinstance(outcome, Refused):
        refusal = {"status_code": outcome.status_code, "response": outcome.response}
        return [_fatal(bot, "runner_refused", refusal)]
    if isinstance(outcome, Launched):
        after = replace(
            bot,
            state="launched",
            runner_bot_id=outcome.runner_bot_id,
            is_attempted=False,
            may_be_handed_over=False,
        )
        transition = Transition(
            bot, after, LogEntry("launched", metadata={"runner_bot_id": outcome.runner_bot_id})
        )
        return [transition, *_followed(after, now)]
    is_late = bot.join_at + RETRY_FOR <= now
    if isinstance(outcome, UnknownToRunner):
        again = replace(
            bot, attempt_count=bot.attempt_count - 1, may_be_handed_over=False, next_in=timedelta(0)
        )
        return [Transition(bot, again, None), *_followed(again, now)]
    failure = {
        "error": outcome.error,
        "status_code": outcome.status_code,
        "response": outcome.response,
    }
    # After the last attempt a bot may follow its event again: the runner refuses a second bot with the same key.
    is_unclear = (outcome.is_unclear or was_unclear) and not is_late
    waiting = replace(bot, may_be_handed_over=is_unclear, next_in=_wait(bot, outcome.retry_after, now))
    failed = Transition(bot, waiting, LogEntry("launch_failed", metadata=failure, is_announced=False))
    followed = _followed(waiting, now)
    if is_late and not followed:
        return [_fatal(bot, "runner_unreachable", failure)]
    return [failed, *followed]


def needs_judging(bot: BotState, outcome: Outcome) -> bool:
    """Whether the join rules must look at a rule's bot again that was busy while its event changed.

    What they decided meanwhile could not be carried out: the runner might have had the bot.
    """
    if not bot.is_of_rule or bot.event is None:
        return False
    event = bot.event
    differs = (
        event.removal_reason is not None
        or event.start_time != bot.join_at
        or event.meeting_url != bot.meeting_url
    )
    return differs or isinstance(outcome, Failed | UnknownToRunner)


def _followed(bot: BotState, now: datetime) -> list[Transition]:
    transition = follow(bot, now)
    return [] if transition is None else [transition]


def _fatal(bot: BotState, sub_type: str, metadata: Mapping[str, Any] | None = None) -> Transition:
    after = replace(bot, state="fatal_error", holds_key=False, is_attempted=False, may_be_handed_over=False)
    return Transition(bot, after, LogEntry("fatal_error", sub_type, metadata))


def _wait(bot: BotState, retry_after: float | None, now: datetime) -> timedelta:
    """Return the time until the next attempt; the last one is when the time for retries ends."""
    seconds = _BACKOFF.delay(bot.attempt_count, retry_after=retry_after)
    left = (bot.join_at + RETRY_FOR - now).total_seconds()
    return timedelta(seconds=min(seconds, max(left, 0.0)))
