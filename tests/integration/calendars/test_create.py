"""`POST /calendars` (docs/reference/http-api.md, "Calendars")."""

import asyncio
import re
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from app.core.crypto import SecretBox
from app.core.db import transaction
from app.credentials.sealed import context_of
from app.models import Credentials
from app.sync import repository as sync_repository
from tests.integration.calendars.calendars_api import FEED, FIELDS, GOOGLE, URL, create, secrets_of


async def test_a_created_google_calendar_has_exactly_the_contracts_fields(api):
    body = {
        **GOOGLE,
        "platform_uuid": "team@example.com",
        "metadata": {"user": "42"},
        "deduplication_key": "u42",
    }
    response = await api.post(URL, json=body)
    assert response.status_code == 201
    calendar = response.json()
    assert calendar.keys() == FIELDS
    shown = {
        name: calendar[name]
        for name in ("platform", "client_id", "platform_uuid", "state", "metadata", "deduplication_key")
    }
    assert shown == {
        "platform": "google", "client_id": "id-1", "platform_uuid": "team@example.com", "state": "connected",
        "metadata": {"user": "42"}, "deduplication_key": "u42",
    }  # fmt: skip
    assert calendar["id"].startswith("cal_")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", calendar["created_at"])
    assert (await api.get(f"{URL}/{calendar['id']}")).json() == calendar


@pytest.mark.parametrize("platform", ["google", "microsoft"])
async def test_secrets_are_stored_sealed_and_never_shown(api, sessions, settings, platform):
    calendar = await create(api, platform=platform)
    expected = {"client_secret": "hidden-1", "refresh_token": "hidden-2"}
    assert await secrets_of(sessions, settings, calendar["id"]) == expected
    async with sessions() as session:
        stored = (await session.execute(select(Credentials))).scalar_one()
    assert b"hidden" not in stored.sealed
    for path in (URL, f"{URL}/{calendar['id']}"):
        assert "hidden" not in (await api.get(path)).text


async def test_a_feeds_address_is_normalised_and_treated_as_a_secret(api, sessions, settings):
    response = await api.post(URL, json={**FEED, "feed_url": " webcal://example.com/hidden-3.ics#top"})
    assert response.status_code == 201
    assert "hidden" not in response.text
    calendar = response.json()
    assert (calendar["platform"], calendar["client_id"], calendar["platform_uuid"]) == ("ics", None, None)
    expected = {"feed_url": "https://example.com/hidden-3.ics"}
    assert await secrets_of(sessions, settings, calendar["id"]) == expected


async def test_a_new_calendar_is_due_at_once(api, sessions):
    calendar = await create(api)
    async with transaction(sessions) as session:
        claims = await sync_repository.claim_due(session, limit=5, lease_for=timedelta(seconds=9))
    assert [claim.calendar_id for claim in claims] == [calendar["id"]]


BAD_BODIES = [
    (
        {},
        {
            "platform": ["This field is required: use google, microsoft, ics or local."],
            "client_id": ["This field is required."],
            "client_secret": ["This field is required."],
            "refresh_token": ["This field is required."],
        },
    ),
    (
        {"feed_url": "https://a.example"},
        {"platform": ["This field is required: use google, microsoft, ics or local."]},
    ),
    ({"platform": "yahoo"}, {"platform": ["No calendar of this platform can be connected: use google, microsoft, ics or local."]}),
    ({"platform": "local", "name": "x"}, {"owner_email": ["This field is required."]}),
    ({"platform": 5}, {"platform": ["No calendar of this platform can be connected: use google, microsoft, ics or local."]}),
    ({"platform": "ics"}, {"feed_url": ["This field is required."]}),
    (
        {"platform": "microsoft"},
        {name: ["This field is required."] for name in ("client_id", "client_secret", "refresh_token")},
    ),
    ({**GOOGLE, "refresh_token": "  "}, {"refresh_token": ["This field may not be blank."]}),
    ({**GOOGLE, "client_id": ""}, {"client_id": ["This field may not be blank."]}),
    ({**GOOGLE, "client_secret": True}, {"client_secret": ["Not a string."]}),
    ({**GOOGLE, "client_secret": None}, {"client_secret": ["Not a string."]}),
    ({**GOOGLE, "client_secret": "a\x00b"}, {"client_secret": ["NUL characters are not allowed."]}),
    ({**GOOGLE, "client_secret": "x" * 10_001}, {"client_secret": ["Longer than 10000 characters."]}),
    ({**GOOGLE, "platform_uuid": ""}, {"platform_uuid": ["This field may not be blank."]}),
    ({**GOOGLE, "feed_url": "https://a.example/"}, {"feed_url": ["Unknown field."]}),
    ({**FEED, "client_id": "x"}, {"client_id": ["Unknown field."]}),
    ({**GOOGLE, "colour": "red"}, {"colour": ["Unknown field."]}),
    ({**GOOGLE, "metadata": {}}, {"metadata": ["Must have at least one key."]}),
    ({**GOOGLE, "metadata": []}, {"metadata": ["Not an object."]}),
    ({**GOOGLE, "metadata": {"a": 1}}, {"metadata": ["The value of 'a' must be a string."]}),
    ({**GOOGLE, "metadata": {"a": "x" * 1000}}, {"metadata": ["Longer than 1000 characters as JSON."]}),
    ({**GOOGLE, "metadata": {"a\x00": "x"}}, {"metadata": ["NUL characters are not allowed."]}),
    ({**GOOGLE, "deduplication_key": " "}, {"deduplication_key": ["This field may not be blank."]}),
    ({**GOOGLE, "deduplication_key": "x" * 1025}, {"deduplication_key": ["Longer than 1024 characters."]}),
    ({**GOOGLE, "deduplication_key": "é" * 1001}, {"deduplication_key": ["Longer than 2000 bytes in UTF-8."]}),
    ([], {"non_field_errors": ["Send a JSON object as the body, with Content-Type: application/json."]}),
    ("text", {"non_field_errors": ["Send a JSON object as the body, with Content-Type: application/json."]}),
]  # fmt: skip


async def test_bad_input_is_refused_with_the_fields_name(api):
    for body, expected in BAD_BODIES:
        response = await api.post(URL, json=body)
        assert (response.status_code, response.json()) == (400, expected), body


async def test_a_body_that_is_not_json_is_refused(api):
    response = await api.post(URL, content=b"{", headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()) == (
        400,
        {"non_field_errors": ["The body is not valid JSON."]},
    )


async def test_a_feed_address_that_cannot_be_one_is_refused_and_not_repeated(api):
    for feed_url in (
        "ftp://example.com/hidden",
        "example.com/hidden",
        "https://?hidden",
        "https://a b/hidden",
    ):
        response = await api.post(URL, json={**FEED, "feed_url": feed_url})
        assert (response.status_code, list(response.json())) == (400, ["feed_url"]), feed_url
        assert "hidden" not in response.text


@pytest.mark.settings(allow_private_network_targets=False)
async def test_a_feed_over_plain_http_is_refused(api):
    response = await api.post(URL, json={**FEED, "feed_url": "http://example.com/a.ics"})
    assert (response.status_code, list(response.json())) == (400, ["feed_url"])


async def test_the_longest_deduplication_key_is_taken(api):
    key = "é" * 1000
    await create(api, deduplication_key=key)
    assert len((await api.get(URL, params={"deduplication_key": key})).json()["results"]) == 1


TAKEN = {"deduplication_key": ["A calendar with this deduplication key already exists in this project."]}


async def test_a_deduplication_key_is_unique_over_all_platforms_of_a_project(api, other_api):
    await create(api, deduplication_key="u1")
    for body in (GOOGLE, FEED):
        response = await api.post(URL, json={**body, "deduplication_key": "u1"})
        assert (response.status_code, response.json()) == (400, TAKEN)
    await create(other_api, deduplication_key="u1")


async def test_of_requests_at_the_same_time_with_one_deduplication_key_one_succeeds(api, sessions):
    responses = await asyncio.gather(
        *(api.post(URL, json={**GOOGLE, "deduplication_key": "u1"}) for _ in range(12))
    )
    assert sorted(response.status_code for response in responses) == [201] + [400] * 11
    assert all(response.json() == TAKEN for response in responses if response.status_code == 400)
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(Credentials)) == 1


async def test_a_deduplication_key_is_free_again_when_its_calendar_is_deleted(api):
    first = await create(api, deduplication_key="u1")
    await api.delete(f"{URL}/{first['id']}")
    await create(api, deduplication_key="u1")


async def test_a_worker_is_woken_when_a_calendar_is_connected(api, app, redis_url):
    from redis.asyncio import Redis

    await create(api)
    await app.state.calbridge.wakeups.flush()
    async with Redis.from_url(redis_url) as redis:
        assert await redis.exists("arq:job:wake:syncs")


async def test_numbers_become_texts_and_texts_are_trimmed(api, sessions, settings):
    calendar = await create(
        api, client_id=17, client_secret=" s ", refresh_token=1.5, platform_uuid=" a@b ", deduplication_key=42
    )
    assert (calendar["client_id"], calendar["platform_uuid"], calendar["deduplication_key"]) == (
        "17",
        "a@b",
        "42",
    )
    async with sessions() as session:
        stored = (await session.scalars(select(Credentials))).one()
    opened = SecretBox(settings.fernet_keys).open(context_of(stored.id), stored.sealed)
    assert opened == {"client_secret": "s", "refresh_token": "1.5"}
    again = await api.post(URL, json={**GOOGLE, "deduplication_key": " 42 "})
    assert list(again.json()) == ["deduplication_key"]
    for value in (True, ["a"], {"a": 1}):
        refused = await api.post(URL, json={**GOOGLE, "client_id": value})
        assert refused.json() == {"client_id": ["Not a string."]}
