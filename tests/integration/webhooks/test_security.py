"""Addresses that are refused when a delivery is sent, and the verification of certificates."""

import socket
import ssl
from pathlib import Path
from typing import Any

import trustme

from tests.fakes.server import serve
from tests.integration.webhooks.deliveries import Webhooks, last_attempt


async def test_a_name_that_resolves_to_a_private_address_is_refused_where_the_socket_opens(
    webhooks: Webhooks, monkeypatch
) -> None:
    real = socket.getaddrinfo
    port = int(webhooks.url.rpartition(":")[2])
    resolved: dict[str, list[str]] = {
        "loopback.example": ["127.0.0.1"],
        "mixed.example": ["1.1.1.1", "127.0.0.1"],
        "metadata.example": ["169.254.169.254"],
        "six.example": ["::1"],
        "mapped.example": ["::ffff:10.0.0.1"],
    }

    def resolve(host: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name in resolved:
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in resolved[name]
            ]
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    deliveries = {}
    for name in resolved:
        (delivery,) = await webhooks.add(await webhooks.subscribe(url=f"https://{name}:{port}/"))
        deliveries[name] = delivery
    await webhooks.deliver(allow_private_network_targets=False, webhook_retry_schedule_seconds=(60.0,))
    assert webhooks.receiver.received == []
    for name, delivery in deliveries.items():
        attempt = last_attempt(await webhooks.row(delivery))
        assert attempt["error"] == f"refused: {name} is not a public address"
        assert attempt["status_code"] is None


async def test_a_url_that_is_no_longer_allowed_is_not_called(webhooks: Webhooks) -> None:
    (delivery,) = await webhooks.add(await webhooks.subscribe())
    options: dict[str, Any] = {"webhook_retry_schedule_seconds": (60.0,)}
    await webhooks.deliver(allow_private_network_targets=False, **options)
    assert webhooks.receiver.received == []
    assert last_attempt(await webhooks.row(delivery))["error"].startswith(
        "refused: Must be on a public address"
    )
    await webhooks.make_due()
    allowed = frozenset({"127.0.0.1"})
    await webhooks.deliver(allow_private_network_targets=False, webhook_allowed_hosts=allowed, **options)
    assert len(webhooks.receiver.received) == 1


async def test_certificates_are_verified(webhooks: Webhooks, tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("localhost")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    certificate.private_key_pem.write_to_path(str(key))
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(str(chain), append=number > 0)
    options: dict[str, Any] = {
        "allow_private_network_targets": False,
        "webhook_allowed_hosts": frozenset({"localhost", "127.0.0.1"}),
        "webhook_retry_schedule_seconds": (60.0, 60.0, 60.0),
    }
    async with serve(webhooks.receiver, ssl_certfile=str(chain), ssl_keyfile=str(key)) as url:
        (delivery,) = await webhooks.add(
            await webhooks.subscribe(url=url.replace("127.0.0.1", "localhost") + "/tls")
        )
        await webhooks.deliver(**options)  # the system's authorities do not know this one
        error = last_attempt(await webhooks.row(delivery))["error"]
        assert error == "tls: the certificate is not valid (unable to get local issuer certificate)"
        await webhooks.make_due()
        await webhooks.deliver(verify=_trusting(stranger), **options)
        assert last_attempt(await webhooks.row(delivery))["error"].startswith("tls: the certificate")
        assert webhooks.receiver.received == []
        await webhooks.make_due()
        await webhooks.deliver(verify=_trusting(authority), **options)
        assert [got.path for got in webhooks.receiver.received] == ["/tls"]
        (wrong_name,) = await webhooks.add(await webhooks.subscribe(url=url))
        await webhooks.deliver(verify=_trusting(authority), **options)
        assert "tls: the certificate is not valid" in last_attempt(await webhooks.row(wrong_name))["error"]


def _trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
