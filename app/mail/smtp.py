"""Sending by SMTP_URL, for calendars without a mailbox."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import parse_qs, unquote, urlsplit

import aiosmtplib
import structlog

from app.settings import Settings

_TIMEOUT_SECONDS = 30.0
# Shorter than the timeout of the sender, which does not know how far the mail has come.
_TOTAL_TIMEOUT_SECONDS = 60.0
_QUIT_TIMEOUT_SECONDS = 5.0
# As response to MAIL FROM these limit the sender. As response to RCPT TO they are about that recipient (greylisting).
_THROTTLED = frozenset({450, 451, 452})

log = structlog.get_logger()


class SmtpFailed(Exception):
    """The mail was not sent. `is_final`: another attempt would fail too.

    `may_be_taken`: the mail was sent completely, and the response is missing. `is_throttled`: the server accepts no
    more mails from this sender for now.
    """

    def __init__(
        self,
        message: str,
        *,
        is_final: bool = False,
        may_be_taken: bool = False,
        is_throttled: bool = False,
    ) -> None:
        super().__init__(message)
        self.is_final = is_final
        self.may_be_taken = may_be_taken
        self.is_throttled = is_throttled


@asynccontextmanager
async def connected(
    smtp_url: str, *, timeout_seconds: float = _TIMEOUT_SECONDS
) -> AsyncIterator[aiosmtplib.SMTP]:
    """A session with the server of SMTP_URL, logged in if the URL names a user.

    `smtps://` is TLS from the first byte. `smtp://` is STARTTLS if the server offers it, with any certificate;
    `?starttls=true` requires TLS and a valid certificate, `?starttls=false` disables it.
    Raises aiosmtplib.SMTPException, OSError, ValueError.
    """
    url = urlsplit(smtp_url)
    wanted = parse_qs(url.query).get("starttls", [""])[-1].lower()
    is_required = url.scheme == "smtps" or wanted == "true"
    client = aiosmtplib.SMTP(
        hostname=url.hostname,
        port=url.port,
        use_tls=url.scheme == "smtps",
        start_tls={"true": True, "false": False}.get(wanted),
        # RFC 7435: encryption with any certificate is better than none.
        validate_certs=is_required,
        timeout=timeout_seconds,
    )
    try:
        await client.connect()
        if url.username:
            if is_in_the_clear(client) and url.hostname not in _warned:
                _warned.add(url.hostname)
                log.warning("smtp_password_in_clear", host=url.hostname)
            await client.login(unquote(url.username), unquote(url.password or ""))
        yield client
    finally:
        client.close()


def is_in_the_clear(client: aiosmtplib.SMTP) -> bool:
    """Whether the connection is not encrypted."""
    return client.get_transport_info("sslcontext") is None


_warned: set[str | None] = set()


async def send_by_smtp(settings: Settings, *, sender: str, recipient: str, mail: bytes) -> str:
    """Send one mail; return the response of the server. Raises SmtpFailed."""
    if settings.smtp_url is None:
        raise SmtpFailed("SMTP_URL is not set any more.")
    url = settings.smtp_url.get_secret_value()
    is_sender_accepted = is_written = is_final = is_throttled = may_be_taken = False
    response = None
    try:
        async with asyncio.timeout(_TOTAL_TIMEOUT_SECONDS), connected(url) as client:
            await client.mail(sender)
            is_sender_accepted = True
            await client.rcpt(recipient)
            is_written = True
            response = await client.data(mail)
            with suppress(aiosmtplib.SMTPException, OSError):
                async with asyncio.timeout(_QUIT_TIMEOUT_SECONDS):
                    await client.quit()
    except aiosmtplib.SMTPAuthenticationError as err:
        # The operator can fix this while the mail waits.
        problem = f"refuses our credentials ({err.code})"
    except aiosmtplib.SMTPRecipientRefused as err:
        problem, is_final = f"refuses the recipient ({err.code})", err.code >= 500
    except aiosmtplib.SMTPResponseException as err:
        # Before RCPT TO it refuses this client or EMAIL_FROM, and not this mail: the operator can fix that too.
        problem, is_final = f"refuses the mail ({err.code})", is_sender_accepted and err.code >= 500
        is_throttled = not is_sender_accepted and err.code in _THROTTLED
    except (aiosmtplib.SMTPException, OSError, ValueError) as err:
        problem, may_be_taken = f"broke off ({type(err).__name__})", is_written
    else:
        return response.message
    if response is not None:  # it broke off afterwards
        return response.message
    raise SmtpFailed(
        f"The mail server {problem}.", is_final=is_final, may_be_taken=may_be_taken, is_throttled=is_throttled
    )
