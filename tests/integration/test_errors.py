"""Answers that the framework would give in its own form (contract 2)."""

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from app.core.db import transaction


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


@pytest.mark.changes_schema
@pytest.mark.parametrize("sqlstate", ["53100", "53200", "53400"])
async def test_a_database_without_room_is_503_and_one_line_in_the_log(api, sessions, sqlstate):
    async with transaction(sessions) as session:
        await session.execute(
            text(
                "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                f"RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '{sqlstate}'; END $$"
            )
        )
        await session.execute(
            text("CREATE TRIGGER no_room BEFORE INSERT ON calendars FOR EACH ROW EXECUTE FUNCTION no_room()")
        )
    with capture_logs() as logs:
        answer = await api.post(
            "/api/v1/calendars", json={"platform": "ics", "feed_url": "https://calendar.invalid/feed.ics"}
        )
    assert (answer.status_code, list(answer.json())) == (503, ["error"])
    assert int(answer.headers["Retry-After"]) > 0
    told = [log for log in logs if log["event"] != "request"]
    assert [(log["event"], log["sqlstate"]) for log in told] == [("database_unavailable", sqlstate)]
