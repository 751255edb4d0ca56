"""Sentences about wrong input, in the words of this API."""

from typing import Any

import pytest

from app.api.errors import _sentence

RANGE = {"start": "2027-03-01T00:00:00Z", "end": "2027-03-08T00:00:00Z"}
RULES: dict[str, Any] = {"rules": []}
# Operations with a body and without a query, each with a good body.
BODIES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "free_busy", {"calendars": ["ada"], **RANGE}),
    ("POST", "availability", {"participants": [{"calendars": ["ada"]}], **RANGE, "duration_minutes": 30}),
    ("PUT", "join_rules", RULES),
    ("POST", "join_rules/preview", RULES),
    ("PUT", "calendars/cal_0000000000000000/join_rules", RULES),
    ("PUT", "calendar_events/evt_0000000000000000/bot_policy", {"policy": "never"}),
]


@pytest.mark.parametrize(("method", "path", "body"), BODIES)
async def test_an_unknown_query_parameter_beside_a_body_is_refused(api, method, path, body) -> None:
    """A client that writes ?live=true must not believe that it asked for that."""
    url = f"/api/v1/{path}"
    refused = await api.request(method, f"{url}?live=true", json=body)
    assert (refused.status_code, refused.json()) == (400, {"error": "live: Unknown query parameter."})
    unauthorized = await api.request(
        method, f"{url}?live=true", json=body, headers={"Authorization": "Token x"}
    )
    assert unauthorized.status_code == 401
    plain = await api.request(method, url, json=body)
    attendees = await api.request(method, f"{url}?format=json", json=body)
    assert (attendees.status_code, attendees.json()) == (plain.status_code, plain.json())


@pytest.mark.parametrize(
    ("changed", "field", "sentence"),
    [
        ({"participants": []}, "participants", "Must have at least 1 item."),
        ({"duration_minutes": 0}, "duration_minutes", "Must be at least 1."),
        ({"limit": 10_001}, "limit", "Must be at most 10000."),
        ({"duration_minutes": 10**7}, "duration_minutes", "Must be at most 132480."),
        (
            {"days": ["Monday"]},
            "participants",
            "0.open_hours.0.days.0: Must be 'mon', 'tue', 'wed', 'thu', 'fri', 'sat' or 'sun'.",
        ),
        (
            {"hour": "9:00"},
            "participants",
            "0.open_hours.0.start: Not a time of day as HH:MM, such as 09:00.",
        ),
    ],
)
async def test_sentences_about_bodies(api, changed: dict[str, Any], field: str, sentence: str) -> None:
    hours = {
        "days": changed.pop("days", ["mon"]),
        "start": changed.pop("hour", "09:00"),
        "end": "17:00",
        "timezone": "Europe/Paris",
    }
    body = {
        "participants": [{"calendars": ["ada"], "open_hours": [hours]}],
        **RANGE,
        "duration_minutes": 30,
        **changed,
    }
    response = await api.post("/api/v1/availability", json=body)
    assert (response.status_code, response.json()) == (400, {field: [sentence]})


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("wait=31", "wait: Must be at most 30."),
        ("wait=-1", "wait: Must be at least 0."),
        ("wait=30s", "wait: Not a number."),
        ("wait=nan", "wait: Not a number."),
        ("limit=0", "limit: Must be at least 1."),
    ],
)
async def test_sentences_about_queries(api, query: str, sentence: str) -> None:
    response = await api.get(f"/api/v1/changes?{query}")
    assert (response.status_code, response.json()) == (400, {"error": sentence})


def test_numbers_are_written_in_full() -> None:
    assert (
        _sentence({"type": "less_than_equal", "ctx": {"le": 1_000_000.0}, "msg": ""})
        == "Must be at most 1000000."
    )
    assert _sentence({"type": "less_than_equal", "ctx": {"le": 0.5}, "msg": ""}) == "Must be at most 0.5."
    assert (
        _sentence({"type": "too_short", "ctx": {"min_length": 2}, "msg": ""}) == "Must have at least 2 items."
    )
