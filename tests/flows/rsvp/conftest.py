"""An event with two guests, the link of one of them, and a browser to open it."""

import pytest

from app.core.http import httpx
from app.invitations.links import RsvpTokens, Subject
from tests.factories import at


@pytest.fixture
async def calendar_id(api):
    body = {
        "platform": "local",
        "name": "Lectures",
        "owner_email": "ada@example.com",
        "owner_name": "Ada",
        "timezone": "Europe/Paris",
        "deduplication_key": "lectures",
    }
    return (await api.post("/api/v1/calendars", json=body)).json()["id"]


@pytest.fixture
async def event(api, calendar_id):
    body = {
        "calendar_id": calendar_id,
        "name": "<b>Analysis</b>",
        "start_time": at(3),
        "end_time": at(3.1),
        "attendees": [{"email": "bob@example.org", "name": "Bob"}, {"email": "cy@example.org"}],
    }
    response = await api.post("/api/v1/calendar_events", json=body)
    assert response.status_code == 201, response.text
    return response.json()


@pytest.fixture
async def browser(app):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        yield client


@pytest.fixture
def token(settings, calendar_id, event):
    tokens = RsvpTokens(settings.fernet_keys)
    return tokens.sign(Subject(calendar_id, event["ical_uid"], "", "bob@example.org"))


@pytest.fixture
async def webhook(api):
    body = {"url": "https://127.0.0.1:9/", "triggers": ["event.rsvp_update", "calendar.events_update"]}
    assert (await api.post("/api/v1/webhooks", json=body)).status_code == 201
