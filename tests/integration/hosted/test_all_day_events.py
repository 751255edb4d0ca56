"""All-day events and series: dates of a zone, days without midnight, and exclusive ends."""

from datetime import timedelta

import pytest

from tests.integration.hosted.events_api import BOB, create, day_without_midnight, rows_of, soon
from tests.integration.hosted.mails import ics_of

pytestmark = pytest.mark.settings(
    smtp_url="smtp://127.0.0.1:9", email_from="Calendars <calendar@example.net>"
)


async def test_an_all_day_event_has_dates_of_its_zone(api, event, calendar_id):
    made = await create(
        api, {**event, "is_all_day": True, "start_time": "2031-07-14", "end_time": "2031-07-15"}
    )
    assert (made["start_time"], made["end_time"]) == (
        "2031-07-13T22:00:00.000000Z",
        "2031-07-14T22:00:00.000000Z",
    )
    path = f"/api/v1/calendar_events/{made['id']}"
    moved = (await api.patch(path, json={"start_time": "2031-01-01"})).json()
    assert (moved["start_time"], moved["end_time"]) == (
        "2030-12-31T23:00:00.000000Z",
        "2031-01-01T23:00:00.000000Z",
    )
    zoned = (await api.patch(path, json={"timezone": "America/New_York"})).json()
    assert zoned["start_time"] == "2031-01-01T05:00:00.000000Z"
    bad = await api.patch(path, json={"start_time": "2031-01-01T10:30:00Z"})
    assert list(bad.json()) == ["start_time"]
    bad = await api.patch(path, json={"is_all_day": False})
    assert list(bad.json()) == ["is_all_day"]
    same_day = {"is_all_day": True, "start_time": "2031-07-14", "end_time": "2031-07-14"}
    response = await api.post("/api/v1/calendar_events", json={**event, **same_day})
    assert "exclusive" in response.json()["end_time"][0]


@pytest.mark.parametrize("zone", ["America/Santiago", "Africa/Cairo"])
async def test_an_all_day_event_may_be_on_a_day_without_midnight(api, event, zone):
    day = day_without_midnight(zone)
    times = {"start_time": f"{day}", "end_time": f"{day + timedelta(days=1)}"}
    made = await create(api, {**event, **times, "timezone": zone, "is_all_day": True})
    path = f"/api/v1/calendar_events/{made['id']}"
    assert (await api.patch(path, json={"start_time": "2031-07-14"})).status_code == 200
    back = await api.patch(path, json={"start_time": f"{day}"})
    assert back.status_code == 200, back.text
    assert (back.json()["start_time"], back.json()["end_time"]) == (made["start_time"], made["end_time"])
    same = await api.patch(path, json={"start_time": made["start_time"]})
    assert same.json() == back.json()


async def test_an_all_day_event_changes_its_zone_and_its_end_at_once(api, event):
    made = await create(
        api, {**event, "is_all_day": True, "start_time": "2031-07-14", "end_time": "2031-07-15"}
    )
    path = f"/api/v1/calendar_events/{made['id']}"
    response = await api.patch(path, json={"timezone": "America/New_York", "end_time": "2031-07-17"})
    assert response.status_code == 200, response.text
    assert (response.json()["start_time"][:13], response.json()["end_time"][:13]) == (
        "2031-07-14T04",
        "2031-07-17T04",
    )


async def test_until_of_an_all_day_series_is_its_last_day(api, series, calendar_id, outbox):
    days = {"start_time": f"{soon(3):%Y-%m-%d}", "end_time": f"{soon(4):%Y-%m-%d}", "is_all_day": True}
    for until in (f"{soon(5):%Y%m%d}", f"{soon(5):%Y%m%dT%H%M%SZ}"):
        made = await create(
            api, {**series, **days, "recurrence": [f"RRULE:FREQ=DAILY;UNTIL={until}"]}, attendees=[BOB]
        )
        assert made["raw"]["recurrence"] == [f"RRULE:FREQ=DAILY;UNTIL={soon(5):%Y%m%d}"]
        (mail,) = await outbox.mails()
        (vevent,) = ics_of(mail).walk("VEVENT")
        assert vevent["RRULE"]["UNTIL"] == [soon(5).date()]
    assert len(await rows_of(api, calendar_id)) == 6


async def test_an_all_day_series_moves_by_days_from_a_day_without_midnight(api, event, calendar_id, settings):
    settings.calendar_sync_window_future_days = 800
    day = day_without_midnight("America/Santiago")
    days = [day + timedelta(days=n) for n in range(-2, 5)]
    body = {"is_all_day": True, "timezone": "America/Santiago", "recurrence": ["RRULE:FREQ=DAILY;COUNT=5"]}
    await create(api, {**event, **body, "start_time": f"{days[0]}", "end_time": f"{days[1]}"})
    rows = await rows_of(api, calendar_id)
    path = f"/api/v1/calendar_events/{rows[2]['id']}?scope=series"
    assert (await api.patch(path, json={"start_time": f"{days[3]}"})).status_code == 200
    slots = [row["platform_uuid"].rpartition("_")[2] for row in await rows_of(api, calendar_id)]
    assert slots == [f"{day:%Y%m%d}" for day in days[1:6]]
