"""`fetch` against servers that are slow, too generous, or break off."""

import asyncio
import contextlib
import gzip
import socket
import time
import traceback
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trustme

from app.core.fetch import FetchFailed, Response, fetch, load_object
from app.core.http import httpx, operator_client, public_client
from tests.fakes.server import serve

MEGABYTE = 1024 * 1024


class Server:
    """An ASGI app. It sends `parts`, waits `pause` seconds before each, and keeps the requests it has received."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = [b"hello"]
        self.pause = 0.0
        self.begin_after = 0.0
        self.sent = 0
        self.requests: list[tuple[dict[bytes, bytes], bytes]] = []
        self.url = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests.append((dict(scope["headers"]), (await receive()).get("body", b"")))
        await asyncio.sleep(self.begin_after)
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        for part in self.parts:
            await asyncio.sleep(self.pause)
            await send({"type": "http.response.body", "body": part, "more_body": True})
            self.sent += len(part)
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    app = Server()
    async with serve(app, lifespan="off") as url:
        app.url = url
        yield app


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with operator_client() as client:
        yield client


async def get(client: httpx.AsyncClient, url: str, **options: Any) -> Response:
    return await fetch(client, "GET", url, **{"max_bytes": MEGABYTE, "deadline_seconds": 5.0, **options})


async def failure(client: httpx.AsyncClient, url: str, **options: Any) -> FetchFailed:
    with pytest.raises(FetchFailed) as caught:
        await get(client, url, **options)
    return caught.value


@contextlib.asynccontextmanager
async def raw_server(sent: bytes) -> AsyncIterator[str]:
    """Reads the request, writes `sent` as it is, and closes the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def test_a_response_of_any_status_is_complete(server, client) -> None:
    server.status, server.headers = 404, [(b"x-one", b"1")]
    response = await get(client, server.url)
    assert (response.status, response.headers["X-One"], response.body) == (404, "1", b"hello")
    assert "hello" not in repr(response)


async def test_what_is_sent(server, client) -> None:
    for options in ({"form": {"a": "b c"}}, {"document": {"a": 1}}, {"content": b"raw"}):
        await fetch(client, "POST", server.url, max_bytes=100, deadline_seconds=5.0, **options)
    (form, form_body), (document, document_body), (_, raw_body) = server.requests
    assert (form[b"content-type"], form_body) == (b"application/x-www-form-urlencoded", b"a=b+c")
    assert (document[b"content-type"], document_body) == (b"application/json", b'{"a":1}')
    assert raw_body == b"raw"
    assert form[b"accept-encoding"] == b"gzip"


async def test_a_redirect_is_a_response(server, client) -> None:
    server.status, server.headers = 302, [(b"location", b"/elsewhere")]
    assert (await get(client, server.url)).status == 302
    assert len(server.requests) == 1


# -- time ------------------------------------------------------------------------------------------------------


async def test_the_deadline_covers_a_body_that_comes_byte_by_byte(server, client) -> None:
    server.headers, server.parts, server.pause = [(b"retry-after", b"7")], [b" "] * 1000, 0.01
    started = time.monotonic()
    error = await failure(client, server.url, deadline_seconds=0.2)
    assert time.monotonic() - started < 2
    assert (error.code, error.stage, error.cause) == ("timeout", "receive", "TimeoutError")
    assert (error.status, error.headers["Retry-After"]) == (200, "7")


async def test_the_clients_own_limit_is_a_timeout_too_unless_silence_is_fine(server) -> None:
    server.begin_after = 0.4
    async with operator_client(timeout=0.1) as impatient:
        error = await failure(impatient, server.url)
        assert (error.code, error.stage, error.cause) == ("timeout", "receive", "ReadTimeout")
        assert error.status is None
        assert (await get(impatient, server.url, may_be_silent=True)).body == b"hello"


async def test_a_server_that_takes_no_connection_has_received_nothing(client) -> None:
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        async with operator_client(timeout=0.2) as impatient:
            impatient.timeout = httpx.Timeout(0.2)
            error = await failure(impatient, url)
    assert (error.code, error.stage, error.cause) == ("timeout", "connect", "ConnectTimeout")


# -- size ------------------------------------------------------------------------------------------------------


async def test_a_body_at_the_limit_passes_and_one_byte_more_does_not(server, client) -> None:
    server.parts = [b"x" * 60, b"x" * 40]
    assert len((await get(client, server.url, max_bytes=100)).body) == 100
    error = await failure(client, server.url, max_bytes=99)
    assert (error.code, error.status) == ("too_large", 200)


async def test_a_body_without_end_is_left_at_the_limit(server, client) -> None:
    server.parts = [b"x" * 65536] * 10_000
    assert (await failure(client, server.url, max_bytes=MEGABYTE)).code == "too_large"
    assert server.sent < 64 * MEGABYTE


async def test_a_truncated_body_has_the_length_of_the_limit(server, client) -> None:
    server.parts = [b"x" * 65536] * 10_000
    assert (await get(client, server.url, max_bytes=1000, truncate=True)).body == b"x" * 1000
    server.parts = [b"short"]
    assert (await get(client, server.url, max_bytes=1000, truncate=True)).body == b"short"


async def test_only_the_body_that_is_wanted_is_read(server, client) -> None:
    server.status, server.parts = 500, [b"x" * 65536] * 10_000
    assert (await get(client, server.url, max_bytes=10, read_body_of={200})).body == b""
    assert server.sent < 64 * MEGABYTE


@pytest.mark.parametrize(("encoding", "pack"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
async def test_a_compressed_body_is_decoded_and_bounded(server, client, encoding, pack) -> None:
    server.headers = [(b"content-encoding", encoding)]
    packed = pack(b"abc" * 1000)
    server.parts = [packed[:5], packed[5:9], packed[9:]]
    assert (await get(client, server.url, max_bytes=3000)).body == b"abc" * 1000
    assert (await failure(client, server.url, max_bytes=2999)).code == "too_large"
    assert (await get(client, server.url, decode=False)).body == packed


async def test_a_bomb_takes_no_more_memory_than_the_limit(server, client) -> None:
    packer = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16)
    server.parts = [b"".join([*(packer.compress(bytes(MEGABYTE)) for _ in range(200)), packer.flush()])]
    server.headers = [(b"content-encoding", b"gzip")]
    tracemalloc.start()
    try:
        assert (await failure(client, server.url, max_bytes=MEGABYTE)).code == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
    finally:
        tracemalloc.stop()


async def test_bytes_behind_the_compressed_body_are_counted(server, client) -> None:
    server.parts = [gzip.compress(b"short"), *[b"\x00" * 65536] * 10_000]
    server.headers = [(b"content-encoding", b"gzip")]
    assert (await failure(client, server.url)).code == "too_large"


async def test_a_doubly_compressed_body_is_refused(server, client) -> None:
    server.parts = [gzip.compress(gzip.compress(b"0" * 1_000_000))]
    server.headers = [(b"content-encoding", b"gzip, gzip")]
    assert (await failure(client, server.url, max_bytes=10_000_000)).code == "too_large"


async def test_broken_compression_is_a_broken_response(server, client) -> None:
    server.headers = [(b"content-encoding", b"gzip")]
    error = await failure(client, server.url)
    assert (error.code, error.cause) == ("broken", "DecodingError")


# -- connections -----------------------------------------------------------------------------------------------


async def test_a_closed_port(client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = await failure(client, f"http://127.0.0.1:{port}/")
    assert (error.code, error.stage, error.cause) == ("connect", "connect", "ConnectError")
    assert error.reason == "no connection (Connection refused)"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it", 200),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 200),
        (b"not HTTP at all\r\n\r\n", None),
    ],
)
async def test_a_connection_that_is_closed_early(client, sent, status) -> None:
    async with raw_server(sent) as url:
        error = await failure(client, url)
    assert (error.code, error.stage, error.cause) == ("broken", "receive", "RemoteProtocolError")
    assert error.status == status


async def test_a_name_that_does_not_resolve(client) -> None:
    for url in ("http://calbridge.invalid/", f"http://{'a' * 70}.invalid/"):
        error = await failure(client, url)
        assert (error.code, error.stage, error.reason) == ("dns", "connect", "the host name does not resolve")


@pytest.mark.parametrize(
    "url", ["http://[::1", "ftp://127.0.0.1/", "http:///path", "http://127.0.0.1:99999/"]
)
async def test_no_address_at_all(client, url) -> None:
    error = await failure(client, url)
    assert error.stage == "connect"


async def test_a_private_address_is_refused_for_a_callers_url() -> None:
    async with public_client(allow_private=False) as guarded:
        error = await failure(guarded, "http://127.0.0.1:9/")
    assert (error.code, error.stage, error.reason) == (
        "refused",
        "connect",
        "127.0.0.1 is not a public address",
    )


async def test_a_certificate_of_an_unknown_authority(client, tmp_path) -> None:
    certificate = trustme.CA().issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    async with serve(Server(), lifespan="off", ssl_certfile=chain, ssl_keyfile=key) as url:
        error = await failure(client, url)
    assert (error.code, error.stage) == ("tls", "connect")
    assert error.reason.startswith("the certificate is not valid (")


# -- secrets ---------------------------------------------------------------------------------------------------


async def test_no_failure_holds_the_request_or_the_response(server, client) -> None:
    server.parts, server.pause = [b"the-body"] * 1000, 0.01
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    options = {"headers": {"Authorization": "Bearer the-token"}, "deadline_seconds": 0.2}
    for url in (f"{server.url}/the-path", f"{closed}/the-path", "http://the-host.invalid/the-path"):
        error = await failure(client, url, **options)
        assert error.__context__ is None
        assert error.__cause__ is None
        shown = "".join(traceback.format_exception_only(error)) + repr(vars(error))
        assert not any(word in shown for word in ("the-token", "the-path", "the-host", "the-body"))


def test_only_json_objects_are_objects() -> None:
    assert load_object(b'{"a": 1}') == {"a": 1}
    for body in (b"", b"[1]", b"null", b"<html>", b"[" * 100_000):
        assert load_object(body) is None
