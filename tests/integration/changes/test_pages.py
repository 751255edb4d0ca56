"""`GET /api/v1/changes` without waiting (docs/reference/http-api.md, "Changes")."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from app.changes.places import Place, Scope, encode_cursor
from app.core.clock import isoformat, utcnow
from app.core.db import transaction
from tests.integration.changes.following import URL, event, page, short, write, write_in


async def test_without_a_cursor_it_begins_now(api, sessions, ref):
    await write(sessions, ref, "old")
    first = await page(api)
    assert first["results"] == []
    assert first["has_more"] is False
    await write(sessions, ref, "new")
    second = await page(api, cursor=first["next_cursor"])
    assert short(second) == ["created new"]
    assert set(second) == {"results", "next_cursor", "has_more"}
    (result,) = second["results"]
    assert set(result) == {"type", "calendar_id", "event"}
    assert result["calendar_id"] == ref.calendar_id
    assert result["event"] == (await api.get(f"/api/v1/calendar_events/{result['event']['id']}")).json()
    third = await page(api, cursor=second["next_cursor"])
    assert third["results"] == []
    assert third["next_cursor"] == second["next_cursor"]


async def test_the_type_is_seen_from_the_cursor(api, sessions, ref):
    await write(sessions, ref, "a", "b")
    cursor = (await page(api))["next_cursor"]
    await write(sessions, ref, "a=a2", "c", "d", removed=["b"])
    await write(sessions, ref, "c=c2", removed=["d"])
    body = await page(api, cursor=cursor)
    # c was created and changed since, d created and deleted: each comes once, as it is now.
    assert short(body) == ["updated a2", "deleted b", "created c2", "deleted d"]
    assert [result["event"]["is_deleted"] for result in body["results"]] == [False, True, False, True]
    await write(sessions, ref, "b=again")
    assert short(await page(api, cursor=body["next_cursor"])) == ["updated again"]


async def test_pages_follow_one_another(api, sessions, ref, second):
    cursor = (await page(api))["next_cursor"]
    names = [f"e{n:02}" for n in range(7)]
    await write(sessions, ref, *names[:4])
    await write(sessions, second, *names[4:])
    got, sizes = [], []
    while True:
        body = await page(api, cursor=cursor, limit=3)
        got += short(body)
        sizes.append((len(body["results"]), body["has_more"]))
        cursor = body["next_cursor"]
        if not body["has_more"]:
            break
    assert got == [f"created {name}" for name in names]
    assert sizes == [(3, True), (3, True), (1, False)]


async def test_events_of_one_time_in_many_calendars_come_once_each(api, sessions, ref, second):
    await write(sessions, ref, *"abcdef")
    await write(sessions, second, *"ghijkl")
    same = utcnow() - timedelta(seconds=5)
    async with transaction(sessions) as session:
        await session.execute(
            text("UPDATE calendar_events SET updated_at = :same, created_at = :same"), {"same": same}
        )
    cursor, got = None, []
    for _ in range(20):
        where = {"cursor": cursor} if cursor else {"since": isoformat(same)}
        body = await page(api, limit=1, **where)
        got += short(body)
        cursor = body["next_cursor"]
    assert sorted(got) == [f"created {name}" for name in "abcdefghijkl"]


async def test_since_begins_at_a_time(api, sessions, ref):
    await write(sessions, ref, "a")
    body = await page(api, since="2020-01-01T00:00:00+02:00")
    assert short(body) == ["created a"]
    at = body["results"][0]["event"]["updated_at"]
    assert short(await page(api, since=at)) == ["created a"]
    later = isoformat(datetime.fromisoformat(at) + timedelta(microseconds=1))
    assert short(await page(api, since=later)) == []
    for extreme in ("0001-01-01T00:00:00Z", "1900-01-01T00:00:00Z"):
        assert short(await page(api, since=extreme)) == ["created a"]


async def test_a_since_to_come_means_now(api, sessions, ref):
    cursor = (await page(api, since="9999-12-31T23:59:59.999999Z"))["next_cursor"]
    await write(sessions, ref, "a")
    assert short(await page(api, cursor=cursor)) == ["created a"]


async def test_one_calendar(api, sessions, ref, second):
    cursor = (await page(api, calendar_id=ref.calendar_id))["next_cursor"]
    await write(sessions, second, "theirs")
    await write(sessions, ref, "ours")
    assert short(await page(api, cursor=cursor, calendar_id=ref.calendar_id)) == ["created ours"]


async def test_a_cursor_is_good_for_its_calendar_and_project_only(api, other_api, ref, second):
    of_project = (await page(api))["next_cursor"]
    of_calendar = (await page(api, calendar_id=ref.calendar_id))["next_cursor"]
    wrong = [
        (api, {"cursor": of_calendar}),
        (api, {"cursor": of_project, "calendar_id": ref.calendar_id}),
        (api, {"cursor": of_calendar, "calendar_id": second.calendar_id}),
        (other_api, {"cursor": of_project}),
    ]
    for client, query in wrong:
        for url in (URL, f"{URL}/stream"):
            response = await client.get(url, params=query)
            assert (response.status_code, set(response.json())) == (400, {"error"}), query


async def test_an_unknown_calendar_is_not_found(api, other_api, ref):
    of_calendar = (await page(api, calendar_id=ref.calendar_id))["next_cursor"]
    for url in (URL, f"{URL}/stream"):
        for client, query in [
            (api, {"calendar_id": "cal_0000000000000000"}),
            (api, {"calendar_id": ""}),
            (api, {"calendar_id": "\ud7ff☃"}),
            (other_api, {"calendar_id": ref.calendar_id}),
            (other_api, {"calendar_id": ref.calendar_id, "cursor": of_calendar}),
        ]:
            response = await client.get(url, params=query)
            assert (response.status_code, response.json()) == (404, {"error": "Calendar not found"}), query


async def test_bad_queries_are_refused(api, project):
    good = (await page(api))["next_cursor"]
    flipped = ("B" if good[0] == "A" else "A") + good[1:]
    for query, part in [
        ({"cursor": "x"}, "cursor"),
        ({"cursor": flipped}, "cursor"),
        ({"cursor": good + "A"}, "cursor"),
        ({"cursor": good + "="}, "cursor"),
        ({"cursor": "Ä" * 40}, "cursor"),
        ({"cursor": "a" * 2000}, "cursor"),
        ({"cursor": "a\x00"}, "NUL"),
        ({"cursor": good, "since": "2026-01-01T00:00:00Z"}, "both"),
        ({"since": "yesterday"}, "since"),
        ({"since": ""}, "since"),
        ({"since": "0001-01-01T00:00:00+23:00"}, "out of range"),
        ({"unknown": "1"}, "unknown"),
    ]:
        for url in (URL, f"{URL}/stream"):
            response = await api.get(url, params=query)
            assert response.status_code == 400, (query, response.text)
            assert part in response.json()["error"], (query, response.text)
    for query in [
        {"wait": "31"}, {"wait": "-1"}, {"wait": "nan"}, {"wait": "inf"}, {"wait": "x"}, {"wait": "1e400"},
        {"limit": "0"}, {"limit": "501"}, {"limit": "9" * 5000}, {"limit": "1.5"}, {"limit": ""},
    ]:  # fmt: skip
        response = await api.get(URL, params=query)
        assert response.status_code == 400, (query, response.text)
        assert next(iter(query)) in response.json()["error"]
    assert (await api.get(f"{URL}/stream", params={"wait": "1"})).status_code == 400
    assert (await api.get(f"{URL}/stream", headers={"Last-Event-ID": "x"})).status_code == 400


@pytest.mark.parametrize("at", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
async def test_a_cursor_that_was_made_up_breaks_nothing(api, sessions, ref, project, at):
    await write(sessions, ref, "a")
    for place in (Place(at), Place(at, "evt_0000000000000000"), Place(at, "z" * 900)):
        cursor = encode_cursor(Scope(project.id), place)
        response = await api.get(URL, params={"cursor": cursor, "wait": "0.1"})
        assert response.status_code in {200, 400}, response.text
    huge = base64.urlsafe_b64encode(b"\x7f" + b"\xff" * 15).decode().rstrip("=")
    assert (await api.get(URL, params={"cursor": huge})).status_code == 400


async def test_what_an_open_transaction_could_undercut_is_held_back(api, sessions, ref, second):
    start = (await page(api))["next_cursor"]
    async with transaction(sessions) as slow:
        await write_in(slow, sessions, ref, [event("slow")])
        await write(sessions, second, "quick")
        held = await page(api, cursor=start)
        assert held["results"] == []
        # A cursor of now is behind neither.
        now = (await page(api))["next_cursor"]
    assert short(await page(api, cursor=held["next_cursor"])) == ["created slow", "created quick"]
    assert short(await page(api, cursor=now)) == ["created slow", "created quick"]


async def test_nothing_comes_of_a_deleted_calendar(api, sessions, ref, second):
    cursor = (await page(api))["next_cursor"]
    await write(sessions, ref, "theirs")
    await write(sessions, second, "stays")
    assert (await api.delete(f"/api/v1/calendars/{ref.calendar_id}")).status_code == 200
    assert short(await page(api, cursor=cursor)) == ["created stays"]


async def test_head_has_the_headers_and_does_not_wait(api):
    response = await api.head(URL, params={"wait": "30"})
    assert (response.status_code, response.content) == (200, b"")
    response = await api.head(f"{URL}/stream")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_it_needs_an_api_key(api):
    for url in (URL, f"{URL}/stream"):
        assert (await api.get(url, headers={"Authorization": "Token wrong"})).status_code == 401
