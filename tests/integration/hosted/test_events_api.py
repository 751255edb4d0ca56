"""Events of local calendars over the API: fields, rules, instances, and which mails a change writes."""

import re
import time
from datetime import UTC, date, datetime, timedelta
from email import message_from_bytes
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from icalendar import Calendar as Ics
from sqlalchemy import select
from sqlalchemy import text as sql

from app.core.http import httpx
from app.hosted.components import EventComponent
from app.hosted.rules import fit_rule
from app.invitations.links import RsvpTokens, Subject
from app.models import InvitationMail, WebhookDelivery

pytestmark = pytest.mark.settings(
    smtp_url="smtp://127.0.0.1:9", email_from="Calendars <calendar@example.net>"
)

BOB = {"email": "bob@example.org", "name": "Bob"}
CY = {"email": "cy@example.org"}


def soon(days: int, hour: int = 9) -> datetime:
    day = datetime.now(UTC).replace(hour=hour, minute=0, second=0, microsecond=0)
    return day + timedelta(days=days)


def day_without_midnight(zone: str) -> date:
    """Next year's, where the clocks go from midnight to one."""
    days = (date(datetime.now(UTC).year + 1, 1, 1) + timedelta(days=n) for n in range(366))
    midnights = (datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)) for day in days)
    return next(at.date() for at in midnights if at.astimezone(UTC).astimezone(ZoneInfo(zone)).hour == 1)


def text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@pytest.fixture
async def calendar_id(api):
    body = {
        "platform": "local",
        "name": "Lectures",
        "owner_email": "ada@example.com",
        "timezone": "Europe/Paris",
    }
    return (await api.post("/api/v1/calendars", json=body)).json()["id"]


@pytest.fixture
def event(calendar_id):
    return {
        "calendar_id": calendar_id,
        "name": "Analysis",
        "start_time": text(soon(3)),
        "end_time": text(soon(3, 10)),
    }


@pytest.fixture
def series(event):
    return {**event, "timezone": "UTC", "recurrence": ["RRULE:FREQ=DAILY;COUNT=5"]}


async def create(api, body, **more):
    answer = await api.post("/api/v1/calendar_events", json={**body, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def rows_of(api, calendar_id, **query):
    answer = await api.get(
        "/api/v1/calendar_events",
        params={"calendar_id": calendar_id, "ordering": "start_time", "is_deleted": "false", **query},
    )
    return answer.json()["results"]


class Outbox:
    def __init__(self, sessions) -> None:
        self._sessions = sessions
        self._seen: set[str] = set()

    async def new(self) -> list[tuple[str, str, int]]:
        """(method, recipient, sequence) of the mails written since the last call."""
        return [(m.method, m.recipient_email, m.sequence) for m in await self.mails()]

    async def mails(self) -> list[InvitationMail]:
        async with self._sessions() as session:
            rows = await session.scalars(
                select(InvitationMail).order_by(InvitationMail.created_at, InvitationMail.id)
            )
            new = [row for row in rows if row.id not in self._seen]
        self._seen |= {row.id for row in new}
        return sorted(new, key=lambda row: (row.method, row.recipient_email))


def ics_of(mail) -> Any:
    for part in message_from_bytes(mail.mail or b"").walk():
        if part.get_content_type() == "text/calendar":
            return Ics.from_ical(part.get_payload(decode=True))  # type: ignore[arg-type] # bytes
    raise AssertionError("no calendar part")


def plain_text_of(mail) -> str:
    for part in message_from_bytes(mail.mail or b"").walk():
        if part.get_content_type() == "text/plain":
            return part.get_payload(decode=True).decode()  # type: ignore[union-attr] # bytes
    raise AssertionError("no text")


@pytest.fixture
def outbox(sessions):
    return Outbox(sessions)


@pytest.fixture
async def answer(app, settings):
    """Clicks "accepted" for a guest; `slot` names an instance."""
    tokens = RsvpTokens(settings.fernet_keys)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as browser:

        async def click(made, person, *, slot="", is_ok=True):
            subject = Subject(made["calendar_id"], made["ical_uid"], slot, person["email"])
            page = await browser.post("/rsvp/", data={"token": tokens.sign(subject), "action": "accepted"})
            assert page.status_code == 200 or not is_ok, page.text
            return page

        yield click


async def test_an_event_is_created_read_changed_and_deleted(api, event, calendar_id):
    made = await create(
        api,
        event,
        location="Room 1",
        description="Bring\nbooks",
        meeting_url="https://meet.google.com/abc-defg-hij",
        attendees=[{**BOB, "is_optional": True}, CY],
    )
    assert (made["name"], made["timezone"], made["location"]) == ("Analysis", "Europe/Paris", "Room 1")
    assert (made["start_time"], made["end_time"]) == (event["start_time"], event["end_time"])
    assert made["meeting_url"] == "https://meet.google.com/abc-defg-hij"
    assert made["meeting_platform"] == "google_meet"
    assert made["organizer"] == {"email": "ada@example.com", "name": None}
    assert made["response_status"] == "accepted"
    assert made["recurring_event_id"] is None
    assert [(a["email"], a["response_status"], a["is_optional"]) for a in made["attendees"]] == [
        ("bob@example.org", "needs_action", True),
        ("cy@example.org", "needs_action", False),
    ]
    path = f"/api/v1/calendar_events/{made['id']}"
    changed = (await api.patch(path, json={"start_time": text(soon(4, 15)), "name": "Algebra"})).json()
    assert changed["id"] == made["id"]
    assert (changed["start_time"], changed["end_time"]) == (text(soon(4, 15)), text(soon(4, 16)))
    assert changed["name"] == "Algebra"
    assert changed["updated_at"] > made["updated_at"]
    same = (await api.patch(path, json={"name": "Algebra"})).json()
    assert same["updated_at"] == changed["updated_at"]
    cleared = (await api.patch(path, json={"location": None, "attendees": []})).json()
    assert (cleared["location"], cleared["attendees"]) == (None, [])
    assert (await api.delete(path)).content == b""
    gone = (await api.get(path)).json()
    assert gone["is_deleted"] is True
    assert (await api.delete(path)).status_code == 200
    assert (await api.patch(path, json={"name": "x"})).status_code == 400
    assert await rows_of(api, calendar_id) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("end_time", text(soon(2))),
        ("end_time", text(soon(3))),
        ("end_time", text(soon(900))),
        ("start_time", "yesterday"),
        ("start_time", "9999-01-01T00:00:00Z"),
        ("timezone", "Europe/Atlantis"),
        ("name", "  "),
        ("name", "a\r\nATTENDEE:mailto:x@example.com"),
        ("name", "a\x00b"),
        ("name", "a\x85b"),
        ("name", "a\u2028b"),
        ("meeting_url", "javascript:alert(1)"),
        ("meeting_url", "https://x.example/a b"),
        ("meeting_url", "https://x.example/\x01y"),
        ("meeting_url", "https://x.example/\u202ey"),
        ("meeting_url", "https://[::1"),
        ("meeting_url", "https://x.example:99999999/"),
        ("attendees", [{"email": "bob"}]),
        ("attendees", [{"email": "bob@localhost"}]),
        ("attendees", [{"email": "bob@example.c1"}]),
        ("attendees", [{"email": "bob@192.0.2.1"}]),
        ("attendees", [{"email": "Bob <bob@example.org>"}]),
        ("attendees", [{"email": "bob@example.org,cy@example.org"}]),
        ("attendees", [{"email": "bob@example.org\r\nBcc: x@example.org"}]),
        ("attendees", [{"email": "bob@example.org", "name": "B\nob"}]),
        ("attendees", [{"email": "bob@example.org"}, {"email": "BOB@example.org"}]),
        ("attendees", [{"email": f"a{n}@example.org"} for n in range(501)]),
        ("attendees", [{"email": "bob@example.org", "role": "chair"}]),
        ("recurrence", ["FREQ=DAILY"]),
        ("recurrence", ["RRULE:FREQ=SECONDLY"]),
        ("recurrence", ["RRULE:FREQ=DAILY;BYHOUR=1,2"]),
        ("recurrence", ["RRULE:FREQ=DAILY;COUNT=100000"]),
        ("recurrence", ["RRULE:FREQ=DAILY;COUNT=2;UNTIL=20300101"]),
        ("recurrence", ["RRULE:FREQ=DAILY;UNTIL=19990101"]),
        ("recurrence", ["RRULE:FREQ=DAILY;UNTIL=99991231T235959Z"]),
        ("recurrence", ["RRULE:FREQ=DAILY;INTERVAL=99999999999"]),
        ("recurrence", ["RRULE:FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30"]),
        ("recurrence", ["RRULE:FREQ=DAILY\r\nATTENDEE:x"]),
        ("recurrence", ["RRULE:FREQ=DAILY;BYMONTH=1,2,3,4,5,6,7,8,9,10,11,12,13"]),
        ("recurrence", ["RRULE:FREQ=MONTHLY;BYMONTHDAY=" + ",".join(map(str, range(1, 33)))]),
        ("recurrence", ["RRULE:FREQ=WEEKLY;BYDAY=1MO,1TU,1WE,1TH,1FR,1SA,1SU"]),
        ("recurrence", ["RRULE:FREQ=WEEKLY;BYMONTHDAY=" + ",".join(map(str, range(1, 32)))]),
        ("recurrence", ["RRULE:FREQ=DAILY;BYYEARDAY=" + ",".join(map(str, range(1, 367)))]),
        ("recurrence", ["RRULE:FREQ=DAILY;BYSETPOS=1"]),
        ("recurrence", ["RRULE:FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR,SA,SU,54MO"]),
        ("recurrence", ["RRULE:FREQ=YEARLY;BYYEARDAY=" + ",".join(map(str, range(368)))]),
        ("recurrence", ["RRULE:FREQ=DAILY", "EXDATE:20300101T000000Z"]),
        ("colour", "red"),
    ],
)
async def test_a_wrong_field_is_refused_by_name_and_nothing_is_written(api, event, outbox, field, value):
    answer = await api.post("/api/v1/calendar_events", json={**event, "attendees": [CY], field: value})
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == [field]
    assert await outbox.new() == []
    assert await rows_of(api, event["calendar_id"]) == []


async def test_500_attendees_are_taken(api, event, outbox):
    await create(api, event, attendees=[{"email": f"a{n}@example.org"} for n in range(500)])
    assert len(await outbox.new()) == 500


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
    answer = await api.post("/api/v1/calendar_events", json={**event, **same_day})
    assert "exclusive" in answer.json()["end_time"][0]


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
    answer = await api.patch(path, json={"timezone": "America/New_York", "end_time": "2031-07-17"})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["start_time"][:13], answer.json()["end_time"][:13]) == (
        "2031-07-14T04",
        "2031-07-17T04",
    )


async def test_an_event_in_the_hour_that_comes_twice_keeps_its_length(api, event):
    # In Paris from 02:45, before the clocks go back, to 02:15 after it.
    made = await create(
        api, {**event, "start_time": "2027-10-31T00:45:00Z", "end_time": "2027-10-31T01:15:00Z"}
    )
    path = f"/api/v1/calendar_events/{made['id']}"
    moved = (await api.patch(path, json={"start_time": "2027-10-01T00:45:00Z"})).json()
    assert moved["end_time"] == "2027-10-01T01:15:00.000000Z"


async def test_a_post_with_an_idempotency_key_makes_one_event(api, event, calendar_id, outbox):
    headers = {"Idempotency-Key": "k1"}
    body = {**event, "attendees": [BOB]}
    first = await api.post("/api/v1/calendar_events", json=body, headers=headers)
    second = await api.post("/api/v1/calendar_events", json=body, headers=headers)
    assert first.json() == second.json()
    assert len(await rows_of(api, calendar_id)) == 1
    assert len(await outbox.new()) == 1


async def test_other_projects_and_other_platforms_are_refused(api, other_api, event):
    made = await create(api, event)
    path = f"/api/v1/calendar_events/{made['id']}"
    assert (await other_api.post("/api/v1/calendar_events", json=event)).status_code == 404
    assert (await other_api.patch(path, json={"name": "x"})).status_code == 404
    assert (await other_api.delete(path)).status_code == 404
    feed = await api.post(
        "/api/v1/calendars", json={"platform": "ics", "feed_url": "https://example.com/a.ics"}
    )
    answer = await api.post("/api/v1/calendar_events", json={**event, "calendar_id": feed.json()["id"]})
    assert answer.status_code == 400
    assert "read-only" in answer.json()["calendar_id"][0]


# -- series -------------------------------------------------------------------------------------------------


async def test_a_series_is_listed_as_instances_with_stable_ids(api, series, calendar_id):
    made = await create(api, series)
    rows = await rows_of(api, calendar_id)
    assert [row["start_time"] for row in rows] == [text(soon(3 + n)) for n in range(5)]
    assert made["id"] == rows[0]["id"]
    assert {row["recurring_event_id"] for row in rows} == {made["ical_uid"]}
    assert rows[1]["platform_uuid"] == f"{made['ical_uid']}_{soon(4):%Y%m%dT%H%M%SZ}"
    assert [row["original_start_time"] for row in rows] == [row["start_time"] for row in rows]


async def test_a_series_stays_at_its_hour_when_the_clocks_change(api, calendar_id, settings):
    settings.calendar_sync_window_future_days = 800
    body = {
        "calendar_id": calendar_id,
        "name": "Weekly",
        "start_time": f"{datetime.now(UTC).year + 1}-01-04T09:00:00Z",
        "end_time": f"{datetime.now(UTC).year + 1}-01-04T10:00:00Z",
        "recurrence": ["RRULE:FREQ=MONTHLY;COUNT=7"],
    }
    await create(api, body)
    hours = {row["start_time"][11:16] for row in await rows_of(api, calendar_id)}
    assert hours == {"09:00", "08:00"}


async def test_a_series_far_ahead_has_its_first_instance(api, series, calendar_id):
    far = {"start_time": text(soon(300)), "end_time": text(soon(300, 10))}
    await create(api, {**series, **far})
    assert [row["start_time"] for row in await rows_of(api, calendar_id)] == [text(soon(300))]


async def test_the_next_instance_of_a_series_far_ahead_is_listed(api, series, calendar_id):
    far = {"start_time": text(soon(300)), "end_time": text(soon(300, 10))}
    made = await create(api, {**series, **far})
    for n in range(1, 5):
        assert (await api.delete(f"/api/v1/calendar_events/{made['id']}")).status_code == 200
        (made,) = await rows_of(api, calendar_id)
        assert made["start_time"] == text(soon(300 + n))
    assert (await api.delete(f"/api/v1/calendar_events/{made['id']}")).status_code == 200
    assert await rows_of(api, calendar_id) == []


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


async def test_a_series_that_is_over_is_refused(api, series):
    past = {"start_time": text(soon(-300)), "end_time": text(soon(-300, 10))}
    answer = await api.post("/api/v1/calendar_events", json={**series, **past})
    assert list(answer.json()) == ["recurrence"]


def test_a_rule_that_never_matches_is_found_out_soon():
    at = datetime(2026, 11, 24, 9, tzinfo=UTC)
    component = EventComponent(uid="u", name="n", start=at, end=at + timedelta(hours=1), timezone="UTC")
    started = time.process_time()
    with pytest.raises(ValueError, match="occurrence of its own rule"):
        fit_rule("FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30", component)
    assert time.process_time() - started < 1


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


async def test_the_links_in_the_mail_of_an_instance_answer_it_alone(
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
    # Whoever is invited later is not told of the cancelled one.
    await api.patch(f"/api/v1/calendar_events/{rows[0]['id']}?scope=series", json={"attendees": [BOB, CY]})
    (mail,) = await outbox.mails()
    (vevent,) = ics_of(mail).walk("VEVENT")
    assert (mail.method, mail.recipient_email) == ("REQUEST", "cy@example.org")
    assert vevent["EXDATE"].dts[0].dt.astimezone(UTC) == soon(4)
    assert str(vevent["RRULE"].to_ical().decode()) == "FREQ=DAILY;COUNT=5"


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
    answer = await api.patch(path, json={"start_time": text(soon(5, 15))})
    assert answer.status_code == 200, answer.text
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


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (
            "UNTIL=99991231T235959Z",
            "UNTIL may be in the year 2199 at the latest; a series without it has no end.",
        ),
        ("INTERVAL=99999999999", "INTERVAL must be a number from 1 to 1000."),
    ],
)
async def test_a_refused_rule_says_what_would_do(api, event, part, sentence):
    body = {**event, "recurrence": [f"RRULE:FREQ=DAILY;{part}"]}
    answer = await api.post("/api/v1/calendar_events", json=body)
    assert answer.json() == {"recurrence": [sentence]}


async def test_times_are_whole_seconds_as_in_icalendar(api, series, calendar_id):
    made = await create(api, {**series, "start_time": text(soon(3).replace(microsecond=250_000))})
    assert made["start_time"] == text(soon(3))
    assert len(await rows_of(api, calendar_id)) == 5


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


async def test_the_answer_is_the_instance_that_was_named_where_it_is_now(api, series, calendar_id):
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


async def test_recurrence_id_has_the_form_of_the_series_whatever_the_instance_is_now(
    api, series, calendar_id, outbox
):
    await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    days = {"start_time": f"{soon(3):%Y-%m-%d}", "end_time": f"{soon(4):%Y-%m-%d}", "is_all_day": True}
    made = await create(api, {**series, **days, "timezone": "Europe/Paris"}, attendees=[BOB])
    await outbox.new()

    async def recurrence_id(event_id, **body):
        answer = await api.patch(f"/api/v1/calendar_events/{event_id}", json=body)
        assert answer.status_code == 200, answer.text
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
    told = {(mail.method, mail.recipient_email, mail.recurrence_id) for mail in await outbox.mails()}
    assert told == {
        ("CANCEL", CY["email"], None),  # of the series, and so of its instances
        ("REQUEST", eve["email"], None),
        ("REQUEST", eve["email"], soon(4)),
    }
    # Who is invited to the series from now on is not told that the instance is off.
    await outbox.new()
    moved = {"start_time": text(soon(3, 15)), "attendees": [BOB, eve, dan]}
    assert (await api.patch(path, json=moved)).status_code == 200
    assert {mail[0] for mail in await outbox.new()} == {"REQUEST"}


async def test_a_series_can_be_deleted_by_an_instance_that_was_deleted(api, series, calendar_id, outbox):
    await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    path = f"/api/v1/calendar_events/{rows[1]['id']}"
    for again in range(2):
        assert (await api.delete(path)).status_code == 200
        assert len(await rows_of(api, calendar_id)) == 4, again
    await outbox.new()
    for _ in range(2):
        assert (await api.delete(f"{path}?scope=series")).status_code == 200
    assert await rows_of(api, calendar_id) == []
    assert await outbox.new() == [("CANCEL", "bob@example.org", 2)]


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


async def test_an_event_becomes_a_series_and_a_series_one_event(api, event, calendar_id, settings, outbox):
    settings.calendar_sync_window_past_days = 30
    times = {"start_time": text(soon(-10)), "end_time": text(soon(-10, 10))}
    made = await create(api, {**event, **times}, attendees=[BOB])
    path = f"/api/v1/calendar_events/{made['id']}"
    first = (await api.patch(path, json={"recurrence": ["RRULE:FREQ=DAILY;COUNT=20"]})).json()
    assert (first["start_time"], first["recurring_event_id"]) == (made["start_time"], made["ical_uid"])
    rows = await rows_of(api, calendar_id)
    assert len(rows) == 20
    assert made["id"] not in {row["id"] for row in rows}
    settings.calendar_sync_window_past_days = 1
    path = f"/api/v1/calendar_events/{rows[-1]['id']}?scope=series"
    one = (await api.patch(path, json={"recurrence": None, "start_time": text(soon(9))})).json()
    assert (one["id"], one["start_time"], one["recurring_event_id"]) == (made["id"], text(soon(9)), None)
    assert await rows_of(api, calendar_id) == [one]
    # Nobody was told of the event that was over.
    assert [mail[0::2] for mail in await outbox.new()] == [("REQUEST", 1), ("REQUEST", 2)]


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


async def test_deleting_the_series_cancels_all_with_one_mail(api, series, calendar_id, outbox):
    await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    await outbox.new()
    assert (await api.delete(f"/api/v1/calendar_events/{rows[3]['id']}?scope=series")).status_code == 200
    assert await rows_of(api, calendar_id) == []
    assert await outbox.new() == [("CANCEL", "bob@example.org", 1)]


async def test_guests_of_one_instance_are_told_when_it_goes_with_its_series(api, series, calendar_id, outbox):
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


# -- who gets a mail ----------------------------------------------------------------------------------------


async def test_only_those_who_are_affected_get_a_mail(api, event, outbox):
    ada = {"email": "ADA@example.com"}  # the organizer
    made = await create(api, event, attendees=[BOB, ada])
    assert await outbox.new() == [("REQUEST", "bob@example.org", 0)]
    path = f"/api/v1/calendar_events/{made['id']}"

    async def patch(**body):
        answer = await api.patch(path, json=body)
        assert answer.status_code == 200, answer.text
        return await outbox.new()

    assert await patch(name="Algebra", description="New") == [("REQUEST", "bob@example.org", 1)]
    assert await patch(attendees=[BOB, ada, CY]) == [("REQUEST", "cy@example.org", 2)]
    assert await patch(attendees=[{**BOB, "name": "Robert"}, ada, CY]) == []
    assert await patch(location="Room 2") == [
        ("REQUEST", "bob@example.org", 3),
        ("REQUEST", "cy@example.org", 3),
    ]
    assert await patch(attendees=[ada, CY]) == [("CANCEL", "bob@example.org", 4)]
    assert await patch(start_time=text(soon(3, 8)), send_invitations=False) == []
    assert await patch(end_time=text(soon(3, 11))) == [("REQUEST", "cy@example.org", 6)]
    assert await patch(meeting_url="https://meet.example.org/a") == [("REQUEST", "cy@example.org", 7)]
    assert await patch(description="Newer") == [("REQUEST", "cy@example.org", 8)]
    assert await patch(name="Analysis", send_invitations=False) == []
    # Whoever was called off is told more than that.
    assert await patch(attendees=[ada, BOB, CY]) == [("REQUEST", "bob@example.org", 10)]
    await patch(attendees=[ada, CY])
    await api.delete(path)
    (mail,) = await outbox.mails()
    assert (mail.method, mail.recipient_email, mail.sequence) == ("CANCEL", "cy@example.org", 12)
    (vevent,) = ics_of(mail).walk("VEVENT")
    assert str(vevent["STATUS"]) == "CANCELLED"


async def test_a_change_of_the_series_mails_no_more_than_what_is_news(
    api, series, calendar_id, outbox, answer
):
    """Nothing of instances that are over, nor to others of those that somebody answered by themselves."""
    first = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    starts = [first + timedelta(days=n) for n in range(5)]
    times = {"start_time": text(first), "end_time": text(first + timedelta(hours=1))}
    made = await create(api, {**series, **times}, attendees=[BOB, CY])
    rows = await rows_of(api, calendar_id)
    await api.patch(f"/api/v1/calendar_events/{rows[0]['id']}", json={"name": "Exam"})
    await api.patch(f"/api/v1/calendar_events/{rows[1]['id']}", json={"name": "Exam"})
    for row in rows[2:4]:
        await answer(made, BOB, slot=row["platform_uuid"].rpartition("_")[2])
    await outbox.new()
    path = f"/api/v1/calendar_events/{rows[2]['id']}?scope=series"
    assert (await api.patch(path, json={"location": "Room 9"})).status_code == 200
    assert {row["location"] for row in await rows_of(api, calendar_id)} == {"Room 9"}
    told = {(mail.recipient_email, mail.recurrence_id) for mail in await outbox.mails()}
    assert told == {
        ("bob@example.org", None),
        ("cy@example.org", None),
        ("bob@example.org", starts[1]),
        ("cy@example.org", starts[1]),
        ("bob@example.org", starts[2]),
        ("bob@example.org", starts[3]),
    }


async def test_guests_of_an_instance_that_is_over_are_not_told_that_it_goes(api, series, calendar_id, outbox):
    first = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    times = {"start_time": text(first), "end_time": text(first + timedelta(hours=1))}
    made = await create(api, {**series, **times}, attendees=[BOB])
    await api.patch(f"/api/v1/calendar_events/{made['id']}", json={"attendees": [BOB, CY]})
    await outbox.new()
    assert (await api.delete(f"/api/v1/calendar_events/{made['id']}?scope=series")).status_code == 200
    assert [mail[:2] for mail in await outbox.new()] == [("CANCEL", "bob@example.org")]


async def test_an_answer_to_the_series_reaches_instances_that_were_changed(api, series, calendar_id, answer):
    made = await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    await api.patch(f"/api/v1/calendar_events/{rows[2]['id']}", json={"name": "Exam"})
    await answer(made, BOB)
    after = await rows_of(api, calendar_id)
    assert [row["attendees"][0]["response_status"] for row in after] == ["accepted"] * 5


async def test_a_series_without_an_instance_is_off(api, series, calendar_id, answer):
    made = await create(api, series, attendees=[BOB])
    for row in await rows_of(api, calendar_id):
        assert (await api.delete(f"/api/v1/calendar_events/{row['id']}")).status_code == 200
    assert (await answer(made, BOB, is_ok=False)).status_code == 410


async def test_another_zone_is_news_for_a_series_only(api, event, series, outbox):
    for body, told in ((event, []), (series, [("REQUEST", "bob@example.org", 1)])):
        made = await create(api, body, attendees=[BOB])
        await outbox.new()
        path = f"/api/v1/calendar_events/{made['id']}?scope=series"
        changed = (await api.patch(path, json={"timezone": "America/New_York"})).json()
        assert (changed["timezone"], changed["start_time"]) == ("America/New_York", made["start_time"])
        assert await outbox.new() == told


async def test_an_uninvited_guest_does_not_read_that_the_event_is_off(api, event, outbox):
    made = await create(api, event, attendees=[BOB, CY])
    await outbox.new()
    await api.patch(f"/api/v1/calendar_events/{made['id']}", json={"attendees": [CY]})
    (mail,) = await outbox.mails()
    (vevent,) = ics_of(mail).walk("VEVENT")
    assert str(vevent.get("STATUS", "")) != "CANCELLED"


async def test_who_stays_in_the_list_keeps_name_and_answer(api, event, outbox, answer):
    made = await create(api, event, attendees=[{**BOB, "is_optional": True}])
    await answer(made, BOB)
    await outbox.new()
    path = f"/api/v1/calendar_events/{made['id']}"
    changed = (await api.patch(path, json={"attendees": [{"email": "BOB@Example.org"}, CY]})).json()
    told = [(one["name"], one["response_status"], one["is_optional"]) for one in changed["attendees"]]
    assert told == [("Bob", "accepted", True), (None, "needs_action", False)]
    assert await outbox.new() == [("REQUEST", "cy@example.org", 1)]


async def test_a_delete_without_invitations_tells_nobody(api, event, outbox):
    made = await create(api, event, attendees=[BOB])
    await outbox.new()
    await api.delete(f"/api/v1/calendar_events/{made['id']}?send_invitations=false")
    assert await outbox.new() == []


@pytest.mark.settings(smtp_url=None, email_from=None)
async def test_without_a_way_out_invitations_are_refused_and_nothing_is_written(api, event, calendar_id):
    answer = await api.post("/api/v1/calendar_events", json={**event, "attendees": [BOB]})
    assert answer.status_code == 400
    assert "SMTP_URL" in answer.json()["send_invitations"][0]
    assert await rows_of(api, calendar_id) == []
    await create(api, event)
    await create(api, event, attendees=[BOB], send_invitations=False)


# -- what guests' calendars need ----------------------------------------------------------------------------


def vevents_of(mail) -> list[Any]:
    return list(ics_of(mail).walk("VEVENT"))


async def change(api, row, *, scope="instance", **body):
    answer = await api.patch(f"/api/v1/calendar_events/{row['id']}?scope={scope}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def in_order(outbox) -> list[InvitationMail]:
    return sorted(await outbox.mails(), key=lambda mail: mail.position)


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
    api, event, calendar_id, outbox, answer, sessions, rule, longer, days
):
    made = await create(api, event, timezone="UTC", recurrence=[f"RRULE:{rule}"], attendees=[BOB, CY])
    rows = await rows_of(api, calendar_id)
    await api.delete(f"/api/v1/calendar_events/{rows[1]['id']}")
    await change(api, rows[2], start_time=text(soon(5, 14)), location="Room 2")
    await answer(made, BOB)
    await outbox.new()
    webhook = {"url": "https://127.0.0.1:9/", "triggers": ["calendar.events_update"], "include_events": True}
    await api.post("/api/v1/webhooks", json=webhook)
    before = {row["id"] for row in await rows_of(api, calendar_id)}
    await change(api, rows[0], scope="series", recurrence=[f"RRULE:{longer}"])
    after = await rows_of(api, calendar_id)
    starts = {day: text(soon(3 + day)) for day in days} | {2: text(soon(5, 14))}
    assert [row["start_time"] for row in after] == sorted(starts.values())
    assert [row["id"] for row in after if row["id"] in before] == [row["id"] for row in after][: len(before)]
    # Nobody is asked again, and no bot or webhook sees a kept instance go.
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
    api, series, calendar_id, outbox, answer
):
    made = await create(api, series, attendees=[BOB])
    rows = await rows_of(api, calendar_id)
    await change(api, rows[1], location="Room 2")
    await change(api, rows[2], location="Room 3")
    await api.delete(f"/api/v1/calendar_events/{rows[4]['id']}")
    await answer(made, BOB)
    await answer(made, BOB, slot=f"{soon(5):%Y%m%dT%H%M%SZ}")
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


async def test_nobody_is_told_of_what_is_over(api, event, series, outbox):
    past = {"start_time": text(soon(-3)), "end_time": text(soon(-3, 10))}
    made = await create(api, {**event, **past}, attendees=[BOB])
    await change(api, made, name="Algebra")
    assert await outbox.new() == []
    moved = await change(api, made, start_time=text(soon(3)))
    assert [mail[0] for mail in await outbox.new()] == ["REQUEST"]
    await change(api, moved, start_time=text(soon(-3)))
    assert [mail[0] for mail in await outbox.new()] == ["REQUEST"]  # it is not where they have it any more
    assert (await api.delete(f"/api/v1/calendar_events/{made['id']}")).status_code == 200
    assert await outbox.new() == []
    times = {"start_time": text(soon(-2)), "end_time": text(soon(-2, 10))}
    made = await create(api, {**series, **times}, attendees=[BOB])
    assert [mail[0] for mail in await outbox.new()] == ["REQUEST"]
    past_one = (await rows_of(api, event["calendar_id"]))[0]
    assert (await api.delete(f"/api/v1/calendar_events/{past_one['id']}")).status_code == 200
    assert await outbox.new() == []


async def test_a_series_request_is_followed_by_its_changed_instances(api, series, calendar_id, outbox):
    await create(api, series, attendees=[BOB, CY])
    rows = await rows_of(api, calendar_id)
    for place in ("Room 2", "Room 3"):
        await change(api, rows[1], location=place)
    await change(api, rows[3], attendees=[CY])
    await outbox.new()
    await change(api, rows[0], scope="series", location="Room 9")
    told = [(m.recipient_email[0], m.recurrence_id, m.sequence) for m in await in_order(outbox)]
    assert told == [
        ("b", None, 4),
        ("c", None, 4),
        ("b", soon(4), 5),
        ("c", soon(4), 5),
        ("c", soon(6), 5),
    ]
    # Somebody new is told of the series no less than the others, and of the instance more.
    await change(api, rows[0], scope="series", attendees=[BOB, CY, {"email": "dan@example.org"}])
    told = [(m.recipient_email[0], m.recurrence_id, m.sequence) for m in await in_order(outbox)]
    assert told == [("d", None, 6), ("d", soon(4), 7), ("d", soon(6), 7)]


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


async def test_many_changed_instances_are_told_in_the_mail_of_their_series(api, event, calendar_id, outbox):
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
    """Entries of instances had lower numbers than their series once."""
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
