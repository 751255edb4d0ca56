"""`window`, `covered_from` and `covered_until` of a calendar: what the API takes, stores and shows."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from app.core.clock import isoformat
from app.core.db import transaction
from app.models import HostedEvent
from tests import factories
from tests.integration.calendars.calendars_api import FEED, GOOGLE, URL, create, disconnect

LOCAL = {"platform": "local", "name": "Rooms", "owner_email": "ada@example.com"}
WINDOW = {"past_days": 30, "future_days": 365}
DEFAULT = {"past_days": 1, "future_days": 28}
DAY = timedelta(days=1)

BAD_WINDOWS = [
    ({}, ["past_days: This field is required.", "future_days: This field is required."]),
    ({"past_days": 1}, ["future_days: This field is required."]),
    ({"future_days": 1}, ["past_days: This field is required."]),
    ({**WINDOW, "days": 1}, ["days: Unknown field."]),
    ({"past_days": -1, "future_days": 1}, ["past_days: Must be at least 0."]),
    ({"past_days": 366, "future_days": 1}, ["past_days: Must be at most 365."]),
    ({"past_days": 0, "future_days": 0}, ["future_days: Must be at least 1."]),
    ({"past_days": 0, "future_days": 731}, ["future_days: Must be at most 730."]),
    ({"past_days": 10**30, "future_days": 1}, ["A number is too large."]),
    ({"past_days": 2**62, "future_days": 1}, ["past_days: Must be at most 365."]),
    *(
        ({"past_days": 0, "future_days": value}, ["future_days: Not an integer."])
        for value in (True, 28.0, 28.5, "28", None, [28], {"days": 28})
    ),
    *((value, ["Not an object."]) for value in (28, "28", [1, 28], True, "")),
    ({"past_days": "\x00", "future_days": 1}, ["NUL characters are not allowed."]),
    ({"\ud800": 1, **WINDOW}, ["Not valid Unicode: it has half of a surrogate pair."]),
]


@pytest.mark.parametrize("fields", [GOOGLE, {**GOOGLE, "platform": "microsoft"}, FEED])
async def test_a_calendar_is_created_with_its_window(api, sessions, fields):
    response = await api.post(URL, json={**fields, "window": WINDOW})
    assert response.status_code == 201, response.text
    calendar = response.json()
    assert (calendar["window"], calendar["covered_from"], calendar["covered_until"]) == (WINDOW, None, None)
    stored = await factories.load_calendar(sessions, calendar["id"])
    assert (stored.window_past_days, stored.window_future_days) == (30, 365)
    listed = (await api.get(URL)).json()["results"]
    assert listed == [calendar]


async def test_another_calendar_of_an_account_has_its_own_window(api):
    first = await create(api, window=WINDOW)
    other = (await api.post(URL, json={"credentials_of": first["id"]})).json()
    assert other["window"] == DEFAULT
    smallest = {"past_days": 0, "future_days": 1}
    third = (await api.post(URL, json={"credentials_of": first["id"], "window": smallest})).json()
    assert third["window"] == smallest
    largest = {"past_days": 365, "future_days": 730}
    assert (await api.patch(f"{URL}/{other['id']}", json={"window": largest})).json()["window"] == largest
    assert (await api.get(f"{URL}/{first['id']}")).json()["window"] == WINDOW


async def test_without_a_window_it_is_the_one_of_the_settings(api, app, sessions):
    calendar = await create(api)
    null = await create(api, window=None)
    assert calendar["window"] == null["window"] == DEFAULT
    stored = await factories.load_calendar(sessions, calendar["id"])
    assert (stored.window_past_days, stored.window_future_days) == (None, None)
    app.state.calbridge.settings.calendar_sync_window_future_days = 1800
    assert (await api.get(f"{URL}/{calendar['id']}")).json()["window"] == {
        "past_days": 1,
        "future_days": 1800,
    }


@pytest.mark.parametrize(("window", "sentences"), BAD_WINDOWS)
async def test_a_window_that_is_none_is_refused(api, window, sentences):
    calendar = await create(api)
    for method, path, fields in (
        ("POST", URL, GOOGLE),
        ("POST", URL, FEED),
        ("POST", URL, {"credentials_of": calendar["id"]}),
        ("PATCH", f"{URL}/{calendar['id']}", {}),
    ):
        body = json.dumps({**fields, "window": window})  # which writes half of a surrogate pair
        response = await api.request(method, path, content=body, headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()) == (400, {"window": sentences})
    assert (await api.get(f"{URL}/{calendar['id']}")).json() == calendar


async def test_a_local_calendar_has_no_window(api):
    refusal = {"window": ["A calendar of platform local has no such field."]}
    for window in (WINDOW, None, 5):
        response = await api.post(URL, json={**LOCAL, "window": window})
        assert (response.status_code, response.json()) == (400, refusal)
    calendar = (await api.post(URL, json=LOCAL)).json()
    for window in (WINDOW, None):
        response = await api.patch(f"{URL}/{calendar['id']}", json={"window": window, "name": "Other"})
        assert (response.status_code, response.json()) == (400, refusal)
    assert (await api.get(f"{URL}/{calendar['id']}")).json() == calendar


async def test_a_local_calendar_is_covered_from_its_creation_until_series_are_expanded(api, sessions):
    calendar = (await api.post(URL, json=LOCAL)).json()
    assert (calendar["window"], calendar["covered_from"]) == (None, calendar["created_at"])
    now = datetime.now(UTC)
    until = datetime.fromisoformat(calendar["covered_until"])
    assert now + 28 * DAY <= until <= now + 29 * DAY
    event = {
        "calendar_id": calendar["id"], "name": "Weekly", "start_time": isoformat(now + DAY),
        "end_time": isoformat(now + DAY + timedelta(hours=1)), "recurrence": ["RRULE:FREQ=DAILY"],
    }  # fmt: skip
    response = await api.post("/api/v1/calendar_events", json=event)
    assert response.status_code == 201, response.text
    rows = (await api.get("/api/v1/calendar_events?ordering=-start_time")).json()["results"]
    assert datetime.fromisoformat(rows[0]["start_time"]) >= until - DAY
    path = f"{URL}/{calendar['id']}"
    assert (await api.get(path)).json()["covered_until"] == calendar["covered_until"]
    # Workers that have not expanded it for days.
    async with transaction(sessions) as session:
        await session.execute(update(HostedEvent).values(expand_at=now - 5 * DAY))
    assert datetime.fromisoformat((await api.get(path)).json()["covered_until"]) == until - 5 * DAY
    # A change of the owner's name has it written again, which does not hide how late it is.
    assert (await api.patch(path, json={"owner_name": "Ada"})).status_code == 200
    assert datetime.fromisoformat((await api.get(path)).json()["covered_until"]) == until - 5 * DAY


async def test_the_window_and_new_credentials_are_changed_together(api, sessions):
    calendar = await create(api)
    await disconnect(sessions, calendar["id"])
    body = {"refresh_token": "new", "window": WINDOW, "metadata": {"a": "b"}}
    shown = (await api.patch(f"{URL}/{calendar['id']}", json=body)).json()
    assert (shown["state"], shown["window"], shown["metadata"]) == ("connected", WINDOW, {"a": "b"})


async def test_a_disconnected_calendar_stays_so_with_another_window(api, sessions):
    calendar = await create(api)
    await disconnect(sessions, calendar["id"])
    shown = (await api.patch(f"{URL}/{calendar['id']}", json={"window": WINDOW})).json()
    assert (shown["state"], shown["window"]) == ("disconnected", WINDOW)
    assert (await factories.load_calendar(sessions, calendar["id"])).sync_trial


async def test_the_window_of_another_projects_calendar(api, other_api):
    calendar = await create(api)
    response = await other_api.patch(f"{URL}/{calendar['id']}", json={"window": WINDOW})
    assert (response.status_code, response.json()) == (404, {"error": "Calendar not found"})
    assert (await api.get(f"{URL}/{calendar['id']}")).json()["window"] == DEFAULT
