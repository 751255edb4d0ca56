"""The example application: people connect calendars, see their events, and send bots to them.

This file has everything that an integration with calbridge needs, in the order of docs/guide.md. The data is in one
SQLite file. Start it with `make example` beside `make run`; see README.md.
"""

import asyncio
import html
import json
import logging
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from standardwebhooks import Webhook, WebhookVerificationError

log = logging.getLogger("example")

PLATFORMS = ("google", "microsoft")

_TABLES = """
CREATE TABLE IF NOT EXISTS calendars (
    id TEXT PRIMARY KEY, user TEXT NOT NULL, attempt TEXT NOT NULL, label TEXT NOT NULL, state TEXT NOT NULL,
    synced_until TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS events (
    id TEXT PRIMARY KEY, calendar_id TEXT NOT NULL, name TEXT, start_time TEXT, meeting_url TEXT, bot_id TEXT);
"""


@dataclass
class Settings:
    """The addresses, and the OAuth clients by platform: (client id, client secret)."""

    calbridge_url: str
    api_key: str
    own_url: str
    database: str
    clients: dict[str, tuple[str, str]] = field(default_factory=dict)


class Calbridge:
    """A client for the API calls that are needed."""

    def __init__(self, settings: Settings) -> None:
        self.base_url = f"{settings.calbridge_url}/api/v1"
        self._http = httpx.AsyncClient(  # noqa: TID251 - an application of its own
            headers={"Authorization": f"Token {settings.api_key}"}, timeout=20
        )

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request. `path` is below /api/v1, or a whole URL such as a page's `next`."""
        url = path if path.startswith("http") else self.base_url + path
        return await self._http.request(method, url, **options)

    async def get(self, path: str, **params: str) -> Any:
        """Return the response's JSON, or None for 404."""
        response = await self.call("GET", path, params=params or None)
        if response.status_code == 404:
            return None
        response.raise_for_status()
        return response.json()

    async def pages(self, path: str, **params: str) -> AsyncIterator[Any]:
        page = await self.get(path, **params)
        while page is not None:
            for item in page["results"]:
                yield item
            page = await self.get(page["next"]) if page["next"] else None

    async def aclose(self) -> None:
        await self._http.aclose()


class Example:
    """The application's state: its database, its client, and the secret of its webhook."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.calbridge = Calbridge(settings)
        self.database = sqlite3.connect(settings.database, isolation_level=None)
        self.database.row_factory = sqlite3.Row
        self.database.executescript(_TABLES)
        self.webhook: Webhook | None = None
        self._syncing: dict[str, asyncio.Lock] = {}

    def rows(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        return self.database.execute(statement, values).fetchall()

    # --- 1. at the start: OAuth clients, webhook, and changes from the time when this application was down ---

    async def begin(self) -> None:
        """Try until it succeeds, since calbridge may be started later, and its API key may be fixed later."""
        wait = 1.0
        while True:
            try:
                return await self._begin()
            except httpx.HTTPStatusError as err:
                response = err.response
                log.warning(
                    "calbridge returned %s: %s. Next try in %.0f s.",
                    response.status_code,
                    response.text,
                    wait,
                )
            except httpx.HTTPError as err:
                log.warning(
                    "No connection to %s (%r). Next try in %.0f s.", self.settings.calbridge_url, err, wait
                )
            await asyncio.sleep(wait)
            wait = min(wait * 2, 60)

    async def _begin(self) -> None:
        for platform, (client_id, client_secret) in self.settings.clients.items():
            await self._register_client(platform, client_id, client_secret)
        await self._subscribe()
        for row in self.rows("SELECT id FROM calendars"):
            await self.sync(row["id"])

    async def _register_client(self, platform: str, client_id: str, client_secret: str) -> None:
        body: dict[str, Any] = {
            "client_id": client_id,
            "client_secret": client_secret,
            "redirect_uris": [f"{self.settings.own_url}/connected"],
        }
        if await self.calbridge.get(f"/oauth/apps/{platform}") is None:
            response = await self.calbridge.call("POST", "/oauth/apps", json={"platform": platform, **body})
        else:
            response = await self.calbridge.call("PATCH", f"/oauth/apps/{platform}", json=body)
        response.raise_for_status()
        log.info("At %s, register this redirect URI: %s", platform, response.json()["callback_url"])

    async def _subscribe(self) -> None:
        """Create a new webhook at each start. Its secret is shown once, and so does not have to be stored."""
        url = f"{self.settings.own_url}/webhook"
        async for webhook in self.calbridge.pages("/webhooks"):
            if webhook["url"] == url:
                await self.calbridge.call("DELETE", f"/webhooks/{webhook['id']}")
        body = {"url": url, "triggers": ["calendar.events_update", "calendar.state_change"]}
        response = await self.calbridge.call("POST", "/webhooks", json=body)
        if response.status_code == 400:
            log.warning("No webhooks, press Refresh instead: %s", response.text)
            return
        response.raise_for_status()
        self.webhook = Webhook(response.json()["secret"])

    # --- 2. connecting a calendar ---

    async def authorization_url(self, platform: str, user: str, attempt: str) -> str:
        """Return the URL to send the browser to. `attempt` comes back in the calendar's metadata."""
        body = {
            "platform": platform,
            "redirect_uri": f"{self.settings.own_url}/connected",
            "deduplication_key": f"{user}-{platform}",
            "metadata": {"user": user, "attempt": attempt},
        }
        response = await self.calbridge.call("POST", "/oauth/sessions", json=body)
        if response.status_code == 400:
            raise HTTPException(400, response.text)
        response.raise_for_status()
        return str(response.json()["authorization_url"])

    async def finish(self, calendar_id: str, user: str | None, attempt: str | None) -> None:
        """Save the calendar, if this browser began the connection.

        Otherwise, an attacker may have sent another person a link. Such a calendar is not shown to any user.
        """
        calendar = await self.calbridge.get(f"/calendars/{calendar_id}")
        metadata = (calendar or {}).get("metadata") or {}
        if (
            calendar is None
            or not attempt
            or metadata.get("attempt") != attempt
            or metadata.get("user") != user
        ):
            raise HTTPException(403, "This connection was not begun in this browser. Nothing was taken over.")
        self._save_calendar(calendar, str(user), attempt)
        await self.sync(calendar_id)

    async def connect_feed(self, feed_url: str, user: str) -> None:
        """Connect a secret iCal address, or the sample feed of `make run`. This needs no OAuth client."""
        attempt = secrets.token_urlsafe(16)
        body = {"platform": "ics", "feed_url": feed_url, "metadata": {"user": user, "attempt": attempt}}
        response = await self.calbridge.call("POST", "/calendars", json=body)
        if response.status_code == 400:
            raise HTTPException(400, response.text)
        response.raise_for_status()
        self._save_calendar(response.json(), user, attempt)
        # Its first webhook may have come before the calendar was saved.
        await self.sync(response.json()["id"])

    def _save_calendar(self, calendar: dict[str, Any], user: str, attempt: str) -> None:
        label = calendar["owner_email"] or calendar["platform"]
        self.rows(
            "INSERT INTO calendars (id, user, attempt, label, state) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) "
            "DO UPDATE SET user = excluded.user, attempt = excluded.attempt, label = excluded.label, "
            "state = excluded.state",
            calendar["id"], user, attempt, label, calendar["state"],
        )  # fmt: skip

    # --- 3. events ---

    async def sync(self, calendar_id: str) -> None:
        """Save the events that changed since the largest `updated_at` that was seen. It may be repeated at any time."""
        async with self._syncing.setdefault(calendar_id, asyncio.Lock()):
            known = self.rows("SELECT attempt, synced_until FROM calendars WHERE id = ?", calendar_id)
            if not known:
                return
            calendar = await self.calbridge.get(f"/calendars/{calendar_id}")
            if calendar is None:
                self.forget(calendar_id)
                return
            if (calendar["metadata"] or {}).get("attempt") != known[0]["attempt"]:
                return  # connected again, and the browser has not come back yet
            self.rows("UPDATE calendars SET state = ? WHERE id = ?", calendar["state"], calendar_id)
            params = {"calendar_id": calendar_id, "ordering": "updated_at"}
            if known[0]["synced_until"]:
                params["updated_after"] = known[0]["synced_until"]
            async for event in self.calbridge.pages("/calendar_events", **params):
                self._save_event(event)
                self.rows(
                    "UPDATE calendars SET synced_until = ? WHERE id = ?", event["updated_at"], calendar_id
                )

    def _save_event(self, event: dict[str, Any]) -> None:
        if event["is_deleted"]:
            self.rows("DELETE FROM events WHERE id = ?", event["id"])
            return
        self.rows(
            "INSERT INTO events (id, calendar_id, name, start_time, meeting_url) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET name = excluded.name, start_time = excluded.start_time, "
            "meeting_url = excluded.meeting_url",
            event["id"], event["calendar_id"], event["name"], event["start_time"], event["meeting_url"],
        )  # fmt: skip

    def forget(self, calendar_id: str) -> None:
        self.rows("DELETE FROM events WHERE calendar_id = ?", calendar_id)
        self.rows("DELETE FROM calendars WHERE id = ?", calendar_id)

    # --- 4. bots ---

    async def schedule_bot(self, event_id: str) -> None:
        """Schedule a bot. Because of the deduplication key, a double click schedules only one."""
        body = {"calendar_event_id": event_id, "bot_name": "Notetaker", "deduplication_key": event_id}
        response = await self.calbridge.call("POST", "/bots", json=body)
        if response.status_code == 400:
            if "deduplication_key" in response.json():
                return  # it is already scheduled
            raise HTTPException(400, response.text)
        response.raise_for_status()
        self.rows("UPDATE events SET bot_id = ? WHERE id = ?", response.json()["id"], event_id)

    async def unschedule_bot(self, event_id: str, bot_id: str) -> None:
        response = await self.calbridge.call("DELETE", f"/bots/{bot_id}")
        if response.status_code == 400:
            raise HTTPException(400, response.text)
        self.rows("UPDATE events SET bot_id = NULL WHERE id = ?", event_id)

    # --- 5. webhooks ---

    async def receive(self, body: bytes, headers: dict[str, str]) -> None:
        """Process a webhook. Raises HTTPException(401) if calbridge did not sign it.

        After any other failure, calbridge sends it again.
        """
        if self.webhook is None:
            raise HTTPException(401)
        try:
            self.webhook.verify(body, headers)
        except (WebhookVerificationError, ValueError):
            raise HTTPException(401) from None
        message = json.loads(body)
        # This includes calendar.state_change: a disconnected calendar lost its bots, a reconnected one may have changed.
        if message["calendar_id"]:
            await self.sync(message["calendar_id"])
            if message["data"].get("state") == "disconnected":
                statement = "UPDATE events SET bot_id = NULL WHERE calendar_id = ?"
                self.rows(statement, message["calendar_id"])

    async def aclose(self) -> None:
        await self.calbridge.aclose()
        self.database.close()


def create_app(settings: Settings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.example = Example(settings)
        # calbridge may send webhooks at once, so the server must be listening by then.
        beginning = asyncio.create_task(app.state.example.begin())
        beginning.add_done_callback(_log_failure)
        app.state.beginning = beginning
        yield
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)
        await app.state.example.aclose()

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.exception_handler(httpx.HTTPError)
    async def calbridge_failed(_request: Request, err: httpx.HTTPError) -> Response:
        log.warning("calbridge at %s: %r", settings.calbridge_url, err)
        text = (
            f"calbridge at {settings.calbridge_url} could not do this: {html.escape(str(err) or repr(err))}"
        )
        return HTMLResponse(f"<p>{text}</p><p><a href='/'>Back</a></p>", status_code=502)

    def example_of(request: Request) -> Example:
        example: Example = request.app.state.example
        return example

    def user_of(request: Request) -> str:
        """Return who is signed in. Here, every browser is a person. A real application has its own sign-in."""
        user = request.cookies.get("user")
        if not user:
            raise HTTPException(401, "Open the first page first.")
        return user

    def own_event(request: Request, event_id: str) -> sqlite3.Row:
        found = example_of(request).rows(
            "SELECT events.* FROM events JOIN calendars ON calendars.id = calendar_id "
            "WHERE events.id = ? AND user = ?",
            event_id, user_of(request),
        )  # fmt: skip
        if not found:
            raise HTTPException(404)
        return found[0]

    @app.get("/")
    async def home(request: Request) -> Response:
        user = request.cookies.get("user") or secrets.token_urlsafe(16)
        response = HTMLResponse(_page(example_of(request), user))
        response.set_cookie("user", user, httponly=True, samesite="lax", max_age=31_536_000)
        return response

    @app.post("/connect/{platform}")
    async def connect(request: Request, platform: str) -> Response:
        example, user = example_of(request), user_of(request)
        if platform == "sample":
            await example.connect_feed(f"{settings.calbridge_url}/demo/calendar.ics", user)
            return _home()
        attempt = secrets.token_urlsafe(16)
        response = RedirectResponse(await example.authorization_url(platform, user, attempt), 303)
        response.set_cookie("attempt", attempt, httponly=True, samesite="lax", max_age=600)
        return response

    @app.get("/connected")
    async def connected(
        request: Request, calendar_id: str = "", error: str = "", error_description: str = ""
    ) -> Response:
        if error:
            text = (
                f"<h1>Not connected</h1><p>{html.escape(error_description or error)}</p><a href='/'>Back</a>"
            )
            return HTMLResponse(text, 400)
        await example_of(request).finish(
            calendar_id, request.cookies.get("user"), request.cookies.get("attempt")
        )
        response = _home()
        response.delete_cookie("attempt")
        return response

    @app.post("/refresh")
    async def refresh(request: Request) -> Response:
        example = example_of(request)
        for row in example.rows("SELECT id FROM calendars WHERE user = ?", user_of(request)):
            await example.sync(row["id"])
        return _home()

    @app.post("/events/{event_id}/bot")
    async def schedule(request: Request, event_id: str) -> Response:
        await example_of(request).schedule_bot(own_event(request, event_id)["id"])
        return _home()

    @app.post("/events/{event_id}/no_bot")
    async def unschedule(request: Request, event_id: str) -> Response:
        event = own_event(request, event_id)
        await example_of(request).unschedule_bot(event_id, event["bot_id"])
        return _home()

    @app.post("/webhook")
    async def webhook(request: Request) -> Response:
        await example_of(request).receive(await request.body(), dict(request.headers))
        return Response()

    return app


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("The beginning failed", exc_info=task.exception())


def _home() -> Response:
    return RedirectResponse("/", 303)


def _button(action: str, label: str) -> str:
    return f'<form method="post" action="{html.escape(action)}"><button>{html.escape(label)}</button></form>'


def _page(example: Example, user: str) -> str:
    parts = ["<!doctype html><html lang='en'><meta charset='utf-8'><title>calbridge example</title>"]
    parts.append(
        "<style>body{font:1rem/1.5 system-ui;margin:2rem}form{display:inline}td{padding:.2rem 1rem 0 0}</style>"
    )
    parts.append("<h1>Calendars</h1>")
    parts += [_button(f"/connect/{name}", f"Connect {name.title()}") for name in example.settings.clients]
    parts += [
        _button("/connect/sample", "Connect the sample calendar"),
        _button("/refresh", "Refresh"),
        "<ul>",
    ]
    for row in example.rows("SELECT * FROM calendars WHERE user = ?", user):
        parts.append(f"<li>{html.escape(row['label'])}: {html.escape(row['state'])}")
        if row["state"] == "disconnected":
            parts.append(" (connect it again)")
    parts.append("</ul><h1>Events</h1><table>")
    events = example.rows(
        "SELECT events.* FROM events JOIN calendars ON calendars.id = calendar_id "
        "WHERE user = ? AND start_time >= ? ORDER BY start_time LIMIT 50",
        user, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
    )  # fmt: skip
    for event in events:
        bot = ""
        if event["bot_id"]:
            bot = _button(f"/events/{event['id']}/no_bot", "Take the bot back")
        elif event["meeting_url"]:
            bot = _button(f"/events/{event['id']}/bot", "Send a bot")
        cells = (event["start_time"][:16], event["name"] or "(no title)", event["meeting_url"] or "")
        parts.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + f"<td>{bot}</td>")
    return "".join(parts) + "</table></html>"


def load_settings() -> Settings:
    """Read the settings from the environment. Defaults: the address of `make run`, and its demo project's key."""
    api_key = os.environ.get("CALBRIDGE_API_KEY", "")
    calbridge_url = os.environ.get("CALBRIDGE_URL", "")
    demo = Path(os.environ.get("CALBRIDGE_DEMO_FILE", ".data/demo_project.json"))
    if not api_key and demo.exists():
        api_key = json.loads(demo.read_text())["api_key"]
        running = demo.with_name("up.json")  # while `make run` runs
        if not calbridge_url and running.exists():
            calbridge_url = json.loads(running.read_text())["base_url"]
    if not api_key:
        raise SystemExit("Start `make run` first, or set CALBRIDGE_API_KEY.")
    clients = {}
    for platform in PLATFORMS:
        client_id = os.environ.get(f"{platform.upper()}_CLIENT_ID")
        if client_id:
            clients[platform] = (client_id, os.environ.get(f"{platform.upper()}_CLIENT_SECRET", ""))
    return Settings(
        calbridge_url=(calbridge_url or "http://localhost:8000").rstrip("/"),
        api_key=api_key,
        own_url=os.environ.get("EXAMPLE_URL", "http://localhost:8001").rstrip("/"),
        database=os.environ.get("EXAMPLE_DATABASE", "example.sqlite3"),
        clients=clients,
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    own = load_settings()
    log.info("The example runs at %s, with the calbridge at %s", own.own_url, own.calbridge_url)
    uvicorn.run(
        create_app(own), host="127.0.0.1", port=httpx.URL(own.own_url).port or 80, log_level="warning"
    )
