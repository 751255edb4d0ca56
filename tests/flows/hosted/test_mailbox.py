"""The whole way of a hosted event: from the owner's mailbox in Messages to the guest's click, and back."""

import asyncio
import re
from datetime import datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import icalendar
import pytest

from app.core.clock import utcnow
from app.core.http import httpx
from app.mail.lasuite import mailboxes
from tests.factories import at
from tests.fakes.messages import FakeMessages
from tests.fakes.receiver import Receiver
from tests.fakes.server import serve

ADA = "ada@example.com"
BOB = {"email": "bob@example.org", "name": "Bob"}


@pytest.fixture
def fake(fake_messages: FakeMessages, monkeypatch: pytest.MonkeyPatch) -> FakeMessages:
    """Mailboxes are looked up anew each time."""
    monkeypatch.setattr(mailboxes, "_CACHE_SECONDS", 0)
    return fake_messages


@pytest.fixture
async def calendar(fake, api):
    fake.add_mailbox(ADA, name="Ada Lovelace", admin=ADA)
    body = {
        "platform": "local",
        "name": "Lectures",
        "owner_email": "Ada@Example.com",
        "timezone": "Europe/Paris",
    }
    return (await api.post("/api/v1/calendars", json=body)).json()


async def create(api, calendar, **more):
    body = {
        "calendar_id": calendar["id"],
        "name": "Analysis",
        "start_time": at(3),
        "end_time": at(3.1),
        "attendees": [BOB],
        **more,
    }
    response = await api.post("/api/v1/calendar_events", json=body)
    assert response.status_code == 201, response.text
    return response.json()


async def until(check, seconds: float = 20.0):
    async with asyncio.timeout(seconds):
        while not (found := await check()):
            await asyncio.sleep(0.05)
    return found


async def test_from_the_invitation_to_the_reply(fake, api, app, worker, calendar):
    assert calendar["sending_identity"]["email"] == ADA
    receiver = Receiver()
    async with serve(receiver) as receiver.url:
        hook = {"url": receiver.url, "triggers": ["event.rsvp_update"]}
        assert (await api.post("/api/v1/webhooks", json=hook)).status_code == 201
        event = await create(api, calendar)
        (invitation,) = await fake.wait_for(1)
        assert invitation.recipients == [BOB["email"]]
        link = re.search(r"http://testserver/rsvp/\S+action=accepted", invitation.part("text/plain"))
        assert link is not None
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://testserver"
        ) as browser:
            assert (await browser.get(link[0])).status_code == 200
            form = {name: values[0] for name, values in parse_qs(urlsplit(link[0]).query).items()}
            assert (await browser.post("/rsvp/", data=form)).status_code == 200
        _, reply = await fake.wait_for(2)
        assert reply.recipients == ["Ada@Example.com"]
        assert reply.mail["Subject"] == "Accepted: Analysis (Bob)"
        ics = icalendar.Calendar.from_ical(reply.part("text/calendar"))
        (vevent,) = ics.walk("VEVENT")
        assert (ics["METHOD"], vevent["ATTENDEE"]) == ("REPLY", "mailto:bob@example.org")
        assert vevent["ATTENDEE"].params["PARTSTAT"] == "ACCEPTED"
        (notified,) = await receiver.wait_for(1)
        assert notified.json["calendar_event_id"] == event["id"]

    async def all_sent():
        listed = (await api.get(f"/api/v1/calendar_events/{event['id']}/invitations")).json()["results"]
        return [(mail["method"], mail["status"]) for mail in listed] == [
            ("REPLY", "sent"),
            ("REQUEST", "sent"),
        ]

    await until(all_sent)


async def test_an_event_shows_whom_no_mail_has_reached(fake, api, worker, calendar):
    """The owner loses the mailbox: nothing goes out from another address, and the event says so until a mail got through."""
    (mailbox,) = fake.mailboxes.values()
    mailbox.users[ADA] = "viewer"
    event = await create(api, calendar)
    assert event["raw"]["undelivered"] == []
    path = f"/api/v1/calendar_events/{event['id']}"

    async def undelivered():
        found = (await api.get(path)).json()
        return found if found["raw"]["undelivered"] else None

    found = await until(undelivered)
    (failure,) = found["raw"]["undelivered"]
    assert (failure["email"], failure["method"]) == (BOB["email"], "REQUEST")
    assert "may not send" in failure["error"]
    assert found["updated_at"] > event["updated_at"]
    (mail,) = (await api.get(f"{path}/invitations")).json()["results"]
    assert (mail["status"], mail["last_error"]) == ("failed", failure["error"])
    assert fake.submitted == []

    mailbox.users[ADA] = "sender"
    await api.patch(path, json={"location": "Room 2"})
    await fake.wait_for(1)

    async def delivered():
        return (await api.get(path)).json()["raw"]["undelivered"] == []

    await until(delivered)


async def test_a_mail_that_failed_can_be_sent_again(fake, api, other_api, worker, calendar):
    (mailbox,) = fake.mailboxes.values()
    mailbox.users[ADA] = "viewer"
    event = await create(api, calendar, attendees=[BOB, {"email": "cy@example.org"}])
    path = f"/api/v1/calendar_events/{event['id']}"

    async def failed():
        mails = (await api.get(f"{path}/invitations", params={})).json()["results"]
        return mails if all(mail["status"] == "failed" for mail in mails) else None

    async def unreached():
        found = (await api.get(path)).json()["raw"]["undelivered"]
        return sorted(one["email"] for one in found)

    async def no_one_is_reached():
        return await unreached() == ["bob@example.org", "cy@example.org"]

    mails = {mail["recipient"]["email"]: mail for mail in await until(failed)}
    await until(no_one_is_reached)
    again = f"/api/v1/invitations/{mails['bob@example.org']['id']}/resend"
    assert (await other_api.post(again)).status_code == 404
    mailbox.users[ADA] = "admin"
    response = await api.post(again)
    assert (response.status_code, response.json()["status"], response.json()["last_error"]) == (
        202,
        "pending",
        None,
    )
    (sent,) = await fake.wait_for(1)
    assert sent.recipients == ["bob@example.org"]
    assert sent.mail["Message-ID"] == mails["bob@example.org"]["message_id"]

    async def only_cy_is_unreached():
        return await unreached() == ["cy@example.org"]

    await until(only_cy_is_unreached)
    refused = await api.post(again)
    assert (refused.status_code, refused.json()) == (409, {"error": "This mail was sent."})
    await api.patch(path, json={"location": "Room 2"})
    refused = await api.post(f"/api/v1/invitations/{mails['cy@example.org']['id']}/resend")
    assert refused.status_code == 409
    assert "later mail" in refused.json()["error"]
    assert (await api.post("/api/v1/invitations/msg_aaaaaaaaaaaaaaaa/resend")).status_code == 404


async def failed_mail(fake, api, calendar, **more):
    """An event, and the invitation to Bob that could not be sent."""
    (mailbox,) = fake.mailboxes.values()
    mailbox.users[ADA] = "viewer"
    event = await create(api, calendar, **more)
    path = f"/api/v1/calendar_events/{event['id']}"

    async def failed():
        (mail,) = (await api.get(f"{path}/invitations")).json()["results"]
        return mail if mail["status"] == "failed" else None

    mail = await until(failed)
    mailbox.users[ADA] = "sender"
    return path, f"/api/v1/invitations/{mail['id']}/resend"


@pytest.mark.parametrize(
    ("method", "scope", "body", "sentence"),
    [
        ("DELETE", "", None, "The event was deleted"),
        ("DELETE", "?scope=series", None, "The event was deleted"),
        ("PATCH", "", {"attendees": []}, "not invited any more"),
        ("PATCH", "?scope=series", {"attendees": []}, "not invited any more"),
    ],
)
async def test_an_invitation_that_is_not_true_any_more_is_not_sent_again(
    fake, api, worker, calendar, method, scope, body, sentence
):
    rule = {"recurrence": ["RRULE:FREQ=DAILY;COUNT=3"]} if scope else {}
    path, again = await failed_mail(fake, api, calendar, **rule)
    if body is None:
        silently = f"{path}{scope or '?'}&send_invitations=false".replace("?&", "?")
        assert (await api.request(method, silently)).status_code == 200
    else:
        changed = await api.patch(path + scope, json={**body, "send_invitations": False})
        assert changed.status_code == 200, changed.text
    response = await api.post(again)
    assert response.status_code == 409
    assert sentence in response.json()["error"]
    assert fake.submitted == []


async def test_a_mail_of_another_sending_identity_is_not_sent_again(fake, api, worker, calendar):
    path, again = await failed_mail(fake, api, calendar)
    team = fake.add_mailbox("team@example.com", admin="Ada@Example.com")
    changed = await api.patch(f"/api/v1/calendars/{calendar['id']}", json={"sending_identity": team.id})
    assert changed.status_code == 200, changed.text
    response = await api.post(again)
    assert response.status_code == 409
    assert "sends from team@example.com now" in response.json()["error"]
    await api.patch(path, json={"location": "Room 2"})
    (mail,) = await fake.wait_for(1)
    assert mail.mailbox_id == team.id


async def test_a_mail_that_waits_for_a_limit_says_so_and_can_be_tried_at_once(fake, api, worker, calendar):
    (mailbox,) = fake.mailboxes.values()
    fake.limits[mailbox.id] = 0
    event = await create(api, calendar)
    path = f"/api/v1/calendar_events/{event['id']}/invitations"

    async def held():
        (mail,) = (await api.get(path)).json()["results"]
        return mail if mail["last_error"] else None

    mail = await until(held)
    assert (mail["status"], mail["last_error"]) == (
        "pending",
        "Messages takes no more mails from this mailbox for now (429).",
    )
    assert datetime.fromisoformat(mail["next_attempt_at"]) - utcnow() > timedelta(minutes=10)
    fake.limits.clear()
    assert (await api.post(f"/api/v1/invitations/{mail['id']}/resend")).status_code == 202
    await fake.wait_for(1)


async def test_an_instance_lists_the_mails_of_its_series_and_its_own(fake, api, worker, calendar):
    first = await create(api, calendar, recurrence=["RRULE:FREQ=DAILY;COUNT=3"])
    query = {"calendar_id": calendar["id"], "ordering": "start_time"}
    rows = (await api.get("/api/v1/calendar_events", params=query)).json()["results"]
    assert (
        await api.patch(f"/api/v1/calendar_events/{rows[1]['id']}", json={"location": "Room 2"})
    ).status_code == 200
    await fake.wait_for(2)

    async def mails(row):
        page = await api.get(f"/api/v1/calendar_events/{row['id']}/invitations")
        return [(mail["method"], mail["recurrence_id"]) for mail in page.json()["results"]]

    assert rows[0]["id"] == first["id"]
    (mailbox,) = fake.mailboxes.values()
    assert await mails(rows[0]) == await mails(rows[2]) == [("REQUEST", None)]
    assert await mails(rows[1]) == [("REQUEST", rows[1]["original_start_time"]), ("REQUEST", None)]

    mailbox.users[ADA] = "viewer"
    await api.patch(f"/api/v1/calendar_events/{rows[1]['id']}", json={"location": "Room 3"})

    async def unreached():
        found = (await api.get("/api/v1/calendar_events", params=query)).json()["results"]
        return [len(row["raw"]["undelivered"]) for row in found]

    async def the_instance_says_so():
        return sum(await unreached())

    await until(the_instance_says_so)
    assert await unreached() == [0, 1, 0]
