"""The receivers of the documentation, run as the processes that they say, with deliveries by a real worker."""

import asyncio
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, update

from app.core.clock import utcnow
from app.core.db import transaction
from app.core.http import httpx
from app.invitations.links import RsvpTokens, Subject
from app.main import create_app
from app.models import Calendar
from app.webhooks.payloads import Trigger, sample_body
from app.webhooks.signing import new_secret, signature_headers
from tests.factories import at
from tests.fakes.server import serve
from tests.flows.conftest import GoogleCalendarUnderTest

pytestmark = pytest.mark.settings(smtp_url="smtp://127.0.0.1:9", email_from="calendars@example.net")

DOCS = Path(__file__).parents[3] / "docs"
TRIGGERS: tuple[Trigger, ...] = (
    "calendar.events_update",
    "calendar.state_change",
    "bot.state_change",
    "event.rsvp_update",
)
NODE = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")


def read_sqlite(folder: Path) -> dict[str, Any]:
    database = sqlite3.connect(folder / "receiver.sqlite3")
    try:
        calendars = database.execute("SELECT id, state, cursor FROM calendars").fetchall()
        return {
            "messages": database.execute("SELECT id FROM messages").fetchall(),
            "calendars": {id_: {"state": state, "cursor": cursor} for id_, state, cursor in calendars},
            "events": {
                id_: json.loads(event) for id_, event in database.execute("SELECT id, event FROM events")
            },
            "bots": dict(database.execute("SELECT id, state FROM bots").fetchall()),
        }
    finally:
        database.close()


def read_json(folder: Path) -> dict[str, Any]:
    file = folder / "receiver.json"
    return json.loads(file.read_text()) if file.exists() else {"events": {}, "bots": {}, "calendars": {}}


def start_command(source: str) -> list[str]:
    """The last of the indented lines at the file's beginning."""
    head = source.partition("import ")[0]
    commands: list[str] = re.findall(r"^(?://)? {3,4}(\S.*)$", head, re.MULTILINE)
    return commands[-1].split()


class ReceiverProcess:
    """A receiver that runs in a folder of its own, as its first lines say."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self._read = {"receiver.py": read_sqlite, "receiver.mjs": read_json}[name]
        shutil.copy(DOCS / name, folder)
        self.command = start_command((folder / name).read_text())
        assert self.command in (["python", "receiver.py"], ["node", "receiver.mjs"])
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/webhook"
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self, calbridge_url: str, api_key: str, secret: str) -> None:
        python = {"python": sys.executable}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [python.get(self.command[0], self.command[0]), *self.command[1:]],
                cwd=self.folder,
                env={
                    "PATH": os.environ["PATH"],
                    "CALBRIDGE_URL": calbridge_url,
                    "CALBRIDGE_API_KEY": api_key,
                    "WEBHOOK_SECRET": secret,
                    "PORT": str(self.port),
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        await self.until(self._listens)

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stored(self) -> dict[str, Any]:
        return self._read(self.folder)

    async def until(self, condition: Callable[[], object]) -> None:
        try:
            async with asyncio.timeout(30):
                while not condition():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError((self.folder / "log").read_text()) from None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(
    params=[
        pytest.param("receiver.py", id="python"),
        pytest.param("receiver.mjs", id="node", marks=NODE),
    ]
)
def receiver(request, tmp_path):
    receiver = ReceiverProcess(request.param, tmp_path)
    yield receiver
    receiver.kill()


@pytest.fixture
async def calbridge(google_settings, project):
    """A client of an API that is served over HTTP."""
    async with serve(create_app(google_settings)) as url:
        google_settings.app_url = url
        headers = {"Authorization": f"Token {project.api_key}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
            yield client


async def subscribe(
    calbridge, receiver: ReceiverProcess, triggers: list[str] | None = None
) -> dict[str, Any]:
    response = await calbridge.post(
        "/api/v1/webhooks", json={"url": receiver.url, "triggers": triggers or list(TRIGGERS)}
    )
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def make_due(google: GoogleCalendarUnderTest) -> None:
    """A worker syncs it now, without the pause between two syncs that are asked for."""
    async with transaction(google.sessions) as session:
        due = {"next_sync_at": func.clock_timestamp(), "sync_forced_before": None}
        await session.execute(update(Calendar).where(Calendar.id == google.id).values(**due))


async def test_it_takes_every_message_that_a_worker_delivers(
    google, calbridge, project, receiver, google_settings, worker
) -> None:
    webhook = await subscribe(calbridge, receiver)
    start = (str(calbridge.base_url).rstrip("/"), project.api_key, webhook["secret"])
    await receiver.start(*start)

    # More events than a page has, then a deletion.
    first = google.add("first", conferenceData=None, location="https://meet.google.com/abc-defg-hij")
    for number in range(120):
        google.add(f"event {number}")
    await make_due(google)
    await receiver.until(lambda: len(receiver.stored()["events"]) == 121)
    removed = google.add("short-lived")
    await make_due(google)
    await receiver.until(lambda: len(receiver.stored()["events"]) == 122)
    google.fake.delete_event(removed)
    await make_due(google)
    await receiver.until(lambda: len(receiver.stored()["events"]) == 121)

    # A bot, which moves with its event.
    [event_id] = [id_ for id_, event in receiver.stored()["events"].items() if event["name"] == "first"]
    response = await calbridge.post(
        "/api/v1/bots", json={"calendar_event_id": event_id, "bot_name": "Notetaker"}
    )
    assert response.status_code == 201, response.text
    bot_id = response.json()["id"]
    google.move(first, in_hours=30)
    await make_due(google)
    await receiver.until(lambda: receiver.stored()["bots"] == {bot_id: "scheduled"})

    # The process dies, a change happens meanwhile, and it goes on where it was.
    receiver.kill()
    google.add("while it was unavailable")
    await make_due(google)
    await receiver.start(*start)
    await calbridge.post(f"/api/v1/webhooks/{webhook['id']}/replay", json={"since": "2020-01-01T00:00:00Z"})
    await receiver.until(lambda: len(receiver.stored()["events"]) == 122)

    # A reply of a guest of a hosted calendar.
    local = {"platform": "local", "name": "Lectures", "owner_email": "ada@example.com", "timezone": "Europe/Paris"}  # fmt: skip
    calendar_id = (await calbridge.post("/api/v1/calendars", json=local)).json()["id"]
    body = {
        "calendar_id": calendar_id,
        "name": "Analysis",
        "start_time": at(3),
        "end_time": at(3.1),
        "attendees": [{"email": "bob@example.org", "name": "Bob"}],
    }
    event = (await calbridge.post("/api/v1/calendar_events", json=body)).json()
    tokens = RsvpTokens(google_settings.fernet_keys)
    token = tokens.sign(Subject(calendar_id, event["ical_uid"], "", "bob@example.org"))
    clicked = await calbridge.post("/rsvp/", data={"token": token, "action": "accepted"})
    assert clicked.status_code == 200, clicked.text

    def accepted() -> bool:
        stored = receiver.stored()["events"].get(event["id"])
        return stored is not None and stored["attendees"][0]["response_status"] == "accepted"

    await receiver.until(accepted)

    # The person takes the grant back.
    google.fake.expire_access_tokens()
    for grant in list(google.fake._refresh_tokens):
        google.fake.revoke_grant(grant)
    await make_due(google)
    await receiver.until(lambda: receiver.stored()["calendars"][google.id].get("state") == "disconnected")
    await receiver.until(lambda: receiver.stored()["bots"] == {bot_id: "deleted"})
    await receiver.until(lambda: not receiver.stored()["messages"])


async def test_messages_about_single_events_keep_its_copy_too(calbridge, project, receiver, worker) -> None:
    webhook = await subscribe(calbridge, receiver, ["event.created", "event.updated", "event.deleted"])
    await receiver.start(str(calbridge.base_url).rstrip("/"), project.api_key, webhook["secret"])
    local = {"platform": "local", "name": "Lectures", "owner_email": "ada@example.com"}
    calendar_id = (await calbridge.post("/api/v1/calendars", json=local)).json()["id"]
    body = {"calendar_id": calendar_id, "name": "Analysis", "start_time": at(3), "end_time": at(3.1)}
    url = (
        f"/api/v1/calendar_events/{(await calbridge.post('/api/v1/calendar_events', json=body)).json()['id']}"
    )

    def names() -> list[str]:
        return [event["name"] for event in receiver.stored()["events"].values()]

    await receiver.until(lambda: names() == ["Analysis"])
    assert (await calbridge.patch(url, json={"name": "Algebra"})).status_code == 200
    await receiver.until(lambda: names() == ["Algebra"])
    assert (await calbridge.delete(url)).status_code == 200
    await receiver.until(lambda: names() == [])


async def test_it_takes_the_test_message_of_every_trigger(calbridge, project, receiver) -> None:
    webhook = await subscribe(calbridge, receiver)
    await receiver.start(str(calbridge.base_url).rstrip("/"), project.api_key, webhook["secret"])
    url = f"/api/v1/webhooks/{webhook['id']}"
    for trigger in TRIGGERS:
        assert (await calbridge.patch(url, json={"triggers": [trigger]})).status_code == 200
        result = (await calbridge.post(f"{url}/test")).json()
        assert (result["trigger"], result["status"], result["status_code"]) == (trigger, "success", 204)
    await receiver.until(lambda: not receiver.stored()["messages"])
    log = (receiver.folder / "log").read_text()
    assert all(log.count(trigger) == 1 for trigger in TRIGGERS)
    assert "again in 5 s" not in log


async def test_it_refuses_what_is_forged_recorded_or_unsigned(receiver) -> None:
    secret = new_secret()
    await receiver.start("http://127.0.0.1:9", "key", secret)
    now = utcnow()
    body = sample_body(idempotency_key="msg_1", trigger="calendar.events_update", now=now)

    def headers(secret: str, age: timedelta = timedelta(), **others: str) -> dict[str, str]:
        signed = signature_headers([secret], message_id="msg_1", attempted_at=now - age, body=body)
        return {**signed, **{name.replace("_", "-"): value for name, value in others.items()}}

    unsigned = headers(secret)
    del unsigned["webhook-signature"]
    refused = {
        "forged": headers(new_secret()),
        "recorded a day ago": headers(secret, timedelta(days=1)),
        "from the future": headers(secret, timedelta(minutes=-10)),
        "without headers": {},
        "Attendee's signature alone": {"X-Webhook-Signature": headers(secret)["X-Webhook-Signature"]},
        "without a signature": unsigned,
        "no signature at all": headers(secret, webhook_signature="v1"),
        "not base64": headers(secret, webhook_signature="v1,a"),
        "no time": headers(secret, webhook_timestamp="yesterday"),
        "no number": headers(secret, webhook_timestamp="nan"),
        "another id": headers(secret, webhook_id="msg_2"),
    }
    async with httpx.AsyncClient(trust_env=False) as client:
        for what, given in refused.items():
            assert (await client.post(receiver.url, content=body, headers=given)).status_code == 401, what
        changed = await client.post(receiver.url, content=body + b" ", headers=headers(secret))
        assert changed.status_code == 401
        no_text = await client.post(receiver.url, content=b"\xff", headers=headers(secret))
        assert no_text.status_code == 401
        # A sender that disconnects in the middle of the body does no harm.
        reader, writer = await asyncio.open_connection("127.0.0.1", receiver.port)
        writer.write(b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        await writer.drain()
        writer.transport.abort()
        assert not reader.at_eof()
        rotated = headers(secret)
        rotated["webhook-signature"] = "v1,b3RoZXI= " + rotated["webhook-signature"]
        for given in (headers(secret), rotated, headers(secret, timedelta(seconds=200))):
            assert (await client.post(receiver.url, content=body, headers=given)).status_code == 204


async def test_it_reads_no_more_of_a_body_than_a_delivery_may_have(receiver) -> None:
    await receiver.start("http://127.0.0.1:9", "key", new_secret())
    reader, writer = await asyncio.open_connection("127.0.0.1", receiver.port)
    # It is announced in no length, and goes on for as long as it is read.
    writer.write(b"POST /webhook HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    piece = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    with suppress(ConnectionError):
        for _ in range(20):
            writer.write(piece)
            await writer.drain()
    status = b""
    async with asyncio.timeout(30):
        # A connection that is closed with bytes unread may lose the response.
        with suppress(ConnectionError):
            status = await reader.readline()
    assert status == b"" or status.split()[1] == b"413"
    writer.transport.abort()
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.post(receiver.url, content=b"{}")).status_code == 401
