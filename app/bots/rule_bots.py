"""The bots that join rules make: made, changed and deleted many at a time.

app/join_rules/ decides which.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.bots.lifecycle import BotState, LogEntry, Transition
from app.bots.repository import rule_bots, states
from app.bots.repository.rule_bots import json_text
from app.bots.rule_bot import Meetings, RuleBotRow
from app.bots.service import announce_transitions, apply_transitions
from app.core.clock import utcnow
from app.core.db import AnySession, Session
from app.core.ids import new_id
from app.webhooks.outbox import has_subscribers
from app.webhooks.payloads import CalendarFacts


@dataclass(frozen=True, slots=True)
class Made:
    """A bot to make for an event."""

    calendar: CalendarFacts
    event_id: str
    meeting_url: str
    join_at: datetime
    wanted: "Wanted"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a rule says of its bot."""

    rule: str
    digest: str
    bot_name: str
    metadata: dict[str, Any] | None
    bot_settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Changed:
    """A bot that is for another event now, or that another rule decides about."""

    bot_id: str
    event_id: str
    wanted: Wanted
    is_overwritten: bool


async def find_rule_bots(session: AnySession, event_ids: Sequence[str]) -> list[RuleBotRow]:
    """Return the bots that rules made for these events."""
    return await rule_bots.find_rule_bots(session, event_ids) if event_ids else []


async def lock_rule_bots(session: Session, event_ids: Sequence[str]) -> list[RuleBotRow]:
    """Lock and return the bots that rules made for these events."""
    return await rule_bots.lock_rule_bots(session, event_ids) if event_ids else []


async def find_handed_over(session: AnySession, project_id: str, meetings: Meetings) -> list[RuleBotRow]:
    """Return the bots of these meetings that were handed over."""
    return await rule_bots.find_handed_over(session, project_id, meetings)


async def find_marks(
    session: AnySession, project_id: str, event_ids: Sequence[str], meetings: Meetings | None
) -> list[tuple[str, str | None, datetime]]:
    """Return the bots that clients deleted, of these events and of these meetings: event, link and time."""
    return await rule_bots.find_marks(session, project_id, event_ids, meetings)


async def lift_marks(session: Session, event_ids: Collection[str]) -> None:
    """Let rules make bots again for events whose bot a client deleted."""
    await rule_bots.lift_marks(session, event_ids)


async def forget_marks(session: Session, calendar_id: str) -> None:
    """Forget the deleted bots of a calendar's events that have no row any more, if their meeting is over."""
    await rule_bots.forget_marks(session, calendar_id)


async def make_bots(session: Session, project_id: str, made: Sequence[Made]) -> None:
    """Insert the bots and announce them: unlike a client's own, no response says that they exist."""
    if not made:
        return
    at = utcnow()
    is_announced = await has_subscribers(session, project_id, "bot.state_change")
    rows, transitions = [], []
    texts: dict[str, tuple[str | None, str | None, str | None]] = {}
    for bot in made:
        wanted = bot.wanted
        entry = LogEntry("scheduled", metadata={"join_rule": wanted.rule})
        key = f"{wanted.digest} {wanted.rule}"
        if key not in texts:
            log = json_text([states.log_entry(entry, at)])
            texts[key] = (json_text(wanted.metadata), json_text(wanted.bot_settings), log)
        metadata, settings, log = texts[key]
        bot_id = new_id("bot")
        rows.append(
            {
                "id": bot_id,
                "project_id": project_id,
                "calendar_event_id": bot.event_id,
                "meeting_url": bot.meeting_url,
                "join_at": bot.join_at,
                "bot_name": wanted.bot_name,
                "metadata": metadata,
                "bot_settings": settings,
                "events": log,
                "join_rule": wanted.rule,
                "join_rule_bot": wanted.digest,
            }
        )
        if not is_announced:
            continue
        state = BotState(
            id=bot_id,
            project_id=project_id,
            calendar_event_id=bot.event_id,
            metadata=wanted.metadata,
            state="scheduled",
            join_at=bot.join_at,
            meeting_url=bot.meeting_url,
            holds_key=True,
            runner_bot_id=None,
            attempt_count=0,
            is_attempted=False,
            may_be_handed_over=False,
            event=None,
            calendar=bot.calendar,
        )
        transitions.append(Transition(state, state, entry))
    await rule_bots.insert_rule_bots(session, rows)
    await announce_transitions(session, transitions, at)


async def change_bots(session: Session, project_id: str, changed: Sequence[Changed]) -> None:
    """Write and announce what rules changed. The caller holds the bots' locks, and then has them follow."""
    if not changed:
        return
    at = utcnow()
    rows = []
    entries = {}
    for change in changed:
        wanted = change.wanted
        entry = LogEntry("updated", metadata={"join_rule": wanted.rule, "calendar_event_id": change.event_id})
        entries[change.bot_id] = entry
        rows.append(
            {
                "id": change.bot_id,
                "calendar_event_id": change.event_id,
                "join_rule": wanted.rule,
                "join_rule_bot": wanted.digest,
                "bot_name": wanted.bot_name if change.is_overwritten else None,
                "metadata": json_text(wanted.metadata),
                "bot_settings": json_text(wanted.bot_settings),
                "entry": json_text(states.log_entry(entry, at)),
            }
        )
    await rule_bots.change_rule_bots(session, rows)
    if not await has_subscribers(session, project_id, "bot.state_change"):
        return
    written = await states.lock_bots(session, [change.bot_id for change in changed])
    await announce_transitions(session, [Transition(bot, bot, entries[bot.id]) for bot in written], at)


async def delete_bots(session: Session, project_id: str, bot_ids: Sequence[str]) -> None:
    """Delete bots that no rule wants any more. The caller holds their locks."""
    if not bot_ids:
        return
    if not await has_subscribers(session, project_id, "bot.state_change"):
        await states.delete(session, bot_ids)
        return
    bots = await states.lock_bots(session, bot_ids)
    await apply_transitions(
        session, [Transition(bot, None, LogEntry("deleted", "join_rules")) for bot in bots]
    )
