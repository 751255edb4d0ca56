"""Events that leave the window: what moved is followed, and only what the provider says is gone is deleted.

See docs/reference/http-api.md, "Deleted and moved events".
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from limits import RateLimitItemPerMinute
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import Response

from app.core.clock import isoformat, utcnow
from app.core.db import Sessions, transaction
from app.core.http import httpx
from app.credentials import budgets
from app.models import Calendar, CalendarEvent
from app.providers import single_reads
from app.settings import Settings
from app.sync import engine as sync_engine
from app.sync.engine import SyncEngine
from tests import factories
from tests.conftest import TestProject
from tests.fakes.google_store import instance_id
from tests.fakes.microsoft import FakeMicrosoft
from tests.fakes.microsoft_store import occurrence_id
from tests.fakes.server import serve
from tests.flows.conftest import GoogleCalendarUnderTest

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
ZOOM = "https://zoom.us/j/5551112222"


def in_days(days: float) -> datetime:
    return utcnow().replace(microsecond=0, second=0) + days * DAY


@dataclass
class Story:
    """One calendar at a provider, whose answers are always complete: what is not in them has to be asked for."""

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
    """The next answer is a complete one."""

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
        answer = await self.api.post("/api/v1/bots", json=body)
        assert answer.status_code == 201, answer.text
        bot_id: str = answer.json()["id"]
        return bot_id

    async def join_at(self, bot_id: str) -> str | None:
        answer = await self.api.get(f"/api/v1/bots/{bot_id}")
        if answer.status_code == 404:
            return None
        assert answer.json()["state"] == "scheduled"
        at: str = answer.json()["join_at"]
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
            await self.answer(Request(scope))(scope, receive, send)

    def answer(self, _request: Request) -> Response:
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


@pytest.fixture(params=["google", "microsoft", "feed"])
def story(request: pytest.FixtureRequest) -> Story:
    told: Story = request.getfixturevalue(f"{request.param}_calendar")
    return told


@pytest.fixture
async def google_calendar(
    google: GoogleCalendarUnderTest, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> Story:
    monkeypatch.setattr(sync_engine, "_FULL_ROUND_AGAIN_AFTER", timedelta(0))
    return google_story(google, api)


@pytest.fixture
async def fake_microsoft(settings: Settings) -> AsyncIterator[FakeMicrosoft]:
    fake = FakeMicrosoft()
    async with serve(fake) as url:
        settings.microsoft_graph_base_url = f"{url}/v1.0"
        settings.microsoft_oauth_token_url = f"{url}/common/oauth2/v2.0/token"
        yield fake


@pytest.fixture
async def microsoft_calendar(
    fake_microsoft: FakeMicrosoft,
    settings: Settings,
    sessions: Sessions,
    project: TestProject,
    api: httpx.AsyncClient,
) -> AsyncIterator[Story]:
    fake = fake_microsoft
    calendar_id = await factories.add_calendar(
        sessions,
        settings,
        project.id,
        platform="microsoft",
        client_id=fake.client_id,
        secrets={"client_secret": fake.client_secret, "refresh_token": fake.refresh_token},
    )
    async with factories.sync_engine(settings, sessions) as engine:
        yield microsoft_story(fake, sessions, engine, calendar_id, api)


@pytest.fixture
async def feed_calendar(
    settings: Settings, sessions: Sessions, project: TestProject, api: httpx.AsyncClient
) -> AsyncIterator[Story]:
    feed = Feed()
    async with serve(feed) as url, factories.sync_engine(settings, sessions) as engine:
        calendar_id = await factories.add_calendar(
            sessions, settings, project.id, platform="ics", secrets={"feed_url": f"{url}/secret.ics"}
        )
        yield Story(
            sessions,
            engine,
            calendar_id,
            api,
            add=feed.add,
            move=feed.move,
            delete=feed.delete,
            add_series=feed.add_series,
            change_rule=feed.change_rule,
            instance=feed.instance,
            forget=lambda: None,
        )


# --- moved, deleted, shortened: every provider --------------------------------------------------------------


@pytest.mark.parametrize("days", [45, -5], ids=["ahead", "into the past"])
async def test_an_event_that_moves_beyond_the_window_is_followed(story: Story, days: float) -> None:
    moved, kept = story.add(in_days(2)), story.add(in_days(2))
    await story.sync()
    before = (await story.events())[moved]
    bot = await story.add_bot(moved)
    to, back = in_days(days), in_days(3)
    story.move(moved, to)
    await story.sync()
    after = (await story.events())[moved]
    assert (after.id, after.is_deleted) == (before.id, False)
    assert (after.start_time, after.end_time) == (to, to + HOUR)
    assert after.updated_at > before.updated_at
    # Nobody can join what is over.
    assert await story.join_at(bot) == (isoformat(to) if days > 0 else None)
    assert (await story.events())[kept].updated_at < after.updated_at
    # It stays so, and nothing more is asked about it.
    await story.sync()
    assert (await story.events())[moved].updated_at == after.updated_at
    # And comes back as the same event.
    story.move(moved, back)
    await story.sync()
    assert (await story.events())[moved].id == before.id
    assert await story.join_at(bot) == (isoformat(back) if days > 0 else None)
    assert (await story.row()).held_back_ids is None


async def test_a_deleted_event_is_deleted_at_once(story: Story) -> None:
    gone, kept = story.add(in_days(2)), story.add(in_days(3))
    await story.sync()
    bot = await story.add_bot(gone)
    story.delete(gone)
    await story.sync()
    assert await story.live() == {kept}
    assert await story.join_at(bot) is None


async def test_an_instance_moves_beyond_the_window(story: Story) -> None:
    start = in_days(1)
    series = story.add_series(start, "FREQ=DAILY;COUNT=5")
    await story.sync()
    moved = story.instance(series, start + 2 * DAY)
    assert len(await story.live()) == 5
    to = in_days(60)
    story.move(moved, to)
    await story.sync()
    event = (await story.events())[moved]
    assert (event.is_deleted, event.start_time) == (False, to)
    assert (event.recurring_event_id, event.original_start_time) == (series, start + 2 * DAY)
    assert len(await story.live()) == 5


async def test_the_instances_that_a_shortened_series_loses_are_deleted(story: Story) -> None:
    start = in_days(1)
    series = story.add_series(start, "FREQ=DAILY;COUNT=7")
    await story.sync()
    story.change_rule(series, "FREQ=DAILY;COUNT=4")
    await story.sync()
    assert await story.live() == {story.instance(series, start + n * DAY) for n in range(4)}


async def test_what_is_deleted_beyond_the_window_is_found_out_when_the_window_gets_there(
    story: Story,
) -> None:
    moved = story.add(in_days(2))
    for days in (3, 4, 5):
        story.add(in_days(days))
    await story.sync()
    story.move(moved, in_days(45))
    await story.sync()
    assert moved in await story.live()
    story.delete(moved)
    await story.sync()
    story.engine._settings.calendar_sync_window_future_days = 60
    await story.sync()
    assert moved not in await story.live()


async def test_a_single_event_that_is_made_a_series_is_no_event_any_more(
    google: GoogleCalendarUnderTest, google_calendar: Story
) -> None:
    event = google_calendar.add(in_days(2))
    await google_calendar.sync()
    del google.fake.calendar().items[event]
    start = in_days(3)
    google.fake.add_series(start=start, end=start + HOUR, rrule="FREQ=DAILY;COUNT=4", series_id=event)
    await google_calendar.sync()
    assert await google_calendar.live() == {instance_id(event, start + n * DAY) for n in range(4)}


async def test_a_single_event_that_is_made_a_series_is_no_event_any_more_at_microsoft(
    fake_microsoft: FakeMicrosoft, microsoft_calendar: Story
) -> None:
    event = microsoft_calendar.add(in_days(2))
    await microsoft_calendar.sync()
    del fake_microsoft.calendar().items[event]
    start = in_days(3)
    fake_microsoft.add_series(start=start, end=start + HOUR, rrule="FREQ=DAILY;COUNT=4", series_id=event)
    await microsoft_calendar.sync()
    assert await microsoft_calendar.live() == {occurrence_id(event, start + n * DAY) for n in range(4)}


# --- how much is asked, and what happens meanwhile ----------------------------------------------------------


async def test_a_deleted_series_is_asked_for_once(
    google: GoogleCalendarUnderTest, google_calendar: Story
) -> None:
    series = google_calendar.add_series(in_days(1), "FREQ=DAILY;COUNT=9")
    for days in range(12):
        google_calendar.add(in_days(days + 0.5))
    await google_calendar.sync()
    google.fake.delete_series(series)
    await google_calendar.sync()
    assert len(await google_calendar.live()) == 12
    assert [r.path.rpartition("/")[2] for r in google.fake.requests_to("events.get")] == [series]


async def test_a_mass_is_asked_for_in_parts(
    google: GoogleCalendarUnderTest, google_calendar: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_reads, "MOST_READS", 4)
    events = [google_calendar.add(in_days(1 + n / 10)) for n in range(40)]
    await google_calendar.sync()
    for n, event in enumerate(events[:10]):
        if n % 2:
            google_calendar.move(event, in_days(50))
        else:
            google_calendar.delete(event)
    google.fake.expire_tokens()
    sizes = []
    for _ in range(3):
        google.fake.requests.clear()
        await factories.sync_now(google.engine, google.sessions, google.id)
        sizes.append(len(google.fake.requests_to("events.get")))
        row = await google.row()
        # As long as something is unread, the next round is a full one, and soon.
        assert (row.sync_cursor is None) == (len(sizes) < 3)
        if row.sync_cursor is None:
            assert row.next_sync_at < utcnow() + timedelta(seconds=61)
    assert sizes == [4, 4, 2]
    assert await google_calendar.live() == {*events[10:], *events[1:10:2]}


async def test_a_mass_of_deletions_waits_for_a_second_answer_and_then_goes_on_in_parts(
    google: GoogleCalendarUnderTest, google_calendar: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_reads, "MOST_READS", 4)
    events = [google_calendar.add(in_days(1 + n / 10)) for n in range(12)]
    await google_calendar.sync()
    for event in events[:10]:
        google_calendar.delete(event)
    google.fake.expire_tokens()
    await factories.sync_now(google.engine, google.sessions, google.id)
    assert len(await google_calendar.live()) == 12
    google.settings.calendar_shrink_confirm_seconds = 0
    left = []
    for _ in range(3):
        await factories.sync_now(google.engine, google.sessions, google.id)
        left.append(len(await google_calendar.live()))
    assert left == [8, 4, 2]
    assert (await google.row()).held_back_ids is None


@pytest.mark.parametrize("route", ["events.get"])
@pytest.mark.parametrize(("status", "reason"), [(429, "rateLimitExceeded"), (503, "backendError")])
async def test_what_cannot_be_asked_for_now_stays_and_is_asked_for_later(
    google: GoogleCalendarUnderTest, google_calendar: Story, route: str, status: int, reason: str
) -> None:
    moved, gone = google_calendar.add(in_days(2)), google_calendar.add(in_days(3))
    kept = google_calendar.add(in_days(4))
    await google_calendar.sync()
    to = in_days(50)
    google_calendar.move(moved, to)
    google_calendar.delete(gone)
    new = google_calendar.add(in_days(5))
    google.fake.expire_tokens()
    google.fake.inject_fault(route, status, reason, count=100)
    for _ in range(2):
        await factories.sync_now(google.engine, google.sessions, google.id)
        assert await google_calendar.live() == {moved, gone, kept, new}
        row = await google.row()
        assert (row.state, row.sync_failing_since, row.sync_cursor) == ("connected", None, None)
        google.settings.calendar_shrink_confirm_seconds = 0
    google.fake.clear_faults()
    await factories.sync_now(google.engine, google.sessions, google.id)
    assert await google_calendar.live() == {moved, kept, new}
    assert (await google_calendar.events())[moved].start_time == to


async def test_the_budget_of_the_account_bounds_it(
    google: GoogleCalendarUnderTest, google_calendar: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [google_calendar.add(in_days(1 + n / 10)) for n in range(20)]
    await google_calendar.sync()
    for event in events[:8]:
        google_calendar.delete(event)
    google.fake.expire_tokens()
    google.fake.requests.clear()
    # Two requests for the two lists, one of them refused with 410, and the rest for single events.
    monkeypatch.setitem(budgets._USER, "google", RateLimitItemPerMinute(7))
    await factories.sync_now(google.engine, google.sessions, google.id)
    assert 1 <= len(google.fake.requests_to("events.get")) <= 5
    row = await google.row()
    assert (row.sync_failing_since, row.sync_cursor) == (None, None)
    assert 15 <= len(await google_calendar.live()) < 20


async def test_an_event_in_the_window_that_a_list_leaves_out_is_deleted_once_a_second_list_does(
    google: GoogleCalendarUnderTest, google_calendar: Story
) -> None:
    events = [google_calendar.add(in_days(n + 1)) for n in range(4)]
    await google_calendar.sync()
    bot = await google_calendar.add_bot(events[0])

    async def sync_without(event_id: str) -> None:
        google.fake.expire_tokens()
        items = [google.fake.calendar().items[one].data() for one in events if one != event_id]
        body = orjson.dumps({"kind": "calendar#events", "items": items, "nextSyncToken": "x"})
        after = 1 if (await google.row()).sync_cursor else 0
        google.fake.inject_fault("events.list", 200, body=body, content_type="application/json", after=after)
        await factories.sync_now(google.engine, google.sessions, google.id)

    await sync_without(events[0])
    assert len(await google_calendar.live()) == 4
    assert (await google.row()).sync_cursor is None
    await google_calendar.sync()
    assert (await google.row()).held_back_ids is None
    await sync_without(events[0])
    google.settings.calendar_shrink_confirm_seconds = 0
    await sync_without(events[0])
    assert await google_calendar.live() == set(events[1:])
    assert await google_calendar.join_at(bot) is None


async def test_no_transaction_is_open_while_single_events_are_asked_for(
    google: GoogleCalendarUnderTest, google_calendar: Story
) -> None:
    event = google_calendar.add(in_days(2))
    await google_calendar.sync()
    google_calendar.delete(event)
    google.fake.inject_fault("events.get", delay=0.5)
    syncing = asyncio.create_task(google_calendar.sync())
    while not google.fake.requests_to("events.get"):
        await asyncio.sleep(0.005)
    async with google.sessions() as session:
        idle = await session.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'"
            )
        )
    await syncing
    assert idle == 0
    assert await google_calendar.live() == set()


async def test_whoever_lost_the_lease_meanwhile_writes_nothing(
    google: GoogleCalendarUnderTest, google_calendar: Story
) -> None:
    event = google_calendar.add(in_days(2))
    await google_calendar.sync()
    google_calendar.delete(event)
    google.fake.inject_fault("events.get", delay=0.5)
    syncing = asyncio.create_task(google_calendar.sync())
    while not google.fake.requests_to("events.get"):
        await asyncio.sleep(0.005)
    async with transaction(google.sessions) as session:
        await session.execute(text("UPDATE calendars SET lease_token = 'another'"))
    await syncing
    assert await google_calendar.live() == {event}


async def test_the_mailboxs_concurrency_limit_is_kept(
    fake_microsoft: FakeMicrosoft, microsoft_calendar: Story
) -> None:
    fake_microsoft.latency = 0.01
    events = [microsoft_calendar.add(in_days(1 + n / 10)) for n in range(20)]
    await microsoft_calendar.sync()
    for event in events[:8]:
        microsoft_calendar.move(event, in_days(45))
    await microsoft_calendar.sync()
    assert len(fake_microsoft.requests_to("events.get")) == 8
    assert fake_microsoft.mailbox(None).most_in_flight == 2
    assert await microsoft_calendar.live() == set(events)
    # What was read singly is the same as in a list.
    before = await microsoft_calendar.events()
    for event in events[:8]:
        microsoft_calendar.move(event, in_days(1))
    await microsoft_calendar.sync()
    for event in events[:8]:
        assert before[event].raw["start"] != (await microsoft_calendar.events())[event].raw["start"]
        assert before[event].raw.keys() == (await microsoft_calendar.events())[event].raw.keys()


async def test_an_event_that_moves_to_another_calendar_of_the_mailbox_leaves_this_one(
    fake_microsoft: FakeMicrosoft, microsoft_calendar: Story, settings: Settings
) -> None:
    other = fake_microsoft.add_calendar("Other")
    moved, kept = microsoft_calendar.add(in_days(2)), microsoft_calendar.add(in_days(3))
    await microsoft_calendar.sync()
    fake_microsoft.move_to_calendar(moved, to=other)
    await microsoft_calendar.sync()
    settings.calendar_shrink_confirm_seconds = 0
    await microsoft_calendar.sync()
    assert await microsoft_calendar.live() == {kept}


# --- what a deleted event shows -------------------------------------------------------------------------------


@pytest.mark.parametrize(("style", "status"), [("full", "cancelled"), ("bare", "confirmed")])
async def test_a_cancelled_events_raw_is_the_cancelled_one_where_there_is_one(
    google: GoogleCalendarUnderTest, style: Any, status: str
) -> None:
    google.fake.tombstone_style = style
    event = google.add("called off")
    await google.sync()
    google.fake.delete_event(event)
    await google.sync()
    row = (await google.events())[event]
    assert (row.is_deleted, row.name, row.raw["status"]) == (True, "called off", status)
    assert row.raw["summary"] == "called off"
    assert row.start_time is not None


async def test_a_cancelled_event_found_by_a_single_read_shows_it(
    google: GoogleCalendarUnderTest, google_calendar: Story
) -> None:
    event = google_calendar.add(in_days(2))
    await google_calendar.sync()
    google_calendar.delete(event)
    await google_calendar.sync()
    row = (await google_calendar.events())[event]
    assert (row.is_deleted, row.raw["status"]) == (True, "cancelled")
    # And is the old one again when it comes back.
    google.fake.update_event(event, status="confirmed")
    await google_calendar.sync()
    row = (await google_calendar.events())[event]
    assert (row.is_deleted, row.raw["status"]) == (False, "confirmed")
