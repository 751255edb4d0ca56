"""ASGI middleware: request ids, access logs, metrics, errors of too large bodies, and HEAD."""

import re
import time
import uuid

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core import metrics

log = structlog.get_logger()

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_TOO_LARGE = b'{"error":"The body is too large."}'
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = {"/healthz", "/readyz", "/metrics"}


# Keys in the scope of a request.
_WAITED = "calbridge.waited"
_IS_HEAD = "calbridge.is_head"


def count_as_waiting(scope: Scope, seconds: float) -> None:
    """Note that the request only waited so long, which is not part of its measured time."""
    scope[_WAITED] = scope.get(_WAITED, 0.0) + seconds


def is_head(scope: Scope) -> bool:
    """Whether the request is a HEAD that is handled as GET."""
    return bool(scope.get(_IS_HEAD, False))


class RequestContext:
    """Adds a request id to the response and all log lines, and counts and logs the request.

    The id is the caller's X-Request-Id if it has an allowed form. The access line has the client's address (behind a
    proxy, as FORWARDED_ALLOW_IPS permits), and the project and key that app/api/deps.py binds. It has the path but not
    the query, which can hold tokens.

    Time that a request only waited for changes (`count_as_waiting`) is not part of the measured time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = sent.decode() if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        started = time.perf_counter()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            waited = scope.get(_WAITED, 0.0)
            took = time.perf_counter() - started - waited
            route = getattr(scope.get("route"), "path_format", None) or "unmatched"
            # Clients may send any word as the method, and a label must have few values.
            method = scope["method"] if scope["method"] in _METHODS else "other"
            metrics.HTTP_SECONDS.labels(method, route, str(status)).observe(took)
            if scope["path"] not in _QUIET:
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=round(took * 1000, 1),
                    client=scope["client"][0] if scope.get("client") else None,
                    **({"waited_ms": round(waited * 1000, 1)} if waited else {}),
                )
            structlog.contextvars.clear_contextvars()


class TooLargeAsJson:
    """Turns the plain text response of RequestBodyLimitMiddleware into JSON, like all other errors."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_plain = False

        async def send_json(message: Message) -> None:
            nonlocal is_plain
            if message["type"] == "http.response.start" and message["status"] == 413:
                headers = MutableHeaders(raw=message["headers"])
                is_plain = headers.get("content-type", "").startswith("text/plain")
                if is_plain:
                    headers["content-type"] = "application/json"
                    headers["content-length"] = str(len(_TOO_LARGE))
            elif message["type"] == "http.response.body" and is_plain:
                message = {**message, "body": _TOO_LARGE}
            await send(message)

        await self._app(scope, receive, send_json if scope["type"] == "http" else send)


def takes_head(path: str) -> bool:
    """Whether the path allows HEAD. The OAuth callback does not: its GET uses up the session."""
    return not path.startswith("/oauth/")


class HeadAsGet:
    """Handles HEAD as GET without a body (RFC 9110, section 9.3.2) on paths that `takes_head` allows."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or not takes_head(scope["path"]):
            await self._app(scope, receive, send)
            return
        is_over = False

        async def send_head(message: Message) -> None:
            nonlocal is_over
            if message["type"] == "http.response.start":
                await send(message)
            elif not is_over:
                # The response ends with the first part of the body, even if the body is long.
                is_over = True
                await send({"type": "http.response.body", "body": b""})

        as_get = {**scope, "method": "GET", _IS_HEAD: True}
        try:
            await self._app(as_get, receive, send_head)
        finally:
            if "route" in as_get:
                scope["route"] = as_get["route"]
