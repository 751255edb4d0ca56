"""A Microsoft calendar at the fake, and steps that its tests share."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from app.core.http import httpx
from app.events.data import RemoteEvent, Window
from app.providers.base import (
    CalendarProvider,
    ChangePage,
    FreshToken,
)
from app.providers.microsoft.oauth import refresh_access_token
from app.providers.microsoft.sync import MicrosoftCalendar
from tests.fakes.microsoft import FakeMicrosoft, GraphRequest
from tests.fakes.microsoft_store import occurrence_id

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
WINDOW = Window(NOW - timedelta(days=1), NOW + timedelta(days=28))
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


class Tokens:
    """A TokenSource that keeps one token and asks the token endpoint for the next; keeps what rotates."""

    def __init__(self, client: httpx.AsyncClient, url: str, fake: FakeMicrosoft) -> None:
        self.client = client
        self.url = url
        self.fake = fake
        self.refresh_token = fake.refresh_token
        self.current: str | None = None
        self.given: list[str] = []

    async def get(self, *, rejected: str | None = None) -> str:
        if self.current is None or self.current == rejected:
            self.current = (await self.refresh()).access_token
            self.given.append(self.current)
        return self.current

    async def refresh(self, **changes: str) -> FreshToken:
        fresh = await refresh_access_token(
            self.client,
            **{
                "token_url": f"{self.url}/common/oauth2/v2.0/token",
                "client_id": self.fake.client_id,
                "client_secret": self.fake.client_secret,
                "refresh_token": self.refresh_token,
                **changes,
            },
        )
        self.refresh_token = fresh.refresh_token or self.refresh_token
        return fresh


@dataclass
class RoundResult:
    """The pages of one round."""

    pages: list[ChangePage]

    @property
    def events(self) -> dict[str, RemoteEvent]:
        return {event.platform_uuid: event for page in self.pages for event in page.events}

    @property
    def kept(self) -> set[str]:
        """The ids that the engine keeps of a snapshot."""
        kept: set[str] = set()
        for page in self.pages:
            kept |= {event.platform_uuid for event in page.events}
            kept -= {*page.removed, *page.unlisted}
        return kept

    @property
    def is_snapshot(self) -> bool:
        return self.pages[0].is_snapshot

    @property
    def cursor(self) -> str | None:
        return self.pages[-1].next_cursor


@dataclass
class World:
    fake: FakeMicrosoft
    url: str
    client: httpx.AsyncClient
    tokens: Tokens

    def calendar(self, calendar_id: str | None = None, **options: Any) -> MicrosoftCalendar:
        options = {"client": self.client, "tokens": self.tokens, "base_url": f"{self.url}/v1.0", **options}
        return MicrosoftCalendar(calendar_id=calendar_id, **options)

    async def round(
        self,
        cursor: str | None = None,
        *,
        calendar_id: str | None = None,
        window: Window = WINDOW,
        **options: Any,
    ) -> RoundResult:
        calendar: CalendarProvider = self.calendar(calendar_id, **options)
        pages = [page async for page in calendar.changes(cursor=cursor, window=window)]
        assert [page.is_last for page in pages] == [False] * (len(pages) - 1) + [True]
        assert len({page.is_snapshot for page in pages}) == 1
        assert all(page.next_cursor is None for page in pages[:-1])
        return RoundResult(pages)

    async def cursor(self, **options: Any) -> str:
        cursor = (await self.round(**options)).cursor
        assert cursor is not None
        return cursor

    def truth(self, **where: Any) -> set[str]:
        return set(self.fake.window_events(WINDOW.start, WINDOW.end, **where))


def add(fake: FakeMicrosoft, *, days: float = 1, **fields: Any) -> str:
    return fake.add_event(start=NOW + timedelta(days=days), end=NOW + timedelta(days=days) + HOUR, **fields)


def add_daily(fake: FakeMicrosoft, *, count: int = 5, **fields: Any) -> tuple[str, list[str]]:
    """A series and the ids of its occurrences."""
    start = NOW + 2 * HOUR
    series = fake.add_series(start=start, end=start + HOUR, rrule=f"FREQ=DAILY;COUNT={count}", **fields)
    return series, [occurrence_id(series, start + number * DAY) for number in range(count)]


def on_nth(route: str, number: int, action: Callable[[], object]) -> Callable[[GraphRequest], None]:
    """Run an action when the nth request to a route comes in."""
    count = 0

    def look(request: GraphRequest) -> None:
        nonlocal count
        if request.route == route:
            count += 1
            if count == number:
                action()

    return look
