"""Reads, lists and deletions of bots (docs/reference/http-api.md, "Bots")."""

from sqlalchemy import text

from app.core.clock import isoformat
from app.core.db import transaction
from app.core.ids import new_id
from tests.integration.bots.bots_api import URL, create, deliveries, in_hours, set_state, subscribe


async def test_an_event_shows_its_bots_as_they_are(api, add_event) -> None:
    event_id = await add_event()
    bare = (await api.get(f"/api/v1/calendar_events/{event_id}")).json()
    assert bare["bots"] == []
    bots = [
        (await api.post(URL, json={"calendar_event_id": event_id, "bot_name": name})).json()
        for name in ("first", "sécond")
    ]
    await add_event()
    listed = (await api.get("/api/v1/calendar_events", params={"ordering": "created_at"})).json()["results"]
    assert [event["bots"] for event in listed] == [bots, []]
    assert (await api.get(f"/api/v1/calendar_events/{event_id}")).json()["bots"] == bots


async def test_other_projects_see_nothing(api, other_api, add_event) -> None:
    event_id = await add_event()
    response = await other_api.post(URL, json={"bot_name": "x", "calendar_event_id": event_id})
    assert (response.status_code, response.json()) == (404, {"error": "Calendar event not found"})
    response = await api.post(URL, json={"bot_name": "x", "calendar_event_id": "nothing"})
    assert response.status_code == 404
    bot = await create(api)
    for method in ("GET", "PATCH", "DELETE"):
        for bot_id in (bot["id"], new_id("bot"), "bot_1", "cal_0000000000000000"):
            client = other_api if bot_id == bot["id"] else api
            body = {"bot_name": "y"} if method == "PATCH" else None
            response = await client.request(method, f"{URL}/{bot_id}", json=body)
            assert (response.status_code, response.json()) == (404, {"error": "Bot not found"})
    assert (await other_api.get(URL)).json()["results"] == []
    assert (await api.get(f"{URL}/{bot['id']}")).json() == bot


async def test_delete_unschedules_and_only_that(api, sessions, project) -> None:
    await subscribe(sessions, project.id)
    bot = await create(api, metadata={"user": "1"})
    response = await api.delete(f"{URL}/{bot['id']}")
    assert (response.status_code, response.content) == (200, b"")
    assert (await api.get(f"{URL}/{bot['id']}")).status_code == 404
    (announced,) = await deliveries(sessions)
    assert b'"event_sub_type":"requested"' in announced.body
    assert b'"state":"deleted"' in announced.body
    assert b'"bot_metadata":{"user":"1"}' in announced.body
    for stored, state in (("launching", "staged"), ("launched", "joining"), ("fatal_error", "fatal_error")):
        kept = await create(api)
        await set_state(sessions, kept["id"], stored)
        response = await api.delete(f"{URL}/{kept['id']}")
        assert response.status_code == 400
        assert state in response.json()["non_field_errors"][0]


async def test_lists_are_filtered_and_paged_oldest_first(api, sessions, add_event) -> None:
    event_id = await add_event()
    of_event = (
        await api.post(URL, json={"calendar_event_id": event_id, "bot_name": "e", "deduplication_key": "k"})
    ).json()
    bots = [await create(api, join_at=isoformat(in_hours(100 + n)), bot_name=f"{n}") for n in range(30)]
    await set_state(sessions, bots[3]["id"], "launched")
    page = (await api.get(URL)).json()
    assert [bot["bot_name"] for bot in page["results"]] == ["e", *(f"{n}" for n in range(24))]
    assert page["previous"] is None
    assert (await api.get(URL, params={"page_size": "500"})).json()["results"] == page["results"]
    await api.delete(f"{URL}/{of_event['id']}")
    of_event = await create(
        api, calendar_event_id=event_id, meeting_url="", join_at="", deduplication_key="k"
    )
    rest = (await api.get(page["next"])).json()
    assert [bot["bot_name"] for bot in rest["results"]] == [*(f"{n}" for n in range(24, 30)), "Notetaker"]
    assert rest["next"] is None
    assert (await api.get(rest["previous"])).json()["results"] == page["results"][1:]

    async def listed(**query):
        response = await api.get(URL, params=query)
        assert response.status_code == 200, response.text
        return [bot["id"] for bot in response.json()["results"]]

    at = bots[10]["join_at"]
    after = [bot["id"] for bot in bots[10:]]
    assert await listed(calendar_event_id=event_id) == [of_event["id"]]
    assert await listed(deduplication_key="k") == [of_event["id"]]
    assert await listed(state="joining") == [bots[3]["id"]]
    assert await listed(states=["joining", "fatal_error"]) == [bots[3]["id"]]
    assert await listed(state="launched") == [bots[3]["id"]], "the first release's word"
    assert await listed(state="staged") == []
    assert await listed(state="ended") == await listed(states=["waiting_room", "ready"]) == []
    assert await listed(join_at_gte=at) == after
    assert await listed(join_at_after=at) == after[1:]
    assert await listed(join_at_lte=at, join_at_gte=at) == [bots[10]["id"]]
    assert await listed(join_at_gte=at, join_at_before=at) == []
    assert await listed(meeting_url="https://none.example") == []


async def test_bad_queries_are_refused(api) -> None:
    for query in ["state=lost", "states=lost", "join_at_gte=soon", "cursor=abc", "nothing=1", "state=a%00b"]:
        response = await api.get(f"{URL}?{query}")
        assert response.status_code == 400, query
        assert list(response.json()) == ["error"]


async def test_a_long_log_keeps_its_first_entry_and_the_last_ones(api, sessions) -> None:
    bot = await create(api)
    async with transaction(sessions) as session:
        await session.execute(
            text(
                "UPDATE bots SET events = events || (SELECT jsonb_agg(jsonb_build_object('type', 'updated',"
                " 'sub_type', n::text, 'metadata', null, 'created_at', '')) FROM generate_series(1, 99) n)"
            )
        )
    response = await api.patch(f"{URL}/{bot['id']}", json={"bot_name": "last"})
    entries = response.json()["events"]
    assert len(entries) == 100
    assert entries[0] == bot["events"][0]
    assert [entry["sub_type"] for entry in entries[1:]] == [*map(str, range(2, 100)), None]


async def test_a_request_without_a_key_is_refused(api) -> None:
    assert (await api.get(URL, headers={"Authorization": ""})).status_code == 401


async def test_states_and_log_use_attendees_words(api, add_event, sessions) -> None:
    """Rows of the first release, and of its workers during an upgrade, included."""
    event_id = await add_event()
    bot = (await api.post(URL, json={"calendar_event_id": event_id, "bot_name": "x"})).json()
    assert (bot["state"], bot["transcription_state"], bot["recording_state"]) == (
        "scheduled",
        "not_started",
        "not_started",
    )
    log = [
        {"type": word, "sub_type": None, "metadata": None, "created_at": "t"}
        for word in ("scheduled", "launching", "launched")
    ]
    for stored, shown in (("launching", "staged"), ("launched", "joining"), ("fatal_error", "fatal_error")):
        await set_state(sessions, bot["id"], stored, events=log)
        returned = (await api.get(f"{URL}/{bot['id']}")).json()
        assert returned["state"] == shown
        assert [entry["type"] for entry in returned["events"]] == ["scheduled", "staged", "join_requested"]
        assert (await api.get(URL)).json()["results"] == [returned]
        assert (await api.get(f"/api/v1/calendar_events/{event_id}")).json()["bots"] == [returned]
