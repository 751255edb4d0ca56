"""One request to a provider: bounded in time and size, its failures told without addresses or headers.

httpx errors carry the request, and with it the token: none of them is let out of this module.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.core.http import BodyTooLarge, httpx, read_capped
from app.core.http_json import load_json
from app.providers.base import Unavailable


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


def load_object(body: bytes, provider: str) -> dict[str, Any]:
    """The JSON object of a good answer. Raises Unavailable for anything else."""
    try:
        document = load_json(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Unavailable(f"{provider}'s answer is not a JSON object.", code="broken_answer")
    return document
