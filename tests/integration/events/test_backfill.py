"""Rows of an earlier release get their derived fields from `raw`."""

import asyncio
from typing import Any

import orjson
import pytest
from sqlalchemy import text

from app.core.db import transaction
from app.events import backfill
from app.events.data import RemoteEvent
from app.events.repository import write_derived
from app.providers.google.fields import read_derived
from app.sync.backfill import fill_old_events
from tests import factories
from tests.integration.events.test_writer import Ref, apply
from workers import housekeeping

COLUMNS = "busy_status, visibility, event_type, etag"
_FORGET = text(f"UPDATE calendar_events SET ({COLUMNS}) = (NULL, NULL, NULL, NULL)")


@pytest.fixture
def add(sessions, settings, project):
    """Add a calendar whose rows are of an earlier release, with these values of `raw`; its id."""

    async def add(platform: str, *raws: Any) -> str:
        calendar_id = await factories.add_calendar(
            sessions, settings, project.id, platform=platform, secrets={}
        )
        texts = [raw if isinstance(raw, str) else orjson.dumps(raw).decode() for raw in raws]
        events = [RemoteEvent(platform_uuid=f"e{n}", raw=raw) for n, raw in enumerate(texts)]
        await apply(sessions, Ref(calendar_id, project.id), events)
        async with transaction(sessions) as session:
            await session.execute(_FORGET)
        return calendar_id

    return add


@pytest.fixture
def derived(sessions):
    async def derived(calendar_id: str) -> list[tuple[Any, ...]]:
        rows = await factories.load_events(sessions, calendar_id)
        values = [(row.busy_status, row.visibility, row.event_type, row.etag) for row in rows.values()]
        return [values[list(rows).index(name)] for name in sorted(rows)]

    return derived


def ics(*lines: str) -> dict[str, Any]:
    return {"ics": "\r\n".join(["BEGIN:VEVENT", "UID:a", *lines, "END:VEVENT"]), "uid": "a"}


DEFAULTS = ("busy", "default", "default", None)


@pytest.mark.parametrize(
    ("platform", "raw", "expected"),
    [
        ("google", {}, DEFAULTS),
        ("google", {"transparency": "transparent", "etag": '"1"'}, ("free", "default", "default", '"1"')),
        ("google", {"status": "tentative", "visibility": "public"}, ("tentative", "public", "default", None)),
        ("google", {"eventType": "outOfOffice"}, ("out_of_office", "default", "out_of_office", None)),
        ("google", {"transparency": [{"a": None}], "etag": 7, "eventType": {"eventType": "birthday"}}, DEFAULTS),
        ("google", '{"status":"tentative","status":"confirmed"}', DEFAULTS),
        ("google", "[]", DEFAULTS),
        ("google", '"transparent"', DEFAULTS),
        ("google", "null", DEFAULTS),
        ("microsoft", {"showAs": "Free", "sensitivity": "private"}, ("free", "private", "default", None)),
        ("microsoft", {"showAs": None, "sensitivity": 7}, DEFAULTS),
        ("ics", ics("TRANSP:TRANSPARENT", "CLASS:PRIVATE"), ("free", "private", "default", None)),
        ("ics", ics('X-MICROSOFT-CDO-BUSYSTATUS;X="a:b":OOF', "TRANSP:OPAQUE"), ("out_of_office", "default", "default", None)),
        ("ics", ics("DESCRIPTION:a\\nTRANSP:TRANSPARENT"), DEFAULTS),
        ("ics", {"ics": "x" * 7_999 + "…"}, (None, None, "default", None)),
        ("ics", {"ics": ["TRANSP:TRANSPARENT"]}, DEFAULTS),
        ("ics", {}, DEFAULTS),
        ("local", {"uid": "a", "transparency": "transparent"}, DEFAULTS),
    ],
)  # fmt: skip
async def test_a_row_gets_what_its_raw_says(sessions, add, derived, platform, raw, expected) -> None:
    calendar_id = await add(platform, raw)
    before = await factories.load_events(sessions, calendar_id)
    assert await fill_old_events(sessions) == 1
    assert await derived(calendar_id) == [expected]
    after = await factories.load_events(sessions, calendar_id)
    assert (after["e0"].updated_at, after["e0"].raw) == (before["e0"].updated_at, before["e0"].raw)
    assert await fill_old_events(sessions) == 0


async def test_many_rows_are_filled_in_short_steps_by_several_workers(
    sessions, add, derived, monkeypatch
) -> None:
    monkeypatch.setattr(backfill, "_ROWS_AT_ONCE", 3)
    calendars = [await add("google", *({"etag": str(n)} for n in range(20))) for _ in range(3)]
    async with transaction(sessions) as session:
        await session.execute(_FORGET)
    await asyncio.gather(fill_old_events(sessions), fill_old_events(sessions))
    while await fill_old_events(sessions):
        pass
    for calendar_id in calendars:
        assert {values[:3] for values in await derived(calendar_id)} == {DEFAULTS[:3]}
        assert {values[3] for values in await derived(calendar_id)} == {str(n) for n in range(20)}


async def test_a_calendar_that_is_being_written_is_left_and_its_newer_values_stay(
    sessions, add, derived, project
) -> None:
    calendar_id = await add("google", {"transparency": "transparent"}, {})
    other = await add("google", {})
    async with transaction(sessions) as session:
        await session.execute(text("SELECT FROM calendars WHERE id = :id FOR UPDATE"), {"id": calendar_id})
        assert await asyncio.wait_for(fill_old_events(sessions), 5) == 1
    assert await derived(other) == [DEFAULTS]
    newer = RemoteEvent(platform_uuid="e0", raw='{"a":1}', busy_status="tentative", etag="2")
    await apply(sessions, Ref(calendar_id, project.id), [newer])
    assert await fill_old_events(sessions) == 1
    assert await derived(calendar_id) == [("tentative", "default", "default", "2"), DEFAULTS]


ODD = [
    '{"transparency":"transparent","summary":"a\\u0000b"}',
    '{"transparency":"transparent","summary":"\\ud800"}',
    '{"transparency":"\\ud800","summary":"a"}',
    '{"transparency":"transparent","deep":' + "[" * 3_000 + "]" * 3_000 + "}",
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
async def test_a_row_with_an_odd_raw_holds_up_no_other(sessions, add, derived, odd: str) -> None:
    """None of these is written today. PostgreSQL stores them as JSON, and may fail to take them apart."""
    first = await add("google", {}, odd, {"transparency": "transparent"})
    second = await add("google", {"etag": "1"})
    async with transaction(sessions) as session:
        await session.execute(_FORGET)
    assert await fill_old_events(sessions) == 4
    busy = "SELECT busy_status FROM calendar_events WHERE calendar_id = :id ORDER BY platform_uuid"
    async with transaction(sessions) as session:
        found = list(await session.scalars(text(busy), {"id": first}))
    assert found[::2] == ["busy", "free"]
    assert found[1] in {"busy", "free"}  # whatever could be read of it
    assert await derived(second) == [("busy", "default", "default", "1")]
    assert await fill_old_events(sessions) == 0


async def test_a_calendar_whose_rows_fail_holds_up_no_other(sessions, add, derived, monkeypatch) -> None:
    calendars = sorted([await add("google", {}) for _ in range(3)])
    async with transaction(sessions) as session:
        await session.execute(_FORGET)

    async def fail_for_first(session, values) -> None:
        await write_derived(session, values)
        held = (
            "SELECT 1 / count(*) FILTER (WHERE calendar_id <> :id) FROM calendar_events WHERE id = ANY(:ids)"
        )
        await session.execute(text(held), {"id": calendars[0], "ids": list(values)})

    with monkeypatch.context() as patched:
        patched.setattr(backfill, "write_derived", fail_for_first)
        assert await asyncio.wait_for(fill_old_events(sessions), 5) == 2
    assert [await derived(calendar_id) for calendar_id in calendars[1:]] == [[DEFAULTS], [DEFAULTS]]
    assert await fill_old_events(sessions) == 1


async def test_events_of_a_deleted_calendar_do_not_hold_it_up(sessions, add, derived) -> None:
    first, second = sorted([await add("google", {}), await add("google", {})])
    async with transaction(sessions) as session:
        await session.execute(text("DELETE FROM calendars WHERE id = :id"), {"id": first})
    assert await asyncio.wait_for(fill_old_events(sessions), 5) == 1
    assert await derived(second) == [DEFAULTS]


RULES = {
    "rules": [
        {
            "name": "open",
            "when": {"visibility_in": ["default"]},
            "join": True,
            "bot": {"bot_name": "Notetaker"},
        }
    ]
}


@pytest.mark.parametrize(
    ("raw", "runs"), [({"visibility": "private"}, 1), ({"transparency": "transparent"}, 0)]
)
@pytest.mark.parametrize("is_synced", [False, True])
async def test_join_rules_judge_a_calendar_again_whose_events_turn_out_to_be_private(
    sessions, project, api, add, raw: dict[str, str], runs: int, is_synced: bool
) -> None:
    calendar_id = await add("google", raw)
    response = await api.put("/api/v1/join_rules", json=RULES)
    assert response.status_code == 200, response.text
    async with transaction(sessions) as session:
        await session.execute(text("DELETE FROM join_rule_runs"))
    if is_synced:
        event = RemoteEvent(platform_uuid="e0", raw=orjson.dumps(raw).decode(), **raw_fields(raw))
        await apply(sessions, Ref(calendar_id, project.id), [event])
    else:
        assert await fill_old_events(sessions) == 1
    async with sessions() as session:
        assert await session.scalar(text("SELECT count(*) FROM join_rule_runs")) == runs


def raw_fields(raw: dict[str, str]) -> dict[str, Any]:
    return read_derived(raw)._asdict()


async def test_housekeeping_does_it(sessions, add, derived) -> None:
    calendar_id = await add("microsoft", {"showAs": "tentative"})
    filling = asyncio.create_task(housekeeping.fill_events(sessions).run())
    while await derived(calendar_id) != [("tentative", *DEFAULTS[1:])]:
        await asyncio.sleep(0.01)
    filling.cancel()


async def test_rows_that_lack_nothing_are_not_read(sessions, add) -> None:
    await add("google", *({} for _ in range(200)))
    assert await fill_old_events(sessions) == 200
    async with transaction(sessions) as session:
        await session.execute(text("ANALYZE calendar_events"))
        statement = text(f"EXPLAIN {backfill._NEXT.text}")
        plan = "\n".join(row[0] for row in await session.execute(statement, {"after": ""}))
    assert "ix_calendar_events_to_fill" in plan
    assert "Seq Scan" not in plan
