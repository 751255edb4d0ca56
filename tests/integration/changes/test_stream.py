"""`GET /api/v1/changes/stream` from a real server (docs/reference/http-api.md, "Changes")."""

import asyncio
import socket
import time

import orjson

from app.changes import feed, hub, stream
from app.core.db import transaction
from app.core.http import httpx
from app.projects.service import disable_api_key
from tests.integration.changes.following import URL, event, page, streaming, write, write_in


async def until_followers(app, count, within=5):
    async with asyncio.timeout(within):
        while len(app.state.changes._followers) != count:
            await asyncio.sleep(0.005)


async def test_changes_come_as_events(base_url, api, project, notifying, ref):
    await write(notifying, ref, "old")
    async with streaming(base_url, project.api_key) as client:
        assert client.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert client.response.headers["cache-control"] == "no-store"
        assert client.response.headers["x-accel-buffering"] == "no"
        # Where a stream that breaks now would go on.
        assert client.blocks[0].id
        assert not client.blocks[0].data
        await write(notifying, ref, "a", "b")
        await client.until(2)
        await write(notifying, ref, "a=a2", removed=["b"])
        await client.until(4)
        assert client.short == ["created a", "created b", "updated a2", "deleted b"]
        assert [message.event for message in client.changes] == [
            "event.created", "event.created", "event.updated", "event.deleted",
        ]  # fmt: skip
        results = (await page(api, cursor=client.blocks[0].id))["results"]
        assert results[0]["event"] == client.changes[2].result["event"]
        assert set(client.changes[0].result) == {"type", "calendar_id", "event"}


async def test_any_id_resumes_behind_its_event(base_url, api, project, notifying, ref):
    async with streaming(base_url, project.api_key) as client:
        await write(notifying, ref, *"abcde")
        await client.until(5)
    ids = [block.id or "" for block in client.blocks]
    for n, last in enumerate(ids):
        expected = [f"created {name}" for name in "abcde"[n:]]
        assert [
            f"created {result['event']['name']}" for result in (await page(api, cursor=last))["results"]
        ] == expected
        headers = {"Last-Event-ID": last}
        async with streaming(base_url, project.api_key, headers=headers, cursor=ids[1]) as again:
            await again.until(len(expected))
            await asyncio.sleep(0.05)
            assert again.short == expected
    async with streaming(base_url, project.api_key, cursor=ids[3]) as again:
        await again.until(2)
        assert again.short == ["created d", "created e"]


async def test_it_begins_at_a_time_and_goes_on_with_what_comes(base_url, project, notifying, ref, second):
    names = [f"e{n:03}" for n in range(230)]  # more than a page
    await write(notifying, ref, *names)
    async with streaming(base_url, project.api_key, since="2020-01-01T00:00:00Z") as client:
        await client.until(230)
        await write(notifying, second, "later")
        await client.until(231)
        assert client.short == [f"created {name}" for name in [*names, "later"]]


async def test_what_an_open_transaction_could_undercut_waits_for_it(
    base_url, project, sessions, notifying, ref, second
):
    async with streaming(base_url, project.api_key) as client:
        await write(notifying, ref, "first")
        await client.until(1)  # the stream follows the hub
        async with transaction(sessions) as slow:
            await write_in(slow, sessions, ref, [event("slow")])
            await write(notifying, second, "quick")
            await asyncio.sleep(0.3)
            assert client.short == ["created first"]
        await client.until(3)
        assert client.short == ["created first", "created slow", "created quick"]


async def test_one_calendar(base_url, project, notifying, ref, second):
    async with streaming(base_url, project.api_key, calendar_id=second.calendar_id) as client:
        await write(notifying, ref, "first")
        await write(notifying, second, "second")
        await client.until(1)
        await asyncio.sleep(0.1)
        assert client.short == ["created second"]
        again = {"calendar_id": second.calendar_id, "headers": {"Last-Event-ID": client.blocks[0].id}}
        async with streaming(base_url, project.api_key, **again) as resumed:
            await resumed.until(1)


async def test_line_ends_in_what_is_stored_do_not_cut_an_event(base_url, project, notifying, sessions, ref):
    async with streaming(base_url, project.api_key) as client:
        await write(notifying, ref, "line 1\r\nline 2\n\ndata: x\u2028")
        await client.until(1)
        assert client.changes[0].result["event"]["name"] == "line 1\r\nline 2\n\ndata: x\u2028"


async def test_comments_come_while_nothing_happens(base_url, project, monkeypatch):
    assert stream._COMMENT_SECONDS <= 15
    monkeypatch.setattr(stream, "_COMMENT_SECONDS", 0.1)
    monkeypatch.setattr(hub, "_COMMENTS_SECONDS", 0.05)
    headers = {"Authorization": f"Bearer {project.api_key}"}
    async with (
        asyncio.timeout(10),
        httpx.AsyncClient() as client,
        client.stream("GET", f"{base_url}{URL}/stream", headers=headers) as response,
    ):
        lines = response.aiter_lines()
        assert [await anext(lines) for _ in range(3)][:2] == [": calbridge", "retry: 2000"]
        assert await anext(lines) == ""
        # An empty line would end an event, which some libraries report although it has no data.
        assert [await anext(lines) for _ in range(4)] == [": waiting"] * 4


async def test_a_client_that_goes_is_forgotten_at_once(app, base_url, project):
    async with streaming(base_url, project.api_key):
        await until_followers(app, 1)
    await until_followers(app, 0, within=1)
    assert not app.state.changes._waiting


async def test_a_disabled_key_ends_its_streams(app, base_url, project, sessions, monkeypatch):
    assert hub._CHECK_SECONDS < 60
    monkeypatch.setattr(hub, "_CHECK_SECONDS", 0.1)
    async with streaming(base_url, project.api_key) as client:
        await asyncio.sleep(0.3)
        assert not client.is_over.is_set()
        (follower,) = app.state.changes._followers
        async with transaction(sessions) as session:
            await disable_api_key(session, follower.key_id)
        async with asyncio.timeout(5):
            await client.is_over.wait()
    assert client.response.status_code == 200


async def test_a_deleted_calendar_ends_its_streams(base_url, api, project, ref, monkeypatch):
    monkeypatch.setattr(hub, "_CHECK_SECONDS", 0.1)
    async with (
        streaming(base_url, project.api_key, calendar_id=ref.calendar_id) as client,
        streaming(base_url, project.api_key) as other,
    ):
        assert (await api.delete(f"/api/v1/calendars/{ref.calendar_id}")).status_code == 200
        async with asyncio.timeout(5):
            await client.is_over.wait()
        assert not other.is_over.is_set()


async def test_a_slow_reader_keeps_no_memory_and_misses_nothing(
    app, base_url, project, notifying, ref, monkeypatch
):
    monkeypatch.setattr(feed, "_MAX_BYTES_BEHIND", 50_000)
    host, port = base_url.removeprefix("http://").split(":")
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(slow, (host, int(port)))
    request = (
        f"GET /api/v1/changes/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Token {project.api_key}\r\n\r\n"
    )
    await loop.sock_sendall(slow, request.encode())
    await until_followers(app, 1)
    (follower,) = app.state.changes._followers
    text = "x" * 2_000
    async with asyncio.timeout(30):
        n = 0
        while n < 1_000 or follower._at is not None or follower.channel is None:
            await write(notifying, ref, *(f"e{i:05}{text}" for i in range(n, n + 250)))
            n += 250
            await asyncio.sleep(0.1)
    # Nothing is kept for it but its place.
    assert follower._at is None
    received = b""
    async with asyncio.timeout(60):
        while received.count(b"\nevent: event.created") < n or not received.endswith(b"\n\n\r\n"):
            received += await loop.sock_recv(slow, 1 << 20)
    names = [
        orjson.loads(line.partition(b"data: ")[2])["event"]["name"][:6]
        for line in _without_chunks(received).split(b"\n")
        if line.startswith(b"data: ")
    ]
    assert names == [f"e{i:05}" for i in range(n)]
    slow.close()
    await until_followers(app, 0)


def _without_chunks(received: bytes) -> bytes:
    _, _, rest = received.partition(b"\r\n\r\n")
    found = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        found += rest[:length]
        rest = rest[length + 2 :]
    return found


async def test_a_reader_that_takes_nothing_is_given_up(app, base_url, project, notifying, ref, monkeypatch):
    monkeypatch.setattr(stream, "_SEND_TIMEOUT_SECONDS", 0.3)
    host, port = base_url.removeprefix("http://").split(":")
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stuck.connect((host, int(port)))
    request = (
        f"GET /api/v1/changes/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Token {project.api_key}\r\n\r\n"
    )
    stuck.sendall(request.encode())
    await until_followers(app, 1)
    deadline = time.monotonic() + 20
    n = 0
    while app.state.changes._followers:
        assert time.monotonic() < deadline
        await write(notifying, ref, *(f"e{i}" + "x" * 2_000 for i in range(n, n + 250)))
        n += 250
        await asyncio.sleep(0.1)
    stuck.close()


async def test_open_streams_end_with_the_server(app, base_url, project):
    async with streaming(base_url, project.api_key) as client:
        app.state.changes.close()
        async with asyncio.timeout(2):
            await client.is_over.wait()
