"""A real SMTP server that keeps what it takes."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Sink:
    """`mail_reply`, `rcpt_reply`, `data_reply`: what it says instead of taking a sender, a recipient, a mail.

    `rcpt_seconds`, `data_seconds`: how long it thinks before. `password`: that of the user `calendars@x`.
    `encrypted`: of each mail that was taken, whether it came by TLS.
    """

    port: int = 0
    mails: list[tuple[str, list[str], bytes]] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    mail_reply: str | None = None
    rcpt_reply: str | None = None
    data_reply: str | None = None
    rcpt_seconds: float = 0
    data_seconds: float = 0
    password: str = "p/w%"

    def authenticate(
        self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, given: Any
    ) -> AuthResult:
        known = LoginPassword(b"calendars@x", self.password.encode())
        return AuthResult(success=given == known, handled=False)

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's name
        self, _server: Any, _session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if self.mail_reply is not None:
            return self.mail_reply
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any
    ) -> str:
        await asyncio.sleep(self.rcpt_seconds)
        if self.rcpt_reply is not None:
            return self.rcpt_reply
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        await asyncio.sleep(self.data_seconds)
        self.encrypted.append(server.transport.get_extra_info("sslcontext") is not None)
        self.mails.append((envelope.mail_from, list(envelope.rcpt_tos), envelope.original_content))
        if self.data_reply == "cut":
            server.transport.abort()
        return self.data_reply or "250 OK"


@contextlib.asynccontextmanager
async def smtp_sink(tls: ssl.SSLContext | None = None) -> AsyncIterator[Sink]:
    """Listens on 127.0.0.1 at `port`, in the test's own event loop. `tls`: it offers STARTTLS."""
    sink = Sink()
    loop = asyncio.get_running_loop()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = await loop.create_server(
        lambda: SMTP(
            sink,
            hostname="127.0.0.1",
            loop=loop,
            authenticator=sink.authenticate,
            auth_require_tls=False,
            tls_context=tls,
        ),
        sock=listener,
    )
    sink.port = listener.getsockname()[1]
    try:
        yield sink
    finally:
        server.close()
        await server.wait_closed()


def self_signed() -> ssl.SSLContext:
    """TLS with a certificate that no authority vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "both.pem"
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path.write_bytes(certificate.public_bytes(pem) + secret)
        context.load_cert_chain(path)
    return context
