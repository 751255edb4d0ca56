"""The guarded client: private addresses are refused where the socket opens."""

import gzip

import pytest

from app.core.http import BodyTooLarge, TargetRefused, is_public_address, public_client, read_capped
from tests.fakes.server import serve


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.2.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "192.88.99.1",
    ],
)  # fmt: skip
def test_private_and_tunnel_addresses_are_not_public(address: str) -> None:
    assert not is_public_address(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1"])
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


async def test_a_doubly_compressed_answer_is_refused() -> None:
    async def app(scope, receive, send) -> None:
        body = gzip.compress(gzip.compress(b"0" * 1_000_000))
        headers = [(b"content-encoding", b"gzip, gzip")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async with (
        serve(app, lifespan="off") as url,
        public_client(allow_private=True) as client,
        client.stream("GET", url) as response,
    ):
        with pytest.raises(BodyTooLarge):
            await read_capped(response, 10_000_000)
