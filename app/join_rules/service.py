"""Setting join rules and policies, and what other features call when events or bots change."""

from collections.abc import Collection, Sequence

from app.api.not_found import CalendarEventNotFound, CalendarNotFound
from app.bots import rule_bots
from app.bots.lifecycle import BotState
from app.bots.service import follow_events
from app.core.db import AnySession, Session
from app.core.wakeups import wake_after_commit
from app.join_rules.errors import NoBotToTake, NoOwnRules
from app.join_rules.judging import find_meeting_events, judge_events, load_rulebook
from app.join_rules.repository import rules, runs
from app.join_rules.schemas import BotPolicyRead, JoinRulesInput, JoinRulesRead
from app.models.join_rule import Policy
from app.settings import Settings

# The request that changed the rules works on the run itself first.
_WORKERS_AFTER_SECONDS = 1.0


async def get_rules(session: AnySession, project_id: str, calendar_id: str | None = None) -> JoinRulesRead:
    """Return the rules of a project, or a calendar's own. Raises CalendarNotFound, NoOwnRules.

    A project that never had rules has none.
    """
    if calendar_id is not None:
        await _require_calendar(session, project_id, calendar_id)
    stored, _ = await rules.load_rules(session, [calendar_id or project_id])
    if stored:
        return JoinRulesRead(rules=stored[0].rules, bot_scope=stored[0].bot_scope)
    if calendar_id is not None:
        raise NoOwnRules
    return JoinRulesRead(rules=[], bot_scope="event")


async def put_rules(
    session: Session, project_id: str, body: JoinRulesInput, calendar_id: str | None = None
) -> JoinRulesRead:
    """Replace the rules of a project, or of a calendar, and request the run that applies them.

    Raises CalendarNotFound.
    """
    if calendar_id is not None:
        await _require_calendar(session, project_id, calendar_id)
    stored = body.stored()
    await rules.lock_rules(session, project_id)
    await rules.save_rules(session, project_id, calendar_id, stored, body.bot_scope)
    await _request_run(session, project_id, calendar_id)
    return JoinRulesRead(rules=stored, bot_scope=body.bot_scope)


async def delete_rules(session: Session, project_id: str, calendar_id: str) -> None:
    """Delete a calendar's own rules: the project's apply again. Raises CalendarNotFound, NoOwnRules."""
    await _require_calendar(session, project_id, calendar_id)
    await rules.lock_rules(session, project_id)
    if not await rules.delete_rules(session, calendar_id):
        raise NoOwnRules
    await _request_run(session, project_id, calendar_id)


async def _request_run(session: Session, project_id: str, calendar_id: str | None) -> None:
    await runs.request_run(session, project_id, calendar_id)
    wake_after_commit(session, "join_rules", after=_WORKERS_AFTER_SECONDS)


async def _require_calendar(session: AnySession, project_id: str, calendar_id: str) -> None:
    if not await rules.has_calendar(session, project_id, calendar_id):
        raise CalendarNotFound


async def get_policy(session: AnySession, project_id: str, event_id: str) -> BotPolicyRead:
    """Return the policy of an event. Raises CalendarEventNotFound."""
    if await rules.find_calendar_of(session, project_id, event_id) is None:
        raise CalendarEventNotFound
    return BotPolicyRead(policy=await rules.find_policy(session, event_id) or "rules")


async def set_policy(
    session: Session, settings: Settings, project_id: str, event_id: str, policy: Policy
) -> BotPolicyRead:
    """Store the policy of an event and carry it out. Raises CalendarEventNotFound, NoBotToTake."""
    calendar_id = await rules.find_calendar_of(session, project_id, event_id)
    if calendar_id is None or not await rules.lock_calendar(session, calendar_id):
        raise CalendarEventNotFound
    rulebook = await load_rulebook(session, project_id, [calendar_id])
    if policy == "always" and rulebook.of(calendar_id).first_bot is None:
        raise NoBotToTake
    await rules.save_policy(session, project_id, calendar_id, event_id, policy)
    if policy == "always":
        shared = await find_meeting_events(session, rulebook, event_id)
        await rule_bots.lift_marks(session, [event_id, *shared])
    moved = await judge_events(
        session, rulebook, [event_id], platforms=settings.bot_runner_platforms, written=[event_id]
    )
    await follow_events(session, [event_id, *moved])
    return BotPolicyRead(policy=policy)


async def follow_rules(
    session: Session,
    project_id: str,
    calendar_id: str,
    event_ids: Sequence[str],
    *,
    platforms: Collection[str],
) -> list[str]:
    """Make the bots of changed events match the rules, in the transaction that wrote the events.

    The caller holds the calendar's row lock, and has the bots of these events follow them afterwards, and those of the
    events that are returned: bots were moved to these.
    """
    rulebook = await load_rulebook(session, project_id, [calendar_id])
    if not rulebook.by_target:
        return []
    return await judge_events(session, rulebook, event_ids, platforms=platforms, written=event_ids)


async def leave_calendar(session: Session, settings: Settings, project_id: str, calendar_id: str) -> None:
    """Give the bots that a calendar shares to other calendars' events, because it ends.

    The caller holds the calendar's row lock, and deletes the bots that are left.
    """
    rulebook = await load_rulebook(session, project_id, [calendar_id])
    if not rulebook.has_meeting:
        return
    # A run by links does not lock the calendar: no bot is made for it from here on.
    await rules.lock_meetings(session, project_id)
    event_ids = await rules.find_with_bots(session, calendar_id)
    moved = await judge_events(
        session, rulebook, event_ids, platforms=settings.bot_runner_platforms, leaving=calendar_id
    )
    await follow_events(session, moved)


async def return_calendar(session: Session, project_id: str, calendar_id: str) -> None:
    """Have all events of a calendar judged again, because it was connected again."""
    if await rules.has_rules(session, project_id):
        await runs.request_run(session, project_id, calendar_id)
        wake_after_commit(session, "join_rules")


async def forget_events(session: Session, calendar_id: str, event_ids: Sequence[str]) -> None:
    """Delete what is stored about events that retention deleted. The caller holds the calendar's row lock."""
    if event_ids:
        await rules.delete_policies(session, event_ids)
        await rule_bots.forget_marks(session, calendar_id)


async def judge_later(session: Session, bot: BotState) -> None:
    """Have the event of a bot judged again, because its hand-over ended otherwise than its event asks for.

    The caller holds the bot's row lock, and may not wait for a calendar's.
    """
    if bot.is_of_rule and bot.calendar_event_id is not None:
        await runs.request_event_run(session, bot.calendar_event_id, bot.meeting_url, bot.join_at)
        wake_after_commit(session, "join_rules")
