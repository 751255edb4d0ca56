"""Calendars over HTTP (docs/reference/http-api.md, "Calendars")."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from app.core.crypto import SecretBox
from app.core.db import transaction
from app.core.ids import new_id
from app.core.lease import LeaseLost
from app.credentials.sealed import context_of
from app.events.retention import clear_deleted
from app.models import Calendar, CalendarEvent, Credentials, WebhookDelivery, WebhookSubscription
from app.sync import repository as sync_repository
from tests import factories

URL = "/api/v1/calendars"
GOOGLE = {"platform": "google", "client_id": "id-1", "client_secret": "hidden-1", "refresh_token": "hidden-2"}
FEED = {"platform": "ics", "feed_url": "https://example.com/hidden-3.ics"}
FIELDS = {
    "id", "platform", "client_id", "platform_uuid", "state", "metadata", "deduplication_key",
    "connection_failure_data", "created_at", "updated_at", "last_successful_sync_at", "last_attempted_sync_at",
    "sync_failing_since", "sync_failure", "name", "owner_email", "owner_name", "timezone", "locale", "sending_identity",
}  # fmt: skip


async def create(api, **fields):
    answer = await api.post(URL, json={**GOOGLE, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


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


async def disconnect(sessions, *calendar_ids):
    async with transaction(sessions) as session:
        await session.execute(
            update(Calendar)
            .where(Calendar.id.in_(calendar_ids))
            .values(
                state="disconnected",
                connection_failure_data={"error": "gone", "code": "credentials_revoked"},
                sync_failing_since=func.now(),
                sync_failure_count=3,
                sync_failure_code="credentials_revoked",
                sync_cursor="old",
                next_sync_at=datetime.now(UTC) + timedelta(hours=1),
            )
        )


async def subscribe(sessions, project_id, trigger):
    async with transaction(sessions) as session:
        session.add(
            WebhookSubscription(
                id=new_id("webhook"),
                project_id=project_id,
                url="https://example.com/",
                triggers=[trigger],
                secrets_sealed=b"",
            )
        )


async def deliveries(sessions):
    async with sessions() as session:
        return list(await session.scalars(select(WebhookDelivery)))


async def add_event(sessions, project_id, calendar_id, platform_uuid="e1"):
    async with transaction(sessions) as session:
        session.add(
            CalendarEvent(
                id=new_id("evt"), project_id=project_id, calendar_id=calendar_id, platform_uuid=platform_uuid,
                content_hash=b"", attendees=[], raw={},
            )
        )  # fmt: skip


# -- create -------------------------------------------------------------------------------------------------


async def test_a_created_google_calendar_is_answered_with_exactly_the_contracts_fields(api):
    body = {
        **GOOGLE,
        "platform_uuid": "team@example.com",
        "metadata": {"user": "42"},
        "deduplication_key": "u42",
    }
    answer = await api.post(URL, json=body)
    assert answer.status_code == 201
    calendar = answer.json()
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
    answer = await api.post(URL, json={**FEED, "feed_url": " webcal://example.com/hidden-3.ics#top"})
    assert answer.status_code == 201
    assert "hidden" not in answer.text
    calendar = answer.json()
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
        answer = await api.post(URL, json=body)
        assert (answer.status_code, answer.json()) == (400, expected), body


async def test_a_body_that_is_not_json_is_refused(api):
    answer = await api.post(URL, content=b"{", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()) == (400, {"non_field_errors": ["The body is not valid JSON."]})


async def test_a_feed_address_that_cannot_be_one_is_refused_and_not_repeated(api):
    for feed_url in (
        "ftp://example.com/hidden",
        "example.com/hidden",
        "https://?hidden",
        "https://a b/hidden",
    ):
        answer = await api.post(URL, json={**FEED, "feed_url": feed_url})
        assert (answer.status_code, list(answer.json())) == (400, ["feed_url"]), feed_url
        assert "hidden" not in answer.text


@pytest.mark.settings(allow_private_network_targets=False)
async def test_a_feed_over_plain_http_is_refused(api):
    answer = await api.post(URL, json={**FEED, "feed_url": "http://example.com/a.ics"})
    assert (answer.status_code, list(answer.json())) == (400, ["feed_url"])


async def test_the_longest_deduplication_key_is_taken(api):
    key = "é" * 1000
    await create(api, deduplication_key=key)
    assert len((await api.get(URL, params={"deduplication_key": key})).json()["results"]) == 1


# -- deduplication ------------------------------------------------------------------------------------------

TAKEN = {"deduplication_key": ["A calendar with this deduplication key already exists in this project."]}


async def test_a_deduplication_key_is_unique_over_all_platforms_of_a_project(api, other_api):
    await create(api, deduplication_key="u1")
    for body in (GOOGLE, FEED):
        answer = await api.post(URL, json={**body, "deduplication_key": "u1"})
        assert (answer.status_code, answer.json()) == (400, TAKEN)
    await create(other_api, deduplication_key="u1")


async def test_of_requests_at_the_same_time_with_one_deduplication_key_one_succeeds(api, sessions):
    answers = await asyncio.gather(
        *(api.post(URL, json={**GOOGLE, "deduplication_key": "u1"}) for _ in range(12))
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [400] * 11
    assert all(answer.json() == TAKEN for answer in answers if answer.status_code == 400)
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(Credentials)) == 1


async def test_a_deduplication_key_is_free_again_when_its_calendar_is_gone(api):
    first = await create(api, deduplication_key="u1")
    await api.delete(f"{URL}/{first['id']}")
    await create(api, deduplication_key="u1")


# -- list and get -------------------------------------------------------------------------------------------


async def test_the_list_has_25_a_page_newest_first_and_neither_repeats_nor_loses_rows(api):
    made = [(await create(api))["id"] for _ in range(30)]
    first = (await api.get(URL)).json()
    assert [calendar["id"] for calendar in first["results"]] == made[:4:-1]
    assert first["previous"] is None
    await create(api)  # while the client reads on
    second = (await api.get(first["next"])).json()
    assert [calendar["id"] for calendar in second["results"]] == made[4::-1]
    assert second["next"] is None
    back = (await api.get(second["previous"])).json()
    assert back["results"] == first["results"]
    assert back["previous"] is not None  # the new one


async def test_links_keep_the_filters(api):
    for _ in range(26):
        await create(api)
    await api.post(URL, json=FEED)
    page = (await api.get(URL, params={"platform": "google"})).json()
    assert page["next"].startswith("http://testserver/api/v1/calendars?platform=google&cursor=")
    assert len((await api.get(page["next"])).json()["results"]) == 1


async def test_the_list_filters_by_deduplication_key_state_and_platform(api, sessions):
    google = await create(api, deduplication_key="a")
    feed = (await api.post(URL, json={**FEED, "deduplication_key": "b"})).json()
    await disconnect(sessions, feed["id"])

    async def ids(**query):
        return [calendar["id"] for calendar in (await api.get(URL, params=query)).json()["results"]]

    assert await ids(deduplication_key="a") == [google["id"]]
    assert await ids(deduplication_key="none") == []
    assert await ids(state="disconnected") == [feed["id"]]
    assert await ids(platform="google", state="connected") == [google["id"]]
    assert await ids(platform="google", state="disconnected") == []
    for name in ("deduplication_key", "state", "platform"):
        assert await ids(**{name: ""}) == [], "an empty filter does not mean everybody's"


BAD_QUERIES = [
    ("state=gone", "state: Input should be 'connected' or 'disconnected'."),
    ("platform=x", "platform: Input should be 'google', 'microsoft', 'ics' or 'local'."),
    ("cursor=x", "The cursor is not one that this list gave out. Start again without it."),
    ("deduplication_key=a%00b", "query: NUL characters are not allowed."),
    ("deduplication_key=" + "x" * 1025, "deduplication_key: Longer than 1024 characters."),
    ("colour=red", "colour: Unknown query parameter."),
]


async def test_bad_query_values_are_refused_with_a_sentence(api):
    for query, sentence in BAD_QUERIES:
        answer = await api.get(f"{URL}?{query}")
        assert (answer.status_code, answer.json()) == (400, {"error": sentence})


async def test_another_projects_calendar_is_not_found(api, other_api):
    calendar = await create(api)
    path = f"{URL}/{calendar['id']}"
    answers = [
        await other_api.get(path),
        await other_api.patch(path, json={"metadata": {"a": "b"}}),
        await other_api.delete(path),
        await other_api.post(f"{path}/sync"),
    ]
    assert [(answer.status_code, answer.json()) for answer in answers] == [
        (404, {"error": "Calendar not found"})
    ] * 4
    assert (await other_api.get(URL)).json()["results"] == []
    assert (await api.get(path)).json() == calendar


async def test_what_cannot_be_an_id_is_not_found(api):
    for name in ("cal_0000000000000000", "x", "cal_%00", "evt_0000000000000000", "cal_000000000000000é"):
        for answer in (await api.get(f"{URL}/{name}"), await api.delete(f"{URL}/{name}")):
            assert (answer.status_code, answer.json()) == (404, {"error": "Calendar not found"}), name


async def test_without_a_valid_key_nothing_is_answered(api):
    for header in ("", "Token", "Token wrong", "Basic eA==", "Token a\x80"):
        answer = await api.get(URL, headers={"Authorization": header.encode("latin-1")})
        assert (answer.status_code, list(answer.json())) == (401, ["detail"])
    assert (
        await api.get(URL, headers={"Authorization": api.headers["Authorization"].replace("Token", "Bearer")})
    ).status_code == 200


# -- update -------------------------------------------------------------------------------------------------


async def test_metadata_is_replaced_or_removed(api):
    calendar = await create(api, metadata={"a": "1", "b": "2"})
    path = f"{URL}/{calendar['id']}"
    changed = (await api.patch(path, json={"metadata": {"c": "3"}})).json()
    assert changed["metadata"] == {"c": "3"}
    assert changed["updated_at"] > calendar["updated_at"]
    assert (await api.patch(path, json={"metadata": None})).json()["metadata"] is None
    assert (await api.get(path)).json()["metadata"] is None


BAD_CHANGES = [
    ({"metadata": {}}, {"metadata": ["Must have at least one key."]}),
    ({"refresh_token": ""}, {"refresh_token": ["This field may not be blank."]}),
    ({"platform": "ics"}, {"platform": ["This field is fixed once the calendar exists."]}),
    ({"client_id": "x"}, {"client_id": ["This field is fixed once the calendar exists."]}),
    ({"platform_uuid": "x"}, {"platform_uuid": ["This field is fixed once the calendar exists."]}),
    (
        {"deduplication_key": "x"},
        {"deduplication_key": ["This field is fixed once the calendar exists."]},
    ),
    ({"state": "connected"}, {"state": ["Unknown field."]}),
    (
        {"feed_url": "https://a.example/"},
        {"feed_url": ["A calendar of platform google has no such field."]},
    ),
]


async def test_what_cannot_be_changed_is_refused_by_name(api):
    calendar = await create(api)
    for body, expected in BAD_CHANGES:
        answer = await api.patch(f"{URL}/{calendar['id']}", json=body)
        assert (answer.status_code, answer.json()) == (400, expected), body
    assert (await api.get(f"{URL}/{calendar['id']}")).json() == calendar


async def test_a_feed_has_no_client_secret(api):
    calendar = (await api.post(URL, json=FEED)).json()
    answer = await api.patch(f"{URL}/{calendar['id']}", json={"client_secret": "x", "refresh_token": "y"})
    assert (answer.status_code, sorted(answer.json())) == (400, ["client_secret", "refresh_token"])


async def test_any_patch_makes_the_calendar_due_at_once(api, sessions):
    calendar = await create(api)
    async with transaction(sessions) as session:
        await session.execute(update(Calendar).values(next_sync_at=datetime.now(UTC) + timedelta(hours=1)))
    assert (await api.patch(f"{URL}/{calendar['id']}", json={})).status_code == 200
    stored = await factories.load_calendar(sessions, calendar["id"])
    assert stored.next_sync_at <= datetime.now(UTC)


async def test_new_credentials_reconnect_the_calendar(api, sessions, settings, project):
    calendar = await create(api, deduplication_key="u1")
    await subscribe(sessions, project.id, "calendar.state_change")
    await disconnect(sessions, calendar["id"])
    async with transaction(sessions) as session:
        await session.execute(
            update(Credentials).values(access_token_sealed=b"x", access_token_expires_at=func.now())
        )

    answer = await api.patch(
        f"{URL}/{calendar['id']}", json={"refresh_token": "hidden-9", "metadata": {"a": "b"}}
    )

    assert answer.status_code == 200
    shown = answer.json()
    assert (shown["state"], shown["connection_failure_data"], shown["sync_failing_since"]) == (
        "connected",
        None,
        None,
    )
    expected = {"client_secret": "hidden-1", "refresh_token": "hidden-9"}
    assert await secrets_of(sessions, settings, calendar["id"]) == expected
    stored = await factories.load_calendar(sessions, calendar["id"])
    assert (stored.sync_failure_count, stored.sync_failure_code, stored.sync_cursor) == (0, None, None)
    assert stored.next_sync_at <= datetime.now(UTC)
    async with sessions() as session:
        credentials = (await session.execute(select(Credentials))).scalar_one()
    assert (credentials.version, credentials.access_token_sealed, credentials.access_token_expires_at) == (
        2,
        None,
        None,
    )
    (delivery,) = await deliveries(sessions)
    assert delivery.trigger == "calendar.state_change"
    assert b'"calendar_deduplication_key":"u1"' in delivery.body
    assert b'"calendar_metadata":{"a":"b"}' in delivery.body
    assert b'"state":"connected"' in delivery.body


async def test_new_credentials_of_a_connected_calendar_announce_nothing(api, sessions, project):
    calendar = await create(api)
    await subscribe(sessions, project.id, "calendar.state_change")
    assert (await api.patch(f"{URL}/{calendar['id']}", json={"client_secret": "x"})).status_code == 200
    assert await deliveries(sessions) == []


async def test_a_feed_gets_a_new_address(api, sessions, settings):
    calendar = (await api.post(URL, json=FEED)).json()
    await disconnect(sessions, calendar["id"])
    answer = await api.patch(f"{URL}/{calendar['id']}", json={"feed_url": "webcal://example.com/hidden-4"})
    assert answer.json()["state"] == "connected"
    assert await secrets_of(sessions, settings, calendar["id"]) == {
        "feed_url": "https://example.com/hidden-4"
    }


async def test_new_credentials_reconnect_every_calendar_that_shares_them(api, sessions, project):
    first, second = await create(api), await create(api)
    third = await create(api)
    async with transaction(sessions) as session:
        shared = select(Calendar.credentials_id).where(Calendar.id == first["id"]).scalar_subquery()
        await session.execute(
            update(Calendar).where(Calendar.id == second["id"]).values(credentials_id=shared)
        )
    await disconnect(sessions, first["id"], second["id"], third["id"])
    await subscribe(sessions, project.id, "calendar.state_change")
    await api.patch(f"{URL}/{second['id']}", json={"client_secret": "x", "refresh_token": "y"})
    states = {c["id"]: c["state"] for c in (await api.get(URL)).json()["results"]}
    assert states == {first["id"]: "connected", second["id"]: "connected", third["id"]: "disconnected"}
    assert {delivery.calendar_id for delivery in await deliveries(sessions)} == {first["id"], second["id"]}


async def test_a_sync_with_the_old_credentials_loses_its_lease(api, sessions):
    calendar = await create(api)
    async with transaction(sessions) as session:
        (claim,) = await sync_repository.claim_due(session, limit=1, lease_for=timedelta(seconds=60))
    await api.patch(f"{URL}/{calendar['id']}", json={"metadata": {"a": "b"}})
    async with transaction(sessions) as session:
        await sync_repository.lock_calendar(session, claim)  # metadata alone ends no sync
    await api.patch(f"{URL}/{calendar['id']}", json={"refresh_token": "new"})
    with pytest.raises(LeaseLost):
        async with transaction(sessions) as session:
            await sync_repository.lock_calendar(session, claim)


async def test_half_of_the_secrets_is_not_enough_when_the_stored_ones_cannot_be_decrypted(api, sessions):
    calendar = await create(api)
    async with transaction(sessions) as session:
        await session.execute(update(Credentials).values(sealed=b"written with a lost key"))
    path = f"{URL}/{calendar['id']}"
    answer = await api.patch(path, json={"refresh_token": "new"})
    sentence = "The stored value can no longer be decrypted: send this field too."
    assert (answer.status_code, answer.json()) == (400, {"client_secret": [sentence]})
    assert (await api.patch(path, json={"refresh_token": "new", "client_secret": "new"})).status_code == 200


# -- delete -------------------------------------------------------------------------------------------------


async def test_deleting_takes_events_pending_deliveries_and_credentials_along(api, sessions, project):
    calendar, other = await create(api), await create(api)
    await subscribe(sessions, project.id, "calendar.state_change")
    for each in (calendar, other):
        await add_event(sessions, project.id, each["id"])
        await disconnect(sessions, each["id"])
        await api.patch(f"{URL}/{each['id']}", json={"client_secret": "x"})
    assert len(await deliveries(sessions)) == 2

    answer = await api.delete(f"{URL}/{calendar['id']}")

    assert (answer.status_code, answer.content) == (200, b"")
    assert (await api.get(f"{URL}/{calendar['id']}")).status_code == 404
    assert (await api.delete(f"{URL}/{calendar['id']}")).status_code == 404
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(Credentials)) == 1
    listed = (await api.get("/api/v1/calendar_events")).json()["results"]
    assert [event["calendar_id"] for event in listed] == [other["id"]]
    await clear_deleted(sessions)
    async with sessions() as session:
        assert list(await session.scalars(select(CalendarEvent.calendar_id))) == [other["id"]]
    assert [delivery.calendar_id for delivery in await deliveries(sessions)] == [other["id"]]


async def test_shared_credentials_go_with_the_last_calendar_that_uses_them(api, sessions):
    first, second = await create(api), await create(api)
    async with transaction(sessions) as session:
        shared = select(Calendar.credentials_id).where(Calendar.id == first["id"]).scalar_subquery()
        await session.execute(
            update(Calendar).where(Calendar.id == second["id"]).values(credentials_id=shared)
        )

    async def count():
        async with sessions() as session:
            used = select(Calendar.id).where(Calendar.credentials_id == Credentials.id).exists()
            return await session.scalar(select(func.count()).select_from(Credentials).where(used))

    await api.delete(f"{URL}/{first['id']}")
    assert await count() == 1
    await api.delete(f"{URL}/{second['id']}")
    assert await count() == 0


async def test_calendars_that_share_credentials_can_be_deleted_at_the_same_time(api, sessions):
    made = [(await create(api))["id"] for _ in range(6)]
    async with transaction(sessions) as session:
        shared = select(Calendar.credentials_id).where(Calendar.id == made[0]).scalar_subquery()
        await session.execute(update(Calendar).values(credentials_id=shared))
    answers = await asyncio.gather(*(api.delete(f"{URL}/{calendar_id}") for calendar_id in made))
    assert {answer.status_code for answer in answers} == {200}
    async with sessions() as session:
        left = await session.scalar(select(func.count()).select_from(Credentials))
    assert left == 5  # those that no calendar used any more before


async def test_a_sync_that_is_under_way_cannot_write_to_a_deleted_calendar(api, sessions):
    calendar = await create(api)
    async with transaction(sessions) as session:
        (claim,) = await sync_repository.claim_due(session, limit=1, lease_for=timedelta(seconds=60))
    await api.delete(f"{URL}/{calendar['id']}")
    with pytest.raises(LeaseLost):
        async with transaction(sessions) as session:
            await sync_repository.lock_calendar(session, claim)


# -- sync ---------------------------------------------------------------------------------------------------


async def test_a_sync_can_be_asked_for(api, sessions):
    calendar = await create(api)
    async with transaction(sessions) as session:
        await session.execute(update(Calendar).values(next_sync_at=datetime.now(UTC) + timedelta(hours=1)))
    answer = await api.post(f"{URL}/{calendar['id']}/sync")
    assert (answer.status_code, answer.json()) == (202, {"status": "queued"})
    assert (await factories.load_calendar(sessions, calendar["id"])).next_sync_at <= datetime.now(UTC)


async def test_a_disconnected_calendar_says_what_it_needs_instead_of_a_sync(api, sessions):
    calendar = await create(api)
    await disconnect(sessions, calendar["id"])
    answer = await api.post(f"{URL}/{calendar['id']}/sync")
    sentence = "The calendar is disconnected. PATCH it with new credentials: that reconnects and syncs it."
    assert (answer.status_code, answer.json()) == (400, {"non_field_errors": [sentence]})


async def test_a_worker_is_woken_when_a_calendar_is_connected(api, app, redis_url):
    from redis.asyncio import Redis

    await create(api)
    await app.state.calbridge.wakeups.flush()
    async with Redis.from_url(redis_url) as redis:
        assert await redis.exists("arq:job:wake:syncs")


async def test_a_calendar_that_stays_locked_answers_503_and_not_500(api, sessions) -> None:
    body = {"platform": "google", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    calendar = (await api.post("/api/v1/calendars", json=body)).json()
    async with transaction(sessions) as session:
        await session.execute(text("SELECT FROM calendars FOR UPDATE"))
        answer = await api.delete(f"/api/v1/calendars/{calendar['id']}")
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers


async def test_of_an_unknown_calendar_no_body_is_right(api, other_api):
    calendar = await create(api)
    bodies: list[Any] = [{"metadata": {}}, {"platform": "ics"}, []]
    for client, calendar_id in ((api, "cal_aaaaaaaaaaaaaaaa"), (api, "nothing"), (other_api, calendar["id"])):
        for body in bodies:
            answer = await client.patch(f"{URL}/{calendar_id}", json=body)
            assert (answer.status_code, answer.json()) == (404, {"error": "Calendar not found"})
    assert (await api.patch(f"{URL}/{calendar['id']}", json=[])).status_code == 400


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


async def test_updated_at_moves_with_the_content_only(api):
    calendar = await create(api, metadata={"a": "1"})
    await api.post(f"{URL}/{calendar['id']}/sync")
    assert (await api.get(f"{URL}/{calendar['id']}")).json()["updated_at"] == calendar["updated_at"]
    changed = (await api.patch(f"{URL}/{calendar['id']}", json={"metadata": {"a": "2"}})).json()
    assert changed["updated_at"] > calendar["updated_at"]
