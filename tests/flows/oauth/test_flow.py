"""Connecting by browser, against the fakes' authorize pages over HTTP.

See docs/reference/http-api.md, "OAuth apps and sessions".
"""

import asyncio
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import orjson
import pytest
from sqlalchemy import func, select, text, update

from app.core.crypto import SecretBox, sha256_hex
from app.core.db import transaction
from app.core.http import httpx, operator_client
from app.core.ids import new_id
from app.credentials.sealed import context_of
from app.credentials.store import CredentialStore
from app.models import Calendar, Credentials, OAuthSession, WebhookDelivery, WebhookSubscription
from app.providers.base import ClientMisconfigured
from tests import factories
from tests.fakes.google import CALENDAR_SCOPE, EMAIL_SCOPE
from tests.fakes.microsoft import FakeMicrosoft
from tests.fakes.server import serve

RETURN = "https://app.example.com/connected"
APPS = "/api/v1/oauth/apps"
SESSIONS = "/api/v1/oauth/sessions"
MAIN = "http://testserver"


@dataclass
class Flow:
    """One platform's fake, an OAuth app for it, and the steps of a browser."""

    platform: str
    fake: Any
    api: httpx.AsyncClient
    browser: httpx.AsyncClient

    async def start(self, **fields):
        body = {"platform": self.platform, "redirect_uri": RETURN, **fields}
        answer = await self.api.post(SESSIONS, json=body)
        assert answer.status_code == 201, answer.text
        assert answer.json().keys() == {"authorization_url", "expires_at"}
        return answer.json()["authorization_url"]

    async def agree(self, authorization_url):
        """The callback URL that the provider's page sends the browser to."""
        answer = await self.browser.get(authorization_url)
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    async def come_back(self, callback_url):
        answer = await self.browser.get(callback_url)
        assert answer.status_code == 302, answer.text
        assert answer.headers["cache-control"] == "no-store"
        return answer.headers["location"]

    async def run(self, **fields):
        return await self.come_back(await self.agree(await self.start(**fields)))

    async def connect(self, **fields):
        """The id of the calendar."""
        location = await self.run(**fields)
        assert location.startswith(f"{RETURN}?calendar_id=cal_"), location
        return query(location)["calendar_id"]

    async def calendar(self, calendar_id):
        return (await self.api.get(f"/api/v1/calendars/{calendar_id}")).json()


def query(url):
    return dict(parse_qsl(urlsplit(url).query))


def replace_query(url, **values):
    """Empty values take the parameter away."""
    parts = urlsplit(url)
    joined = {name: value for name, value in (query(url) | values).items() if value}
    return urlunsplit(parts._replace(query=urlencode(joined)))


async def make_flow(platform, fake, api, app):
    callback = f"{MAIN}/oauth/{platform}/callback"
    fake.add_client(fake.client_id, fake.client_secret, redirect_uris=[callback])
    body = {
        "platform": platform, "client_id": fake.client_id, "client_secret": fake.client_secret, "redirect_uris": [RETURN],
    }  # fmt: skip
    answer = await api.post(APPS, json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["callback_url"] == callback
    browser = httpx.AsyncClient(mounts={MAIN: httpx.ASGITransport(app)}, trust_env=False)
    return Flow(platform, fake, api, browser)


@pytest.fixture
async def google(google_settings, fake_google, api, app):
    flow = await make_flow("google", fake_google[0], api, app)
    yield flow
    await flow.browser.aclose()


@pytest.fixture
async def fake_microsoft(settings):
    fake = FakeMicrosoft()
    async with serve(fake) as url:
        settings.microsoft_oauth_authorize_url = f"{url}/common/oauth2/v2.0/authorize"
        settings.microsoft_oauth_token_url = f"{url}/common/oauth2/v2.0/token"
        settings.microsoft_graph_base_url = f"{url}/v1.0"
        yield fake


@pytest.fixture
async def microsoft(fake_microsoft, api, app):
    flow = await make_flow("microsoft", fake_microsoft, api, app)
    yield flow
    await flow.browser.aclose()


@pytest.fixture(params=["google", "microsoft"])
def flow(request):
    return request.getfixturevalue(request.param)


async def calendars(sessions):
    async with sessions() as session:
        return list(await session.scalars(select(Calendar)))


async def secrets_of(sessions, settings, calendar_id):
    async with sessions() as session:
        stored = (
            await session.execute(
                select(Credentials)
                .join(Calendar, Calendar.credentials_id == Credentials.id)
                .where(Calendar.id == calendar_id)
            )
        ).scalar_one()
    return SecretBox(settings.fernet_keys).open(context_of(stored.id), stored.sealed)


async def disconnect(sessions, calendar_id):
    async with transaction(sessions) as session:
        await session.execute(
            update(Calendar)
            .where(Calendar.id == calendar_id)
            .values(state="disconnected", connection_failure_data={"error": "gone", "code": "x"})
        )


def assert_told(location, error, sentence):
    """The application is told at its own address, and nothing else is in there."""
    assert location.startswith(f"{RETURN}?"), location
    told = query(location)
    assert told.keys() == {"error", "error_description"}
    assert told["error"] == error
    assert sentence in told["error_description"]


def assert_plain_page(answer):
    assert answer.status_code == 400
    assert "location" not in answer.headers
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "start again" in answer.text or "recommencez" in answer.text


# --- it works --------------------------------------------------------------------------------------------


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


# --- connecting again ------------------------------------------------------------------------------------


async def test_a_known_deduplication_key_is_reconnected_and_not_doubled(flow, settings, sessions, project):
    first = await flow.connect(deduplication_key="user-42", metadata={"n": "1"})
    before = await secrets_of(sessions, settings, first)
    await disconnect(sessions, first)
    async with transaction(sessions) as session:
        session.add(
            WebhookSubscription(
                id=new_id("webhook"),
                project_id=project.id,
                url="https://example.com/",
                triggers=["calendar.state_change"],
                secrets_sealed=b"",
            )
        )
    assert await flow.connect(deduplication_key="user-42", metadata={"n": "2"}) == first
    calendar = await flow.calendar(first)
    assert calendar["state"] == "connected"
    assert calendar["connection_failure_data"] is None
    assert calendar["metadata"] == {"n": "2"}
    assert len(await calendars(sessions)) == 1
    assert (await secrets_of(sessions, settings, first))["refresh_token"] != before["refresh_token"]
    async with sessions() as session:
        (delivery,) = await session.scalars(select(WebhookDelivery))
    assert orjson.loads(delivery.body)["calendar_metadata"] == {"n": "2"}
    async with factories.sync_engine(settings, sessions) as engine:
        await factories.sync_now(engine, sessions, first)
    assert (await flow.calendar(first))["state"] == "connected"


async def test_another_projects_calendar_with_the_same_key_is_left_alone(google, other_api, sessions):
    theirs = (
        await other_api.post(
            "/api/v1/calendars",
            json={
                "platform": "google",
                "client_id": "other",
                "client_secret": "s",
                "refresh_token": "r",
                "deduplication_key": "user-42",
            },
        )
    ).json()
    mine = await google.connect(deduplication_key="user-42")
    assert mine != theirs["id"]
    assert (await other_api.get(f"/api/v1/calendars/{theirs['id']}")).json() == theirs


async def test_a_calendar_that_the_application_created_itself_is_taken_over(google, settings, sessions):
    body = {
        "platform": "google", "client_id": "another-client", "client_secret": "s", "refresh_token": "r",
        "deduplication_key": "user-42",
    }  # fmt: skip
    made = (await google.api.post("/api/v1/calendars", json=body)).json()
    assert await google.connect(deduplication_key="user-42") == made["id"]
    calendar = await google.calendar(made["id"])
    assert calendar["client_id"] == google.fake.client_id
    assert calendar["owner_email"] == "ada@example.com"
    async with factories.sync_engine(settings, sessions) as engine:
        await factories.sync_now(engine, sessions, made["id"])
    assert (await google.calendar(made["id"]))["last_successful_sync_at"] is not None


async def test_consent_is_not_asked_again_while_the_credentials_live(google, settings, sessions):
    first = await google.connect(deduplication_key="user-42")
    before = await secrets_of(sessions, settings, first)
    url = await google.start(deduplication_key="user-42")
    assert "prompt" not in query(url)
    assert query(await google.come_back(await google.agree(url))) == {"calendar_id": first}
    assert await secrets_of(sessions, settings, first) == before
    await disconnect(sessions, first)
    assert query(await google.start(deduplication_key="user-42"))["prompt"] == "consent"


async def test_another_account_without_a_refresh_token_is_sent_to_the_consent_screen_once(
    google, settings, sessions
):
    first = await google.connect(deduplication_key="user-42")
    before = await secrets_of(sessions, settings, first)
    become_eve(google.fake)
    again = await google.run(deduplication_key="user-42")
    assert again.startswith(settings.google_oauth_authorize_url)
    assert query(again)["prompt"] == "consent"
    assert (await google.calendar(first))["owner_email"] == "ada@example.com"
    location = await google.come_back(await google.agree(again))
    assert query(location) == {"calendar_id": first}
    assert (await google.calendar(first))["owner_email"] == "eve@example.com"
    assert (await secrets_of(sessions, settings, first))["refresh_token"] != before["refresh_token"]


# --- with another account ---------------------------------------------------------------------------------


def become_eve(fake):
    """Somebody else is signed in in the browser."""
    fake.signed_in = ("208900000000000000000", "eve@example.com")


@pytest.fixture
async def shared(google, sessions):
    """(user-42's calendar, user-43's): both of ada's account, on one grant, and disconnected."""
    first = await google.connect(deduplication_key="user-42")
    team = google.fake.add_calendar("team", summary="Team")
    body = {"credentials_of": first, "platform_uuid": team, "deduplication_key": "user-43"}
    second = (await google.api.post("/api/v1/calendars", json=body)).json()["id"]
    for calendar_id in (first, second):
        await disconnect(sessions, calendar_id)
    return first, second


async def test_another_account_gets_the_one_calendar_and_leaves_the_others_alone(
    google, settings, sessions, shared
):
    first, second = shared
    before = await secrets_of(sessions, settings, second)
    untouched = await google.calendar(second)
    become_eve(google.fake)
    assert await google.connect(deduplication_key="user-42") == first
    assert await google.calendar(second) == untouched
    assert await secrets_of(sessions, settings, second) == before
    calendar = await google.calendar(first)
    assert (calendar["state"], calendar["owner_email"]) == ("connected", "eve@example.com")
    assert (await secrets_of(sessions, settings, first))["refresh_token"] != before["refresh_token"]
    async with factories.sync_engine(settings, sessions) as engine:
        await factories.sync_now(engine, sessions, first)
    assert (await google.calendar(first))["last_successful_sync_at"] is not None
    # From now on they go their own ways, and no credentials are left behind.
    google.fake.signed_in = None
    await google.connect(deduplication_key="user-43")
    assert (await google.calendar(first))["owner_email"] == "eve@example.com"
    assert (await google.calendar(second))["state"] == "connected"
    for calendar_id in shared:
        await google.api.delete(f"/api/v1/calendars/{calendar_id}")
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(Credentials)) == 0


async def test_an_account_is_the_same_by_its_id_and_not_by_its_address(google, sessions, shared):
    first, second = shared
    google.fake.signed_in = (google.fake.user_id, "ada.king@example.com")  # she married
    await google.connect(deduplication_key="user-42")
    assert {row.state for row in await calendars(sessions)} == {"connected"}
    assert (await google.calendar(second))["owner_email"] == "ada.king@example.com"
    google.fake.signed_in = ("208900000000000000000", "ada.king@example.com")  # somebody else got her address
    await disconnect(sessions, first)
    await disconnect(sessions, second)
    await google.connect(deduplication_key="user-42")
    assert (await google.calendar(second))["state"] == "disconnected"


@pytest.mark.parametrize(
    ("email", "second_state"), [("Ada@example.com", "connected"), ("eve@x.org", "disconnected")]
)
async def test_of_an_account_without_a_stored_id_the_address_decides(
    google, sessions, shared, email, second_state
):
    """Calendars that were connected by an earlier version, or by the application's own flow."""
    async with transaction(sessions) as session:
        await session.execute(update(Credentials).values(account_id=None))
    google.fake.signed_in = ("208900000000000000000", email)
    await google.connect(deduplication_key="user-42")
    assert (await google.calendar(shared[1]))["state"] == second_state


async def test_an_account_that_does_not_show_itself_counts_as_another_one(google, sessions, shared):
    google.fake.granted_scopes = (CALENDAR_SCOPE,)
    await google.connect(deduplication_key="user-42")
    assert (await google.calendar(shared[0]))["state"] == "connected"
    assert (await google.calendar(shared[1]))["state"] == "disconnected"


async def test_new_credentials_from_the_application_are_of_whatever_account(google, sessions, shared):
    first, _ = shared
    patch = {"client_secret": google.fake.client_secret, "refresh_token": google.fake.refresh_token}
    await google.api.patch(f"/api/v1/calendars/{first}", json=patch)
    assert {row.state for row in await calendars(sessions)} == {"connected"}
    async with sessions() as session:
        assert await session.scalar(select(Credentials.account_id)) is None


async def test_the_application_may_refuse_another_account(google, settings, sessions, shared):
    first, second = shared
    wanted = {"deduplication_key": "user-42", "same_account": True}
    before = [await google.calendar(calendar_id) for calendar_id in shared]
    secrets = await secrets_of(sessions, settings, first)
    become_eve(google.fake)
    assert_told(await google.run(**wanted), "account_mismatch", "another Google account")
    assert [await google.calendar(calendar_id) for calendar_id in shared] == before
    assert await secrets_of(sessions, settings, first) == secrets
    # Nobody is connected with a new key yet: any account will do.
    await google.connect(deduplication_key="user-44", same_account=True)
    google.fake.signed_in = None
    assert await google.connect(**wanted) == first
    assert (await google.calendar(second))["state"] == "connected"


async def test_two_accounts_at_once_move_nobody_else(google, sessions, settings, shared):
    first, second = shared
    urls = []
    for number in range(6):
        google.fake.signed_in = (f"20890000000000000000{number}", f"eve{number}@example.com")
        urls.append(await google.agree(await google.start(deduplication_key="user-42")))
    before = await secrets_of(sessions, settings, second)

    async def add_another():
        body = {"credentials_of": second, "platform_uuid": "team"}
        return await google.api.post("/api/v1/calendars", json=body)

    locations, _ = await asyncio.gather(
        asyncio.gather(*(google.come_back(url) for url in urls)), add_another()
    )
    assert {query(location)["calendar_id"] for location in locations} == {first}
    assert (await google.calendar(second))["state"] == "disconnected"
    assert await secrets_of(sessions, settings, second) == before
    async with sessions() as session:
        # One more than the shared ones: whoever came later found credentials that were not shared.
        assert await session.scalar(select(func.count()).select_from(Credentials)) == 2


async def test_a_calendar_that_is_added_at_the_same_time_is_not_moved_either(google, sessions, settings):
    """It is added to the account while another account takes the calendar that names it."""
    first = await google.connect(deduplication_key="user-42")
    before = await secrets_of(sessions, settings, first)
    become_eve(google.fake)
    await disconnect(sessions, first)  # so that the consent screen is shown
    back = await google.agree(await google.start(deduplication_key="user-42"))
    async with transaction(sessions) as session:
        # What `credentials_of` does, up to its commit.
        source = await session.get_one(Calendar, first, with_for_update=True)
        fields = {
            "project_id": source.project_id,
            "platform": "google",
            "credentials_id": source.credentials_id,
        }
        session.add(Calendar(id=new_id("cal"), platform_uuid="team", **fields))
        await session.flush()
        coming = asyncio.create_task(google.come_back(back))
        async with asyncio.timeout(10):
            while not await session.scalar(text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")):
                await asyncio.sleep(0.02)
    assert query(await coming) == {"calendar_id": first}
    second = next(row for row in await calendars(sessions) if row.id != first)
    assert await secrets_of(sessions, settings, second.id) == before


async def test_without_a_refresh_token_in_spite_of_consent_the_application_is_told(microsoft, sessions):
    microsoft.fake.omits_refresh_token = True
    assert_told(await microsoft.run(), "invalid_grant", "gave no refresh token")
    assert await calendars(sessions) == []


async def test_two_browsers_with_the_same_key_at_once_make_one_calendar(google, sessions):
    urls = [await google.agree(await google.start(deduplication_key="user-42")) for _ in range(4)]
    locations = await asyncio.gather(*(google.come_back(url) for url in urls))
    assert len({query(location)["calendar_id"] for location in locations}) == 1
    assert len(await calendars(sessions)) == 1


# --- the person, the provider or the app says no ---------------------------------------------------------


async def test_a_refused_consent_is_told_to_the_application(flow, sessions):
    flow.fake.denies_consent = True
    assert_told(await flow.run(), "access_denied", "was not given")
    assert await calendars(sessions) == []


async def test_an_unticked_calendar_box_creates_nothing(flow, sessions):
    is_google = flow.platform == "google"
    flow.fake.granted_scopes = (EMAIL_SCOPE,) if is_google else ("User.Read", "offline_access")
    assert_told(await flow.run(), "access_denied", "leave its box ticked")
    assert await calendars(sessions) == []
    assert flow.fake.requests_to("userinfo" if is_google else "me") == []


async def test_microsofts_spellings_of_a_scope_are_all_understood(microsoft):
    microsoft.fake.granted_scopes = ("Calendars.ReadWrite", "User.Read", "offline_access")
    for style in ("short", "url", "lower"):
        microsoft.fake.scope_style = style
        await microsoft.connect()


async def test_a_failing_code_exchange_is_told_to_the_application(flow, sessions):
    callback = replace_query(await flow.agree(await flow.start()), code="forged")
    assert_told(await flow.come_back(callback), "invalid_grant", "did not accept the authorization code")
    assert await calendars(sessions) == []


async def test_a_wrong_client_secret_is_told_without_being_shown(flow, sessions):
    await flow.api.patch(f"{APPS}/{flow.platform}", json={"client_secret": "wrong-secret"})
    location = await flow.run()
    assert_told(location, "invalid_client", "check its client id, secret")
    assert "wrong-secret" not in location
    assert await calendars(sessions) == []


async def test_an_outage_of_the_token_endpoint_is_told_and_the_next_attempt_works(flow, sessions):
    for kind in ("answer", "reset", "html"):
        if kind == "html":
            flow.fake.inject_fault("token", 400, body=b"<html>busy</html>", content_type="text/html")
        else:
            flow.fake.inject_fault("token", 503, kind=kind)
        assert_told(await flow.run(), "temporarily_unavailable", "Try again")
    assert await calendars(sessions) == []
    await flow.connect()


async def test_an_outage_while_the_address_is_asked_for_creates_nothing(flow, sessions):
    flow.fake.inject_fault("userinfo" if flow.platform == "google" else "me", 503)
    assert_told(await flow.run(), "temporarily_unavailable", "Try again")
    assert await calendars(sessions) == []


async def test_a_callback_with_neither_code_nor_error_is_told(google):
    callback = replace_query(await google.agree(await google.start()), code="")
    assert_told(await google.come_back(callback), "invalid_request", "neither a code nor an error")


async def test_what_a_forged_error_says_is_not_passed_on(google):
    state = query(await google.start())["state"]
    forged = {"state": state, "error": "<b>call 555</b>", "error_description": "call 555 for help"}
    location = await google.come_back(f"{MAIN}/oauth/google/callback?{urlencode(forged)}")
    assert_told(location, "server_error", "Try again")
    assert "555" not in location


async def test_a_key_that_a_feed_took_meanwhile_is_told(google, sessions):
    callback = await google.agree(await google.start(deduplication_key="user-42"))
    feed = {"platform": "ics", "feed_url": "https://example.com/x.ics", "deduplication_key": "user-42"}
    assert (await google.api.post("/api/v1/calendars", json=feed)).status_code == 201
    assert_told(await google.come_back(callback), "invalid_request", "is of platform ics")
    assert len(await calendars(sessions)) == 1


# --- attacks ---------------------------------------------------------------------------------------------


async def test_a_session_to_an_unregistered_address_is_refused(google, sessions):
    for address in (
        "https://evil.example.com/connected", "https://app.example.com/connected/", "https://app.example.com",
        "https://app.example.com/connected?x=1", "http://app.example.com/connected", "HTTPS://app.example.com/connected",
        "https://app.example.com/connected#x", "https://app.example.com/connected/../evil", "//evil.example.com",
    ):  # fmt: skip
        answer = await google.api.post(SESSIONS, json={"platform": "google", "redirect_uri": address})
        assert answer.status_code == 400
        assert answer.json().keys() == {"redirect_uri"}
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(OAuthSession)) == 0


async def test_the_browser_cannot_choose_where_it_goes_or_what_is_connected(google):
    callback = await google.agree(await google.start(deduplication_key="user-42"))
    chosen = {"redirect_uri": "https://evil.example.com", "deduplication_key": "victim", "platform_uuid": "x"}
    location = await google.come_back(f"{callback}&{urlencode(chosen)}")
    assert location.startswith(f"{RETURN}?calendar_id=")
    calendar = await google.calendar(query(location)["calendar_id"])
    assert calendar["deduplication_key"] == "user-42"
    assert calendar["platform_uuid"] is None


async def test_an_address_that_was_taken_off_the_list_gets_no_browser_any_more(google, sessions):
    callback = await google.agree(await google.start())
    await google.api.patch(f"{APPS}/google", json={"redirect_uris": ["https://app.example.com/new"]})
    assert_plain_page(await google.browser.get(callback))
    assert await calendars(sessions) == []


async def test_a_callback_works_once(flow, sessions):
    callback = await flow.agree(await flow.start())
    await flow.come_back(callback)
    asked = len(flow.fake.requests_to("token"))
    assert_plain_page(await flow.browser.get(callback))
    # Not even with a code that is good.
    other = await flow.agree(await flow.start())
    assert_plain_page(await flow.browser.get(replace_query(callback, code=query(other)["code"])))
    assert len(flow.fake.requests_to("token")) == asked
    assert len(await calendars(sessions)) == 1


async def test_a_failed_attempt_uses_the_state_up_too(google):
    google.fake.denies_consent = True
    callback = await google.agree(await google.start())
    await google.come_back(callback)
    google.fake.denies_consent = False
    assert_plain_page(await google.browser.get(callback))


async def test_of_many_callbacks_at_once_one_is_taken(google, sessions):
    callback = await google.agree(await google.start())
    answers = await asyncio.gather(*(google.browser.get(callback) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [302] + [400] * 7
    assert len(await calendars(sessions)) == 1
    assert len(google.fake.requests_to("token")) == 1


async def test_a_forged_state_gets_a_plain_page(google):
    await google.start()
    for state in ("forged", "", "\x00", "x" * 5000):
        for more in ({"code": "4/0A"}, {"error": "access_denied"}, {}):
            forged = urlencode({"state": state, **more})
            assert_plain_page(await google.browser.get(f"{MAIN}/oauth/google/callback?{forged}"))
    assert_plain_page(await google.browser.get(f"{MAIN}/oauth/google/callback"))
    assert google.fake.requests_to("token") == []


async def test_the_page_speaks_the_visitors_language(google):
    url = f"{MAIN}/oauth/google/callback?state=x&code=y"
    for languages, words in (
        ("fr-CA, en;q=0.5", '<html lang="fr"'),
        ("de, en;q=0.5, fr;q=0.1", '<html lang="en"'),
        ("", "This link does not work any more"),
        ("fr", "Ce lien ne fonctionne plus"),
    ):
        answer = await google.browser.get(url, headers={"Accept-Language": languages})
        assert_plain_page(answer)
        assert words in answer.text
        assert answer.headers["vary"] == "Accept-Language"


async def test_an_expired_state_gets_a_plain_page(google, sessions):
    callback = await google.agree(await google.start())
    async with transaction(sessions) as session:
        await session.execute(update(OAuthSession).values(expires_at=func.clock_timestamp()))
    assert_plain_page(await google.browser.get(callback))
    assert await calendars(sessions) == []


async def test_a_session_lasts_ten_minutes(google, sessions):
    await google.start()
    async with sessions() as session:
        row = (await session.execute(select(OAuthSession))).scalar_one()
    assert 590 < (row.expires_at - row.created_at).total_seconds() < 610


async def test_a_state_of_another_platform_gets_a_plain_page_and_stays_good(google, microsoft, sessions):
    callback = await google.agree(await google.start())
    mixed_up = callback.replace("/oauth/google/", "/oauth/microsoft/")
    assert_plain_page(await google.browser.get(mixed_up))
    assert microsoft.fake.requests_to("token") == []
    assert_plain_page(await google.browser.get(callback.replace("/oauth/google/", "/oauth/elsewhere/")))
    await google.come_back(callback)


async def test_a_code_of_another_session_is_worthless(flow, sessions):
    """Session fixation and code injection: the victim's code in the attacker's session, or the other way round."""
    victims = await flow.agree(await flow.start(deduplication_key="victim"))
    attackers = await flow.agree(await flow.start(deduplication_key="attacker"))
    injected = replace_query(attackers, code=query(victims)["code"])
    assert_told(await flow.come_back(injected), "invalid_grant", "did not accept the authorization code")
    assert await calendars(sessions) == []


async def test_states_and_challenges_are_never_the_same(google):
    asked = [query(await google.start()) for _ in range(5)]
    for name in ("state", "code_challenge"):
        assert len({values[name] for values in asked}) == 5


async def test_no_transaction_is_open_while_the_provider_is_asked(google, engine, sessions):
    callback = await google.agree(await google.start())
    google.fake.inject_fault("token", delay=0.3)
    coming = asyncio.create_task(google.come_back(callback))
    while not google.fake.requests_to("token"):
        await asyncio.sleep(0.005)
    async with sessions() as session:
        idle = await session.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'"
            )
        )
    await coming
    assert idle == 0


# --- further calendars of the account --------------------------------------------------------------------


async def test_the_accounts_calendars_are_listed_and_a_second_one_connected(flow, settings, sessions):
    fake = flow.fake
    second = (
        fake.add_calendar("team", summary="Team") if flow.platform == "google" else fake.add_calendar("Team")
    )
    first = await flow.connect(deduplication_key="user-42")
    answer = await flow.api.get(f"/api/v1/calendars/{first}/remote_calendars")
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"next", "previous", "results"}
    listed = {item["id"]: item for item in answer.json()["results"]}
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

    # Both hang on one grant: connecting one again revives both, and deleting one leaves the other's credentials.
    for calendar_id in (first, made.json()["id"]):
        await disconnect(sessions, calendar_id)
    await flow.connect(deduplication_key="user-42")
    assert {row.state for row in await calendars(sessions)} == {"connected"}
    await flow.api.delete(f"/api/v1/calendars/{first}")
    assert (await flow.api.get(f"/api/v1/calendars/{made.json()['id']}/remote_calendars")).status_code == 200


async def test_listing_tells_what_is_wrong_with_the_account(google, settings):
    calendar_id = await google.connect()
    url = f"/api/v1/calendars/{calendar_id}/remote_calendars"
    google.fake.inject_fault("calendarList.list", 503, count=9)
    assert (await google.api.get(url)).status_code == 502
    google.fake.clear_faults()
    google.fake.inject_fault("calendarList.list", 429, "rateLimitExceeded", count=9)
    answer = await google.api.get(url)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    google.fake.clear_faults()
    for token in list(google.fake._refresh_tokens):
        google.fake.revoke_grant(token)
    answer = await google.api.get(url)
    assert answer.status_code == 409
    assert "connect again" in answer.json()["error"].lower()


def rotate(google, secret):
    """At Google: from now on the client has this secret."""
    google.fake.add_client(google.fake.client_id, secret, redirect_uris=[f"{MAIN}/oauth/google/callback"])


async def refreshes(settings, sessions, calendar_id):
    """Whether Google gives a new access token for what is stored."""
    async with transaction(sessions) as session:
        calendar = await session.get_one(Calendar, calendar_id)
        cached = {"access_token_sealed": None, "access_token_expires_at": None}
        await session.execute(update(Credentials).values(**cached))
    box = SecretBox(settings.fernet_keys)
    async with operator_client() as client:
        store = CredentialStore(settings=settings, sessions=sessions, box=box, client=client)
        try:
            return bool(await store.access_token(calendar.credentials_id or "", None))
        except ClientMisconfigured:
            return False


async def stored_credentials(sessions):
    async with sessions() as session:
        statement = text("SELECT id, xmin::text, version, sealed FROM credentials ORDER BY id")
        return [tuple(row) for row in await session.execute(statement)]


async def test_a_new_secret_of_the_app_writes_one_row_however_many_calendars_it_connected(
    google, settings, sessions
):
    ids = [await google.connect(deduplication_key=f"user-{number}") for number in range(5)]
    before = await stored_credentials(sessions)
    # A token refresh that holds one of the rows does not hold up the request, nor the other way round.
    async with transaction(sessions) as session:
        await session.execute(text("SELECT FROM credentials FOR UPDATE"))
        async with asyncio.timeout(3):
            answer = await google.api.patch(f"{APPS}/google", json={"client_secret": "rotated"})
    assert answer.status_code == 200
    assert await stored_credentials(sessions) == before
    rotate(google, "rotated")
    for calendar_id in ids:
        assert await refreshes(settings, sessions, calendar_id)


async def test_a_rotated_secret_outlives_the_app_and_its_change_to_another_client(google, settings, sessions):
    calendar_id = await google.connect()
    await google.api.patch(f"{APPS}/google", json={"client_secret": "rotated"})
    await google.api.patch(f"{APPS}/google", json={"client_id": "another", "client_secret": "another's"})
    rotate(google, "rotated")
    assert await refreshes(settings, sessions, calendar_id)
    await google.api.delete(f"{APPS}/google")
    rotate(google, "rotated")
    assert await refreshes(settings, sessions, calendar_id)


async def test_the_secret_that_was_given_last_counts(google, settings, sessions):
    calendar_id = await google.connect()
    path = f"/api/v1/calendars/{calendar_id}"
    await google.api.patch(f"{APPS}/google", json={"client_secret": "second"})
    # A new refresh token brings no secret of its own.
    await google.api.patch(path, json={"refresh_token": google.fake.add_grant()})
    rotate(google, "second")
    assert await refreshes(settings, sessions, calendar_id)
    await google.api.patch(path, json={"client_secret": "third"})
    rotate(google, "third")
    assert await refreshes(settings, sessions, calendar_id)
    await google.api.patch(f"{APPS}/google", json={"client_secret": "fourth"})
    rotate(google, "fourth")
    assert await refreshes(settings, sessions, calendar_id)


async def test_a_new_secret_reaches_no_other_projects_calendar(google, settings, sessions, other_project):
    mine = await google.connect()
    secrets = {"client_secret": google.fake.client_secret, "refresh_token": google.fake.add_grant()}
    theirs = await factories.add_calendar(
        sessions, settings, other_project.id, client_id=google.fake.client_id, secrets=secrets
    )
    await google.api.patch(f"{APPS}/google", json={"client_secret": "wrong"})
    assert await refreshes(settings, sessions, theirs)
    assert not await refreshes(settings, sessions, mine)


async def test_a_new_secret_of_the_app_reaches_the_calendars_that_it_connected(google, settings, sessions):
    calendar_id = await google.connect()
    google.fake.add_client(google.fake.client_id, "rotated", redirect_uris=[f"{MAIN}/oauth/google/callback"])
    await google.api.patch(f"{APPS}/google", json={"client_secret": "rotated"})
    async with factories.sync_engine(settings, sessions) as engine:
        await factories.sync_now(engine, sessions, calendar_id)
    assert (await google.calendar(calendar_id))["last_successful_sync_at"] is not None
