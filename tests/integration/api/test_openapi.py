"""Schemathesis against the API: any request gets a response that the OpenAPI document describes.

Schemathesis runs in a process of its own against a real server over HTTP, so that nothing between the socket
and the database is left out.
"""

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert

from app.core.clock import utcnow
from app.core.db import transaction
from app.core.ids import new_id
from app.main import create_app
from app.models import CalendarEvent, WorkerHeartbeat
from tests.fakes.server import serve

_SECONDS = 30
_HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
_CONFIG = f"""
hooks = "{_HOOKS}"

[checks]
# HEAD of the RSVP page is not in the document.
unsupported_method.enabled = false
# With exceptions, each for a reason, in schemathesis_hooks.py.
positive_data_acceptance.enabled = false
negative_data_rejection.enabled = false

# Some of its responses are empty, and so of no type.
[[operations]]
include-path = "/notifications/microsoft"
checks.content_type_conformance.enabled = false

# The provider behind it is unavailable here, and it says so.
[[operations]]
include-path = "/api/v1/calendars/{{calendar_id}}/remote_calendars"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 502]
"""


async def _seed(api, sessions, project_id):
    """Ids for half of the requests, so that these get further than a 404: {parameter: values}."""
    calendars, webhooks = [], []
    for _ in range(10):
        made = await api.post(
            "/api/v1/calendars", json={"platform": "ics", "feed_url": "http://127.0.0.1:1/"}
        )
        calendars.append(made.json()["id"])
        body = {"url": "http://127.0.0.1:1/", "triggers": ["calendar.state_change"]}
        webhooks.append((await api.post("/api/v1/webhooks", json=body)).json()["id"])
    events = [new_id("evt") for _ in calendars]
    hosted = await _seed_hosted(api)
    async with transaction(sessions) as session:
        await session.execute(
            insert(CalendarEvent),
            [
                {
                    "id": event_id, "project_id": project_id, "calendar_id": calendar_id, "platform_uuid": event_id,
                    "content_hash": b"", "attendees": [], "raw": {}, "start_time": utcnow(),
                }
                for event_id, calendar_id in zip(events, calendars, strict=True)
            ],
        )  # fmt: skip
        session.add(WorkerHeartbeat(id="worker", seen_at=utcnow() + timedelta(hours=1)))
    return {
        "path.calendar_id": [*calendars, hosted["calendar_id"]],
        "query.calendar_id": calendars,
        "body.calendar_id": [hosted["calendar_id"]],
        "path.event_id": [*events, *hosted["events"]],
        "query.event_id": events,
        "path.webhook_id": webhooks,
    }


async def _seed_hosted(api):
    body = {"platform": "local", "name": "Lectures", "owner_email": "ada@example.com"}
    calendar_id = (await api.post("/api/v1/calendars", json=body)).json()["id"]
    event = {"calendar_id": calendar_id, "name": "Analysis", "send_invitations": False}
    times = {"start_time": "2031-01-31T09:00:00Z", "end_time": "2031-01-31T10:00:00Z"}
    made = [await api.post("/api/v1/calendar_events", json={**event, **times}) for _ in range(10)]
    return {"calendar_id": calendar_id, "events": [response.json()["id"] for response in made]}


def _config(known):
    lines = [_CONFIG]
    for parameter, values in known.items():
        name = parameter.replace(".", "-")
        lines.append(f"[dictionaries.{name}]\nvalues = {values}")
        lines.append(f'[parameters."{parameter}"]\ndictionary = "{name}"\nprobability = 0.5')
    return "\n".join(lines)


@pytest.mark.settings(
    log_level="ERROR",
    google_oauth_token_url="http://127.0.0.1:1/token",
    microsoft_oauth_token_url="http://127.0.0.1:1/token",
)
async def test_every_response_is_one_that_the_document_describes(api, settings, sessions, project, tmp_path):
    (tmp_path / "schemathesis.toml").write_text(_config(await _seed(api, sessions, project.id)))
    async with serve(create_app(settings)) as url:
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--url", url, "--no-color",
            "--header", f"Authorization: Token {project.api_key}", "--continue-on-failure",
            "--phases", "examples,coverage,fuzzing", "--max-time", str(_SECONDS), "--seed", "1", "--max-examples", "25",
            "--generation-database", "none", "--suppress-health-check", "all", "--warnings", "off",
        ]  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
