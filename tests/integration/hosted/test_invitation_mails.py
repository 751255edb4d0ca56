"""Which guests get a mail when an event changes, and what it says."""

import pytest

from tests.integration.hosted.events_api import BOB, CY, change, create, rows_of, soon, text
from tests.integration.hosted.mails import ics_of

pytestmark = pytest.mark.settings(
    smtp_url="smtp://127.0.0.1:9", email_from="Calendars <calendar@example.net>"
)


async def test_only_those_who_are_affected_get_a_mail(api, event, outbox):
    ada = {"email": "ADA@example.com"}  # the organizer
    made = await create(api, event, attendees=[BOB, ada])
    assert await outbox.new() == [("REQUEST", "bob@example.org", 0)]
    path = f"/api/v1/calendar_events/{made['id']}"

    async def patch(**body):
        response = await api.patch(path, json=body)
        assert response.status_code == 200, response.text
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
    # A guest whose invitation was cancelled gets a whole invitation again.
    assert await patch(attendees=[ada, BOB, CY]) == [("REQUEST", "bob@example.org", 10)]
    await patch(attendees=[ada, CY])
    await api.delete(path)
    (mail,) = await outbox.mails()
    assert (mail.method, mail.recipient_email, mail.sequence) == ("CANCEL", "cy@example.org", 12)
    (vevent,) = ics_of(mail).walk("VEVENT")
    assert str(vevent["STATUS"]) == "CANCELLED"


async def test_an_uninvited_guest_does_not_read_that_the_event_is_off(api, event, outbox):
    made = await create(api, event, attendees=[BOB, CY])
    await outbox.new()
    await api.patch(f"/api/v1/calendar_events/{made['id']}", json={"attendees": [CY]})
    (mail,) = await outbox.mails()
    (vevent,) = ics_of(mail).walk("VEVENT")
    assert str(vevent.get("STATUS", "")) != "CANCELLED"


async def test_who_stays_in_the_list_keeps_name_and_reply(api, event, outbox, reply):
    made = await create(api, event, attendees=[{**BOB, "is_optional": True}])
    await reply(made, BOB)
    await outbox.new()
    path = f"/api/v1/calendar_events/{made['id']}"
    changed = (await api.patch(path, json={"attendees": [{"email": "BOB@Example.org"}, CY]})).json()
    mailed = [(one["name"], one["response_status"], one["is_optional"]) for one in changed["attendees"]]
    assert mailed == [("Bob", "accepted", True), (None, "needs_action", False)]
    assert await outbox.new() == [("REQUEST", "cy@example.org", 1)]


async def test_a_delete_without_invitations_mails_no_guest(api, event, outbox):
    made = await create(api, event, attendees=[BOB])
    await outbox.new()
    await api.delete(f"/api/v1/calendar_events/{made['id']}?send_invitations=false")
    assert await outbox.new() == []


@pytest.mark.settings(smtp_url=None, email_from=None)
async def test_without_a_way_out_invitations_are_refused_and_nothing_is_written(api, event, calendar_id):
    response = await api.post("/api/v1/calendar_events", json={**event, "attendees": [BOB]})
    assert response.status_code == 400
    assert "SMTP_URL" in response.json()["send_invitations"][0]
    assert await rows_of(api, calendar_id) == []
    await create(api, event)
    await create(api, event, attendees=[BOB], send_invitations=False)


async def test_no_guest_is_notified_of_what_is_over(api, event, series, outbox):
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
