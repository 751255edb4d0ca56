"""Every filter with every ordering of the list of events reads what an index leads to, out of 200,000 rows.

The rows are those of a project whose history was kept: 195,000 of the past, 5,000 to come, the older the longer ago
changed. So the newest changes are all of events to come, and a stretch of 50,000 is deleted: whatever is asked for
across an ordering lies behind thousands of rows that do not fit. A row has about 1 kB: of smaller ones, PostgreSQL
rightly reads more at a time.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice, product
from typing import Any, get_args

import asyncpg
import orjson
import pytest
from sqlalchemy import Engine, event

from app.calendar_events import service
from app.calendar_events.schemas import CalendarEventsQuery, OrderingName
from app.core.db import Sessions, create_engine, create_sessions, reading, transaction
from app.events.data import Window
from app.events.repository import find_live_missing
from app.events.retention import clear_expired
from app.settings import Settings

_SEED = """
INSERT INTO projects (id, name) VALUES ('proj_big', 'big'), ('proj_small', 'small');
INSERT INTO calendars (id, project_id, platform, deduplication_key)
    SELECT 'cal_' || n, CASE WHEN n < 4 THEN 'proj_big' ELSE 'proj_small' END, 'google', 'key-' || n
    FROM generate_series(0, 4) n;
INSERT INTO calendar_events (id, project_id, calendar_id, platform_uuid, content_hash, is_deleted, start_time, end_time,
                             ical_uid, description, created_at, updated_at)
    SELECT 'evt_' || i, 'proj_big', CASE WHEN i % 2 = 0 THEN 'cal_0' ELSE 'cal_' || (i % 4) END, i::text, '\\x00',
           i % 97 = 0 OR i BETWEEN 50000 AND 100000,
           now() + (i - 195000) * interval '8 minutes', now() + (i - 195000) * interval '8 minutes' + interval '1 hour',
           'uid-' || i / 50, repeat('words ', 170), now() - (200000 - i) * interval '4 minutes', now() - (200000 - i) * interval '3 minutes'
    FROM generate_series(0, 199999) i;
INSERT INTO calendar_events (id, project_id, calendar_id, platform_uuid, content_hash, start_time, end_time)
    SELECT 'small_' || i, 'proj_small', 'cal_4', i::text, '\\x00', now(), now() FROM generate_series(0, 99) i;
"""


# All by one process: filling the database costs more than most of these tests.
pytestmark = pytest.mark.xdist_group("event_queries")

_NOW = datetime.now(UTC)
_SCOPES: dict[str, dict[str, Any]] = {
    "project": {},
    "calendar": {"calendar_id": "cal_0"},
    "key": {"calendar_deduplication_key": "key-1"},
}
_FILTERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "upcoming": {"start_time_gte": _NOW},
    "over": {"end_time_lte": _NOW},
    "over long ago": {"end_time_lte": _NOW - timedelta(days=1075)},
    "one week": {"start_time_gte": _NOW - timedelta(days=300), "end_time_lte": _NOW - timedelta(days=293)},
    "changed lately": {"updated_after": _NOW - timedelta(hours=20)},
    "changed after nearly all": {"updated_after": _NOW + timedelta(days=1)},
    "changed lately, upcoming": {"updated_after": _NOW - timedelta(hours=20), "start_time_gte": _NOW},
    "changed lately, over": {"updated_after": _NOW - timedelta(hours=20), "end_time_lte": _NOW},
    "of a UID": {"ical_uid": "uid-77"},
    "of a UID, upcoming": {"ical_uid": "uid-3950", "start_time_gte": _NOW},
    "one event": {"event_id": "evt_77777"},
}


@pytest.fixture(scope="module")
def big_database_url(own_database_url: str) -> str:
    async def fill() -> None:
        connection = await asyncpg.connect(own_database_url)
        indexes = await connection.fetch(
            "SELECT indexname, indexdef FROM pg_indexes "
            "WHERE tablename = 'calendar_events' AND indexname NOT LIKE 'pk_%'"
        )
        for index in indexes:  # building them afterwards takes half the time
            await connection.execute(f"DROP INDEX {index['indexname']}")
        await connection.execute(_SEED)
        for index in indexes:
            await connection.execute(index["indexdef"])
        await connection.execute("VACUUM ANALYZE")
        await connection.close()

    asyncio.run(fill())
    return own_database_url


@pytest.fixture
async def big(big_database_url: str) -> AsyncIterator[Sessions]:
    engine = create_engine(big_database_url)
    yield create_sessions(engine)
    await engine.dispose()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def looked_at(root: dict[str, Any]) -> int:
    """Count the rows that the plan's scans of events read, including those that they filtered out.

    A bitmap's index scan and the heap scan above it read the same rows, so the larger of the two counts.
    """
    heap = index = 0
    for node in nodes(root):
        rows = node["Actual Rows"]
        rows += node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        if node.get("Relation Name") == "calendar_events":
            heap += rows * node["Actual Loops"]
        elif node["Node Type"] == "Bitmap Index Scan":
            index += rows * node["Actual Loops"]
    return max(heap, index)


def literal(value: Any) -> str:
    if isinstance(value, list):
        return "'{" + ",".join(map(str, value)) + "}'"
    return "'" + (value.isoformat() if isinstance(value, datetime) else str(value)) + "'"


class Listing:
    """Asks for pages as the API does, and has PostgreSQL explain what that took."""

    def __init__(self, sessions: Sessions, explaining: asyncpg.Connection) -> None:
        self._sessions = sessions
        self._explaining = explaining

    async def explain_with(self, plans: str) -> None:
        """`force_generic_plan`: plans that know no value, as a connection has them after some executions."""
        await self._explaining.execute(f"SET plan_cache_mode = {plans}")

    async def page(self, **query: Any) -> tuple[list[str], int, int]:
        """Ids, rows looked at, and buffers."""
        with statements() as seen:
            async with reading(self._sessions) as session:
                page = await service.list_events(session, "proj_big", CalendarEventsQuery(**query))
        return [row.id for row in page.rows], *await self.cost_of(seen)

    async def cost_of(self, seen: list[tuple[str, Any]]) -> tuple[int, int]:
        """Rows looked at, and buffers."""
        rows = buffers = 0
        for statement, parameters in seen:
            await self._explaining.execute(f"PREPARE listing AS {statement}")
            values = ", ".join(map(literal, parameters))
            explained = await self._explaining.fetchval(
                f"EXPLAIN (ANALYZE, TIMING OFF, BUFFERS, FORMAT JSON) EXECUTE listing({values})"
            )
            await self._explaining.execute("DEALLOCATE listing")
            root = orjson.loads(explained)[0]["Plan"]
            scans = {n["Node Type"] for n in nodes(root) if n.get("Relation Name") == "calendar_events"}
            assert "Seq Scan" not in scans
            rows += looked_at(root)
            buffers += root["Shared Hit Blocks"] + root["Shared Read Blocks"]
        return rows, buffers


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """Those about events that are executed meanwhile, with their parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "calendar_events" in statement:
            seen.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.fixture
async def listing(big: Sessions, big_database_url: str) -> AsyncIterator[Listing]:
    explaining = await asyncpg.connect(big_database_url)
    yield Listing(big, explaining)
    await explaining.close()


def queries(scope: str, *, begin_with: int = 0) -> Iterator[dict[str, Any]]:
    """Every filter with every ordering: without a kind of events, which reads both, and with one, by turns."""
    for number, (ordering, filters) in enumerate(product(get_args(OrderingName), _FILTERS.values())):
        # Another turn for each ordering, so that every filter meets both kinds.
        turn = number + number // len(_FILTERS) + begin_with
        for kind in (None, turn % 2 == 0):
            yield {
                **_SCOPES[scope],
                **filters,
                "ordering": ordering,
                **({} if kind is None else {"is_deleted": kind}),
            }


def most_rows(query: dict[str, Any]) -> int:
    """A page and a row more of each kind; or what a filter has to pass by that no index has together with the ordering.

    The 5,000 events to come are then the least that there is to read, and the worst is a multiple of them.
    """
    across = {
        "updated_at": {"start_time_gte", "end_time_lte"},
        "created_at": {"start_time_gte", "end_time_lte", "updated_after"},
        "start_time": {"updated_after"},
        "end_time": {"updated_after"},
    }[query["ordering"].removeprefix("-")] & query.keys()
    if "event_id" in query or "ical_uid" in query:
        return 150
    if not across:
        return 450
    one_sided = len({"start_time_gte", "end_time_lte"} & across) == 1 and "updated_after" not in query
    return 80_000 if one_sided else 10_000


@pytest.mark.parametrize(
    ("plans", "scope"),
    [
        ("force_custom_plan", "project"),
        ("force_generic_plan", "project"),
        ("force_generic_plan", "calendar"),
    ],
)
async def test_no_page_walks_through_the_history(listing: Listing, plans: str, scope: str) -> None:
    await listing.explain_with(plans)
    worst: dict[int, int] = {}
    for query in queries(scope, begin_with=plans == "force_generic_plan"):
        _, rows, buffers = await listing.page(**query)
        bound = most_rows(query)
        assert rows <= bound, (query, rows, buffers)
        worst[bound] = max(worst.get(bound, 0), rows)
    # The bounds are bounds and not wishes: plain pages need a page, whatever the table's size.
    assert worst[450] >= 200


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_upcoming_events_start_at_the_right_place(listing: Listing, plans: str) -> None:
    await listing.explain_with(plans)
    for query in (
        {"ordering": "start_time", "start_time_gte": _NOW},
        {"ordering": "start_time", "start_time_gte": _NOW, "calendar_id": "cal_0"},
        {"ordering": "-end_time", "end_time_lte": _NOW},
        {"ordering": "-start_time", "end_time_lte": _NOW},
        {"ordering": "end_time", "start_time_gte": _NOW},
        {"start_time_gte": _NOW},
    ):
        ids, rows, buffers = await listing.page(**query)
        assert len(ids) == 100
        assert rows <= 1_250, (query, rows)
        assert buffers <= 2_500, (query, buffers)


async def test_pages_have_the_rows_that_fit_in_their_order(big: Sessions, big_database_url: str) -> None:
    """As the plainest statement has it, which reads and sorts the whole table."""
    connection = await asyncpg.connect(big_database_url)
    await connection.execute("SET enable_indexscan = off; SET enable_bitmapscan = off")
    asked = [*queries("project"), *queries("calendar", begin_with=1)]
    for query in random.Random(5).sample(asked, 30):
        key, direction = query["ordering"].removeprefix("-"), "DESC" if query["ordering"][0] == "-" else "ASC"
        conditions = " AND ".join(
            f"{_FITS[name]} {literal(query[name])}" for name in query.keys() & _FITS.keys()
        )
        rows = await connection.fetch(
            f"SELECT id FROM calendar_events WHERE project_id = 'proj_big' AND {conditions or 'true'} "
            f"ORDER BY {key} {direction}, id {direction} LIMIT 200"
        )
        expected = iter([row["id"] for row in rows])
        async with reading(big) as session:
            cursor = None
            for _ in range(2):
                asks = CalendarEventsQuery(**query, cursor=cursor)
                page = await service.list_events(session, "proj_big", asks)
                assert [row.id for row in page.rows] == list(islice(expected, 100)), query
                if page.next is None:
                    break
                cursor = page.next.encode()
    await connection.close()


_FITS = {
    "calendar_id": "calendar_id =",
    "is_deleted": "is_deleted =",
    "start_time_gte": "start_time >=",
    "end_time_lte": "end_time <=",
    "updated_after": "updated_at >=",
    "ical_uid": "ical_uid =",
    "event_id": "id =",
}


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_a_full_round_does_not_read_the_history(big: Sessions, listing: Listing, plans: str) -> None:
    await listing.explain_with(plans)
    window = Window(_NOW - timedelta(days=1), _NOW + timedelta(days=28))
    with statements() as seen:
        async with transaction(big) as session:
            missing = await find_live_missing(session, "cal_0", window, ["195000"])
    rows, buffers = await listing.cost_of(seen)
    assert 2_400 < len(missing) < 2_650
    assert rows < 2.2 * len(missing), rows  # a bitmap scan counts twice
    assert buffers < 3 * len(missing), buffers


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_looking_for_expired_events_does_not_read_what_is_kept(
    big: Sessions, listing: Listing, plans: str
) -> None:
    await listing.explain_with(plans)
    settings = Settings(event_retention_days=1150)  # the history goes back 1,083 days
    with statements() as seen:
        assert await clear_expired(big, settings) == 0
    rows, buffers = await listing.cost_of(seen)
    assert (rows, buffers) < (10, 100)


@pytest.mark.parametrize("calendar_id", [None, "cal_0"])
@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_changes_are_read_by_their_index(
    listing: Listing, big: Sessions, calendar_id: str | None, plans: str
) -> None:
    await listing.explain_with(plans)
    for ago in (timedelta(days=400), timedelta(hours=3), timedelta(0)):
        at = _NOW - ago
        for event_id in ("", "evt_77777"):
            for before in (None, _NOW + timedelta(days=1)):
                with statements() as seen:
                    async with reading(big) as session:
                        rows, has_more = await service.list_changes(
                            session,
                            "proj_big",
                            calendar_id=calendar_id,
                            after=(at, event_id),
                            before=before,
                            limit=100,
                        )
                assert (len(rows), has_more) == (
                    (100, True) if ago > timedelta(days=1) else (len(rows), False)
                )
                assert [row.updated_at for row in rows] == sorted(row.updated_at for row in rows)
                assert (await listing.cost_of(seen))[0] <= 4 * 101


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_projects_with_news_are_found_by_an_index(listing: Listing, big: Sessions, plans: str) -> None:
    await listing.explain_with(plans)
    for since, expected in [(_NOW - timedelta(days=400), ["proj_big"]), (_NOW + timedelta(hours=1), [])]:
        with statements() as seen:
            async with reading(big) as session:
                found = await service.find_with_news(session, {"proj_big": since, "proj_none": since})
        assert found == expected
        assert (await listing.cost_of(seen))[0] <= 4
