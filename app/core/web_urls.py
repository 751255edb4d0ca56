"""Checks of web addresses that are shown to people."""

import re
from urllib.parse import urlsplit

_HTTP_URL = re.compile(r"https?://[^\s\"'<>\\^`{|}]+", re.IGNORECASE)

MAX_URL_LENGTH = 2048


def safe_url(value: str | None) -> str | None:
    """Return the address if it is http or https, and None for anything else, such as `javascript:`.

    Control characters are refused, and so are marks that make a text look like another one.
    """
    url = (value or "").strip()
    if len(url) > MAX_URL_LENGTH or not url.isprintable() or not _HTTP_URL.fullmatch(url):
        return None
    try:
        parts = urlsplit(url)
        return url if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None
