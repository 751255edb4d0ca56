"""`Idempotency-Key` on POST (docs/reference/http-api.md, "Idempotency")."""

import asyncio

import pytest
from sqlalchemy import func, select, text, update

from app.core.db import transaction
from app.models import Calendar, StoredResponse
from tests import factories

URL = "/api/v1/calendars"
BODY = {"platform": "google", "client_id": "id", "client_secret": "hidden-1", "refresh_token": "hidden-2"}


async def post(api, key, body=BODY, url=URL):
    return await api.post(url, json=body, headers={"Idempotency-Key": key})


async def count(sessions, model):
    async with sessions() as session:
        return await session.scalar(select(func.count()).select_from(model))


async def test_the_same_key_and_body_give_the_first_response_again(api, sessions):
    first, second = await post(api, "k1"), await post(api, "k1")
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.content == second.content
    assert second.headers["Content-Type"] == "application/json"
    assert await count(sessions, Calendar) == 1


async def test_without_a_key_or_with_another_each_request_is_done(api, sessions):
    for key in ("k1", "k2"):
        await post(api, key)
    for _ in range(2):
        await api.post(URL, json=BODY)
    assert await count(sessions, Calendar) == 4


async def test_the_same_key_with_another_body_is_a_conflict(api, sessions):
    await post(api, "k1")
    response = await post(api, "k1", {**BODY, "client_id": "other"})
    assert (response.status_code, list(response.json())) == (409, ["error"])
    assert await count(sessions, Calendar) == 1


async def test_the_same_key_on_another_path_is_a_conflict(api):
    calendar_id = (await post(api, "k1")).json()["id"]
    assert (await post(api, "k1", url=f"{URL}/{calendar_id}/sync")).status_code == 409


async def test_projects_do_not_share_keys(api, other_api, sessions):
    first, second = await post(api, "k1"), await post(other_api, "k1")
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] != second.json()["id"]


async def test_of_requests_at_the_same_time_one_does_the_work_and_all_get_its_response(api, sessions):
    responses = await asyncio.gather(*(post(api, "k1") for _ in range(10)))
    assert {response.status_code for response in responses} == {201}
    assert len({response.content for response in responses}) == 1
    assert await count(sessions, Calendar) == 1


async def test_a_request_that_failed_is_done_anew(api, sessions):
    await api.post(URL, json={**BODY, "deduplication_key": "u1"})
    body = {**BODY, "deduplication_key": "u1"}
    assert (await post(api, "k1", body)).status_code == 400
    async with transaction(sessions) as session:
        await session.execute(update(Calendar).values(deduplication_key=None))
    assert (await post(api, "k1", body)).status_code == 201
    assert await count(sessions, StoredResponse) == 1


async def test_a_refused_body_does_not_use_the_key_up(api):
    assert (await post(api, "k1", {})).status_code == 400
    assert (await post(api, "k1")).status_code == 201


async def test_after_24_hours_the_key_is_new(api, sessions):
    await post(api, "k1")
    async with transaction(sessions) as session:
        await session.execute(
            text("UPDATE idempotent_answers SET created_at = created_at - interval '24 hours'")
        )
    assert (await post(api, "k1", {**BODY, "client_id": "other"})).status_code == 201
    assert await count(sessions, Calendar) == 2


async def test_a_repeated_sync_request_gets_its_response_again_and_is_queued_once(
    api, sessions, settings, project
):
    calendar_id = await factories.add_calendar(sessions, settings, project.id, secrets={})
    url = f"{URL}/{calendar_id}/sync"
    assert (await post(api, "k1", None, url)).status_code == 202
    async with transaction(sessions) as session:
        await session.execute(text("UPDATE calendars SET next_sync_at = now() + interval '1 hour'"))
    again = await post(api, "k1", None, url)
    assert (again.status_code, again.json()) == (202, {"status": "queued"})
    async with sessions() as session:
        assert await session.scalar(select(Calendar.next_sync_at > func.now()))


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "é"])
async def test_a_key_that_cannot_be_one_is_refused(api, key):
    response = await api.post(URL, json=BODY, headers={"Idempotency-Key": key.encode("latin-1")})
    assert (response.status_code, list(response.json())) == (400, ["error"])


async def test_stored_responses_are_sealed(api, sessions):
    await post(api, "k1")
    async with sessions() as session:
        body = await session.scalar(select(StoredResponse.body))
    assert b"cal_" not in body
