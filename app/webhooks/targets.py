"""The URLs that a webhook may be sent to."""

import ipaddress

from app.core.http import httpx, is_public_address
from app.settings import Settings


def url_fault(text: str, settings: Settings) -> str | None:
    """Return a sentence that says why a webhook may not be sent to this URL; None if it may.

    It gives early feedback and resolves no names. The protection itself is where the socket is opened
    (app/core/http.py).
    """
    if not text.isprintable() or " " in text:
        return "A URL has no spaces and no control characters."
    try:
        url = httpx.URL(text)
        is_complete = url.scheme in {"http", "https"} and url.host
    except (httpx.InvalidURL, UnicodeError):  # the latter when `host` decodes a bad international name
        return "Not a valid URL."
    host = url.raw_host.decode()
    if not is_complete:
        return "Must be a full URL, for example https://example.com/webhooks."
    if url.userinfo:
        return "User names and passwords are not sent: check the signature instead."
    if url.port is not None and not 0 < url.port < 65_536:
        return "Not a valid port."
    if settings.allow_private_network_targets or host in settings.webhook_allowed_hosts:
        return None
    if not _may_be_public(host):
        return (
            "Must be on a public address. The operator can allow this host (WEBHOOK_ALLOWED_HOSTS) or, for development, "
            "all private ones (ALLOW_PRIVATE_NETWORK_TARGETS=true)."
        )
    if url.scheme != "https":
        return "Must begin with https://, so that no one on the way can read or change what is sent."
    return None


def _may_be_public(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return is_public_address(host)
