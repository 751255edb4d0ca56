"""/healthz, /readyz and /metrics (docs/reference/http-api.md, "Health and metrics")."""

from datetime import timedelta

import pytest
from alembic.script import ScriptDirectory
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, text
from structlog.testing import capture_logs

from app.core.clock import utcnow
from app.core.db import transaction
from app.core.ids import new_id
from app.core.wakeups import connect_redis
from app.health import repository
from app.models import (
    Bot,
    InvitationMail,
    MailLane,
    PushChannel,
    SyncBreaker,
    WebhookDelivery,
    WebhookSubscription,
    WorkerHeartbeat,
)
from migrations.revisions import _config
from tests import factories

NO_REDIS = {"redis_url": "redis://127.0.0.1:1/0"}
NO_DATABASE = {"database_url": "postgresql://nobody@127.0.0.1:1/none"}


@pytest.fixture
async def visitor(app):
    """A client without an API key."""
    from app.core.http import httpx

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as client:
        yield client


async def beat(sessions, age=timedelta(0)):
    async with transaction(sessions) as session:
        session.add(WorkerHeartbeat(id=new_id("msg"), seen_at=utcnow() - age))


async def gauges(visitor):
    response = await visitor.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_healthz_responds_without_a_key(visitor):
    response = await visitor.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


@pytest.mark.settings(**NO_REDIS, **NO_DATABASE)
async def test_alive_needs_neither_database_nor_redis(visitor):
    assert (await visitor.get("/healthz")).status_code == 200


async def ask(visitor, path="/readyz"):
    response = await visitor.get(path)
    return response.status_code, response.json()


async def test_ready_when_all_is_there(visitor, sessions):
    await beat(sessions)
    checks = {"database": "ok", "redis": "ok", "migrations": "ok", "worker": "ok"}
    whole = (200, {"status": "ok", "degraded": [], "checks": checks})
    assert await ask(visitor) == whole
    assert await ask(visitor, "/readyz?strict") == whole


async def test_without_a_live_worker_it_is_ready_but_degraded(visitor, sessions):
    status, body = await ask(visitor)
    assert (status, body["status"], body["degraded"]) == (200, "degraded", ["worker"])
    assert body["checks"]["worker"] == "No worker has ever run: start one with `calbridge worker`."
    await beat(sessions, timedelta(seconds=40))
    status, body = await ask(visitor)
    assert (status, body["degraded"]) == (200, ["worker"])
    assert body["checks"]["worker"].startswith("No worker was seen for 4")
    for path in ("/readyz?strict", "/readyz?strict=true", "/readyz?strict=1"):
        assert await ask(visitor, path) == (503, body)
    assert await ask(visitor, "/readyz?strict=false") == (200, body)
    await beat(sessions, timedelta(seconds=20))
    assert (await ask(visitor, "/readyz?strict"))[0] == 200


@pytest.mark.changes_schema
async def test_a_schema_that_is_older_than_the_code_is_not_ready(visitor, sessions):
    await beat(sessions)
    older = ScriptDirectory.from_config(_config()).get_revision("head").down_revision
    async with transaction(sessions) as session:
        await session.execute(text("UPDATE alembic_version SET version_num = :older"), {"older": older})
    status, body = await ask(visitor)
    assert (status, body["status"]) == (503, "unavailable")
    assert body["checks"].pop("migrations").startswith(f"The schema is at revision {older}, which is older ")
    assert set(body["checks"].values()) == {"ok"}
    async with transaction(sessions) as session:
        await session.execute(text("DROP TABLE alembic_version, worker_heartbeats"))
    status, body = await ask(visitor)
    assert status == 503
    assert body["checks"]["database"] == "ok"
    assert body["checks"]["migrations"].startswith("The schema is at revision None")
    assert body["checks"]["worker"].startswith("No worker has ever run")


@pytest.mark.changes_schema
async def test_old_processes_stay_ready_while_a_newer_release_has_migrated(visitor, sessions):
    await beat(sessions)
    async with transaction(sessions) as session:
        await session.execute(text("UPDATE alembic_version SET version_num = 'ofthefuture'"))
        await session.execute(text("ALTER TABLE calendars ADD COLUMN of_the_future text"))
    status, body = await ask(visitor, "/readyz?strict")
    assert (status, body["checks"]["migrations"]) == (200, "ok")


@pytest.mark.settings(**NO_REDIS)
async def test_without_redis_it_is_ready_but_degraded(visitor, api, sessions):
    await beat(sessions)
    status, body = await ask(visitor)
    assert (status, body["status"], body["degraded"]) == (200, "degraded", ["redis"])
    assert body["checks"]["redis"] == "No answer (ConnectionError)."
    assert (await ask(visitor, "/readyz?strict"))[0] == 503
    # That is what ready means.
    created = await api.post(
        "/api/v1/calendars", json={"platform": "ics", "feed_url": "https://calendar.invalid/feed.ics"}
    )
    assert created.status_code == 201, created.text


@pytest.mark.settings(**NO_REDIS)
async def test_an_outage_is_logged_when_it_begins_and_when_it_ends(visitor, api, app, redis_url):
    wakeups = app.state.calbridge.wakeups
    with capture_logs() as logs:
        for _ in range(3):
            await ask(visitor)
            await api.post(
                "/api/v1/calendars", json={"platform": "ics", "feed_url": "https://calendar.invalid/feed.ics"}
            )
        redis = connect_redis(redis_url)
        await wakeups.flush()
        wakeups._redis, unavailable = redis, wakeups._redis
        await api.post(
            "/api/v1/calendars", json={"platform": "ics", "feed_url": "https://calendar.invalid/feed.ics"}
        )
        await wakeups.flush()
        await ask(visitor)
        await unavailable.aclose(close_connection_pool=True)
    logged = [log["event"] for log in logs if log["event"] != "request"]
    assert logged == [
        "check_failed",
        "rate_limit_not_shared",
        "wakeup_not_sent",
        "wakeups_sent_again",
        "check_well_again",
    ]


@pytest.mark.settings(**NO_DATABASE)
async def test_not_ready_without_a_database_and_nothing_is_shown_of_its_address(visitor):
    response = await visitor.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (503, "unavailable")
    checks = response.json()["checks"]
    assert checks["redis"] == "ok"
    for name in ("database", "migrations", "worker"):
        assert checks[name].startswith("No answer (")
    assert "127.0.0.1" not in response.text
    assert "nobody" not in response.text


# -- metrics ------------------------------------------------------------------------------------------------


async def test_an_empty_database_has_gauges_too(visitor):
    await visitor.get("/healthz")
    found = await gauges(visitor)
    assert found["calbridge_database_up",] == 1
    for name in (
        "workers",
        "delivery_lag_seconds",
        "mail_lag_seconds",
        "bot_lag_seconds",
        "outbox_pending",
        "invitation_mails_pending",
    ):
        assert found[f"calbridge_{name}",] == 0
    for platform in ("google", "microsoft", "ics"):
        assert found["calbridge_sync_lag_seconds", platform] == 0
    assert {value for (name, *_), value in found.items() if name == "calbridge_gauge_read"} == {1}
    assert "calbridge_http_request_seconds_bucket" in {name for name, *_ in found}


async def test_gauges_count_calendars_channels_and_workers(visitor, sessions, settings, project):
    made = [
        await factories.add_calendar(sessions, settings, project.id, platform=platform, secrets={}, **fields)
        for platform, fields in (
            ("google", {"sync_failing_since": func.now() - timedelta(hours=2)}),
            ("google", {"state": "disconnected", "sync_failing_since": func.now()}),
            ("google", {}),
            ("ics", {"sync_failing_since": func.now()}),
        )
    ]
    async with transaction(sessions) as session:
        for number, state in enumerate(("open", "open", "closing")):
            session.add(
                PushChannel(
                    id=f"channel_{number}", project_id=project.id, calendar_id=made[0], platform="google",
                    state=state, secret_sha256="x",
                )
            )  # fmt: skip
    for age in (1, 10, 60):
        await beat(sessions, timedelta(seconds=age))
    found = await gauges(visitor)
    assert found["calbridge_calendars", "google", "connected"] == 2
    assert found["calbridge_calendars", "google", "disconnected"] == 1
    assert found["calbridge_calendars", "ics", "connected"] == 1
    assert found["calbridge_calendars_failing", "unknown", "google"] == 1
    assert found["calbridge_calendars_failing", "unknown", "ics"] == 1
    assert found["calbridge_push_channels_open", "google"] == 2
    assert found["calbridge_workers",] == 2


async def test_gauges_show_outages_and_the_calendars_that_wait_for_them(
    visitor, sessions, settings, project, monkeypatch
):
    def ago(seconds):
        return func.now() - timedelta(seconds=seconds)

    found = await gauges(visitor)
    for of in ("google", "microsoft", "feed_host", "oauth_client"):
        assert (found["calbridge_breakers_open", of], found["calbridge_outage_seconds", of]) == (0, 0)
    monkeypatch.setattr("app.health.gauges._KEPT_SECONDS", 0)
    client = f"client:{project.id}:someones-client"
    for platform, scope, fields in (
        ("google", "google", {}),
        ("google", "google", {"sync_failing_since": ago(60)}),
        ("google", client, {"sync_failing_since": ago(60)}),
        ("google", "google", {"state": "disconnected"}),
        ("google", None, {"held_back_ids": ["evt_1"], "held_back_since": ago(60)}),
        ("microsoft", "microsoft", {"sync_failing_since": ago(60)}),  # a failure, but no outage
        ("ics", "feed:one.example.org", {}),
    ):
        await factories.add_calendar(
            sessions, settings, project.id, platform=platform, secrets={}, outage_scope=scope, **fields
        )
    async with transaction(sessions) as session:
        session.add_all(
            [
                SyncBreaker(scope="google", opened_at=ago(500), outage_since=ago(600)),
                SyncBreaker(scope="microsoft", closed_at=ago(5), outage_since=ago(900)),
                SyncBreaker(scope="feed:one.example.org", opened_at=ago(50), outage_since=ago(60)),
                SyncBreaker(scope="feed:two.example.org", opened_at=ago(50), outage_since=ago(3600)),
                SyncBreaker(scope=client, opened_at=ago(5), outage_since=ago(60)),
            ]
        )
    found = await gauges(visitor)
    opened = {of[0]: value for (name, *of), value in found.items() if name == "calbridge_breakers_open"}
    assert opened == {"google": 1, "microsoft": 0, "feed_host": 2, "oauth_client": 1}
    assert found["calbridge_outage_seconds", "google"] == pytest.approx(600, abs=30)
    assert found["calbridge_outage_seconds", "feed_host"] == pytest.approx(3600, abs=30)
    assert found["calbridge_outage_seconds", "microsoft"] == 0
    held = {of[0]: value for (name, *of), value in found.items() if name == "calbridge_calendars_held"}
    assert held == {"google": 3, "microsoft": 0, "ics": 1}
    assert found["calbridge_calendars_failing", "unknown", "google"] == 2
    assert found["calbridge_calendars_in_doubt", "google"] == 1
    text_of_all = (await visitor.get("/metrics")).text
    assert "example.org" not in text_of_all
    assert "someones-client" not in text_of_all


async def test_lag_is_of_what_could_have_been_done_by_now(visitor, sessions, settings, project):
    def ago(seconds):
        return func.now() - timedelta(seconds=seconds)

    calendars = [
        await factories.add_calendar(sessions, settings, project.id, platform=platform, secrets={}, **fields)
        for platform, fields in (
            ("google", {"next_sync_at": ago(500)}),
            ("google", {"next_sync_at": ago(900), "state": "disconnected"}),
            ("google", {"next_sync_at": ago(800), "lease_token": "x", "lease_until": ago(-60)}),
            ("google", {"next_sync_at": ago(-900)}),
            ("ics", {"next_sync_at": ago(-900)}),
        )
    ]
    webhooks = {
        "well": {},
        "off": {"is_active": False},
        "failing": {"failing_since": ago(900)},
        "paused": {"paused_until": ago(-900)},
        "busy": {},
    }
    # Of each webhook: when its deliveries are, or were, to be sent.
    deliveries = {
        "well": [200, 100, -3600], "off": [400], "failing": [500], "paused": [600], "busy": [700, 650],
    }  # fmt: skip
    async with transaction(sessions) as session:
        for name, fields in webhooks.items():
            session.add(
                WebhookSubscription(
                    id=f"webhook_{name}",
                    project_id=project.id,
                    url="",
                    triggers=[],
                    secrets_sealed=b"",
                    **fields,
                )
            )
        await session.flush()
        for name, times in deliveries.items():
            for seconds in times:
                session.add(
                    WebhookDelivery(
                        id=new_id("dlv"), subscription_id=f"webhook_{name}", trigger="x", idempotency_key="x", body=b"",
                        next_attempt_at=ago(seconds), created_at=ago(100_000),
                    )
                )  # fmt: skip
        session.add(
            WebhookDelivery(
                id="dlv_under_way", subscription_id="webhook_busy", trigger="x", idempotency_key="x", body=b"",
                next_attempt_at=ago(-20), lease_token="x",
            )
        )  # fmt: skip
        # b's second waits for b's first, and the mailbox of d's is held.
        mails = [("a", 300, None), ("b", -60, None), ("b", 900, None), ("c", 200, None), ("d", 800, "m")]
        session.add(MailLane(key="mailbox:m", held_until=ago(-60)))
        for number, (recipient, seconds, mailbox_id) in enumerate(mails):
            session.add(
                InvitationMail(
                    id=f"msg_{number}", project_id=project.id, calendar_id=calendars[0], event_uid="u", method="REQUEST",
                    sequence=0, recipient_key=recipient, recipient_email="b", sender_email="a", owner_email="a",
                    message_id=f"<{number}>", mail=b"x", next_attempt_at=ago(seconds), created_at=ago(10_000),
                    mailbox_id=mailbox_id,
                )
            )  # fmt: skip
            await session.flush()
        bots = [
            {"join_at": ago(300 - 300), "updated_at": ago(5000)},  # for five minutes, the lead
            {"join_at": ago(200), "updated_at": ago(30)},  # moved half a minute ago
            {"join_at": ago(250), "updated_at": ago(5000), "meeting_url": None},
            {"join_at": ago(-3600), "updated_at": ago(5000)},
            {"join_at": ago(200), "state": "launching", "next_attempt_at": ago(40), "updated_at": ago(50)},
        ]
        for number, fields in enumerate(bots):
            values = {"meeting_url": "https://meet.example.org/x", **fields}
            session.add(Bot(id=f"bot_{number}", project_id=project.id, bot_name="x", **values))
    found = await gauges(visitor)
    assert found["calbridge_sync_lag_seconds", "google"] == pytest.approx(500, abs=30)
    assert found["calbridge_sync_lag_seconds", "ics"] == 0
    assert found["calbridge_delivery_lag_seconds",] == pytest.approx(200, abs=30)
    assert found["calbridge_mail_lag_seconds",] == pytest.approx(300, abs=30)
    assert found["calbridge_bot_lag_seconds",] == pytest.approx(300, abs=30)
    assert found["calbridge_outbox_pending",] == 8
    assert found["calbridge_invitation_mails_pending",] == 5


async def test_gauges_are_read_again_only_after_some_seconds(
    visitor, sessions, settings, project, monkeypatch
):
    assert (await gauges(visitor)).get(("calbridge_calendars", "google", "connected")) is None
    await factories.add_calendar(sessions, settings, project.id, secrets={})
    assert (await gauges(visitor)).get(("calbridge_calendars", "google", "connected")) is None
    monkeypatch.setattr("app.health.gauges._KEPT_SECONDS", 0)
    assert (await gauges(visitor))["calbridge_calendars", "google", "connected"] == 1


async def test_one_gauge_that_takes_too_long_costs_that_gauge_alone(visitor, sessions):
    await beat(sessions)
    async with sessions() as locking:
        # Nothing can be read from this table until the lock is given back.
        await locking.execute(text("LOCK TABLE calendars IN ACCESS EXCLUSIVE MODE"))
        found = await gauges(visitor)
    assert found["calbridge_database_up",] == 1
    assert found["calbridge_gauge_read", "sync_lag"] == 0
    assert found["calbridge_gauge_read", "calendars"] == 0
    assert ("calbridge_sync_lag_seconds", "google") not in found
    assert found["calbridge_gauge_read", "delivery_lag"] == 1
    assert found["calbridge_workers",] == 1


async def test_large_tables_are_counted_by_a_sample(visitor, sessions, project):
    async with transaction(sessions) as session:
        await session.execute(
            text(
                """
                INSERT INTO push_channels (id, project_id, platform, state, secret_sha256)
                SELECT 'channel_' || n, :project_id, CASE n % 4 WHEN 0 THEN 'google' ELSE 'microsoft' END, 'open',
                       repeat('x', 500)
                FROM generate_series(1, 60000) AS n
                """
            ),
            {"project_id": project.id},
        )
    async with sessions() as session:
        pages = await session.scalar(text("SELECT pg_relation_size('push_channels') / 8192"))
        assert pages > 3000
        assert await repository._sampled_percent(session, "push_channels") == pytest.approx(100_000 / pages)
        assert await repository._sampled_percent(session, "bots") == 100
    found = await gauges(visitor)
    assert found["calbridge_push_channels_open", "google"] == pytest.approx(15_000, rel=0.1)
    assert found["calbridge_push_channels_open", "microsoft"] == pytest.approx(45_000, rel=0.1)


async def test_an_unknown_method_makes_no_label_of_its_own(visitor):
    await visitor.request("BREW", "/healthz")
    found = await gauges(visitor)
    methods = {labels[0] for name, *labels in found if name == "calbridge_http_request_seconds_count"}
    assert "other" in methods
    assert "BREW" not in methods


@pytest.mark.settings(**NO_DATABASE)
async def test_without_a_database_the_process_still_reports_itself(visitor):
    await visitor.get("/healthz")
    found = await gauges(visitor)
    assert found["calbridge_database_up",] == 0
    assert ("calbridge_outbox_pending",) not in found
    assert "calbridge_http_request_seconds_bucket" in {name for name, *_ in found}
