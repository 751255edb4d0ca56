"""`calbridge doctor`: what it finds wrong, warns of and notes."""

import asyncio
import json
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.fernet import Fernet
from sqlalchemy import func
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.cli.doctor.examine import examine
from app.cli.doctor.findings import Finding
from app.cli.doctor.network import check_push
from app.core.crypto import SecretBox
from app.core.db import transaction
from app.core.http import httpx
from app.models import SyncBreaker, WebhookSubscription, WorkerHeartbeat
from app.settings import Settings
from migrations.revisions import head_revision
from tests import factories
from tests.commands import NOWHERE, calbridge
from tests.conftest import FERNET_KEY
from tests.fakes.server import serve

CHANNEL = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


class Outside:
    """Everything that doctor talks to over HTTP."""

    def __init__(self) -> None:
        self.mailboxes_status = 200
        self.submit_status = 400
        self.mailboxes_body = '{"results": []}'
        self.requests: list[Request] = []

    async def mailboxes(self, request: Request) -> Response:
        self.requests.append(request)
        return Response(self.mailboxes_body, self.mailboxes_status)

    async def submit(self, request: Request) -> Response:
        self.requests.append(request)
        assert await request.body() == b""
        return Response("<h1>Bad request</h1>", self.submit_status)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/api/v1.0/provisioning/mailboxes/", self.mailboxes),
                Route("/api/v1.0/submit/", self.submit, methods=["POST"]),
            ]
        )


@pytest.fixture
async def outside(monkeypatch):
    outside = Outside()
    async with serve(outside.app()) as base_url:
        for name in (
            "GOOGLE_API_BASE_URL",
            "GOOGLE_OAUTH_TOKEN_URL",
            "MICROSOFT_GRAPH_BASE_URL",
            "MICROSOFT_OAUTH_TOKEN_URL",
            "MESSAGES_API_URL",
        ):
            monkeypatch.setenv(name, base_url)
        yield outside


@pytest.fixture
def healthy(monkeypatch, outside, database_url, redis_url):
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("CREDENTIALS_ENCRYPTION_KEYS", FERNET_KEY)


def wrong(findings: list[Finding]) -> dict[str, str]:
    return {finding.subject: finding.text for finding in findings if not finding.is_fine}


@pytest.mark.usefixtures("healthy")
async def test_doctor_finds_nothing_wrong_with_a_healthy_installation():
    done = await asyncio.to_thread(calbridge, "doctor")
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines if not line.startswith("ok ")] == [
        "note  workers",
        "note  push",
    ]
    assert f"migrations: at the newest revision, {head_revision()}" in done.stdout
    assert "Redis 6." in done.stdout or "Redis 7." in done.stdout or "Redis 8." in done.stdout
    assert "ok    stored secrets: there are none yet" in lines
    assert "ok    syncs: no calendar failed at its last sync" in lines
    assert len(lines) == 13


@pytest.mark.usefixtures("outside")
async def test_doctor_reports_everything_that_is_missing_and_ends_with_1(monkeypatch):
    monkeypatch.setenv("GOOGLE_API_BASE_URL", "http://127.0.0.1:1")
    done = await asyncio.to_thread(calbridge, "doctor")
    assert done.returncode == 1
    wrong_lines = [line for line in done.stdout.splitlines() if line.startswith("WRONG ")]
    assert [line.split(":")[0] for line in wrong_lines] == [
        "WRONG database",
        "WRONG redis",
        "WRONG encryption keys",
        "WRONG GOOGLE_API_BASE_URL",
    ]


@pytest.mark.usefixtures("healthy")
async def test_doctor_needs_no_provider_that_nothing_uses(monkeypatch, sessions, settings, project):
    monkeypatch.setenv("GOOGLE_API_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("MICROSOFT_GRAPH_BASE_URL", "http://127.0.0.1:1")
    await factories.add_calendar(sessions, settings, project.id, platform="ics", secrets={})
    findings = {finding.subject: finding for finding in await examine()}
    for name in ("GOOGLE_API_BASE_URL", "MICROSOFT_GRAPH_BASE_URL"):
        assert findings[name].level == "note"
        assert findings[name].text.endswith("No calendar or OAuth app needs it so far.")
    await factories.add_calendar(sessions, settings, project.id, platform="google", secrets={})
    assert set(wrong(await examine())) == {"GOOGLE_API_BASE_URL"}


@pytest.mark.usefixtures("healthy")
async def test_doctor_reports_which_calendars_fail_and_which_webhooks_are_dead(
    sessions, settings, project, other_project
):
    failing: dict[str, Any] = {"sync_failing_since": func.now(), "sync_failure_code": "invalid_client"}
    for owner in (project, project, other_project):
        await factories.add_calendar(sessions, settings, owner.id, platform="google", secrets={}, **failing)
    held = await factories.add_calendar(
        sessions, settings, project.id, platform="ics", secrets={}, outage_scope="x"
    )
    await factories.add_calendar(sessions, settings, project.id, platform="google", secrets={})
    async with transaction(sessions) as session:
        webhooks_as: tuple[dict[str, Any], ...] = (
            {"failing_since": func.now() - timedelta(hours=2)},
            {"failing_since": func.now() - timedelta(minutes=5)},
            {"is_active": False, "disabled_reason": "410"},
            {"is_active": False},
        )
        for number, values in enumerate(webhooks_as):
            session.add(
                WebhookSubscription(
                    id=f"webhook_{number}",
                    project_id=project.id,
                    url="https://hunter2.example/",
                    triggers=["bot.state_change"],
                    secrets_sealed=SecretBox([FERNET_KEY]).seal(
                        f"webhook_subscriptions:webhook_{number}", [{"secret": "hunter2", "until": None}]
                    ),
                    **values,
                )
            )
    done = await asyncio.to_thread(calbridge, "doctor", "--json")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["is_fine"] is True
    reported = {
        level: [finding["text"] for finding in report["findings"] if finding["level"] == level]
        for level in ("ok", "note", "warn", "wrong")
    }
    assert reported["wrong"] == []
    google, feed, webhooks = reported["warn"]
    assert google.startswith(
        "3 calendars of google, in 2 projects, cannot be synced: invalid_client; for example cal_"
    )
    assert feed.startswith(
        f"1 calendar of ics, in 1 project, cannot be synced: platform_outage; for example {held}."
    )
    assert webhooks.startswith(
        "1 have failed for more than an hour and 1 were switched off for failing, in 1 project; for example webhook_0."
    )
    assert "hunter2" not in done.stdout


@pytest.mark.usefixtures("healthy")
async def test_a_misspelt_setting_is_pointed_out(monkeypatch, database_url):
    Path(".env").write_text("WEBHOOK_TIMEOUT=hunter2\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("CALENDER_SYNC_INTERVAL_SECONDS", "hunter2")
    monkeypatch.setenv("CALENDAR_COLOUR", "of another program")
    expected = [
        "WEBHOOK_TIMEOUT in .env is no setting: WEBHOOK_TIMEOUT_SECONDS may be meant.",
        "CALENDER_SYNC_INTERVAL_SECONDS in the environment is no setting: CALENDAR_SYNC_INTERVAL_SECONDS may be meant.",
    ]
    findings = await examine()
    assert [str(one) for one in findings if one.level == "warn"] == [
        f"warn  settings: {text}" for text in expected
    ]
    done = await asyncio.to_thread(calbridge, "project", "list")
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "Warning" in line] == [
        f"Warning: {one}" for one in expected
    ]


async def test_doctor_reports_wrong_settings_as_findings(monkeypatch):
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    findings = await examine()
    assert [finding.subject for finding in findings] == ["settings"]
    assert findings[0].text.startswith("LOG_LEVEL: ")


@pytest.mark.usefixtures("healthy")
async def test_doctor_sees_a_schema_that_is_behind(monkeypatch, empty_database_url):
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    assert "run `calbridge migrate`" in wrong(await examine())["migrations"]


@pytest.mark.usefixtures("healthy")
async def test_doctor_looks_at_workers(sessions):
    async def seen(seconds):
        async with transaction(sessions) as session:
            seen_at = func.now() - timedelta(seconds=seconds)
            session.add(WorkerHeartbeat(id=f"worker_{seconds}", seen_at=seen_at))
        findings = await examine()
        return next(str(finding) for finding in findings if finding.subject == "workers")

    assert (await seen(300)).startswith("WRONG workers: none was seen for 30")
    assert await seen(3) == "ok    workers: one runs"
    assert await seen(2) == "ok    workers: 2 run"


@pytest.mark.usefixtures("healthy")
async def test_doctor_reports_outages_failing_calendars_and_deletions_in_doubt(sessions, settings, project):
    client = f"client:{project.id}:their-client"
    failing: dict[str, Any] = {"sync_failing_since": func.now(), "sync_failure_code": "unavailable"}
    cases: list[tuple[str | None, dict[str, Any]]] = [
        ("google", failing),
        ("google", {}),
        (client, {**failing, "sync_failure_code": "invalid_client"}),
        (None, {"held_back_ids": ["evt_1"], "held_back_since": func.now()}),
    ]
    for scope, fields in cases:
        await factories.add_calendar(sessions, settings, project.id, secrets={}, outage_scope=scope, **fields)
    found = await examine()
    notes = {finding.subject: finding.text for finding in found if finding.is_note}
    failing_texts = [finding.text for finding in found if finding.subject == "calendars"]
    assert [text.partition("; ")[0] for text in failing_texts] == [
        f"1 calendar of google, in 1 project, cannot be synced: {code}"
        for code in ("invalid_client", "platform_outage", "unavailable")
    ]
    assert notes["deletions"].startswith("calendars whose last answer left out most events: 1.")
    assert wrong(found) == {}
    since = datetime(2031, 2, 3, 4, 5, tzinfo=UTC)
    async with transaction(sessions) as session:
        session.add_all(
            [
                SyncBreaker(scope=scope, opened_at=func.now(), outage_since=since)
                for scope in ("google", client, "feed:calendars.example.org")
            ]
            + [SyncBreaker(scope="microsoft", closed_at=func.now(), outage_since=since)]
        )
    found = await examine()
    assert wrong(found) == {}
    outages = {one.subject: one.text for one in found if one.is_warning and one.subject != "calendars"}
    assert set(outages) == {
        "outage of google",
        f"outage of OAuth client their-client of {project.id}",
        "outage of feeds at calendars.example.org",
    }
    assert outages["outage of google"].startswith(
        "it fails since 2031-02-03 04:05 UTC (unavailable); calendars that wait: 2. They are synced as soon as"
    )
    assert "must give a new one" in outages[f"outage of OAuth client their-client of {project.id}"]
    assert "UTC; calendars that wait: 0." in outages["outage of feeds at calendars.example.org"]


@pytest.mark.usefixtures("healthy")
async def test_doctor_opens_secrets_of_each_kind(monkeypatch, sessions, settings, project):
    other_key = Fernet.generate_key().decode()

    def secrets(findings):
        return next(str(finding) for finding in findings if finding.subject == "stored secrets")

    for _ in range(2):
        await factories.add_calendar(sessions, settings, project.id, secrets={"refresh_token": "hunter2"})
    assert secrets(await examine()) == "ok    stored secrets: all 2 that were looked at open"
    monkeypatch.setenv("CREDENTIALS_ENCRYPTION_KEYS", f"{other_key},{FERNET_KEY}")
    assert "; 2 have an older key: run `calbridge rotate-keys`" in secrets(await examine())
    # Dropped too early.
    monkeypatch.setenv("CREDENTIALS_ENCRYPTION_KEYS", other_key)
    found = await examine()
    text = wrong(found)["stored secrets"]
    assert text.startswith(
        "no key in CREDENTIALS_ENCRYPTION_KEYS opens 2 of 2 credentials.sealed. Put the key"
    )
    assert "hunter2" not in str(found)


@pytest.mark.usefixtures("healthy")
async def test_doctor_reports_whether_providers_can_notify(monkeypatch, tmp_path):
    async def push():
        return next(str(finding) for finding in await examine() if finding.subject == "push")

    async def health(_request):
        return Response('{"status": "ok"}', media_type="application/json")

    assert await push() == (
        "note  push: off, so changes are seen by polling alone: providers notify https:// addresses, and APP_URL is "
        "http://localhost:8000."
    )
    monkeypatch.setenv("CALENDAR_PUSH_ENABLED", "true")
    assert (await push()).startswith(
        "WRONG push: CALENDAR_PUSH_ENABLED is on, but providers notify https:// "
    )
    monkeypatch.setenv("APP_URL", "https://10.0.0.1")
    assert await push() == (
        "WRONG push: providers cannot reach 10.0.0.1: set APP_URL to this service's public name."
    )
    monkeypatch.setenv("APP_URL", "https://localhost:1")
    assert (await push()).startswith("note  push: https://localhost:1 does not answer from here (")
    monkeypatch.setenv("CALENDAR_PUSH_ENABLED", "false")
    assert "CALENDAR_PUSH_ENABLED is set to false" in await push()

    monkeypatch.delenv("CALENDAR_PUSH_ENABLED")
    # A client that trusts the test's certificate.
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    certificate = authority.issue_cert("localhost")
    pem = str(tmp_path / "server.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(pem)
    async with (
        serve(Starlette(routes=[Route("/healthz", health)]), ssl_certfile=pem, ssl_keyfile=pem) as url,
        httpx.AsyncClient(verify=context) as client,
    ):
        settings = Settings(app_url=url.replace("127.0.0.1", "localhost"))
        assert [str(one) for one in await check_push(settings, client)] == [
            f"ok    push: {settings.app_url} reaches this service"
        ]
        settings.app_url += "/elsewhere"
        (finding,) = await check_push(settings, client)
        assert not finding.is_fine
        assert "not by calbridge" in finding.text


@pytest.mark.usefixtures("healthy")
async def test_doctor_sees_servers_that_are_unavailable(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", NOWHERE)
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@127.0.0.1:1/0")
    found = wrong(await examine())
    assert set(found) == {"database", "redis"}
    assert "hunter2" not in str(found)


@pytest.fixture
def messages_on(monkeypatch, healthy):
    monkeypatch.setenv("FEATURE_MESSAGES_INTEGRATION", "True")
    monkeypatch.setenv("MESSAGES_API_KEY", "hunter2")
    monkeypatch.setenv("MESSAGES_CHANNEL_ID", CHANNEL)


@pytest.mark.usefixtures("messages_on")
async def test_doctor_checks_both_scopes_of_messages_without_sending(outside):
    assert wrong(await examine()) == {}
    looked_up, submitted = outside.requests
    assert looked_up.query_params["email"]
    assert "user_email" not in looked_up.query_params
    for request in outside.requests:
        assert request.headers["X-API-Key"] == "hunter2"
        assert request.headers["X-Channel-Id"] == CHANNEL
    assert "X-Rcpt-To" not in submitted.headers


@pytest.mark.usefixtures("messages_on")
@pytest.mark.parametrize(
    ("mailboxes_status", "submit_status", "subjects", "says"),
    [
        (403, 400, ["Messages, scope mailboxes:read"], "give it the scope mailboxes:read"),
        (200, 403, ["Messages, scope messages:send"], "give it the scope messages:send"),
        (
            401,
            401,
            ["Messages, scope mailboxes:read", "Messages, scope messages:send"],
            "MESSAGES_API_KEY and MESSAGES_CHANNEL_ID",
        ),
        (
            404,
            404,
            ["Messages, scope mailboxes:read", "Messages, scope messages:send"],
            "check MESSAGES_API_URL",
        ),
    ],
)
async def test_doctor_reports_which_scope_of_messages_is_missing(
    outside, mailboxes_status, submit_status, subjects, says
):
    outside.mailboxes_status, outside.submit_status = mailboxes_status, submit_status
    found = wrong(await examine())
    assert list(found) == subjects
    assert says in found[subjects[0]]
    assert "hunter2" not in str(found)


@pytest.mark.usefixtures("messages_on")
async def test_doctor_takes_no_page_for_messages(outside):
    outside.mailboxes_body = "<!doctype html><title>Welcome</title>"
    found = wrong(await examine())
    assert "check MESSAGES_API_URL" in found["Messages, scope mailboxes:read"]


@pytest.mark.usefixtures("messages_on")
@pytest.mark.parametrize("key", ["hunter2\nX-Other: y", "hunter2é", "hunter2 "])
async def test_doctor_reports_a_key_that_no_header_can_have_without_the_key(monkeypatch, key):
    monkeypatch.setenv("MESSAGES_API_KEY", key)
    found = await examine()
    assert [finding.subject for finding in found] == ["settings"]
    assert found[0].text.startswith("MESSAGES_API_KEY: ")
    assert "hunter2" not in str(found)


@pytest.mark.usefixtures("healthy")
async def test_doctor_connects_to_the_mail_server(monkeypatch, tmp_path):
    from aiosmtpd.controller import Controller
    from aiosmtpd.handlers import Sink

    monkeypatch.setenv("EMAIL_FROM", "calendars@example.org")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("SMTP_URL", f"smtp://127.0.0.1:{port}")
    assert "Check SMTP_URL" in wrong(await examine())["SMTP"]
    controller = Controller(Sink(), hostname="127.0.0.1", port=port)
    controller.start()
    try:
        assert wrong(await examine()) == {}
    finally:
        controller.stop()
