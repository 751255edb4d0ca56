"""Attacks on sessions, states and callbacks, and states that have expired."""

import asyncio
from urllib.parse import urlencode

from sqlalchemy import func, select, text, update

from app.core.db import transaction
from app.models import OAuthSession
from tests.flows.oauth.browser import (
    APPS,
    MAIN,
    RETURN,
    SESSIONS,
    assert_error_sent,
    calendars,
    query,
    replace_query,
)


def assert_plain_page(response):
    assert response.status_code == 400
    assert "location" not in response.headers
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert "start again" in response.text or "recommencez" in response.text


# --- attacks ---------------------------------------------------------------------------------------------


async def test_a_session_to_an_unregistered_address_is_refused(google, sessions):
    for address in (
        "https://evil.example.com/connected", "https://app.example.com/connected/", "https://app.example.com",
        "https://app.example.com/connected?x=1", "http://app.example.com/connected", "HTTPS://app.example.com/connected",
        "https://app.example.com/connected#x", "https://app.example.com/connected/../evil", "//evil.example.com",
    ):  # fmt: skip
        response = await google.api.post(SESSIONS, json={"platform": "google", "redirect_uri": address})
        assert response.status_code == 400
        assert response.json().keys() == {"redirect_uri"}
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
    # A valid code does not change that.
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
    responses = await asyncio.gather(*(google.browser.get(callback) for _ in range(8)))
    assert sorted(response.status_code for response in responses) == [302] + [400] * 7
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
        response = await google.browser.get(url, headers={"Accept-Language": languages})
        assert_plain_page(response)
        assert words in response.text
        assert response.headers["vary"] == "Accept-Language"


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
    assert_error_sent(
        await flow.come_back(injected), "invalid_grant", "did not accept the authorization code"
    )
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
