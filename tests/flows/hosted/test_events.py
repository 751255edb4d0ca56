"""Hosted events beside the rest: webhooks, bots, the order of changes, and series as time goes on."""

import asyncio
from datetime import datetime

import orjson
import pytest
from sqlalchemy import select, text

from app.hosted.service import rewrite_due_events
from app.models import WebhookDelivery
from tests.factories import at


@pytest.fixture
async def calendar_id(api):
    body = {
        "platform": "local",
        "name": "Lectures",
        "owner_email": "ada@example.com",
        "metadata": {"user": "7"},
    }
    return (await api.post("/api/v1/calendars", json=body)).json()["id"]


@pytest.fixture
def event(calendar_id):
    return {"calendar_id": calendar_id, "name": "Analysis", "start_time": at(3), "end_time": at(3.1)}


async def create(api, body, **more):
    response = await api.post("/api/v1/calendar_events", json={**body, **more})
    assert response.status_code == 201, response.text
    return response.json()


async def rows_of(api, calendar_id, **query):
    response = await api.get("/api/v1/calendar_events", params={"calendar_id": calendar_id, **query})
    return response.json()["results"]


async def until(check, seconds: float = 10.0):
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.05)


async def test_changes_are_announced_like_those_of_a_sync(api, sessions, event, calendar_id):
    webhook = {"url": "https://127.0.0.1:9/", "triggers": ["calendar.events_update"], "include_events": True}
    assert (await api.post("/api/v1/webhooks", json=webhook)).status_code == 201
    made = await create(api, event, recurrence=["RRULE:FREQ=DAILY;COUNT=3"])
    await api.delete(f"/api/v1/calendar_events/{made['id']}")
    async with sessions() as session:
        deliveries = (await session.scalars(select(WebhookDelivery))).all()
    (message,) = [orjson.loads(delivery.body) for delivery in deliveries]  # the second took the first's place
    assert message["calendar_metadata"] == {"user": "7"}
    assert message["data"]["changes"] == {"created": 3, "updated": 0, "deleted": 1}
    assert [entry["change"] for entry in message["data"]["events"]] == ["created"] * 3 + ["deleted"]
    changed = await rows_of(api, calendar_id, updated_after=message["data"]["updated_after"])
    assert len(changed) == 3
    assert [row["id"] for row in changed if row["is_deleted"]] == [made["id"]]


async def test_a_change_that_is_refused_announces_nothing(api, sessions, event):
    webhook = {"url": "https://127.0.0.1:9/", "triggers": ["calendar.events_update"]}
    assert (await api.post("/api/v1/webhooks", json=webhook)).status_code == 201
    response = await api.post(
        "/api/v1/calendar_events", json={**event, "attendees": [{"email": "b@example.org"}]}
    )
    assert response.status_code == 400  # no way out for the invitation
    async with sessions() as session:
        assert (await session.scalars(select(WebhookDelivery))).all() == []
        for table in ("hosted_events", "calendar_events", "invitation_mails"):
            assert await session.scalar(text(f"SELECT count(*) FROM {table}")) == 0


async def test_bots_follow_hosted_events(api, event):
    made = await create(api, event, meeting_url="https://meet.google.com/abc-defg-hij")
    bot = await api.post("/api/v1/bots", json={"calendar_event_id": made["id"], "bot_name": "Notes"})
    assert bot.status_code == 201, bot.text
    path = f"/api/v1/calendar_events/{made['id']}"
    await api.patch(path, json={"start_time": at(5)})
    moved = (await api.get(f"/api/v1/bots/{bot.json()['id']}")).json()
    assert moved["join_at"][:13] == at(5)[:13]
    await api.delete(path)
    assert (await api.get(f"/api/v1/bots/{bot.json()['id']}")).status_code == 404


async def test_a_series_is_expanded_further_as_time_goes_on(app, api, sessions, settings, event):
    settings.calendar_sync_window_future_days = 7
    await create(api, event, recurrence=["RRULE:FREQ=DAILY"])
    before = await rows_of(api, event["calendar_id"])
    await rewrite_due_events(sessions, settings)
    assert await rows_of(api, event["calendar_id"]) == before  # not due yet
    settings.calendar_sync_window_future_days = 14
    async with sessions.begin() as session:
        await session.execute(text("UPDATE hosted_events SET expand_at = now()"))
    await rewrite_due_events(sessions, settings)
    after = await rows_of(api, event["calendar_id"])
    assert len(after) == len(before) + 7
    assert {row["id"] for row in before} < {row["id"] for row in after}
    newest = max(row["updated_at"] for row in before)
    assert all(row["updated_at"] > newest for row in after if row not in before)
    async with sessions() as session:
        assert await session.scalar(text("SELECT expand_at > now() FROM hosted_events"))


async def test_a_series_without_instances_does_not_hold_up_the_others(app, api, sessions, settings, event):
    settings.calendar_sync_window_future_days = 7
    empty = await create(api, event, recurrence=["RRULE:FREQ=DAILY;COUNT=2"])
    for row in await rows_of(api, event["calendar_id"]):
        assert (await api.delete(f"/api/v1/calendar_events/{row['id']}")).status_code == 200
    await create(api, event, recurrence=["RRULE:FREQ=DAILY"])
    broken = await create(api, event, recurrence=["RRULE:FREQ=DAILY"])
    before = await rows_of(api, event["calendar_id"], is_deleted="false")
    settings.calendar_sync_window_future_days = 14
    async with sessions.begin() as session:
        await session.execute(
            text("UPDATE hosted_events SET expand_at = now() - interval '1 day' WHERE slot = ''")
        )
        later = text(
            "UPDATE hosted_events SET expand_at = now() WHERE slot = '' AND uid NOT IN (:empty, :broken)"
        )
        await session.execute(later, {"empty": empty["ical_uid"], "broken": broken["ical_uid"]})
        spoil = text("UPDATE hosted_events SET timezone = 'Nowhere/None' WHERE uid = :uid")
        await session.execute(spoil, {"uid": broken["ical_uid"]})
    await rewrite_due_events(sessions, settings)
    assert len(await rows_of(api, event["calendar_id"], is_deleted="false")) == len(before) + 7
    async with sessions() as session:
        assert await session.scalar(text("SELECT count(*) FROM hosted_events WHERE expand_at <= now()")) == 0


async def test_a_series_that_is_over_is_not_expanded_again(api, sessions, event):
    times = {"start_time": at(-2 / 24), "end_time": at(-1 / 24)}
    await create(api, event, **times, recurrence=["RRULE:FREQ=DAILY;COUNT=1"])
    await create(api, event, **times, recurrence=["RRULE:FREQ=DAILY;COUNT=2"])
    until = f"{datetime.fromisoformat(times['start_time']):%Y%m%dT%H%M%SZ}"
    await create(api, event, **times, recurrence=[f"RRULE:FREQ=DAILY;UNTIL={until}"])
    # Its last instance has begun, and is not over.
    await create(
        api, event, **{**times, "end_time": at(2 / 24)}, recurrence=[f"RRULE:FREQ=WEEKLY;UNTIL={until}"]
    )
    async with sessions() as session:
        rows = await session.execute(text("SELECT rrule, expand_at IS NULL FROM hosted_events ORDER BY 1"))
    assert [tuple(row) for row in rows] == [
        ("FREQ=DAILY;COUNT=1", True),
        ("FREQ=DAILY;COUNT=2", False),
        (f"FREQ=DAILY;UNTIL={until}", True),
        (f"FREQ=WEEKLY;UNTIL={until}", False),
    ]


async def test_a_worker_writes_a_new_owners_name_into_the_events(api, worker, event, calendar_id):
    made = await create(api, event)
    await api.patch(f"/api/v1/calendars/{calendar_id}", json={"owner_name": "Ada Lovelace"})

    async def renamed():
        found = (await api.get(f"/api/v1/calendar_events/{made['id']}")).json()
        return found["organizer"] == {"email": "ada@example.com", "name": "Ada Lovelace"}

    await until(renamed)


async def test_writers_at_the_same_time_give_each_change_a_place_of_its_own(api, event, calendar_id):
    await asyncio.gather(*(create(api, event, name=f"Event {n}") for n in range(8)))
    rows = await rows_of(api, calendar_id, ordering="updated_at")
    assert len({row["updated_at"] for row in rows}) == 8
    await asyncio.gather(
        *(api.patch(f"/api/v1/calendar_events/{row['id']}", json={"location": "Room 1"}) for row in rows)
    )
    after = await rows_of(api, calendar_id, updated_after=rows[-1]["updated_at"])
    assert len({row["updated_at"] for row in after if row["location"] == "Room 1"}) == 8


async def test_changes_keep_their_order_when_the_clock_goes_back(api, sessions, event, calendar_id):
    async with sessions.begin() as session:
        await session.execute(text("UPDATE calendars SET last_change_at = now() + interval '1 hour'"))
    await create(api, event, recurrence=["RRULE:FREQ=DAILY;COUNT=5"])
    newest = max(row["updated_at"] for row in await rows_of(api, calendar_id))
    made = await create(api, event)
    assert made["updated_at"] > newest


async def test_a_reply_and_a_change_at_the_same_time_are_both_kept(api, app, settings, event, calendar_id):
    from app.core.http import httpx
    from app.invitations.links import RsvpTokens, Subject

    people = [{"email": f"a{n}@example.org"} for n in range(5)]
    made = await create(api, event, attendees=people, send_invitations=False)
    tokens = RsvpTokens(settings.fernet_keys)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as browser:
        clicks = [
            browser.post(
                "/rsvp/",
                data={
                    "token": tokens.sign(Subject(calendar_id, made["ical_uid"], "", person["email"])),
                    "action": "accepted",
                },
            )
            for person in people
        ]
        body = {"name": "Algebra", "send_invitations": False}
        rename = api.patch(f"/api/v1/calendar_events/{made['id']}", json=body)
        responses = await asyncio.gather(*clicks, rename)
    assert {response.status_code for response in responses} == {200}
    found = (await api.get(f"/api/v1/calendar_events/{made['id']}")).json()
    assert found["name"] == "Algebra"
    assert {person["response_status"] for person in found["attendees"]} == {"accepted"}
