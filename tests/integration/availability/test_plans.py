"""The queries of busy times read two indexes, which have all columns that they need, and only the rows of the range."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import orjson
import pytest
from sqlalchemy import Engine, event

from app.availability import repository
from app.core.db import Sessions, reading
from app.settings import Settings
from tests.conftest import TestProject

_START = datetime(2027, 3, 1, tzinfo=UTC)
_CALENDARS = [f"cal_{n}" for n in range(5)]

# Two years of events of 20 calendars, 100 in 28 days. Every 50th lasts for days.
_SEED = """
    INSERT INTO calendars (id, project_id, platform) SELECT 'cal_' || n, $1, 'google' FROM generate_series(0, 19) n
"""
_SEED_EVENTS = """
    INSERT INTO calendar_events (id, project_id, calendar_id, platform_uuid, content_hash, start_time, end_time,
                                 busy_status, description)
    SELECT 'evt_' || i, $1, 'cal_' || i % 20, i::text, '\\x00', at,
           at + CASE WHEN i / 20 % 50 = 0 THEN interval '3 days' ELSE interval '1 hour' END,
           (array['busy', 'tentative', 'out_of_office', 'free', NULL])[1 + i / 20 % 5], repeat('words ', 200)
    FROM (SELECT i, timestamptz '2026-03-01Z' + i * interval '20 minutes' AS at
          FROM generate_series(0, 51999) i) AS events
"""


@pytest.fixture
async def two_years(settings: Settings, project: TestProject) -> Any:
    connection = await asyncpg.connect(settings.required_database_url())
    await connection.execute(_SEED, project.id)
    await connection.execute(_SEED_EVENTS, project.id)
    # Pages become visible to all by a VACUUM after every transaction that was open meanwhile has ended.
    visible = "SELECT relallvisible > 0.9 * relpages FROM pg_class WHERE relname = 'calendar_events'"
    async with asyncio.timeout(60):
        while not await connection.fetchval(visible):
            await connection.execute("VACUUM (ANALYZE) calendar_events")
    yield connection
    await connection.close()


def _scans(plan: dict[str, Any]) -> list[dict[str, Any]]:
    found = [plan] if plan.get("Relation Name") == "calendar_events" else []
    return found + [scan for child in plan.get("Plans", []) for scan in _scans(child)]


@pytest.mark.parametrize("query", ["busy", "starts"])
async def test_busy_times_are_read_from_the_indexes_alone(
    two_years: asyncpg.Connection, sessions: Sessions, query: str
) -> None:
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "calendar_events" in statement:
            seen.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        async with reading(sessions) as session:
            end = _START + timedelta(days=28)
            if query == "busy":
                found = await repository.load_busy(session, _CALENDARS, _START, end, most=500_001)
                assert all(found[calendar] for calendar in _CALENDARS)
            else:
                await repository.load_starts(
                    session,
                    [[calendar] for calendar in _CALENDARS],
                    ["{}"] * len(_CALENDARS),
                    start=_START,
                    end=end,
                    duration=timedelta(hours=1),
                    buffer_before=timedelta(0),
                    buffer_after=timedelta(0),
                    tentative_is_busy=True,
                    ignored=[],
                    most=500_001,
                )
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    [(statement, parameters)] = seen
    # A prepared statement gets a plan for any values after five executions.
    for mode in ("force_custom_plan", "force_generic_plan"):
        await two_years.execute(f"SET plan_cache_mode = {mode}")
        plan = await two_years.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *parameters)
        root = orjson.loads(plan)[0]["Plan"]
        by_index = {scan.get("Index Name"): scan for scan in _scans(root)}
        assert set(by_index) == {"ix_calendar_events_busy_by_start", "ix_calendar_events_long_busy_by_end"}
        assert {scan["Node Type"] for scan in by_index.values()} == {"Index Only Scan"}
        assert all(scan["Heap Fetches"] == 0 for scan in by_index.values())
        # Of 2,600 events in each calendar, 100 are in the range.
        read = {
            name: (scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)) * scan["Actual Loops"]
            for name, scan in by_index.items()
        }
        assert read["ix_calendar_events_busy_by_start"] <= len(_CALENDARS) * 110
        assert read["ix_calendar_events_long_busy_by_end"] <= len(_CALENDARS) * 30
        assert root["Shared Hit Blocks"] + root["Shared Read Blocks"] < 150
