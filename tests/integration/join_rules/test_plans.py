"""The queries of runs read ranges of indexes, and no further than they need."""

from datetime import timedelta
from typing import Any

import asyncpg
import orjson
import pytest
from sqlalchemy import Engine, event

from app.core.clock import utcnow
from app.core.db import Sessions, transaction
from app.join_rules.repository import rules
from app.settings import Settings
from tests.conftest import TestProject

_SEED = """
    INSERT INTO calendars (id, project_id, platform) SELECT 'cal_' || n, $1, 'google' FROM generate_series(0, 19) n
"""
# Half of the events are over.
_SEED_EVENTS = """
    INSERT INTO calendar_events (id, project_id, calendar_id, platform_uuid, content_hash, start_time, end_time, meeting_url)
    SELECT 'evt_' || i, $1, 'cal_' || i % 20, i::text, '\\x00', at, at + interval '1 hour', 'https://zoom.us/j/' || i
    FROM (SELECT i, now() + (i - 10000) * interval '20 minutes' AS at FROM generate_series(0, 19999) i) AS events
"""


@pytest.fixture
async def seeded(settings: Settings, project: TestProject) -> Any:
    connection = await asyncpg.connect(settings.required_database_url())
    await connection.execute(_SEED, project.id)
    await connection.execute(_SEED_EVENTS, project.id)
    await connection.execute("VACUUM (ANALYZE) calendar_events")
    yield connection
    await connection.close()


def _scans(plan: dict[str, Any], table: str) -> list[dict[str, Any]]:
    """The nodes that read a table, each with its index."""
    children = plan.get("Plans", [])
    found = []
    if plan.get("Relation Name") == table:
        found = [{"Index Name": children[0]["Index Name"] if children else None, **plan}]
    return found + [scan for child in children for scan in _scans(child, table)]


async def _explain(
    connection: asyncpg.Connection, seen: list[tuple[str, Any]], table: str
) -> list[dict[str, Any]]:
    statement, parameters = next(one for one in seen if table in one[0])
    text = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *parameters)
    return _scans(orjson.loads(text)[0]["Plan"], table)


@pytest.fixture
def seen() -> Any:
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    yield statements
    event.remove(Engine, "before_cursor_execute", note)


async def test_a_calendar_run_reads_the_events_ahead_by_their_end(
    seeded: asyncpg.Connection, sessions: Sessions, seen: list[tuple[str, Any]]
) -> None:
    async with transaction(sessions) as session:
        calendars = [("cal_3", ""), ("cal_1", ""), ("cal_2", "")]
        rows = await rules.load_ahead(session, calendars, 600, asks_people=False)
    assert [row.calendar_id for row in rows] == ["cal_3"] * 500 + ["cal_1"] * 100
    (scan,) = await _explain(seeded, seen, "calendar_events")
    assert scan["Index Name"] == "ix_calendar_events_calendar_by_end"
    # Of the third calendar, nothing is read.
    assert scan["Actual Loops"] == 2
    assert scan["Actual Rows"] <= 500
    assert scan.get("Rows Removed by Filter", 0) == 0


async def test_a_run_by_links_reads_a_range_of_links(
    seeded: asyncpg.Connection, sessions: Sessions, project: TestProject, seen: list[tuple[str, Any]]
) -> None:
    async with transaction(sessions) as session:
        place = ("8", utcnow() - timedelta(days=900))
        rows = await rules.load_links(session, project.id, place, utcnow(), 100)
    assert len(rows) == 100
    (scan,) = await _explain(seeded, seen, "calendar_events")
    assert scan["Index Name"] == "ix_calendar_events_project_by_meeting_url"
    assert scan["Actual Rows"] <= 101
    assert scan["Rows Removed by Filter"] < 300


async def test_events_of_meetings_are_found_by_their_link(
    seeded: asyncpg.Connection, sessions: Sessions, project: TestProject, seen: list[tuple[str, Any]]
) -> None:
    hashes = await seeded.fetch("SELECT md5(meeting_url) AS hash, start_time FROM calendar_events LIMIT 500")
    ranges = [
        (row["hash"], row["start_time"] - timedelta(days=1), row["start_time"] + timedelta(hours=1))
        for row in hashes
    ]
    async with transaction(sessions) as session:
        assert len(await rules.load_meetings(session, project.id, ranges, asks_people=False)) == 500
    (scan,) = await _explain(seeded, seen, "calendar_events")
    assert scan["Index Name"] == "ix_calendar_events_project_by_meeting_url"
