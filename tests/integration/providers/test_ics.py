"""The ics provider against real HTTP servers on loopback."""

import asyncio
import gzip
import logging
import traceback
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from structlog.testing import capture_logs

from app.core.http import httpx, public_client
from app.events.data import Window
from app.providers.base import (
    AccessDenied,
    CalendarRemoved,
    ChangePage,
    ProviderError,
    RateLimited,
    Unavailable,
)
from app.providers.ics import feed as ics
from app.providers.ics.feed import IcsFeed, normalize_feed_url
from app.providers.ics.readers import FeedReaders
from tests.fakes.server import serve

FILES = Path(__file__).parents[2] / "data" / "ics"
GOOGLE = (FILES / "google_export.ics").read_bytes()
WINDOW = Window(datetime(2026, 11, 19, tzinfo=UTC), datetime(2026, 12, 18, tzinfo=UTC))
SECRET = "s3cret-t0ken"


class FeedServer:
    """Returns what `respond` gives for every path, and remembers the requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.url = ""
        self.respond: Callable[[Request], Response | Awaitable[Response]] = lambda _: Response(GOOGLE)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        self.requests.append(request)
        response = self.respond(request)
        if isinstance(response, Awaitable):
            response = await response
        await response(scope, receive, send)

    @property
    def headers(self) -> list[Any]:
        return [request.headers for request in self.requests]


@pytest.fixture
async def server() -> AsyncIterator[FeedServer]:
    app = FeedServer()
    async with serve(app) as url:
        app.url = url
        yield app


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with public_client(allow_private=True) as client:
        yield client


_readers: list[FeedReaders] = []


@pytest.fixture(autouse=True)
async def readers() -> AsyncIterator[FeedReaders]:
    """What `feed` reads with."""
    readers = FeedReaders()
    _readers[:] = [readers]
    yield readers
    await readers.aclose()


def feed(client: httpx.AsyncClient, url: str, **options: Any) -> IcsFeed:
    options = {"allow_http": True, "readers": _readers[0], "project_id": "proj_1", **options}
    return IcsFeed(client=client, feed_url=url, **options)


async def pages(source: IcsFeed, cursor: str | None = None) -> list[ChangePage]:
    return [page async for page in source.changes(cursor=cursor, window=WINDOW)]


async def failure(source: IcsFeed, cursor: str | None = None) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await pages(source, cursor)
    return caught.value


# Rounds


async def test_the_first_round_is_a_snapshot_of_the_window(server, client):
    (page,) = await pages(feed(client, f"{server.url}/basic.ics", owner_email="ada@example.com"))
    assert page.is_snapshot
    assert page.is_last
    assert not page.removed
    assert len(page.events) == 5
    assert page.events[0].name == "Kick-off ☕"
    assert page.events[0].response_status == "accepted"
    assert page.next_cursor
    (headers,) = server.headers
    assert headers["accept-encoding"] == "gzip"
    assert "if-none-match" not in headers


async def test_large_feeds_come_in_pages_of_a_thousand(server, client):
    events = "".join(
        f"BEGIN:VEVENT\r\nUID:{number}\r\nDTSTART:20261124T090000Z\r\nEND:VEVENT\r\n"
        for number in range(2_001)
    )
    server.respond = lambda _: Response(f"BEGIN:VCALENDAR\r\n{events}END:VCALENDAR\r\n".encode())
    found = await pages(feed(client, server.url))
    assert [len(page.events) for page in found] == [1_000, 1_000, 1]
    assert [page.is_last for page in found] == [False, False, True]
    assert [bool(page.next_cursor) for page in found] == [False, False, True]
    assert all(page.is_snapshot for page in found)


async def test_a_complete_calendar_without_events_is_an_empty_snapshot(server, client):
    server.respond = lambda _: Response((FILES / "empty_calendar.ics").read_bytes())
    (page,) = await pages(feed(client, server.url))
    assert (page.events, page.is_snapshot, page.is_last) == ([], True, True)


async def test_an_etag_saves_the_transfer_when_nothing_changed(server, client):
    def respond(request: Request) -> Response:
        if request.headers.get("if-none-match") == '"v1"':
            return Response(status_code=304)
        return Response(GOOGLE, headers={"ETag": '"v1"'})

    server.respond = respond
    (first,) = await pages(feed(client, server.url))
    (second,) = await pages(feed(client, server.url), first.next_cursor)
    assert (second.events, second.is_snapshot, second.is_last) == ([], False, True)
    assert second.next_cursor == first.next_cursor


async def test_a_new_etag_brings_a_snapshot_again(server, client):
    server.respond = lambda _: Response(GOOGLE, headers={"ETag": '"v1"'})
    (first,) = await pages(feed(client, server.url))
    changed = GOOGLE.replace(b"Kick-off", b"Kick-out")
    server.respond = lambda _: Response(changed, headers={"ETag": '"v2"'})
    (second,) = await pages(feed(client, server.url), first.next_cursor)
    assert second.is_snapshot
    assert server.headers[-1]["if-none-match"] == '"v1"'
    (third,) = await pages(feed(client, server.url), second.next_cursor)
    assert not third.is_snapshot
    assert server.headers[-1]["if-none-match"] == '"v2"'


async def test_without_a_cursor_the_request_is_unconditional(server, client):
    server.respond = lambda _: Response(GOOGLE, headers={"ETag": '"v1"'})
    await pages(feed(client, server.url))
    (again,) = await pages(feed(client, server.url), None)
    assert again.is_snapshot
    assert "if-none-match" not in server.headers[-1]


@pytest.mark.parametrize(("age", "is_sent"), [(timedelta(hours=1), True), (timedelta(seconds=1), False)])
async def test_last_modified_is_asked_by_once_it_has_settled(server, client, age, is_sent):
    written = format_datetime(datetime.now(UTC) - age, usegmt=True)
    server.respond = lambda _: Response(GOOGLE, headers={"Last-Modified": written})
    (first,) = await pages(feed(client, server.url))
    await pages(feed(client, server.url), first.next_cursor)
    assert server.headers[-1].get("if-modified-since") == (written if is_sent else None)


async def test_a_feed_that_differs_only_in_its_time_of_writing_did_not_change(server, client):
    (first,) = await pages(feed(client, server.url))
    server.respond = lambda _: Response(GOOGLE.replace(b"20261120T080000Z", b"20261121T080000Z"))
    (second,) = await pages(feed(client, server.url), first.next_cursor)
    assert (second.events, second.is_snapshot, second.is_last) == ([], False, True)
    assert second.next_cursor == first.next_cursor


async def test_the_same_calendar_under_a_new_etag_is_remembered_by_that(server, client):
    server.respond = lambda _: Response(GOOGLE, headers={"ETag": '"v1"'})
    (first,) = await pages(feed(client, server.url))
    server.respond = lambda _: Response(GOOGLE, headers={"ETag": '"v2"'})
    (second,) = await pages(feed(client, server.url), first.next_cursor)
    assert not second.is_snapshot
    await pages(feed(client, server.url), second.next_cursor)
    assert server.headers[-1]["if-none-match"] == '"v2"'


@pytest.mark.parametrize("cursor", ["", "no json", "[]", '{"etag": 5, "digest": ["x"]}', '{"etag": "é"}'])
async def test_a_cursor_that_cannot_be_read_starts_anew(server, client, cursor):
    (page,) = await pages(feed(client, server.url), cursor)
    assert page.is_snapshot


async def test_compressed_feeds_are_read(server, client):
    server.respond = lambda _: Response(gzip.compress(GOOGLE), headers={"Content-Encoding": "gzip"})
    (page,) = await pages(feed(client, server.url))
    assert len(page.events) == 5


# What deletes nothing


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "feed_empty"),
        (b"<html><body>Please sign in</body></html>", "feed_not_ics"),
        (GOOGLE[:1500], "feed_truncated"),
        (GOOGLE.replace(b"END:VEVENT\r\n", b"", 1), "feed_truncated"),
    ],
)
async def test_a_response_that_is_no_complete_calendar_is_unavailable(server, client, body, code):
    server.respond = lambda _: Response(body)
    err = await failure(feed(client, server.url))
    assert (type(err), err.code) == (Unavailable, code)


async def test_a_response_that_breaks_off_is_unavailable(server, client):
    async def cut() -> AsyncIterator[bytes]:
        yield GOOGLE[:1000]
        raise ConnectionResetError

    server.respond = lambda _: StreamingResponse(cut(), headers={"Content-Length": str(len(GOOGLE))})
    err = await failure(feed(client, server.url))
    assert (type(err), err.code) == (Unavailable, "connection_failed")


@pytest.mark.parametrize(
    ("body", "encoding", "code"),
    [
        (gzip.compress(GOOGLE)[:500], "gzip", "feed_truncated"),
        (GOOGLE, "gzip", "feed_truncated"),
        (b"", "gzip", "feed_empty"),
        (gzip.compress(gzip.compress(GOOGLE)), "gzip, gzip", "feed_not_ics"),
        (GOOGLE, "br", "feed_not_ics"),
    ],
)
async def test_a_broken_or_unasked_compression_is_unavailable(server, client, body, encoding, code):
    server.respond = lambda _: Response(body, headers={"Content-Encoding": encoding})
    err = await failure(feed(client, server.url))
    assert (type(err), err.code) == (Unavailable, code)


@pytest.mark.parametrize("is_compressed", [True, False])
async def test_feeds_over_the_limit_are_refused_before_they_fill_the_memory(
    server, client, is_compressed, monkeypatch
):
    monkeypatch.setattr(ics, "MAX_BODY_BYTES", 1_000_000)
    sent = 0
    bomb = gzip.compress(b"\n" * 200_000_000, compresslevel=1) if is_compressed else b""

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65_536
            await asyncio.sleep(0)  # nothing else lets go of the loop once the client has disconnected
            yield b"\n" * 65_536

    server.respond = lambda _: (
        Response(bomb, headers={"Content-Encoding": "gzip"})
        if is_compressed
        else StreamingResponse(endless())
    )
    tracemalloc.start()
    try:
        err = await failure(feed(client, server.url))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (type(err), err.code) == (Unavailable, "feed_too_large")
    assert sent < 50_000_000
    assert peak < 20_000_000


async def test_a_server_that_dribbles_is_given_up(server, client, monkeypatch):
    monkeypatch.setattr(ics, "_DEADLINE_SECONDS", 0.3)

    async def dribble() -> AsyncIterator[bytes]:
        while True:
            yield b"\n"
            await asyncio.sleep(0.05)

    server.respond = lambda _: StreamingResponse(dribble())
    err = await failure(feed(client, server.url))
    assert (type(err), err.code) == (Unavailable, "timeout")


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (401, {}, AccessDenied),
        (403, {}, AccessDenied),
        (403, {"Retry-After": "30"}, RateLimited),
        (403, {"cf-mitigated": "challenge"}, RateLimited),
        (404, {}, CalendarRemoved),
        (410, {}, CalendarRemoved),
        (429, {"Retry-After": "30"}, RateLimited),
        (500, {}, Unavailable),
        (503, {"Retry-After": "30"}, Unavailable),
        (304, {}, Unavailable),
        (204, {}, Unavailable),
        (206, {}, Unavailable),
        (302, {}, Unavailable),
        (418, {}, Unavailable),
    ],
)
async def test_what_a_status_means(server, client, status, headers, expected):
    server.respond = lambda _: Response(status_code=status, headers=headers)
    err = await failure(feed(client, server.url))
    assert type(err) is expected
    assert err.code == (expected.code if expected is not Unavailable else "unexpected_status")
    assert getattr(err, "retry_after", None) == (30 if "Retry-After" in headers else None)


async def test_a_server_that_is_not_there_is_unavailable(client):
    async with serve(FeedServer()) as url:
        pass
    err = await failure(feed(client, url))
    assert (type(err), err.code) == (Unavailable, "connection_failed")


# Where a feed may lead


async def test_private_addresses_are_refused(server):
    async with public_client(allow_private=False) as client:
        err = await failure(feed(client, server.url))
    assert (type(err), err.code) == (Unavailable, "address_refused")
    assert server.requests == []


async def test_http_is_refused_unless_it_is_allowed(server, client):
    err = await failure(feed(client, server.url, allow_http=False))
    assert (type(err), err.code) == (Unavailable, "address_refused")
    assert server.requests == []


async def test_redirects_are_followed(server, client):
    def respond(request: Request) -> Response:
        step = int(request.url.path.strip("/") or 0)
        if step < 5:
            return Response(status_code=302, headers={"Location": f"/{step + 1}"})
        return Response(GOOGLE, headers={"ETag": '"v1"'})

    server.respond = respond
    (first,) = await pages(feed(client, server.url))
    assert len(first.events) == 5
    assert [request.url.path for request in server.requests] == ["/", "/1", "/2", "/3", "/4", "/5"]


async def test_redirects_in_a_circle_are_given_up(server, client):
    server.respond = lambda _: Response(status_code=301, headers={"Location": "/"})
    err = await failure(feed(client, server.url))
    assert (type(err), err.code) == (Unavailable, "too_many_redirects")
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    "location",
    [
        "ftp://feeds.example/a.ics",
        "file:///etc/passwd",
        "http://[",
        "http://127.0.0.1:99999/",
        "https://\x7f/",
    ],
)
async def test_redirects_to_what_is_no_feed_are_refused(server, client, location):
    server.respond = lambda _: Response(status_code=302, headers={"Location": location})
    err = await failure(feed(client, server.url))
    assert isinstance(err, Unavailable)
    assert err.code in {"address_refused", "connection_failed"}


async def test_a_redirect_from_an_allowed_host_to_a_private_address_is_refused(server):
    port = httpx.URL(server.url).port
    server.respond = lambda _: Response(
        status_code=302, headers={"Location": f"http://127.0.0.1:{port}/internal"}
    )
    async with public_client(allow_private=False, allowed_hosts=["localhost"]) as client:
        err = await failure(feed(client, f"http://localhost:{port}/"))
    assert (type(err), err.code) == (Unavailable, "address_refused")
    assert len(server.requests) == 1


async def test_a_password_is_sent_to_its_own_host_only(server, client):
    port = httpx.URL(server.url).port

    def respond(request: Request) -> Response:
        match request.url.path:
            case "/start":
                return Response(status_code=302, headers={"Location": "/same-host"})
            case "/same-host":
                location = f"http://someone:else@localhost:{port}/other-host"
                return Response(status_code=302, headers={"Location": location})
        return Response(GOOGLE)

    server.respond = respond
    await pages(feed(client, f"http://ada:{SECRET}@127.0.0.1:{port}/start"))
    assert ["authorization" in headers for headers in server.headers] == [True, True, False]


async def test_cookies_of_one_feed_do_not_reach_another(server, client):
    server.respond = lambda _: Response(GOOGLE, headers={"Set-Cookie": "session=of-the-first; Path=/"})
    await pages(feed(client, f"{server.url}/first.ics"))
    await pages(feed(client, f"{server.url}/second.ics"))
    assert "cookie" not in server.headers[1]


# Secrets


@pytest.mark.parametrize(
    "respond",
    [
        lambda _: Response(status_code=404),
        lambda _: Response(status_code=302, headers={"Location": f"ftp://x/{SECRET}"}),
        lambda _: Response(status_code=302, headers={"Location": f"http://{SECRET}.invalid/"}),
        lambda _: Response(b"<html>" + SECRET.encode()),
        lambda _: Response(GOOGLE[:1000]),
        lambda _: Response(GOOGLE.replace(b"DTSTART", b"X-START")),
    ],
)
async def test_the_address_is_in_no_error_and_in_no_log(server, client, respond, caplog):
    server.respond = respond
    caplog.set_level(logging.WARNING)  # configure_logging silences httpx, which logs addresses below that
    written = ""
    with capture_logs() as logs:
        try:
            await pages(feed(client, f"{server.url}/{SECRET}/basic.ics"))
        except ProviderError as err:
            seen: BaseException | None = err
            while seen:
                written += f"{seen!r} {seen}"
                seen = seen.__cause__ or seen.__context__
            written += "".join(traceback.format_exception(err))
    assert SECRET not in f"{written} {logs} {caplog.text}"


# The address itself


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("https://feeds.example/a.ics", "https://feeds.example/a.ics"),
        ("  webcal://feeds.example/a%20b.ics?key=1#top \n", "https://feeds.example/a%20b.ics?key=1"),
        ("WEBCALS://feeds.example/a.ics", "https://feeds.example/a.ics"),
        (
            "https://ada:pass%40word@feeds.example:8443/a.ics",
            "https://ada:pass%40word@feeds.example:8443/a.ics",
        ),
        ("https://bücher.example/kalender.ics", "https://bücher.example/kalender.ics"),
    ],
)
def test_addresses_are_stored_as_https(given, stored):
    assert normalize_feed_url(given) == stored


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("", "starts with https://"),
        ("feeds.example/a.ics", "starts with https://"),
        ("ftp://feeds.example/a.ics", "starts with https://"),
        ("javascript:alert(1)", "starts with https://"),
        (f"http://feeds.example/{SECRET}", "must be https://"),
        ("https://", "needs a host"),
        ("https:///a.ics", "needs a host"),
        ("https://feeds.example:99999/a.ics", "not a valid address"),
        ("https://[::1/a.ics", "not a valid address"),
        (f"https://feeds.example/{SECRET} b", "no spaces"),
        (f"https://feeds.example/{SECRET}\x00", "control characters"),
        ("https://feeds.example/" + "a" * 5_000, "at most 4096"),
    ],
)
def test_addresses_that_are_no_feeds_are_refused_with_the_reason(given, part):
    with pytest.raises(ValueError, match=part) as caught:
        normalize_feed_url(given)
    assert SECRET not in str(caught.value)


def test_http_can_be_allowed():
    assert normalize_feed_url("http://localhost:8001/a.ics", allow_http=True) == "http://localhost:8001/a.ics"
    assert (
        normalize_feed_url("webcal://localhost:8001/a.ics", allow_http=True) == "https://localhost:8001/a.ics"
    )
