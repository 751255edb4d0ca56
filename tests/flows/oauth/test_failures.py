"""Refusals and outages while a calendar is being connected."""

from urllib.parse import urlencode

from tests.fakes.google import EMAIL_SCOPE
from tests.flows.oauth.browser import APPS, MAIN, assert_error_sent, calendars, query, replace_query


async def test_a_refused_consent_is_reported_to_the_application(flow, sessions):
    flow.fake.denies_consent = True
    assert_error_sent(await flow.run(), "access_denied", "was not given")
    assert await calendars(sessions) == []


async def test_an_unticked_calendar_box_creates_nothing(flow, sessions):
    is_google = flow.platform == "google"
    flow.fake.granted_scopes = (EMAIL_SCOPE,) if is_google else ("User.Read", "offline_access")
    assert_error_sent(await flow.run(), "access_denied", "leave its box ticked")
    assert await calendars(sessions) == []
    assert flow.fake.requests_to("userinfo" if is_google else "me") == []


async def test_microsofts_spellings_of_a_scope_are_all_understood(microsoft):
    microsoft.fake.granted_scopes = ("Calendars.ReadWrite", "User.Read", "offline_access")
    for style in ("short", "url", "lower"):
        microsoft.fake.scope_style = style
        await microsoft.connect()


async def test_a_failing_code_exchange_is_reported_to_the_application(flow, sessions):
    callback = replace_query(await flow.agree(await flow.start()), code="forged")
    assert_error_sent(
        await flow.come_back(callback), "invalid_grant", "did not accept the authorization code"
    )
    assert await calendars(sessions) == []


async def test_a_wrong_client_secret_is_reported_without_being_shown(flow, sessions):
    await flow.api.patch(f"{APPS}/{flow.platform}", json={"client_secret": "wrong-secret"})
    location = await flow.run()
    assert_error_sent(location, "invalid_client", "check its client id, secret")
    assert "wrong-secret" not in location
    assert await calendars(sessions) == []


async def test_an_outage_of_the_token_endpoint_is_reported_and_the_next_attempt_works(flow, sessions):
    for kind in ("response", "reset", "html"):
        if kind == "html":
            flow.fake.inject_fault("token", 400, body=b"<html>busy</html>", content_type="text/html")
        else:
            flow.fake.inject_fault("token", 503, kind=kind)
        assert_error_sent(await flow.run(), "temporarily_unavailable", "Try again")
    assert await calendars(sessions) == []
    await flow.connect()


async def test_an_outage_while_the_address_is_asked_for_creates_nothing(flow, sessions):
    flow.fake.inject_fault("userinfo" if flow.platform == "google" else "me", 503)
    assert_error_sent(await flow.run(), "temporarily_unavailable", "Try again")
    assert await calendars(sessions) == []


async def test_a_callback_with_neither_code_nor_error_is_reported(google):
    callback = replace_query(await google.agree(await google.start()), code="")
    assert_error_sent(await google.come_back(callback), "invalid_request", "neither a code nor an error")


async def test_what_a_forged_error_says_is_not_passed_on(google):
    state = query(await google.start())["state"]
    forged = {"state": state, "error": "<b>call 555</b>", "error_description": "call 555 for help"}
    location = await google.come_back(f"{MAIN}/oauth/google/callback?{urlencode(forged)}")
    assert_error_sent(location, "server_error", "Try again")
    assert "555" not in location


async def test_a_key_that_a_feed_took_meanwhile_is_reported(google, sessions):
    callback = await google.agree(await google.start(deduplication_key="user-42"))
    feed = {"platform": "ics", "feed_url": "https://example.com/x.ics", "deduplication_key": "user-42"}
    assert (await google.api.post("/api/v1/calendars", json=feed)).status_code == 201
    assert_error_sent(await google.come_back(callback), "invalid_request", "is of platform ics")
    assert len(await calendars(sessions)) == 1
