"""Reading JSON bodies and headers of HTTP responses."""

import json
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from app.core.clock import utcnow

_LONGEST_RETRY_AFTER_SECONDS = 86_400.0


def load_json(body: bytes) -> Any:
    """The JSON value in `body`. Lenient about broken characters, because one bad title must not hide a page.

    Raises ValueError.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as told by `Retry-After` (RFC 9110 10.2.3: seconds, or an HTTP date), at most a day.

    A date counts from the answer's own `Date`, so that a clock that is off does no harm.
    """
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value), _LONGEST_RETRY_AFTER_SECONDS)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    try:
        now = parsedate_to_datetime(headers.get("Date", ""))
    except ValueError:
        now = utcnow()
    # "-0000" as zone makes the parser return a naive time; it is UTC all the same.
    seconds = (
        until.replace(tzinfo=until.tzinfo or UTC) - now.replace(tzinfo=now.tzinfo or UTC)
    ).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_SECONDS)


def is_header_safe(token: str) -> bool:
    """Whether it can stand in a header: an error about one that cannot would quote the token."""
    return token != "" and token.isascii() and token.isprintable()
