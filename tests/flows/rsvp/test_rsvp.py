"""Answers to invitations: the page, its links, and replies that come by mail."""

import base64
import hashlib
import re
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey
from pydantic import SecretStr
from sqlalchemy import func, select, text, update

from app.core.http import httpx
from app.invitations.links import RsvpTokens, Subject
from app.models import Calendar, HostedEvent, InvitationMail, WebhookDelivery
from app.rsvp.api import PER_MINUTE
from tests.factories import at

pytestmark = pytest.mark.settings(smtp_url="smtp://127.0.0.1:9", email_from="calendar@example.net")

SECRET = "a-secret-of-the-messages-webhook-channel"


@pytest.fixture
async def calendar_id(api):
    body = {
        "platform": "local",
        "name": "Lectures",
        "owner_email": "ada@example.com",
        "owner_name": "Ada",
        "timezone": "Europe/Paris",
        "deduplication_key": "lectures",
    }
    return (await api.post("/api/v1/calendars", json=body)).json()["id"]


@pytest.fixture
async def event(api, calendar_id):
    body = {
        "calendar_id": calendar_id,
        "name": "<b>Analysis</b>",
        "start_time": at(3),
        "end_time": at(3.1),
        "attendees": [{"email": "bob@example.org", "name": "Bob"}, {"email": "cy@example.org"}],
    }
    answer = await api.post("/api/v1/calendar_events", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.fixture
async def browser(app):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        yield client


@pytest.fixture
def token(settings, calendar_id, event):
    tokens = RsvpTokens(settings.fernet_keys)
    return tokens.sign(Subject(calendar_id, event["ical_uid"], "", "bob@example.org"))


@pytest.fixture
async def webhook(api):
    body = {"url": "https://127.0.0.1:9/", "triggers": ["event.rsvp_update", "calendar.events_update"]}
    assert (await api.post("/api/v1/webhooks", json=body)).status_code == 201


async def answers(api, event) -> dict[str, str]:
    found = (await api.get(f"/api/v1/calendar_events/{event['id']}")).json()
    return {person["email"]: person["response_status"] for person in found["attendees"]}


async def instances(api, calendar_id) -> list[dict]:
    """The calendar's events by start."""
    query = {"calendar_id": calendar_id, "ordering": "start_time"}
    found: list[dict] = (await api.get("/api/v1/calendar_events", params=query)).json()["results"]
    return found


async def statuses(api, calendar_id) -> list[str]:
    """Of the first attendee of each of them."""
    return [row["attendees"][0]["response_status"] for row in await instances(api, calendar_id)]


async def replies(sessions) -> list[InvitationMail]:
    async with sessions() as session:
        rows = await session.scalars(
            select(InvitationMail).where(InvitationMail.method == "REPLY").order_by(InvitationMail.created_at)
        )
        return list(rows)


async def told(sessions) -> list[dict]:
    async with sessions() as session:
        rows = await session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.created_at))
        return [orjson.loads(row.body) for row in rows if row.trigger == "event.rsvp_update"]


# -- the page -----------------------------------------------------------------------------------------------


async def test_the_links_of_the_mail_lead_to_the_page_and_a_click_answers(
    api, browser, sessions, event, webhook
):
    async with sessions() as session:
        mail = await session.scalar(
            select(InvitationMail).where(InvitationMail.recipient_email == "bob@example.org")
        )
    plain = next(p for p in message_from_bytes(mail.mail).walk() if p.get_content_type() == "text/plain")
    payload = plain.get_payload(decode=True)
    assert isinstance(payload, bytes)
    body = payload.decode()
    link = next(word for word in body.split() if "/rsvp/?" in word and "action=accepted" in word)
    page = await browser.get(link)
    assert page.status_code == 200
    assert "&lt;b&gt;Analysis&lt;/b&gt;" in page.text
    assert "Europe/Paris" in page.text
    assert "Not answered yet" in page.text
    assert (await answers(api, event))["bob@example.org"] == "needs_action"
    query = parse_qs(urlsplit(link).query)
    before = (await api.get(f"/api/v1/calendar_events/{event['id']}")).json()["updated_at"]
    done = await browser.post("/rsvp/", data={"token": query["token"][0], "action": "accepted"})
    assert done.status_code == 200
    assert "recorded" in done.text
    assert [word in done.text for word in ('value="tentative"', 'value="declined"')] == [True, True]
    assert 'value="accepted"' not in done.text
    assert (await browser.get(link)).text.count("<button") == 3
    assert await answers(api, event) == {"bob@example.org": "accepted", "cy@example.org": "needs_action"}
    assert (await api.get(f"/api/v1/calendar_events/{event['id']}")).json()["updated_at"] > before
    (message,) = await told(sessions)
    assert message["calendar_event_id"] == event["id"]
    assert message["calendar_deduplication_key"] == "lectures"
    assert message["data"]["attendee"] == {"email": "bob@example.org", "name": "Bob", "is_optional": False}
    assert message["data"]["response_status"] == "accepted"
    assert message["data"]["previous_response_status"] == "needs_action"
    (reply,) = await replies(sessions)
    assert reply.recipient_email == "ada@example.com"
    subject = str(message_from_bytes(reply.mail or b"")["Subject"])
    assert "Accepted" in subject


@pytest.mark.usefixtures("webhook")
async def test_the_last_answer_wins_and_the_same_one_again_is_silent(browser, api, sessions, event, token):
    for action in ("accepted", "accepted", "declined"):
        assert (await browser.post("/rsvp/", data={"token": token, "action": action})).status_code == 200
    assert (await answers(api, event))["bob@example.org"] == "declined"
    assert [message["data"]["response_status"] for message in await told(sessions)] == [
        "accepted",
        "declined",
    ]
    (reply,) = await replies(sessions)  # the first one had not been sent
    assert "Declined" in str(message_from_bytes(reply.mail or b"")["Subject"])


async def test_a_guest_who_answers_to_and_fro_does_not_flood_the_organizer(
    browser, api, sessions, settings, calendar_id, event, token
):
    async def click(action: str, who: str = token) -> None:
        assert (await browser.post("/rsvp/", data={"token": who, "action": action})).status_code == 200

    async def send() -> int:
        """As a worker that is always there."""
        statement = update(InvitationMail).where(
            InvitationMail.status == "pending",
            InvitationMail.method == "REPLY",
            InvitationMail.next_attempt_at <= func.now(),
        )
        async with sessions.begin() as session:
            sent = await session.execute(
                statement.values(status="sent", next_attempt_at=None, mail=None).returning(InvitationMail.id)
            )
            return len(sent.all())

    count = 0
    for n in range(20):
        await click(("accepted", "declined")[n % 2])
        count += await send()
    assert count == 3
    await click("tentative")
    (waiting,) = [reply for reply in await replies(sessions) if reply.status == "pending"]
    assert waiting.next_attempt_at is not None
    assert waiting.next_attempt_at > datetime.now(UTC)
    assert "Tentative" in str(message_from_bytes(waiting.mail or b"")["Subject"])  # the last one
    assert (await answers(api, event))["bob@example.org"] == "tentative"
    # It is counted for each guest.
    subject = Subject(calendar_id, event["ical_uid"], "", "cy@example.org")
    await click("accepted", RsvpTokens(settings.fernet_keys).sign(subject))
    assert await send() == 1


async def test_get_and_head_change_nothing_and_the_page_has_no_script(browser, api, event, token):
    for method in ("GET", "HEAD"):
        answer = await browser.request(method, "/rsvp/", params={"token": token, "action": "accepted"})
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert policy.endswith("; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
        assert "unsafe" not in policy
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["vary"] == "Accept-Language"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-robots-tag"] == "noindex, nofollow"
    assert set((await answers(api, event)).values()) == {"needs_action"}
    page = (await browser.get("/rsvp/", params={"token": token, "action": "accepted"})).text
    style = page.split("<style>")[1].split("</style>")[0]
    import base64

    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert "<script" not in page
    assert "http-equiv" not in page
    assert " on" not in page.split("<body>")[1].split("<form")[1].split(">")[0]


@pytest.mark.parametrize(
    ("languages", "expected"),
    [
        ("fr-CA,fr;q=0.9,en;q=0.5", "fr"),
        ("de,en;q=0.8,fr;q=0.3", "en"),
        ("de, en; q=0.3, fr ; Q=0.8", "fr"),
        ("de", "en"),
        ("fr;q=0,de", "en"),
        ("fr;q=x,*", "en"),
    ],
)
async def test_the_page_speaks_the_visitors_language(browser, token, languages, expected):
    page = await browser.get("/rsvp/", params={"token": token}, headers={"Accept-Language": languages})
    assert f'<html lang="{expected}">' in page.text


async def set_times(sessions, event, days: float):
    """Moves the hosted event to end so many days ago."""
    async with sessions.begin() as session:
        end = datetime.now(UTC) - timedelta(days=days)
        await session.execute(
            update(HostedEvent)
            .where(HostedEvent.uid == event["ical_uid"])
            .values(start_time=end - timedelta(hours=1), end_time=end, ends_at=end)
        )


async def refused(browser, api, event, token, *, status_code, words):
    for method, kind in (("GET", "params"), ("POST", "data")):
        answer = await browser.request(method, "/rsvp/", **{kind: {"token": token, "action": "accepted"}})
        assert answer.status_code == status_code
        assert words in answer.text
        assert "<form" not in answer.text
    assert (await answers(api, event)).get("bob@example.org") in {None, "needs_action"}


async def test_a_bad_link_has_its_page(browser, api, event, token):
    await refused(browser, api, event, token[:-3] + "AAA", status_code=400, words="does not work")
    for data in ({}, {"token": token}, {"token": token, "action": "x"}, {"action": "accepted"}):
        assert (await browser.post("/rsvp/", data=data)).status_code == 400
    assert (await browser.get("/rsvp/")).status_code == 400
    assert (await browser.get("/rsvp/", params={"token": token, "action": "x"})).status_code == 400
    garbage = {"Content-Type": "multipart/form-data; boundary=x"}
    assert (await browser.post("/rsvp/", content=b"\xff\x00", headers=garbage)).status_code == 400


async def test_an_event_that_is_over_has_its_page(browser, api, sessions, event, token):
    await set_times(sessions, event, 1)
    await refused(browser, api, event, token, status_code=410, words="is over")
    assert await post_mail(api, reply(event)) == "ignored"


async def test_an_expired_link_has_its_page_which_tells_nothing_of_the_event(
    browser, api, sessions, event, token
):
    await set_times(sessions, event, 30)
    await refused(browser, api, event, token, status_code=410, words="expired")
    assert "Analysis" not in (await browser.get("/rsvp/", params={"token": token})).text


async def test_a_cancelled_event_has_its_page(browser, api, event, token, calendar_id):
    await api.delete(f"/api/v1/calendar_events/{event['id']}")
    await refused(browser, api, event, token, status_code=410, words="cancelled")
    await api.delete(f"/api/v1/calendars/{calendar_id}")
    assert (await browser.get("/rsvp/", params={"token": token})).status_code == 410


async def test_who_is_no_longer_invited_has_a_page(browser, api, event, token):
    await api.patch(
        f"/api/v1/calendar_events/{event['id']}", json={"attendees": [{"email": "cy@example.org"}]}
    )
    await refused(browser, api, event, token, status_code=403, words="no longer invited")
    assert "Analysis" not in (await browser.get("/rsvp/", params={"token": token})).text


async def test_who_saw_the_former_time_is_shown_the_new_one_and_asked_again(browser, api, event, token):
    page = await browser.get("/rsvp/", params={"token": token, "action": "accepted"})
    shown = re.search(r'name="when" value="([^"]+)"', page.text)
    assert shown is not None
    form = {"token": token, "action": "accepted", "when": shown[1]}
    path = f"/api/v1/calendar_events/{event['id']}"
    fewer = await api.patch(path, json={"attendees": [{"email": "bob@example.org"}]})
    assert fewer.status_code == 200  # which raises SEQUENCE, and is not about Bob
    assert "recorded" in (await browser.post("/rsvp/", data=form)).text
    await api.patch(path, json={"start_time": at(5)})
    again = await browser.post("/rsvp/", data=form)
    assert again.status_code == 200
    assert "was moved in the meantime" in again.text
    assert (await answers(api, event))["bob@example.org"] == "needs_action"
    new = re.search(r'name="when" value="([^"]+)"', again.text)
    assert new is not None
    assert "recorded" in (await browser.post("/rsvp/", data={**form, "when": new[1]})).text
    assert (await answers(api, event))["bob@example.org"] == "accepted"


async def test_one_address_is_slowed_down(app, browser, token):
    codes = [(await browser.get("/rsvp/")).status_code for _ in range(PER_MINUTE + 1)]
    # A new minute may begin meanwhile.
    if codes[-1] != 429:
        codes = [(await browser.get("/rsvp/")).status_code for _ in range(PER_MINUTE + 1)]
    answer = await browser.post("/rsvp/", data={"token": token, "action": "accepted"})
    assert (codes[-1], answer.status_code) == (429, 429)
    assert int(answer.headers["retry-after"]) > 0
    assert "Too many requests" in answer.text
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as neighbour:
        assert (await neighbour.get("/rsvp/", params={"token": token})).status_code == 200


async def test_the_addresses_of_an_ipv6_network_count_as_one(app):
    codes = []
    for number in range(2 * PER_MINUTE + 1):
        transport = httpx.ASGITransport(app, client=(f"2001:db8::{number:x}", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as visitor:
            codes.append((await visitor.get("/rsvp/")).status_code)
    assert 429 in codes
    transport = httpx.ASGITransport(app, client=("2001:db8:0:1::1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as visitor:
        assert (await visitor.get("/rsvp/")).status_code == 400


async def test_a_database_that_is_busy_has_a_page_too(browser, api, sessions, event, token):
    async with sessions() as session:
        await session.execute(text("LOCK TABLE calendars"))
        answer = await browser.post(
            "/rsvp/", data={"token": token, "action": "accepted"}, headers={"Accept-Language": "fr"}
        )
    assert answer.status_code == 503
    assert "rien n’a été enregistré" in answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert (await answers(api, event))["bob@example.org"] == "needs_action"


@pytest.mark.settings(redis_url="unix:///nowhere/redis.sock")
async def test_with_redis_away_everybody_may_answer(browser, api, event, token):
    assert (await browser.post("/rsvp/", data={"token": token, "action": "accepted"})).status_code == 200
    assert (await answers(api, event))["bob@example.org"] == "accepted"


async def test_a_changed_time_asks_again_and_a_changed_title_does_not(browser, api, event, token):
    path = f"/api/v1/calendar_events/{event['id']}"
    await browser.post("/rsvp/", data={"token": token, "action": "accepted"})
    await api.patch(path, json={"name": "Algebra"})
    assert (await answers(api, event))["bob@example.org"] == "accepted"
    await api.patch(path, json={"start_time": at(4)})
    assert (await answers(api, event))["bob@example.org"] == "needs_action"
    assert (await browser.post("/rsvp/", data={"token": token, "action": "declined"})).status_code == 200
    assert (await answers(api, event))["bob@example.org"] == "declined"


async def test_an_answer_to_a_series_is_for_all_and_one_to_an_instance_for_it_alone(
    browser, api, settings, calendar_id
):
    body = {
        "calendar_id": calendar_id,
        "name": "Daily",
        "start_time": at(2),
        "end_time": at(2.1),
        "timezone": "UTC",
        "recurrence": ["RRULE:FREQ=DAILY;COUNT=3"],
        "attendees": [{"email": "bob@example.org"}],
    }
    series = (await api.post("/api/v1/calendar_events", json=body)).json()
    tokens = RsvpTokens(settings.fernet_keys)

    rows = await api.get("/api/v1/calendar_events", params={"calendar_id": calendar_id})
    last_id = max(rows.json()["results"], key=lambda row: row["start_time"])["id"]
    await api.patch(f"/api/v1/calendar_events/{last_id}", json={"name": "The last one"})
    slot = (datetime.fromisoformat(series["start_time"]) + timedelta(days=1)).strftime("%Y%m%dT%H%M%SZ")
    for use, action in ((slot, "declined"), ("", "accepted")):
        token = tokens.sign(Subject(calendar_id, series["ical_uid"], use, "bob@example.org"))
        page = await browser.post("/rsvp/", data={"token": token, "action": action})
        assert page.status_code == 200, page.text
        if use:
            assert await statuses(api, calendar_id) == ["needs_action", "declined", "needs_action"]
    assert await statuses(api, calendar_id) == ["accepted", "declined", "accepted"]
    # Once the instance is moved, its own answer is none any more, and one to the series is for it too.
    rows = await instances(api, calendar_id)
    await api.patch(f"/api/v1/calendar_events/{rows[1]['id']}", json={"end_time": at(3.2)})
    assert await statuses(api, calendar_id) == ["accepted", "needs_action", "accepted"]
    token = tokens.sign(Subject(calendar_id, series["ical_uid"], "", "bob@example.org"))
    await browser.post("/rsvp/", data={"token": token, "action": "tentative"})
    assert await statuses(api, calendar_id) == ["tentative"] * 3
    elsewhere = tokens.sign(Subject(calendar_id, series["ical_uid"], "20200101T000000Z", "bob@example.org"))
    assert (await browser.get("/rsvp/", params={"token": elsewhere})).status_code == 410


async def test_links_of_cancelled_instances_and_of_instances_of_a_cancelled_series(
    browser, api, settings, calendar_id
):
    body = {
        "calendar_id": calendar_id,
        "name": "Daily",
        "start_time": at(2),
        "end_time": at(2.1),
        "recurrence": ["RRULE:FREQ=DAILY;COUNT=3"],
        "attendees": [{"email": "bob@example.org"}],
    }
    series = (await api.post("/api/v1/calendar_events", json=body)).json()
    rows = await instances(api, calendar_id)
    tokens = RsvpTokens(settings.fernet_keys)
    links = []
    for row in rows:
        slot = f"{datetime.fromisoformat(row['start_time']):%Y%m%dT%H%M%SZ}"
        links.append(tokens.sign(Subject(calendar_id, series["ical_uid"], slot, "bob@example.org")))

    async def click(link):
        return (await browser.post("/rsvp/", data={"token": link, "action": "accepted"})).status_code

    await api.delete(f"/api/v1/calendar_events/{rows[1]['id']}")
    assert [await click(link) for link in links] == [200, 410, 200]
    await api.delete(f"/api/v1/calendar_events/{rows[0]['id']}", params={"scope": "series"})
    assert [await click(link) for link in links] == [410, 410, 410]


async def test_a_series_whose_instances_were_all_deleted_has_its_page(browser, api, settings, calendar_id):
    body = {
        "calendar_id": calendar_id,
        "name": "Daily",
        "start_time": at(2),
        "end_time": at(2.1),
        "recurrence": ["RRULE:FREQ=DAILY;COUNT=2"],
        "attendees": [{"email": "bob@example.org"}],
    }
    series = (await api.post("/api/v1/calendar_events", json=body)).json()
    rows = await api.get("/api/v1/calendar_events", params={"calendar_id": calendar_id})
    for row in rows.json()["results"]:
        assert (await api.delete(f"/api/v1/calendar_events/{row['id']}")).status_code == 200
    tokens = RsvpTokens(settings.fernet_keys)
    token = tokens.sign(Subject(calendar_id, series["ical_uid"], "", "bob@example.org"))
    await refused(browser, api, series, token, status_code=410, words="cancelled")
    assert await post_mail(api, reply(series)) == "ignored"


# -- replies by mail ----------------------------------------------------------------------------------------


def reply(
    event,
    *,
    sender="bob@example.org",
    attendee=None,
    partstat="ACCEPTED",
    sequence=0,
    minutes=0,
    more="",
    number=1,
):
    stamp = (datetime.now(UTC) - timedelta(hours=1) + timedelta(minutes=minutes)).strftime("%Y%m%dT%H%M%SZ")
    return (
        f"From: Bob <{sender}>\r\nTo: ada@example.com\r\nSubject: Re\r\nMessage-ID: <{number}@example.org>\r\n"
        "MIME-Version: 1.0\r\nContent-Type: text/calendar; method=REPLY; charset=UTF-8\r\n\r\n"
        "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nMETHOD:REPLY\r\nBEGIN:VEVENT\r\n"
        f"UID:{event['ical_uid']}\r\nDTSTAMP:{stamp}\r\nSEQUENCE:{sequence}\r\n{more}"
        f"ATTENDEE;PARTSTAT={partstat}:MAILTO:{attendee or sender}\r\n"
        "END:VEVENT\r\nEND:VCALENDAR\r\n"
    ).encode()


async def post_mail(api, mail: bytes, **headers):
    all_headers = {"Content-Type": "message/rfc822", **{k.replace("_", "-"): v for k, v in headers.items()}}
    answer = await api.post("/api/v1/rsvp/inbound", content=mail, headers=all_headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["status"]


async def test_a_mailed_reply_is_applied_once_and_told(api, sessions, event, webhook):
    mail = reply(event, partstat="TENTATIVE")
    assert await post_mail(api, mail) == "applied"
    assert (await answers(api, event))["bob@example.org"] == "tentative"
    again = await api.post("/api/v1/rsvp/inbound", content=b"Received: by another way\r\n" + mail)
    assert again.json() == {"status": "ignored", "reason": "This mail was taken in before."}
    no_answer = reply(event, partstat="NEEDS-ACTION", minutes=1, number=2)
    assert await post_mail(api, no_answer) == "ignored"
    assert (await answers(api, event))["bob@example.org"] == "tentative"
    assert len(await told(sessions)) == 1
    assert await replies(sessions) == []  # the organizer's mailbox has the reply itself


async def test_older_replies_are_stale(api, browser, event, token):
    assert await post_mail(api, reply(event, partstat="DECLINED", minutes=30, number=1)) == "applied"
    assert await post_mail(api, reply(event, partstat="ACCEPTED", minutes=20, number=2)) == "ignored"
    assert await post_mail(api, reply(event, partstat="ACCEPTED", minutes=40, number=3)) == "applied"
    await browser.post("/rsvp/", data={"token": token, "action": "declined"})
    assert await post_mail(api, reply(event, partstat="ACCEPTED", minutes=50, number=4)) == "ignored"
    await api.patch(f"/api/v1/calendar_events/{event['id']}", json={"start_time": at(5)})
    assert await post_mail(api, reply(event, partstat="ACCEPTED", minutes=55, number=5)) == "ignored"
    assert (await answers(api, event))["bob@example.org"] == "needs_action"
    assert await post_mail(api, reply(event, sequence=1, minutes=56, number=6)) == "applied"
    assert (await answers(api, event))["bob@example.org"] == "accepted"
    await api.patch(f"/api/v1/calendar_events/{event['id']}", json={"location": "Room 2"})
    newer = reply(event, partstat="DECLINED", sequence=2, minutes=50, number=7)
    assert await post_mail(api, newer) == "applied"  # whatever the clocks say
    assert await post_mail(api, reply(event, sequence=1, minutes=58, number=8)) == "ignored"
    assert (await answers(api, event))["bob@example.org"] == "declined"


async def test_a_guest_may_answer_the_invitation_that_he_has_after_a_click(api, browser, event, token):
    """Others were told more than he was; his calendar's number is the one of his own invitation."""
    people = [{"email": "bob@example.org"}, {"email": "cy@example.org"}]
    path = f"/api/v1/calendar_events/{event['id']}"
    for more in ([*people, {"email": "dan@example.org"}], people):
        assert (await api.patch(path, json={"attendees": more})).status_code == 200
    await browser.post("/rsvp/", data={"token": token, "action": "accepted"})
    assert await post_mail(api, reply(event, partstat="TENTATIVE", minutes=10)) == "ignored"  # of before
    assert await post_mail(api, reply(event, partstat="DECLINED", minutes=60 + 1, number=2)) == "applied"
    assert (await answers(api, event))["bob@example.org"] == "declined"


async def test_a_sequence_that_was_never_sent_does_not_shut_out_later_answers(api, browser, event, token):
    assert await post_mail(api, reply(event, partstat="DECLINED", sequence=2**31 - 1, number=1)) == "applied"
    assert await post_mail(api, reply(event, partstat="TENTATIVE", minutes=1, number=2)) == "applied"
    # Its DTSTAMP is not of now: it says when it was answered by the clock of somebody's phone.
    assert await post_mail(api, reply(event, minutes=600, number=3)) == "applied"
    assert await post_mail(api, reply(event, partstat="TENTATIVE", minutes=61, number=4)) == "applied"
    await browser.post("/rsvp/", data={"token": token, "action": "declined"})
    assert (await answers(api, event))["bob@example.org"] == "declined"


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
    """The guests' calendars answer the organizer that their invitation names."""
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
    assert set((await answers(api, event)).values()) == {"needs_action"}
    assert await post_mail(api, reply(event, number=9), X_StMsg_Is_Spam="false") == "applied"


async def test_a_mailed_reply_to_one_instance(api, calendar_id):
    body = {
        "calendar_id": calendar_id,
        "name": "Daily",
        "start_time": at(2),
        "end_time": at(2.1),
        "recurrence": ["RRULE:FREQ=DAILY;COUNT=2"],
        "attendees": [{"email": "bob@example.org"}],
    }
    series = (await api.post("/api/v1/calendar_events", json=body)).json()
    start = datetime.fromisoformat(series["start_time"])
    more = f"RECURRENCE-ID:{start:%Y%m%dT%H%M%SZ}\r\n"
    assert await post_mail(api, reply(series, partstat="DECLINED", more=more)) == "applied"
    assert await statuses(api, calendar_id) == ["declined", "needs_action"]
    nowhere = "RECURRENCE-ID:20200101T000000Z\r\n"
    assert await post_mail(api, reply(series, more=nowhere, number=2)) == "ignored"
    day = f"RECURRENCE-ID;VALUE=DATE:{start + timedelta(days=1):%Y%m%d}\r\n"
    assert await post_mail(api, reply(series, partstat="TENTATIVE", more=day, number=3)) == "applied"
    assert await statuses(api, calendar_id) == ["declined", "tentative"]


async def test_an_instance_of_thousands_of_years_from_now_is_not_answered(api, calendar_id):
    body = {
        "calendar_id": calendar_id,
        "name": "Daily",
        "start_time": at(2),
        "end_time": at(2.1),
        "recurrence": ["RRULE:FREQ=DAILY"],
        "attendees": [{"email": "bob@example.org"}],
    }
    series = (await api.post("/api/v1/calendar_events", json=body)).json()
    start = datetime.fromisoformat(series["start_time"])
    for year, expected in ((2198, "applied"), (9700, "ignored")):
        mail = reply(series, more=f"RECURRENCE-ID:{year}0101T{start:%H%M%S}Z\r\n", number=year)
        assert await post_mail(api, mail) == expected


async def test_one_mail_may_answer_the_series_and_single_instances(api, calendar_id, sessions, webhook):
    body = {
        "calendar_id": calendar_id,
        "name": "Daily",
        "start_time": at(2),
        "end_time": at(2.1),
        "recurrence": ["RRULE:FREQ=DAILY;COUNT=3"],
        "attendees": [{"email": "bob@example.org"}],
    }
    series = (await api.post("/api/v1/calendar_events", json=body)).json()
    second = datetime.fromisoformat(series["start_time"]) + timedelta(days=1)
    head, begin, rest = reply(series).partition(b"BEGIN:VEVENT\r\n")
    event, end, tail = rest.partition(b"END:VEVENT\r\n")
    of_second = (
        event.replace(b"ACCEPTED", b"DECLINED") + f"RECURRENCE-ID:{second:%Y%m%dT%H%M%SZ}\r\n".encode()
    )
    assert await post_mail(api, head + begin + of_second + end + begin + event + end + tail) == "applied"
    assert await statuses(api, calendar_id) == ["accepted", "declined", "accepted"]
    of_series, of_instance = await told(sessions)
    assert [of_series["data"]["scope"], of_instance["data"]["scope"]] == ["series", "instance"]
    assert of_series["calendar_event_id"] == series["id"]  # the next one
    assert of_instance["calendar_event_id"] == (await instances(api, calendar_id))[1]["id"]
    later = (head + begin + event + end + begin + of_second + end + tail).replace(b"DECLINED", b"TENTATIVE")
    assert await post_mail(api, later.replace(b"<1@", b"<2@")) == "applied"  # the series' answer is the same


async def test_a_reply_to_the_series_does_not_answer_an_instance_that_was_moved_meanwhile(
    api, browser, settings, calendar_id
):
    body = {
        "calendar_id": calendar_id,
        "name": "Daily",
        "start_time": at(2),
        "end_time": at(2.1),
        "recurrence": ["RRULE:FREQ=DAILY;COUNT=2"],
        "attendees": [{"email": "bob@example.org"}],
    }
    series = (await api.post("/api/v1/calendar_events", json=body)).json()
    await api.patch(
        f"/api/v1/calendar_events/{series['id']}", json={"start_time": at(2.2), "end_time": at(2.3)}
    )

    assert await post_mail(api, reply(series)) == "applied"
    assert await statuses(api, calendar_id) == ["needs_action", "accepted"]
    tokens = RsvpTokens(settings.fernet_keys)
    token = tokens.sign(Subject(calendar_id, series["ical_uid"], "", "bob@example.org"))
    assert (await browser.post("/rsvp/", data={"token": token, "action": "tentative"})).status_code == 200
    assert await statuses(api, calendar_id) == ["tentative", "tentative"]  # who clicks sees what there is now


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
    assert await statuses(api, calendar_id) == ["needs_action", "declined"]


def webhook_token(mail: bytes, secret: str = SECRET, **claims) -> str:
    now = int(datetime.now(UTC).timestamp())
    values = {
        "iss": "messages-webhook",
        "iat": now,
        "exp": now + 300,
        "jti": "1",
        "sub": "Ada@Example.com",
        "cid": "c",
        "body_sha256": hashlib.sha256(mail).hexdigest(),
        **claims,
    }
    values = {name: value for name, value in values.items() if value is not None}
    return jwt.encode({"alg": "HS256"}, values, OctKey.import_key(secret))


def unsigned_token(mail: bytes) -> str:
    claims = webhook_token(mail).split(".")[1]
    header = base64.urlsafe_b64encode(orjson.dumps({"alg": "none"})).decode().rstrip("=")
    return f"{header}.{claims}."


async def test_messages_may_post_with_its_token(browser, api, settings, event):
    settings.messages_webhook_secret = SecretStr(SECRET)
    settings.messages_reply_senders = "unmarked"
    mail = reply(event)

    async def post(token, content=mail):
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "message/rfc822",
            "X-StMsg-Is-Spam": "false",
        }
        return (await browser.post("/api/v1/rsvp/inbound", content=content, headers=headers)).status_code

    past = int(datetime.now(UTC).timestamp()) - 1000
    for bad in (
        webhook_token(mail, secret="another-secret-of-the-messages-webhook"),
        webhook_token(mail, iss="eve"),
        webhook_token(mail, exp=past),
        webhook_token(mail, exp=None),
        webhook_token(mail, iat=None),
        unsigned_token(mail),
        webhook_token(mail, body_sha256="0" * 64),
        webhook_token(mail, body_sha256=None),
        webhook_token(mail, sub=None),
        "a.b.c",
    ):
        assert await post(bad) == 401
    assert await post(webhook_token(mail), content=mail + b"x") == 401
    assert await post(webhook_token(mail, sub="eve@example.com")) == 200
    assert set((await answers(api, event)).values()) == {"needs_action"}
    assert await post(webhook_token(mail)) == 200
    assert (await answers(api, event))["bob@example.org"] == "accepted"


async def test_without_the_secret_only_an_api_key_may_post(browser, event):
    mail = reply(event)
    headers = {"Authorization": f"Bearer {webhook_token(mail)}"}
    answer = await browser.post("/api/v1/rsvp/inbound", content=mail, headers=headers)
    assert answer.status_code == 401
    assert "MESSAGES_WEBHOOK_SECRET" in answer.json()["detail"]
    assert (await browser.post("/api/v1/rsvp/inbound", content=mail)).status_code == 401


async def test_old_notes_of_mails_are_forgotten(api, sessions, event):
    from app.hosted.retention import prune_inbound_replies

    await post_mail(api, reply(event))
    for older_than, kept in ((timedelta(days=1), 1), (timedelta(0), 0)):
        await prune_inbound_replies(sessions, older_than=older_than)
        async with sessions() as session:
            assert await session.scalar(text("SELECT count(*) FROM inbound_replies")) == kept
