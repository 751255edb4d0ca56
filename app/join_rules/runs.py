"""Runs: events that are judged again, because rules changed or a calendar was connected again.

A run is a row. Its work is one or more short transactions, each of which locks calendars, judges their events, and deletes
the row or stores how far it came: a process that is killed leaves the row. Calendars whose row another transaction has
locked come later. Any number of processes may work on the runs of a project.

A transaction that wrote events by the rules of before holds its calendar's row until it commits. The run waits for that
row, so it sees those events. A calendar that is not seen when a project's run becomes one for each calendar was committed
after the rules were: its first events are judged by the new ones.

Rows of runs are locked after all other rows.
"""

import asyncio
import random
import time

from app.bots.service import follow_events
from app.core.db import Session, Sessions, transaction
from app.join_rules.judging import Meeting, judge_events, load_rulebook
from app.join_rules.repository import rules, runs
from app.join_rules.repository.runs import Run
from app.settings import Settings

_EVENTS_AT_ONCE = 2_000
_CALENDARS_AT_ONCE = 200
_PAUSE_SECONDS = 0.02
_TURN_SECONDS = 10.0


async def apply_runs(
    sessions: Sessions, settings: Settings, project_id: str, *, seconds: float, from_the_end: bool = False
) -> bool:
    """Judge the events of a project's runs for up to so many seconds; returns whether no run is left."""
    end = time.monotonic() + seconds
    while True:
        done = await _apply_batch(sessions, settings, project_id, from_the_end=from_the_end)
        if done is None:
            return True
        if time.monotonic() >= end:
            return False
        if done == 0:
            await asyncio.sleep(_PAUSE_SECONDS)


async def _apply_batch(
    sessions: Sessions, settings: Settings, project_id: str, *, from_the_end: bool
) -> int | None:
    """Do one short transaction; returns how many runs it worked on, None if none is left."""
    async with transaction(sessions) as session:
        if await runs.expand_run(session, project_id):
            return 1
    async with transaction(sessions) as session:
        found = await runs.find_runs(session, project_id, _CALENDARS_AT_ONCE, from_the_end=from_the_end)
        if not found:
            return 0 if await runs.has_runs(session, project_id) else None
        locked = await rules.lock_calendars(session, {run.calendar_id for run in found})
        taken = [run for run in found if run.calendar_id in locked]
        # Another process may have ended them until the calendars were locked: they are looked at again.
        taken = await runs.reload_runs(session, [run.target for run in taken])
        if taken:
            await _judge_runs(session, settings, project_id, taken)
        return len(taken)


async def _judge_runs(session: Session, settings: Settings, project_id: str, taken: list[Run]) -> None:
    single = [run for run in taken if run.event_id is not None]
    whole = [run for run in taken if run.event_id is None]
    done = [(run.target, run.requested_at) for run in single]
    ahead: list[tuple[str, str]] = []
    progress: tuple[Run, str] | None = None
    if whole:
        ahead = await runs.find_ahead(
            session, [(run.calendar_id, run.after_event_id) for run in whole], _EVENTS_AT_ONCE
        )
        reached = len(whole)
        if len(ahead) >= _EVENTS_AT_ONCE:
            last_event, last_calendar = ahead[-1]
            reached = next(n for n, run in enumerate(whole) if run.calendar_id == last_calendar)
            progress = (whole[reached], last_event)
        done += [(run.target, run.requested_at) for run in whole[:reached]]
    rulebook = await load_rulebook(session, project_id, {run.calendar_id for run in taken})
    single_ids = [run.event_id for run in single if run.event_id is not None]
    event_ids = list(dict.fromkeys([*single_ids, *(event_id for event_id, _ in ahead)]))
    moved = await judge_events(
        session,
        rulebook,
        event_ids,
        platforms=settings.bot_runner_platforms,
        written=single_ids,
        meetings=[
            Meeting(run.meeting_url, run.join_at)
            for run in single
            if run.meeting_url is not None and run.join_at is not None
        ],
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
            await apply_runs(
                self._sessions, self._settings, project_id, seconds=_TURN_SECONDS, from_the_end=True
            )
        finally:
            self._busy.discard(project_id)
