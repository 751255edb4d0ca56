"""SQL of free/busy times: what is known of calendars, and when they are busy.

Nothing here writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ARRAY, DateTime, Float, Integer, Interval, Row, Text, bindparam, text

from app.core.db import ReadSession
from app.models.calendar_event import COUNTS_AS_BUSY, LASTS_LONG, LONG_HOURS

# A process of the release before stores the window that it read, but not what is covered. NULL is ignored.
_FACTS = """
    SELECT c.id, c.deduplication_key, c.platform, c.state,
           greatest(c.covered_from, c.window_start) AS covered_from,
           least(c.covered_until, c.window_end) AS covered_until,
           c.last_successful_sync_at,
           c.sync_failing_since IS NOT NULL OR c.outage_scope IS NOT NULL AS is_failing,
           EXISTS (SELECT FROM push_channels AS p
                   WHERE p.calendar_id = c.id AND p.state = 'open' AND p.verified_at IS NOT NULL) AS has_push,
           EXISTS (SELECT FROM hosted_events AS h
                   WHERE h.calendar_id = c.id AND h.expand_at IS NOT NULL) AS has_series,
           (SELECT max(h.created_at) - :past FROM hosted_events AS h
            WHERE h.calendar_id = c.id AND h.rrule IS NOT NULL AND NOT h.is_cancelled
              AND h.start_time < h.created_at - :past) AS series_since,
           statement_timestamp() AS now
    FROM calendars AS c WHERE c.project_id = :project_id
"""
_FIND = text(
    f"{_FACTS} AND c.id = ANY(:names) UNION {_FACTS} AND c.deduplication_key = ANY(:names)"
).bindparams(bindparam("names", type_=ARRAY(Text())), bindparam("past", type_=Interval()))


@dataclass(frozen=True, slots=True)
class CalendarFacts:
    """A calendar, and what the database says of it.

    - `has_push`: a push channel works, so that the calendar is synced less often.
    - `has_series`: it is local, and has a recurring event that goes on.
    - `series_since`: it is local, and has a recurring event that began before it was written here. Its instances
      before this time are not stored.
    - `now`: the database's time.
    """

    id: str
    deduplication_key: str | None
    platform: str
    state: str
    covered_from: datetime | None
    covered_until: datetime | None
    last_successful_sync_at: datetime | None
    is_failing: bool
    has_push: bool
    has_series: bool
    series_since: datetime | None
    now: datetime


async def find_calendars(
    session: ReadSession, project_id: str, names: Sequence[str], *, window_past: timedelta
) -> list[CalendarFacts]:
    """Return the calendars of the project that have one of these ids or deduplication keys.

    `window_past`: how far back a series of a local calendar is expanded when it is written.
    """
    values = {"project_id": project_id, "names": list(names), "past": window_past}
    rows = (await session.execute(_FIND, values)).all()
    return [CalendarFacts(*row) for row in rows]


async def find_unknown_event(session: ReadSession, project_id: str, event_ids: Sequence[str]) -> str | None:
    """Return the first of these ids that is no event of the project, or None."""
    statement = text(
        """
        SELECT asked.id FROM unnest(:ids) WITH ORDINALITY AS asked(id, number)
        WHERE NOT EXISTS (SELECT FROM calendar_events AS e WHERE e.id = asked.id AND e.project_id = :project_id)
        ORDER BY asked.number LIMIT 1
        """
    ).bindparams(bindparam("ids", type_=ARRAY(Text())))
    found: str | None = await session.scalar(statement, {"project_id": project_id, "ids": list(event_ids)})
    return found


# Two ranges of two indexes, which have all columns that are selected. An event that lasts long may have begun at any
# time before the range; any other overlaps it only if it began less than LONG_HOURS before.
_COLUMNS = "e.calendar_id, e.start_time, e.end_time, coalesce(e.busy_status, 'busy') AS status"
_BUSY_ROWS = f"""
    SELECT found.* FROM (SELECT DISTINCT unnest(:calendar_ids) AS id) AS asked, LATERAL (
        SELECT {_COLUMNS} FROM calendar_events AS e
        WHERE e.calendar_id = asked.id AND {COUNTS_AS_BUSY} AND e.start_time < e.end_time
          AND e.start_time >= :start - interval '{LONG_HOURS} hours' AND e.start_time < :end AND e.end_time > :start
        UNION ALL
        SELECT {_COLUMNS} FROM calendar_events AS e
        WHERE e.calendar_id = asked.id AND {COUNTS_AS_BUSY} AND {LASTS_LONG}
          AND e.end_time > :start AND e.start_time < :start - interval '{LONG_HOURS} hours'
    ) AS found
"""  # noqa: S608 - constants

# The rows of ignored events are taken out by their values: the indexes do not have ids.
_IGNORED_ROWS = f"""
    SELECT {_COLUMNS} FROM calendar_events AS e
    WHERE e.id = ANY(:ignored) AND e.calendar_id = ANY(:calendar_ids) AND {COUNTS_AS_BUSY}
      AND e.start_time < e.end_time AND e.start_time < :end AND e.end_time > :start
"""  # noqa: S608 - constants

_NOTHING = "'{}'::tstzmultirange"
_RANGE = bindparam("start", type_=DateTime(timezone=True)), bindparam("end", type_=DateTime(timezone=True))
_IDS = bindparam("calendar_ids", type_=ARRAY(Text()))

_BUSY = text(
    f"""
    WITH per_status AS (
        SELECT calendar_id, count(*) AS events,
               coalesce(range_agg(tstzrange(start_time, end_time)) FILTER (WHERE status = 'out_of_office'),
                        {_NOTHING}) AS ooo,
               coalesce(range_agg(tstzrange(start_time, end_time)) FILTER (WHERE status = 'tentative'),
                        {_NOTHING}) AS tentative,
               coalesce(range_agg(tstzrange(start_time, end_time))
                        FILTER (WHERE status NOT IN ('out_of_office', 'tentative')), {_NOTHING}) AS busy
        FROM ({_BUSY_ROWS} LIMIT :most) AS rows GROUP BY calendar_id),
    whole AS (SELECT tstzmultirange(tstzrange(:start, :end)) AS range)
    SELECT calendar_id, events,
           multirange_send(ooo * range) AS out_of_office,
           multirange_send((busy - ooo) * range) AS busy,
           multirange_send((tentative - busy - ooo) * range) AS tentative
    FROM per_status, whole
    """  # noqa: S608 - constants
).bindparams(_IDS, *_RANGE)


async def load_busy(
    session: ReadSession, calendar_ids: Sequence[str], start: datetime, end: datetime, *, most: int
) -> Sequence[Row[Any]]:
    """Return (calendar_id, events, out_of_office, busy, tentative) of calendars that are busy.

    The times are for `app.availability.spans.read_multirange`. They are disjoint, and cut to the range. `events`: the
    count of events that they are made of; only `most` events are read of all calendars.
    """
    values = {"calendar_ids": list(calendar_ids), "start": start, "end": end, "most": most}
    return (await session.execute(_BUSY, values)).all()


def _starts(*, ignores: bool) -> str:
    """Build SQL of the times at which each participant can start.

    An event from x to y blocks the starts after x - duration - buffer after it, and before y + buffer before it.
    """
    rows = f"{_BUSY_ROWS} EXCEPT ALL {_IGNORED_ROWS}" if ignores else _BUSY_ROWS
    return f"""
        WITH blocked AS (
            SELECT busy.participant, count(*) AS events, range_agg(tstzrange(
                       busy.start_time - make_interval(secs => :before_start),
                       busy.end_time + make_interval(secs => :after_end), '()')) AS starts
            FROM (
                SELECT of.participant, busy.start_time, busy.end_time
                FROM ({rows}) AS busy
                JOIN (SELECT DISTINCT unnest(:participants) AS participant, unnest(:calendars) AS calendar_id) AS of
                  ON of.calendar_id = busy.calendar_id
                WHERE busy.status <> 'tentative' OR :tentative_is_busy
                LIMIT :most) AS busy
            GROUP BY busy.participant)
        SELECT multirange_send(CAST(possible.starts AS tstzmultirange) - coalesce(blocked.starts, {_NOTHING})),
               coalesce(blocked.events, 0)
        FROM unnest(:possible) WITH ORDINALITY AS possible(starts, number)
        LEFT JOIN blocked ON blocked.participant = possible.number - 1
        ORDER BY possible.number
    """  # noqa: S608 - constants


_STARTS = {
    ignores: text(_starts(ignores=ignores)).bindparams(
        _IDS,
        *_RANGE,
        bindparam("participants", type_=ARRAY(Integer())),
        bindparam("calendars", type_=ARRAY(Text())),
        bindparam("possible", type_=ARRAY(Text())),
        bindparam("before_start", type_=Float()),
        bindparam("after_end", type_=Float()),
        *([bindparam("ignored", type_=ARRAY(Text()))] if ignores else []),
    )
    for ignores in (False, True)
}


async def load_starts(
    session: ReadSession,
    participants: Sequence[Sequence[str]],
    possible: Sequence[str],
    *,
    start: datetime,
    end: datetime,
    duration: timedelta,
    buffer_before: timedelta,
    buffer_after: timedelta,
    tentative_is_busy: bool,
    ignored: Sequence[str],
    most: int,
) -> list[tuple[bytes, int]]:
    """Return when a meeting can start for each participant, and how many events were read for that.

    The times are for `app.availability.spans.read_closed`. `most`: only so many events are read for all participants.

    `participants`: the ids of their calendars. `possible`: when it could start without any event, as text of a
    multirange. `start`, `end`: the range of the meetings, without buffers.
    """
    pairs = [(number, calendar_id) for number, ids in enumerate(participants) for calendar_id in ids]
    values = {
        "calendar_ids": [calendar_id for _, calendar_id in pairs],
        "participants": [number for number, _ in pairs],
        "calendars": [calendar_id for _, calendar_id in pairs],
        "possible": list(possible),
        "start": start - buffer_before,
        "end": end + buffer_after,
        "before_start": (duration + buffer_after).total_seconds(),
        "after_end": buffer_before.total_seconds(),
        "tentative_is_busy": tentative_is_busy,
        "most": most,
    }
    if ignored:
        values["ignored"] = list(ignored)
    rows = await session.execute(_STARTS[bool(ignored)], values)
    return [(starts, events) for starts, events in rows]
