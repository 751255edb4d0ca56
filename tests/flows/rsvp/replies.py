"""Replies that guests mail, and what replies change: statuses, webhooks and mails to the organizer."""

from datetime import UTC, datetime, timedelta

import orjson
from sqlalchemy import select

from app.models import InvitationMail, WebhookDelivery
from tests.factories import at


async def create_series(api, calendar_id: str, rule: str) -> dict:
    """Create a recurring event that Bob is invited to; its first instance is in two days."""
    body = {
        "calendar_id": calendar_id,
        "name": "Daily",
        "start_time": at(2),
        "end_time": at(2.1),
        "recurrence": [f"RRULE:{rule}"],
        "attendees": [{"email": "bob@example.org"}],
    }
    series: dict = (await api.post("/api/v1/calendar_events", json=body)).json()
    return series


async def guest_statuses(api, event) -> dict[str, str]:
    found = (await api.get(f"/api/v1/calendar_events/{event['id']}")).json()
    return {person["email"]: person["response_status"] for person in found["attendees"]}


async def instances(api, calendar_id) -> list[dict]:
    """The events of the calendar, by start."""
    query = {"calendar_id": calendar_id, "ordering": "start_time"}
    found: list[dict] = (await api.get("/api/v1/calendar_events", params=query)).json()["results"]
    return found


async def instance_statuses(api, calendar_id) -> list[str]:
    """The participation status of the first attendee of each event."""
    return [row["attendees"][0]["response_status"] for row in await instances(api, calendar_id)]


async def replies(sessions) -> list[InvitationMail]:
    async with sessions() as session:
        rows = await session.scalars(
            select(InvitationMail).where(InvitationMail.method == "REPLY").order_by(InvitationMail.created_at)
        )
        return list(rows)


async def rsvp_webhooks(sessions) -> list[dict]:
    async with sessions() as session:
        rows = await session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.created_at))
        return [orjson.loads(row.body) for row in rows if row.trigger == "event.rsvp_update"]


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
    response = await api.post("/api/v1/rsvp/inbound", content=mail, headers=all_headers)
    assert response.status_code == 200, response.text
    return response.json()["status"]
