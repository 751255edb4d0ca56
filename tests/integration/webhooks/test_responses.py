"""Responses that are no success: redirects, timeouts, endless bodies and broken connections."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.fakes.receiver import Response
from tests.integration.webhooks.deliveries import Webhooks, last_attempt


async def test_redirects_are_failures_and_not_followed(webhooks: Webhooks) -> None:
    (delivery,) = await webhooks.add(await webhooks.subscribe("/from"))
    webhooks.receiver.response = Response(307, headers={"Location": webhooks.url + "/to"})
    async with webhooks.deliverer() as deliverer:
        (claimed,) = await deliverer.claim(1)
        await deliverer.handle(claimed)
    assert [got.path for got in webhooks.receiver.received] == ["/from"]
    attempt = last_attempt(await webhooks.row(delivery))
    assert attempt["status_code"] == 307
    assert attempt["error"].startswith("redirect: ")


@pytest.mark.settings(webhook_timeout_seconds=0.3)
async def test_silent_and_dribbling_endpoints_are_cut_off_in_time(webhooks: Webhooks) -> None:
    silent, dribbling = await webhooks.subscribe("/silent"), await webhooks.subscribe("/dribbling")
    for subscription, response in ((silent, Response(delay=30)), (dribbling, Response(dribble=0.02))):
        (delivery,) = await webhooks.add(subscription)
        webhooks.receiver.response = response
        async with webhooks.deliverer() as deliverer:
            (claimed,) = await deliverer.claim(1)
            async with asyncio.timeout(5):
                await deliverer.handle(claimed)
        row = await webhooks.row(delivery)
        assert row.status == "pending"
        assert last_attempt(row)["error"] == "timeout: no complete answer within 0.3 seconds"
        assert 250 <= last_attempt(row)["duration_ms"] < 4000
        await webhooks.set_subscription(subscription, is_active=False)


async def test_a_response_without_end_is_read_in_part_only(webhooks: Webhooks) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while sent < 200_000_000:
                writer.write(b"x" * 65_536)
                await writer.drain()
                sent += 65_536
        writer.close()

    async with _raw_server(flood) as url:
        (delivery,) = await webhooks.add(await webhooks.subscribe(url=url))
        await webhooks.deliver()
    row = await webhooks.row(delivery)
    assert (row.status, last_attempt(row)["response"]) == ("success", "x" * 500)
    assert sent < 50_000_000  # what socket buffers swallow


async def test_connections_that_fail_are_recorded_with_a_word(webhooks: Webhooks, monkeypatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **options: Any) -> Any:
        if host in {"nowhere.example", b"nowhere.example"}:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with _raw_server(_hang_up) as broken:
        expected = {
            f"http://127.0.0.1:{port}/": "connection: the endpoint does not accept connections",
            "https://nowhere.example/": "dns: the host name does not resolve",
            f"{broken}/": "connection: broken off before the answer was complete (RemoteProtocolError)",
            f"{webhooks.url.replace('http', 'https')}/": "tls: no secure connection could be made",
        }
        for url, error in expected.items():
            (delivery,) = await webhooks.add(await webhooks.subscribe(url=url))
            async with webhooks.deliverer() as deliverer:
                (claimed,) = await deliverer.claim(1)
                await deliverer.handle(claimed)
            row = await webhooks.row(delivery)
            assert (row.status, last_attempt(row)["error"]) == ("pending", error)
            await webhooks.set_subscription(row.subscription_id, is_active=False)


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


@contextlib.asynccontextmanager
async def _raw_server(handle: Any) -> AsyncIterator[str]:
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
