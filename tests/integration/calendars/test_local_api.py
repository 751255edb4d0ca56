"""Calendars that are hosted here: what POST and PATCH take, and the mailbox that they send from."""

import pytest

from app.hosted.service import rewrite_due_events
from tests.fakes.messages import FakeMailbox, FakeMessages, Fault

BASE = {"platform": "local", "name": "Lectures", "owner_email": "ada@example.com"}
OWN = "11111111-1111-4111-8111-111111111111"
TEAM = "22222222-2222-4222-8222-222222222222"
READ_ONLY = "33333333-3333-4333-8333-333333333333"
ADA = "ada@example.com"


@pytest.fixture
def mailboxes(fake_messages: FakeMessages) -> FakeMessages:
    for mailbox_id, address, name, role in (
        (TEAM, "team@example.com", "Team", "sender"),
        (READ_ONLY, "info@example.com", None, "viewer"),
        (OWN, "Ada@Example.com", "Ada", "admin"),
    ):
        fake_messages.mailboxes[mailbox_id] = FakeMailbox(mailbox_id, address, name, {ADA: role})
    return fake_messages


async def test_a_local_calendar_is_made_shown_and_deleted(api):
    made = await api.post(
        "/api/v1/calendars",
        json={
            **BASE,
            "owner_name": "Ada L.",
            "timezone": "Europe/Paris",
            "locale": "fr-CA",
            "metadata": {"a": "b"},
        },
    )
    assert made.status_code == 201, made.text
    calendar = made.json()
    assert calendar["platform"] == "local"
    assert calendar["state"] == "connected"
    assert (calendar["name"], calendar["owner_email"], calendar["owner_name"]) == (
        "Lectures",
        "ada@example.com",
        "Ada L.",
    )
    assert (calendar["timezone"], calendar["locale"]) == ("Europe/Paris", "fr-CA")
    assert calendar["sending_identity"] is None
    assert (await api.get("/api/v1/calendars?platform=local")).json()["results"] == [calendar]
    assert (await api.post(f"/api/v1/calendars/{calendar['id']}/sync")).status_code == 202
    assert (await api.delete(f"/api/v1/calendars/{calendar['id']}")).status_code == 200
    assert (await api.get(f"/api/v1/calendars/{calendar['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", " "),
        ("name", "a\r\nBcc: x@example.com"),
        ("owner_email", "Ada <ada@example.com>"),
        ("owner_email", "ada@example.com\nX: y"),
        ("owner_name", "A\nB"),
        ("timezone", "Mars/Olympus"),
        ("locale", "French"),
        ("locale", "fr\n"),
        ("refresh_token", "x"),
        ("name", "a\x00"),
    ],
)
async def test_a_wrong_field_is_refused_by_name(api, field, value):
    response = await api.post("/api/v1/calendars", json={**BASE, field: value})
    assert response.status_code == 400
    assert list(response.json()) == [field]


async def test_a_deduplication_key_is_unique_over_all_platforms(api):
    body = {**BASE, "deduplication_key": "one"}
    assert (await api.post("/api/v1/calendars", json=body)).status_code == 201
    feed = {"platform": "ics", "feed_url": "https://example.com/a.ics", "deduplication_key": "one"}
    for again in (body, feed):
        response = await api.post("/api/v1/calendars", json=again)
        assert response.status_code == 400
        assert "deduplication_key" in response.json()


async def test_patch_changes_what_a_local_calendar_has_and_no_other_platform_has_it(api):
    calendar_id = (await api.post("/api/v1/calendars", json=BASE)).json()["id"]
    path = f"/api/v1/calendars/{calendar_id}"
    response = await api.patch(path, json={"name": "New", "timezone": "Asia/Tokyo", "locale": "fr"})
    assert response.status_code == 200
    assert (response.json()["name"], response.json()["timezone"], response.json()["locale"]) == (
        "New",
        "Asia/Tokyo",
        "fr",
    )
    assert (await api.patch(path, json={"name": None})).json() == {"name": ["This field may not be null."]}
    assert (await api.patch(path, json={"owner_email": "b@example.com"})).status_code == 400
    assert "refresh_token" in (await api.patch(path, json={"refresh_token": "x"})).json()
    feed = await api.post(
        "/api/v1/calendars", json={"platform": "ics", "feed_url": "https://example.com/a.ics"}
    )
    response = await api.patch(f"/api/v1/calendars/{feed.json()['id']}", json={"name": "x", "locale": "fr"})
    assert response.status_code == 400
    assert sorted(response.json()) == ["locale", "name"]


async def test_a_mailbox_needs_the_integration(api):
    response = await api.post("/api/v1/calendars", json={**BASE, "sending_identity": OWN})
    assert response.status_code == 400
    assert "FEATURE_MESSAGES_INTEGRATION" in response.json()["sending_identity"][0]


async def test_the_owners_own_mailbox_is_the_default(mailboxes, api):
    identity = {"mailbox_id": OWN, "email": "Ada@Example.com", "name": "Ada"}
    assert (await api.post("/api/v1/calendars", json=BASE)).json()["sending_identity"] == identity
    none = await api.post("/api/v1/calendars", json={**BASE, "sending_identity": None})
    assert none.json()["sending_identity"] is None
    bob = await api.post("/api/v1/calendars", json={**BASE, "owner_email": "bob@example.com"})
    assert bob.json()["sending_identity"] is None


async def test_another_mailbox_can_be_chosen_where_the_owner_may_send(mailboxes, api):
    made = await api.post("/api/v1/calendars", json={**BASE, "sending_identity": TEAM})
    assert made.json()["sending_identity"] == {
        "mailbox_id": TEAM,
        "email": "team@example.com",
        "name": "Team",
    }
    path = f"/api/v1/calendars/{made.json()['id']}"
    changed = await api.patch(path, json={"sending_identity": OWN})
    assert changed.json()["sending_identity"]["mailbox_id"] == OWN
    for refused, word in ((READ_ONLY, "viewer"), ("99999999-1111-4111-8111-111111111111", "no access")):
        response = await api.patch(path, json={"sending_identity": refused})
        assert response.status_code == 400
        assert word in response.json()["sending_identity"][0]
    assert (await api.patch(path, json={"sending_identity": None})).json()["sending_identity"] is None


async def test_a_new_mailbox_becomes_the_organizer_of_the_events(mailboxes, app, api, settings, sessions):
    calendar_id = (await api.post("/api/v1/calendars", json=BASE)).json()["id"]
    times = {"start_time": "2031-07-14T09:00:00Z", "end_time": "2031-07-14T10:00:00Z"}
    made = await api.post(
        "/api/v1/calendar_events", json={"calendar_id": calendar_id, "name": "Analysis", **times}
    )
    assert made.json()["organizer"] == {"email": "Ada@Example.com", "name": "Ada"}
    await api.patch(f"/api/v1/calendars/{calendar_id}", json={"sending_identity": TEAM})
    await rewrite_due_events(sessions, settings)
    event = (await api.get(f"/api/v1/calendar_events/{made.json()['id']}")).json()
    assert event["organizer"] == {"email": "team@example.com", "name": "Team"}
    assert event["updated_at"] > made.json()["updated_at"]


async def test_an_outage_is_not_taken_for_no_mailbox(mailboxes, api):
    mailboxes.look_up_faults.append(Fault(500))
    response = await api.post("/api/v1/calendars", json=BASE)
    assert response.status_code == 502
    assert (await api.get("/api/v1/calendars")).json()["results"] == []


async def test_a_stored_response_needs_no_messages(mailboxes, api, monkeypatch):
    monkeypatch.setattr("app.mail.lasuite.mailboxes._CACHE_SECONDS", 0)
    headers = {"Idempotency-Key": "one"}
    first = await api.post("/api/v1/calendars", json=BASE, headers=headers)
    assert first.status_code == 201
    mailboxes.look_up_faults.extend([Fault(500), Fault(500)])
    other = {**BASE, "name": "Another"}
    assert (await api.post("/api/v1/calendars", json=other, headers=headers)).status_code == 409
    again = await api.post("/api/v1/calendars", json=BASE, headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())
    assert len(mailboxes.look_up_faults) == 2


async def test_another_projects_calendar_does_not_exist(mailboxes, api, other_api):
    calendar_id = (await api.post("/api/v1/calendars", json=BASE)).json()["id"]
    for body in ({"sending_identity": OWN}, {"name": "x"}):
        assert (await other_api.patch(f"/api/v1/calendars/{calendar_id}", json=body)).status_code == 404
