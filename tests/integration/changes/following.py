"""Writing events as a sync does, and clients that follow them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import select

from app.core.db import Session, Sessions, transaction
from app.core.http import httpx
from app.events.data import RemoteEvent, Unannounced, Window
from app.events.writer import apply_changes
from app.models import Calendar
from tests import factories

URL = "/api/v1/changes"
START = datetime(2026, 11, 20, 12, tzinfo=UTC)
_WINDOW = Window(START - timedelta(days=1), START + timedelta(days=28))


@dataclass(frozen=True)
class Ref:
    """A calendar as the writer takes it."""

    calendar_id: str
    project_id: str


def event(uid: str, name: str = "") -> RemoteEvent:
    end = START + timedelta(hours=1)
    return RemoteEvent(platform_uuid=uid, name=name or uid, start_time=START, end_time=end, raw="{}")


async def write_in(
    session: Session, sessions: Sessions, ref: Ref, events: Iterable[RemoteEvent], removed: Iterable[str] = ()
) -> None:
    """Write in the caller's transaction. `removed`: platform_uuids."""
    await session.execute(select(Calendar.id).where(Calendar.id == ref.calendar_id).with_for_update())
    stored = await factories.load_events(sessions, ref.calendar_id) if removed else {}
    await apply_changes(
        session,
        ref,
        list(events),
        window=_WINDOW,
        removed={stored[uid].id: None for uid in removed},
        earlier=Unannounced(),
        is_announced_now=False,
        bot_platforms=(),
    )


async def write(sessions: Sessions, ref: Ref, *names: str, removed: Iterable[str] = ()) -> None:
    """Write an event for each `uid` or `uid=name`, in one transaction."""
    events = [event(*text.split("=", 1)) for text in names]
    async with transaction(sessions) as session:
        await write_in(session, sessions, ref, events, removed)


async def page(api: httpx.AsyncClient, **query: Any) -> dict[str, Any]:
    response = await api.get(URL, params=query)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def short(body: dict[str, Any]) -> list[str]:
    """`created a`, for each result: its type without `event.`, and the event's name."""
    return [
        f"{result['type'].removeprefix('event.')} {result['event']['name']}" for result in body["results"]
    ]


@dataclass
class Message:
    """A Server-Sent Event, or a comment or an id alone, whose `data` is empty."""

    id: str | None = None
    event: str | None = None
    data: str = ""
    comments: list[str] = field(default_factory=list)

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.data)
        return found

    @property
    def short(self) -> str:
        return f"{(self.event or '').removeprefix('event.')} {self.result['event']['name']}"


async def messages(response: httpx.Response) -> AsyncIterator[Message]:
    """Parse a stream, block by block."""
    message = Message()
    async for line in response.aiter_lines():
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            yield message
            message = Message()
        elif not name:
            message.comments.append(value)
        elif name == "data":
            assert not message.data
            message.data = value
        elif name == "id":
            message.id = value
        elif name == "event":
            message.event = value


class Stream:
    """An open stream, whose messages a task collects."""

    def __init__(self) -> None:
        self.blocks: list[Message] = []
        self.has_begun = asyncio.Event()
        self._response: httpx.Response | None = None
        self.is_over = asyncio.Event()
        self.error: Exception | None = None

    @property
    def response(self) -> httpx.Response:
        assert self._response is not None
        return self._response

    @property
    def changes(self) -> list[Message]:
        return [block for block in self.blocks if block.data]

    @property
    def short(self) -> list[str]:
        return [block.short for block in self.changes]

    async def until(self, count: int, within: float = 10) -> None:
        """Wait for so many changes."""
        async with asyncio.timeout(within):
            while len(self.changes) < count:
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def streaming(
    url: str, api_key: str, *, headers: dict[str, str] | None = None, **query: Any
) -> AsyncIterator[Stream]:
    """Follow the stream at the base URL while the block runs. Entered when its first block has come."""
    stream = Stream()

    async def read() -> None:
        try:
            async with (
                httpx.AsyncClient(timeout=httpx.Timeout(10, read=40)) as client,
                client.stream(
                    "GET",
                    f"{url}{URL}/stream",
                    params=query,
                    headers={"Authorization": f"Bearer {api_key}", **(headers or {})},
                ) as response,
            ):
                stream._response = response
                if response.status_code != 200:
                    await response.aread()
                    return
                async for message in messages(response):
                    stream.blocks.append(message)
                    stream.has_begun.set()
        except httpx.TransportError as err:
            stream.error = err
        finally:
            stream.is_over.set()
            stream.has_begun.set()

    task = asyncio.create_task(read())
    try:
        async with asyncio.timeout(10):
            await stream.has_begun.wait()
        yield stream
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
