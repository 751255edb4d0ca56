"""The reference application, end to end: browser, example, calbridge with a worker, and a fake Google, all over HTTP."""

import asyncio
import re
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from starlette.responses import PlainTextResponse

from app.core.clock import utcnow
from app.core.http import httpx
from app.main import create_app
from docs.example_app.main import Example, _log_failure
from docs.example_app.main import Settings as ExampleSettings
from docs.example_app.main import create_app as create_example
from docs.example_app.main import load_settings as load_example_settings
from tests.conftest import _lifespan as running
from tests.fakes.server import serve
from tests.flows.oauth.browser import disconnect


@dataclass
class World:
    """`browser` follows redirects between all servers, as a person's does."""

    fake: Any
    url: str
    calbridge: httpx.AsyncClient
    example: Any
    make_browser: Any
    browser: httpx.AsyncClient
    app: Any

    async def press(self, action, *, browser=None, **options):
        return await (browser or self.browser).post(f"{self.url}{action}", **options)

    async def page(self, browser=None):
        return (await (browser or self.browser).get(f"{self.url}/")).text

    async def page_with(self, text, *, without=None):
        """The page as soon as it has `text`."""
        async with asyncio.timeout(15):
            while True:
                page = await self.page()
                if (text is None or text in page) and (without is None or without not in page):
                    return page
                await asyncio.sleep(0.05)

    def add(self, name, *, hours, link=None):
        start = utcnow().replace(microsecond=0) + timedelta(hours=hours)
        fields = {"location": link} if link else {}
        return self.fake.add_event(start=start, end=start + timedelta(hours=1), summary=name, **fields)


class _Front:
    """Listens before the example exists, which needs its own address."""

    app: Any = None

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)


async def _quiet(sessions):
    """Until the worker has nothing to do: redis-py leaves a socket open when it is cancelled while connecting."""
    busy = text(
        "SELECT EXISTS (SELECT FROM calendars WHERE lease_token IS NOT NULL OR last_attempted_sync_at IS NULL) "
        "OR EXISTS (SELECT FROM webhook_deliveries WHERE status = 'pending')"
    )
    quiet = 0
    async with asyncio.timeout(15):
        while quiet < 3:
            async with sessions() as session:
                quiet = 0 if await session.scalar(busy) else quiet + 1
            await asyncio.sleep(0.05)


@pytest.fixture
async def world(google_settings, fake_google, sessions, project, worker, tmp_path):
    fake = fake_google[0]
    async with AsyncExitStack() as stack:
        google_settings.demo_feed_url = "http://127.0.0.1/"  # for the route; the address is known below
        app = create_app(google_settings)
        calbridge_url = await stack.enter_async_context(serve(app))
        google_settings.demo_feed_url = f"{calbridge_url}/demo/calendar.ics"
        google_settings.app_url = calbridge_url
        callback = f"{calbridge_url}/oauth/google/callback"
        fake.add_client(fake.client_id, fake.client_secret, redirect_uris=[callback])
        front = _Front()
        url = await stack.enter_async_context(serve(front, lifespan="off"))
        settings = ExampleSettings(
            calbridge_url=calbridge_url,
            api_key=project.api_key,
            own_url=url,
            database=str(tmp_path / "example.sqlite3"),
            clients={"google": (fake.client_id, fake.client_secret)},
        )
        front.app = create_example(settings)
        await stack.enter_async_context(running(front.app))
        await front.app.state.beginning

        async def make_browser():
            return await stack.enter_async_context(httpx.AsyncClient(follow_redirects=True, trust_env=False))

        headers = {"Authorization": f"Token {project.api_key}"}
        calbridge = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=f"{calbridge_url}/api/v1",
                headers=headers,
                trust_env=False,
                limits=httpx.Limits(keepalive_expiry=2),  # the server closes idle connections after 5 seconds
            )
        )
        made = World(fake, url, calbridge, front.app.state.example, make_browser, await make_browser(), app)
        await made.page()
        yield made
        await _quiet(sessions)


async def synced_events(world, count):
    """As soon as calbridge has so many."""
    async with asyncio.timeout(15):
        while len((await world.calbridge.get("/calendar_events")).json()["results"]) < count:
            await asyncio.sleep(0.05)


async def test_a_person_connects_sees_changes_sends_a_bot_and_is_disconnected(world):
    first = world.add("Weekly", hours=2, link="https://meet.google.com/abc-defg-hij")
    response = await world.press("/connect/google")
    assert str(response.url) == f"{world.url}/", response.text
    assert "ada@example.com: connected" in response.text
    page = await world.page_with("Weekly")  # brought by a webhook, without a click on Refresh

    # Changes come by webhook too.
    world.add("Planning", hours=3)
    world.fake.update_event(first, summary="Weekly, renamed")
    calendar_id = world.example.rows("SELECT id FROM calendars")[0]["id"]
    await world.calbridge.post(f"/calendars/{calendar_id}/sync")
    page = await world.page_with("Planning")
    assert "Weekly, renamed" in page

    # A bot, once, however often the button is pressed.
    [event_id] = re.findall(r'action="/events/(evt_\w+)/bot"', page)
    for _ in range(2):
        page = (await world.press(f"/events/{event_id}/bot")).text
    bots = (await world.calbridge.get("/bots")).json()["results"]
    assert [bot["calendar_event_id"] for bot in bots] == [event_id]
    assert "Take the bot back" in page
    assert "Send a bot" in (await world.press(f"/events/{event_id}/no_bot")).text
    assert (await world.calbridge.get("/bots")).json()["results"] == []

    # The event goes.
    world.fake.delete_event(first)
    await world.calbridge.post(f"/calendars/{calendar_id}/sync")
    await world.page_with(None, without="Weekly")

    # The person takes the grant back; later they connect again, and nothing is doubled.
    for token in list(world.fake._refresh_tokens):
        world.fake.revoke_grant(token)
    await world.calbridge.post(f"/calendars/{calendar_id}/sync")
    await world.page_with("disconnected")
    response = await world.press("/connect/google")
    assert "ada@example.com: connected" in response.text
    assert len((await world.calbridge.get("/calendars")).json()["results"]) == 1


async def test_a_refusal_is_shown_to_the_person(world):
    world.fake.denies_consent = True
    response = await world.press("/connect/google")
    assert response.status_code == 400
    assert "The permission to read the calendar was not given" in response.text


async def test_a_connection_that_another_browser_began_is_not_taken_over(world, sessions):
    """Session fixation: the attacker begins, and has the victim follow the link."""
    world.add("Secret of the victim", hours=2)
    attacker, victim = world.browser, await world.make_browser()
    await world.page(victim)
    link = (await world.press("/connect/google", follow_redirects=False)).headers["location"]
    response = await victim.get(link)
    assert response.status_code == 403
    assert "not begun in this browser" in response.text

    # The victim has a session of their own under way: that does not help the attacker either.
    await world.press("/connect/google", browser=victim, follow_redirects=False)
    link = (await world.press("/connect/google", follow_redirects=False)).headers["location"]
    assert (await victim.get(link)).status_code == 403

    # Neither does a calendar that the attacker had connected before.
    assert "connected" in (await world.press("/connect/google")).text
    await world.page_with("Secret of the victim")  # it is one fake account; from here on it is the victim's
    calendar_id = world.example.rows("SELECT id FROM calendars")[0]["id"]
    await disconnect(sessions, calendar_id)
    link = (await world.press("/connect/google", follow_redirects=False)).headers["location"]
    assert (await victim.get(link)).status_code == 403
    world.add("Another secret", hours=3)
    await world.calbridge.post(f"/calendars/{calendar_id}/sync")
    await synced_events(world, 2)
    await world.press("/refresh")
    assert "Another secret" not in await world.page(attacker)


async def test_coming_back_takes_both_the_attempt_and_the_person_that_began_it(world):
    for kept in ("user", "attempt"):
        link = (await world.press("/connect/google", follow_redirects=False)).headers["location"]
        other = await world.make_browser()
        other.cookies.set(kept, world.browser.cookies[kept], domain="127.0.0.1")
        assert (await other.get(link)).status_code == 403
    assert world.example.rows("SELECT 1 FROM calendars") == []


async def test_the_sample_calendar_needs_no_client(world):
    response = await world.press("/connect/sample")
    assert "ics: connected" in response.text
    await world.page_with("Stand-up")


async def test_a_first_webhook_that_comes_before_the_calendar_is_saved_loses_nothing(world, sessions):
    call = world.example.calbridge.call

    async def slow_call(method, path, **options):
        response = await call(method, path, **options)
        if (method, path) == ("POST", "/calendars"):
            await synced_events(world, 1)
            await _quiet(sessions)  # the webhook was delivered, and the calendar was unknown
        return response

    world.example.calbridge.call = slow_call
    assert "Stand-up" in (await world.press("/connect/sample")).text


async def test_the_example_may_be_started_before_calbridge(world, project, tmp_path, caplog):
    """calbridge is not there, then it is starting, then the key is wrong, and then all is well."""
    front = _Front()

    async def busy(scope, receive, send):
        await PlainTextResponse("starting", 503)(scope, receive, send)

    front.app = busy
    async with serve(front, lifespan="off") as url:
        settings = replace(
            world.example.settings,
            calbridge_url=url,
            api_key="wrong",
            database=str(tmp_path / "early.sqlite3"),
        )
        example = Example(settings)
        example.calbridge.base_url = "http://127.0.0.1:1/api/v1"
        beginning = asyncio.create_task(example.begin())
        await logged(caplog, "No connection")
        example.calbridge.base_url = f"{url}/api/v1"
        await logged(caplog, "503: starting")
        front.app = world.app
        await logged(caplog, "401")
        assert not beginning.done()
        example.calbridge._http.headers["Authorization"] = f"Token {project.api_key}"
        async with asyncio.timeout(30):
            await beginning
        assert example.webhook is not None
        await example.aclose()


async def logged(caplog, words):
    async with asyncio.timeout(30):
        while words not in caplog.text:
            await asyncio.sleep(0.05)


async def test_a_failure_of_the_beginning_is_logged(world, caplog):
    world.example.calbridge.get = None
    task = asyncio.ensure_future(world.example.begin())
    task.add_done_callback(_log_failure)
    with pytest.raises(TypeError):
        await task
    await logged(caplog, "The beginning failed")


async def test_webhooks_that_calbridge_did_not_sign_are_refused(world):
    response = await world.press("/webhook", json={"calendar_id": "cal_x", "data": {}})
    assert response.status_code == 401


async def test_after_a_restart_what_was_missed_is_brought_over(world):
    await world.press("/connect/google")
    calendar_id = world.example.rows("SELECT id FROM calendars")[0]["id"]
    async with asyncio.timeout(15):
        while (await world.calbridge.get(f"/calendars/{calendar_id}")).json()[
            "last_successful_sync_at"
        ] is None:
            await asyncio.sleep(0.05)
    world.example.webhook = None  # deaf from now on
    world.add("Missed", hours=2)
    await world.calbridge.post(f"/calendars/{calendar_id}/sync")
    await synced_events(world, 1)
    await world.example.begin()
    assert "Missed" in await world.page()
    webhooks = (await world.calbridge.get("/webhooks")).json()["results"]
    assert [webhook["url"] for webhook in webhooks] == [f"{world.url}/webhook"]


def test_the_example_finds_the_address_of_make_run_beside_its_key(tmp_path, monkeypatch):
    for name in ("CALBRIDGE_API_KEY", "CALBRIDGE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CALBRIDGE_DEMO_FILE", str(tmp_path / "demo_project.json"))
    (tmp_path / "demo_project.json").write_text('{"project_id": "proj_x", "api_key": "the key"}')
    assert load_example_settings().calbridge_url == "http://localhost:8000"
    (tmp_path / "up.json").write_text('{"base_url": "http://127.0.0.1:8260"}')
    found = load_example_settings()
    assert (found.calbridge_url, found.api_key) == ("http://127.0.0.1:8260", "the key")
    monkeypatch.setenv("CALBRIDGE_URL", "https://calbridge.example")
    assert load_example_settings().calbridge_url == "https://calbridge.example"


async def test_a_calbridge_that_is_unavailable_is_a_page_and_not_an_internal_error(tmp_path):
    settings = ExampleSettings(
        calbridge_url="http://127.0.0.1:1",
        api_key="x",
        own_url="http://testserver",
        database=str(tmp_path / "db"),
    )
    app = create_example(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://testserver", cookies={"user": "u"}
        ) as browser,
    ):
        response = await browser.post("/connect/sample")
    assert response.status_code == 502
    assert "calbridge at http://127.0.0.1:1 could not do this" in response.text
