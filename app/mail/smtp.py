"""The way out for calendars without a mailbox: SMTP_URL, by aiosmtplib."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import parse_qs, unquote, urlsplit

import aiosmtplib
import structlog

from app.settings import Settings

_WITHIN_SECONDS = 30.0
# Less than the sender waits: only here is it known how far a mail has come.
_ALL_WITHIN_SECONDS = 60.0
_GOODBYE_WITHIN_SECONDS = 5.0
# Of MAIL FROM: this sender has sent enough for now. Of a recipient it is about that recipient alone (greylisting).
_THROTTLED = frozenset({450, 451, 452})

log = structlog.get_logger()


class SmtpFailed(Exception):
    """`is_final`: another attempt is of no use. `may_be_taken`: the mail went out whole, its answer is missing.

    `is_throttled`: the server wants no more from this sender for now.
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
    smtp_url: str, *, within_seconds: float = _WITHIN_SECONDS
) -> AsyncIterator[aiosmtplib.SMTP]:
    """A session with the server of SMTP_URL, logged in where the address names a user.

    `smtps://`: TLS from the first byte. `smtp://`: STARTTLS where the server offers it, whatever its certificate says;
    with `?starttls=true` only with TLS and a certificate that is right; with `?starttls=false` never.
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
        # RFC 7435: where it could be in the clear as well, any certificate is better.
        validate_certs=is_required,
        timeout=within_seconds,
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
    """Whether anybody on the way can read what is said."""
    return client.get_transport_info("sslcontext") is None


_warned: set[str | None] = set()


async def send_by_smtp(settings: Settings, *, sender: str, recipient: str, mail: bytes) -> str:
    """Hands over one mail; what the server answered. Raises SmtpFailed."""
    if settings.smtp_url is None:
        raise SmtpFailed("SMTP_URL is not set any more.")
    url = settings.smtp_url.get_secret_value()
    is_ours = is_written = is_final = is_throttled = may_be_taken = False
    answer = None
    try:
        async with asyncio.timeout(_ALL_WITHIN_SECONDS), connected(url) as client:
            await client.mail(sender)
            is_ours = True
            await client.rcpt(recipient)
            is_written = True
            answer = await client.data(mail)
            with suppress(aiosmtplib.SMTPException, OSError):
                async with asyncio.timeout(_GOODBYE_WITHIN_SECONDS):
                    await client.quit()
    except aiosmtplib.SMTPAuthenticationError as err:
        # The operator can mend this while the mail waits.
        problem = f"refuses our credentials ({err.code})"
    except aiosmtplib.SMTPRecipientRefused as err:
        problem, is_final = f"refuses the recipient ({err.code})", err.code >= 500
    except aiosmtplib.SMTPResponseException as err:
        # Before the recipient it refuses us or EMAIL_FROM, and not this mail: the operator can mend that too.
        problem, is_final = f"refuses the mail ({err.code})", is_ours and err.code >= 500
        is_throttled = not is_ours and err.code in _THROTTLED
    except (aiosmtplib.SMTPException, OSError, ValueError) as err:
        problem, may_be_taken = f"broke off ({type(err).__name__})", is_written
    else:
        return answer.message
    if answer is not None:  # it broke off afterwards
        return answer.message
    raise SmtpFailed(
        f"The mail server {problem}.", is_final=is_final, may_be_taken=may_be_taken, is_throttled=is_throttled
    )
