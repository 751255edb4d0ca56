"""The guarded client: private addresses are refused where the socket opens."""

import asyncio
import contextlib
import socket

import httpcore
import pytest

from app.core.http import (
    TargetRefused,
    _families_in_turn,
    httpx,
    is_public_address,
    public_client,
)
from tests.fakes.server import serve


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.2.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "192.88.99.1",
        "fec0::1", "feff::1", "fd00:ec2::254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "5f00::1", "3fff::1",
        "::ffff:168.63.129.16", "::7f00:1", "::ffff:0:7f00:1", "2001::1", "100::1",
    ],
)  # fmt: skip
def test_private_and_tunnel_addresses_are_not_public(address: str) -> None:
    assert not is_public_address(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "168.63.129.17"]
)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public_address(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/",
        "http://localhost:9/",
        "http://[::1]:9/",
        "http://2130706433:9/",
        "http://0x7f.1:9/",
        "http://[::ffff:127.0.0.1]:9/",
    ],
)
async def test_every_spelling_of_a_private_address_is_refused(url: str) -> None:
    async with public_client(allow_private=False) as client:
        with pytest.raises(TargetRefused):
            await client.get(url)


async def test_no_client_is_made_with_a_pool_that_cannot_be_guarded(monkeypatch) -> None:
    made = httpcore.AsyncConnectionPool.__init__

    def without_backend(self, *args, **options) -> None:
        made(self, *args, **options)
        del self._network_backend

    monkeypatch.setattr(httpcore.AsyncConnectionPool, "__init__", without_backend)
    with pytest.raises(RuntimeError, match="private addresses"):
        public_client(allow_private=False)


async def test_the_guard_is_off_only_where_asked_for() -> None:
    async with public_client(allow_private=True) as client:
        with pytest.raises(Exception, match="connection attempts failed"):
            await client.get("http://127.0.0.1:9/")


async def test_a_named_host_may_be_private() -> None:
    async with public_client(allow_private=False, allowed_hosts=["localhost"]) as client:
        with pytest.raises(Exception, match="connection attempts failed"):
            await client.get("http://localhost:9/")
        with pytest.raises(TargetRefused):
            await client.get("http://127.0.0.1:9/")


async def test_no_cookie_is_kept_from_one_request_to_the_next() -> None:
    seen: list[str | None] = []

    async def app(scope, receive, send) -> None:
        seen.append(dict(scope["headers"]).get(b"cookie"))
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"set-cookie", b"a=b; Path=/")]}
        )
        await send({"type": "http.response.body"})

    async with serve(app, lifespan="off") as url, public_client(allow_private=True) as client:
        await client.get(url)
        await client.get(url)
    assert seen == [None, None]


# -- several addresses ------------------------------------------------------------------------------------------


@pytest.fixture
def resolve_to(monkeypatch):
    """Makes every name resolve to these addresses, and lets this machine's count as public."""

    def resolve(*addresses: str) -> None:
        async def getaddrinfo(host, port, **_options):
            return [
                (socket.AF_INET6 if ":" in one else socket.AF_INET, None, 0, "", (one, port))
                for one in addresses
            ]

        monkeypatch.setattr("app.core.http.anyio.getaddrinfo", getaddrinfo)
        monkeypatch.setattr("app.core.http.is_public_address", lambda address: address.startswith("127."))

    return resolve


async def say_host(scope, receive, send) -> None:
    host = dict(scope["headers"])[b"host"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": host})


@contextlib.contextmanager
def silent_server(address: str, port: int):
    """Takes no connection any more: a new one waits, as at an address behind which nothing is."""
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind((address, port))
        server.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((address, port))
        yield


async def test_a_dead_address_leads_to_the_next(resolve_to) -> None:
    async with serve(say_host, lifespan="off") as url, public_client(allow_private=False) as client:
        port = httpx.URL(url).port
        resolve_to("127.0.0.2", "127.0.0.1")  # nothing listens on the first
        response = await client.get(f"http://example.org:{port}/")
        assert response.text == f"example.org:{port}"


async def test_an_address_that_never_accepts_does_not_use_up_the_time(resolve_to) -> None:
    async with (
        serve(say_host, lifespan="off") as url,
        public_client(allow_private=False, timeout=60) as client,
    ):
        port = httpx.URL(url).port
        assert port is not None
        resolve_to("127.0.0.2", "127.0.0.3", "127.0.0.1")
        with silent_server("127.0.0.2", port), silent_server("127.0.0.3", port):
            async with asyncio.timeout(9):  # far below the 10 s that one address may take
                assert (await client.get(f"http://example.org:{port}/")).status_code == 200


async def test_no_address_that_accepts_is_an_error_in_time(resolve_to) -> None:
    async with public_client(allow_private=False, timeout=1) as client:
        resolve_to("127.0.0.2", "127.0.0.3")
        with pytest.raises(httpx.ConnectError):
            await client.get("http://example.org:9/")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with silent_server("127.0.0.2", port), pytest.raises(httpx.ConnectTimeout):
            await client.get(f"http://example.org:{port}/")


async def test_one_private_address_among_others_refuses_them_all(resolve_to) -> None:
    async with serve(say_host, lifespan="off") as url, public_client(allow_private=False) as client:
        resolve_to("127.0.0.1", "10.0.0.1")
        with pytest.raises(TargetRefused):
            await client.get(f"http://example.org:{httpx.URL(url).port}/")


def test_both_families_are_tried_in_turn() -> None:
    assert _families_in_turn(["::1", "::2", "::3", "1.1.1.1", "::1"]) == ["::1", "1.1.1.1", "::2", "::3"]
    assert _families_in_turn(["1.1.1.1", "1.1.1.2"]) == ["1.1.1.1", "1.1.1.2"]
