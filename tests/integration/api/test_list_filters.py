"""The filters of calendars and bots read what an index leads to: few that fit, behind 20,000 that do not."""

import asyncpg
import orjson
import pytest
from sqlalchemy import Engine, event

from app.bots import service as bots
from app.bots.schemas import BotsQuery
from app.calendars import service as calendars
from app.calendars.schemas import CalendarsQuery
from app.core.db import reading

_SEED = """
INSERT INTO calendars (id, project_id, platform, state, created_at)
    SELECT 'cal_' || n, '{project}', CASE WHEN n < 2 THEN 'ics' ELSE 'google' END,
           CASE WHEN n < 4 THEN 'disconnected' ELSE 'connected' END, now() + n * interval '1 second'
    FROM generate_series(0, 19999) n;
INSERT INTO bots (id, project_id, bot_name, state, meeting_url, join_at, created_at)
    SELECT 'bot_' || n, '{project}', 'b', CASE WHEN n > 19997 THEN 'fatal_error' WHEN n > 19995 THEN 'scheduled' ELSE 'launched' END,
           CASE WHEN n > 19996 THEN 'https://meet.example/' || repeat('a', 4000) ELSE 'https://meet.example/' || n END,
           '2026-01-01T00:00:00Z'::timestamptz + n * interval '1 minute', now() + n * interval '1 second'
    FROM generate_series(0, 19999) n;
UPDATE calendars SET sync_failing_since = now() WHERE id IN ('cal_3', 'cal_5');
UPDATE calendars SET outage_scope = 'google' WHERE id = 'cal_6';
ANALYZE calendars; ANALYZE bots;
"""


@pytest.fixture
async def filled(sessions, settings, project):
    connection = await asyncpg.connect(settings.required_database_url())
    await connection.execute(_SEED.format(project=project.id))
    yield connection
    await connection.close()


async def cost(connection, list_page):
    """How many rows the scans of what `list_page` executes read."""
    seen = []

    def note(_connection, _cursor, statement, parameters, *_):
        seen.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        page = await list_page()
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    (statement, parameters) = seen[-1]
    explained = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *parameters)
    return [row.id for row in page.rows], sum(map(looked_at, nodes(orjson.loads(explained)[0]["Plan"])))


def nodes(plan):
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def looked_at(node):
    if "Relation Name" not in node:
        return 0
    return (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]


NEWEST = [f"{n}" for n in range(19999, 19974, -1)]
OLDEST = [f"{n}" for n in range(25)]


async def test_filters_of_calendars_are_index_bound(filled, sessions, settings, project):
    for query, expected in (
        ({}, NEWEST),
        ({"platform": "google"}, NEWEST),
        ({"platform": "ics"}, ["1", "0"]),
        ({"state": "connected"}, NEWEST),
        ({"state": "disconnected"}, ["3", "2", "1", "0"]),
        ({"state": "disconnected", "platform": "google"}, ["3", "2"]),
        ({"failing": True}, ["6", "5"]),
        ({"failing": True, "platform": "ics"}, []),
        ({"failing": False}, NEWEST),
    ):
        async with reading(sessions) as session:
            asked = CalendarsQuery(**query)
            found, rows = await cost(
                filled,
                lambda: calendars.list_calendars(session, settings, project.id, asked),  # noqa: B023
            )
        assert found == [f"cal_{n}" for n in expected], query
        assert rows < 120, (query, rows)


async def test_filters_of_bots_are_index_bound(filled, sessions, project):
    new_link = "https://meet.example/" + "a" * 4000
    for query, expected in (
        ({}, OLDEST),
        ({"state": "joining"}, OLDEST),
        ({"state": "fatal_error"}, ["19998", "19999"]),
        ({"states": ["fatal_error", "scheduled"]}, ["19996", "19997", "19998", "19999"]),
        ({"meeting_url": new_link}, ["19997", "19998", "19999"]),
        ({"meeting_url": new_link, "state": "scheduled"}, ["19997"]),
        ({"join_at_lte": "2026-01-01T00:02:00Z"}, ["0", "1", "2"]),
        ({"join_at_lte": "2026-01-01T00:02:00Z", "state": "joining"}, ["0", "1", "2"]),
    ):
        async with reading(sessions) as session:
            asked = BotsQuery(**query)
            found, rows = await cost(filled, lambda: bots.list_bots(session, project.id, asked))  # noqa: B023
        assert found == [f"bot_{n}" for n in expected], query
        assert rows < 120, (query, rows)
