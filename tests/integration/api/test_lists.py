"""What all lists share: empty filters, parameters that clients of Attendee send, and the links between pages."""

from datetime import timedelta

import pytest

from app.core.clock import utcnow
from app.core.db import transaction
from app.core.ids import new_id
from app.models import CalendarEvent
from tests import factories

LISTS = ("calendars", "calendar_events", "bots", "webhooks")
FILTERS = {
    "calendars": ["deduplication_key", "state", "platform"],
    "calendar_events": ["calendar_id", "calendar_deduplication_key", "event_id", "ical_uid", "is_deleted"],
    "bots": ["state", "states", "calendar_event_id", "deduplication_key", "meeting_url"],
}
TIMES = {
    "calendar_events": ["updated_after", "updated_at_gte", "start_time_gte", "end_time_lte"],
    "bots": ["join_at_gte", "join_at_lte", "join_at_after", "join_at_before"],
}


@pytest.fixture
async def filled(api, sessions, settings, project):
    """Two rows in each list; the id of a webhook."""
    for name in "ab":
        calendar_id = await factories.add_calendar(
            sessions, settings, project.id, secrets={"client_secret": "s", "refresh_token": "r"}
        )
        event_id = new_id("evt")
        async with transaction(sessions) as session:
            session.add(
                CalendarEvent(
                    id=event_id, project_id=project.id, calendar_id=calendar_id, platform_uuid=event_id,
                    content_hash=b"", attendees=[], raw={}, updated_at=utcnow() - timedelta(minutes=1),
                )
            )  # fmt: skip
        body = {"bot_name": name, "meeting_url": "https://zoom.us/j/5551112222"}
        assert (await api.post("/api/v1/bots", json=body)).status_code == 201
        hook = {"url": "https://example.com/", "triggers": ["calendar.events_update"]}
        response = await api.post("/api/v1/webhooks", json=hook)
    return response.json()["id"]


async def listed(api, path, **query):
    response = await api.get(f"/api/v1/{path}", params=query)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_filter_without_a_value_finds_nothing(api, filled) -> None:
    for path, names in FILTERS.items():
        for name in names:
            assert await listed(api, path, **{name: ""}) == {"next": None, "previous": None, "results": []}
    assert (await listed(api, f"webhooks/{filled}/deliveries", status=""))["results"] == []
    assert len((await listed(api, "bots", states=["", "scheduled"]))["results"]) == 2
    missing = await api.get(f"/api/v1/webhooks/{new_id('webhook')}/deliveries", params={"status": ""})
    assert missing.status_code == 404


async def test_an_empty_time_is_refused(api, filled) -> None:
    for path, names in TIMES.items():
        for name in names:
            response = await api.get(f"/api/v1/{path}", params={name: ""})
            assert response.status_code == 400
            assert response.json()["error"].startswith(f"{name}: Not a date and time")


async def test_parameters_of_attendees_clients_are_accepted_and_misspelt_ones_are_not(api, filled) -> None:
    for path in LISTS:
        whole = await listed(api, path)
        assert len(whole["results"]) == 2
        assert await listed(api, path, limit="1", format="json", page_size="5000", cursor="") == whole
        assert await listed(api, path, page_size="") == whole
        first = await listed(api, path, page_size="1")
        assert first["results"] == whole["results"][:1]
        second = (await api.get(first["next"])).json()
        assert second["results"] == whole["results"][1:]
        assert (await api.get(second["previous"])).json()["results"] == whole["results"][:1]
        for query in ("colour=red", "page_size=0", "page_size=x", "colour="):
            assert (await api.get(f"/api/v1/{path}?{query}")).status_code == 400, query
    for path in (f"webhooks/{filled}/deliveries",):
        assert (await listed(api, path, limit="1", format="api", page_size="5000"))["results"] == []


@pytest.mark.settings(app_url="https://calendars.example.org/")
async def test_links_between_pages_are_app_urls_behind_a_tls_proxy(api, filled) -> None:
    for host, origin in (
        ("calendars.example.org", "https://calendars.example.org"),
        ("calendars.example.org:443", "https://calendars.example.org"),
        ("Calendars.Example.org", "https://calendars.example.org"),
        ("calendars.example.org:8443", "http://calendars.example.org:8443"),
        ("10.0.0.7:8000", "http://10.0.0.7:8000"),
        ("calendars.example.org.evil.example", "http://calendars.example.org.evil.example"),
    ):
        response = await api.get("/api/v1/bots", params={"page_size": "1"}, headers={"Host": host})
        assert response.json()["next"].startswith(f"{origin}/api/v1/bots?page_size=1&cursor="), host


@pytest.mark.settings(app_url="http://calendars.example.org:9000")
async def test_the_port_of_app_url_counts(api, filled) -> None:
    for host, origin in (
        ("calendars.example.org:9000", "http://calendars.example.org:9000"),
        ("calendars.example.org", "http://calendars.example.org"),
    ):
        response = await api.get("/api/v1/bots", params={"page_size": "1"}, headers={"Host": host})
        assert response.json()["next"].startswith(f"{origin}/api/v1/bots?"), host
