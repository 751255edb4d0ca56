"""Bots over HTTP (docs/reference/http-api.md, "Bots")."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text, update

from app.core.clock import isoformat, utcnow
from app.core.db import transaction
from app.core.ids import new_id
from app.models import Bot, Calendar, CalendarEvent, WebhookDelivery, WebhookSubscription
from tests import factories

URL = "/api/v1/bots"
LINK = "https://zoom.us/j/5551112222?pwd=hidden-1"
FIELDS = {
    "id", "metadata", "meeting_url", "bot_name", "state", "join_at", "deduplication_key", "calendar_event_id",
    "events", "transcription_state", "recording_state", "created_at", "updated_at",
}  # fmt: skip


def in_hours(hours: float):
    return utcnow().replace(microsecond=0) + timedelta(hours=hours)


def by_hand(**fields):
    return {"bot_name": "Notetaker", "meeting_url": LINK, "join_at": isoformat(in_hours(24)), **fields}


async def create(api, **fields):
    answer = await api.post(URL, json=by_hand(**fields))
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.fixture
async def calendar_id(sessions, settings, project):
    return await factories.add_calendar(
        sessions, settings, project.id, secrets={"client_secret": "s", "refresh_token": "r"}
    )


@pytest.fixture
def add_event(sessions, project, calendar_id):
    async def add(**fields):
        event_id = new_id("evt")
        values = {"start_time": in_hours(24), "end_time": in_hours(25), "meeting_url": LINK, **fields}
        async with transaction(sessions) as session:
            session.add(
                CalendarEvent(
                    id=event_id,
                    project_id=project.id,
                    calendar_id=calendar_id,
                    platform_uuid=event_id,
                    content_hash=b"",
                    **values,
                )
            )
        return event_id

    return add


async def set_state(sessions, bot_id, state, **values):
    async with transaction(sessions) as session:
        await session.execute(update(Bot).where(Bot.id == bot_id).values(state=state, **values))


async def subscribe(sessions, project_id):
    async with transaction(sessions) as session:
        session.add(
            WebhookSubscription(
                id=new_id("webhook"),
                project_id=project_id,
                url="https://example.com",
                triggers=["bot.state_change"],
                secrets_sealed=b"",
            )
        )


async def deliveries(sessions):
    async with sessions() as session:
        rows = await session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.created_at))
        return list(rows)


async def test_a_bot_of_an_event_has_the_events_link_and_start(api, add_event) -> None:
    start = in_hours(3)
    event_id = await add_event(start_time=start, end_time=start + timedelta(hours=1))
    answer = await api.post(
        URL,
        json={
            "calendar_event_id": event_id,
            "bot_name": "Notetaker",
            "metadata": {"user": "1"},
            "deduplication_key": event_id,
            "meeting_url": None,
            "join_at": None,
        },
    )
    assert answer.status_code == 201
    bot = answer.json()
    assert set(bot) == FIELDS
    assert bot["meeting_url"] == LINK
    assert bot["join_at"] == isoformat(start)
    assert bot["state"] == "scheduled"
    assert bot["calendar_event_id"] == event_id
    assert bot["metadata"] == {"user": "1"}
    assert [entry["type"] for entry in bot["events"]] == ["scheduled"]
    assert (await api.get(f"{URL}/{bot['id']}")).json() == bot


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


async def test_a_bot_by_hand_needs_a_link_and_a_time(api) -> None:
    at = in_hours(5)
    bot = await create(api, join_at=(at + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S+02:00"))
    assert bot["join_at"] == isoformat(at)
    assert bot["calendar_event_id"] is None
    for missing in ("meeting_url", "bot_name"):
        body = by_hand()
        del body[missing]
        answer = await api.post(URL, json=body)
        assert answer.status_code == 400
        assert list(answer.json()) == [missing]
    answer = await api.post(URL, json={"bot_name": "x"})
    assert answer.json() == {"non_field_errors": ["Give calendar_event_id, or meeting_url and join_at."]}


async def test_a_bot_of_an_event_takes_neither_link_nor_time(api, add_event) -> None:
    event_id = await add_event()
    answer = await api.post(URL, json=by_hand(calendar_event_id=event_id))
    assert answer.status_code == 400
    assert set(answer.json()) == {"meeting_url", "join_at"}
    answer = await api.post(
        URL, json={"bot_name": "x", "calendar_event_id": event_id, "join_at": isoformat(in_hours(1))}
    )
    assert set(answer.json()) == {"join_at"}


async def test_events_that_no_bot_can_join_are_refused(api, add_event) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"meeting_url": None}, "no meeting URL"),
        ({"is_deleted": True}, "deleted"),
        ({"start_time": in_hours(-2), "end_time": in_hours(-1)}, "over"),
        ({"start_time": in_hours(-20), "end_time": None}, "over"),
        ({"start_time": None, "end_time": None}, "starts"),
    ]
    for fields, word in cases:
        event_id = await add_event(**fields)
        answer = await api.post(URL, json={"bot_name": "x", "calendar_event_id": event_id})
        assert answer.status_code == 400
        assert word in answer.json()["calendar_event_id"][0]


async def test_a_bot_can_still_join_an_event_that_is_under_way(api, add_event) -> None:
    event_id = await add_event(start_time=in_hours(-1), end_time=in_hours(1))
    answer = await api.post(URL, json={"bot_name": "x", "calendar_event_id": event_id})
    assert answer.status_code == 201


async def test_no_bot_is_scheduled_on_a_disconnected_calendar(api, add_event, sessions) -> None:
    event_id = await add_event()
    async with transaction(sessions) as session:
        await session.execute(update(Calendar).values(state="disconnected"))
    answer = await api.post(URL, json={"bot_name": "x", "calendar_event_id": event_id})
    assert answer.status_code == 400
    assert "disconnected" in answer.json()["calendar_event_id"][0]


async def test_bad_fields_are_named(api) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"bot_name": " "}, "bot_name"),
        ({"bot_name": True}, "bot_name"),
        ({"bot_name": "x" * 256}, "bot_name"),
        ({"meeting_url": "zoom.us/j/1"}, "meeting_url"),
        ({"meeting_url": "ftp://zoom.us/j/1"}, "meeting_url"),
        ({"meeting_url": "https://"}, "meeting_url"),
        ({"meeting_url": "https://zoom.us/a b"}, "meeting_url"),
        ({"meeting_url": "https://zoom.us/\nx"}, "meeting_url"),
        ({"meeting_url": "https://[bad"}, "meeting_url"),
        ({"meeting_url": "https://zoom.us/" + "x" * 4096}, "meeting_url"),
        ({"join_at": "soon"}, "join_at"),
        ({"join_at": isoformat(in_hours(-0.1))}, "join_at"),
        ({"join_at": 17}, "join_at"),
        ({"metadata": {}}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"deduplication_key": True}, "deduplication_key"),
        ({"bot_settings": []}, "bot_settings"),
        ({"recording_settings": {"a": "\x00"}}, "recording_settings"),
    ]
    for fields, field in cases:
        answer = await api.post(URL, json=by_hand(**fields))
        assert answer.status_code == 400, fields
        assert list(answer.json()) == [field], fields


async def test_a_time_that_has_just_passed_is_fine(api) -> None:
    await create(api, join_at=isoformat(utcnow() - timedelta(seconds=30)))


async def test_further_fields_are_kept_and_never_shown(api, sessions) -> None:
    bot = await create(
        api,
        bot_settings={"a": 1, "recording_settings": {"format": "mp3"}},
        recording_settings={"format": "mp4"},
        transcription_settings=None,
    )
    assert set(bot) == FIELDS
    async with sessions() as session:
        kept = await session.scalar(select(Bot.bot_settings))
    assert kept == {"a": 1, "recording_settings": {"format": "mp4"}}


async def test_of_simultaneous_requests_with_one_key_one_wins(api, sessions) -> None:
    answers = await asyncio.gather(
        *(api.post(URL, json=by_hand(deduplication_key="k", bot_name=f"{n}")) for n in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [400] * 7
    refused = next(answer for answer in answers if answer.status_code == 400).json()
    assert list(refused) == ["deduplication_key"]
    async with sessions() as session:
        assert len((await session.scalars(select(Bot.id))).all()) == 1


async def test_keys_are_the_projects_own(api, other_api) -> None:
    await create(api, deduplication_key="k")
    await create(other_api, deduplication_key="k")


async def test_a_key_is_free_again_when_its_bot_is_finished_or_deleted(api, sessions) -> None:
    first = await create(api, deduplication_key="k")
    await api.delete(f"{URL}/{first['id']}")
    second = await create(api, deduplication_key="k")
    await set_state(sessions, second["id"], "fatal_error", holds_key=False)
    third = await create(api, deduplication_key="k")

    async def try_again():
        return (await api.post(URL, json=by_hand(deduplication_key="k"))).status_code

    await set_state(sessions, third["id"], "launched", join_at=in_hours(-1))
    assert await try_again() == 400, "its meeting goes on"
    await set_state(sessions, third["id"], "launching", join_at=in_hours(-9), next_attempt_at=utcnow())
    assert await try_again() == 400, "it is being handed over"
    await set_state(sessions, third["id"], "launched", join_at=in_hours(-9), next_attempt_at=None)
    assert await try_again() == 201, "its meeting is over"


async def test_a_key_is_held_until_the_events_end(api, add_event, sessions) -> None:
    event_id = await add_event(start_time=in_hours(-6), end_time=in_hours(0.1))
    body = {"bot_name": "x", "calendar_event_id": event_id, "deduplication_key": event_id}
    bot = (await api.post(URL, json=body)).json()
    await set_state(sessions, bot["id"], "launched")
    other = by_hand(deduplication_key=event_id)
    assert (await api.post(URL, json=other)).status_code == 400
    async with transaction(sessions) as session:
        await session.execute(update(CalendarEvent).values(end_time=in_hours(-0.1)))
    assert (await api.post(URL, json=other)).status_code == 201


async def test_the_same_idempotency_key_makes_one_bot(api) -> None:
    body, headers = by_hand(), {"Idempotency-Key": "once"}
    answers = [await api.post(URL, json=body, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    assert (await api.post(URL, json=by_hand(bot_name="other"), headers=headers)).status_code == 409


async def test_other_projects_see_nothing(api, other_api, add_event) -> None:
    event_id = await add_event()
    answer = await other_api.post(URL, json={"bot_name": "x", "calendar_event_id": event_id})
    assert (answer.status_code, answer.json()) == (404, {"error": "Calendar event not found"})
    answer = await api.post(URL, json={"bot_name": "x", "calendar_event_id": "nothing"})
    assert answer.status_code == 404
    bot = await create(api)
    for method in ("GET", "PATCH", "DELETE"):
        for bot_id in (bot["id"], new_id("bot"), "bot_1", "cal_0000000000000000"):
            client = other_api if bot_id == bot["id"] else api
            body = {"bot_name": "y"} if method == "PATCH" else None
            answer = await client.request(method, f"{URL}/{bot_id}", json=body)
            assert (answer.status_code, answer.json()) == (404, {"error": "Bot not found"})
    assert (await other_api.get(URL)).json()["results"] == []
    assert (await api.get(f"{URL}/{bot['id']}")).json() == bot


async def test_delete_unschedules_and_only_that(api, sessions, project) -> None:
    await subscribe(sessions, project.id)
    bot = await create(api, metadata={"user": "1"})
    answer = await api.delete(f"{URL}/{bot['id']}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert (await api.get(f"{URL}/{bot['id']}")).status_code == 404
    (told,) = await deliveries(sessions)
    assert b'"event_sub_type":"requested"' in told.body
    assert b'"state":"deleted"' in told.body
    assert b'"bot_metadata":{"user":"1"}' in told.body
    for stored, state in (("launching", "staged"), ("launched", "joining"), ("fatal_error", "fatal_error")):
        kept = await create(api)
        await set_state(sessions, kept["id"], stored)
        answer = await api.delete(f"{URL}/{kept['id']}")
        assert answer.status_code == 400
        assert state in answer.json()["non_field_errors"][0]


async def test_a_bot_by_hand_can_be_changed_while_it_is_scheduled(api, sessions, project) -> None:
    await subscribe(sessions, project.id)
    bot = await create(api)
    changes = {
        "bot_name": "Other",
        "meeting_url": "https://meet.google.com/abc-defg-hij",
        "join_at": isoformat(in_hours(30)),
        "metadata": {"user": "2"},
        "bot_settings": {"b": 2},
    }
    answer = await api.patch(f"{URL}/{bot['id']}", json=changes)
    assert answer.status_code == 200
    changed = answer.json()
    assert {name: changed[name] for name in changes if name in changed} == {
        name: value for name, value in changes.items() if name != "bot_settings"
    }
    assert changed["updated_at"] > bot["updated_at"]
    assert changed["events"][-1]["type"] == "updated"
    assert changed["events"][-1]["metadata"] == {"fields": sorted(changes)}
    async with sessions() as session:
        assert await session.scalar(select(Bot.bot_settings)) == {"b": 2}
    (told,) = await deliveries(sessions)
    assert b'"event_type":"updated"' in told.body
    assert b'"bot_metadata":{"user":"2"}' in told.body
    again = await api.patch(f"{URL}/{bot['id']}", json=changes)
    assert again.json() == changed
    assert len(await deliveries(sessions)) == 1


async def test_a_bot_of_an_event_keeps_the_events_link_and_time(api, add_event) -> None:
    event_id = await add_event()
    bot = (await api.post(URL, json={"calendar_event_id": event_id, "bot_name": "x"})).json()
    for change in ({"join_at": isoformat(in_hours(9))}, {"meeting_url": LINK}):
        answer = await api.patch(f"{URL}/{bot['id']}", json=change)
        assert answer.status_code == 400
        assert list(answer.json()) == list(change)
        assert "follows" in answer.json()[next(iter(change))][0]
    answer = await api.patch(f"{URL}/{bot['id']}", json={"bot_name": "y", "metadata": None})
    assert answer.json()["bot_name"] == "y"


async def test_bad_changes_are_named(api) -> None:
    bot = await create(api)
    changes: list[dict[str, Any]] = [
        {"deduplication_key": True},
        {"bot_name": None},
        {"bot_name": ""},
        {"join_at": None},
        {"join_at": "2020-01-01T00:00:00Z"},
        {"meeting_url": None},
        {"meeting_url": "nothing"},
        {"bot_settings": None},
        {"metadata": {}},
        {"recording_settings": {"a": [1, None]}},
    ]
    for change in changes:
        answer = await api.patch(f"{URL}/{bot['id']}", json=change)
        assert answer.status_code == 400, change
        assert list(answer.json()) == list(change)
    assert (await api.get(f"{URL}/{bot['id']}")).json() == bot


async def test_past_scheduled_only_the_metadata_changes_and_a_hand_over_goes_on(api, sessions) -> None:
    bot = await create(api)
    lease = {"lease_token": "mine", "next_attempt_at": in_hours(1), "may_be_handed_over": True}
    await set_state(sessions, bot["id"], "launching", **lease)
    answer = await api.patch(f"{URL}/{bot['id']}", json={"bot_name": "y"})
    assert answer.status_code == 400
    assert "staged" in answer.json()["non_field_errors"][0]
    answer = await api.patch(f"{URL}/{bot['id']}", json={"metadata": {"user": "3"}})
    assert answer.json()["metadata"] == {"user": "3"}
    assert answer.json()["state"] == "staged"
    async with sessions() as session:
        row = (await session.scalars(select(Bot))).one()
    assert {name: getattr(row, name) for name in lease} == lease


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
        answer = await api.get(URL, params=query)
        assert answer.status_code == 200, answer.text
        return [bot["id"] for bot in answer.json()["results"]]

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
    for query in ["state=gone", "states=gone", "join_at_gte=soon", "cursor=abc", "nothing=1", "state=a%00b"]:
        answer = await api.get(f"{URL}?{query}")
        assert answer.status_code == 400, query
        assert list(answer.json()) == ["error"]


async def test_a_long_log_keeps_its_first_entry_and_the_last_ones(api, sessions) -> None:
    bot = await create(api)
    async with transaction(sessions) as session:
        await session.execute(
            text(
                "UPDATE bots SET events = events || (SELECT jsonb_agg(jsonb_build_object('type', 'updated',"
                " 'sub_type', n::text, 'metadata', null, 'created_at', '')) FROM generate_series(1, 99) n)"
            )
        )
    answer = await api.patch(f"{URL}/{bot['id']}", json={"bot_name": "last"})
    entries = answer.json()["events"]
    assert len(entries) == 100
    assert entries[0] == bot["events"][0]
    assert [entry["sub_type"] for entry in entries[1:]] == [*map(str, range(2, 100)), None]


async def test_a_bot_waits_for_a_sync_that_is_changing_its_event(api, add_event, sessions) -> None:
    event_id = await add_event()
    moved = in_hours(48)
    async with transaction(sessions) as session:
        await session.execute(text("SELECT FROM calendars FOR NO KEY UPDATE"))
        creating = asyncio.create_task(api.post(URL, json={"calendar_event_id": event_id, "bot_name": "x"}))
        await asyncio.sleep(0.2)
        assert not creating.done()
        await session.execute(update(CalendarEvent).values(start_time=moved, end_time=in_hours(49)))
    assert (await creating).json()["join_at"] == isoformat(moved)


async def test_without_a_key_there_is_no_answer(api) -> None:
    assert (await api.get(URL, headers={"Authorization": ""})).status_code == 401


async def test_states_and_log_are_told_in_attendees_words(api, add_event, sessions) -> None:
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
        told = (await api.get(f"{URL}/{bot['id']}")).json()
        assert told["state"] == shown
        assert [entry["type"] for entry in told["events"]] == ["scheduled", "staged", "join_requested"]
        assert (await api.get(URL)).json()["results"] == [told]
        assert (await api.get(f"/api/v1/calendar_events/{event_id}")).json()["bots"] == [told]


async def test_without_a_time_a_bot_joins_now(api, sessions) -> None:
    before = utcnow() - timedelta(seconds=5)
    body = by_hand()
    del body["join_at"]
    bot = (await api.post(URL, json=body)).json()
    assert isoformat(before) < bot["join_at"] < isoformat(utcnow() + timedelta(seconds=5))
    answer = await api.post(URL, json=by_hand(join_at=""))
    assert list(answer.json()) == ["join_at"], "an empty time is a slip"


async def test_empty_texts_count_as_absent(api, add_event) -> None:
    event_id = await add_event()
    bot = await create(api, calendar_event_id=event_id, meeting_url="", join_at="", deduplication_key=" ")
    assert (bot["calendar_event_id"], bot["deduplication_key"]) == (event_id, None)
    assert (await create(api, calendar_event_id=""))["calendar_event_id"] is None
    changed = await api.patch(
        f"{URL}/{bot['id']}", json={"meeting_url": "", "join_at": "", "calendar_event_id": event_id}
    )
    assert changed.json() == bot


async def test_numbers_become_texts_and_texts_are_trimmed(api) -> None:
    bot = await create(api, bot_name=42, deduplication_key=42)
    assert (bot["bot_name"], bot["deduplication_key"]) == ("42", "42")
    answer = await api.post(URL, json=by_hand(deduplication_key=" 42 "))
    assert list(answer.json()) == ["deduplication_key"], "the same key"
    other = await create(api, bot_name="  Ada ", meeting_url=f" {LINK} ")
    assert (other["bot_name"], other["meeting_url"]) == ("Ada", LINK)


async def test_a_meeting_that_the_runner_cannot_join_is_refused(api, add_event) -> None:
    refused = (
        "https://acme.webex.com/meet/ada",
        "https://meet.example.com/x",
        "https://zoom.us.example.com/j/1",
    )
    for url in refused:
        answer = await api.post(URL, json=by_hand(meeting_url=url))
        assert answer.status_code == 400, url
        assert "google_meet, teams, zoom" in answer.json()["meeting_url"][0]
        event_id = await add_event(meeting_url=url)
        answer = await api.post(URL, json={"bot_name": "x", "calendar_event_id": event_id})
        assert "google_meet, teams, zoom" in answer.json()["calendar_event_id"][0]
    # The host decides: Attendee joins codes of any form.
    for url in (
        "https://meet.google.com/abc-def-ghi",
        "https://acme.zoom.us/j/12345",
        "https://teams.live.com/meet/123456789",
    ):
        bot = await create(api, meeting_url=url)
        answer = await api.patch(f"{URL}/{bot['id']}", json={"meeting_url": refused[0]})
        assert list(answer.json()) == ["meeting_url"]


@pytest.mark.settings(bot_runner_platforms="Webex")
async def test_the_operator_says_what_the_runner_joins(api) -> None:
    await create(api, meeting_url="https://acme.webex.com/meet/ada")
    answer = await api.post(URL, json=by_hand())
    assert answer.json()["meeting_url"][0].endswith("it joins webex (BOT_RUNNER_PLATFORMS).")


async def test_what_the_runner_refuses_is_refused_or_left_out_at_once(api, sessions) -> None:
    answer = await api.post(URL, json=by_hand(bot_name="Ada \U0001f916"))
    assert "emoji" in answer.json()["bot_name"][0]
    await create(
        api,
        bot_settings={"a": None, "b": {"c": None, "d": 0, "e": {}}},
        recording_settings={"f": [{"g": None, "h": False}]},
        automatic_leave_settings=None,
    )
    async with sessions() as session:
        kept = await session.scalar(select(Bot.bot_settings))
    assert kept == {"b": {"d": 0, "e": {}}, "recording_settings": {"f": [{"h": False}]}}
    for fields in ({"bot_settings": {"a": [None]}}, {"recording_settings": {"a": {"b": [[None]]}}}):
        answer = await api.post(URL, json=by_hand(**fields))
        assert list(answer.json()) == list(fields), answer.text


async def test_a_change_takes_what_creating_takes(api, sessions, add_event, project) -> None:
    await subscribe(sessions, project.id)
    bot = await create(api, bot_settings={"a": 1, "b": {"c": 2}}, deduplication_key="k")
    path = f"{URL}/{bot['id']}"
    answer = await api.patch(
        path, json={"recording_settings": {"format": "mp3", "x": None}, "a": None, "deduplication_key": "l"}
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["deduplication_key"] == "l"
    fields = ["a", "deduplication_key", "recording_settings"]
    assert answer.json()["events"][-1]["metadata"] == {"fields": fields}
    async with sessions() as session:
        assert await session.scalar(select(Bot.bot_settings)) == {
            "b": {"c": 2},
            "recording_settings": {"format": "mp3"},
        }
    again = await api.patch(path, json={"recording_settings": {"format": "mp3"}, "deduplication_key": "l"})
    assert again.json() == answer.json(), "nothing changed"

    await create(api, deduplication_key="k")
    taken = await api.patch(path, json={"deduplication_key": "k"})
    assert (taken.status_code, list(taken.json())) == (400, ["deduplication_key"])
    assert (await api.get(path)).json() == answer.json()

    start = in_hours(50)
    event_id = await add_event(
        start_time=start, end_time=in_hours(51), meeting_url="https://meet.google.com/abc-defg-hij"
    )
    moved = (await api.patch(path, json={"calendar_event_id": event_id})).json()
    assert (moved["calendar_event_id"], moved["join_at"]) == (event_id, isoformat(start))
    assert moved["meeting_url"] == "https://meet.google.com/abc-defg-hij"
    told = (await deliveries(sessions))[-1].body
    assert f'"calendar_event_id":"{event_id}"'.encode() in told
    assert (await api.patch(path, json={"calendar_event_id": event_id})).json() == moved
    for event, status in (
        (None, 400),
        ("evt_0000000000000000", 404),
        (await add_event(is_deleted=True), 400),
    ):
        refused = await api.patch(path, json={"calendar_event_id": event})
        assert refused.status_code == status
    assert (await api.get(path)).json() == moved
    await set_state(sessions, bot["id"], "launched")
    late = await api.patch(path, json={"recording_settings": {}})
    assert "joining" in late.json()["non_field_errors"][0]


async def test_a_key_of_a_finished_bot_can_be_taken_over_by_a_change(api, sessions) -> None:
    old, new = await create(api, deduplication_key="k"), await create(api)
    await set_state(sessions, old["id"], "launched", join_at=in_hours(-9))
    answer = await api.patch(f"{URL}/{new['id']}", json={"deduplication_key": "k"})
    assert answer.json()["deduplication_key"] == "k"
    cleared = await api.patch(f"{URL}/{new['id']}", json={"deduplication_key": None})
    assert cleared.json()["deduplication_key"] is None
