"""Connecting calendars of an account by browser.

See docs/reference/http-api.md, "OAuth apps and sessions".
"""

import re

from sqlalchemy import select, text

from app.core.crypto import sha256_hex
from app.models import OAuthSession
from tests import factories
from tests.fakes.google import CALENDAR_SCOPE, EMAIL_SCOPE
from tests.flows.oauth.browser import APPS, MAIN, RETURN, calendars, disconnect, query


async def test_a_person_connects_a_calendar_and_its_events_are_synced(flow, settings, sessions):
    calendar_id = await flow.connect(
        deduplication_key="user-42", metadata={"user_id": "42"}, login_hint="ada@example.com"
    )
    calendar = await flow.calendar(calendar_id)
    assert calendar["owner_email"] == "ada@example.com"
    assert calendar["state"] == "connected"
    assert calendar["platform"] == flow.platform
    assert calendar["client_id"] == flow.fake.client_id
    assert calendar["deduplication_key"] == "user-42"
    assert calendar["metadata"] == {"user_id": "42"}
    assert calendar["platform_uuid"] is None
    async with factories.sync_engine(settings, sessions) as engine:
        await factories.sync_now(engine, sessions, calendar_id)
    assert (await flow.calendar(calendar_id))["last_successful_sync_at"] is not None


async def test_the_chosen_calendar_is_connected(flow):
    calendar_id = await flow.connect(platform_uuid="team")
    assert (await flow.calendar(calendar_id))["platform_uuid"] == "team"


async def test_google_is_asked_as_its_documentation_says(google):
    asked = query(await google.start(login_hint="ada@example.com"))
    assert asked["response_type"] == "code"
    assert asked["client_id"] == google.fake.client_id
    assert asked["redirect_uri"] == f"{MAIN}/oauth/google/callback"
    assert set(asked["scope"].split()) == {CALENDAR_SCOPE, EMAIL_SCOPE}
    assert asked["access_type"] == "offline"
    assert asked["prompt"] == "consent"
    assert asked["login_hint"] == "ada@example.com"
    assert asked["code_challenge_method"] == "S256"
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", asked["code_challenge"])
    assert len(asked["state"]) >= 43


async def test_microsoft_is_asked_for_offline_access_at_the_configured_tenant(microsoft, settings):
    url = await microsoft.start(login_hint="ada@example.com")
    assert url.startswith(settings.microsoft_oauth_authorize_url + "?")
    asked = query(url)
    assert set(asked["scope"].split()) == {
        "offline_access", "https://graph.microsoft.com/Calendars.Read", "https://graph.microsoft.com/User.Read",
    }  # fmt: skip
    assert asked["code_challenge_method"] == "S256"
    assert asked["login_hint"] == "ada@example.com"
    assert "prompt" not in asked
    # Without the hint the person may choose, also where the browser is signed in to one account.
    assert query(await microsoft.start())["prompt"] == "select_account"


async def test_neither_state_nor_verifier_nor_secret_is_readable_in_the_database(google, sessions):
    state = query(await google.start())["state"]
    async with sessions() as session:
        row = (await session.execute(select(OAuthSession))).scalar_one()
        stored = await session.scalar(text("SELECT row_to_json(s)::text FROM oauth_sessions AS s"))
    assert row.state_sha256 == sha256_hex(state)
    assert state not in stored
    assert google.fake.client_secret not in stored


async def test_what_the_redirect_address_has_already_is_kept(google):
    address = "https://app.example.com/connected?tenant=a%20b&x"
    await google.api.patch(f"{APPS}/google", json={"redirect_uris": [RETURN, address]})
    location = await google.run(redirect_uri=address)
    assert location.startswith(f"{address}&calendar_id=cal_")
    google.fake.denies_consent = True
    assert (await google.run(redirect_uri=address)).startswith(f"{address}&error=access_denied&")


async def test_the_mail_address_is_that_of_the_account_which_agreed(microsoft):
    microsoft.fake.add_mailbox("eve@example.com")
    calendar_id = await microsoft.connect(login_hint="eve@example.com")
    assert (await microsoft.calendar(calendar_id))["owner_email"] == "eve@example.com"


async def test_a_person_may_keep_their_address_to_themselves(google):
    google.fake.granted_scopes = (CALENDAR_SCOPE,)
    calendar_id = await google.connect()
    assert (await google.calendar(calendar_id))["owner_email"] is None


# --- further calendars of the account --------------------------------------------------------------------


async def test_the_accounts_calendars_are_listed_and_a_second_one_connected(flow, settings, sessions):
    fake = flow.fake
    second = (
        fake.add_calendar("team", summary="Team") if flow.platform == "google" else fake.add_calendar("Team")
    )
    first = await flow.connect(deduplication_key="user-42")
    response = await flow.api.get(f"/api/v1/calendars/{first}/remote_calendars")
    assert response.status_code == 200, response.text
    assert response.json().keys() == {"next", "previous", "results"}
    listed = {item["id"]: item for item in response.json()["results"]}
    assert listed[second] == {"id": second, "name": "Team", "is_primary": False}
    assert sum(item["is_primary"] for item in listed.values()) == 1

    body = {"credentials_of": first, "platform_uuid": second, "metadata": {"user_id": "42"}}
    made = await flow.api.post("/api/v1/calendars", json=body)
    assert made.status_code == 201, made.text
    assert made.json()["platform"] == flow.platform
    assert made.json()["platform_uuid"] == second
    assert made.json()["owner_email"] == "ada@example.com"
    assert made.json()["client_id"] == fake.client_id
    async with factories.sync_engine(settings, sessions) as engine:
        await factories.sync_now(engine, sessions, made.json()["id"])
    assert (await flow.calendar(made.json()["id"]))["last_successful_sync_at"] is not None

    # Both use one grant: connecting one again revives both, and deleting one leaves the other's credentials.
    for calendar_id in (first, made.json()["id"]):
        await disconnect(sessions, calendar_id)
    await flow.connect(deduplication_key="user-42")
    assert {row.state for row in await calendars(sessions)} == {"connected"}
    await flow.api.delete(f"/api/v1/calendars/{first}")
    assert (await flow.api.get(f"/api/v1/calendars/{made.json()['id']}/remote_calendars")).status_code == 200


async def test_listing_shows_what_is_wrong_with_the_account(google, settings):
    calendar_id = await google.connect()
    url = f"/api/v1/calendars/{calendar_id}/remote_calendars"
    google.fake.inject_fault("calendarList.list", 503, count=9)
    assert (await google.api.get(url)).status_code == 502
    google.fake.clear_faults()
    google.fake.inject_fault("calendarList.list", 429, "rateLimitExceeded", count=9)
    response = await google.api.get(url)
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) > 0
    google.fake.clear_faults()
    for token in list(google.fake._refresh_tokens):
        google.fake.revoke_grant(token)
    response = await google.api.get(url)
    assert response.status_code == 409
    assert "connect again" in response.json()["error"].lower()
