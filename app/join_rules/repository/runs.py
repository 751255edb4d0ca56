"""Runs: asking for them, finding the next ones, and their progress."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ARRAY, Text, bindparam, text

from app.core.db import AnySession, Session


@dataclass(frozen=True, slots=True)
class Run:
    """A calendar, or an event, whose bots are to be judged again."""

    target: str
    calendar_id: str
    event_id: str | None
    after_event_id: str
    meeting_url: str | None
    join_at: datetime | None
    requested_at: datetime


# A run that exists already starts again: a process that works on it does not delete it then.
_AGAIN = """
    ON CONFLICT (target) DO UPDATE
    SET requested_at = clock_timestamp(), after_event_id = '',
        meeting_url = coalesce(excluded.meeting_url, join_rule_runs.meeting_url),
        join_at = coalesce(excluded.join_at, join_rule_runs.join_at)
"""

_REQUEST = text(
    f"""
    INSERT INTO join_rule_runs (target, project_id, calendar_id)
    VALUES (coalesce(:calendar_id, :project_id), :project_id, :calendar_id) {_AGAIN}
    """  # noqa: S608 - constants
).bindparams(bindparam("calendar_id", type_=Text()), bindparam("project_id", type_=Text()))


async def request_run(session: Session, project_id: str, calendar_id: str | None) -> None:
    """Have the events of a project, or of one calendar, judged again."""
    await session.execute(_REQUEST, {"project_id": project_id, "calendar_id": calendar_id})


_REQUEST_EVENT = text(
    f"""
    INSERT INTO join_rule_runs (target, project_id, calendar_id, calendar_event_id, meeting_url, join_at)
    SELECT e.id, e.project_id, e.calendar_id, e.id, :meeting_url, :join_at
    FROM calendar_events e JOIN calendars c ON c.id = e.calendar_id
    WHERE e.id = :event_id AND EXISTS (SELECT FROM join_rules r WHERE r.project_id = e.project_id) {_AGAIN}
    """  # noqa: S608 - constants
).bindparams(bindparam("meeting_url", type_=Text()))


async def request_event_run(
    session: Session, event_id: str, meeting_url: str | None, join_at: datetime
) -> None:
    """Have one event judged again. `meeting_url` and `join_at` are those of its bot."""
    values = {"event_id": event_id, "meeting_url": meeting_url, "join_at": join_at}
    await session.execute(_REQUEST_EVENT, values)


# Rows of calendars are locked before those of runs. A calendar that is being deleted is waited for, and left out.
_EXPAND = text(
    f"""
    WITH applied AS (
        SELECT c.id, c.project_id FROM calendars c
        WHERE c.project_id = :project_id AND c.state = 'connected'
          AND NOT EXISTS (SELECT FROM join_rules r WHERE r.calendar_id = c.id)
        ORDER BY c.id FOR KEY SHARE
    ), expanded AS (
        INSERT INTO join_rule_runs (target, project_id, calendar_id)
        SELECT a.id, a.project_id, a.id FROM applied a ORDER BY a.id {_AGAIN} RETURNING target)
    SELECT count(*) FROM expanded
    """  # noqa: S608 - constants
)

_PROJECT_RUN = text("SELECT requested_at, after_event_id FROM join_rule_runs WHERE target = :project_id")

_FINISH = text(
    """
    DELETE FROM join_rule_runs r
    USING unnest(:targets, CAST(:times AS timestamptz[])) AS i(target, requested_at)
    WHERE r.target = i.target AND r.requested_at = i.requested_at
    """
).bindparams(bindparam("targets", type_=ARRAY(Text())))


async def find_project_run(session: AnySession, project_id: str) -> tuple[datetime, str] | None:
    """Return when the run of a project was asked for, and its place."""
    row = (await session.execute(_PROJECT_RUN, {"project_id": project_id})).one_or_none()
    return (row[0], row[1]) if row is not None else None


async def expand_run(session: Session, project_id: str) -> bool:
    """Turn a project's run into one for each of its calendars without own rules; False if there is none.

    The statement that reads the calendars begins after the one that sees the run, and so after the rules' commit.
    """
    run = await find_project_run(session, project_id)
    if run is None:
        return False
    requested_at, _ = run
    await session.execute(_EXPAND, {"project_id": project_id})
    await finish_runs(session, [(project_id, requested_at)])
    return True


async def finish_runs(session: Session, done: Collection[tuple[str, datetime]]) -> None:
    """Delete runs, unless they were asked for again since `requested_at`."""
    ordered = sorted(done)
    values = {"targets": [one[0] for one in ordered], "times": [one[1] for one in ordered]}
    await session.execute(_FINISH, values)


# The place of an event in the order of ends, for `rules.load_ahead`.
_PROGRESS = text(
    """
    UPDATE join_rule_runs
    SET after_event_id = (SELECT coalesce(end_time, 'infinity'::timestamptz) || '|' || id
                          FROM calendar_events WHERE id = :event_id)
    WHERE target = :target AND requested_at = :requested_at
    """
)


async def save_progress(session: Session, run: Run, event_id: str) -> None:
    """Store the last event that a calendar's run has judged, unless it was asked for again."""
    await session.execute(
        _PROGRESS, {"target": run.target, "requested_at": run.requested_at, "event_id": event_id}
    )


_PLACE = text(
    "UPDATE join_rule_runs SET after_event_id = :place WHERE target = :target AND requested_at = :requested_at"
)


async def save_place(session: Session, project_id: str, requested_at: datetime, place: str) -> None:
    """Store how far a project's run has come, unless it was asked for again."""
    values = {"target": project_id, "requested_at": requested_at, "place": place}
    await session.execute(_PLACE, values)


_NEXT = """
    SELECT target, calendar_id, calendar_event_id, after_event_id, meeting_url, join_at, requested_at
    FROM join_rule_runs WHERE project_id = :project_id AND calendar_id IS NOT NULL
    ORDER BY target {order} LIMIT :limit
"""
_FIRST = text(_NEXT.format(order=""))
_LAST = text(_NEXT.format(order="DESC"))


async def find_runs(session: AnySession, project_id: str, limit: int, *, from_the_end: bool) -> list[Run]:
    """Find runs of a project. Two processes that begin at both ends seldom wait for each other."""
    rows = await session.execute(
        _LAST if from_the_end else _FIRST, {"project_id": project_id, "limit": limit}
    )
    return [Run(*row) for row in rows]


_STILL_THERE = text(
    """
    SELECT r.target, r.calendar_id, r.calendar_event_id, r.after_event_id, r.meeting_url, r.join_at, r.requested_at
    FROM join_rule_runs r WHERE r.target = ANY(:targets)
    ORDER BY r.target
    """
).bindparams(bindparam("targets", type_=ARRAY(Text())))


async def reload_runs(session: AnySession, targets: Collection[str]) -> list[Run]:
    """Return these runs as they are now, without those that have ended."""
    return [Run(*row) for row in await session.execute(_STILL_THERE, {"targets": sorted(targets)})]


_HAS_RUNS = text("SELECT EXISTS (SELECT FROM join_rule_runs WHERE project_id = :project_id)")

_PROJECTS = text(
    "SELECT DISTINCT project_id FROM join_rule_runs WHERE NOT project_id = ANY(:busy)"
).bindparams(bindparam("busy", type_=ARRAY(Text())))


async def has_runs(session: AnySession, project_id: str) -> bool:
    """Whether events of a project are still to be judged."""
    return bool(await session.scalar(_HAS_RUNS, {"project_id": project_id}))


async def find_projects(session: AnySession, busy: Collection[str]) -> list[str]:
    """Find the projects that have runs, without those in `busy`."""
    return list(await session.scalars(_PROJECTS, {"busy": sorted(busy)}))
