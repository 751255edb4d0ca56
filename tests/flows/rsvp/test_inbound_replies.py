"""Replies by mail at `POST /rsvp/inbound`: which are applied, stale or ignored."""

import base64
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text, update

from app.invitations.links import RsvpTokens, Subject
from app.models import Calendar
from tests.factories import at
from tests.flows.rsvp.replies import (
    create_series,
    guest_statuses,
    instance_statuses,
    instances,
    post_mail,
    replies,
    reply,
    rsvp_webhooks,
)

pytestmark = pytest.mark.settings(smtp_url="smtp://127.0.0.1:9", email_from="calendar@example.net")


async def test_a_mailed_reply_is_applied_once_and_announced(api, sessions, event, webhook):
    mail = reply(event, partstat="TENTATIVE")
    assert await post_mail(api, mail) == "applied"
    assert (await guest_statuses(api, event))["bob@example.org"] == "tentative"
    again = await api.post("/api/v1/rsvp/inbound", content=b"Received: by another way\r\n" + mail)
    assert again.json() == {"status": "ignored", "reason": "This mail was taken in before."}
    no_answer = reply(event, partstat="NEEDS-ACTION", minutes=1, number=2)
    assert await post_mail(api, no_answer) == "ignored"
    assert (await guest_statuses(api, event))["bob@example.org"] == "tentative"
    assert len(await rsvp_webhooks(sessions)) == 1
    assert await replies(sessions) == []  # the organizer's mailbox has the reply itself


async def test_older_replies_are_stale(api, browser, event, token):
    assert await post_mail(api, reply(event, partstat="DECLINED", minutes=30, number=1)) == "applied"
    assert await post_mail(api, reply(event, partstat="ACCEPTED", minutes=20, number=2)) == "ignored"
    assert await post_mail(api, reply(event, partstat="ACCEPTED", minutes=40, number=3)) == "applied"
    await browser.post("/rsvp/", data={"token": token, "action": "declined"})
    assert await post_mail(api, reply(event, partstat="ACCEPTED", minutes=50, number=4)) == "ignored"
    await api.patch(f"/api/v1/calendar_events/{event['id']}", json={"start_time": at(5)})
    assert await post_mail(api, reply(event, partstat="ACCEPTED", minutes=55, number=5)) == "ignored"
    assert (await guest_statuses(api, event))["bob@example.org"] == "needs_action"
    assert await post_mail(api, reply(event, sequence=1, minutes=56, number=6)) == "applied"
    assert (await guest_statuses(api, event))["bob@example.org"] == "accepted"
    await api.patch(f"/api/v1/calendar_events/{event['id']}", json={"location": "Room 2"})
    newer = reply(event, partstat="DECLINED", sequence=2, minutes=50, number=7)
    assert await post_mail(api, newer) == "applied"  # whatever the clocks say
    assert await post_mail(api, reply(event, sequence=1, minutes=58, number=8)) == "ignored"
    assert (await guest_statuses(api, event))["bob@example.org"] == "declined"


async def test_a_guest_may_reply_to_the_mailed_invitation_after_a_click(api, browser, event, token):
    """Others got more mails than he did; his calendar's number is the one of his own invitation."""
    people = [{"email": "bob@example.org"}, {"email": "cy@example.org"}]
    path = f"/api/v1/calendar_events/{event['id']}"
    for more in ([*people, {"email": "dan@example.org"}], people):
        assert (await api.patch(path, json={"attendees": more})).status_code == 200
    await browser.post("/rsvp/", data={"token": token, "action": "accepted"})
    assert await post_mail(api, reply(event, partstat="TENTATIVE", minutes=10)) == "ignored"  # of before
    assert await post_mail(api, reply(event, partstat="DECLINED", minutes=60 + 1, number=2)) == "applied"
    assert (await guest_statuses(api, event))["bob@example.org"] == "declined"


async def test_a_sequence_that_was_never_sent_does_not_shut_out_later_replies(api, browser, event, token):
    assert await post_mail(api, reply(event, partstat="DECLINED", sequence=2**31 - 1, number=1)) == "applied"
    assert await post_mail(api, reply(event, partstat="TENTATIVE", minutes=1, number=2)) == "applied"
    # Its DTSTAMP is not of now: it is the time of the reply by the clock of a phone.
    assert await post_mail(api, reply(event, minutes=600, number=3)) == "applied"
    assert await post_mail(api, reply(event, partstat="TENTATIVE", minutes=61, number=4)) == "applied"
    await browser.post("/rsvp/", data={"token": token, "action": "declined"})
    assert (await guest_statuses(api, event))["bob@example.org"] == "declined"


async def test_a_reply_may_quote_megabytes(api, event):
    calendar = reply(event)
    header, _, ics = calendar.partition(b"\r\n\r\n")
    kept, _, kind = header.partition(b"MIME-Version: 1.0\r\n")
    attachment = base64.encodebytes(bytes(5 * 1024 * 1024)).replace(b"\n", b"\r\n")
    mail = (
        kept + b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="x"\r\n\r\n--x\r\n'
        b"Content-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n" + attachment
        + b"\r\n--x\r\n" + kind + b"\r\n\r\n" + ics + b"\r\n--x--\r\n"
    )  # fmt: skip
    assert await post_mail(api, mail) == "applied"
    refused = await api.post("/api/v1/rsvp/inbound", content=bytes(26 * 1024 * 1024))
    assert refused.status_code == 413


async def test_replies_to_the_former_sending_identity_count(api, sessions, calendar_id, event):
    """The guests' calendars reply to the organizer that their invitation names."""
    identity = {
        "mailbox_id": "1b7f6c0e-5b0e-4c36-9a3e-3f1f5f0c2d11",
        "email": "team@example.com",
        "name": None,
    }
    async with sessions() as session:
        await session.execute(update(Calendar).values(sending_identity=identity))
        await session.commit()
    old = "ORGANIZER:mailto:ADA@example.com\r\n"
    mail = reply(event, more=old)
    assert await post_mail(api, mail, X_StMsg_Mailbox="eve@example.com") == "ignored"
    assert await post_mail(api, mail, X_StMsg_Mailbox="ada@example.com") == "applied"
    mail = reply(event, partstat="DECLINED", minutes=1, number=2)
    assert await post_mail(api, mail, X_StMsg_Mailbox="team@example.com") == "applied"


async def test_forged_and_foreign_mails_are_ignored(api, other_api, event):
    stranger = {**event, "ical_uid": "unknown"}
    forged = reply(event, sender="eve@example.org", attendee="bob@example.org", number=1)
    assert await post_mail(api, forged) == "ignored"
    assert await post_mail(api, reply(event, sender="eve@example.org", number=2)) == "ignored"
    assert await post_mail(api, reply(stranger, number=3)) == "ignored"
    to_eve = reply(event, more="ORGANIZER:mailto:eve@example.org\r\n", number=4)
    assert await post_mail(api, to_eve) == "ignored"
    for flag in ("true", "True", "1"):
        assert await post_mail(api, reply(event, number=5), X_StMsg_Is_Spam=flag) == "ignored"
    assert await post_mail(api, reply(event, number=6), X_StMsg_Mailbox="eve@example.org") == "ignored"
    assert await post_mail(other_api, reply(event, number=7)) == "ignored"
    for garbage in (
        b"",
        b"\x00\xff",
        b"From: x\r\n\r\nhello",
        reply(event, number=8).replace(b"METHOD:REPLY", b"METHOD:REQUEST"),
    ):
        assert await post_mail(api, garbage) == "ignored"
    assert set((await guest_statuses(api, event)).values()) == {"needs_action"}
    assert await post_mail(api, reply(event, number=9), X_StMsg_Is_Spam="false") == "applied"


async def test_a_mailed_reply_to_one_instance(api, calendar_id):
    series = await create_series(api, calendar_id, "FREQ=DAILY;COUNT=2")
    start = datetime.fromisoformat(series["start_time"])
    more = f"RECURRENCE-ID:{start:%Y%m%dT%H%M%SZ}\r\n"
    assert await post_mail(api, reply(series, partstat="DECLINED", more=more)) == "applied"
    assert await instance_statuses(api, calendar_id) == ["declined", "needs_action"]
    nowhere = "RECURRENCE-ID:20200101T000000Z\r\n"
    assert await post_mail(api, reply(series, more=nowhere, number=2)) == "ignored"
    second = (start + timedelta(days=1)).astimezone(ZoneInfo(series["timezone"]))
    day = f"RECURRENCE-ID;VALUE=DATE:{second:%Y%m%d}\r\n"
    assert await post_mail(api, reply(series, partstat="TENTATIVE", more=day, number=3)) == "applied"
    assert await instance_statuses(api, calendar_id) == ["declined", "tentative"]


async def test_a_reply_to_an_instance_thousands_of_years_from_now_is_refused(api, calendar_id):
    series = await create_series(api, calendar_id, "FREQ=DAILY")
    start = datetime.fromisoformat(series["start_time"])
    for year, expected in ((2198, "applied"), (9700, "ignored")):
        mail = reply(series, more=f"RECURRENCE-ID:{year}0101T{start:%H%M%S}Z\r\n", number=year)
        assert await post_mail(api, mail) == expected


async def test_one_mail_may_reply_to_the_series_and_single_instances(api, calendar_id, sessions, webhook):
    series = await create_series(api, calendar_id, "FREQ=DAILY;COUNT=3")
    second = datetime.fromisoformat(series["start_time"]) + timedelta(days=1)
    head, begin, rest = reply(series).partition(b"BEGIN:VEVENT\r\n")
    event, end, tail = rest.partition(b"END:VEVENT\r\n")
    of_second = (
        event.replace(b"ACCEPTED", b"DECLINED") + f"RECURRENCE-ID:{second:%Y%m%dT%H%M%SZ}\r\n".encode()
    )
    assert await post_mail(api, head + begin + of_second + end + begin + event + end + tail) == "applied"
    assert await instance_statuses(api, calendar_id) == ["accepted", "declined", "accepted"]
    of_series, of_instance = await rsvp_webhooks(sessions)
    assert [of_series["data"]["scope"], of_instance["data"]["scope"]] == ["series", "instance"]
    assert of_series["calendar_event_id"] == series["id"]  # the next one
    assert of_instance["calendar_event_id"] == (await instances(api, calendar_id))[1]["id"]
    later = (head + begin + event + end + begin + of_second + end + tail).replace(b"DECLINED", b"TENTATIVE")
    assert await post_mail(api, later.replace(b"<1@", b"<2@")) == "applied"  # the series' reply is the same


async def test_a_reply_to_the_series_does_not_count_for_an_instance_that_was_moved_meanwhile(
    api, browser, settings, calendar_id
):
    series = await create_series(api, calendar_id, "FREQ=DAILY;COUNT=2")
    await api.patch(
        f"/api/v1/calendar_events/{series['id']}", json={"start_time": at(2.2), "end_time": at(2.3)}
    )

    assert await post_mail(api, reply(series)) == "applied"
    assert await instance_statuses(api, calendar_id) == ["needs_action", "accepted"]
    tokens = RsvpTokens(settings.fernet_keys)
    token = tokens.sign(Subject(calendar_id, series["ical_uid"], "", "bob@example.org"))
    assert (await browser.post("/rsvp/", data={"token": token, "action": "tentative"})).status_code == 200
    assert await instance_statuses(api, calendar_id) == [
        "tentative",
        "tentative",
    ]  # who clicks sees what there is now


@pytest.mark.parametrize("written", ["VALUE=DATE:{day:%Y%m%d}", "TZID=Europe/Paris:{day:%Y%m%d}T000000"])
async def test_a_mailed_reply_to_one_day_of_a_series_of_days(api, calendar_id, written):
    day = datetime.now(UTC) + timedelta(days=2)
    body = {
        "calendar_id": calendar_id,
        "name": "Days",
        "is_all_day": True,
        "start_time": f"{day:%Y-%m-%d}",
        "end_time": f"{day + timedelta(days=1):%Y-%m-%d}",
        "recurrence": ["RRULE:FREQ=DAILY;COUNT=2"],
        "attendees": [{"email": "bob@example.org"}],
    }
    series = (await api.post("/api/v1/calendar_events", json=body)).json()
    more = f"RECURRENCE-ID;{written.format(day=day + timedelta(days=1))}\r\n"
    assert await post_mail(api, reply(series, partstat="DECLINED", more=more)) == "applied"
    assert await instance_statuses(api, calendar_id) == ["needs_action", "declined"]


async def test_old_notes_of_mails_are_forgotten(api, sessions, event):
    from app.hosted.retention import prune_inbound_replies

    await post_mail(api, reply(event))
    for older_than, kept in ((timedelta(days=1), 1), (timedelta(0), 0)):
        await prune_inbound_replies(sessions, older_than=older_than)
        async with sessions() as session:
            assert await session.scalar(text("SELECT count(*) FROM inbound_replies")) == kept
