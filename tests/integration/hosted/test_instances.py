"""Changes of one instance of a series, which leave the other instances as they are."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from app.invitations.links import RsvpTokens
from tests.integration.hosted.events_api import BOB, CY, create, rows_of, soon, text
from tests.integration.hosted.mails import ics_of, plain_text_of

pytestmark = pytest.mark.settings(
    smtp_url="smtp://127.0.0.1:9", email_from="Calendars <calendar@example.net>"
)


async def test_a_patch_changes_one_instance_and_leaves_the_others(api, series, calendar_id, outbox):
    await create(api, series, attendees=[BOB])
    assert await outbox.new() == [("REQUEST", "bob@example.org", 0)]
    rows = await rows_of(api, calendar_id)
    path = f"/api/v1/calendar_events/{rows[2]['id']}"
    changed = (await api.patch(path, json={"start_time": text(soon(5, 14)), "name": "Exam"})).json()
    assert changed["id"] == rows[2]["id"]
    assert changed["platform_uuid"] == rows[2]["platform_uuid"]
    assert (changed["start_time"], changed["name"]) == (text(soon(5, 14)), "Exam")
    assert changed["original_start_time"] == text(soon(5))
    after = await rows_of(api, calendar_id)
    assert [row["name"] for row in after] == ["Analysis", "Analysis", "Exam", "Analysis", "Analysis"]
    assert after[0]["updated_at"] == rows[0]["updated_at"]
    (mail,) = await outbox.mails()
    (vevent,) = ics_of(mail).walk("VEVENT")
    assert (mail.method, mail.sequence) == ("REQUEST", 1)
    assert vevent["RECURRENCE-ID"].dt.astimezone(UTC) == soon(5)
    assert "RRULE" not in vevent
    refused = await api.patch(path, json={"recurrence": ["RRULE:FREQ=WEEKLY"]})
    assert "scope=series" in refused.json()["recurrence"][0]


async def test_the_links_in_the_mail_of_an_instance_reply_to_it_alone(
    api, series, calendar_id, outbox, settings
):
    made = await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    await api.patch(f"/api/v1/calendar_events/{rows[2]['id']}", json={"location": "Room 2"})
    tokens = RsvpTokens(settings.fernet_keys)
    slots = []
    for mail in sorted(await outbox.mails(), key=lambda mail: mail.position):
        found = re.search(r"token=([^&\s]+)&action=accepted", plain_text_of(mail))
        assert found is not None
        subject = tokens.read(found[1])
        assert subject is not None
        assert (subject.calendar_id, subject.uid, subject.email) == (
            calendar_id,
            made["ical_uid"],
            BOB["email"],
        )
        slots.append(subject.recurrence_key)
    assert slots == ["", f"{soon(5):%Y%m%dT%H%M%SZ}"]


async def test_deleting_an_instance_cancels_it_alone(api, series, calendar_id, outbox):
    await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    await outbox.new()
    assert (await api.delete(f"/api/v1/calendar_events/{rows[1]['id']}")).status_code == 200
    after = await rows_of(api, calendar_id)
    assert [row["id"] for row in after] == [rows[0]["id"], *(row["id"] for row in rows[2:])]
    (mail,) = await outbox.mails()
    (vevent,) = ics_of(mail).walk("VEVENT")
    assert (mail.method, str(vevent["STATUS"]), mail.sequence) == ("CANCEL", "CANCELLED", 1)
    assert vevent["RECURRENCE-ID"].dt.astimezone(UTC) == soon(4)
    # A guest who is invited later gets no mail about the cancelled one.
    await api.patch(f"/api/v1/calendar_events/{rows[0]['id']}?scope=series", json={"attendees": [BOB, CY]})
    (mail,) = await outbox.mails()
    (vevent,) = ics_of(mail).walk("VEVENT")
    assert (mail.method, mail.recipient_email) == ("REQUEST", "cy@example.org")
    assert vevent["EXDATE"].dts[0].dt.astimezone(UTC) == soon(4)
    assert str(vevent["RRULE"].to_ical().decode()) == "FREQ=DAILY;COUNT=5"


async def test_recurrence_id_has_the_form_of_the_series_whatever_the_instance_is_now(
    api, series, calendar_id, outbox
):
    await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    days = {"start_time": f"{soon(3):%Y-%m-%d}", "end_time": f"{soon(4):%Y-%m-%d}", "is_all_day": True}
    made = await create(api, {**series, **days, "timezone": "Europe/Paris"}, attendees=[BOB])
    await outbox.new()

    async def recurrence_id(event_id, **body):
        response = await api.patch(f"/api/v1/calendar_events/{event_id}", json=body)
        assert response.status_code == 200, response.text
        (mail,) = await outbox.mails()
        (vevent,) = ics_of(mail).walk("VEVENT")
        return vevent["RECURRENCE-ID"].dt

    assert await recurrence_id(rows[0]["id"], **days) == soon(3)
    assert await recurrence_id(made["id"], timezone="America/New_York") == soon(3).date()
    timed = {"is_all_day": False, "start_time": text(soon(3)), "end_time": text(soon(3, 10))}
    assert await recurrence_id(made["id"], **timed) == soon(3).date()


async def test_a_patch_that_changes_nothing_leaves_an_instance_a_part_of_its_series(api, series, calendar_id):
    await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    body = {"name": rows[1]["name"], "start_time": rows[1]["start_time"], "attendees": [BOB]}
    assert (await api.patch(f"/api/v1/calendar_events/{rows[1]['id']}", json=body)).status_code == 200
    assert await rows_of(api, calendar_id) == rows


async def test_an_instance_over_a_change_of_the_clocks_ends_when_it_did(api, series, calendar_id, settings):
    settings.calendar_sync_window_future_days = 800
    sunday = datetime(datetime.now(UTC).year + 1, 3, 31, 6, tzinfo=UTC)
    sunday -= timedelta(days=(sunday.weekday() + 1) % 7)
    times = {"start_time": text(sunday - timedelta(hours=32)), "end_time": text(sunday - timedelta(hours=24))}
    await create(api, {**series, **times, "timezone": "Europe/Paris"})
    night = (await rows_of(api, calendar_id))[1]
    assert night["end_time"] == text(sunday - timedelta(hours=1))
    path = f"/api/v1/calendar_events/{night['id']}"
    changed = (await api.patch(path, json={"name": "Exam"})).json()
    assert (changed["start_time"], changed["end_time"]) == (night["start_time"], night["end_time"])


async def test_a_reply_to_the_series_reaches_instances_that_were_changed(api, series, calendar_id, reply):
    made = await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    await api.patch(f"/api/v1/calendar_events/{rows[2]['id']}", json={"name": "Exam"})
    await reply(made, BOB)
    after = await rows_of(api, calendar_id)
    assert [row["attendees"][0]["response_status"] for row in after] == ["accepted"] * 5
