"""Lists and reads of calendars, who may see them, and syncs that are asked for."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import update

from app.core.db import transaction
from app.models import Calendar
from tests import factories
from tests.integration.calendars.calendars_api import FEED, URL, create, disconnect


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
    ("state=lost", "state: Must be 'connected' or 'disconnected'."),
    ("platform=x", "platform: Must be 'google', 'microsoft', 'ics' or 'local'."),
    ("cursor=x", "The cursor is not one that this list gave out. Start again without it."),
    ("deduplication_key=a%00b", "query: NUL characters are not allowed."),
    ("deduplication_key=" + "x" * 1025, "deduplication_key: Longer than 1024 characters."),
    ("colour=red", "colour: Unknown query parameter."),
]


async def test_bad_query_values_are_refused_with_a_sentence(api):
    for query, sentence in BAD_QUERIES:
        response = await api.get(f"{URL}?{query}")
        assert (response.status_code, response.json()) == (400, {"error": sentence})


async def test_another_projects_calendar_is_not_found(api, other_api):
    calendar = await create(api)
    path = f"{URL}/{calendar['id']}"
    responses = [
        await other_api.get(path),
        await other_api.patch(path, json={"metadata": {"a": "b"}}),
        await other_api.delete(path),
        await other_api.post(f"{path}/sync"),
    ]
    assert [(response.status_code, response.json()) for response in responses] == [
        (404, {"error": "Calendar not found"})
    ] * 4
    assert (await other_api.get(URL)).json()["results"] == []
    assert (await api.get(path)).json() == calendar


async def test_what_cannot_be_an_id_is_not_found(api):
    for name in ("cal_0000000000000000", "x", "cal_%00", "evt_0000000000000000", "cal_000000000000000é"):
        for response in (await api.get(f"{URL}/{name}"), await api.delete(f"{URL}/{name}")):
            assert (response.status_code, response.json()) == (404, {"error": "Calendar not found"}), name


async def test_requests_without_a_valid_key_are_refused(api):
    for header in ("", "Token", "Token wrong", "Basic eA==", "Token a\x80"):
        response = await api.get(URL, headers={"Authorization": header.encode("latin-1")})
        assert (response.status_code, list(response.json())) == (401, ["detail"])
    assert (
        await api.get(URL, headers={"Authorization": api.headers["Authorization"].replace("Token", "Bearer")})
    ).status_code == 200


async def test_a_sync_can_be_asked_for(api, sessions):
    calendar = await create(api)
    async with transaction(sessions) as session:
        await session.execute(update(Calendar).values(next_sync_at=datetime.now(UTC) + timedelta(hours=1)))
    response = await api.post(f"{URL}/{calendar['id']}/sync")
    assert (response.status_code, response.json()) == (202, {"status": "queued"})
    assert (await factories.load_calendar(sessions, calendar["id"])).next_sync_at <= datetime.now(UTC)


async def test_a_disconnected_calendar_says_what_it_needs_instead_of_a_sync(api, sessions):
    calendar = await create(api)
    await disconnect(sessions, calendar["id"])
    response = await api.post(f"{URL}/{calendar['id']}/sync")
    sentence = "The calendar is disconnected. PATCH it with new credentials: that reconnects and syncs it."
    assert (response.status_code, response.json()) == (400, {"non_field_errors": [sentence]})
