"""Requests for a lot: what is computed holds up neither the event loop nor connections, and is bounded."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy.pool import QueuePool

from app.availability import repository, service, turns
from app.availability.spans import count_pairs
from app.core.db import Sessions, reading
from app.core.http import httpx
from tests.conftest import TestProject
from tests.integration.availability.mirror import Event, MirroredCalendar, store, text

_START = datetime(2027, 3, 1, tzinfo=UTC)
_RANGE = {"start": text(_START), "end": text(_START + timedelta(days=2))}
_TOO_MANY = (
    "These calendars have too many events in this range: ask for fewer of them, or for a shorter range."
)


def _calendar(events: int) -> MirroredCalendar:
    at = [_START + timedelta(hours=2 * number) for number in range(events)]
    return MirroredCalendar([Event(start, start + timedelta(hours=1)) for start in at])


def _requests(*calendars: MirroredCalendar) -> dict[str, dict[str, Any]]:
    participants = [{"calendars": [calendar.id]} for calendar in calendars]
    return {
        "free_busy": {"calendars": [calendar.id for calendar in calendars], **_RANGE},
        "availability": {"participants": participants, **_RANGE, "duration_minutes": 30},
    }


@pytest.mark.parametrize(
    ("call", "step"),
    [
        ("free_busy", "merge_busy"),
        ("free_busy", "busy_json"),
        ("availability", "_possible_starts"),
        ("availability", "find_slots"),
        ("availability", "text_of"),
    ],
)
async def test_each_step_runs_in_a_thread_and_holds_no_connection(
    app: FastAPI,
    api: httpx.AsyncClient,
    sessions: Sessions,
    project: TestProject,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    step: str,
) -> None:
    calendar = _calendar(3)
    await store(sessions, project.id, [calendar])
    pool = app.state.calbridge.read_sessions.kw["bind"].pool
    assert isinstance(pool, QueuePool)
    seen: list[tuple[bool, int]] = []
    work: Callable[..., Any] = getattr(service, step)

    def watched(*values: Any, **named: Any) -> Any:
        seen.append((threading.current_thread() is threading.main_thread(), pool.checkedout()))
        return work(*values, **named)

    monkeypatch.setattr(service, step, watched)
    response = await api.post(f"/api/v1/{call}", json=_requests(calendar)[call])
    assert response.status_code == 200, response.text
    assert set(seen) == {(False, 0)}


async def test_a_project_takes_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests one project sends, another one gets its turn."""
    let_go = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        monkeypatch.setattr(turns, "_THREADS", threads)
        greedy = [asyncio.create_task(turns.compute("proj_greedy", let_go.wait)) for _ in range(5)]
        await asyncio.sleep(0)  # each of them has begun, and is in a thread or waits for its turn
        try:
            async with asyncio.timeout(10):
                assert await turns.compute("proj_other", lambda: 7) == 7
            assert not any(task.done() for task in greedy)
        finally:
            let_go.set()
        assert await asyncio.gather(*greedy) == [True] * 5
    assert turns._computing == {}


@pytest.mark.parametrize(("call", "field"), [("free_busy", "calendars"), ("availability", "participants")])
@pytest.mark.parametrize("ignores", [False, True])
async def test_more_events_than_fit_into_memory_are_refused(
    api: httpx.AsyncClient,
    sessions: Sessions,
    project: TestProject,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    field: str,
    ignores: bool,
) -> None:
    calendars = [_calendar(3), _calendar(4)]
    await store(sessions, project.id, calendars)
    body = _requests(*calendars)[call]
    if ignores and call == "availability":
        body["ignore_event_ids"] = [calendars[0].events[0].id]
    count = 7 - ("ignore_event_ids" in body)
    monkeypatch.setattr(service, "_MOST_EVENTS", count)
    response = await api.post(f"/api/v1/{call}", json=body)
    assert response.status_code == 200, response.text
    monkeypatch.setattr(service, "_MOST_EVENTS", count - 1)
    response = await api.post(f"/api/v1/{call}", json=body)
    assert (response.status_code, response.json()) == (400, {field: [_TOO_MANY]})


async def test_no_more_events_are_read_than_are_needed_to_refuse(
    sessions: Sessions, project: TestProject
) -> None:
    calendars = [_calendar(3), _calendar(4)]
    await store(sessions, project.id, calendars)
    ids = [calendar.id for calendar in calendars]
    async with reading(sessions) as session:
        end = _START + timedelta(days=2)
        busy = await repository.load_busy(session, ids, _START, end, most=5)
    assert sum(count_pairs(sent) for found in busy.values() for sent in found.values()) == 5
