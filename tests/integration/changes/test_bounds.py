"""What one client does to others and to the process: cursors, sizes, and connections of any kind."""

import asyncio
import socket
from datetime import UTC, datetime

import orjson
import pytest
from redis.asyncio import Redis
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text

from app.changes import hub as hub_module
from app.changes import service
from app.changes.places import Place, Scope, encode_cursor
from app.core import listener
from app.core.db import transaction
from app.core.wakeups import CHANGES_CHANNEL
from tests.integration.changes.following import URL, page, short, streaming, write
from tests.integration.changes.test_stream import until_followers
from tests.integration.changes.test_waiting import until_waiting

LAST = datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize("event_id", ["", "evt_0000000000000000"])
async def test_a_cursor_of_the_future_does_not_disturb_other_clients(
    app, api, notifying, ref, project, event_id, monkeypatch
):
    monkeypatch.setattr(hub_module, "_LOOK_SECONDS", 3600)
    made_up = encode_cursor(Scope(project.id), Place(LAST, event_id))
    cursor = (await page(api))["next_cursor"]
    first = asyncio.create_task(page(api, cursor=made_up, wait=3))
    await until_waiting(app, 1)
    statements: list[str] = []
    sqlalchemy_event.listen(
        app.state.calbridge.sessions.kw["bind"].sync_engine,
        "before_cursor_execute",
        lambda _c, _k, statement, *_r: statements.append(statement),
    )
    other = asyncio.create_task(page(api, cursor=cursor, wait=20))
    await until_waiting(app, 2)
    await asyncio.sleep(0.5)
    assert len([statement for statement in statements if "calendar_events" in statement]) < 10
    await write(notifying, ref, "a")
    async with asyncio.timeout(5):
        assert short(await other) == ["created a"]
    assert await first == {"results": [], "next_cursor": made_up, "has_more": False}


async def test_a_page_ends_at_a_number_of_bytes(api, sessions, ref, monkeypatch):
    monkeypatch.setattr(service, "_MAX_PAGE_BYTES", 20_000)
    cursor = (await page(api))["next_cursor"]
    names = [f"e{n:03}" for n in range(130)]
    await write(sessions, ref, *names)
    filler = orjson.dumps({"description": "x" * 3_000}).decode()
    async with transaction(sessions) as session:
        await session.execute(text("UPDATE calendar_events SET raw = CAST(:raw AS json)"), {"raw": filler})
    got, has_more = [], True
    while has_more:
        response = await api.get(URL, params={"cursor": cursor, "limit": 500})
        assert len(response.content) < 30_000
        body = response.json()
        assert body["results"]
        got += short(body)
        cursor, has_more = body["next_cursor"], body["has_more"]
    assert got == [f"created {name}" for name in names]


async def test_a_page_of_many_statements_has_each_event_once(api, sessions, ref, monkeypatch):
    monkeypatch.setattr(service, "_ROWS", (2, 3))
    cursor = (await page(api))["next_cursor"]
    names = [f"e{n:03}" for n in range(11)]
    await write(sessions, ref, *names)
    for limit in (1, 2, 4, 5, 10, 11, 12, 500):
        body = await page(api, cursor=cursor, limit=limit)
        assert short(body) == [f"created {name}" for name in names[:limit]]
        assert body["has_more"] is (limit < 11)


async def test_a_large_burst_for_waiting_clients_ends_at_a_number_of_bytes(
    app, api, notifying, ref, monkeypatch
):
    cursor = (await page(api))["next_cursor"]
    waiting = asyncio.create_task(page(api, cursor=cursor, wait=20, limit=500))
    await until_waiting(app, 1)
    monkeypatch.setattr(service, "_MAX_PAGE_BYTES", 20_000)
    names = [f"e{n:03}" for n in range(90)]
    await write(notifying, ref, *names)
    body = await waiting
    assert len(body["results"]) < 50
    assert body["has_more"] is True
    got = short(body)
    while body["has_more"]:
        body = await page(api, cursor=body["next_cursor"], limit=500)
        got += short(body)
    assert got == [f"created {name}" for name in names]


async def test_a_client_that_sends_a_body_without_end_is_forgotten(app, base_url, project):
    host, port = base_url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)))
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    head = (
        f"GET {URL}/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Token {project.api_key}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    await loop.sock_sendall(client, head.encode())
    await until_followers(app, 1)
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    try:
        async with asyncio.timeout(5):
            for _ in range(40):
                await loop.sock_sendall(client, chunk)
                await asyncio.sleep(0)
    except (OSError, TimeoutError):
        pass
    client.close()
    await until_followers(app, 0)


async def test_a_message_that_is_no_text_does_not_end_the_listener(
    app, base_url, project, notifying, ref, redis_url, monkeypatch
):
    monkeypatch.setattr(hub_module, "_LOOK_SECONDS", 3600)
    async with streaming(base_url, project.api_key) as client:
        while not app.state.changes._listener.is_connected:
            await asyncio.sleep(0.01)
        async with Redis.from_url(redis_url) as redis:
            await redis.publish(CHANGES_CHANNEL, b"\xff\xfe")
        await asyncio.sleep(0.2)
        await write(notifying, ref, "a")
        await client.until(1)


async def test_a_cut_connection_to_redis_is_back_at_once(
    app, base_url, project, notifying, ref, redis_url, monkeypatch
):
    monkeypatch.setattr(hub_module, "_LOOK_SECONDS", 3600)
    monkeypatch.setattr(listener, "_RETRY_SECONDS", (0.05, 3600))
    async with streaming(base_url, project.api_key) as client:
        while not app.state.changes._listener.is_connected:
            await asyncio.sleep(0.01)
        async with Redis.from_url(redis_url) as redis:
            await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await write(notifying, ref, "a")  # the message is lost
        await client.until(1, within=5)
