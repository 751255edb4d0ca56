"""Links that cannot be used to reply, or show an event that has changed since."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from app.invitations.links import RsvpTokens, Subject
from app.models import HostedEvent
from tests.factories import at
from tests.flows.rsvp.replies import create_series, guest_statuses, instances, post_mail, reply

pytestmark = pytest.mark.settings(smtp_url="smtp://127.0.0.1:9", email_from="calendar@example.net")


async def set_times(sessions, event, days: float):
    """Move the hosted event to end so many days ago."""
    async with sessions.begin() as session:
        end = datetime.now(UTC) - timedelta(days=days)
        await session.execute(
            update(HostedEvent)
            .where(HostedEvent.uid == event["ical_uid"])
            .values(start_time=end - timedelta(hours=1), end_time=end, ends_at=end)
        )


async def refused(browser, api, event, token, *, status_code, words):
    for method, kind in (("GET", "params"), ("POST", "data")):
        response = await browser.request(method, "/rsvp/", **{kind: {"token": token, "action": "accepted"}})
        assert response.status_code == status_code
        assert words in response.text
        assert "<form" not in response.text
    assert (await guest_statuses(api, event)).get("bob@example.org") in {None, "needs_action"}


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


async def test_an_expired_link_has_its_page_which_shows_nothing_of_the_event(
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
    assert (await guest_statuses(api, event))["bob@example.org"] == "needs_action"
    new = re.search(r'name="when" value="([^"]+)"', again.text)
    assert new is not None
    assert "recorded" in (await browser.post("/rsvp/", data={**form, "when": new[1]})).text
    assert (await guest_statuses(api, event))["bob@example.org"] == "accepted"


async def test_links_of_cancelled_instances_and_of_instances_of_a_cancelled_series(
    browser, api, settings, calendar_id
):
    series = await create_series(api, calendar_id, "FREQ=DAILY;COUNT=3")
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
    series = await create_series(api, calendar_id, "FREQ=DAILY;COUNT=2")
    rows = await api.get("/api/v1/calendar_events", params={"calendar_id": calendar_id})
    for row in rows.json()["results"]:
        assert (await api.delete(f"/api/v1/calendar_events/{row['id']}")).status_code == 200
    tokens = RsvpTokens(settings.fernet_keys)
    token = tokens.sign(Subject(calendar_id, series["ical_uid"], "", "bob@example.org"))
    await refused(browser, api, series, token, status_code=410, words="cancelled")
    assert await post_mail(api, reply(series)) == "ignored"
