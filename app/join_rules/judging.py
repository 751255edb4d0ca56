"""Judging events: loads what the rules ask, decides, and has the bots made, changed and deleted.

Locks, in this order: the rows of the calendars whose events are judged, or the lock of the project's rules (the caller's);
the lock of the project's meetings if any of its rules have `bot_scope` "meeting"; rows of bots by id. A bot that a client
deletes is locked, and its event is marked in the same transaction: marks are read after the bots are locked.
"""

import asyncio
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, overload

import orjson
from sqlalchemy import Row

from app.bots import rule_bots
from app.bots.rule_bot import Meetings, RuleBotRow
from app.bots.rule_bots import Changed, Made, Wanted
from app.core.clock import utcnow
from app.core.db import AnySession, Session
from app.join_rules.judge import EventFacts, Participant, RuleSet, compile_rules, decide
from app.join_rules.plan import LONGEST, Bot, Deleted, Judged, Plan, plan
from app.join_rules.repository import rules as repository

_NO_RULES = compile_rules([], "event")
# A link, as its hash, and a start: events are judged from there on.
LinkPlace = tuple[str, datetime]


@dataclass(frozen=True, slots=True)
class Meeting:
    """A link and a time at which a bot was to join."""

    meeting_url: str
    at: datetime


@dataclass(slots=True)
class Rulebook:
    """The rules of a project and of some of its calendars.

    `has_meeting`: some have `bot_scope` "meeting". `is_whole`: these are the rules of all calendars.
    """

    project_id: str
    by_target: dict[str, RuleSet]
    has_meeting: bool
    is_whole: bool = False

    def of(self, calendar_id: str) -> RuleSet:
        """The rules of a calendar: its own, or the project's."""
        return self.by_target.get(calendar_id) or self.by_target.get(self.project_id) or _NO_RULES

    @property
    def asks_people(self) -> bool:
        return any(rules.asks_people for rules in self.by_target.values())


async def load_rulebook(session: AnySession, project_id: str, calendar_ids: Collection[str]) -> Rulebook:
    """Load the rules that these calendars have."""
    stored, has_meeting = await repository.load_rules(session, {project_id, *calendar_ids})
    by_target = {one.target: compile_rules(one.rules, one.bot_scope) for one in stored}
    return Rulebook(project_id, by_target, has_meeting)


async def load_project_rulebook(session: AnySession, project_id: str) -> Rulebook:
    """Load the rules of a project and of all its calendars."""
    stored = await repository.load_all_rules(session, project_id)
    by_target = {one.target: compile_rules(one.rules, one.bot_scope) for one in stored}
    has_meeting = any(one.bot_scope == "meeting" for one in stored)
    return Rulebook(project_id, by_target, has_meeting, is_whole=True)


async def judge_events(
    session: Session,
    rulebook: Rulebook,
    event_ids: Sequence[str],
    *,
    platforms: Collection[str],
    written: Collection[str] = (),
    leaving: str | None = None,
    meetings: Sequence[Meeting] = (),
    loaded: Sequence[Row[Any]] = (),
) -> list[str]:
    """Make the bots match the rules for these events, and for the events that share their meetings.

    Returns the events to which a bot was moved: the caller has the bots of all these events follow them.

    `platforms`: those that the runner joins. `written`: events that this transaction wrote. `leaving`: a calendar that is
    being deleted. `meetings`: further ones to look at. `loaded`: rows of further events, which the caller loaded after it
    locked their calendars.
    """
    if not event_ids and not meetings and not loaded:
        return []
    project_id = rulebook.project_id
    rows: list[Row[Any]] = [*loaded]
    if rulebook.has_meeting:
        await repository.lock_meetings(session, project_id)
    if event_ids:
        known = {row.id for row in loaded}
        asks_people = rulebook.has_meeting or rulebook.asks_people
        more = await repository.load_events(session, event_ids, asks_people=asks_people)
        rows += [row for row in more if row.id not in known]
    all_ids = list(dict.fromkeys([*event_ids, *(row.id for row in loaded)]))
    how = _How(rulebook, platforms, written, leaving)
    if rulebook.has_meeting:
        return await _judge_meetings(session, how, all_ids, rows, meetings, known_since=None)
    bots = await rule_bots.lock_rule_bots(session, all_ids)
    events = await _judge_rows(rows, how)
    if events:
        marks = await rule_bots.find_marks(session, project_id, [event.id for event in events], None)
        _mark(events, {event_id for event_id, _, _ in marks})
    planned = plan(events, map(plan_bot, bots), [], utcnow())
    return await _apply(session, project_id, rows, planned, leaving)


# An event that started earlier is not in a meeting with one that is ahead, unless others between them overlap.
_KNOWN_FOR = 2 * LONGEST


async def judge_links(
    session: Session, project_id: str, place: LinkPlace, limit: int, *, platforms: Collection[str]
) -> tuple[list[str], LinkPlace | None]:
    """Judge a project's next events by links; return those that got another's bot, and the next place.

    The caller holds the lock of the project's rules. About `limit` events are judged: those of one meeting together.
    """
    await repository.lock_meetings(session, project_id)
    rulebook = await load_project_rulebook(session, project_id)
    now = utcnow()
    since = now - _KNOWN_FOR
    rows, following = await _load_links(session, project_id, place, since, limit)
    if not rows:
        return [], following
    how = _How(rulebook, platforms, (), None)
    ids = [row.id for row in rows if row.end_time is None or row.end_time > now]
    return await _judge_meetings(session, how, ids, rows, [], known_since=since), following


async def _load_links(
    session: AnySession, project_id: str, place: LinkPlace, since: datetime, limit: int
) -> tuple[list[Row[Any]], LinkPlace | None]:
    """Load events by links up to the end of a meeting; return them and the place of the next one."""
    while True:
        rows = list(await repository.load_links(session, project_id, place, since, limit))
        if len(rows) < limit:
            return rows, None
        last = link_hash(rows[-1].meeting_url)
        first_of_last = next(n for n, row in enumerate(rows) if link_hash(row.meeting_url) == last)
        if first_of_last:
            return rows[:first_of_last], (last, rows[first_of_last].start_time)
        # All are of one link: those up to a time at which none of them is under way.
        until = max(_time_of(row).until for row in rows[:1])
        cut = 0
        for n, row in enumerate(rows):
            if row.start_time >= until:
                cut = n
            until = max(until, _time_of(row).until)
        if cut:
            return rows[:cut], (last, rows[cut].start_time)
        limit *= 2


@dataclass(frozen=True, slots=True)
class _How:
    """What a judgement depends on besides the event; see `judge_events`."""

    rulebook: Rulebook
    platforms: Collection[str]
    written: Collection[str]
    leaving: str | None


# Other requests get their turn after so many.
_ROWS_AT_ONCE = 250


async def _judge_rows(rows: Sequence[Row[Any]], how: _How) -> list[Judged]:
    """Return the events that are to have a bot, before it is known whether a client deleted it."""
    judged = []
    for n, row in enumerate(rows, 1):
        event = judge_row(
            row,
            how.rulebook,
            how.platforms,
            written=how.written,
            leaving=how.leaving,
            keeps_unwanted=False,
        )
        if event is not None:
            judged.append(event)
        if n % _ROWS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return judged


def _mark(events: Iterable[Judged], marked: Collection[str]) -> None:
    """Note which events have a bot that a client deleted."""
    for event in events:
        event.is_marked = event.id in marked


async def _judge_meetings(
    session: Session,
    how: _How,
    event_ids: Sequence[str],
    loaded: Sequence[Row[Any]],
    meetings: Sequence[Meeting],
    *,
    known_since: datetime | None,
) -> list[str]:
    """Judge events that may share bots.

    `known_since`: all events of their links that start later are loaded.
    """
    rulebook = how.rulebook
    project_id = rulebook.project_id
    rows = {row.id: row for row in loaded}
    were: list[Meeting] = []
    if known_since is None:  # otherwise all meetings are looked at, one after the other
        before = await rule_bots.find_rule_bots(session, event_ids)
        were = [Meeting(bot.meeting_url, bot.join_at) for bot in before if bot.meeting_url is not None]
    sharing = await _load_sharing(session, project_id, loaded, [*were, *meetings], known_since)
    rows |= {row.id: row for row in sharing if row.id not in rows}
    if not rulebook.is_whole:
        others = {row.calendar_id for row in rows.values()} - rulebook.by_target.keys()
        if others:
            rulebook.by_target |= (await load_rulebook(session, project_id, others)).by_target
    # Events of other calendars count only where they share their bots.
    own = set(event_ids)
    scope = {
        row.id: row
        for row in rows.values()
        if row.id in own or rulebook.of(row.calendar_id).bot_scope == "meeting"
    }
    bots = await rule_bots.lock_rule_bots(session, sorted(scope.keys() | own))
    events = await _judge_rows(list(scope.values()), how)
    handed_over: list[RuleBotRow] = []
    deleted: list[Deleted] = []
    if events:
        around = Meetings(
            sorted({link_hash(event.meeting_url) for event in events if event.meeting_url is not None}),
            min(event.start for event in events) - LONGEST,
            max(event.until for event in events),
        )
        handed_over = await rule_bots.find_handed_over(session, project_id, around)
        marks = await rule_bots.find_marks(session, project_id, [event.id for event in events], around)
        _mark(events, {event_id for event_id, _, _ in marks})
        deleted = [Deleted(link, at) for _, link, at in marks]
    known = {bot.id for bot in bots}
    done = [bot for bot in handed_over if bot.id not in known and bot.phase != "waiting"]
    planned = plan(events, map(plan_bot, [*bots, *done]), deleted, utcnow())
    return await _apply(session, project_id, list(scope.values()), planned, how.leaving)


@lru_cache(maxsize=10_000)
def link_hash(meeting_url: str) -> str:
    """Return the hash by which PostgreSQL's indexes find a link."""
    return hashlib.md5(meeting_url.encode(), usedforsecurity=False).hexdigest()


def _time_of(row: Row[Any]) -> Judged:
    """Return an event with its time alone."""
    return Judged(id=row.id, start=row.start_time, end=row.end_time, meeting_url=None, rule=None, bot=None)


def _spans(rows: Iterable[Row[Any]], meetings: Iterable[Meeting]) -> list[tuple[str, datetime, datetime]]:
    """Return in which range of time an event with the same link must start to overlap one of these."""
    spans = [
        (link_hash(row.meeting_url), row.start_time - LONGEST, _time_of(row).until)
        for row in rows
        if row.meeting_url is not None and row.start_time is not None
    ]
    return spans + [(link_hash(one.meeting_url), one.at - LONGEST, one.at + LONGEST) for one in meetings]


async def _load_sharing(
    session: AnySession,
    project_id: str,
    rows: Sequence[Row[Any]],
    meetings: Sequence[Meeting],
    known_since: datetime | None,
) -> list[Row[Any]]:
    """Load the events of the same link that overlap these, and those that overlap them in turn.

    `known_since`: all events of their links that start later are among `rows`.
    """
    found: dict[str, Row[Any]] = {}
    if known_since is not None:
        rows = [row for row in rows if row.start_time < known_since + LONGEST]
    wanted = _merge(_spans(rows, meetings))
    loaded: dict[str, list[tuple[datetime, datetime]]] = {}
    while wanted:
        for link, since, until in wanted:
            loaded.setdefault(link, []).append((since, until))
        new = [
            row
            for row in await repository.load_meetings(session, project_id, wanted, asks_people=True)
            if row.id not in found
        ]
        found |= {row.id: row for row in new}
        wanted = _merge(
            span
            for span in _spans(new, [])
            if not any(since <= span[1] and span[2] <= until for since, until in loaded[span[0]])
            and _is_chained(span, loaded[span[0]])
        )
    return list(found.values())


def _is_chained(span: tuple[str, datetime, datetime], loaded: Sequence[tuple[datetime, datetime]]) -> bool:
    """Whether an event overlaps the time that was looked at, so that what overlaps it may matter in turn."""
    start = span[1] + LONGEST
    return any(start < until and span[2] > since + LONGEST for since, until in loaded)


def _merge(spans: Iterable[tuple[str, datetime, datetime]]) -> list[tuple[str, datetime, datetime]]:
    """Join ranges of one link that overlap."""
    merged: list[tuple[str, datetime, datetime]] = []
    for link, since, until in sorted(set(spans)):
        if merged and merged[-1][0] == link and since <= merged[-1][2]:
            merged[-1] = (link, merged[-1][1], max(until, merged[-1][2]))
        else:
            merged.append((link, since, until))
    return merged


def judge_row(
    row: Row[Any],
    rulebook: Rulebook,
    platforms: Collection[str],
    *,
    marked: Collection[str] = (),
    written: Collection[str] = (),
    leaving: str | None = None,
    keeps_unwanted: bool = True,
) -> Judged | None:
    """Return what the rules decide about a row; None for one that can have no bot.

    `keeps_unwanted`: also about one that is to have none.
    """
    if row.is_removed or row.start_time is None or row.calendar_id == leaving:
        return None
    rules = rulebook.of(row.calendar_id)
    decision = decide(_facts(row), rules, row.policy)
    bot = decision.bot if row.meeting_platform in platforms else None
    if bot is None and not keeps_unwanted:
        return None
    return Judged(
        id=row.id,
        start=row.start_time,
        end=row.end_time,
        meeting_url=row.meeting_url,
        rule=decision.rule,
        bot=bot,
        is_shared=rules.bot_scope == "meeting",
        is_marked=row.id in marked,
        is_written=row.id in written,
    )


class _Attendees(Sequence[Participant]):
    """The attendees in a column of JSON, read when a rule asks for them."""

    def __init__(self, column: str) -> None:
        self._column = column

    @cached_property
    def _read(self) -> list[Participant]:
        people = orjson.loads(self._column)
        return [Participant(person.get("email"), bool(person.get("is_resource"))) for person in people]

    @overload
    def __getitem__(self, index: int) -> Participant: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Participant]: ...

    def __getitem__(self, index: int | slice) -> Participant | Sequence[Participant]:
        return self._read[index]

    def __len__(self) -> int:
        return len(self._read)


def _facts(row: Row[Any]) -> EventFacts:
    organizer = orjson.loads(row.organizer) if row.organizer is not None else None
    return EventFacts(
        name=row.name,
        is_all_day=row.is_all_day,
        visibility=row.visibility,
        response_status=row.response_status,
        meeting_url=row.meeting_url,
        meeting_platform=row.meeting_platform,
        attendees=_Attendees(row.attendees) if row.attendees is not None else (),
        organizer=organizer.get("email") if organizer is not None else None,
        owner=row.owner_email,
        is_own=row.is_own == "true",
    )


def plan_bot(row: RuleBotRow) -> Bot:
    """Return a bot in the form that `plan` takes."""
    return Bot(
        id=row.id,
        event_id=row.event_id,
        phase=row.phase,
        join_at=row.join_at,
        meeting_url=row.meeting_url,
        rule=row.rule,
        digest=row.digest,
    )


def _wanted(event: Judged) -> Wanted:
    assert event.rule is not None
    assert event.bot is not None
    bot = event.bot
    return Wanted(event.rule.name, bot.digest, bot.bot_name, bot.metadata, bot.bot_settings)


async def _apply(
    session: Session, project_id: str, rows: Sequence[Row[Any]], planned: Plan, leaving: str | None
) -> list[str]:
    """Carry out a plan; returns the events to which bots were moved."""
    by_id: Mapping[str, Row[Any]] = {row.id: row for row in rows}
    # The bots of events that were removed are deleted when they follow them, which says why.
    removed = {row.id for row in rows if row.is_removed or row.calendar_id == leaving}
    await rule_bots.delete_bots(
        session,
        project_id,
        [bot.id for bot in planned.delete if bot.event_id in by_id and bot.event_id not in removed],
    )
    changed = [
        Changed(
            bot.id,
            event.id,
            _wanted(event),
            is_overwritten=(bot.rule, bot.digest) != (event.rule.name, event.bot.digest),
        )
        for bot, event in planned.keep
        if event.rule is not None
        and event.bot is not None
        and (bot.event_id, bot.rule, bot.digest) != (event.id, event.rule.name, event.bot.digest)
    ]
    await rule_bots.change_bots(session, project_id, changed)
    if planned.make:
        calendars = await repository.load_calendars(
            session, {by_id[event.id].calendar_id for event in planned.make}
        )
        made = [
            Made(
                calendars[by_id[event.id].calendar_id],
                event.id,
                event.meeting_url,
                event.start,
                _wanted(event),
            )
            for event in planned.make
            if event.meeting_url is not None
        ]
        await rule_bots.make_bots(session, project_id, made)
    return [event.id for bot, event in planned.keep if bot.event_id != event.id]


async def find_meeting_events(session: AnySession, rulebook: Rulebook, event_id: str) -> list[str]:
    """Return the events whose deletion of a bot by a client covers the meeting of this event."""
    rows = await repository.load_events(session, [event_id], asks_people=False)
    spans = _spans(rows, [])
    if not spans or rulebook.of(rows[0].calendar_id).bot_scope != "meeting":
        return []
    meeting = _time_of(rows[0])
    sharing = await repository.load_meetings(session, rulebook.project_id, spans, asks_people=False)
    others = [row.id for row in sharing if meeting.overlaps(_time_of(row))]
    link, since, until = spans[0]
    marks = await rule_bots.find_marks(session, rulebook.project_id, others, Meetings([link], since, until))
    return [marked_id for marked_id, _, at in marks if marked_id in others or meeting.is_on_at(at)]
