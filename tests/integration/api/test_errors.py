"""Responses that the framework would give in its own form (docs/reference/http-api.md, "Errors")."""

import httpx
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from app.core.db import transaction
from app.main import create_app
from tests.fakes.server import serve


@pytest.mark.parametrize("size", [2_000_000, None])
async def test_a_body_that_is_too_large_gets_json(api, size):
    async def chunks():
        for _ in range(20):
            yield b" " * 100_000

    content = b" " * size if size else chunks()
    response = await api.post("/api/v1/calendars", content=content)
    assert response.status_code == 413
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/v1/calendar_events", "GET, HEAD, POST"),
        ("/api/v1/calendars/cal_aaaaaaaaaaaaaaaa", "DELETE, GET, HEAD, PATCH"),
        ("/rsvp/", "GET, HEAD, POST"),
    ],
)
async def test_a_response_to_a_wrong_method_names_the_right_ones(api, path, allowed):
    response = await api.put(path)
    assert (response.status_code, response.json()) == (405, {"error": "Method not allowed"})
    assert response.headers["allow"] == allowed


async def test_head_is_get_without_the_body(settings, project):
    app = create_app(settings)
    headers = {"Authorization": f"Token {project.api_key}"}
    # A real server: one that counts what it sends.
    async with app.router.lifespan_context(app), serve(app) as url, httpx.AsyncClient(base_url=url) as client:
        for path, status in (
            ("/api/v1/calendars", 200),
            ("/api/v1/calendar_events?page_size=1", 200),
            ("/api/v1/bots/bot_aaaaaaaaaaaaaaaa", 404),
            ("/api/v1/bots?state=lost", 400),
            ("/healthz", 200),
            ("/openapi.json", 200),
            ("/nothing", 404),
            ("/api/v1/webhook_deliveries/dlv_aaaaaaaaaaaaaaaa/redeliver", 405),
        ):
            head = await client.head(path, headers=headers)
            get = await client.get(path, headers=headers)
            assert (head.status_code, get.status_code) == (status, status), path
            assert head.content == b""
            for name in ("content-length", "content-type"):
                assert head.headers[name] == get.headers[name], path
        assert (await client.head("/api/v1/calendars")).status_code == 401


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
        response = await api.post(
            "/api/v1/calendars", json={"platform": "ics", "feed_url": "https://calendar.invalid/feed.ics"}
        )
    assert (response.status_code, list(response.json())) == (503, ["error"])
    assert int(response.headers["Retry-After"]) > 0
    logged = [log for log in logs if log["event"] != "request"]
    assert [(log["event"], log["sqlstate"]) for log in logged] == [("database_unavailable", sqlstate)]


async def test_head_does_not_use_up_a_browsers_way_back_from_oauth(api):
    response = await api.head("/oauth/google/callback?state=x&code=y")
    assert (response.status_code, response.headers["allow"]) == (405, "GET")
    assert (await api.get("/oauth/google/callback?state=x&code=y")).status_code != 405
