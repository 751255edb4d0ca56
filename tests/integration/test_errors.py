"""Answers that the framework would give in its own form (contract 2)."""

import pytest


@pytest.mark.parametrize("size", [2_000_000, None])
async def test_a_body_that_is_too_large_gets_json(api, size):
    async def chunks():
        for _ in range(20):
            yield b" " * 100_000

    content = b" " * size if size else chunks()
    answer = await api.post("/api/v1/calendars", content=content)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/v1/calendar_events", "GET, POST"),
        ("/api/v1/calendars/cal_aaaaaaaaaaaaaaaa", "DELETE, GET, PATCH"),
        ("/rsvp/", "GET, HEAD, POST"),
    ],
)
async def test_a_wrong_method_is_told_which_ones_are_right(api, path, allowed):
    answer = await api.put(path)
    assert (answer.status_code, answer.json()) == (405, {"error": "Method not allowed"})
    assert answer.headers["allow"] == allowed
