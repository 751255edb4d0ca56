"""Pages of events against plain Python, for any filters: over odd rows, while rows change, and with deleted calendars."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, get_args

import pytest
from sqlalchemy import insert, select, text

from app.calendar_events import repository
from app.calendar_events.schemas import OrderingName
from app.core.db import Sessions, reading, transaction
from app.events.data import RemoteEvent
from app.models import Calendar, CalendarEvent
from tests.conftest import TestProject

_START = datetime(2026, 3, 1, tzinfo=UTC)
_FAR = datetime.max.replace(tzinfo=UTC)
_CONDITIONS: dict[str, Any] = {
    "calendar_id": lambda row, value: row.calendar_id == value,
    "is_deleted": lambda row, value: row.is_deleted is value,
    "updated_from": lambda row, value: row.updated_at >= value,
    "updated_before": lambda row, value: row.updated_at < value,
    "start_from": lambda row, value: row.start_time is not None and row.start_time >= value,
    "end_until": lambda row, value: row.end_time is not None and row.end_time <= value,
    "ical_uid": lambda row, value: row.ical_uid == value,
}


def _moment(chance: random.Random) -> datetime:
    """One of few, so that many rows share one."""
    return _START + timedelta(hours=chance.randrange(60))


def _rows(chance: random.Random, project_id: str, calendar_ids: list[str]) -> Iterator[dict[str, Any]]:
    for n in range(400):
        start = None if chance.random() < 0.1 else _moment(chance)
        end = None if chance.random() < 0.2 else _moment(chance)
        # As any provider's response is read.
        event = RemoteEvent(platform_uuid=str(n), raw="{}", start_time=start, end_time=end)
        yield {
            "id": f"evt_{chance.randrange(10**9)}x{n}",
            "project_id": project_id,
            "calendar_id": chance.choice(calendar_ids),
            "platform_uuid": str(n),
            "content_hash": b"",
            "is_deleted": chance.random() < 0.3,
            "start_time": event.start_time,
            "end_time": event.end_time,
            "ical_uid": f"uid{chance.randrange(5)}",
            "created_at": _moment(chance),
            "updated_at": _moment(chance),
        }


async def _seed(sessions: Sessions, project: TestProject, chance: random.Random) -> list[Any]:
    calendar_ids = ["cal_a", "cal_b", "cal_c"]
    async with transaction(sessions) as session:
        for calendar_id in calendar_ids:
            values = {"id": calendar_id, "project_id": project.id, "platform": "google"}
            await session.execute(insert(Calendar).values(values))
        await session.execute(insert(CalendarEvent).values(list(_rows(chance, project.id, calendar_ids))))
        await session.execute(text("DELETE FROM calendars WHERE id = 'cal_c'"))
        rows = await session.scalars(select(CalendarEvent).where(CalendarEvent.calendar_id != "cal_c"))
        return list(rows)


def _filters(chance: random.Random) -> dict[str, Any]:
    values = {
        "calendar_id": "cal_a",
        "is_deleted": chance.random() < 0.5,
        "updated_from": _moment(chance),
        "updated_before": _moment(chance),
        "start_from": _moment(chance),
        "end_until": _moment(chance),
        "ical_uid": f"uid{chance.randrange(5)}",
    }
    rare = {"ical_uid": 0.1}
    return {name: value for name, value in values.items() if chance.random() < rare.get(name, 0.35)}


def _expected(rows: list[Any], filters: dict[str, Any], ordering: str) -> list[str]:
    name = ordering.removeprefix("-")
    fitting = [row for row in rows if all(_CONDITIONS[key](row, value) for key, value in filters.items())]
    fitting.sort(key=lambda row: (getattr(row, name) or _FAR, row.id), reverse=ordering[0] == "-")
    return [row.id for row in fitting]


@pytest.mark.parametrize("seed", range(4))
async def test_pages_forth_and_back_have_each_row_that_fits_once(
    sessions: Sessions, project: TestProject, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    rows = await _seed(sessions, project, chance)
    for _ in range(60):
        # Small, so that both ways of finding rows are taken, and taken again further.
        monkeypatch.setattr(repository, "_LOOK_AT", chance.choice([8, 20, 500]))
        filters, ordering = _filters(chance), chance.choice(get_args(OrderingName))
        limit = chance.choice([7, 40])
        expected = _expected(rows, filters, ordering)
        found: list[list[str]] = []
        cursor: str | None = None
        async with reading(sessions) as session:
            while True:
                page = await repository.list_events(
                    session, project.id, filters, ordering_name=ordering, cursor_text=cursor, limit=limit
                )
                found.append([row.id for row in page.rows])
                if page.next is None:
                    break
                cursor = page.next.encode()
            assert list(chain.from_iterable(found)) == expected, (filters, ordering)
            for earlier in reversed(found[:-1]):
                assert page.previous is not None
                page = await repository.list_events(
                    session,
                    project.id,
                    filters,
                    ordering_name=ordering,
                    cursor_text=page.previous.encode(),
                    limit=limit,
                )
                assert [row.id for row in page.rows] == earlier, (filters, ordering)
            assert page.previous is None
