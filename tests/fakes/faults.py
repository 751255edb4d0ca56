"""What can go wrong on the way to a fake provider, on demand, and the record of its requests."""

import asyncio
import dataclasses
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from starlette.responses import Response


@dataclasses.dataclass(slots=True)
class Recorded:
    """One request. `path` is as it was on the wire, percent-encoding kept; `bytes_sent` counts the response's body."""

    route: str
    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]
    status: int | None = None
    bytes_sent: int = 0


@dataclasses.dataclass(slots=True)
class Fault:
    route: str
    count: int
    after: int
    status: int | None
    reason: str | None
    body: bytes | None
    content_type: str | None
    headers: Mapping[str, str]
    delay: float
    kind: str

    def to_response(self, error: Any) -> Response:
        """The response with its own body, else with `error` as JSON."""
        assert self.status is not None
        headers = dict(self.headers)
        if self.body is not None:
            return Response(self.body, self.status, headers, media_type=self.content_type or "text/html")
        return Response(orjson.dumps(error), self.status, headers, media_type="application/json")


class Faulty(ABC):
    """A base of fakes: `inject_fault`, and `serve` in place of the app."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def inject_fault(
        self,
        route: str,
        status: int | None = None,
        reason: str | None = None,
        *,
        count: int = 1,
        after: int = 0,
        body: bytes | None = None,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
        kind: str = "response",
    ) -> None:
        """The next `count` requests to `route` (`*`: to any), once `after` of them have passed, go wrong.

        `response`: `status` with the provider's error body for `reason`, or with `body`; without a status the request
        is only held up for `delay` seconds. `reset`: the connection is reset. `cut`: the response breaks off half way.
        `dribble`: one byte every 10 ms, without an end.
        """
        self._faults.append(
            Fault(route, count, after, status, reason, body, content_type, headers or {}, delay, kind)
        )

    def clear_faults(self) -> None:
        self._faults.clear()

    @abstractmethod
    def fault_response(self, fault: Fault) -> Response:
        """The response of `fault.to_response` with the error body of the provider."""

    async def serve(self, app: Any, recorded: Recorded, scope: Any, receive: Any, send: Any) -> None:
        """Respond by `app` or as the next fault says, and note the response in `recorded`."""

        async def counting_send(message: Any) -> None:
            if message["type"] == "http.response.start":
                recorded.status = message["status"]
            recorded.bytes_sent += len(message.get("body", b""))
            await send(message)

        fault = self._next_fault(recorded.route)
        if fault is not None:
            await asyncio.sleep(fault.delay)
            if fault.kind == "reset":
                _reset_connection(send)
                return
            if fault.kind == "dribble":
                await _dribble(receive, counting_send)
                return
            if fault.kind == "cut":
                await app(scope, receive, _cutting(counting_send, send))
                return
            if fault.status is not None:
                await self.fault_response(fault)(scope, receive, counting_send)
                return
        await app(scope, receive, counting_send)

    def _next_fault(self, route: str) -> Fault | None:
        for fault in self._faults:
            if fault.route not in {route, "*"}:
                continue
            if fault.after > 0:
                fault.after -= 1
                return None
            fault.count -= 1
            if fault.count <= 0:
                self._faults.remove(fault)
            return fault
        return None


def _reset_connection(send: Any) -> None:
    """uvicorn's `send` is a method of the object that holds the connection; ASGI itself has no way to do this."""
    transport = send.__self__.transport
    transport.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    transport.abort()


async def _dribble(receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    disconnected = asyncio.create_task(_until_disconnected(receive))
    try:
        while not disconnected.done():
            await send({"type": "http.response.body", "body": b" ", "more_body": True})
            await asyncio.sleep(0.01)
    finally:
        disconnected.cancel()


async def _until_disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _cutting(counting_send: Any, send: Any) -> Callable[[Any], Awaitable[None]]:
    """Lets half of the body through, then resets the connection."""

    async def cut(message: Any) -> None:
        if message["type"] == "http.response.body":
            body = message["body"]
            await counting_send(
                {"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True}
            )
            _reset_connection(send)
        else:
            await counting_send(message)

    return cut
