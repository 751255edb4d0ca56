"""Free/busy of the fake providers: that they refuse what the real ones refuse."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from app.core.http import httpx, operator_client
from tests.fakes.google import FakeGoogle
from tests.fakes.google_free_busy import FREE_BUSY_SCOPES
from tests.fakes.microsoft import FakeMicrosoft
from tests.fakes.server import serve

AT = datetime(2026, 11, 24, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Google:
    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self.fake = FakeGoogle()
        self.client = client
        self.url = url

    async def ask(self, *, token: str | None = None, **changes: Any) -> httpx.Response:
        body = {"timeMin": "2026-11-24T00:00:00Z", "timeMax": "2026-11-25T00:00:00Z", "items": []} | changes
        headers = {"Authorization": f"Bearer {token or self.fake.issue_access_token()}"}
        return await self.client.post(f"{self.url}/calendar/v3/freeBusy", json=body, headers=headers)

    async def entry(self, calendar_id: str = "primary") -> Any:
        document = (await self.ask(items=[{"id": calendar_id}])).json()
        assert document["timeMin"] == "2026-11-24T00:00:00Z"
        return document["calendars"][calendar_id]


@pytest.fixture
async def google() -> AsyncIterator[Google]:
    async with operator_client(timeout=5.0) as client:
        google = Google(client, "")
        async with serve(google.fake) as google.url:
            yield google


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"timeMin": None}, "required"),
        ({"timeMax": "2026-11-25T00:00:00"}, "badRequest"),
        ({"timeMax": "tomorrow"}, "badRequest"),
        ({"timeMax": "2026-11-24T00:00:00Z"}, "timeRangeEmpty"),
        ({"timeMax": "2027-02-23T00:00:00Z"}, "timeRangeTooLong"),
        ({"items": [{"id": f"c{number}"} for number in range(51)]}, "tooManyCalendarsRequested"),
        ({"items": None}, "required"),
    ],
)
async def test_google_refuses(google: Google, changes: dict[str, Any], reason: str) -> None:
    response = await google.ask(**changes)
    assert response.status_code == 400
    assert response.json()["error"]["errors"][0]["reason"] == reason


async def test_google_scopes(google: Google) -> None:
    for scope in FREE_BUSY_SCOPES:
        google.fake.add_grant(scopes=[scope])
    wanted = google.fake.add_grant(scopes=["https://www.googleapis.com/auth/calendar.events"])
    token = await google.client.post(
        f"{google.url}/token",
        data={
            "client_id": google.fake.client_id,
            "client_secret": google.fake.client_secret,
            "grant_type": "refresh_token",
            "refresh_token": wanted,
        },
    )
    response = await google.ask(token=token.json()["access_token"])
    assert response.status_code == 403
    assert response.json()["error"]["errors"][0]["reason"] == "insufficientPermissions"


async def test_google_counts_what_is_opaque_and_attended(google: Google) -> None:
    own = {"email": "ada@example.com", "self": True}
    google.fake.add_event(start=AT, end=AT + HOUR)
    google.fake.add_event(start=AT + HOUR / 2, end=AT + 2 * HOUR, status="tentative")
    google.fake.add_event(start=AT + 4 * HOUR, end=AT + 5 * HOUR, transparency="transparent")
    google.fake.add_event(start=AT + 5 * HOUR, end=AT + 6 * HOUR, status="cancelled")
    declined = {**own, "responseStatus": "declined"}
    google.fake.add_event(start=AT + 6 * HOUR, end=AT + 7 * HOUR, attendees=[declined])
    assert await google.entry() == {
        "busy": [{"start": "2026-11-24T09:00:00Z", "end": "2026-11-24T11:00:00Z"}]
    }
    assert await google.entry("unknown@example.com") == {
        "errors": [{"domain": "global", "reason": "notFound"}],
        "busy": [],
    }


class Graph:
    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self.fake = FakeMicrosoft()
        self.client = client
        self.url = url

    async def ask(self, *, prefer: str = 'outlook.timezone="UTC"', **changes: Any) -> httpx.Response:
        body = {
            "schedules": ["ada@example.com"],
            "startTime": {"dateTime": "2026-11-24T00:00:00", "timeZone": "UTC"},
            "endTime": {"dateTime": "2026-11-25T00:00:00", "timeZone": "UTC"},
        }
        headers = {"Authorization": f"Bearer {self.fake.issue_access_token()}", "Prefer": prefer}
        url = f"{self.url}/v1.0/me/calendar/getSchedule"
        return await self.client.post(url, json=body | changes, headers=headers)

    async def items(self, **changes: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await self.ask(**changes)).json()["value"][0]["scheduleItems"]
        return items


@pytest.fixture
async def graph() -> AsyncIterator[Graph]:
    async with operator_client(timeout=5.0) as client:
        graph = Graph(client, "")
        async with serve(graph.fake) as graph.url:
            yield graph


def _utc(written: str) -> dict[str, str]:
    return {"dateTime": written, "timeZone": "UTC"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"schedules": []}, "ErrorInvalidParameter"),
        ({"schedules": [f"a{number}@example.com" for number in range(21)]}, "ErrorInvalidParameter"),
        ({"endTime": _utc("2027-01-26T00:00:00")}, "ErrorTimeIntervalTooBig"),
        ({"endTime": _utc("2026-11-24T00:00:00")}, "ErrorInvalidTimeInterval"),
        ({"endTime": _utc("2026-11-25T00:00:00Z")}, "ErrorInvalidParameter"),
        (
            {"endTime": {"dateTime": "2026-11-25T00:00:00", "timeZone": "Mars"}},
            "TimeZoneNotSupportedException",
        ),
        ({"availabilityViewInterval": 4}, "ErrorInvalidMergedFreeBusyInterval"),
        ({"availabilityViewInterval": 1441}, "ErrorInvalidMergedFreeBusyInterval"),
    ],
)
async def test_graph_refuses(graph: Graph, changes: dict[str, Any], code: str) -> None:
    response = await graph.ask(**changes)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == code


async def test_graph_takes_62_days(graph: Graph) -> None:
    assert (await graph.ask(endTime=_utc("2027-01-25T00:00:00"))).status_code == 200


async def test_graph_shows_the_default_calendar_only(graph: Graph) -> None:
    team = graph.fake.add_calendar()
    graph.fake.add_event(start=AT, end=AT + HOUR, calendar_id=team)
    assert await graph.items() == []
    graph.fake.add_event(start=AT, end=AT + HOUR, showAs="oof")
    (item,) = await graph.items()
    assert item["start"] == {"dateTime": "2026-11-24T09:00:00.0000000", "timeZone": "UTC"}
    statuses = {(await graph.items())[0]["status"] for _ in range(50)}
    assert statuses == {"oof", "OOF", "Oof"}


@pytest.mark.parametrize(("style", "start"), [("asked", "2026-11-24T00:00"), ("own", "2026-11-23T23:00")])
async def test_graph_has_two_ways_with_all_day_events(graph: Graph, style: Any, start: str) -> None:
    graph.fake.schedule_all_day = style
    graph.fake.add_event(start=date(2026, 11, 24), end=date(2026, 11, 25))
    (item,) = await graph.items()
    assert item["start"]["dateTime"].startswith(start)


async def test_graph_says_that_it_does_not_know_an_address(graph: Graph) -> None:
    response = await graph.ask(schedules=["unknown@example.com"])
    (entry,) = response.json()["value"]
    assert entry["scheduleItems"] is None
    assert entry["error"]["responseCode"] == "5016"


async def test_graph_refuses_personal_accounts(graph: Graph) -> None:
    graph.fake.personal_mailboxes.add("ada@example.com")
    assert (await graph.ask()).status_code == 403
