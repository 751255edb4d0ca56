"""Pure: what becomes of a bot when its event changes, when it is due, and when the runner has answered."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from app.core.backoff import Backoff
from app.core.clock import isoformat
from app.models.bot import EntryType, State
from app.webhooks.payloads import CalendarFacts

Gone = Literal["event_cancelled", "event_over", "calendar_disconnected", "calendar_deleted"]

# Failed hand-overs are tried again for this long after the time to join (docs/bots.md, "Launching").
RETRY_FOR = timedelta(minutes=5)
# A meeting that does not tell its end counts as over this long after its start.
USUAL_LENGTH = timedelta(hours=4)

_BACKOFF = Backoff.exponential(1.0, 60.0, jitter=(0.75, 1.25))


@dataclass(frozen=True, slots=True)
class FollowedEvent:
    """The event that a bot is for, as it is now. `gone` says why there is nothing to follow any more."""

    gone: Gone | None
    start_time: datetime | None
    end_time: datetime | None
    meeting_url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BotState:
    """What changes in a bot's life (app/models/bot.py), and whom it is told to.

    `event` is None for a bot that is not for an event. `is_attempted`: hand-overs are under way or to come.
    `lease_token` and `next_in`, the time until the next attempt, are written only: a step sets them or clears them.
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
    lease_token: str | None = None
    next_in: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a bot's log; told by webhook, too, where `is_told`."""

    type: EntryType
    sub_type: str | None = None
    metadata: Mapping[str, Any] | None = None
    is_told: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """One change of a bot. `after` is None for a bot that is deleted; `entry` is None for what nobody sees."""

    before: BotState
    after: BotState | None
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Launched:
    """The runner has the bot; its id there, if it told one."""

    runner_bot_id: str | None


@dataclass(frozen=True, slots=True)
class Refused:
    """The runner will not take the bot, however often it is asked."""

    status_code: int
    response: str


@dataclass(frozen=True, slots=True)
class Failed:
    """No bot was taken, or nobody knows whether one was (`is_unclear`). `retry_after` is in seconds."""

    error: str
    is_unclear: bool
    status_code: int | None = None
    response: str | None = None
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class NotThere:
    """After a hand-over that had ended unclear, the runner says that it has no such bot."""


Outcome = Launched | Refused | Failed | NotThere


def is_over(start: datetime, end: datetime | None, now: datetime) -> bool:
    """Whether a meeting is over. Without an end, or with one that makes no sense, it is some time after its start."""
    return end <= now if end is not None and end > start else start <= now - USUAL_LENGTH


def follow(bot: BotState, now: datetime) -> Step | None:
    """The step by which a bot becomes what its event says; None if there is nothing to do.

    What the runner has, or may have, stays as the runner was told. Of such a bot only the deduplication key is
    let go when the event is no longer the one that it was handed over for, so that another can take its place.
    """
    event = bot.event
    if event is None:
        return None
    join_at = event.start_time or bot.join_at
    differs = event.gone is not None or join_at != bot.join_at or event.meeting_url != bot.meeting_url
    if bot.state in {"launched", "fatal_error"} or (bot.state == "launching" and not bot.is_attempted):
        return Step(bot, replace(bot, holds_key=False), None) if bot.holds_key and differs else None
    if bot.may_be_handed_over or not differs:
        return None
    gone = event.gone
    if gone is None and is_over(join_at, event.end_time, now):
        gone = "event_over"
    if gone is not None:
        return Step(bot, None, Entry("deleted", gone))
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
    return Step(bot, after, Entry("event_changed", metadata={"changes": changes}))


def claim(bot: BotState, now: datetime, *, has_runner: bool, lease_token: str, lease_for: timedelta) -> Step:
    """The step of a due bot: `launching`, under a lease or (without a runner) for good, or `fatal_error`."""
    if bot.state == "scheduled":
        if bot.meeting_url is None:
            return _fatal(bot, "no_meeting_url")
        if is_over(bot.join_at, bot.event.end_time if bot.event else None, now):
            return _fatal(bot, "too_late")
    entry = Entry("launching") if bot.state == "scheduled" else None
    if not has_runner:
        return Step(bot, replace(bot, state="launching", is_attempted=False), entry)
    after = replace(
        bot,
        state="launching",
        attempt_count=bot.attempt_count + 1,
        is_attempted=True,
        may_be_handed_over=True,
        lease_token=lease_token,
        next_in=lease_for,
    )
    return Step(bot, after, entry)


def settle(bot: BotState, outcome: Outcome, now: datetime, *, was_unclear: bool) -> list[Step]:
    """The steps, each from where the one before ends, after an attempt; the last may follow the event.

    `was_unclear`: an earlier attempt had ended without telling whether the runner has the bot.
    """
    if isinstance(outcome, Refused):
        answer = {"status_code": outcome.status_code, "response": outcome.response}
        return [_fatal(bot, "runner_refused", answer)]
    if isinstance(outcome, Launched):
        after = replace(
            bot,
            state="launched",
            runner_bot_id=outcome.runner_bot_id,
            is_attempted=False,
            may_be_handed_over=False,
        )
        step = Step(bot, after, Entry("launched", metadata={"runner_bot_id": outcome.runner_bot_id}))
        return [step, *_followed(after, now)]
    is_late = bot.join_at + RETRY_FOR <= now
    if isinstance(outcome, NotThere):
        again = replace(
            bot, attempt_count=bot.attempt_count - 1, may_be_handed_over=False, next_in=timedelta(0)
        )
        return [Step(bot, again, None), *_followed(again, now)]
    failure = {
        "error": outcome.error,
        "status_code": outcome.status_code,
        "response": outcome.response,
    }
    # At the end of all attempts there is no more harm in following: the runner refuses a second bot.
    is_unclear = (outcome.is_unclear or was_unclear) and not is_late
    waiting = replace(bot, may_be_handed_over=is_unclear, next_in=_wait(bot, outcome.retry_after, now))
    failed = Step(bot, waiting, Entry("launch_failed", metadata=failure, is_told=False))
    followed = _followed(waiting, now)
    if is_late and not followed:
        return [_fatal(bot, "runner_unreachable", failure)]
    return [failed, *followed]


def _followed(bot: BotState, now: datetime) -> list[Step]:
    step = follow(bot, now)
    return [] if step is None else [step]


def _fatal(bot: BotState, sub_type: str, metadata: Mapping[str, Any] | None = None) -> Step:
    after = replace(bot, state="fatal_error", holds_key=False, is_attempted=False, may_be_handed_over=False)
    return Step(bot, after, Entry("fatal_error", sub_type, metadata))


def _wait(bot: BotState, retry_after: float | None, now: datetime) -> timedelta:
    """Return the time until the next attempt; the last one is when the time for retries ends."""
    seconds = _BACKOFF.delay(bot.attempt_count, retry_after=retry_after)
    left = (bot.join_at + RETRY_FOR - now).total_seconds()
    return timedelta(seconds=min(seconds, max(left, 0.0)))
