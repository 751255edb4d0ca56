"""POST /free_busy says what a bitmap of minutes says, for any events."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core.db import Sessions
from app.core.http import httpx
from tests.conftest import TestProject
from tests.integration.availability.mirror import Event, MirroredCalendar, minutes, runs, store, text

_START = datetime(2027, 3, 27, 22, tzinfo=UTC)  # the clocks of Paris change in the night after
_END = _START + timedelta(hours=40)

moments = st.integers(-3000, 3000).map(lambda number: _START + number * timedelta(minutes=1))
lengths = st.one_of(st.integers(0, 200), st.sampled_from([1440, 1441, 1500, 2880, 10_000]))


@st.composite
def events(draw: Any) -> Event:
    start = draw(st.one_of(moments, st.sampled_from([_START, _END, None])))
    end = None
    if start is not None and draw(st.integers(0, 9)):
        end = start + draw(lengths) * timedelta(minutes=1)
    return Event(
        start=start,
        end=end,
        busy_status=draw(
            st.sampled_from(["busy", "busy", "tentative", "out_of_office", "free", "working_elsewhere", None])
        ),
        response_status=draw(st.sampled_from([None, "accepted", "tentative", "needs_action", "declined"])),
        is_deleted=draw(st.integers(0, 9)) == 0,
    )


@given(st.lists(st.lists(events(), max_size=12), min_size=1, max_size=3))
@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_it_is_busy_in_the_minutes_of_the_model(
    api: httpx.AsyncClient, sessions: Sessions, project: TestProject, found: list[list[Event]]
) -> None:
    calendars = [MirroredCalendar(events) for events in found]
    await store(sessions, project.id, calendars)
    body = {"calendars": [calendar.id for calendar in calendars], "start": text(_START), "end": text(_END)}
    response = await api.post("/api/v1/free_busy", json=body)
    assert response.status_code == 200, response.text
    for calendar, result in zip(calendars, response.json()["results"], strict=True):
        expected = runs([calendar.status_at(at) for at in minutes(_START, _END)], _START)
        assert result["calendar_id"] == calendar.id
        assert result["busy"] == expected
