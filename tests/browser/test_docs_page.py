"""/docs in a Chromium that reaches this server alone: it works without internet, and takes the key as printed."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.browser.conftest import NEEDS_CHROMIUM

pytestmark = [pytest.mark.browser, NEEDS_CHROMIUM]


class Watched:
    """What a page asked for, and what it complained about."""

    def __init__(self, page: Any) -> None:
        self.hosts: set[str] = set()
        self.complaints: list[str] = []
        page.on("request", lambda request: self._note(request.url))
        page.on("console", self._read)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("requestfailed", lambda request: self.complaints.append(request.url))

    def _note(self, url: str) -> None:
        if not url.startswith("data:"):
            self.hosts.add(urlsplit(url).netloc)

    def _read(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)


@pytest.mark.parametrize("width", [1200, 400])
async def test_the_documentation_works_without_internet(
    *, browser: Any, base_url: str, project: Any, api: Any, shots: Path, width: int
) -> None:
    calendar = {"platform": "local", "name": "Lectures", "owner_email": "ada@example.com"}
    made = (await api.post("/api/v1/calendars", json=calendar)).json()
    page = await browser.new_page(viewport={"width": width, "height": 900})
    watched = Watched(page)
    await page.goto(base_url)
    await page.wait_for_selector("#operations-tag-calendars")
    assert urlsplit(page.url).path == "/docs"
    assert await page.title() == "calbridge API"
    await page.screenshot(path=shots / f"docs-{width}.png")
    assert await page.evaluate("document.documentElement.scrollWidth") <= width

    await page.click("button.authorize")
    await page.fill("#auth-bearer-value", project.api_key)
    await page.click(".modal-ux .auth-container:has(#auth-bearer-value) button.authorize")
    await page.screenshot(path=shots / f"docs-authorize-{width}.png")
    await page.click(".modal-ux .auth-container:has-text('Bearer') button.btn-done >> nth=0")

    await page.click("#operations-tag-calendars")
    operation = page.locator("#operations-calendars-list_calendars")
    await operation.locator("button.opblock-summary-control").click()
    await operation.locator("button.try-out__btn").click()
    await operation.locator("button.execute").click()
    response = operation.locator(".live-responses-table .response").first
    await response.wait_for(timeout=10_000)
    assert (await response.locator(".response-col_status").inner_text()).strip().startswith("200")
    body = json.loads(await response.locator(".highlight-code code").inner_text())
    assert [one["id"] for one in body["results"]] == [made["id"]]
    await operation.scroll_into_view_if_needed()
    await page.screenshot(path=shots / f"docs-response-{width}.png")

    assert watched.hosts == {urlsplit(base_url).netloc}
    assert watched.complaints == []
    await page.close()


async def test_nothing_but_this_server_can_be_asked_by_the_page(browser: Any, base_url: str) -> None:
    """A script on the page can connect to this server only, by the content security policy."""
    page = await browser.new_page()
    await page.goto(f"{base_url}/docs")
    refused = await page.evaluate("""async () => {
        const seen = new Promise(done => document.addEventListener(
            "securitypolicyviolation", event => done(event.effectiveDirective)));
        fetch("https://example.com/").catch(() => null);
        return await seen;
    }""")
    assert refused == "connect-src"
    await page.close()
