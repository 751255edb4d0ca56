"""What is wrong with rules is refused by name, and never a fault of the server."""

import copy
import json
from typing import Any

import pytest

from app.core.ids import new_id
from tests.integration.calendars.calendars_api import GOOGLE

PROJECT = "/api/v1/join_rules"
PREVIEW = "/api/v1/join_rules/preview"
GOOD: dict[str, Any] = {
    "rules": [
        {
            "name": "customers",
            "when": {"has_meeting_url": True, "attendees_min": 2, "name_contains": ["call"]},
            "join": True,
            "bot": {"bot_name": "Notetaker"},
        }
    ],
    "bot_scope": "event",
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with another value at a path such as `rules.0.when.attendees_min`; ... removes what is there."""
    body = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place: Any = body
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    if value is ...:
        del place[last]
    elif isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return body


@pytest.fixture
async def calendar_id(api) -> str:
    response = await api.post("/api/v1/calendars", json=GOOGLE)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


@pytest.fixture
async def places(api, calendar_id) -> list[tuple[str, str]]:
    """Every call that takes rules."""
    return [("PUT", PROJECT), ("PUT", f"/api/v1/calendars/{calendar_id}/join_rules"), ("POST", PREVIEW)]


async def refused(api, places, body, field: str, *words: str) -> None:
    """The body is a 400 everywhere that names `field` and has these words."""
    # ASCII, in which half of a surrogate pair can be written.
    content, headers = json.dumps(body), {"Content-Type": "application/json"}
    for method, path in places:
        response = await api.request(method, path, content=content, headers=headers)
        assert response.status_code == 400, (method, path, response.status_code, response.text)
        assert list(response.json()) == [field], (method, path, response.text)
        (sentences,) = response.json().values()
        for word in words:
            assert word in " ".join(sentences), (word, sentences)
        assert all(sentence.endswith((".", "!", "?")) for sentence in sentences), sentences


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("rulez", ()),
        ("rules.0.wenn", ("0.wenn",)),
        ("rules.0.when.atendees_min", ("0.when.atendees_min",)),
        ("rules.0.when.has_link", ("has_link",)),
        ("rules.0.when.name_matches", ("name_matches",)),
    ],
)
async def test_unknown_fields_are_named(api, places, path, words) -> None:
    await refused(api, places, changed(path, 1), path.partition(".")[0], "Unknown field", *words)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rules", None),
        ("rules", {}),
        ("rules", "all"),
        ("rules", ...),
        ("rules.0", None),
        ("rules.0", []),
        ("rules.0", "always"),
        ("rules.0.name", None),
        ("rules.0.name", ""),
        ("rules.0.name", "  "),
        ("rules.0.name", ["a"]),
        ("rules.0.name", "a\x00b"),
        ("rules.0.name", "\ud800"),
        ("rules.0.name", "a" * 100_000),
        ("rules.0.when", []),
        ("rules.0.when", "always"),
        ("rules.0.when.has_meeting_url", "true"),
        ("rules.0.when.has_meeting_url", 1),
        ("rules.0.when.attendees_min", -1),
        ("rules.0.when.attendees_min", 1.5),
        ("rules.0.when.attendees_min", "2"),
        ("rules.0.when.attendees_min", True),
        ("rules.0.when.attendees_min", 10**30),
        ("rules.0.when.attendees_max", -1),
        ("rules.0.when.attendees_max", 2**63),
        ("rules.0.when.attendees_max", 1),  # less than attendees_min
        ("rules.0.when.has_external_attendee", "yes"),
        ("rules.0.when.is_organizer", 0),
        ("rules.0.when.is_all_day", []),
        ("rules.0.when.response_status_in", []),
        ("rules.0.when.response_status_in", "accepted"),
        ("rules.0.when.response_status_in", ["maybe"]),
        ("rules.0.when.response_status_in", [None]),
        ("rules.0.when.visibility_in", []),
        ("rules.0.when.visibility_in", ["secret"]),
        ("rules.0.when.platforms", []),
        ("rules.0.when.platforms", ["skype"]),
        ("rules.0.when.platforms", [["zoom"]]),
        ("rules.0.when.name_contains", []),
        ("rules.0.when.name_contains", "call"),
        ("rules.0.when.name_contains", [""]),
        ("rules.0.when.name_contains", ["a\x00"]),
        ("rules.0.when.name_contains", ["\udfff"]),
        ("rules.0.when.name_contains", [7]),
        ("rules.0.when.name_contains", ["x" * 1_000_000]),
        ("rules.0.when.name_contains", ["x"] * 10_000),
        ("rules.0.join", None),
        ("rules.0.join", "true"),
        ("rules.0.join", 1),
        ("rules.0.bot", None),
        ("rules.0.bot", ...),
        ("rules.0.bot", []),
        ("rules.0.bot", {}),
        ("rules.0.bot.bot_name", None),
        ("rules.0.bot.bot_name", ""),
        ("rules.0.bot.bot_name", " "),
        ("rules.0.bot.bot_name", "x" * 256),
        ("rules.0.bot.bot_name", "Ada \U0001f916"),
        ("rules.0.bot.bot_name", "a\x00"),
        ("rules.0.bot.join_at", "2031-01-01T00:00:00Z"),
        ("rules.0.bot.meeting_url", "https://zoom.us/j/5551112222"),
        ("rules.0.bot.calendar_event_id", "evt_0000000000000000"),
        ("rules.0.bot.deduplication_key", "k"),
        ("rules.0.bot.metadata", "x"),
        ("rules.0.bot.metadata", {"a": 1}),
        ("rules.0.bot.bot_settings", "x"),
        ("rules.0.bot.recording_settings", {"a": [None]}),
        ("bot_scope", None),
        ("bot_scope", "calendar"),
        ("bot_scope", ["meeting"]),
        ("bot_scope", True),
    ],
)
async def test_wrong_values_are_named(api, places, path, value) -> None:
    field, _, inner = path.partition(".")
    words = [inner.split(".")[0]] if inner else []
    if repr(value).count("\\x00") + repr(value).count("\\ud") or (isinstance(value, int) and value >= 2**63):
        words = []  # what PostgreSQL cannot store is looked for in the whole field
    await refused(api, places, changed(path, value), field, *words)


async def test_rules_with_one_name_twice_are_refused(api, places) -> None:
    rule = GOOD["rules"][0]
    await refused(api, places, {**GOOD, "rules": [rule, {**rule, "join": False}]}, "rules", "customers")


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b'"rules"', b"{", b"\xff\xfe", b'{"rules": NaN}', b'{"rules": []}' * 2],
    ids=["empty", "null", "list", "text", "cut", "not UTF-8", "NaN", "two"],
)
async def test_bodies_that_are_no_objects(api, places, content) -> None:
    headers = {"Content-Type": "application/json"}
    for method, path in places:
        response = await api.request(method, path, content=content, headers=headers)
        assert response.status_code == 400, (method, path, response.status_code, response.text)


async def test_so_many_rules_are_refused_soon(api, places) -> None:
    rule = GOOD["rules"][0]
    many = [{**rule, "name": f"rule {number}"} for number in range(10_000)]
    for method, path in places:
        response = await api.request(method, path, json={**GOOD, "rules": many})
        assert response.status_code in {400, 413}, response.status_code
        assert len(response.content) < 2_000, "a sentence for the list, and not one for each rule"


async def test_a_body_that_is_too_large(api, places) -> None:
    body = changed("rules.0.bot.bot_settings", {"x": "y" * 20_000_000})
    for method, path in places:
        assert (await api.request(method, path, json=body)).status_code in {400, 413}


async def test_deep_settings_are_refused(api, places) -> None:
    deep: dict[str, Any] = {}
    for _ in range(500):
        deep = {"a": deep}
    for method, path in places:
        response = await api.request(method, path, json=changed("rules.0.bot.bot_settings", deep))
        assert response.status_code == 400, response.status_code


@pytest.mark.parametrize(
    "text", [".*", "^a$", "%", "_", "\\", "[a-z]+", "(", "'; DROP TABLE bots; --", "${x}", "İ", "ß", "\u0301"]
)
async def test_texts_that_look_like_patterns_are_texts(api, places, text) -> None:
    body = changed("rules.0.when.name_contains", [text])
    for method, path in places:
        response = await api.request(method, path, json=body)
        assert response.status_code == 200, response.text
    shown = (await api.get(PROJECT)).json()
    assert shown["rules"][0]["when"]["name_contains"] == [text]


async def test_what_is_refused_changes_nothing(api) -> None:
    assert (await api.put(PROJECT, json=GOOD)).status_code == 200
    before = (await api.get(PROJECT)).json()
    for body in (changed("rules.0.bot", ...), changed("bot_scope", "x"), {}):
        assert (await api.put(PROJECT, json=body)).status_code == 400
    assert (await api.get(PROJECT)).json() == before


async def test_calendars_of_others_do_not_exist(api, other_api, calendar_id) -> None:
    for one in (calendar_id, new_id("cal"), "cal_x", "proj_0000000000000000", "cal_' OR 1=1 --"):
        path = f"/api/v1/calendars/{one}/join_rules"
        for response in (
            await other_api.get(path),
            await other_api.put(path, json=GOOD),
            await other_api.delete(path),
        ):
            assert response.status_code == 404, (one, response.request.method, response.text)
            assert response.json() == {"error": "Calendar not found"}
    assert (await other_api.get(PROJECT)).json()["rules"] == []


async def test_an_unknown_calendar_is_404_also_with_a_good_body(api, other_api, calendar_id) -> None:
    assert (await api.put(f"/api/v1/calendars/{calendar_id}/join_rules", json=GOOD)).status_code == 200
    assert (await other_api.get(PROJECT)).json()["rules"] == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"policy": None},
        {"policy": "sometimes"},
        {"policy": ["always"]},
        {"policy": True},
        {"policy": "never", "why": "x"},
        {"policy": "always\x00"},
        [],
        None,
    ],
)
async def test_policies_that_there_are_not(api, other_api, body) -> None:
    event_id = await _add_event(api)
    path = f"/api/v1/calendar_events/{event_id}/bot_policy"
    response = await api.put(path, json=body)
    assert response.status_code == 400, response.text
    if isinstance(body, dict):
        assert set(response.json()) <= {"policy", "why"}


async def test_policies_of_others_events(api, other_api) -> None:
    event_id = await _add_event(api)
    for one in (event_id, new_id("evt"), "evt_x", "cal_0000000000000000"):
        response = await other_api.put(f"/api/v1/calendar_events/{one}/bot_policy", json={"policy": "always"})
        assert response.status_code == 404, response.text
        assert response.json() == {"error": "Calendar event not found"}


async def _add_event(api) -> str:
    calendar = {"platform": "local", "name": "x", "owner_email": "ada@example.com", "timezone": "UTC"}
    calendar_id = (await api.post("/api/v1/calendars", json=calendar)).json()["id"]
    event = {
        "calendar_id": calendar_id,
        "name": "Call",
        "start_time": "2031-01-01T09:00:00Z",
        "end_time": "2031-01-01T10:00:00Z",
        "meeting_url": "https://zoom.us/j/5551112222",
    }
    response = await api.post("/api/v1/calendar_events", json=event)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


async def test_no_key_no_rules(app, api) -> None:
    for method, path in (
        ("GET", PROJECT),
        ("PUT", PROJECT),
        ("POST", PREVIEW),
        ("PUT", f"/api/v1/calendar_events/{new_id('evt')}/bot_policy"),
    ):
        response = await api.request(method, path, json=GOOD, headers={"Authorization": ""})
        assert response.status_code == 401, (method, path)


async def test_the_largest_rules_that_are_taken_can_be_judged(api) -> None:
    """With many long texts, an event is still judged, and the rules come back as they were."""
    rules = [
        {
            "name": f"rule {number}",
            "when": {"name_contains": [f"{number} {'x' * 90} {text}" for text in range(10)]},
            "join": number % 2 == 0,
            "bot": {"bot_name": f"Bot {number}"},
        }
        for number in range(50)
    ]
    response = await api.put(PROJECT, json={"rules": rules, "bot_scope": "meeting"})
    assert response.status_code == 200, response.text
    assert [rule["name"] for rule in response.json()["rules"]] == [rule["name"] for rule in rules]
    await _add_event(api)
