"""The RSVP page in a real Chromium: one click replies, by mouse and by keyboard, and fits a phone."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.invitations.links import RsvpTokens, Subject
from tests.browser.conftest import NEEDS_CHROMIUM

pytestmark = [pytest.mark.browser, NEEDS_CHROMIUM]


@pytest.fixture
async def event(api) -> dict[str, Any]:
    calendar = {
        "platform": "local",
        "name": "Lectures",
        "owner_email": "ada@example.com",
        "owner_name": "Ada Lovelace",
        "timezone": "Europe/Paris",
    }
    calendar_id = (await api.post("/api/v1/calendars", json=calendar)).json()["id"]
    start = (datetime.now(UTC) + timedelta(days=3)).replace(minute=0, second=0, microsecond=0)
    body = {
        "calendar_id": calendar_id,
        "name": "Notes on the Analytical Engine, read aloud and discussed at length",
        "start_time": start.isoformat(),
        "end_time": (start + timedelta(hours=1)).isoformat(),
        "location": "Room 1",
        "attendees": [{"email": "bob@example.org", "name": "Bob"}],
        "send_invitations": False,
    }
    made: dict[str, Any] = (await api.post("/api/v1/calendar_events", json=body)).json()
    return made


@pytest.fixture
def link(base_url, settings, event) -> str:
    subject = Subject(event["calendar_id"], event["ical_uid"], "", "bob@example.org")
    return RsvpTokens(settings.fernet_keys).links(subject, base_url)[0]


async def status_of(api, event) -> str:
    found = (await api.get(f"/api/v1/calendar_events/{event['id']}")).json()
    return str(found["attendees"][0]["response_status"])


@pytest.mark.parametrize("language", ["en", "fr"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_one_click_replies_on_a_phone(browser, api, event, link, shots, language, scheme):
    context = await browser.new_context(
        viewport={"width": 360, "height": 740}, locale=language, color_scheme=scheme
    )
    page = await context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    await page.goto(link)
    await page.screenshot(path=shots / f"rsvp-ask-{language}-{scheme}.png")
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360
    assert await page.evaluate("getComputedStyle(document.querySelector('button.main')).minHeight") == "48px"
    assert await status_of(api, event) == "needs_action"
    await page.click("button.main")
    await page.wait_for_selector("[role=status]")
    await page.screenshot(path=shots / f"rsvp-done-{language}-{scheme}.png")
    assert await status_of(api, event) == "accepted"
    assert problems == []  # nothing that the content security policy refused
    await context.close()


async def test_the_keyboard_is_enough_and_no_script_is_needed(browser, api, event, link):
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(link)
    await page.keyboard.press("Tab")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await page.wait_for_selector("[role=status]")
    assert await status_of(api, event) != "needs_action"
    await context.close()


async def test_a_visit_alone_changes_nothing(browser, api, event, link):
    page = await browser.new_page()
    await page.goto(link)
    await page.wait_for_load_state("networkidle")
    assert await status_of(api, event) == "needs_action"


async def test_an_event_that_moved_while_the_page_was_open_is_asked_about_again(
    browser, api, event, link, shots
):
    page = await browser.new_page(viewport={"width": 360, "height": 740})
    await page.goto(link)
    later = datetime.fromisoformat(event["start_time"]) + timedelta(days=1)
    change = {"start_time": later.isoformat(), "send_invitations": False}
    moved = await api.patch(f"/api/v1/calendar_events/{event['id']}", json=change)
    assert moved.status_code == 200
    await page.click("button.main")
    await page.wait_for_selector("[role=status]")
    assert "moved in the meantime" in await page.inner_text("[role=status]")
    await page.screenshot(path=shots / "rsvp-moved.png")
    assert await status_of(api, event) == "needs_action"
    await page.click("button.main")
    await page.wait_for_selector("text=Thank you")
    assert await status_of(api, event) == "accepted"


async def test_the_error_page_is_readable(browser, base_url, shots):
    page = await browser.new_page(viewport={"width": 360, "height": 740})
    response = await page.goto(f"{base_url}/rsvp/?token=x&action=accepted")
    assert response.status == 400
    assert await page.inner_text("h1") == "This link does not work"
    await page.screenshot(path=shots / "rsvp-bad-link.png")
