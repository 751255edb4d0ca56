"""The page of an invitation's links: what it shows, and the replies that it takes."""

import hashlib
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import func, select, text, update

from app.core.http import httpx
from app.invitations.links import RsvpTokens, Subject
from app.models import InvitationMail
from app.rsvp.api import PER_MINUTE
from tests.factories import at
from tests.flows.rsvp.replies import guest_statuses, instance_statuses, instances, replies, rsvp_webhooks

pytestmark = pytest.mark.settings(smtp_url="smtp://127.0.0.1:9", email_from="calendar@example.net")


async def test_the_links_of_the_mail_lead_to_the_page_and_a_click_replies(
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
    assert (await guest_statuses(api, event))["bob@example.org"] == "needs_action"
    query = parse_qs(urlsplit(link).query)
    before = (await api.get(f"/api/v1/calendar_events/{event['id']}")).json()["updated_at"]
    done = await browser.post("/rsvp/", data={"token": query["token"][0], "action": "accepted"})
    assert done.status_code == 200
    assert "recorded" in done.text
    assert [word in done.text for word in ('value="tentative"', 'value="declined"')] == [True, True]
    assert 'value="accepted"' not in done.text
    assert (await browser.get(link)).text.count("<button") == 3
    assert await guest_statuses(api, event) == {
        "bob@example.org": "accepted",
        "cy@example.org": "needs_action",
    }
    assert (await api.get(f"/api/v1/calendar_events/{event['id']}")).json()["updated_at"] > before
    (message,) = await rsvp_webhooks(sessions)
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
async def test_the_last_reply_wins_and_the_same_one_again_is_silent(browser, api, sessions, event, token):
    for action in ("accepted", "accepted", "declined"):
        assert (await browser.post("/rsvp/", data={"token": token, "action": action})).status_code == 200
    assert (await guest_statuses(api, event))["bob@example.org"] == "declined"
    assert [message["data"]["response_status"] for message in await rsvp_webhooks(sessions)] == [
        "accepted",
        "declined",
    ]
    (reply,) = await replies(sessions)  # the first one had not been sent
    assert "Declined" in str(message_from_bytes(reply.mail or b"")["Subject"])


async def test_a_guest_who_changes_a_reply_many_times_does_not_flood_the_organizer(
    browser, api, sessions, settings, calendar_id, event, token
):
    async def click(action: str, who: str = token) -> None:
        assert (await browser.post("/rsvp/", data={"token": who, "action": action})).status_code == 200

    async def send() -> int:
        """Send what is due, as a worker that always runs."""
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
    assert (await guest_statuses(api, event))["bob@example.org"] == "tentative"
    # It is counted for each guest.
    subject = Subject(calendar_id, event["ical_uid"], "", "cy@example.org")
    await click("accepted", RsvpTokens(settings.fernet_keys).sign(subject))
    assert await send() == 1


async def test_get_and_head_change_nothing_and_the_page_has_no_script(browser, api, event, token):
    for method in ("GET", "HEAD"):
        response = await browser.request(method, "/rsvp/", params={"token": token, "action": "accepted"})
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert policy.endswith("; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
        assert "unsafe" not in policy
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["vary"] == "Accept-Language"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["x-robots-tag"] == "noindex, nofollow"
    assert set((await guest_statuses(api, event)).values()) == {"needs_action"}
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


async def test_one_address_is_slowed_down(app, browser, token):
    codes = [(await browser.get("/rsvp/")).status_code for _ in range(PER_MINUTE + 1)]
    # A new minute may begin meanwhile.
    if codes[-1] != 429:
        codes = [(await browser.get("/rsvp/")).status_code for _ in range(PER_MINUTE + 1)]
    response = await browser.post("/rsvp/", data={"token": token, "action": "accepted"})
    assert (codes[-1], response.status_code) == (429, 429)
    assert int(response.headers["retry-after"]) > 0
    assert "Too many requests" in response.text
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
        response = await browser.post(
            "/rsvp/", data={"token": token, "action": "accepted"}, headers={"Accept-Language": "fr"}
        )
    assert response.status_code == 503
    assert "rien n’a été enregistré" in response.text
    assert int(response.headers["retry-after"]) > 0
    assert (await guest_statuses(api, event))["bob@example.org"] == "needs_action"


@pytest.mark.settings(redis_url="unix:///nowhere/redis.sock")
async def test_with_redis_unavailable_every_guest_may_reply(browser, api, event, token):
    assert (await browser.post("/rsvp/", data={"token": token, "action": "accepted"})).status_code == 200
    assert (await guest_statuses(api, event))["bob@example.org"] == "accepted"


async def test_a_changed_time_asks_again_and_a_changed_title_does_not(browser, api, event, token):
    path = f"/api/v1/calendar_events/{event['id']}"
    await browser.post("/rsvp/", data={"token": token, "action": "accepted"})
    await api.patch(path, json={"name": "Algebra"})
    assert (await guest_statuses(api, event))["bob@example.org"] == "accepted"
    await api.patch(path, json={"start_time": at(4)})
    assert (await guest_statuses(api, event))["bob@example.org"] == "needs_action"
    assert (await browser.post("/rsvp/", data={"token": token, "action": "declined"})).status_code == 200
    assert (await guest_statuses(api, event))["bob@example.org"] == "declined"


async def test_a_reply_to_a_series_is_for_all_and_one_to_an_instance_for_it_alone(
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
            assert await instance_statuses(api, calendar_id) == ["needs_action", "declined", "needs_action"]
    assert await instance_statuses(api, calendar_id) == ["accepted", "declined", "accepted"]
    # Once the instance is moved, its own reply no longer counts, and one to the series is for it too.
    rows = await instances(api, calendar_id)
    await api.patch(f"/api/v1/calendar_events/{rows[1]['id']}", json={"end_time": at(3.2)})
    assert await instance_statuses(api, calendar_id) == ["accepted", "needs_action", "accepted"]
    token = tokens.sign(Subject(calendar_id, series["ical_uid"], "", "bob@example.org"))
    await browser.post("/rsvp/", data={"token": token, "action": "tentative"})
    assert await instance_statuses(api, calendar_id) == ["tentative"] * 3
    elsewhere = tokens.sign(Subject(calendar_id, series["ical_uid"], "20200101T000000Z", "bob@example.org"))
    assert (await browser.get("/rsvp/", params={"token": elsewhere})).status_code == 410
