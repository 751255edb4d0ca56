"""Rules that are refused: a 400 that names the field and says why."""

import json

import pytest

from tests.integration.join_rules.rules_api import RULES, add_calendar, rule

GOOD = {"name": "a", "when": {}, "join": True, "bot": {"bot_name": "B"}}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"name": ""}, "0.name"),
        ({"name": "  "}, "0.name"),
        ({"name": "x" * 201}, "0.name"),
        ({"name": "a\x00"}, "NUL"),
        ({"name": "\ud800"}, "surrogate"),
        ({"join": "yes"}, "0.join"),
        ({"bot": None}, "needs a bot"),
        ({"bot": {}}, "0.bot.bot_name"),
        ({"bot": {"bot_name": "😀"}}, "emoji"),
        ({"bot": {"bot_name": "B", "join_at": "2030-01-01T00:00:00Z"}}, "join_at"),
        ({"bot": {"bot_name": "B", "meeting_url": "https://zoom.us/j/1"}}, "meeting_url"),
        ({"bot": {"bot_name": "B", "calendar_event_id": "evt_1"}}, "calendar_event_id"),
        ({"bot": {"bot_name": "B", "deduplication_key": "k"}}, "deduplication_key"),
        ({"bot": {"bot_name": "B", "metadata": {"a": 1}}}, "metadata"),
        ({"bot": {"bot_name": "B", "x": [None]}}, "null"),
        ({"when": {"colour": "red"}}, "Unknown field"),
        ({"when": {"attendees_min": -1}}, "attendees_min"),
        ({"when": {"attendees_min": 10**30}}, "too large"),
        ({"when": {"attendees_min": 3, "attendees_max": 2}}, "larger"),
        ({"when": {"attendees_min": "3"}}, "Not an integer"),
        ({"when": {"response_status_in": []}}, "empty list"),
        ({"when": {"response_status_in": ["maybe"]}}, "response_status_in"),
        ({"when": {"name_contains": [""]}}, "name_contains"),
        ({"when": {"visibility_in": ["secret"]}}, "visibility_in"),
        ({"when": {"platforms": ["telephone"]}}, "Not a meeting platform"),
        ({"when": {"is_all_day": 1}}, "Not a boolean"),
        ({"when": []}, "Not an object"),
        ({"colour": "red"}, "Unknown field"),
    ],
)
@pytest.mark.parametrize("path", [RULES, f"{RULES}/preview"])
async def test_a_rule_that_makes_no_sense_is_refused(api, path, changed, words) -> None:
    send = api.put if path == RULES else api.post
    body = json.dumps({"rules": [{**GOOD, **changed}]})
    response = await send(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert list(response.json()) == ["rules"]
    assert words in response.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "rules"),
        ({"rules": {}}, "rules"),
        ({"rules": [rule("a"), rule("a")]}, "rules"),
        ({"rules": [rule(str(n)) for n in range(101)]}, "rules"),
        ({"rules": [rule("a", bot={"bot_name": "B", "x": "y" * 100_001})]}, "rules"),
        ({"rules": [], "bot_scope": "project"}, "bot_scope"),
        ({"rules": [], "extra": 1}, "extra"),
    ],
)
async def test_a_body_that_makes_no_sense_is_refused(api, body, field) -> None:
    response = await api.put(RULES, json=body)
    assert response.status_code == 400
    assert list(response.json()) == [field]
    assert response.json()[field][0].endswith(".")


async def test_unknown_calendars_are_not_found(api, other_api) -> None:
    calendar_id = await add_calendar(api)
    for client, one in ((other_api, calendar_id), (api, "cal_0123456789abcdef"), (api, "nonsense")):
        url = f"/api/v1/calendars/{one}/join_rules"
        for response in (
            await client.get(url),
            await client.put(url, json={"rules": []}),
            await client.delete(url),
        ):
            assert (response.status_code, response.json()) == (404, {"error": "Calendar not found"})
