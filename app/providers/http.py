"""Requests to providers: errors, JSON objects, and a second attempt with a fresh token."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from app.core.fetch import FetchFailed, Response, fetch
from app.core.http import httpx
from app.providers.base import TokenSource, Unavailable


async def request(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    provider: str,
    max_bytes: int,
    deadline_seconds: float,
    headers: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
    document: Any = None,
) -> Response:
    """Send one request by `app.core.fetch.fetch`. `provider` is the name used in messages.

    Raises Unavailable with one of the codes `timeout`, `answer_too_large`, `connection_failed`.
    """
    try:
        return await fetch(
            client,
            method,
            url,
            max_bytes=max_bytes,
            deadline_seconds=deadline_seconds,
            headers=headers,
            params=params,
            form=form,
            document=document,
        )
    except FetchFailed as err:
        if err.code == "timeout":
            problem, code = "did not respond in time", "timeout"
        elif err.code == "too_large":
            problem, code = f"sent a response of more than {max_bytes} bytes", "answer_too_large"
        else:
            problem, code = f"could not be reached ({err.cause})", "connection_failed"
    raise Unavailable(f"{provider} {problem}.", code=code)


def require_object(response: Response, provider: str) -> dict[str, Any]:
    """The JSON object of a successful response. Raises Unavailable (`broken_answer`) for anything else."""
    document = response.json_object()
    if document is None:
        raise Unavailable(f"{provider}'s response is not a JSON object.", code="broken_answer")
    return document


def rejects_token(response: Response) -> bool:
    """Whether the provider does not accept the access token."""
    return response.status == 401


async def send_authorized(
    tokens: TokenSource,
    send: Callable[[str], Awaitable[Response]],
    *,
    is_about_token: Callable[[Response], bool] = rejects_token,
) -> Response:
    """The response to `send(token)`, sent once more with a fresh token if the provider rejects the first."""
    token = await tokens.get()
    response = await send(token)
    if is_about_token(response):
        response = await send(await tokens.get(rejected=token))
    return response
