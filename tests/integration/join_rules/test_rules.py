"""Rules of a project and of a calendar: events get, change and lose their bots with every write."""

from tests.integration.join_rules.rules_api import (
    LINK,
    OTHER_LINK,
    RULES,
    add_calendar,
    add_event,
    at,
    bots_of,
    change_event,
    names_of,
    rule,
    set_rules,
)


async def test_an_event_that_is_written_gets_the_bot_of_the_first_rule_that_holds(api) -> None:
    calendar_id = await add_calendar(api)
    await set_rules(
        api,
        rule("private", join=False, name_contains=["SECRET"]),
        rule(
            "review",
            name_contains=["review"],
            bot={"bot_name": "R", "metadata": {"a": "b"}, "recording": {"x": 1}},
        ),
    )
    event_id = await add_event(api, calendar_id)
    (bot,) = await bots_of(api, event_id)
    assert bot["bot_name"] == "R"
    assert bot["metadata"] == {"a": "b"}
    assert bot["join_at"] == at(24)
    assert bot["meeting_url"] == LINK
    assert bot["state"] == "scheduled"
    assert bot["calendar_event_id"] == event_id
    assert await names_of(api, await add_event(api, calendar_id, name="secret review")) == []
    assert await names_of(api, await add_event(api, calendar_id, name="Lunch")) == []
    assert await names_of(api, await add_event(api, calendar_id, meeting_url=None)) == []


async def test_the_bot_follows_and_goes_with_its_event(api) -> None:
    calendar_id = await add_calendar(api)
    await set_rules(api, rule(name_contains=["review"]))
    event_id = await add_event(api, calendar_id)
    (bot,) = await bots_of(api, event_id)
    await change_event(api, event_id, start_time=at(30), end_time=at(31), meeting_url=OTHER_LINK)
    (moved,) = await bots_of(api, event_id)
    assert (moved["id"], moved["join_at"], moved["meeting_url"]) == (bot["id"], at(30), OTHER_LINK)
    await change_event(api, event_id, name="Lunch")
    assert await bots_of(api, event_id) == []
    await change_event(api, event_id, name="Review")
    assert len(await bots_of(api, event_id)) == 1
    await change_event(api, event_id, meeting_url=None)
    assert await bots_of(api, event_id) == []


async def test_changed_rules_are_applied_when_the_response_arrives(api) -> None:
    calendar_id = await add_calendar(api)
    events = [await add_event(api, calendar_id, name=f"{n}") for n in range(3)]
    assert [await names_of(api, event_id) for event_id in events] == [[], [], []]
    await set_rules(api, rule("a"))
    assert [await names_of(api, event_id) for event_id in events] == [["Bot of a"]] * 3
    before = [(await bots_of(api, event_id))[0]["id"] for event_id in events]
    await set_rules(api, rule("b", name_contains=["1"]), rule("a"))
    assert [await names_of(api, event_id) for event_id in events] == [
        ["Bot of a"],
        ["Bot of b"],
        ["Bot of a"],
    ]
    assert [(await bots_of(api, event_id))[0]["id"] for event_id in events] == before
    await set_rules(api)
    assert [await names_of(api, event_id) for event_id in events] == [[], [], []]


async def test_a_calendars_own_rules_replace_the_projects(api) -> None:
    first, second = await add_calendar(api), await add_calendar(api)
    one, two = await add_event(api, first), await add_event(api, second)
    await set_rules(api, rule("project"))
    await set_rules(api, rule("own"), calendar_id=second)
    assert await names_of(api, one) == ["Bot of project"]
    assert await names_of(api, two) == ["Bot of own"]
    await set_rules(api, rule("newer"))
    assert await names_of(api, one) == ["Bot of newer"]
    assert await names_of(api, two) == ["Bot of own"]
    url = f"/api/v1/calendars/{second}/join_rules"
    assert (await api.get(url)).json()["rules"][0]["name"] == "own"
    assert (await api.delete(url)).status_code == 200
    assert await names_of(api, two) == ["Bot of newer"]
    assert (await api.get(url)).status_code == 404
    assert (await api.delete(url)).status_code == 404


async def test_a_project_without_rules_has_an_empty_list(api, other_api) -> None:
    assert (await api.get(RULES)).json() == {"rules": [], "bot_scope": "event"}
    put = await set_rules(api, rule("a", attendees_min=2, platforms=["zoom"]), scope="meeting")
    assert (await api.get(RULES)).json() == put
    assert (await other_api.get(RULES)).json() == {"rules": [], "bot_scope": "event"}


async def test_a_clients_bot_is_left_alone(api) -> None:
    calendar_id = await add_calendar(api)
    event_id = await add_event(api, calendar_id)
    made = await api.post("/api/v1/bots", json={"calendar_event_id": event_id, "bot_name": "Mine"})
    assert made.status_code == 201
    await set_rules(api, rule("a"))
    assert sorted(await names_of(api, event_id)) == ["Bot of a", "Mine"]
    await set_rules(api)
    assert await names_of(api, event_id) == ["Mine"]


async def test_a_clients_change_stays_until_the_rule_says_something_else(api) -> None:
    calendar_id = await add_calendar(api)
    event_id = await add_event(api, calendar_id)
    await set_rules(api, rule("a"))
    (bot,) = await bots_of(api, event_id)
    changed = await api.patch(f"/api/v1/bots/{bot['id']}", json={"bot_name": "Renamed"})
    assert changed.status_code == 200
    await set_rules(api, rule("a"))
    await change_event(api, event_id, start_time=at(26), end_time=at(27))
    assert await names_of(api, event_id) == ["Renamed"]
    await set_rules(api, rule("a", bot={"bot_name": "New"}))
    assert await names_of(api, event_id) == ["New"]


async def test_a_bot_that_a_client_deleted_is_not_made_again(api) -> None:
    calendar_id = await add_calendar(api)
    event_id = await add_event(api, calendar_id)
    await set_rules(api, rule("a"))
    (bot,) = await bots_of(api, event_id)
    assert (await api.delete(f"/api/v1/bots/{bot['id']}")).status_code == 200
    await set_rules(api, rule("b"))
    await change_event(api, event_id, start_time=at(26), end_time=at(27))
    assert await bots_of(api, event_id) == []
