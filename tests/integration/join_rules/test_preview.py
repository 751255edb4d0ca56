"""`POST /join_rules/preview`: what the rules would do, and nothing is written."""

import pytest

from tests.integration.join_rules.rules_api import (
    RULES,
    add_calendar,
    add_event,
    bots_of,
    rule,
    set_rules,
)


async def preview(api, *rules, scope="event"):
    response = await api.post(f"{RULES}/preview", json={"rules": list(rules), "bot_scope": scope})
    assert response.status_code == 200, response.text
    return response.json()


async def test_it_says_what_would_be_made_and_removed_and_by_which_rule(api) -> None:
    calendar_id = await add_calendar(api)
    one, two = [await add_event(api, calendar_id, name=name) for name in ("one", "two")]
    await set_rules(api, rule("first", name_contains=["one"]))
    (bot,) = await bots_of(api, one)
    found = await preview(api, rule("skip", join=False, name_contains=["one"]), rule("second"))
    assert found == {
        "make": [{"calendar_event_id": two, "rule": "second"}],
        "remove": [{"bot_id": bot["id"], "calendar_event_id": one, "rule": "skip"}],
    }
    found = await preview(api)
    assert found == {
        "make": [],
        "remove": [{"bot_id": bot["id"], "calendar_event_id": one, "rule": "first"}],
    }
    assert (await bots_of(api, one))[0] == bot
    assert await bots_of(api, two) == []
    assert (await api.get(RULES)).json()["rules"][0]["name"] == "first"


async def test_calendars_with_own_rules_keep_them(api) -> None:
    first, second = await add_calendar(api), await add_calendar(api)
    one, two = await add_event(api, first), await add_event(api, second)
    await set_rules(api, rule("own"), calendar_id=second)
    assert await preview(api, rule("a")) == {"make": [{"calendar_event_id": one, "rule": "a"}], "remove": []}
    assert len(await bots_of(api, two)) == 1


@pytest.mark.parametrize(("before", "after"), [("event", "meeting"), ("meeting", "event")])
async def test_what_it_says_is_what_happens(api, before, after) -> None:
    calendars = [await add_calendar(api) for _ in range(3)]
    events = [await add_event(api, calendar_id) for calendar_id in calendars]
    await set_rules(api, rule("a"), scope=before)

    async def bots():
        return {bot["id"]: event_id for event_id in events for bot in await bots_of(api, event_id)}

    had = await bots()
    said = await preview(api, rule("a"), scope=after)
    assert await bots() == had
    await set_rules(api, rule("a"), scope=after)
    has = await bots()
    assert {one["bot_id"] for one in said["remove"]} == had.keys() - has.keys()
    assert {one["calendar_event_id"] for one in said["make"]} == {has[bot] for bot in has.keys() - had.keys()}
    assert bool(said["make"]) is (after == "event")
    assert bool(said["remove"]) is (after == "meeting")
