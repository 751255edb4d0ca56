"""Runs: events that are judged again, because rules changed or a calendar was connected again.

A run is a row. Its work is one or more short transactions, each of which judges events, and deletes the row or stores how
far it came: a process that is killed leaves the row. Any number of processes may work on the runs of a project.

A calendar's run locks the calendar. A transaction that wrote events by the rules of before holds its calendar's row until
it commits. The run waits for that row, so it sees those events. Calendars whose row is locked come later. A calendar that
is not seen when a project's run becomes one for each calendar was committed after the rules were: its first events are
judged by the new ones.

Where events share bots, a project's run goes through all its events by their links, and locks no calendars. Why that is
correct: docs/adr/0011-join-rules.md.

Rows of runs are locked after all other rows.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from app.bots.service import follow_events
from app.core.db import Session, Sessions, transaction
from app.join_rules.judging import LinkPlace, Meeting, judge_events, judge_links, load_rulebook
from app.join_rules.repository import rules, runs
from app.join_rules.repository.runs import Run
from app.settings import Settings

_EVENTS_AT_ONCE = 2_000
# All writers of the project wait for these.
_EVENTS_OF_LINKS_AT_ONCE = 1_000
_CALENDARS_AT_ONCE = 200
_FIRST_CALENDARS = 10
_FIRST_LINK = ("", datetime(1, 1, 2, tzinfo=UTC))
_PAUSE_SECONDS = 0.02
_WAIT_SECONDS = 5.0
_TURN_SECONDS = 10.0


async def apply_runs(sessions: Sessions, settings: Settings, project_id: str, *, seconds: float) -> bool:
    """Judge the events of a project's runs for up to so many seconds; returns whether no run is left.

    Two transactions at a time: one is in the database while the events of the other one are judged.
    """
    end = time.monotonic() + seconds
    loops = [
        _apply_until(sessions, settings, project_id, end, from_the_end=from_the_end)
        for from_the_end in (False, True)
    ]
    results = await asyncio.gather(*loops, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return all(results)


async def _apply_until(
    sessions: Sessions, settings: Settings, project_id: str, end: float, *, from_the_end: bool
) -> bool:
    size = _BatchSize()
    while True:
        done = await _apply_batch(sessions, settings, project_id, from_the_end=from_the_end, size=size)
        if done is None:
            return True
        if time.monotonic() >= end:
            return False
        if done == 0:
            await asyncio.sleep(_PAUSE_SECONDS)


async def _apply_project_run(sessions: Sessions, settings: Settings, project_id: str) -> int | None:
    """Do one short transaction of a project's run; returns 0 if it has to wait, None if there is none."""
    async with transaction(sessions) as session:
        run = await runs.find_project_run(session, project_id)
        if run is None:
            return None
        # Rules do not change while the lock is held.
        if not await rules.try_lock_rules(session, project_id):
            return 0
        run = await runs.find_project_run(session, project_id)
        if run is None:
            return None
        if not await rules.has_meeting_rules(session, project_id):
            await runs.expand_run(session, project_id)
            return 1
        requested_at, stored = run
        if stored:
            link, start = stored.split("|")
            moved, following = await judge_links(
                session,
                project_id,
                (link, datetime.fromisoformat(start)),
                _EVENTS_OF_LINKS_AT_ONCE,
                platforms=settings.bot_runner_platforms,
            )
            await follow_events(session, moved)
            if following is None:
                await runs.finish_runs(session, [(project_id, requested_at)])
            else:
                await runs.save_place(session, project_id, requested_at, _stored(following))
            return 1
    if not await _wait_for_writers(sessions, project_id):
        return 0
    async with transaction(sessions) as session:
        await runs.save_place(session, project_id, requested_at, _stored(_FIRST_LINK))
    return 1


def _stored(place: LinkPlace) -> str:
    return f"{place[0]}|{place[1].isoformat()}"


async def _wait_for_writers(sessions: Sessions, project_id: str) -> bool:
    """Wait until the transactions that read the rules of before have ended; False if it takes too long."""
    end = time.monotonic() + _WAIT_SECONDS
    async with transaction(sessions) as session:
        left = await rules.find_calendars(session, project_id)
    while left:
        async with transaction(sessions) as session:
            left -= await rules.find_unlocked(session, left)
            left &= await rules.find_calendars(session, project_id)
        if left:
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(_PAUSE_SECONDS)
    return True


class _BatchSize:
    """How many calendars a transaction locks: about as many as it judges the events of."""

    def __init__(self) -> None:
        self.calendars = _FIRST_CALENDARS

    def learn(self, events: int, calendars: int) -> None:
        """Take in how many events these calendars had."""
        wanted = calendars * _EVENTS_AT_ONCE // max(events, 1) + 1
        self.calendars = max(1, min(wanted, 2 * self.calendars, _CALENDARS_AT_ONCE))


async def _apply_batch(
    sessions: Sessions, settings: Settings, project_id: str, *, from_the_end: bool, size: _BatchSize
) -> int | None:
    """Do one short transaction; returns how many runs it worked on, None if none is left."""
    done = await _apply_project_run(sessions, settings, project_id)
    if done is not None:
        return done
    async with transaction(sessions) as session:
        found = await runs.find_runs(session, project_id, _CALENDARS_AT_ONCE, from_the_end=from_the_end)
        if not found:
            return 0 if await runs.has_runs(session, project_id) else None
        # Calendars that another process works on are locked: further ones are tried.
        locked: set[str] = set()
        for first in range(0, len(found), size.calendars):
            some = {run.calendar_id for run in found[first : first + size.calendars]}
            locked = set(await rules.lock_calendars(session, some))
            if locked:
                break
        # Another process may have ended them until the calendars were locked: they are looked at again.
        taken = await runs.reload_runs(session, [run.target for run in found if run.calendar_id in locked])
        if taken:
            await _judge_runs(session, settings, project_id, taken, size)
        return len(taken)


async def _judge_runs(
    session: Session, settings: Settings, project_id: str, taken: list[Run], size: _BatchSize
) -> None:
    single = [run for run in taken if run.event_id is not None]
    whole = [run for run in taken if run.event_id is None]
    done = [(run.target, run.requested_at) for run in single]
    rulebook = await load_rulebook(session, project_id, {run.calendar_id for run in taken})
    ahead: Sequence[Row[Any]] = ()
    progress: tuple[Run, str] | None = None
    if whole:
        ahead = await rules.load_ahead(
            session,
            [(run.calendar_id, run.after_event_id) for run in whole],
            _EVENTS_AT_ONCE,
            asks_people=rulebook.asks_people or rulebook.has_meeting,
        )
        reached = len(whole)
        if len(ahead) >= _EVENTS_AT_ONCE:
            last = ahead[-1]
            reached = next(n for n, run in enumerate(whole) if run.calendar_id == last.calendar_id)
            progress = (whole[reached], last.id)
        done += [(run.target, run.requested_at) for run in whole[:reached]]
        size.learn(len(ahead), reached)
    single_ids = [run.event_id for run in single if run.event_id is not None]
    moved = await judge_events(
        session,
        rulebook,
        single_ids,
        platforms=settings.bot_runner_platforms,
        written=single_ids,
        meetings=[
            Meeting(run.meeting_url, run.join_at)
            for run in single
            if run.meeting_url is not None and run.join_at is not None
        ],
        loaded=ahead,
    )
    await follow_events(session, [*single_ids, *moved])
    if progress is not None:
        await runs.save_progress(session, *progress)
    await runs.finish_runs(session, done)


class JoinRuleWorker:
    """Works on runs in a worker: `claim` projects, then `handle` each in a task of its own."""

    def __init__(self, *, settings: Settings, sessions: Sessions) -> None:
        self._settings = settings
        self._sessions = sessions
        self._busy: set[str] = set()

    async def claim(self, limit: int) -> list[str]:
        """Return projects with runs that this process does not work on. Runs need no lease: see above."""
        async with transaction(self._sessions) as session:
            found = await runs.find_projects(session, self._busy)
        random.shuffle(found)
        claimed = found[:limit]
        self._busy |= set(claimed)
        return claimed

    async def handle(self, project_id: str) -> None:
        """Work on the runs of a project for a while; then it is another project's turn."""
        try:
            await apply_runs(self._sessions, self._settings, project_id, seconds=_TURN_SECONDS)
        finally:
            self._busy.discard(project_id)
