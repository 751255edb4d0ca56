"""`live: true` of `POST /free_busy`: a calendar is synced, and its provider adds what the mirror does not cover."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.core.clock import isoformat
from app.core.http import httpx
from app.core.ids import new_id
from app.settings import Settings
from tests.conftest import TestProject
from tests.factories import add_calendar
from tests.flows.conftest import GoogleCalendarUnderTest

_DAY = timedelta(days=1)


def _shown(start: datetime, end: datetime, status: str = "busy") -> dict[str, str]:
    return {"start": isoformat(start), "end": isoformat(end), "status": status}


class Asked:
    """The endpoint, and a range that begins tomorrow at midnight."""

    def __init__(self, api: httpx.AsyncClient) -> None:
        self.api = api
        self.start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + _DAY

    async def __call__(self, *calendars: str, days: int = 92, live: bool = True) -> list[dict[str, Any]]:
        body = {
            "calendars": list(calendars),
            "start": isoformat(self.start),
            "end": isoformat(self.start + days * _DAY),
            "live": live,
        }
        response = await self.api.post("/api/v1/free_busy", json=body)
        assert response.status_code == 200, response.text
        results: list[dict[str, Any]] = response.json()["results"]
        return results


@pytest.fixture
def asked(api: httpx.AsyncClient) -> Asked:
    return Asked(api)


async def test_the_provider_is_asked_for_what_is_not_covered(
    google: GoogleCalendarUnderTest, asked: Asked
) -> None:
    end = asked.start + 92 * _DAY
    near, far = asked.start + timedelta(days=2, hours=9), asked.start + timedelta(days=80, hours=9)
    hour = timedelta(hours=1)
    for at in (near, far):
        google.fake.add_event(start=at, end=at + hour)
    await google.sync()
    # The mirror does not know of this one yet, and covers its time.
    google.fake.add_event(start=near + 3 * hour, end=near + 4 * hour)

    (mirror,) = await asked(google.id, live=False)
    assert mirror["source"] == "mirror"
    assert mirror["busy"] == [_shown(near, near + hour)]
    assert mirror["covered_until"] < isoformat(end)
    assert google.fake.requests_to("freebusy.query") == []

    (live,) = await asked(google.id)
    assert live["busy"] == [_shown(near, near + hour), _shown(far, far + hour)]
    assert (live["source"], live["error"]) == ("live", None)
    assert live["covered_until"] >= isoformat(end)
    asked_for = google.fake.free_busy_bodies[0]
    assert mirror["covered_until"][:19] == asked_for["timeMin"][:19]
    count = len(google.fake.free_busy_bodies)

    (covered,) = await asked(google.id, days=10)
    assert covered["source"] == "mirror"
    assert len(google.fake.free_busy_bodies) == count


async def test_an_event_over_the_end_of_what_is_covered_is_one_time(
    google: GoogleCalendarUnderTest, asked: Asked
) -> None:
    await google.sync()
    (mirror,) = await asked(google.id, live=False)
    edge = datetime.fromisoformat(mirror["covered_until"]).replace(microsecond=0)
    google.fake.add_event(start=edge - _DAY, end=edge + _DAY)
    await google.sync()
    (live,) = await asked(google.id)
    assert live["busy"] == [_shown(edge - _DAY, edge + _DAY)]


async def test_a_calendar_that_was_never_synced_is_asked_for_all(
    google: GoogleCalendarUnderTest, asked: Asked
) -> None:
    at = asked.start + timedelta(hours=9)
    google.fake.add_event(start=at, end=at + timedelta(hours=1))
    (live,) = await asked(google.id)
    assert live["busy"] == [_shown(at, at + timedelta(hours=1))]
    assert (live["source"], live["error"], live["as_of"], live["is_stale"]) == ("live", None, None, True)
    assert live["covered_until"] == isoformat(asked.start + 92 * _DAY)


async def test_where_the_provider_cannot_be_asked_the_error_says_why(
    google: GoogleCalendarUnderTest,
    asked: Asked,
    settings: Settings,
    project: TestProject,
) -> None:
    await google.sync()
    feed = await add_calendar(
        google.sessions,
        settings,
        project.id,
        platform="ics",
        secrets={"feed_url": "https://example.com/a.ics"},
    )
    google.fake.inject_fault("freebusy.query", 503)
    first, second = await asked(google.id, feed)
    assert first["source"] == second["source"] == "mirror"
    assert first["error"] == "Google returned HTTP status 503."
    assert first["covered_until"] < isoformat(asked.start + 92 * _DAY)
    assert second["error"] == "A feed cannot be asked for busy times: only what was synced is known."
    assert second["covered_until"] is None

    await google.disconnect()
    (third,) = await asked(google.id)
    assert third["error"] == "The calendar is disconnected: only what was synced is known."
    assert third["is_stale"]


async def test_the_same_calendar_twice_is_asked_for_once(
    google: GoogleCalendarUnderTest, asked: Asked
) -> None:
    first, second = await asked(google.id, google.id, days=10)
    assert first == second
    assert first["source"] == "live"
    assert len(google.fake.free_busy_bodies) == 1


async def test_an_unknown_calendar_is_named_before_any_provider_is_asked(
    google: GoogleCalendarUnderTest, api: httpx.AsyncClient, asked: Asked
) -> None:
    unknown = new_id("cal")
    body = {
        "calendars": [google.id, unknown],
        "start": isoformat(asked.start),
        "end": isoformat(asked.start + _DAY),
        "live": True,
    }
    response = await api.post("/api/v1/free_busy", json=body)
    assert response.status_code == 404
    assert unknown in response.json()["error"]
    assert google.fake.requests == []
