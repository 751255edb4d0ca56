"""What disconnects a calendar and what does not, and how its tokens are kept.

See docs/reference/http-api.md, "Disconnecting".
"""

import asyncio
from datetime import timedelta

import pytest
from cryptography.fernet import Fernet
from limits import RateLimitItemPerMinute
from sqlalchemy import text

from app.core.clock import utcnow
from app.core.crypto import SecretBox
from app.core.db import transaction
from app.core.http import httpx, operator_client
from app.core.ids import new_id
from app.credentials import budgets
from app.credentials.store import CredentialStore
from app.models import WebhookSubscription
from app.providers.base import CredentialsRevoked, NotAsked
from tests import factories
from tests.flows.conftest import GoogleCalendarUnderTest


async def credentials_id(google: GoogleCalendarUnderTest) -> str:
    row = await google.row()
    assert row.credentials_id is not None
    return row.credentials_id


async def test_a_revoked_grant_disconnects_once_with_a_reason(google: GoogleCalendarUnderTest) -> None:
    google.add("one")
    await google.sync()
    google.fake.revoke_grant(google.fake.refresh_token)
    google.fake.expire_access_tokens()
    await google.sync()
    row = await google.row()
    assert row.state == "disconnected"
    assert row.connection_failure_data is not None
    assert set(row.connection_failure_data) == {"error", "code", "timestamp"}
    assert row.connection_failure_data["code"] == "invalid_grant"
    assert row.connection_failure_data["error"].endswith("(invalid_grant)")
    assert await google.names() == ["one"]
    async with transaction(google.sessions) as session:
        await session.execute(text("UPDATE calendars SET next_sync_at = now()"))
    assert await google.engine.claim(10) == []


@pytest.mark.parametrize(
    ("route", "status", "reason"),
    [
        ("events.list", 500, "backendError"),
        ("events.list", 503, None),
        ("events.list", 429, "rateLimitExceeded"),
        ("events.list", 403, "userRateLimitExceeded"),
        ("events.list", 404, "notFound"),
        ("token", 503, None),
        ("token", 401, "invalid_client"),
        ("token", 429, "rate_limit_exceeded"),
    ],
)
async def test_outages_limits_and_operator_faults_disconnect_no_calendar(
    google: GoogleCalendarUnderTest, route: str, status: int, reason: str | None
) -> None:
    body = b"<html>Error</html>" if reason is None else None
    content_type = "text/html" if body else None
    google.fake.inject_fault(route, status, reason, body=body, content_type=content_type, count=3)
    google.add("one")
    await google.sync()
    row = await google.row()
    assert row.state == "connected"
    assert row.sync_failure_count == 1
    assert row.sync_failing_since is not None
    assert row.last_attempted_sync_at is not None
    assert row.last_successful_sync_at is None
    google.fake.clear_faults()
    await google.sync()
    row = await google.row()
    assert (row.sync_failing_since, row.sync_failure_count) == (None, 0)
    assert await google.names() == ["one"]


@pytest.mark.parametrize("seconds", [600, 7200])
async def test_retry_after_is_honoured(google: GoogleCalendarUnderTest, seconds: int) -> None:
    headers = {"Retry-After": str(seconds)}
    google.fake.inject_fault("events.list", 429, "rateLimitExceeded", headers=headers)
    await google.sync()
    row = await google.row()
    assert row.last_attempted_sync_at is not None
    assert (row.next_sync_at - row.last_attempted_sync_at).total_seconds() >= seconds


async def test_access_tokens_are_cached_between_syncs(google: GoogleCalendarUnderTest) -> None:
    for _ in range(3):
        await google.sync()
    assert len(google.fake.requests_to("token")) == 1


async def test_a_worker_whose_clock_is_behind_stores_tokens_that_others_use(
    google: GoogleCalendarUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        late = "app.credentials.store.utcnow"
        patch.setattr(late, lambda: utcnow() - timedelta(hours=2), raising=False)
        await google.sync()
    await google.sync()
    assert len(google.fake.requests_to("token")) == 1


async def test_a_token_that_dies_early_is_renewed_once(google: GoogleCalendarUnderTest) -> None:
    google.add("one")
    await google.sync()
    google.fake.expire_access_tokens()
    await google.sync()
    assert (await google.row()).state == "connected"
    assert len(google.fake.requests_to("token")) == 2


async def test_an_access_token_that_no_key_opens_is_renewed(google: GoogleCalendarUnderTest) -> None:
    """Such as one that was stored with a key that has been taken away since."""
    await google.sync()
    foreign = SecretBox([Fernet.generate_key().decode()])
    async with transaction(google.sessions) as session:
        await session.execute(
            text("UPDATE credentials SET access_token_sealed = :sealed"),
            {"sealed": foreign.seal(f"credentials.access_token:{await credentials_id(google)}", "old")},
        )
    google.add("one")
    await google.sync()
    row = await google.row()
    assert (row.state, row.sync_failing_since) == ("connected", None)
    assert len(google.fake.requests_to("token")) == 2


async def test_many_processes_share_one_refresh(google: GoogleCalendarUnderTest) -> None:
    box = SecretBox(google.settings.fernet_keys)
    google.fake.inject_fault("token", delay=0.1)
    async with operator_client() as client:
        stores = [
            CredentialStore(settings=google.settings, sessions=google.sessions, box=box, client=client)
            for _ in range(4)
        ]
        chosen = await credentials_id(google)
        tokens = await asyncio.gather(*(store.access_token(chosen, None) for store in stores))
    assert len(set(tokens)) == 1
    assert len(google.fake.requests_to("token")) == 1


async def test_new_credentials_win_over_a_refresh_with_the_old_ones(google: GoogleCalendarUnderTest) -> None:
    box = SecretBox(google.settings.fernet_keys)
    chosen = await credentials_id(google)
    google.fake.inject_fault("token", delay=0.2)
    async with operator_client() as client:
        store = CredentialStore(settings=google.settings, sessions=google.sessions, box=box, client=client)
        refreshing = asyncio.create_task(store.access_token(chosen, None))
        await asyncio.sleep(0.05)
        async with transaction(google.sessions) as session:
            secrets = {"client_secret": google.fake.client_secret, "refresh_token": "dead"}
            await session.execute(
                text(
                    "UPDATE credentials SET version = version + 1, sealed = :sealed, refresh_lease_until = NULL"
                ),
                {"sealed": box.seal(f"credentials:{chosen}", secrets)},
            )
        with pytest.raises(CredentialsRevoked):
            await refreshing


async def test_secrets_are_not_in_the_database_in_clear(google: GoogleCalendarUnderTest) -> None:
    await google.sync()
    async with google.sessions() as session:
        dump = str((await session.execute(text("SELECT c::text FROM credentials c"))).scalars().all())
    token = google.fake.requests_to("events.list")[0].headers["authorization"].removeprefix("Bearer ")
    for secret in (google.fake.refresh_token, google.fake.client_secret, token):
        assert secret not in dump
        assert secret.encode().hex() not in dump


async def test_a_spent_budget_waits_and_disconnects_no_calendar(
    google: GoogleCalendarUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(budgets._USER, "google", RateLimitItemPerMinute(2))
    for _ in range(3):
        await google.sync()
    row = await google.row()
    assert (row.state, row.sync_failure_count, row.sync_failing_since) == ("connected", 0, None)
    assert row.next_sync_at > utcnow() + timedelta(seconds=10)
    assert len(google.fake.requests_to("events.list")) == 2


async def test_without_redis_each_process_counts_for_itself(
    google: GoogleCalendarUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(budgets._USER, "google", RateLimitItemPerMinute(2))
    limiter = budgets.Budgets("redis://127.0.0.1:9/0")
    await limiter.spend("google", "one", "client")

    async def spend_more_than_two_minutes_worth() -> None:  # its windows begin with the minute
        for _ in range(6):
            await limiter.spend("google", "one", "client")

    with pytest.raises(NotAsked):
        await spend_more_than_two_minutes_worth()
    await limiter.spend("google", "another", "client")
    await limiter.aclose()


async def test_an_account_that_is_connected_twice_has_one_budget(
    google: GoogleCalendarUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(budgets._USER, "google", RateLimitItemPerMinute(1))
    ids = [
        await factories.add_calendar(
            google.sessions,
            google.settings,
            google.project_id,
            client_id=google.fake.client_id,
            owner_email=owner,
            secrets={"client_secret": google.fake.client_secret, "refresh_token": google.fake.refresh_token},
        )
        for owner in ("ada@example.org", "Ada@Example.org", "bob@example.org")
    ]
    for claim in await google.engine.claim(10):
        if claim.calendar_id in ids:
            await google.engine.handle(claim)
    rows = {one: await factories.load_calendar(google.sessions, one) for one in ids}
    synced = sorted((row.owner_email or "").lower() for row in rows.values() if row.last_successful_sync_at)
    assert synced == ["ada@example.org", "bob@example.org"]


# --- PATCH of a disconnected calendar ----------------------------------------------------------------------


async def listen(google: GoogleCalendarUnderTest) -> None:
    async with transaction(google.sessions) as session:
        session.add(
            WebhookSubscription(
                id=new_id("webhook"),
                project_id=google.project_id,
                url="https://example.com",
                triggers=["calendar.state_change", "calendar.events_update"],
                secrets_sealed=b"",
            )
        )


async def notified(google: GoogleCalendarUnderTest) -> list[tuple[str, str]]:
    """The trigger and state of each webhook since the last time."""
    async with transaction(google.sessions) as session:
        rows = await session.execute(
            text(
                "DELETE FROM webhook_deliveries RETURNING created_at, trigger,"
                " convert_from(body, 'UTF8')::json -> 'data' ->> 'state'"
            )
        )
        return [(trigger, state) for _, trigger, state in sorted(tuple(row) for row in rows)]


async def patch(google: GoogleCalendarUnderTest, api: httpx.AsyncClient) -> None:
    """As if the last sync had been a while ago."""
    async with transaction(google.sessions) as session:
        await session.execute(text("UPDATE calendars SET sync_started_at = now() - interval '1 hour'"))
    response = await api.patch(f"/api/v1/calendars/{google.id}", json={"metadata": {"n": "1"}})
    assert response.status_code == 200


async def run_due(google: GoogleCalendarUnderTest) -> int:
    claims = await google.engine.claim(10)
    for claim in claims:
        await google.engine.handle(claim)
    return len(claims)


async def test_a_patch_reconnects_a_calendar_to_which_access_is_back(
    google: GoogleCalendarUnderTest, api: httpx.AsyncClient
) -> None:
    await listen(google)
    google.add("one")
    await google.sync()
    await google.disconnect()
    assert (await google.row()).state == "disconnected"
    await notified(google)
    google.add("two")
    assert await run_due(google) == 0
    before = await google.row()
    await patch(google, api)
    assert (await google.row()).state == "disconnected"
    assert await run_due(google) == 1
    row = await google.row()
    assert (row.state, row.connection_failure_data, row.sync_trial) == ("connected", None, False)
    assert row.updated_at > before.updated_at
    assert await google.names() == ["one", "two"]
    assert await notified(google) == [
        ("calendar.state_change", "connected"),
        ("calendar.events_update", "connected"),
    ]
    await google.sync()
    assert (await google.row()).state == "connected"


async def test_a_patch_of_a_calendar_whose_grant_is_dead_changes_and_announces_nothing(
    google: GoogleCalendarUnderTest, api: httpx.AsyncClient
) -> None:
    await listen(google)
    await google.sync()
    google.fake.revoke_grant(google.fake.refresh_token)
    google.fake.expire_access_tokens()
    await google.sync()
    before = await google.row()
    await notified(google)
    await patch(google, api)
    asked = len(google.fake.requests_to("token"))
    assert await run_due(google) == 1
    assert len(google.fake.requests_to("token")) == asked + 1
    row = await google.row()
    assert (row.state, row.sync_trial) == ("disconnected", False)
    assert row.connection_failure_data == before.connection_failure_data
    assert await notified(google) == []
    # It is asked once for each request, and not again by itself.
    async with transaction(google.sessions) as session:
        await session.execute(text("UPDATE calendars SET next_sync_at = now()"))
    assert await run_due(google) == 0


async def test_a_trial_that_meets_an_outage_is_made_again(
    google: GoogleCalendarUnderTest, api: httpx.AsyncClient
) -> None:
    await google.sync()
    await google.disconnect()
    await patch(google, api)
    google.fake.inject_fault("token", 503, body=b"<html>", content_type="text/html")
    assert await run_due(google) == 1
    row = await google.row()
    assert (row.state, row.sync_trial) == ("disconnected", True)
    assert row.next_sync_at > utcnow()
    async with transaction(google.sessions) as session:
        await session.execute(text("UPDATE calendars SET next_sync_at = now()"))
    assert await run_due(google) == 1
    assert (await google.row()).state == "connected"


async def test_a_patch_that_comes_during_a_trial_leads_to_one_more(
    google: GoogleCalendarUnderTest, api: httpx.AsyncClient
) -> None:
    await google.sync()
    await google.disconnect()
    await patch(google, api)
    google.fake.inject_fault("token", 400, "invalid_grant")
    [claim] = await google.engine.claim(10)
    await patch(google, api)
    assert await google.engine.claim(10) == []
    await google.engine.handle(claim)
    assert (await google.row()).state == "disconnected"
    # Access came back in between.
    assert await run_due(google) == 1
    assert (await google.row()).state == "connected"


async def test_a_patch_does_not_wait_for_a_trial_that_was_put_off_for_long(
    google: GoogleCalendarUnderTest, api: httpx.AsyncClient
) -> None:
    await google.sync()
    await google.disconnect()
    async with transaction(google.sessions) as session:
        await session.execute(text("UPDATE calendars SET sync_failure_count = 6"))
    await patch(google, api)
    google.fake.inject_fault("token", 503, body=b"<html>", content_type="text/html")
    assert await run_due(google) == 1
    assert (await google.row()).next_sync_at > utcnow() + timedelta(minutes=10)
    await patch(google, api)
    assert await run_due(google) == 1
    assert (await google.row()).state == "connected"


async def test_a_worker_that_dies_in_a_trial_leaves_it_to_another(
    google: GoogleCalendarUnderTest, api: httpx.AsyncClient
) -> None:
    await google.sync()
    await google.disconnect()
    await patch(google, api)
    assert len(await google.engine.claim(10)) == 1
    assert await run_due(google) == 0
    async with transaction(google.sessions) as session:
        await session.execute(text("UPDATE calendars SET lease_until = now(), next_sync_at = now()"))
    assert await run_due(google) == 1
    assert (await google.row()).state == "connected"


async def test_many_patches_are_one_trial_a_minute(
    google: GoogleCalendarUnderTest, api: httpx.AsyncClient
) -> None:
    await google.sync()
    await google.disconnect()
    for n in range(3):
        response = await api.patch(f"/api/v1/calendars/{google.id}", json={"metadata": {"n": f"{n}"}})
        assert response.status_code == 200
    assert await run_due(google) == 0
    row = await google.row()
    assert row.sync_started_at is not None
    assert row.next_sync_at - row.sync_started_at == timedelta(minutes=1)
