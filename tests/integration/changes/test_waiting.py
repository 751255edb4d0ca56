"""`wait`: a response without results comes when something changed (docs/reference/http-api.md, "Changes")."""

import asyncio
import time

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import event as sqlalchemy_event

from app.changes import hub as hub_module
from app.core.db import transaction
from tests.integration.changes.following import URL, event, page, short, write, write_in

NOW = "9999-01-01T00:00:00Z"


async def until_waiting(app, count):
    async with asyncio.timeout(5):
        while len(app.state.changes._followers) != count or any(
            follower.channel is None for follower in app.state.changes._followers
        ):
            await asyncio.sleep(0.005)


async def test_it_returns_as_soon_as_something_is_committed(app, api, notifying, ref, monkeypatch):
    monkeypatch.setattr(hub_module, "_LOOK_SECONDS", 3600)  # so that Redis alone brings it
    await page(api, since=NOW, wait=0.05)  # the hub connects to Redis with its first client
    while not app.state.changes._listener.is_connected:
        await asyncio.sleep(0.01)
    cursor = (await page(api))["next_cursor"]
    waiting = asyncio.create_task(page(api, cursor=cursor, wait=20))
    await until_waiting(app, 1)
    async with transaction(notifying) as session:
        await write_in(session, notifying, ref, [event("a")])
        await asyncio.sleep(0.1)
        assert not waiting.done()
    async with asyncio.timeout(10):
        body = await waiting
    assert short(body) == ["created a"]
    assert (await page(api, cursor=body["next_cursor"]))["results"] == []


async def test_without_a_word_from_redis_it_comes_a_little_later(app, api, sessions, ref):
    cursor = (await page(api))["next_cursor"]
    waiting = asyncio.create_task(page(api, cursor=cursor, wait=20))
    await until_waiting(app, 1)
    await write(sessions, ref, "a")  # these sessions notify no process
    async with asyncio.timeout(5):
        assert short(await waiting) == ["created a"]


@pytest.mark.settings(redis_url="redis://127.0.0.1:1/0")
async def test_without_redis(app, api, notifying, ref):
    cursor = (await page(api))["next_cursor"]
    waiting = asyncio.create_task(page(api, cursor=cursor, wait=20))
    await until_waiting(app, 1)
    await write(notifying, ref, "a")
    async with asyncio.timeout(5):
        assert short(await waiting) == ["created a"]


async def test_it_is_empty_when_the_time_is_over(api, sessions, ref):
    await write(sessions, ref, "a")
    cursor = (await page(api))["next_cursor"]
    started = time.monotonic()
    body = await page(api, cursor=cursor, wait=0.4)
    assert time.monotonic() - started >= 0.4
    assert body == {"results": [], "next_cursor": cursor, "has_more": False}


async def test_what_is_there_comes_at_once(api, sessions, ref):
    cursor = (await page(api))["next_cursor"]
    await write(sessions, ref, "a", "b", "c")
    body = await page(api, cursor=cursor, wait=30, limit=2)
    assert short(body) == ["created a", "created b"]
    assert body["has_more"] is True


async def test_without_a_cursor_it_returns_one_at_once(app, api, notifying, ref):
    await write(notifying, ref, "old")
    async with asyncio.timeout(5):
        body = await page(api, wait=20)
    assert (body["results"], body["has_more"]) == ([], False)
    waiting = asyncio.create_task(page(api, wait=20, cursor=body["next_cursor"]))
    await until_waiting(app, 1)
    await write(notifying, ref, "new")
    assert short(await waiting) == ["created new"]


async def test_since_waits_like_a_cursor(app, api, notifying, ref):
    waiting = asyncio.create_task(page(api, wait=20, since=NOW))
    await until_waiting(app, 1)
    await write(notifying, ref, "new")
    assert short(await waiting) == ["created new"]


async def test_each_waits_for_its_own(app, api, other_api, notifying, ref, second):
    cursor = (await page(api))["next_cursor"]
    of_second = (await page(api, calendar_id=second.calendar_id))["next_cursor"]
    all_of_it = asyncio.create_task(page(api, cursor=cursor, wait=20))
    theirs = asyncio.create_task(page(other_api, since=NOW, wait=1))
    one = asyncio.create_task(page(api, cursor=of_second, calendar_id=second.calendar_id, wait=20))
    await until_waiting(app, 3)
    await write(notifying, ref, "first")
    assert short(await all_of_it) == ["created first"]
    await asyncio.sleep(0.2)
    assert not one.done()
    await write(notifying, second, "second")
    assert short(await one) == ["created second"]
    assert short(await theirs) == []


async def test_many_changes_are_cut_at_the_limit(app, api, notifying, ref):
    cursor = (await page(api))["next_cursor"]
    waiting = asyncio.create_task(page(api, cursor=cursor, wait=20, limit=3))
    await until_waiting(app, 1)
    names = [f"e{n:03}" for n in range(250)]
    await write(notifying, ref, *names)
    body = await waiting
    got = short(body)
    assert len(got) == 3
    assert body["has_more"] is True
    while body["has_more"]:
        body = await page(api, cursor=body["next_cursor"], limit=100)
        got += short(body)
    assert got == [f"created {name}" for name in names]


async def test_waiting_clients_have_no_query_and_no_connection(app, api, engine, ref):
    await page(api, since=NOW, wait=0.1)
    cursor = (await page(api))["next_cursor"]
    waiting = [asyncio.create_task(page(api, cursor=cursor, wait=4)) for _ in range(50)]
    await until_waiting(app, 50)
    app_engine = app.state.calbridge.sessions.kw["bind"]
    statements: list[str] = []

    def note(_connection, _cursor, statement, *_rest):
        statements.append(statement)

    sqlalchemy_event.listen(app_engine.sync_engine, "before_cursor_execute", note)
    used = []
    started = time.monotonic()
    for _ in range(20):
        await asyncio.sleep(0.1)
        used.append(app_engine.pool.checkedout())
    sqlalchemy_event.remove(app_engine.sync_engine, "before_cursor_execute", note)
    assert sorted(used)[len(used) // 2] == 0
    # A look every 0.2 s for all projects, whatever the number of clients.
    assert len(statements) <= (time.monotonic() - started) / hub_module._LOOK_SECONDS + 2, statements
    assert [short(body) for body in await asyncio.gather(*waiting)] == [[]] * 50


async def test_clients_that_come_back_to_a_quiet_project_read_nothing(app, api, notifying, ref):
    cursor = (await page(api))["next_cursor"]
    keep = asyncio.create_task(page(api, cursor=cursor, wait=3))
    await until_waiting(app, 1)
    await asyncio.sleep(0.3)  # the hub has looked, and is connected
    sqlalchemy_engine = app.state.calbridge.sessions.kw["bind"].sync_engine
    statements: list[str] = []
    sqlalchemy_event.listen(
        sqlalchemy_engine,
        "before_cursor_execute",
        lambda _c, _k, statement, *_r: statements.append(statement),
    )
    assert short(await page(api, cursor=cursor, wait=0.2)) == []
    reads = [
        statement for statement in statements if "calendar_events" in statement and "unnest" not in statement
    ]
    assert reads == []
    await write(notifying, ref, "a")
    body = await keep
    assert short(body) == ["created a"]
    again = asyncio.create_task(page(api, cursor=body["next_cursor"], wait=20))
    older = asyncio.create_task(page(api, cursor=cursor, wait=20))
    assert short(await older) == ["created a"]
    await until_waiting(app, 1)
    await write(notifying, ref, "b")
    assert short(await again) == ["created b"]


async def test_there_is_a_limit_of_waiting_clients(app, api, other_api, monkeypatch, ref):
    monkeypatch.setattr(hub_module, "MAX_WAITING", 4)  # 2 of a project, and half of the rest of the next one
    cursor = (await page(api))["next_cursor"]
    waiting = [asyncio.create_task(page(api, cursor=cursor, wait=2)) for _ in range(2)]
    await until_waiting(app, 2)
    assert REGISTRY.get_sample_value("calbridge_waiting_for_changes", {"kind": "request"}) == 2
    for url, query in [(URL, {"cursor": cursor, "wait": 5}), (f"{URL}/stream", {"cursor": cursor})]:
        refused = await api.get(url, params=query)
        assert (refused.status_code, set(refused.json())) == (429, {"error"})
        assert int(refused.headers["Retry-After"]) > 0
    assert (await api.get(URL, params={"cursor": cursor})).status_code == 200  # without waiting
    waiting.append(asyncio.create_task(page(other_api, since=NOW, wait=2)))
    await until_waiting(app, 3)
    assert (await other_api.get(URL, params={"since": NOW, "wait": 5})).status_code == 429
    await asyncio.gather(*waiting)
    assert (await api.get(URL, params={"cursor": cursor, "wait": 0.1})).status_code == 200
    assert REGISTRY.get_sample_value("calbridge_waiting_for_changes", {"kind": "request"}) == 0


async def test_the_time_of_waiting_is_not_measured_as_work(api, ref):
    labels = {"method": "GET", "route": "/api/v1/changes", "status": "200"}

    def seconds() -> float:
        return REGISTRY.get_sample_value("calbridge_http_request_seconds_sum", labels) or 0.0

    before = seconds()
    await page(api, since=NOW, wait=2)
    assert seconds() - before < 1.5


async def test_a_calendar_that_is_deleted_while_a_client_waits(app, api, notifying, ref):
    cursor = (await page(api, calendar_id=ref.calendar_id))["next_cursor"]
    waiting = asyncio.create_task(page(api, cursor=cursor, calendar_id=ref.calendar_id, wait=1))
    await until_waiting(app, 1)
    assert (await api.delete(f"/api/v1/calendars/{ref.calendar_id}")).status_code == 200
    assert short(await waiting) == []
    query = {"cursor": cursor, "calendar_id": ref.calendar_id, "wait": 1}
    assert (await api.get(URL, params=query)).status_code == 404
