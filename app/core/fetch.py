"""One HTTP request, bounded in time and size, and the reading of its response.

Errors of httpx hold the request, and with it its address, tokens and keys. `fetch` raises FetchFailed instead,
which holds none of these and is not chained to the error of httpx.
"""

import asyncio
import json
import os
import socket
import ssl
import zlib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import orjson

from app.core.backoff import LONGEST_RETRY_AFTER_SECONDS
from app.core.clock import utcnow
from app.core.http import TargetRefused, httpx

_CONNECT_SECONDS = 10.0
_LAST_PORT = 65_535
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32

FetchCode = Literal["timeout", "too_large", "refused", "dns", "tls", "connect", "broken"]
Stage = Literal["connect", "send", "receive"]


@dataclass(frozen=True, slots=True)
class Response:
    """A response of any status. `body` is decoded unless `fetch` was called with `decode=False`."""

    status: int
    headers: httpx.Headers = field(repr=False)
    body: bytes = field(repr=False)

    def json_object(self) -> dict[str, Any] | None:
        """The JSON object in the body, or None for anything else."""
        return load_object(self.body)


class FetchFailed(Exception):
    """A request without a complete response.

    `code`: `timeout`, `too_large`, `refused` (the target is not public), `dns`, `tls`, `connect` (no connection, or
    not an address that one can be made to), `broken` (closed before the response was complete, or not HTTP).
    `stage`: how far the request got. `connect` and `send` mean that the server did not receive it completely;
    `receive` means that it may have, which is also assumed when the deadline passes.
    `cause`: the class name of the underlying error.
    `reason`: a few words for people, without the address, the request or the response.
    `status`, `headers`: those of the response, where it had begun.
    """

    def __init__(
        self,
        code: FetchCode,
        reason: str,
        *,
        cause: str,
        stage: Stage = "receive",
        status: int | None = None,
        headers: httpx.Headers | None = None,
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.cause = cause
        self.stage = stage
        self.status = status
        self.headers = headers if headers is not None else httpx.Headers()


class _TooLarge(Exception):
    pass


async def fetch(
    client: httpx.AsyncClient,
    method: str,
    url: str | httpx.URL,
    *,
    max_bytes: int,
    deadline_seconds: float,
    headers: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
    document: Any = None,
    content: bytes | None = None,
    auth: httpx.Auth | None = None,
    decode: bool = True,
    truncate: bool = False,
    read_body_of: Container[int] | None = None,
    may_be_silent: bool = False,
) -> Response:
    """Send one request and read its response, whatever its status. Redirects are not followed.

    `deadline_seconds` covers everything from connecting to the last byte, so that a server that sends one byte at
    a time cannot hold a worker. `max_bytes` bounds the body before and after decompression; with `truncate`, a
    longer body is cut there instead of being an error. The body is `form`, or `document` as JSON, or `content`.

    `decode=False` leaves the body compressed. `read_body_of`: statuses whose body is wanted; others get an empty one.
    `may_be_silent`: the server may take the whole deadline for its first byte, where the client's own limit between
    two bytes is shorter.
    Raises FetchFailed.
    """
    timeout: Any = httpx.USE_CLIENT_DEFAULT
    if may_be_silent:
        timeout = httpx.Timeout(deadline_seconds, connect=min(_CONNECT_SECONDS, deadline_seconds))
    started: httpx.Response | None = None
    try:
        target = httpx.URL(url)
        if (target.port or 0) > _LAST_PORT:
            raise httpx.InvalidURL("the port is too high")  # noqa: TRY301 - the kernel's error is no httpx error
        async with (
            asyncio.timeout(deadline_seconds),
            client.stream(
                method,
                target,
                headers=headers,
                params=params,
                data=form,
                json=document,
                content=content,
                auth=auth,
                follow_redirects=False,
                timeout=timeout,
            ) as started,
        ):
            body = b""
            if read_body_of is None or started.status_code in read_body_of:
                body = await _read_body(started, max_bytes, decode=decode, truncate=truncate)
            return Response(started.status_code, started.headers, body)
    except (
        TimeoutError,
        TargetRefused,
        _TooLarge,
        httpx.HTTPError,
        httpx.InvalidURL,
        httpx.StreamError,
        UnicodeError,
        OSError,
    ) as err:
        code, reason = _classify(err)
        cause, stage = type(err).__name__, _stage(err)
    # Raised outside of the handler, so that the error of httpx is not even the context of this one.
    raise FetchFailed(
        code,
        reason,
        cause=cause,
        stage=stage,
        status=started.status_code if started is not None else None,
        headers=started.headers if started is not None else None,
    )


async def _read_body(response: httpx.Response, limit: int, *, decode: bool, truncate: bool) -> bytes:
    """The body. Decompression stops at the limit: a few kilobytes could become gigabytes."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower() if decode else ""
    if "," in encoding:
        raise _TooLarge  # compressed more than once: its size is not known before the last step
    decoder = zlib.decompressobj(_GZIP_OR_ZLIB) if encoding in {"gzip", "x-gzip", "deflate"} else None
    chunks: list[bytes] = []
    size = received_size = 0
    async for received in response.aiter_raw():
        chunk = received
        received_size += len(received)
        if decoder is not None:
            try:
                chunk = decoder.decompress(received, limit - size + 1)
            except zlib.error:
                raise httpx.DecodingError("broken compression") from None
        size += len(chunk)
        if truncate and size >= limit:
            chunks.append(chunk[: len(chunk) - (size - limit)])
            break
        if size > limit or received_size > limit:
            raise _TooLarge
        chunks.append(chunk)
    return b"".join(chunks)


def _classify(err: Exception) -> tuple[FetchCode, str]:
    """Return the code and the reason of a failure, without the error's own text, which may name addresses."""
    if isinstance(err, TimeoutError | httpx.TimeoutException):
        return "timeout", "no complete response in time"
    if isinstance(err, _TooLarge):
        return "too_large", "the response is too large"
    if isinstance(err, TargetRefused):
        return "refused", str(err)
    if isinstance(err, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return "connect", "the address is not valid"
    causes = list(_causes(err))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "tls", f"the certificate is not valid ({cause.verify_message})"
        if isinstance(cause, ssl.SSLError):
            return "tls", "no secure connection could be made"
        if isinstance(cause, socket.gaierror | UnicodeError):
            return "dns", "the host name does not resolve"
    if isinstance(err, httpx.ConnectError):
        number = next((one.errno for one in causes if isinstance(one, OSError) and one.errno), None)
        return "connect", f"no connection ({os.strerror(number)})" if number else "no connection"
    return "broken", f"broken off before the response was complete ({type(err).__name__})"


def _stage(err: Exception) -> Stage:
    if isinstance(
        err,
        httpx.ConnectError
        | httpx.ConnectTimeout
        | httpx.PoolTimeout
        | httpx.InvalidURL
        | httpx.UnsupportedProtocol
        | TargetRefused
        | UnicodeError,
    ):
        return "connect"
    return "send" if isinstance(err, httpx.WriteError | httpx.WriteTimeout) else "receive"


def _causes(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        if isinstance(err, BaseExceptionGroup):
            for inner in err.exceptions:
                yield from _causes(inner)
        err = err.__cause__ or err.__context__


def load_json(body: bytes) -> Any:
    """The JSON value in `body`.

    Broken characters are replaced, so that one bad title does not hide a page.

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


def load_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in `body`, or None for anything else."""
    try:
        document = load_json(body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `Retry-After` (RFC 9110 10.2.3: seconds, or an HTTP date), at most a day.

    A date counts from the response's own `Date`, so that a wrong clock on either side does no harm.
    """
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value), LONGEST_RETRY_AFTER_SECONDS)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    try:
        now = parsedate_to_datetime(headers.get("Date", ""))
    except ValueError:
        now = utcnow()
    # "-0000" as zone makes the parser return a naive time, which is in UTC too.
    seconds = (
        until.replace(tzinfo=until.tzinfo or UTC) - now.replace(tzinfo=now.tzinfo or UTC)
    ).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)
