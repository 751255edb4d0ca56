"""SQL of the lists of events that the API shows. app/events/writer.py writes events."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    DateTime,
    FromClause,
    Row,
    Select,
    Text,
    cast,
    func,
    literal_column,
    select,
    text,
    true,
)
from sqlalchemy.types import TypeEngine

from app.bots.service import bots_json
from app.calendar_events.schemas import CalendarEventRead
from app.core.db import AnySession, ReadSession
from app.core.pagination import Cursor, Ordering, Page, page_of, seek_values
from app.models import Calendar, CalendarEvent

_TABLE = CalendarEvent.__table__.c

# What the API shows of a row, in its order. TIMES and JSON_TEXTS are selected in a form of their own.
FIELDS = tuple(CalendarEventRead.model_fields)
TIMES = tuple(name for name in FIELDS if name in _TABLE and isinstance(_TABLE[name].type, DateTime))
JSON_TEXTS = tuple(name for name in FIELDS if name in _TABLE and isinstance(_TABLE[name].type, JSON))

# Rows that were written before these columns existed have none (app/models/calendar_event.py).
_DEFAULTS = {"busy_status": "busy", "visibility": "default", "event_type": "default"}


def _selected(event: FromClause, name: str) -> ColumnElement[Any]:
    """Select JSON as the text that it is stored as, and times naive in UTC: both are cheaper to write out."""
    if name == "bots":
        return bots_json(event.c.id).label(name)
    if name in JSON_TEXTS:
        return cast(event.c[name], Text).label(name)
    if name in TIMES:
        return func.timezone(literal_column("'UTC'"), event.c[name]).label(name)
    if name in _DEFAULTS:
        return func.coalesce(event.c[name], _DEFAULTS[name]).label(name)
    return event.c[name]


def _read(event: FromClause) -> Select[Any]:
    return select(*(_selected(event, name) for name in FIELDS))


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# The key of each ordering, as it is indexed (app/models/calendar_event.py).
_KEYS: Mapping[str, str] = {
    "updated_at": "e.updated_at",
    "created_at": "e.created_at",
    "start_time": "coalesce(e.start_time, 'infinity'::timestamptz)",
    "end_time": "coalesce(e.end_time, 'infinity'::timestamptz)",
}

# What a list can be filtered by; the values are parameters of the same names.
_CALENDAR_FILTERS: Mapping[str, str] = {
    "calendar_id": "c.id = :calendar_id",
    "calendar_deduplication_key": "c.deduplication_key = :calendar_deduplication_key",
}
_EVENT_FILTERS: Mapping[str, str] = {
    "event_id": "e.id = :event_id",
    "ical_uid": "e.ical_uid = :ical_uid",
    "updated_from": "e.updated_at >= :updated_from",
    "updated_before": "e.updated_at < :updated_before",
    "start_from": "e.start_time >= :start_from",
    "end_until": "e.end_time <= :end_until",
}
# Filter -> the keys that it bounds. An event does not end before it starts, so a filter of one time bounds both: a list
# by either begins and ends where its rows do.
_BOUNDS: Mapping[str, Mapping[str, str]] = {
    "updated_from": {"updated_at": _EVENT_FILTERS["updated_from"]},
    "updated_before": {"updated_at": _EVENT_FILTERS["updated_before"]},
    "start_from": {name: f"{_KEYS[name]} >= :start_from" for name in ("start_time", "end_time")},
    "end_until": {name: f"{_KEYS[name]} <= :end_until" for name in ("start_time", "end_time")},
}
# The key whose index leads to the rows of a filter, if the ordering's own does not; the narrowest first.
# `updated_before` is none of them, because little is newer than it.
_RANGES: Mapping[str, str] = {
    "updated_from": "updated_at",
    "start_from": "start_time",
    "end_until": "end_time",
}
# Where filters do not bound the key: rows to look at first, and the factor if they were too few.
_LOOK_AT = 500
_FURTHER = 4
# More rows are read of a range: a week has an end, and the list's order may have few rows of it.
_RANGE_FACTOR = 2


async def find_event(session: AnySession, project_id: str, event_id: str) -> Row[Any] | None:
    """Find a row of FIELDS; None if the project has no such event."""
    event = CalendarEvent.__table__
    statement = _read(event).where(
        event.c.project_id == project_id,
        event.c.id == event_id,
        select(Calendar.id).where(Calendar.id == event.c.calendar_id).exists(),
    )
    row: Row[Any] | None = (await session.execute(statement)).one_or_none()
    return row


async def list_events(
    session: ReadSession,
    project_id: str,
    filters: Mapping[str, Any],
    *,
    ordering_name: str,
    cursor_text: str | None,
    limit: int,
) -> Page[Row[Any]]:
    """Read a page of rows of FIELDS, in one statement; a few more if filters and ordering share no index.

    Raises BadQuery for a bad cursor.

    `filters`: values by name, of calendar_id, calendar_deduplication_key, event_id, ical_uid, updated_from,
    updated_before, start_from, end_until and is_deleted.
    """
    cursor = Cursor.decode(cursor_text, ordering=ordering_name) if cursor_text is not None else None
    return await _list_page(
        session, project_id, filters, ordering_name=ordering_name, cursor=cursor, limit=limit
    )


async def _list_page(
    session: ReadSession,
    project_id: str,
    filters: Mapping[str, Any],
    *,
    ordering_name: str,
    cursor: Cursor | None,
    limit: int,
) -> Page[Row[Any]]:
    name = ordering_name.removeprefix("-")
    kind = cursor and Cursor(ordering_name, cursor.key and _EPOCH, "", cursor.backward)
    values = {**filters, "project_id": project_id, **seek_values(cursor, limit)}
    connection = await session.connection()
    look_at = _LOOK_AT
    while True:
        statement = _page_statement(frozenset(filters), ordering_name, kind, limit + 1, look_at)
        rows = (await connection.execute(statement, values)).all()
        if not rows or rows[0].id is not None:
            break
        look_at *= _FURTHER

    def place(row: Row[Any]) -> tuple[datetime | None, str]:
        at: datetime | None = getattr(row, name)
        return (None if at is None else at.replace(tzinfo=UTC)), row.id

    ordering = Ordering(
        ordering_name,
        literal_column("sort_key"),
        literal_column("id"),
        descending=ordering_name.startswith("-"),
    )
    return page_of(rows, ordering, cursor, limit, place=place)


# The place of an event in a list.
_PLACES: Mapping[str, TypeEngine[Any]] = {"id": Text(), "sort_key": DateTime(timezone=True)}


@lru_cache(maxsize=512)
def _page_statement(
    filters: frozenset[str], ordering_name: str, kind: Cursor | None, limit: int, look_at: int
) -> Select[Any]:
    """Build the statement for these filters and any cursor of this kind.

    All values but the limits are parameters. First the places of the page are found, by index alone if possible, then their rows are read. It is cached, because
    building it takes a third of the time that the API spends on reading a page.
    """
    descending = ordering_name.startswith("-") != (kind is not None and kind.backward)
    name = ordering_name.removeprefix("-")
    page = text(_places(filters, name, kind, descending=descending, limit=limit, look_at=look_at))
    place = page.columns(**_PLACES).cte("page")
    event = CalendarEvent.__table__
    # OFFSET 0: the rows are looked up by their ids, one by one, whatever number the planner expects.
    row = select(event).where(event.c.id == place.c.id).offset(literal_column("0")).lateral("event")
    keys = [place.c.sort_key, place.c.id]
    order = [key.desc() for key in keys] if descending else [key.asc() for key in keys]
    return _read(row).select_from(place.outerjoin(row, true())).order_by(*order)


def _places(
    filters: frozenset[str], name: str, kind: Cursor | None, *, descending: bool, limit: int, look_at: int
) -> str:
    """Build SQL that selects (id, sort_key) of a page, and reads only rows that an index leads to.

    - A filter by UID has its own index; its rows are sorted.
    - Else the index of the ordering is read, from the cursor or from the filters' bound of its key.
    - Filters that do not bound that key may leave few of its rows, far apart. Then `look_at` rows are read in the
      list's order (`near`). If these are neither enough nor all, as many are read in the range of such a filter, by
      that range's own index (`far`). If that is not all of the range either, a row of nulls asks for a larger
      `look_at`. The cost is a multiple of the cheaper way, however the rows are distributed.
    """
    order = "DESC" if descending else "ASC"
    by_place = f"ORDER BY sort_key {order}, id {order} LIMIT"
    given = sorted(filters & _EVENT_FILTERS.keys())
    shown = [] if filters & _CALENDAR_FILTERS.keys() else [_NOT_OF_DELETED]
    columns = f"e.id, {_KEYS[name]} AS sort_key"
    from_cursor = []
    if kind is not None:
        key = "'infinity'::timestamptz" if kind.key is None else "CAST(:cursor_key AS timestamptz)"
        from_cursor = [f"({_KEYS[name]}, e.id) {'<' if descending else '>'} ({key}, :cursor_id)"]
    if filters & {"event_id", "ical_uid"}:
        kinds = ["e.is_deleted = :is_deleted"] if "is_deleted" in filters else []
        named = [_EVENT_FILTERS[f] for f in given if f in {"event_id", "ical_uid"}]
        found = _select(columns, [_scope(filters), *named, *kinds, _fit(given, shown), *from_cursor])
        return f"SELECT id, sort_key FROM ({found} OFFSET 0) AS found {by_place} {limit}"  # noqa: S608 - made of constants
    bounds = [_BOUNDS[f][name] for f in given if name in _BOUNDS[f]]
    across = [f for f in _RANGES if f in filters and name not in _BOUNDS[f]]
    if not across:
        conditions = [*bounds, *from_cursor, _fit(given, shown)]
        found = _of_each_kind(filters, columns, conditions, f"{by_place} {limit}")
        return f"SELECT id, sort_key FROM ({found}) AS found {by_place} {limit}"  # noqa: S608 - made of constants
    near = _of_each_kind(
        filters, f"{columns}, {_fit(given, shown)} AS fits", [*bounds, *from_cursor], f"{by_place} {look_at}"
    )
    range_name = _RANGES[across[0]]
    far = _of_each_kind(
        filters,
        f"{columns}, {_KEYS[range_name]} AS range_key, {_fit(given, [*from_cursor, *shown])} AS fits",
        [_BOUNDS[f][range_name] for f in given if range_name in _BOUNDS[f]],
        f"ORDER BY range_key LIMIT {_RANGE_FACTOR * look_at + 1}",
    )
    return f"""
        WITH near AS MATERIALIZED (
            SELECT id, sort_key, fits FROM ({near}) AS looked_at),
        by_near AS MATERIALIZED (
            SELECT count(*) FILTER (WHERE fits) >= {limit} OR count(*) < {look_at} AS suffices
            FROM (SELECT fits FROM near {by_place} {look_at}) AS looked_at),
        far AS MATERIALIZED (
            SELECT id, sort_key, fits FROM ({far}) AS looked_at WHERE (SELECT NOT suffices FROM by_near)),
        by_far AS MATERIALIZED (
            SELECT count(*) <= {_RANGE_FACTOR * look_at} AS suffices FROM far)
        SELECT id, sort_key FROM (
            SELECT id, sort_key FROM near WHERE fits AND (SELECT suffices FROM by_near)
            UNION ALL
            SELECT id, sort_key FROM far WHERE fits AND (SELECT NOT n.suffices AND f.suffices FROM by_near n, by_far f)
            UNION ALL
            SELECT NULL, NULL FROM by_near n, by_far f WHERE NOT n.suffices AND NOT f.suffices
        ) AS page {by_place} {limit}
    """  # noqa: S608 - made of constants


def _fit(filters: Sequence[str], further: Sequence[str]) -> str:
    """Build the condition of all filters; within coalesce, so that the planner does not expect few rows."""
    conditions = [_EVENT_FILTERS[name] for name in filters]
    conditions += [
        bound for name in filters if name in {"start_from", "end_until"} for bound in _BOUNDS[name].values()
    ]
    return f"coalesce({' AND '.join([*conditions, *further]) or 'true'}, false)"


# Deleted calendars whose events a worker still has to delete: mostly none.
_NOT_OF_DELETED = "e.calendar_id <> ALL (ARRAY(SELECT d.calendar_id FROM deleted_calendars d WHERE d.project_id = :project_id))"


def _scope(filters: frozenset[str]) -> str:
    of_calendar = [_CALENDAR_FILTERS[name] for name in sorted(filters & _CALENDAR_FILTERS.keys())]
    if not of_calendar:
        return "e.project_id = :project_id"
    # The calendar is of the project, so the events need no condition: the planner then has only the indexes of
    # calendars, and cannot read a whole project's events for those of one calendar.
    calendar_id = _select("c.id", ["c.project_id = :project_id", *of_calendar], "calendars AS c")
    scope = f"e.calendar_id = ({calendar_id})"
    return f"{scope} AND e.project_id = :project_id" if "ical_uid" in filters else scope


def _of_each_kind(filters: frozenset[str], columns: str, conditions: Sequence[str], ending: str) -> str:
    """Build SQL of the first rows of each kind: the indexes keep live and deleted events apart.

    Each kind has the limit of the whole, so that the planner reads the index.
    """
    kinds = (
        ["e.is_deleted = :is_deleted"] if "is_deleted" in filters else ["NOT e.is_deleted", "e.is_deleted"]
    )
    return " UNION ALL ".join(
        f"({_select(columns, [_scope(filters), kind, *conditions])} {ending})" for kind in kinds
    )


def _select(columns: str, conditions: Sequence[str], table: str = "calendar_events AS e") -> str:
    return f"SELECT {columns} FROM {table} WHERE {' AND '.join(conditions)}"  # noqa: S608 - made of constants


async def list_changes(
    session: ReadSession,
    project_id: str,
    *,
    calendar_id: str | None,
    after: tuple[datetime, str],
    before: datetime | None,
    limit: int,
) -> tuple[Sequence[Row[Any]], bool]:
    """Read rows of FIELDS by (updated_at, id), in one statement. Returns them, and whether there are more.

    `after`: the place behind which to begin; with an empty id, at its time. `before`: the time at which to end.
    """
    at, event_id = after
    given = {
        "calendar_id": calendar_id,
        "updated_from": None if event_id else at,
        "updated_before": before,
    }
    filters = {name: value for name, value in given.items() if value is not None}
    cursor = Cursor("updated_at", at, event_id) if event_id else None
    page = await _list_page(
        session, project_id, filters, ordering_name="updated_at", cursor=cursor, limit=limit
    )
    return page.rows, page.next is not None


_HAVE_NEWS = text(
    """
    SELECT f.project_id
    FROM unnest(CAST(:project_ids AS text[]), CAST(:times AS timestamptz[])) AS f(project_id, since)
    WHERE EXISTS (SELECT FROM calendar_events e
                  WHERE e.project_id = f.project_id AND NOT e.is_deleted AND e.updated_at >= f.since)
       OR EXISTS (SELECT FROM calendar_events e
                  WHERE e.project_id = f.project_id AND e.is_deleted AND e.updated_at >= f.since)
    """
)


async def find_with_news(session: AnySession, since: Mapping[str, datetime]) -> list[str]:
    """Find the projects with rows that changed at or after a time. `since`: that time, by project id."""
    values = {"project_ids": list(since), "times": list(since.values())}
    return list(await session.scalars(_HAVE_NEWS, values))


async def count_events(session: AnySession, calendar_id: str) -> tuple[int, int]:
    """Return how many events the calendar has, and how many deleted ones are still kept."""
    is_deleted = CalendarEvent.is_deleted
    statement = select(func.count().filter(~is_deleted), func.count().filter(is_deleted))
    row = (await session.execute(statement.where(CalendarEvent.calendar_id == calendar_id))).one()
    return row[0], row[1]
