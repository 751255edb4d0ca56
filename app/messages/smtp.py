"""The way out for calendars without a mailbox: SMTP_URL, by aiosmtplib."""

import asyncio
from contextlib import suppress
from urllib.parse import parse_qs, unquote, urlsplit

import aiosmtplib

from app.settings import Settings

_WITHIN_SECONDS = 30.0
# Less than the sender waits: only here is it known how far a mail has come.
_ALL_WITHIN_SECONDS = 60.0
_GOODBYE_WITHIN_SECONDS = 5.0


class SmtpFailed(Exception):
    """`is_final`: another attempt is of no use. `may_be_taken`: the mail went out whole, its answer is missing."""

    def __init__(self, message: str, *, is_final: bool = False, may_be_taken: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final
        self.may_be_taken = may_be_taken


def smtp_client(smtp_url: str, *, timeout: float = _WITHIN_SECONDS) -> aiosmtplib.SMTP:
    """Not connected yet. `smtp://user:pass@host:port?starttls=true`, or `smtps://` for TLS from the first byte."""
    url = urlsplit(smtp_url)
    return aiosmtplib.SMTP(
        hostname=url.hostname,
        port=url.port,
        username=unquote(url.username) if url.username else None,
        password=unquote(url.password) if url.password else None,
        use_tls=url.scheme == "smtps",
        start_tls=parse_qs(url.query).get("starttls", ["false"])[-1].lower() == "true",
        timeout=timeout,
    )


async def send_by_smtp(settings: Settings, *, sender: str, recipient: str, mail: bytes) -> str:
    """Hands over one mail; what the server answered. Raises SmtpFailed."""
    if settings.smtp_url is None:
        raise SmtpFailed("SMTP_URL is not set any more.")
    client = smtp_client(settings.smtp_url.get_secret_value())
    is_ours = is_written = False
    try:
        async with asyncio.timeout(_ALL_WITHIN_SECONDS):
            await client.connect()
            await client.mail(sender)
            is_ours = True
            await client.rcpt(recipient)
            is_written = True
            answer = await client.data(mail)
        with suppress(aiosmtplib.SMTPException, OSError):
            async with asyncio.timeout(_GOODBYE_WITHIN_SECONDS):
                await client.quit()
        return answer.message
    except aiosmtplib.SMTPAuthenticationError as err:
        # The operator can mend this while the mail waits.
        problem, is_final, may_be_taken = f"refuses our credentials ({err.code})", False, False
    except aiosmtplib.SMTPRecipientRefused as err:
        problem, is_final, may_be_taken = f"refuses the recipient ({err.code})", err.code >= 500, False
    except aiosmtplib.SMTPResponseException as err:
        # Before the recipient it refuses us or EMAIL_FROM, and not this mail: the operator can mend that too.
        problem, is_final, may_be_taken = f"refuses the mail ({err.code})", is_ours and err.code >= 500, False
    except (aiosmtplib.SMTPException, OSError, ValueError) as err:
        problem, is_final, may_be_taken = f"broke off ({type(err).__name__})", False, is_written
    finally:
        client.close()
    raise SmtpFailed(f"The mail server {problem}.", is_final=is_final, may_be_taken=may_be_taken)
