"""The preview: what rules would do if they were the project's."""

import asyncio

from app.bots import rule_bots
from app.bots.rule_bot import Meetings, RuleBotRow
from app.core.clock import utcnow
from app.core.db import AnySession, Sessions, reading
from app.join_rules.judge import compile_rules
from app.join_rules.judging import judge_row, link_hash, load_project_rulebook, plan_bot
from app.join_rules.plan import LONGEST, Bot, Deleted, Judged, Plan, plan
from app.join_rules.repository import preview as repository
from app.join_rules.schemas import JoinRulesInput
from app.settings import Settings

_EVENTS_AT_ONCE = 2_000


async def preview_rules(
    sessions: Sessions, settings: Settings, project_id: str, body: JoinRulesInput
) -> dict[str, list[dict[str, str]]]:
    """Return a JoinRulesPreviewRead as a dict: the bots that would be made and removed. It writes nothing.

    Events are read and judged in parts, so that other requests get their turns. Events that share bots are planned
    together, in a thread.
    """
    async with reading(sessions) as session:
        rulebook = await load_project_rulebook(session, project_id)
        rulebook.by_target[project_id] = compile_rules(body.stored(), body.bot_scope)
        has_meeting = any(rules.bot_scope == "meeting" for rules in rulebook.by_target.values())
        made: list[Judged] = []
        removed: list[tuple[Bot, Judged | None]] = []
        events: list[Judged] = []
        bots: list[RuleBotRow] = []
        deleted: list[Deleted] = []
        place = repository.BEGINNING
        while True:
            rows = await repository.load_ahead(
                session, project_id, place, _EVENTS_AT_ONCE, asks_people=rulebook.asks_people
            )
            if not rows:
                break
            place = (rows[-1].ends, rows[-1].id)
            ids = [row.id for row in rows]
            some_bots = await rule_bots.find_rule_bots(session, ids)
            marks = await rule_bots.find_marks(session, project_id, ids, None)
            marked = {event_id for event_id, _, _ in marks}
            judged = [judge_row(row, rulebook, settings.bot_runner_platforms, marked=marked) for row in rows]
            some = [event for event in judged if event is not None]
            if has_meeting:
                with_bots = {bot.event_id for bot in some_bots}
                events += [event for event in some if event.bot is not None or event.id in with_bots]
                bots += some_bots
                deleted += [Deleted(link, at) for _, link, at in marks]
            else:
                _collect(plan(some, map(plan_bot, some_bots), [], utcnow()), some, made, removed)
        if has_meeting:
            bots += await _find_handed_over(session, project_id, events, {bot.id for bot in bots})
            deleted += await _find_deleted(session, project_id, events)
    if has_meeting:
        planned = await asyncio.to_thread(plan, events, [plan_bot(bot) for bot in bots], deleted, utcnow())
        _collect(planned, events, made, removed)
    return {
        "make": [
            {"calendar_event_id": event.id, "rule": event.rule.name}
            for event in made
            if event.rule is not None
        ],
        "remove": [
            {
                "bot_id": bot.id,
                "calendar_event_id": bot.event_id,
                "rule": event.rule.name if event is not None and event.rule is not None else bot.rule,
            }
            for bot, event in removed
        ],
    }


def _collect(
    planned: Plan, events: list[Judged], made: list[Judged], removed: list[tuple[Bot, Judged | None]]
) -> None:
    by_id = {event.id: event for event in events}
    made.extend(planned.make)
    removed.extend((bot, by_id.get(bot.event_id)) for bot in planned.delete)


async def _find_handed_over(
    session: AnySession, project_id: str, events: list[Judged], known: set[str]
) -> list[RuleBotRow]:
    """Find the bots that other events handed over for one of these meetings."""
    links = sorted({link_hash(event.meeting_url) for event in events if event.meeting_url is not None})
    now = utcnow()
    found: list[RuleBotRow] = []
    for n in range(0, len(links), _EVENTS_AT_ONCE):
        some = Meetings(links[n : n + _EVENTS_AT_ONCE], now - LONGEST, now + LONGEST)
        found += await rule_bots.find_handed_over(session, project_id, some)
    return [bot for bot in found if bot.id not in known and bot.phase != "waiting"]


async def _find_deleted(session: AnySession, project_id: str, events: list[Judged]) -> list[Deleted]:
    """Find the bots that clients deleted for one of these meetings, also those of deleted events."""
    links = sorted({link_hash(event.meeting_url) for event in events if event.meeting_url is not None})
    since = min((event.start for event in events), default=utcnow())
    until = max((event.until for event in events), default=utcnow())
    found: list[Deleted] = []
    for n in range(0, len(links), _EVENTS_AT_ONCE):
        some = Meetings(links[n : n + _EVENTS_AT_ONCE], since, until)
        marks = await rule_bots.find_marks(session, project_id, [], some)
        found += [Deleted(link, at) for _, link, at in marks]
    return found
