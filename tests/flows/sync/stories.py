"""One calendar at any provider, changed and synced by the same steps."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from app.core.clock import utcnow
from app.core.db import Sessions
from app.core.http import httpx
from app.models import Calendar, CalendarEvent
from app.sync.engine import SyncEngine
from tests import factories
from tests.fakes.google_store import instance_id
from tests.fakes.microsoft import FakeMicrosoft
from tests.fakes.microsoft_store import occurrence_id
from tests.flows.conftest import GoogleCalendarUnderTest

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
ZOOM = "https://zoom.us/j/5551112222"


def in_days(days: float) -> datetime:
    return utcnow().replace(microsecond=0, second=0) + days * DAY


@dataclass
class Story:
    """One calendar at a provider whose every list is complete.

    Events that a list leaves out have to be requested one by one.
    """

    sessions: Sessions
    engine: SyncEngine
    id: str
    api: httpx.AsyncClient
    add: Callable[[datetime], str]
    move: Callable[[str, datetime], None]
    delete: Callable[[str], None]
    add_series: Callable[[datetime, str], str]
    change_rule: Callable[[str, str], None]
    instance: Callable[[str, datetime], str]
    forget: Callable[[], None]
    """Make the next list a complete one."""

    async def sync(self) -> None:
        self.forget()
        await factories.sync_now(self.engine, self.sessions, self.id)

    async def row(self) -> Calendar:
        return await factories.load_calendar(self.sessions, self.id)

    async def events(self) -> dict[str, CalendarEvent]:
        return await factories.load_events(self.sessions, self.id)

    async def live(self) -> set[str]:
        return {key for key, event in (await self.events()).items() if not event.is_deleted}

    async def add_bot(self, platform_uuid: str) -> str:
        event = (await self.events())[platform_uuid]
        body = {"calendar_event_id": event.id, "bot_name": "Notetaker"}
        response = await self.api.post("/api/v1/bots", json=body)
        assert response.status_code == 201, response.text
        bot_id: str = response.json()["id"]
        return bot_id

    async def join_at(self, bot_id: str) -> str | None:
        response = await self.api.get(f"/api/v1/bots/{bot_id}")
        if response.status_code == 404:
            return None
        assert response.json()["state"] == "scheduled"
        at: str = response.json()["join_at"]
        return at


def google_story(google: GoogleCalendarUnderTest, api: httpx.AsyncClient) -> Story:
    fake = google.fake
    return Story(
        google.sessions,
        google.engine,
        google.id,
        api,
        add=lambda at: fake.add_event(start=at, end=at + HOUR, location=ZOOM),
        move=lambda event, at: fake.move(event, start=at, end=at + HOUR),
        delete=fake.delete_event,
        add_series=lambda at, rule: fake.add_series(start=at, end=at + HOUR, rrule=rule),
        change_rule=lambda series, rule: fake.update_series(series, rrule=rule),
        instance=instance_id,
        forget=fake.expire_tokens,
    )


def microsoft_story(
    fake: FakeMicrosoft, sessions: Sessions, engine: SyncEngine, calendar_id: str, api: httpx.AsyncClient
) -> Story:
    def touch() -> None:
        at = in_days(-20)
        fake.add_event(start=at, end=at + HOUR)

    return Story(
        sessions,
        engine,
        calendar_id,
        api,
        add=lambda at: fake.add_event(start=at, end=at + HOUR, location=ZOOM),
        move=lambda event, at: fake.move(event, start=at, end=at + HOUR),
        delete=fake.delete_event,
        add_series=lambda at, rule: fake.add_series(start=at, end=at + HOUR, rrule=rule),
        change_rule=lambda series, rule: fake.update_series(series, rrule=rule),
        instance=occurrence_id,
        forget=touch,
    )


class Feed:
    """A feed of single events and series, as an ASGI application."""

    def __init__(self) -> None:
        self.starts: dict[str, datetime] = {}
        self.rules: dict[str, str] = {}
        self.moved: dict[str, datetime] = {}

    def add(self, at: datetime) -> str:
        uid = f"event-{len(self.starts)}"
        self.starts[uid] = at
        return uid

    def add_series(self, at: datetime, rule: str) -> str:
        uid = self.add(at)
        self.rules[uid] = rule
        return uid

    def move(self, event: str, at: datetime) -> None:
        if event in self.starts:
            self.starts[event] = at
        else:
            self.moved[event] = at

    def delete(self, event: str) -> None:
        del self.starts[event]

    def change_rule(self, series: str, rule: str) -> None:
        self.rules[series] = rule

    @staticmethod
    def instance(series: str, slot: datetime) -> str:
        return f"{series}_{slot:%Y%m%dT%H%M%SZ}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self.respond(Request(scope))(scope, receive, send)

    def respond(self, _request: Request) -> Response:
        lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:test"]
        for uid, at in self.starts.items():
            rule = [f"RRULE:{self.rules[uid]}"] if uid in self.rules else []
            lines += self.event(uid, at, *rule)
        for event, at in self.moved.items():
            uid, _, slot = event.rpartition("_")
            if uid in self.starts:
                lines += self.event(uid, at, f"RECURRENCE-ID:{slot}")
        return Response("\r\n".join([*lines, "END:VCALENDAR", ""]), media_type="text/calendar")

    @staticmethod
    def event(uid: str, at: datetime, *more: str) -> list[str]:
        return [
            "BEGIN:VEVENT",
            f"UID:{uid}",
            f"DTSTART:{at.astimezone(UTC):%Y%m%dT%H%M%SZ}",
            "DURATION:PT1H",
            f"LOCATION:{ZOOM}",
            *more,
            "END:VEVENT",
        ]
