"""`PATCH /calendars/{id}`: metadata, new credentials, and how they reconnect calendars."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from app.core.db import transaction
from app.core.lease import LeaseLost
from app.models import Calendar, Credentials
from app.sync import repository as sync_repository
from tests import factories
from tests.integration.calendars.calendars_api import (
    FEED,
    URL,
    create,
    deliveries,
    disconnect,
    secrets_of,
    subscribe,
)


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
        response = await api.patch(f"{URL}/{calendar['id']}", json=body)
        assert (response.status_code, response.json()) == (400, expected), body
    assert (await api.get(f"{URL}/{calendar['id']}")).json() == calendar


async def test_a_feed_has_no_client_secret(api):
    calendar = (await api.post(URL, json=FEED)).json()
    response = await api.patch(f"{URL}/{calendar['id']}", json={"client_secret": "x", "refresh_token": "y"})
    assert (response.status_code, sorted(response.json())) == (400, ["client_secret", "refresh_token"])


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

    response = await api.patch(
        f"{URL}/{calendar['id']}", json={"refresh_token": "hidden-9", "metadata": {"a": "b"}}
    )

    assert response.status_code == 200
    shown = response.json()
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
    response = await api.patch(f"{URL}/{calendar['id']}", json={"feed_url": "webcal://example.com/hidden-4"})
    assert response.json()["state"] == "connected"
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
    response = await api.patch(path, json={"refresh_token": "new"})
    sentence = "The stored value can no longer be decrypted: send this field too."
    assert (response.status_code, response.json()) == (400, {"client_secret": [sentence]})
    assert (await api.patch(path, json={"refresh_token": "new", "client_secret": "new"})).status_code == 200


async def test_of_an_unknown_calendar_no_body_is_right(api, other_api):
    calendar = await create(api)
    bodies: list[Any] = [{"metadata": {}}, {"platform": "ics"}, []]
    for client, calendar_id in ((api, "cal_aaaaaaaaaaaaaaaa"), (api, "nothing"), (other_api, calendar["id"])):
        for body in bodies:
            response = await client.patch(f"{URL}/{calendar_id}", json=body)
            assert (response.status_code, response.json()) == (404, {"error": "Calendar not found"})
    assert (await api.patch(f"{URL}/{calendar['id']}", json=[])).status_code == 400


async def test_updated_at_moves_with_the_content_only(api):
    calendar = await create(api, metadata={"a": "1"})
    await api.post(f"{URL}/{calendar['id']}/sync")
    assert (await api.get(f"{URL}/{calendar['id']}")).json()["updated_at"] == calendar["updated_at"]
    changed = (await api.patch(f"{URL}/{calendar['id']}", json={"metadata": {"a": "2"}})).json()
    assert changed["updated_at"] > calendar["updated_at"]
