"""A local calendar, bodies of its events, the mails of a test, and a guest who replies."""

import pytest

from app.core.http import httpx
from app.invitations.links import RsvpTokens, Subject
from tests.integration.hosted.events_api import soon, text
from tests.integration.hosted.mails import Outbox


@pytest.fixture
async def calendar_id(api):
    body = {
        "platform": "local",
        "name": "Lectures",
        "owner_email": "ada@example.com",
        "timezone": "Europe/Paris",
    }
    return (await api.post("/api/v1/calendars", json=body)).json()["id"]


@pytest.fixture
def event(calendar_id):
    return {
        "calendar_id": calendar_id,
        "name": "Analysis",
        "start_time": text(soon(3)),
        "end_time": text(soon(3, 10)),
    }


@pytest.fixture
def series(event):
    return {**event, "timezone": "UTC", "recurrence": ["RRULE:FREQ=DAILY;COUNT=5"]}


@pytest.fixture
def outbox(sessions):
    return Outbox(sessions)


@pytest.fixture
async def reply(app, settings):
    """A function that clicks "accepted" for a guest; `slot` names an instance."""
    tokens = RsvpTokens(settings.fernet_keys)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as browser:

        async def click(made, person, *, slot="", is_ok=True):
            subject = Subject(made["calendar_id"], made["ical_uid"], slot, person["email"])
            page = await browser.post("/rsvp/", data={"token": tokens.sign(subject), "action": "accepted"})
            assert page.status_code == 200 or not is_ok, page.text
            return page

        yield click
