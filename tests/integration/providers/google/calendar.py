"""A Google calendar at the fake, and steps that its tests share."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from app.core.http import httpx
from app.events.data import RemoteEvent, Window
from app.providers.base import (
    CalendarProvider,
    ChangePage,
    FreshToken,
)
from app.providers.google.oauth import refresh_access_token
from app.providers.google.sync import GoogleCalendar
from tests.fakes.google import FakeGoogle

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
WINDOW = Window(NOW - timedelta(days=1), NOW + timedelta(days=28))
HOUR = timedelta(hours=1)


class Tokens:
    """A TokenSource that keeps one token and asks the token endpoint for the next."""

    def __init__(self, client: httpx.AsyncClient, url: str, fake: FakeGoogle) -> None:
        self.client = client
        self.url = url
        self.fake = fake
        self.current: str | None = None
        self.given: list[str] = []

    async def get(self, *, rejected: str | None = None) -> str:
        if self.current is None or self.current == rejected:
            self.current = (await self.refresh()).access_token
            self.given.append(self.current)
        return self.current

    async def refresh(self) -> FreshToken:
        return await refresh_access_token(
            self.client,
            token_url=f"{self.url}/token",
            client_id=self.fake.client_id,
            client_secret=self.fake.client_secret,
            refresh_token=self.fake.refresh_token,
        )


@dataclass
class RoundResult:
    """The pages of one round."""

    pages: list[ChangePage]

    @property
    def events(self) -> dict[str, RemoteEvent]:
        return {event.platform_uuid: event for page in self.pages for event in page.events}

    @property
    def removed(self) -> set[str]:
        return {event_id for page in self.pages for event_id in page.removed}

    @property
    def cursor(self) -> str | None:
        return self.pages[-1].next_cursor


@dataclass
class World:
    fake: FakeGoogle
    url: str
    client: httpx.AsyncClient
    tokens: Tokens

    def calendar(self, calendar_id: str | None = None, **options: Any) -> GoogleCalendar:
        options = {"client": self.client, "tokens": self.tokens, **options}
        return GoogleCalendar(base_url=self.url, calendar_id=calendar_id, **options)

    async def round(
        self,
        cursor: str | None = None,
        *,
        calendar_id: str | None = None,
        after_page: Callable[[], None] | None = None,
        **options: Any,
    ) -> RoundResult:
        calendar: CalendarProvider = self.calendar(calendar_id, **options)
        pages = []
        async for page in calendar.changes(cursor=cursor, window=WINDOW):
            pages.append(page)
            if after_page is not None:
                after_page()
        assert [page.is_last for page in pages] == [False] * (len(pages) - 1) + [True]
        assert {page.is_snapshot for page in pages} == {cursor is None}
        assert all(page.next_cursor is None for page in pages[:-1])
        return RoundResult(pages)

    async def cursor(self) -> str:
        cursor = (await self.round()).cursor
        assert cursor is not None
        return cursor


def add(fake: FakeGoogle, *, days: float = 1, **fields: Any) -> str:
    return fake.add_event(start=NOW + timedelta(days=days), end=NOW + timedelta(days=days) + HOUR, **fields)


def respond_with(fake: FakeGoogle, document: Any, *, count: int = 1) -> None:
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    fake.inject_fault("events.list", 200, count=count, body=body, content_type="application/json")
