"""Changes of a whole series: its times, rule and guests, and what changed instances keep."""

from datetime import UTC, datetime

import orjson
import pytest
from sqlalchemy import select

from app.models import WebhookDelivery
from tests.integration.hosted.events_api import BOB, CY, change, create, rows_of, soon, text
from tests.integration.hosted.mails import in_order, vevents_of

pytestmark = pytest.mark.settings(
    smtp_url="smtp://127.0.0.1:9", email_from="Calendars <calendar@example.net>"
)


async def test_changes_of_the_series_reach_changed_instances_where_they_agreed(
    api, series, calendar_id, outbox
):
    await create(api, series, location="Room 1")
    rows = await rows_of(api, calendar_id)
    await api.patch(f"/api/v1/calendar_events/{rows[1]['id']}", json={"name": "Exam"})
    await api.patch(
        f"/api/v1/calendar_events/{rows[0]['id']}?scope=series",
        json={"name": "Algebra", "location": "Room 2"},
    )
    after = await rows_of(api, calendar_id)
    assert [row["name"] for row in after] == ["Algebra", "Exam", "Algebra", "Algebra", "Algebra"]
    assert {row["location"] for row in after} == {"Room 2"}
    assert [row["id"] for row in after] == [row["id"] for row in rows]


async def test_a_series_moves_by_as_much_as_the_named_instance(api, series, calendar_id, outbox):
    await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    await outbox.new()
    path = f"/api/v1/calendar_events/{rows[2]['id']}?scope=series"
    response = await api.patch(path, json={"start_time": text(soon(5, 15))})
    assert response.status_code == 200, response.text
    after = await rows_of(api, calendar_id)
    assert [row["start_time"] for row in after] == [text(soon(3 + n, 15)) for n in range(5)]
    assert [row["end_time"] for row in after] == [text(soon(3 + n, 16)) for n in range(5)]
    assert await outbox.new() == [("REQUEST", "bob@example.org", 1)]
    short = await api.patch(
        f"/api/v1/calendar_events/{after[0]['id']}?scope=series",
        json={"recurrence": ["RRULE:FREQ=DAILY;COUNT=2"]},
    )
    assert short.status_code == 200, short.text
    assert [row["id"] for row in await rows_of(api, calendar_id)] == [row["id"] for row in after[:2]]


async def test_a_series_that_moves_keeps_its_last_instance(api, series, calendar_id):
    for until in (f"{soon(7):%Y%m%dT%H%M%SZ}", f"{soon(7):%Y%m%d}"):
        await create(api, {**series, "recurrence": [f"RRULE:FREQ=DAILY;UNTIL={until}"]})
        rows = await rows_of(api, calendar_id)
        path = f"/api/v1/calendar_events/{rows[2]['id']}?scope=series"
        moved = (await api.patch(path, json={"start_time": text(soon(12, 15))})).json()
        after = await rows_of(api, calendar_id)
        assert [row["start_time"] for row in after] == [text(soon(10 + n, 15)) for n in range(5)]
        assert moved["id"] == after[2]["id"]
        assert (await api.delete(path.replace(rows[2]["id"], moved["id"]))).status_code == 200


async def test_the_response_is_the_instance_that_was_named_where_it_is_now(api, series, calendar_id):
    await create(api, series)
    rows = await rows_of(api, calendar_id)
    # The day's old instance keeps its id and is one of the moved series.
    path = f"/api/v1/calendar_events/{rows[2]['id']}?scope=series"
    moved = (await api.patch(path, json={"start_time": rows[3]["start_time"]})).json()
    assert (moved["id"], moved["start_time"]) == (rows[3]["id"], rows[3]["start_time"])


async def test_a_series_comes_to_where_it_was_sent_in_another_zone(api, calendar_id, settings):
    settings.calendar_sync_window_future_days = 800
    year = datetime.now(UTC).year + 1
    body = {
        "calendar_id": calendar_id,
        "name": "Monthly",
        "start_time": f"{year}-02-01T09:00:00Z",
        "end_time": f"{year}-02-01T10:00:00Z",
        "recurrence": ["RRULE:FREQ=MONTHLY;COUNT=5"],
    }
    await create(api, body)
    june = (await rows_of(api, calendar_id))[-1]
    path = f"/api/v1/calendar_events/{june['id']}?scope=series"
    change = {"timezone": "Asia/Tokyo", "start_time": f"{year}-06-01T03:00:00Z"}
    assert (await api.patch(path, json=change)).json()["start_time"] == f"{year}-06-01T03:00:00.000000Z"
    assert {row["start_time"][11:16] for row in await rows_of(api, calendar_id)} == {"03:00"}


async def test_what_the_series_says_of_a_guest_reaches_changed_instances(api, series, calendar_id):
    await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    await api.patch(f"/api/v1/calendar_events/{rows[1]['id']}", json={"name": "Exam"})
    guest = {**BOB, "name": "Robert", "is_optional": True}
    await api.patch(f"/api/v1/calendar_events/{rows[0]['id']}?scope=series", json={"attendees": [guest]})
    people = [row["attendees"][0] for row in await rows_of(api, calendar_id)]
    assert {(person["name"], person["is_optional"]) for person in people} == {("Robert", True)}


async def test_guests_of_the_series_are_those_of_changed_instances_save_who_differs_there(
    api, series, calendar_id, outbox
):
    dan, eve = {"email": "dan@example.org"}, {"email": "eve@example.org"}
    await create(api, series, attendees=[BOB, CY])
    rows = await rows_of(api, calendar_id)
    await api.patch(f"/api/v1/calendar_events/{rows[1]['id']}", json={"attendees": [CY, dan]})
    path = f"/api/v1/calendar_events/{rows[0]['id']}?scope=series"
    await outbox.new()
    assert (await api.patch(path, json={"attendees": [BOB, eve]})).status_code == 200
    guests = [[one["email"] for one in row["attendees"]] for row in await rows_of(api, calendar_id)]
    assert guests[0] == guests[2] == [BOB["email"], eve["email"]]
    assert guests[1] == [dan["email"], eve["email"]]
    mailed = {(mail.method, mail.recipient_email, mail.recurrence_id) for mail in await outbox.mails()}
    assert mailed == {
        ("CANCEL", CY["email"], None),  # of the series, and so of its instances
        ("REQUEST", eve["email"], None),
        ("REQUEST", eve["email"], soon(4)),
    }
    # A guest who is invited to the series from now on gets no cancellation of the instance.
    await outbox.new()
    moved = {"start_time": text(soon(3, 15)), "attendees": [BOB, eve, dan]}
    assert (await api.patch(path, json=moved)).status_code == 200
    assert {mail[0] for mail in await outbox.new()} == {"REQUEST"}


async def test_what_was_in_the_past_stays_when_a_series_changes_and_goes_with_it(
    api, series, calendar_id, settings
):
    settings.calendar_sync_window_past_days = 30
    times = {"start_time": text(soon(-10)), "end_time": text(soon(-10, 10))}
    await create(api, {**series, **times, "recurrence": ["RRULE:FREQ=DAILY;COUNT=20"]})
    rows = await rows_of(api, calendar_id)
    assert len(rows) == 20
    settings.calendar_sync_window_past_days = 1
    assert (await api.delete(f"/api/v1/calendar_events/{rows[0]['id']}")).status_code == 200
    assert await rows_of(api, calendar_id) == rows[1:]
    path = f"/api/v1/calendar_events/{rows[-1]['id']}?scope=series"
    moved = (await api.patch(path, json={"start_time": text(soon(9, 15))})).json()
    after = await rows_of(api, calendar_id)
    assert after[:8] == rows[1:9]
    assert {row["start_time"][11:13] for row in after[10:]} == {"15"}
    path = f"/api/v1/calendar_events/{moved['id']}?scope=series"
    assert (await api.delete(path)).status_code == 200
    assert await rows_of(api, calendar_id) == []


@pytest.mark.parametrize(
    ("rule", "longer", "days"),
    [
        ("FREQ=DAILY;COUNT=4", "FREQ=DAILY;COUNT=6", [0, 2, 3, 4, 5]),
        ("FREQ=DAILY;COUNT=4", f"FREQ=DAILY;UNTIL={soon(8):%Y%m%d}", [0, 2, 3, 4, 5]),
        ("FREQ=DAILY;COUNT=4", "FREQ=DAILY;COUNT=3", [0, 2]),
        (
            "FREQ=WEEKLY;COUNT=4;BYDAY=MO,TU,WE,TH,FR,SA,SU",
            "FREQ=DAILY;COUNT=5",
            [0, 2, 3, 4],
        ),
    ],
)
async def test_a_longer_or_shorter_series_keeps_its_changed_and_deleted_instances(
    api, event, calendar_id, outbox, reply, sessions, rule, longer, days
):
    made = await create(api, event, timezone="UTC", recurrence=[f"RRULE:{rule}"], attendees=[BOB, CY])
    rows = await rows_of(api, calendar_id)
    await api.delete(f"/api/v1/calendar_events/{rows[1]['id']}")
    await change(api, rows[2], start_time=text(soon(5, 14)), location="Room 2")
    await reply(made, BOB)
    await outbox.new()
    webhook = {"url": "https://127.0.0.1:9/", "triggers": ["calendar.events_update"], "include_events": True}
    await api.post("/api/v1/webhooks", json=webhook)
    before = {row["id"] for row in await rows_of(api, calendar_id)}
    await change(api, rows[0], scope="series", recurrence=[f"RRULE:{longer}"])
    after = await rows_of(api, calendar_id)
    starts = {day: text(soon(3 + day)) for day in days} | {2: text(soon(5, 14))}
    assert [row["start_time"] for row in after] == sorted(starts.values())
    assert [row["id"] for row in after if row["id"] in before] == [row["id"] for row in after][: len(before)]
    # No guest is asked again, and no bot or webhook sees a kept instance removed.
    assert {row["attendees"][0]["response_status"] for row in after if row["location"] is None} == {
        "accepted"
    }
    async with sessions() as session:
        (delivery,) = await session.scalars(select(WebhookDelivery))
    changes = orjson.loads(delivery.body)["data"]["changes"]
    assert changes["created"] == max(0, len(after) - 3)
    assert changes["deleted"] == max(0, 3 - len(after))
    mails = await in_order(outbox)
    assert [(mail.method, mail.recurrence_id) for mail in mails] == [
        ("REQUEST", None),
        ("REQUEST", None),
        ("REQUEST", soon(5)),
        ("REQUEST", soon(5)),
    ]
    (series,) = vevents_of(mails[0])
    assert series["EXDATE"].dts[0].dt.astimezone(UTC) == soon(4)


async def test_another_rule_asks_again_and_keeps_the_changed_instances_that_it_still_has(
    api, series, calendar_id, outbox, reply
):
    made = await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    await change(api, rows[1], location="Room 2")
    await change(api, rows[2], location="Room 3")
    await api.delete(f"/api/v1/calendar_events/{rows[4]['id']}")
    await reply(made, BOB)
    await reply(made, BOB, slot=f"{soon(5):%Y%m%dT%H%M%SZ}")
    await change(api, rows[0], scope="series", recurrence=["RRULE:FREQ=DAILY;INTERVAL=2;COUNT=4"])
    found = [
        (row["start_time"], row["location"], row["attendees"][0]["response_status"])
        for row in await rows_of(api, calendar_id)
    ]
    assert found == [
        (text(soon(3)), None, "needs_action"),
        (text(soon(5)), "Room 3", "accepted"),
        (text(soon(9)), None, "needs_action"),
    ]
