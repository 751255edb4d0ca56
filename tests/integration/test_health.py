"""/healthz, /readyz and /metrics (contract 8)."""

from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, text, update

from app.core.clock import utcnow
from app.core.db import transaction
from app.core.ids import new_id
from app.models import (
    Calendar,
    InvitationMail,
    PushChannel,
    WebhookDelivery,
    WebhookSubscription,
    WorkerHeartbeat,
)
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
    answer = await visitor.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_alive_is_answered_without_a_key(visitor):
    answer = await visitor.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.settings(**NO_REDIS, **NO_DATABASE)
async def test_alive_needs_neither_database_nor_redis(visitor):
    assert (await visitor.get("/healthz")).status_code == 200


async def test_ready_when_all_is_there(visitor, sessions):
    await beat(sessions)
    answer = await visitor.get("/readyz")
    checks = {"database": "ok", "redis": "ok", "migrations": "ok", "worker": "ok"}
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "checks": checks})


async def test_not_ready_without_a_live_worker(visitor, sessions):
    answer = await visitor.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert answer.json()["checks"]["worker"] == "No worker has ever run: start one with `calbridge worker`."
    await beat(sessions, timedelta(seconds=40))
    sentence = (await visitor.get("/readyz")).json()["checks"]["worker"]
    assert sentence.startswith("No worker was seen for 4")
    await beat(sessions, timedelta(seconds=20))
    assert (await visitor.get("/readyz")).status_code == 200


@pytest.mark.changes_schema
@pytest.mark.changes_schema
async def test_not_ready_while_the_schema_is_not_the_codes(visitor, sessions):
    await beat(sessions)
    async with transaction(sessions) as session:
        await session.execute(text("UPDATE alembic_version SET version_num = 'older'"))
    answer = await visitor.get("/readyz")
    assert answer.status_code == 503
    sentence = answer.json()["checks"].pop("migrations")
    assert sentence.startswith("The schema is at revision older, this code needs ")
    assert set(answer.json()["checks"].values()) >= {"ok"}
    async with transaction(sessions) as session:
        await session.execute(text("DROP TABLE alembic_version, worker_heartbeats"))
    checks = (await visitor.get("/readyz")).json()["checks"]
    assert checks["database"] == "ok"
    assert checks["migrations"].startswith("The schema is at revision None")
    assert checks["worker"].startswith("No worker has ever run")


@pytest.mark.settings(**NO_REDIS)
async def test_not_ready_without_redis(visitor, sessions):
    await beat(sessions)
    answer = await visitor.get("/readyz")
    checks = answer.json()["checks"]
    assert (answer.status_code, checks["database"], checks["worker"]) == (503, "ok", "ok")
    assert checks["redis"] == "No answer (ConnectionError)."


@pytest.mark.settings(**NO_DATABASE)
async def test_not_ready_without_a_database_and_nothing_is_told_of_its_address(visitor):
    answer = await visitor.get("/readyz")
    assert answer.status_code == 503
    checks = answer.json()["checks"]
    assert checks["redis"] == "ok"
    for name in ("database", "migrations", "worker"):
        assert checks[name].startswith("No answer (")
    assert "127.0.0.1" not in answer.text
    assert "nobody" not in answer.text


# -- metrics ------------------------------------------------------------------------------------------------


async def test_an_empty_database_has_gauges_too(visitor):
    found = await gauges(visitor)
    assert found["calbridge_database_up",] == 1
    for name in (
        "calendars_failing",
        "sync_failing_oldest_seconds",
        "outbox_pending",
        "outbox_age_seconds",
        "invitation_mails_pending",
        "invitation_mails_age_seconds",
    ):
        assert found[f"calbridge_{name}",] == 0
    assert "calbridge_http_request_seconds_bucket" in {name for name, *_ in found}


async def test_gauges_tell_of_lag_failures_and_the_outbox(visitor, sessions, settings, project):
    made = [
        await factories.add_calendar(sessions, settings, project.id, platform=platform, secrets={})
        for platform in ("google", "google", "google", "ics")
    ]
    async with transaction(sessions) as session:

        async def change(calendar_id, **values):
            await session.execute(update(Calendar).where(Calendar.id == calendar_id).values(**values))

        await change(
            made[0],
            next_sync_at=func.now() - timedelta(seconds=500),
            sync_failing_since=func.now() - timedelta(hours=2),
        )
        await change(made[1], next_sync_at=func.now() - timedelta(seconds=900), state="disconnected")
        await change(made[2], next_sync_at=func.now() + timedelta(seconds=900))
        await change(
            made[3],
            next_sync_at=func.now() + timedelta(seconds=900),
            sync_failing_since=func.now() - timedelta(hours=1),
        )
        session.add(
            WebhookSubscription(
                id="webhook_1", project_id=project.id, url="", triggers=[], secrets_sealed=b""
            )
        )
        session.add(
            WebhookSubscription(
                id="webhook_off",
                project_id=project.id,
                url="",
                triggers=[],
                secrets_sealed=b"",
                is_active=False,
            )
        )
        await session.flush()
        for number, status in enumerate(("pending", "pending", "success", "pending")):
            session.add(
                WebhookDelivery(
                    id=f"dlv_{number}", subscription_id="webhook_off" if number == 3 else "webhook_1", trigger="x", status=status, idempotency_key="x", body=b"",
                    next_attempt_at=func.now() if status == "pending" else None,
                    created_at=func.now() - timedelta(seconds=100 * (number + 1)),
                )
            )  # fmt: skip
        for number, status in enumerate(("pending", "sent")):
            session.add(
                InvitationMail(
                    id=f"msg_{number}", project_id=project.id, calendar_id=made[0], event_uid="u", method="REQUEST",
                    sequence=0, recipient_key="b", recipient_email="b", sender_email="a", owner_email="a",
                    message_id=f"<{number}>", status=status, mail=b"x" if status == "pending" else None,
                    next_attempt_at=func.now() if status == "pending" else None,
                    created_at=func.now() - timedelta(seconds=300),
                )
            )  # fmt: skip
        for number, state in enumerate(("open", "open", "closing")):
            session.add(
                PushChannel(
                    id=f"channel_{number}", project_id=project.id, calendar_id=made[0], platform="google",
                    state=state, secret_sha256="x",
                )
            )  # fmt: skip
    found = await gauges(visitor)
    assert found["calbridge_sync_lag_seconds", "google"] == pytest.approx(500, abs=30)
    assert found["calbridge_sync_lag_seconds", "ics"] == 0
    assert found["calbridge_calendars", "google", "connected"] == 2
    assert found["calbridge_calendars", "google", "disconnected"] == 1
    assert found["calbridge_calendars", "ics", "connected"] == 1
    assert found["calbridge_calendars_failing",] == 2
    assert found["calbridge_sync_failing_oldest_seconds",] == pytest.approx(7200, abs=30)
    assert found["calbridge_outbox_pending",] == 2
    assert found["calbridge_outbox_age_seconds",] == pytest.approx(200, abs=30)
    assert found["calbridge_invitation_mails_pending",] == 1
    assert found["calbridge_invitation_mails_age_seconds",] == pytest.approx(300, abs=30)
    assert found["calbridge_push_channels_open", "google"] == 2


async def test_gauges_are_read_again_only_after_some_seconds(
    visitor, sessions, settings, project, monkeypatch
):
    assert (await gauges(visitor)).get(("calbridge_calendars", "google", "connected")) is None
    await factories.add_calendar(sessions, settings, project.id, secrets={})
    assert (await gauges(visitor)).get(("calbridge_calendars", "google", "connected")) is None
    monkeypatch.setattr("app.health.service._GAUGES_KEPT_SECONDS", 0)
    assert (await gauges(visitor))["calbridge_calendars", "google", "connected"] == 1


@pytest.mark.settings(**NO_DATABASE)
async def test_without_a_database_the_process_still_tells_of_itself(visitor):
    found = await gauges(visitor)
    assert found["calbridge_database_up",] == 0
    assert ("calbridge_outbox_pending",) not in found
    assert "calbridge_http_request_seconds_bucket" in {name for name, *_ in found}
