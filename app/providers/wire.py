"""One request to a provider: bounded in time and size, its failures told without addresses or headers.

httpx errors carry the request, and with it the token: none of them is let out of this module.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from app.core.clock import utcnow
from app.core.http import BodyTooLarge, httpx, read_capped
from app.providers.base import Unavailable

_LONGEST_RETRY_AFTER_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete HTTP answer of any status; `body` is decoded (not gzip any more)."""

    status: int
    headers: httpx.Headers
    body: bytes


async def exchange(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    provider: str,
    max_bytes: int,
    deadline_seconds: float,
    headers: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
    data: Mapping[str, str] | None = None,
    document: Any = None,
) -> Answer:
    """Sends one request and reads the whole answer, whatever its status. `data` goes as a form, `document` as JSON.

    `deadline_seconds` covers everything from connecting to the last byte, so that a server which dribbles
    cannot hold a worker. `provider` is the name used in messages.
    Raises Unavailable: no connection, no answer in time, broken off, or larger than `max_bytes`.
    """
    try:
        async with (
            asyncio.timeout(deadline_seconds),
            client.stream(method, url, headers=headers, params=params, data=data, json=document) as response,
        ):
            return Answer(response.status_code, response.headers, await read_capped(response, max_bytes))
    except (TimeoutError, httpx.TimeoutException):
        problem, code = "did not answer in time", "timeout"
    except BodyTooLarge:
        problem, code = f"sent an answer of more than {max_bytes} bytes", "answer_too_large"
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as err:
        problem, code = f"could not be reached ({type(err).__name__})", "connection_failed"
    # Raised out here, so that the httpx error is not even the context of ours.
    raise Unavailable(f"{provider} {problem}.", code=code)


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


def load_object(body: bytes, provider: str) -> dict[str, Any]:
    """The JSON object of a good answer. Raises Unavailable for anything else."""
    try:
        document = load_json(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Unavailable(f"{provider}'s answer is not a JSON object.", code="broken_answer")
    return document


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
