"""A DNS server of TXT records on UDP, and a mail domain that signs its mails with DKIM."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

import dkim
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

SELECTOR = "mail"


class FakeDns(asyncio.DatagramProtocol):
    """`texts` by name in lower case, with the final dot. `is_broken`: SERVFAIL for everything."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.asked: list[str] = []
        self.is_broken = False
        self.port = 0

    def publish_key(self, domain: str, *, selector: str = SELECTOR) -> None:
        key = _key().public_key()
        der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.texts[f"{selector}._domainkey.{domain}."] = f"v=DKIM1; k=rsa; p={base64.b64encode(der).decode()}"

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        name = query.question[0].name.to_text().lower()
        self.asked.append(name)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        text = self.texts.get(name)
        if self.is_broken:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif text is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        else:
            pieces = " ".join(f'"{text[start : start + 255]}"' for start in range(0, len(text), 255))
            response.answer.append(dns.rrset.from_text(name, 300, "IN", "TXT", pieces))
        self._transport.sendto(response.to_wire(), addr)


@contextlib.asynccontextmanager
async def serve_dns() -> AsyncIterator[FakeDns]:
    loop = asyncio.get_running_loop()
    transport, fake = await loop.create_datagram_endpoint(FakeDns, local_addr=("127.0.0.1", 0))
    try:
        yield fake
    finally:
        transport.close()


@cache
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def sign(mail: bytes, domain: str, *, selector: str = SELECTOR, **options: object) -> bytes:
    """The mail with a DKIM-Signature of this domain."""
    pem = _key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    field: bytes = dkim.sign(mail, selector.encode(), domain.encode(), pem, **options)
    return field + mail
