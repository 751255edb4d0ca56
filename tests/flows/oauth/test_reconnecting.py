"""Connecting again with a known deduplication key."""

import asyncio

import orjson
from sqlalchemy import select

from app.core.db import transaction
from app.core.ids import new_id
from app.models import WebhookDelivery, WebhookSubscription
from tests import factories
from tests.flows.oauth.browser import assert_error_sent, become_eve, calendars, disconnect, query, secrets_of


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


async def test_without_a_refresh_token_in_spite_of_consent_the_application_is_notified(microsoft, sessions):
    microsoft.fake.omits_refresh_token = True
    assert_error_sent(await microsoft.run(), "invalid_grant", "gave no refresh token")
    assert await calendars(sessions) == []


async def test_two_browsers_with_the_same_key_at_once_make_one_calendar(google, sessions):
    urls = [await google.agree(await google.start(deduplication_key="user-42")) for _ in range(4)]
    locations = await asyncio.gather(*(google.come_back(url) for url in urls))
    assert len({query(location)["calendar_id"] for location in locations}) == 1
    assert len(await calendars(sessions)) == 1
