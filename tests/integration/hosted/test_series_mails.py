"""Which guests get a mail when a series or an instance changes, and what guests' calendars need."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text as sql

from tests.integration.hosted.events_api import BOB, CY, change, create, rows_of, soon, text
from tests.integration.hosted.mails import ics_of, in_order, vevents_of

pytestmark = pytest.mark.settings(
    smtp_url="smtp://127.0.0.1:9", email_from="Calendars <calendar@example.net>"
)


async def test_deleting_the_series_cancels_all_with_one_mail(api, series, calendar_id, outbox):
    await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    await outbox.new()
    assert (await api.delete(f"/api/v1/calendar_events/{rows[3]['id']}?scope=series")).status_code == 200
    assert await rows_of(api, calendar_id) == []
    assert await outbox.new() == [("CANCEL", "bob@example.org", 1)]


async def test_guests_of_one_instance_are_notified_when_it_goes_with_its_series(
    api, series, calendar_id, outbox
):
    dan = {"email": "dan@example.org"}
    await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    await api.patch(f"/api/v1/calendar_events/{rows[1]['id']}", json={"attendees": [BOB, CY]})
    await api.patch(f"/api/v1/calendar_events/{rows[1]['id']}", json={"location": "Room 2"})
    await outbox.new()
    path = f"/api/v1/calendar_events/{rows[0]['id']}?scope=series"
    assert (await api.patch(path, json={"start_time": text(soon(3, 15))})).status_code == 200
    cancel, request = await outbox.mails()
    (vevent,) = ics_of(cancel).walk("VEVENT")
    assert (cancel.method, cancel.recipient_email, cancel.sequence) == ("CANCEL", "cy@example.org", 4)
    assert vevent["RECURRENCE-ID"].dt.astimezone(UTC) == soon(4)
    assert str(vevent["STATUS"]) == "CANCELLED"
    # Newer than anything that was said of an instance before.
    assert (request.method, request.recipient_email, request.sequence) == ("REQUEST", "bob@example.org", 3)

    rows = await rows_of(api, calendar_id)
    await api.patch(f"/api/v1/calendar_events/{rows[2]['id']}", json={"attendees": [BOB, dan]})
    await api.delete(f"/api/v1/calendar_events/{rows[3]['id']}")
    await outbox.new()
    assert (await api.delete(f"/api/v1/calendar_events/{rows[0]['id']}?scope=series")).status_code == 200
    bob, dan_mail = await outbox.mails()
    assert (bob.method, bob.recipient_email, bob.recurrence_id, bob.sequence) == (
        "CANCEL",
        BOB["email"],
        None,
        7,
    )
    assert (dan_mail.method, dan_mail.recipient_email) == ("CANCEL", "dan@example.org")
    assert dan_mail.recurrence_id == soon(5, 15)


async def test_a_change_of_the_series_mails_no_more_than_what_is_news(
    api, series, calendar_id, outbox, reply
):
    """No mail of instances that are over; of those with a reply of their own, only to their guest."""
    first = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    starts = [first + timedelta(days=n) for n in range(5)]
    times = {"start_time": text(first), "end_time": text(first + timedelta(hours=1))}
    made = await create(api, {**series, **times}, attendees=[BOB, CY])
    rows = await rows_of(api, calendar_id)
    await api.patch(f"/api/v1/calendar_events/{rows[0]['id']}", json={"name": "Exam"})
    await api.patch(f"/api/v1/calendar_events/{rows[1]['id']}", json={"name": "Exam"})
    for row in rows[2:4]:
        await reply(made, BOB, slot=row["platform_uuid"].rpartition("_")[2])
    await outbox.new()
    path = f"/api/v1/calendar_events/{rows[2]['id']}?scope=series"
    assert (await api.patch(path, json={"location": "Room 9"})).status_code == 200
    assert {row["location"] for row in await rows_of(api, calendar_id)} == {"Room 9"}
    mailed = {(mail.recipient_email, mail.recurrence_id) for mail in await outbox.mails()}
    assert mailed == {
        ("bob@example.org", None),
        ("cy@example.org", None),
        ("bob@example.org", starts[1]),
        ("cy@example.org", starts[1]),
        ("bob@example.org", starts[2]),
        ("bob@example.org", starts[3]),
    }


async def test_guests_of_an_instance_that_is_over_are_not_notified_that_it_goes(
    api, series, calendar_id, outbox
):
    first = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    times = {"start_time": text(first), "end_time": text(first + timedelta(hours=1))}
    made = await create(api, {**series, **times}, attendees=[BOB])
    await api.patch(f"/api/v1/calendar_events/{made['id']}", json={"attendees": [BOB, CY]})
    await outbox.new()
    assert (await api.delete(f"/api/v1/calendar_events/{made['id']}?scope=series")).status_code == 200
    assert [mail[:2] for mail in await outbox.new()] == [("CANCEL", "bob@example.org")]


async def test_another_zone_is_news_for_a_series_only(api, event, series, outbox):
    for body, mailed in ((event, []), (series, [("REQUEST", "bob@example.org", 1)])):
        made = await create(api, body, attendees=[BOB])
        await outbox.new()
        path = f"/api/v1/calendar_events/{made['id']}?scope=series"
        changed = (await api.patch(path, json={"timezone": "America/New_York"})).json()
        assert (changed["timezone"], changed["start_time"]) == ("America/New_York", made["start_time"])
        assert await outbox.new() == mailed


async def test_a_series_request_is_followed_by_its_changed_instances(api, series, calendar_id, outbox):
    await create(api, series, attendees=[BOB, CY])
    rows = await rows_of(api, calendar_id)
    for place in ("Room 2", "Room 3"):
        await change(api, rows[1], location=place)
    await change(api, rows[3], attendees=[CY])
    await outbox.new()
    await change(api, rows[0], scope="series", location="Room 9")
    mailed = [(m.recipient_email[0], m.recurrence_id, m.sequence) for m in await in_order(outbox)]
    assert mailed == [
        ("b", None, 4),
        ("c", None, 4),
        ("b", soon(4), 5),
        ("c", soon(4), 5),
        ("c", soon(6), 5),
    ]
    # A new guest gets the series like the others, and the changed instances too.
    await change(api, rows[0], scope="series", attendees=[BOB, CY, {"email": "dan@example.org"}])
    mailed = [(m.recipient_email[0], m.recurrence_id, m.sequence) for m in await in_order(outbox)]
    assert mailed == [("d", None, 6), ("d", soon(4), 7), ("d", soon(6), 7)]


async def test_who_was_taken_off_one_instance_does_not_get_it_back(api, series, calendar_id, outbox):
    await create(api, series, attendees=[BOB, CY])
    rows = await rows_of(api, calendar_id)
    await change(api, rows[1], attendees=[CY])
    await outbox.new()
    await change(api, rows[0], scope="series", location="Room 2")
    excluded = {
        mail.recipient_email: [at.dt.astimezone(UTC) for at in event["EXDATE"].dts]
        if "EXDATE" in event
        else []
        for mail in await outbox.mails()
        for event in vevents_of(mail)
        if mail.recurrence_id is None
    }
    assert excluded == {"bob@example.org": [soon(4)], "cy@example.org": []}


async def test_many_changed_instances_are_listed_in_the_mail_of_their_series(api, event, calendar_id, outbox):
    rule = {"timezone": "UTC", "recurrence": ["RRULE:FREQ=DAILY;COUNT=14"]}
    await create(api, event, **rule, attendees=[BOB, CY], description="x" * 7900)
    rows = await rows_of(api, calendar_id)
    for n, row in enumerate(rows[:12]):
        await change(api, row, location=f"Room {n}", description="y" * 7900)
    await change(api, rows[0], attendees=[CY])
    await outbox.new()
    await change(api, rows[13], scope="series", name="Algebra")
    bob, cy = await outbox.mails()
    for mail, count in ((bob, 11), (cy, 12)):
        series, *instances = vevents_of(mail)
        assert "RRULE" in series
        assert len(instances) == count
        assert {event["SEQUENCE"] for event in instances} == {series["SEQUENCE"] + 1}
        assert {str(event["SUMMARY"]) for event in instances} == {"Algebra"}
        assert str(instances[-1]["LOCATION"]) == "Room 11"
    assert len(cy.mail or b"") < 700_000


async def test_series_of_before_go_on(api, series, calendar_id, outbox, sessions):
    """Components of instances had lower sequences than their series in earlier releases."""
    await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    await change(api, rows[1], location="Room 2")
    async with sessions.begin() as session:
        await session.execute(sql("UPDATE hosted_events SET sequence = 7 WHERE slot = ''"))
        await session.execute(sql("UPDATE hosted_events SET sequence = 1 WHERE slot <> ''"))
        await session.execute(sql("UPDATE invitation_mails SET sequence = 9 WHERE recurrence_id IS NOT NULL"))
    await outbox.new()
    await change(api, rows[1], location="Room 3")
    assert [mail[2] for mail in await outbox.new()] == [10]
    await change(api, rows[0], scope="series", location="Room 4")
    assert [mail.sequence for mail in await in_order(outbox)] == [11, 12]
    assert (await api.delete(f"/api/v1/calendar_events/{rows[0]['id']}?scope=series")).status_code == 200
    assert [mail[2] for mail in await outbox.new()] == [13]
