"""The only place where HTTP clients are built: timeouts, limits, no ambient proxies, guarded sockets.

All other modules import `httpx` from here, so that a move to httpx2 is one line. Requests are sent by
app/core/fetch.py.
"""

import http.cookiejar
import ipaddress
import socket
import ssl
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import anyio
import httpcore
import httpx

__all__ = [
    "TargetRefused",
    "httpx",
    "is_header_safe",
    "is_public_address",
    "operator_client",
    "public_client",
]

# Google compresses its responses for clients that have "gzip" in both headers. Other encodings are not asked for:
# gzip can be decoded in bounded memory.
_HEADERS = {"User-Agent": "calbridge/0.1 (gzip)", "Accept-Encoding": "gzip"}

# Networks that `ipaddress` calls global, in some or all of its versions, and that must not be reached:
_REFUSED = tuple(
    ipaddress.ip_network(net)
    for net in (
        # each leads to an IPv4 address that may be private: NAT64, 6to4, and the 6to4 relay anycast range;
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2002::/16",
        "192.88.99.0/24",
        # site-local addresses, which came before fc00::/7 (RFC 3879), SRv6 (RFC 9602), documentation (RFC 9637);
        "fec0::/10",
        "5f00::/16",
        "3fff::/20",
        # the host of a virtual machine: Azure's, and one in IETF's protocol assignments (Oracle Cloud's metadata).
        "168.63.129.16/32",
        "192.0.0.0/24",
    )
)

# RFC 8305: the next address is tried when the one before has failed, or has not connected after this long.
_NEXT_ADDRESS_AFTER_SECONDS = 0.25
_MOST_ADDRESSES = 8


class TargetRefused(Exception):
    """The address of a caller-chosen URL is not public (or does not resolve)."""


def is_public_address(address: str) -> bool:
    """Whether a resolved IP address may be reached by caller-chosen URLs."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if not ip.is_global or ip.is_multicast or ip.is_reserved:
        return False
    return not any(ip.version == net.version and ip in net for net in _REFUSED)


def _no_cookies() -> http.cookiejar.CookieJar:
    """A cookie jar that keeps nothing: a client is shared by all projects, which must not share cookies."""
    return http.cookiejar.CookieJar(policy=http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))


class PublicOnlyBackend(httpcore.AsyncNetworkBackend):
    """Opens sockets to public addresses only.

    The name is resolved once, every address is checked, and the connection goes to the first of these addresses
    that accepts one. There is no second look-up, which could return others. Host header and TLS name stay the URL's.
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
                found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except TimeoutError as err:
            raise httpcore.ConnectTimeout(f"{host} did not resolve in time") from err
        except (OSError, UnicodeError) as err:
            raise httpcore.ConnectError(f"{host} does not resolve") from err
        addresses = [str(one[4][0]) for one in found]
        if not addresses or not all(is_public_address(address) for address in addresses):
            raise TargetRefused(f"{host} is not a public address")
        try:
            with anyio.fail_after(timeout):
                return await self._connect_any(
                    _families_in_turn(addresses), port, local_address, socket_options
                )
        except TimeoutError as err:
            raise httpcore.ConnectTimeout(f"{host} does not accept connections") from err

    async def _connect_any(
        self,
        addresses: Sequence[str],
        port: int,
        local_address: str | None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.AsyncNetworkStream:
        """The first connection that is made. Raises the error of the first address if there is none."""
        made: list[httpcore.AsyncNetworkStream] = []
        errors: list[httpcore.ConnectError | httpcore.ConnectTimeout] = []

        async def attempt(address: str, has_failed: anyio.Event) -> None:
            try:
                made.append(await self._inner.connect_tcp(address, port, None, local_address, socket_options))
                group.cancel_scope.cancel()
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as err:
                errors.append(err)
                has_failed.set()

        try:
            async with anyio.create_task_group() as group:
                for address in addresses[:_MOST_ADDRESSES]:
                    has_failed = anyio.Event()
                    group.start_soon(attempt, address, has_failed)
                    with anyio.move_on_after(_NEXT_ADDRESS_AFTER_SECONDS):
                        await has_failed.wait()
        except BaseException:
            await _close(made)
            raise
        if not made:
            raise errors[0]
        await _close(made[1:])  # made at the same moment
        return made[0]

    async def connect_unix_socket(self, *_args: Any, **_kwargs: Any) -> httpcore.AsyncNetworkStream:
        raise TargetRefused("unix sockets are not reachable from here")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


async def _close(streams: Iterable[httpcore.AsyncNetworkStream]) -> None:
    with anyio.CancelScope(shield=True):
        for stream in streams:
            await stream.aclose()


def _families_in_turn(addresses: Iterable[str]) -> list[str]:
    """IPv6 and IPv4 in turn, each in the given order, so that a broken one of the two costs little time."""
    families: dict[bool, list[str]] = {}
    for address in dict.fromkeys(addresses):
        families.setdefault(":" in address, []).append(address)
    turns = zip_longest(*families.values())
    return [address for turn in turns for address in turn if address is not None]


def operator_client(
    *, timeout: float = 20.0, max_connections: int = 200, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """A client for addresses that the operator configured (providers, Messages, bot runner): unrestricted."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(timeout, connect=10.0),
        limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections // 2),
        headers=_HEADERS,
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
        # httpx 0.28 offers no public way to hand over a network backend; tests/unit/core/test_http.py covers it.
        pool = transport._pool  # noqa: SLF001
        if not isinstance(pool, httpcore.AsyncConnectionPool) or not hasattr(pool, "_network_backend"):
            raise RuntimeError("this version of httpx or httpcore cannot be kept from private addresses")
        pool._network_backend = PublicOnlyBackend(allowed_hosts)  # noqa: SLF001
    return httpx.AsyncClient(
        timeout=httpx.Timeout(timeout, connect=min(10.0, timeout)),
        headers=_HEADERS,
        cookies=_no_cookies(),
        follow_redirects=False,
        trust_env=False,
        transport=transport,
    )


def is_header_safe(token: str) -> bool:
    """Whether `token` is valid in a header. If it is not, httpx raises an error that quotes it."""
    return token != "" and token.isascii() and token.isprintable()
