"""Receives calbridge's webhooks and keeps a copy of all events in SQLite.

    pip install fastapi uvicorn httpx standardwebhooks
    export CALBRIDGE_URL=http://localhost:8000 CALBRIDGE_API_KEY=... WEBHOOK_SECRET=...
    python receiver.py

It listens on http://127.0.0.1:8002/webhook (PORT changes the port) and writes `receiver.sqlite3`.
"""

import asyncio
import contextlib
import json
import logging
import os
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

log = logging.getLogger("receiver")
api = httpx.AsyncClient(  # noqa: TID251 - an application of its own
    base_url=os.environ["CALBRIDGE_URL"] + "/api/v1",
    headers={"Authorization": f"Token {os.environ['CALBRIDGE_API_KEY']}"},
    timeout=20,
)
webhook = Webhook(os.environ["WEBHOOK_SECRET"])  # as `POST /api/v1/webhooks` returned it
database = sqlite3.connect("receiver.sqlite3", isolation_level=None)
database.executescript("""
    CREATE TABLE IF NOT EXISTS messages (id TEXT PRIMARY KEY, body TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS calendars (id TEXT PRIMARY KEY, state TEXT, cursor TEXT);
    CREATE TABLE IF NOT EXISTS events (id TEXT PRIMARY KEY, calendar_id TEXT NOT NULL, event TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS bots (id TEXT PRIMARY KEY, state TEXT NOT NULL);
""")
received = asyncio.Event()


@contextlib.asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(work())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)
# Any client can send a body here, and it is read before its signature is checked. No delivery is larger.
app.add_middleware(RequestBodyLimitMiddleware, max_body_size=1_000_000)


@app.post("/webhook", status_code=204)
async def receive(request: Request) -> None:
    body = await request.body()
    try:
        # Refuses a wrong signature and a message that is more than five minutes old.
        webhook.verify(body, dict(request.headers))
    except (WebhookVerificationError, ValueError) as err:
        raise HTTPException(401, "The signature is missing, wrong or too old.") from err
    # Store the message and respond; the work is done afterwards. A repeated delivery has the same id.
    message_id = request.headers["webhook-id"]
    database.execute("INSERT OR IGNORE INTO messages VALUES (?, ?)", (message_id, body.decode()))
    received.set()


async def work() -> None:
    """Handles stored messages one after the other, and tries again while calbridge cannot be reached."""
    while True:
        received.clear()
        for message_id, body in database.execute("SELECT id, body FROM messages ORDER BY rowid").fetchall():
            try:
                await handle(json.loads(body))
            except Exception:
                log.exception("Message %s will be tried again in 5 s", message_id)
                asyncio.get_running_loop().call_later(5, received.set)
                break
            database.execute("DELETE FROM messages WHERE id = ?", (message_id,))
        await received.wait()


async def handle(message: dict[str, Any]) -> None:
    """Asks the API for what changed: messages may come twice, late, and in another order."""
    log.info("%s %s", message["trigger"], json.dumps(message["data"]))
    if message["data"].get("test"):  # POST /api/v1/webhooks/{id}/test: its ids belong to no object
        return
    match message["trigger"]:
        case (
            "calendar.events_update"
            | "event.created"
            | "event.updated"
            | "event.deleted"
            | "event.rsvp_update"
        ):
            await save_events(message["calendar_id"])
        case "calendar.state_change":
            calendar = await get(f"/calendars/{message['calendar_id']}")
            if calendar is not None:
                save_calendar(calendar["id"], state=calendar["state"])
        case "bot.state_change":
            bot = await get(f"/bots/{message['bot_id']}")
            state = "deleted" if bot is None else bot["state"]
            database.execute("INSERT OR REPLACE INTO bots VALUES (?, ?)", (message["bot_id"], state))


async def save_events(calendar_id: str) -> None:
    """Saves all events that changed since the cursor, which is the largest `updated_at` seen so far."""
    row = database.execute("SELECT cursor FROM calendars WHERE id = ?", (calendar_id,)).fetchone()
    params = {"calendar_id": calendar_id, "ordering": "updated_at"}
    if row and row[0]:
        params["updated_after"] = row[0]
    page = await get("/calendar_events", params)
    while page is not None:
        for event in page["results"]:
            if event["is_deleted"]:
                database.execute("DELETE FROM events WHERE id = ?", (event["id"],))
            else:
                values = (event["id"], calendar_id, json.dumps(event))
                database.execute("INSERT OR REPLACE INTO events VALUES (?, ?, ?)", values)
            save_calendar(calendar_id, cursor=event["updated_at"])
        page = await get(page["next"]) if page["next"] else None


def save_calendar(calendar_id: str, state: str | None = None, cursor: str | None = None) -> None:
    database.execute(
        "INSERT INTO calendars VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
        " state = coalesce(excluded.state, state), cursor = coalesce(excluded.cursor, cursor)",
        (calendar_id, state, cursor),
    )


async def get(url: str, params: dict[str, str] | None = None) -> Any:
    """The response's JSON; None for 404."""
    response = await api.get(url, params=params)
    if response.status_code == 404:
        return None
    response.raise_for_status()
    return response.json()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8002")))
