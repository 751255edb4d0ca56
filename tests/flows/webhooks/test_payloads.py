"""What is really POSTed to subscribers is what the OpenAPI document describes."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_schema_validator import oas31_format_checker

from app.core.clock import isoformat, utcnow
from app.core.http import httpx
from app.invitations.links import RsvpTokens, Subject
from app.settings import Settings
from app.webhooks.payloads import TRIGGERS
from tests.fakes.receiver import Receiver
from tests.fakes.server import serve
from tests.flows.conftest import GoogleCalendarUnderTest

pytestmark = pytest.mark.settings(smtp_url="smtp://127.0.0.1:9", email_from="calendar@example.net")

ZOOM = "https://zoom.us/j/5551112222"


@pytest.fixture
async def receiver(api: httpx.AsyncClient) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with serve(receiver) as receiver.url:
        for include_events in (True, False):
            body = {
                "url": f"{receiver.url}/{'with' if include_events else 'without'}_events",
                "triggers": list(TRIGGERS),
                "include_events": include_events,
            }
            assert (await api.post("/api/v1/webhooks", json=body)).status_code == 201
        yield receiver


class Described:
    """The webhooks of the document, as a validator of bodies sees them."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def faults(self, body: dict[str, Any]) -> list[str]:
        operation = self._document["webhooks"][body["trigger"]]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        whole = {**schema, "components": self._document["components"]}
        validator = Draft202012Validator(whole, format_checker=oas31_format_checker)
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(body)]


@pytest.fixture
async def described(api: httpx.AsyncClient) -> Described:
    return Described((await api.get("/openapi.json")).json())


async def _until_notified(receiver: Receiver, count: int) -> None:
    """Wait until both endpoints were notified `count` times."""
    await receiver.wait_for(2 * count)


@pytest.mark.usefixtures("worker")
async def test_everything_that_is_sent_is_described(
    *, google: GoogleCalendarUnderTest, api: httpx.AsyncClient, receiver: Receiver, described: Described
) -> None:
    sync = f"/api/v1/calendars/{google.id}/sync"
    moving = google.add("moving", location=ZOOM, attendees=[{"email": "bob@example.org", "optional": True}])
    removed = google.add("removed")
    today = utcnow().date()
    google.fake.add_event(start=today + timedelta(days=2), end=today + timedelta(days=3), summary="a day")
    google.add("soon", in_hours=0.1)
    await api.post(sync)
    await _until_notified(receiver, 6)  # the events together and each by itself, and one that starts soon

    event_id = (await google.events())[moving].id
    made = await api.post("/api/v1/bots", json={"calendar_event_id": event_id, "bot_name": "Notetaker"})
    bot = f"/api/v1/bots/{made.json()['id']}"
    by_hand = {"bot_name": "B", "meeting_url": ZOOM, "join_at": isoformat(utcnow() + timedelta(days=2))}
    other = f"/api/v1/bots/{(await api.post('/api/v1/bots', json=by_hand)).json()['id']}"
    google.move(moving, in_hours=48)
    google.fake.delete_event(removed)
    await api.post(sync)
    await _until_notified(receiver, 10)  # the events, and the bot that follows one of them
    assert (await api.patch(bot, json={"bot_name": "Other"})).status_code == 200
    assert (await api.patch(other, json={"metadata": {"a": "b"}})).status_code == 200
    assert (await api.delete(other)).status_code == 200
    await _until_notified(receiver, 13)

    google.fake.revoke_grant(google.fake.refresh_token)
    google.fake.expire_access_tokens()
    await api.post(sync)
    await _until_notified(receiver, 15)  # the calendar, and its bot that is removed
    fresh = google.fake.add_grant()
    await api.patch(f"/api/v1/calendars/{google.id}", json={"refresh_token": fresh})
    await _until_notified(receiver, 16)

    faults = {received.body: described.faults(received.json) for received in receiver.received}
    assert [fault for fault in faults.items() if fault[1]] == []
    bodies = [received.json for received in receiver.received if received.path == "/with_events"]
    assert {body["trigger"] for body in bodies} == {
        "calendar.events_update",
        "calendar.state_change",
        "bot.state_change",
        "event.created",
        "event.updated",
        "event.deleted",
        "event.starting_soon",
    }
    changes = [event["change"] for body in bodies for event in body["data"].get("events", [])]
    assert sorted(changes) == [*4 * ["created"], "deleted", "updated"]
    assert {body["data"]["event_type"] for body in bodies if "bot_id" in body} == {
        "event_changed",
        "updated",
        "deleted",
    }


@pytest.mark.usefixtures("worker")
async def test_what_a_guests_click_sends_is_described(
    *, api: httpx.AsyncClient, app: Any, settings: Settings, receiver: Receiver, described: Described
) -> None:
    calendar = {"platform": "local", "name": "Lectures", "owner_email": "ada@example.com"}
    calendar_id = (await api.post("/api/v1/calendars", json=calendar)).json()["id"]
    body = {
        "calendar_id": calendar_id,
        "name": "Analysis",
        "start_time": isoformat(utcnow() + timedelta(days=1)),
        "end_time": isoformat(utcnow() + timedelta(days=1, hours=1)),
        "attendees": [{"email": "bob@example.org"}],
        "recurrence": ["RRULE:FREQ=WEEKLY;COUNT=2"],
    }
    event = (await api.post("/api/v1/calendar_events", json=body)).json()
    await _until_notified(receiver, 3)
    subject = Subject(calendar_id, event["ical_uid"], "", "bob@example.org")
    token = RsvpTokens(settings.fernet_keys).sign(subject)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as guest:
        page = await guest.post("/rsvp/", data={"token": token, "action": "accepted"})
    assert page.status_code == 200
    await _until_notified(receiver, 7)  # the reply, and the events that it changed
    bodies = [received.json for received in receiver.received]
    assert {body["trigger"] for body in bodies} == {
        "calendar.events_update",
        "event.rsvp_update",
        "event.created",
        "event.updated",
    }
    assert [fault for body in bodies for fault in described.faults(body)] == []


@pytest.mark.parametrize("trigger", TRIGGERS)
async def test_a_test_message_is_described(
    api: httpx.AsyncClient, receiver: Receiver, described: Described, trigger: str
) -> None:
    body = {"url": f"{receiver.url}/hook", "triggers": [trigger]}
    webhook = (await api.post("/api/v1/webhooks", json=body)).json()
    response = await api.post(f"/api/v1/webhooks/{webhook['id']}/test")
    assert response.json()["status"] == "success"
    (received,) = receiver.received
    assert received.json["trigger"] == trigger
    assert described.faults(received.json) == []
    assert described.faults({**received.json, "data": {}}) != []
