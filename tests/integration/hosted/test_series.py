"""Series: the rules they take, their instances, and how a series begins and ends."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from app.hosted.components import EventComponent
from app.hosted.rules import fit_rule
from tests.integration.hosted.events_api import BOB, create, rows_of, soon, text

pytestmark = pytest.mark.settings(
    smtp_url="smtp://127.0.0.1:9", email_from="Calendars <calendar@example.net>"
)


async def test_a_series_is_listed_as_instances_with_stable_ids(api, series, calendar_id):
    made = await create(api, series)
    rows = await rows_of(api, calendar_id)
    assert [row["start_time"] for row in rows] == [text(soon(3 + n)) for n in range(5)]
    assert made["id"] == rows[0]["id"]
    assert {row["recurring_event_id"] for row in rows} == {made["ical_uid"]}
    assert rows[1]["platform_uuid"] == f"{made['ical_uid']}_{soon(4):%Y%m%dT%H%M%SZ}"
    assert [row["original_start_time"] for row in rows] == [row["start_time"] for row in rows]


async def test_a_series_stays_at_its_hour_when_the_clocks_change(api, calendar_id, settings):
    settings.calendar_sync_window_future_days = 800
    body = {
        "calendar_id": calendar_id,
        "name": "Weekly",
        "start_time": f"{datetime.now(UTC).year + 1}-01-04T09:00:00Z",
        "end_time": f"{datetime.now(UTC).year + 1}-01-04T10:00:00Z",
        "recurrence": ["RRULE:FREQ=MONTHLY;COUNT=7"],
    }
    await create(api, body)
    hours = {row["start_time"][11:16] for row in await rows_of(api, calendar_id)}
    assert hours == {"09:00", "08:00"}


async def test_a_series_far_ahead_has_its_first_instance(api, series, calendar_id):
    far = {"start_time": text(soon(300)), "end_time": text(soon(300, 10))}
    await create(api, {**series, **far})
    assert [row["start_time"] for row in await rows_of(api, calendar_id)] == [text(soon(300))]


async def test_the_next_instance_of_a_series_far_ahead_is_listed(api, series, calendar_id):
    far = {"start_time": text(soon(300)), "end_time": text(soon(300, 10))}
    made = await create(api, {**series, **far})
    for n in range(1, 5):
        assert (await api.delete(f"/api/v1/calendar_events/{made['id']}")).status_code == 200
        (made,) = await rows_of(api, calendar_id)
        assert made["start_time"] == text(soon(300 + n))
    assert (await api.delete(f"/api/v1/calendar_events/{made['id']}")).status_code == 200
    assert await rows_of(api, calendar_id) == []


async def test_a_series_that_is_over_is_refused(api, series):
    past = {"start_time": text(soon(-300)), "end_time": text(soon(-300, 10))}
    response = await api.post("/api/v1/calendar_events", json={**series, **past})
    assert list(response.json()) == ["recurrence"]


def test_a_rule_that_never_matches_is_found_out_soon():
    at = datetime(2026, 11, 24, 9, tzinfo=UTC)
    component = EventComponent(uid="u", name="n", start=at, end=at + timedelta(hours=1), timezone="UTC")
    started = time.process_time()
    with pytest.raises(ValueError, match="occurrence of its own rule"):
        fit_rule("FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30", component)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (
            "UNTIL=99991231T235959Z",
            "UNTIL may be in the year 2199 at the latest; a series without it has no end.",
        ),
        ("INTERVAL=99999999999", "INTERVAL must be a number from 1 to 1000."),
    ],
)
async def test_a_refused_rule_says_what_would_do(api, event, part, sentence):
    body = {**event, "recurrence": [f"RRULE:FREQ=DAILY;{part}"]}
    response = await api.post("/api/v1/calendar_events", json=body)
    assert response.json() == {"recurrence": [sentence]}


async def test_a_series_can_be_deleted_by_an_instance_that_was_deleted(api, series, calendar_id, outbox):
    await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    path = f"/api/v1/calendar_events/{rows[1]['id']}"
    for again in range(2):
        assert (await api.delete(path)).status_code == 200
        assert len(await rows_of(api, calendar_id)) == 4, again
    await outbox.new()
    for _ in range(2):
        assert (await api.delete(f"{path}?scope=series")).status_code == 200
    assert await rows_of(api, calendar_id) == []
    assert await outbox.new() == [("CANCEL", "bob@example.org", 2)]


async def test_an_event_becomes_a_series_and_a_series_one_event(api, event, calendar_id, settings, outbox):
    settings.calendar_sync_window_past_days = 30
    times = {"start_time": text(soon(-10)), "end_time": text(soon(-10, 10))}
    made = await create(api, {**event, **times}, attendees=[BOB])
    path = f"/api/v1/calendar_events/{made['id']}"
    first = (await api.patch(path, json={"recurrence": ["RRULE:FREQ=DAILY;COUNT=20"]})).json()
    assert (first["start_time"], first["recurring_event_id"]) == (made["start_time"], made["ical_uid"])
    rows = await rows_of(api, calendar_id)
    assert len(rows) == 20
    assert made["id"] not in {row["id"] for row in rows}
    settings.calendar_sync_window_past_days = 1
    path = f"/api/v1/calendar_events/{rows[-1]['id']}?scope=series"
    one = (await api.patch(path, json={"recurrence": None, "start_time": text(soon(9))})).json()
    assert (one["id"], one["start_time"], one["recurring_event_id"]) == (made["id"], text(soon(9)), None)
    assert await rows_of(api, calendar_id) == [one]
    # The event that was over caused no mail.
    assert [mail[0::2] for mail in await outbox.new()] == [("REQUEST", 1), ("REQUEST", 2)]


async def test_a_series_without_an_instance_is_off(api, series, calendar_id, reply):
    made = await create(api, series, attendees=[BOB])
    for row in await rows_of(api, calendar_id):
        assert (await api.delete(f"/api/v1/calendar_events/{row['id']}")).status_code == 200
    assert (await reply(made, BOB, is_ok=False)).status_code == 410
