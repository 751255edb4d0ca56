"""`PUT /calendar_events/{id}/bot_policy`: what a person decided about one event."""

from tests.integration.join_rules.rules_api import (
    EVENTS,
    LINK,
    add_calendar,
    add_event,
    at,
    bots_of,
    change_event,
    names_of,
    rule,
    set_policy,
    set_rules,
)


async def test_never_deletes_the_rules_bot_and_only_that(api) -> None:
    event_id = await add_event(api, await add_calendar(api))
    await api.post("/api/v1/bots", json={"calendar_event_id": event_id, "bot_name": "Mine"})
    await set_rules(api, rule("a"))
    response = await set_policy(api, event_id, "never")
    assert (response.status_code, response.json()) == (200, {"policy": "never"})
    assert await names_of(api, event_id) == ["Mine"]
    await set_rules(api, rule("b"))
    await change_event(api, event_id, start_time=at(26), end_time=at(27))
    assert await names_of(api, event_id) == ["Mine"]
    assert (await set_policy(api, event_id, "rules")).json() == {"policy": "rules"}
    assert sorted(await names_of(api, event_id)) == ["Bot of b", "Mine"]


async def test_always_takes_the_rule_that_joins_or_the_first_bot(api) -> None:
    calendar_id = await add_calendar(api)
    joined = await add_event(api, calendar_id, name="b")
    other = await add_event(api, calendar_id, name="c")
    await set_rules(
        api,
        rule("none", join=False, name_contains=["c"]),
        rule("a", name_contains=["x"]),
        rule("b", name_contains=["b"]),
    )
    for event_id in (joined, other):
        assert (await set_policy(api, event_id, "always")).status_code == 200
    assert await names_of(api, joined) == ["Bot of b"]
    assert await names_of(api, other) == ["Bot of a"]
    await set_policy(api, other, "rules")
    assert await names_of(api, other) == []


async def test_always_waits_for_a_link(api) -> None:
    event_id = await add_event(api, await add_calendar(api), meeting_url=None)
    await set_rules(api, rule("a", name_contains=["x"]))
    assert (await set_policy(api, event_id, "always")).status_code == 200
    assert await bots_of(api, event_id) == []
    await change_event(api, event_id, meeting_url=LINK)
    assert await names_of(api, event_id) == ["Bot of a"]
    await change_event(api, event_id, meeting_url=None)
    assert await bots_of(api, event_id) == []


async def test_always_without_any_bot_is_refused_with_a_sentence(api) -> None:
    event_id = await add_event(api, await add_calendar(api))
    response = await set_policy(api, event_id, "always")
    assert response.status_code == 400
    assert list(response.json()) == ["policy"]
    assert (await api.get(f"{EVENTS}/{event_id}/bot_policy")).json() == {"policy": "rules"}


async def test_always_lifts_a_deletion_by_hand(api) -> None:
    event_id = await add_event(api, await add_calendar(api))
    await set_rules(api, rule("a"))
    (bot,) = await bots_of(api, event_id)
    await api.delete(f"/api/v1/bots/{bot['id']}")
    await set_policy(api, event_id, "rules")
    assert await bots_of(api, event_id) == []
    await set_policy(api, event_id, "always")
    (made,) = await bots_of(api, event_id)
    await api.delete(f"/api/v1/bots/{made['id']}")
    await change_event(api, event_id, name="Other")
    assert await bots_of(api, event_id) == []


async def test_a_policy_needs_an_event_of_the_project_and_a_known_word(api, other_api) -> None:
    event_id = await add_event(api, await add_calendar(api))
    assert (await set_policy(other_api, event_id, "never")).status_code == 404
    assert (await other_api.get(f"{EVENTS}/{event_id}/bot_policy")).status_code == 404
    assert (await set_policy(api, event_id, "sometimes")).status_code == 400
    response = await api.put(f"{EVENTS}/{event_id}/bot_policy", json={"policy": "never", "x": 1})
    assert response.json() == {"x": ["Unknown field."]}
