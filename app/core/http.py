"""The only place where HTTP clients are built: timeouts, limits, no ambient proxies, guarded sockets.

Everything else imports `httpx` from here, so that a move to httpx2 is one line.
"""

import http.cookiejar
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import anyio
import httpcore
import httpx

__all__ = [
    "BodyTooLarge",
    "TargetRefused",
    "httpx",
    "is_public_address",
    "operator_client",
    "public_client",
    "read_capped",
]

USER_AGENT = "calbridge/0.1 (gzip)"

# Globally routable for Python 3.11's ipaddress, but each leads to an IPv4 address that may be private:
# NAT64, 6to4, and the 6to4 relay anycast range.
_TUNNELS = tuple(
    ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "192.88.99.0/24")
)


class TargetRefused(Exception):
    """The address of a caller-chosen URL is not public (or does not resolve)."""


class BodyTooLarge(Exception):
    """An answer was longer than the caller allows."""


def is_public_address(address: str) -> bool:
    """Whether a resolved IP address may be reached by caller-chosen URLs."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if not ip.is_global or ip.is_multicast or ip.is_reserved:
        return False
    return not any(ip.version == net.version and ip in net for net in _TUNNELS)


def _no_cookies() -> http.cookiejar.CookieJar:
    """A client is shared by all projects: what one endpoint sets must never go out with another's request."""
    return http.cookiejar.CookieJar(policy=http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))


class PublicOnlyBackend(httpcore.AsyncNetworkBackend):
    """Opens sockets to public addresses only.

    The name is resolved once, every answer is checked, and the connection goes to a checked address:
    there is no second look-up that could answer differently. Host header and TLS name stay the URL's.
    """

    def __init__(self, allowed_hosts: Iterable[str] = ()) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        if not self._allowed_hosts.isdisjoint({host.lower(), f"{host.lower()}:{port}"}):
            return await self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        try:
            with anyio.fail_after(timeout):
                answers = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except TimeoutError as err:
            raise httpcore.ConnectTimeout(f"{host} did not resolve in time") from err
        except (OSError, UnicodeError) as err:
            raise httpcore.ConnectError(f"{host} does not resolve") from err
        addresses = [str(answer[4][0]) for answer in answers]
        if not addresses or not all(is_public_address(address) for address in addresses):
            raise TargetRefused(f"{host} is not a public address")
        return await self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def connect_unix_socket(self, *_args: Any, **_kwargs: Any) -> httpcore.AsyncNetworkStream:
        raise TargetRefused("unix sockets are not reachable from here")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


def operator_client(
    *, timeout: float = 20.0, max_connections: int = 200, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """A client for addresses that the operator configured (providers, Messages, bot runner): unrestricted."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(timeout, connect=10.0),
        limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections // 2),
        headers={"User-Agent": USER_AGENT},
        cookies=_no_cookies(),
        follow_redirects=False,
        trust_env=False,
        transport=transport,
    )


def public_client(
    *,
    allow_private: bool,
    allowed_hosts: Iterable[str] = (),
    timeout: float = 20.0,
    max_connections: int = 200,
    verify: ssl.SSLContext | bool = True,
) -> httpx.AsyncClient:
    """A client for addresses that callers chose (feeds, webhooks): public addresses only, no redirects.

    `allow_private` lifts the restriction (ALLOW_PRIVATE_NETWORK_TARGETS); `allowed_hosts` names exceptions, a host
    or a host:port.
    Requests raise TargetRefused where the address is refused.
    """
    limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections // 2)
    transport = httpx.AsyncHTTPTransport(verify=verify, limits=limits, trust_env=False)
    if not allow_private:
        # httpx 0.28 offers no public way to hand over a network backend; tests/unit/test_http.py covers it.
        pool = transport._pool  # noqa: SLF001
        assert isinstance(pool, httpcore.AsyncConnectionPool)
        pool._network_backend = PublicOnlyBackend(allowed_hosts)  # noqa: SLF001
    return httpx.AsyncClient(
        timeout=httpx.Timeout(timeout, connect=min(10.0, timeout)),
        headers={"User-Agent": USER_AGENT},
        cookies=_no_cookies(),
        follow_redirects=False,
        trust_env=False,
        transport=transport,
    )


async def read_capped(response: httpx.Response, limit: int) -> bytes:
    """The (decoded) body of a streamed response. Raises BodyTooLarge as soon as it is over `limit` bytes.

    An answer that is compressed twice is refused: a few kilobytes of it could become gigabytes at once.
    """
    if "," in response.headers.get("content-encoding", ""):
        raise BodyTooLarge("the answer is compressed more than once")
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(f"the answer is larger than {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)
