"""Checks of other servers: Redis, APP_URL, providers, the bot runner, Messages and SMTP."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

import aiosmtplib
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.cli.doctor.database import load_used_platforms
from app.cli.doctor.findings import TIMEOUT_SECONDS, Finding, note
from app.core.fetch import FetchFailed, Response, fetch
from app.core.http import httpx, is_public_address
from app.mail.smtp import connected, is_in_the_clear
from app.settings import Settings, SettingsError

_MAX_RESPONSE_BYTES = 1024 * 1024


async def check_redis(settings: Settings) -> list[Finding]:
    try:
        url = settings.required_redis_url()
    except SettingsError as err:
        return [Finding("redis", False, str(err))]
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), Redis.from_url(url) as redis:
            version = (await redis.info("server"))["redis_version"]
    except (RedisError, OSError, TimeoutError, ValueError) as err:
        reason = str(err) or "no response in time"
        return [Finding("redis", False, f"{reason.rstrip('.')}. Check REDIS_URL, and that Redis runs.")]
    return [Finding("redis", True, f"Redis {version}")]


async def check_push(settings: Settings, client: httpx.AsyncClient) -> list[Finding]:
    """Check whether providers can send notifications, as far as this machine can see."""
    url = settings.app_url
    if not settings.push_enabled:
        text = (
            "off, so changes are seen by polling alone: CALENDAR_PUSH_ENABLED is set to false."
            if url.startswith("https://")
            else f"off, so changes are seen by polling alone: providers notify https:// addresses, and APP_URL is {url}."
        )
        return [note("push", text)]
    if not url.startswith("https://"):
        text = f"CALENDAR_PUSH_ENABLED is on, but providers notify https:// addresses only, and APP_URL is {url}."
        return [Finding("push", False, text)]
    host = urlsplit(url).hostname or ""
    try:
        with suppress(ValueError):
            if not is_public_address(host):
                text = f"providers cannot reach {host}: set APP_URL to this service's public name."
                return [Finding("push", False, text)]
        response = await _request(client, "GET", f"{url}/healthz")
    except FetchFailed as err:
        text = f"{url} does not answer from here ({err.reason}); providers must reach it."
        return [note("push", text)]
    if response.status != 200 or (response.json_object() or {}).get("status") != "ok":
        text = (
            f"{url}/healthz is served ({response.status}), but not by calbridge: check APP_URL and the proxy."
        )
        return [Finding("push", False, text)]
    return [Finding("push", True, f"{url} reaches this service")]


async def check_providers(settings: Settings, client: httpx.AsyncClient) -> list[Finding]:
    """Check that providers and the bot runner can be reached. It is fine if no calendar uses a provider.

    Any HTTP response counts. Without credentials, it is 400, 401, 404 or 405.
    """
    used = await load_used_platforms(settings)
    addresses = {
        "GOOGLE_API_BASE_URL": f"{settings.google_api_base_url}/calendar/v3/users/me/calendarList",
        "GOOGLE_OAUTH_TOKEN_URL": settings.google_oauth_token_url,
        "MICROSOFT_GRAPH_BASE_URL": f"{settings.microsoft_graph_base_url}/me",
        "MICROSOFT_OAUTH_TOKEN_URL": settings.microsoft_oauth_token_url,
    }
    if settings.bot_runner_url is not None:
        addresses["BOT_RUNNER_URL"] = settings.bot_runner_url

    async def look(name: str, address: str) -> Finding:
        host = urlsplit(address).netloc.rpartition("@")[2]
        try:
            response = await _request(client, "GET", address)
        except FetchFailed as err:
            text = f"{host} cannot be reached ({err.reason}). Check the network, DNS and firewall, or the setting."
            platform = name.partition("_")[0].lower()
            if platform in {"google", "microsoft"} - used:
                return note(name, f"{text} No calendar or OAuth app needs it so far.")
            return Finding(name, False, text)
        return Finding(name, True, f"{host} responds ({response.status})")

    return await asyncio.gather(*(look(name, address) for name, address in addresses.items()))


async def check_messages(settings: Settings, client: httpx.AsyncClient) -> list[Finding]:
    """Check both scopes of the channel without sending a mail.

    See docs/reference/messages.md, "Authentication".
    """
    if not settings.feature_messages_integration:
        return []
    assert settings.messages_api_key is not None
    assert settings.messages_channel_id is not None
    base = f"{settings.messages_api_url}/api/v1.0"
    headers = {
        "X-API-Key": settings.messages_api_key.get_secret_value(),
        "X-Channel-Id": settings.messages_channel_id,
    }
    try:
        mailboxes = await _request(
            client, "GET", f"{base}/provisioning/mailboxes/?email=doctor@calbridge.invalid", headers=headers
        )
        # Without a sender, recipients and text, this is refused with 400, but only after the scope was checked.
        submit = await _request(
            client, "POST", f"{base}/submit/", headers={**headers, "Content-Type": "message/rfc822"}
        )
    except FetchFailed as err:
        text = f"no response ({err.reason}). Check MESSAGES_API_URL."
        return [Finding("Messages", False, text)]
    return [
        # A page with status 200 comes from another server.
        _scope("mailboxes:read", mailboxes.status if _is_json(mailboxes) else 404, fine=200),
        _scope("messages:send", submit.status, fine=400),
    ]


async def _request(
    client: httpx.AsyncClient, method: str, url: str, *, headers: Mapping[str, str] | None = None
) -> Response:
    """Send a request, and read a part of the response. Raises FetchFailed."""
    return await fetch(
        client,
        method,
        url,
        headers=headers,
        max_bytes=_MAX_RESPONSE_BYTES,
        deadline_seconds=TIMEOUT_SECONDS,
        truncate=True,
    )


def _is_json(response: Response) -> bool:
    """Whether the response is a JSON object.

    True for an unsuccessful one, which is judged by its status alone.
    """
    return not 200 <= response.status < 300 or response.json_object() is not None


def _scope(scope: str, status_code: int, *, fine: int) -> Finding:
    subject = f"Messages, scope {scope}"
    if status_code == fine:
        return Finding(subject, True, "granted")
    text = {
        301: "it redirects: MESSAGES_API_URL must begin with https://.",
        401: "it refuses the key or the channel: check MESSAGES_API_KEY and MESSAGES_CHANNEL_ID.",
        403: f"the channel may not do this: give it the scope {scope} (mailboxes:read needs a global channel).",
        404: "there is no such page: check MESSAGES_API_URL (the address of Messages alone, without a path).",
    }.get(status_code, f"unexpected status {status_code}: see the log of Messages.")
    return Finding(subject, False, text)


async def check_smtp(settings: Settings) -> list[Finding]:
    if settings.smtp_url is None:
        return []
    url = settings.smtp_url.get_secret_value()
    host, user = urlsplit(url).hostname, urlsplit(url).username
    try:
        async with connected(url, timeout_seconds=TIMEOUT_SECONDS) as client:
            in_the_clear = is_in_the_clear(client)
            with suppress(aiosmtplib.SMTPException):
                await client.quit()
    except (aiosmtplib.SMTPException, OSError, ValueError) as err:
        return [Finding("SMTP", False, f"{host}: {str(err).rstrip('.')}. Check SMTP_URL.")]
    if in_the_clear and user:
        text = f"{host} accepts mail, but the password is sent unencrypted: add ?starttls=true to SMTP_URL, or use smtps://."
        return [Finding("SMTP", False, text)]
    return [Finding("SMTP", True, f"{host} accepts mail{'' if not in_the_clear else ', unencrypted'}")]
