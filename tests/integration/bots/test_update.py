"""`PATCH /bots/{id}`: what can be changed, and until when."""

from typing import Any

from sqlalchemy import select

from app.core.clock import isoformat
from app.models import Bot
from tests.integration.bots.bots_api import LINK, URL, create, deliveries, in_hours, set_state, subscribe


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
    response = await api.patch(f"{URL}/{bot['id']}", json=changes)
    assert response.status_code == 200
    changed = response.json()
    assert {name: changed[name] for name in changes if name in changed} == {
        name: value for name, value in changes.items() if name != "bot_settings"
    }
    assert changed["updated_at"] > bot["updated_at"]
    assert changed["events"][-1]["type"] == "updated"
    assert changed["events"][-1]["metadata"] == {"fields": sorted(changes)}
    async with sessions() as session:
        assert await session.scalar(select(Bot.bot_settings)) == {"b": 2}
    (announced,) = await deliveries(sessions)
    assert b'"event_type":"updated"' in announced.body
    assert b'"bot_metadata":{"user":"2"}' in announced.body
    again = await api.patch(f"{URL}/{bot['id']}", json=changes)
    assert again.json() == changed
    assert len(await deliveries(sessions)) == 1


async def test_a_bot_of_an_event_keeps_the_events_link_and_time(api, add_event) -> None:
    event_id = await add_event()
    bot = (await api.post(URL, json={"calendar_event_id": event_id, "bot_name": "x"})).json()
    for change in ({"join_at": isoformat(in_hours(9))}, {"meeting_url": LINK}):
        response = await api.patch(f"{URL}/{bot['id']}", json=change)
        assert response.status_code == 400
        assert list(response.json()) == list(change)
        assert "follows" in response.json()[next(iter(change))][0]
    response = await api.patch(f"{URL}/{bot['id']}", json={"bot_name": "y", "metadata": None})
    assert response.json()["bot_name"] == "y"


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
        response = await api.patch(f"{URL}/{bot['id']}", json=change)
        assert response.status_code == 400, change
        assert list(response.json()) == list(change)
    assert (await api.get(f"{URL}/{bot['id']}")).json() == bot


async def test_past_scheduled_only_the_metadata_changes_and_a_hand_over_goes_on(api, sessions) -> None:
    bot = await create(api)
    lease = {"lease_token": "mine", "next_attempt_at": in_hours(1), "may_be_handed_over": True}
    await set_state(sessions, bot["id"], "launching", **lease)
    response = await api.patch(f"{URL}/{bot['id']}", json={"bot_name": "y"})
    assert response.status_code == 400
    assert "staged" in response.json()["non_field_errors"][0]
    response = await api.patch(f"{URL}/{bot['id']}", json={"metadata": {"user": "3"}})
    assert response.json()["metadata"] == {"user": "3"}
    assert response.json()["state"] == "staged"
    async with sessions() as session:
        row = (await session.scalars(select(Bot))).one()
    assert {name: getattr(row, name) for name in lease} == lease


async def test_a_change_takes_what_creating_takes(api, sessions, add_event, project) -> None:
    await subscribe(sessions, project.id)
    bot = await create(api, bot_settings={"a": 1, "b": {"c": 2}}, deduplication_key="k")
    path = f"{URL}/{bot['id']}"
    response = await api.patch(
        path, json={"recording_settings": {"format": "mp3", "x": None}, "a": None, "deduplication_key": "l"}
    )
    assert response.status_code == 200, response.text
    assert response.json()["deduplication_key"] == "l"
    fields = ["a", "deduplication_key", "recording_settings"]
    assert response.json()["events"][-1]["metadata"] == {"fields": fields}
    async with sessions() as session:
        assert await session.scalar(select(Bot.bot_settings)) == {
            "b": {"c": 2},
            "recording_settings": {"format": "mp3"},
        }
    again = await api.patch(path, json={"recording_settings": {"format": "mp3"}, "deduplication_key": "l"})
    assert again.json() == response.json(), "nothing changed"

    await create(api, deduplication_key="k")
    taken = await api.patch(path, json={"deduplication_key": "k"})
    assert (taken.status_code, list(taken.json())) == (400, ["deduplication_key"])
    assert (await api.get(path)).json() == response.json()

    start = in_hours(50)
    event_id = await add_event(
        start_time=start, end_time=in_hours(51), meeting_url="https://meet.google.com/abc-defg-hij"
    )
    moved = (await api.patch(path, json={"calendar_event_id": event_id})).json()
    assert (moved["calendar_event_id"], moved["join_at"]) == (event_id, isoformat(start))
    assert moved["meeting_url"] == "https://meet.google.com/abc-defg-hij"
    announced = (await deliveries(sessions))[-1].body
    assert f'"calendar_event_id":"{event_id}"'.encode() in announced
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
