"""Events of local calendars over the API: their life, their fields, and who may write them."""

import pytest

from tests.integration.hosted.events_api import BOB, CY, create, rows_of, soon, text

pytestmark = pytest.mark.settings(
    smtp_url="smtp://127.0.0.1:9", email_from="Calendars <calendar@example.net>"
)


async def test_an_event_is_created_read_changed_and_deleted(api, event, calendar_id):
    made = await create(
        api,
        event,
        location="Room 1",
        description="Bring\nbooks",
        meeting_url="https://meet.google.com/abc-defg-hij",
        attendees=[{**BOB, "is_optional": True}, CY],
    )
    assert (made["name"], made["timezone"], made["location"]) == ("Analysis", "Europe/Paris", "Room 1")
    assert (made["start_time"], made["end_time"]) == (event["start_time"], event["end_time"])
    assert made["meeting_url"] == "https://meet.google.com/abc-defg-hij"
    assert made["meeting_platform"] == "google_meet"
    assert made["organizer"] == {"email": "ada@example.com", "name": None}
    assert made["response_status"] == "accepted"
    assert made["recurring_event_id"] is None
    assert [(a["email"], a["response_status"], a["is_optional"]) for a in made["attendees"]] == [
        ("bob@example.org", "needs_action", True),
        ("cy@example.org", "needs_action", False),
    ]
    path = f"/api/v1/calendar_events/{made['id']}"
    changed = (await api.patch(path, json={"start_time": text(soon(4, 15)), "name": "Algebra"})).json()
    assert changed["id"] == made["id"]
    assert (changed["start_time"], changed["end_time"]) == (text(soon(4, 15)), text(soon(4, 16)))
    assert changed["name"] == "Algebra"
    assert changed["updated_at"] > made["updated_at"]
    same = (await api.patch(path, json={"name": "Algebra"})).json()
    assert same["updated_at"] == changed["updated_at"]
    cleared = (await api.patch(path, json={"location": None, "attendees": []})).json()
    assert (cleared["location"], cleared["attendees"]) == (None, [])
    assert (await api.delete(path)).content == b""
    deleted = (await api.get(path)).json()
    assert deleted["is_deleted"] is True
    assert (await api.delete(path)).status_code == 200
    assert (await api.patch(path, json={"name": "x"})).status_code == 400
    assert await rows_of(api, calendar_id) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("end_time", text(soon(2))),
        ("end_time", text(soon(3))),
        ("end_time", text(soon(900))),
        ("start_time", "yesterday"),
        ("start_time", "9999-01-01T00:00:00Z"),
        ("timezone", "Europe/Atlantis"),
        ("name", "  "),
        ("name", "a\r\nATTENDEE:mailto:x@example.com"),
        ("name", "a\x00b"),
        ("name", "a\x85b"),
        ("name", "a\u2028b"),
        ("meeting_url", "javascript:alert(1)"),
        ("meeting_url", "https://x.example/a b"),
        ("meeting_url", "https://x.example/\x01y"),
        ("meeting_url", "https://x.example/\u202ey"),
        ("meeting_url", "https://[::1"),
        ("meeting_url", "https://x.example:99999999/"),
        ("attendees", [{"email": "bob"}]),
        ("attendees", [{"email": "bob@localhost"}]),
        ("attendees", [{"email": "bob@example.c1"}]),
        ("attendees", [{"email": "bob@192.0.2.1"}]),
        ("attendees", [{"email": "Bob <bob@example.org>"}]),
        ("attendees", [{"email": "bob@example.org,cy@example.org"}]),
        ("attendees", [{"email": "bob@example.org\r\nBcc: x@example.org"}]),
        ("attendees", [{"email": "bob@example.org", "name": "B\nob"}]),
        ("attendees", [{"email": "bob@example.org"}, {"email": "BOB@example.org"}]),
        ("attendees", [{"email": f"a{n}@example.org"} for n in range(501)]),
        ("attendees", [{"email": "bob@example.org", "role": "chair"}]),
        ("recurrence", ["FREQ=DAILY"]),
        ("recurrence", ["RRULE:FREQ=SECONDLY"]),
        ("recurrence", ["RRULE:FREQ=DAILY;BYHOUR=1,2"]),
        ("recurrence", ["RRULE:FREQ=DAILY;COUNT=100000"]),
        ("recurrence", ["RRULE:FREQ=DAILY;COUNT=2;UNTIL=20300101"]),
        ("recurrence", ["RRULE:FREQ=DAILY;UNTIL=19990101"]),
        ("recurrence", ["RRULE:FREQ=DAILY;UNTIL=99991231T235959Z"]),
        ("recurrence", ["RRULE:FREQ=DAILY;INTERVAL=99999999999"]),
        ("recurrence", ["RRULE:FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30"]),
        ("recurrence", ["RRULE:FREQ=DAILY\r\nATTENDEE:x"]),
        ("recurrence", ["RRULE:FREQ=DAILY;BYMONTH=1,2,3,4,5,6,7,8,9,10,11,12,13"]),
        ("recurrence", ["RRULE:FREQ=MONTHLY;BYMONTHDAY=" + ",".join(map(str, range(1, 33)))]),
        ("recurrence", ["RRULE:FREQ=WEEKLY;BYDAY=1MO,1TU,1WE,1TH,1FR,1SA,1SU"]),
        ("recurrence", ["RRULE:FREQ=WEEKLY;BYMONTHDAY=" + ",".join(map(str, range(1, 32)))]),
        ("recurrence", ["RRULE:FREQ=DAILY;BYYEARDAY=" + ",".join(map(str, range(1, 367)))]),
        ("recurrence", ["RRULE:FREQ=DAILY;BYSETPOS=1"]),
        ("recurrence", ["RRULE:FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR,SA,SU,54MO"]),
        ("recurrence", ["RRULE:FREQ=YEARLY;BYYEARDAY=" + ",".join(map(str, range(368)))]),
        ("recurrence", ["RRULE:FREQ=DAILY", "EXDATE:20300101T000000Z"]),
        ("colour", "red"),
    ],
)
async def test_a_wrong_field_is_refused_by_name_and_nothing_is_written(api, event, outbox, field, value):
    response = await api.post("/api/v1/calendar_events", json={**event, "attendees": [CY], field: value})
    assert response.status_code == 400, response.text
    assert list(response.json()) == [field]
    assert await outbox.new() == []
    assert await rows_of(api, event["calendar_id"]) == []


async def test_500_attendees_are_taken(api, event, outbox):
    await create(api, event, attendees=[{"email": f"a{n}@example.org"} for n in range(500)])
    assert len(await outbox.new()) == 500


async def test_an_event_in_the_hour_that_comes_twice_keeps_its_length(api, event):
    # In Paris from 02:45, before the clocks go back, to 02:15 after it.
    made = await create(
        api, {**event, "start_time": "2027-10-31T00:45:00Z", "end_time": "2027-10-31T01:15:00Z"}
    )
    path = f"/api/v1/calendar_events/{made['id']}"
    moved = (await api.patch(path, json={"start_time": "2027-10-01T00:45:00Z"})).json()
    assert moved["end_time"] == "2027-10-01T01:15:00.000000Z"


async def test_a_post_with_an_idempotency_key_makes_one_event(api, event, calendar_id, outbox):
    headers = {"Idempotency-Key": "k1"}
    body = {**event, "attendees": [BOB]}
    first = await api.post("/api/v1/calendar_events", json=body, headers=headers)
    second = await api.post("/api/v1/calendar_events", json=body, headers=headers)
    assert first.json() == second.json()
    assert len(await rows_of(api, calendar_id)) == 1
    assert len(await outbox.new()) == 1


async def test_other_projects_and_other_platforms_are_refused(api, other_api, event):
    made = await create(api, event)
    path = f"/api/v1/calendar_events/{made['id']}"
    assert (await other_api.post("/api/v1/calendar_events", json=event)).status_code == 404
    assert (await other_api.patch(path, json={"name": "x"})).status_code == 404
    assert (await other_api.delete(path)).status_code == 404
    feed = await api.post(
        "/api/v1/calendars", json={"platform": "ics", "feed_url": "https://example.com/a.ics"}
    )
    response = await api.post("/api/v1/calendar_events", json={**event, "calendar_id": feed.json()["id"]})
    assert response.status_code == 400
    assert "read-only" in response.json()["calendar_id"][0]


async def test_times_are_whole_seconds_as_in_icalendar(api, series, calendar_id):
    made = await create(api, {**series, "start_time": text(soon(3).replace(microsecond=250_000))})
    assert made["start_time"] == text(soon(3))
    assert len(await rows_of(api, calendar_id)) == 5
