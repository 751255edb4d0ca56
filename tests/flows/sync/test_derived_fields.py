"""busy_status, visibility, event_type and etag through upgrades, changes at the provider, and older processes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import Response

from app.core.db import Sessions, transaction
from app.core.http import httpx
from app.events import backfill
from app.events.derived import Derived
from app.models import CalendarEvent
from app.settings import Settings
from app.sync.backfill import fill_old_events
from app.sync.engine import SyncEngine
from migrations.revisions import upgrade_to_head
from tests import factories
from tests.conftest import TestProject
from tests.fakes.microsoft import FakeMicrosoft
from tests.fakes.server import serve
from tests.flows.conftest import GoogleCalendarUnderTest
from tests.flows.sync.stories import HOUR, Feed, Story, in_days

BEFORE = "8c41d07be2a5"  # the last revision without these columns
PLAIN, FREE, TENTATIVE, PRIVATE, HIDDEN = "plain", "free", "tentative", "private", "hidden"
EXPECTED = {
    PLAIN: ("busy", "default", "default"),
    FREE: ("free", "default", "default"),
    TENTATIVE: ("tentative", "default", "default"),
    PRIVATE: ("busy", "private", "default"),
    HIDDEN: ("free", "confidential", "default"),
}
LARGE = ["x" * 7_000] * 50  # `raw` over 256 KiB keeps no lists
WORDS: dict[str, dict[str, Any]] = {
    "google": {
        PLAIN: {"transparency": None, "visibility": None, "status": "confirmed"},
        FREE: {"transparency": "transparent"},
        TENTATIVE: {"status": "tentative"},
        PRIVATE: {"visibility": "private"},
        HIDDEN: {"transparency": "transparent", "visibility": "confidential", "attachments": LARGE},
    },
    "microsoft": {
        PLAIN: {"showAs": "busy", "sensitivity": "normal"},
        FREE: {"showAs": "free"},
        TENTATIVE: {"showAs": "tentative"},
        PRIVATE: {"sensitivity": "private"},
        HIDDEN: {"showAs": "free", "sensitivity": "confidential", "categories": LARGE},
    },
    "feed": {
        PLAIN: [],
        FREE: ["TRANSP:TRANSPARENT"],
        TENTATIVE: ["STATUS:TENTATIVE"],
        PRIVATE: ["CLASS:PRIVATE"],
        HIDDEN: ["DESCRIPTION:" + "x" * 9_000, "CLASS:CONFIDENTIAL", "TRANSP:TRANSPARENT"],
    },
}


class WordedFeed(Feed):
    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, list[str]] = {}

    def respond(self, _request: Request) -> Response:
        lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:test"]
        for uid, at in self.starts.items():
            lines += self.event(uid, at, *self.lines[uid])
        return Response("\r\n".join([*lines, "END:VCALENDAR", ""]), media_type="text/calendar")


@dataclass
class Kinds:
    """A calendar with an event of each kind, `events` by kind."""

    story: Story
    events: dict[str, str]
    change: Callable[[str, Any], None]
    words: dict[str, Any]

    async def full_round(self) -> None:
        """As when the window moves on: a feed that did not change is read too."""
        async with transaction(self.story.sessions) as session:
            await session.execute(text("UPDATE calendars SET sync_cursor = NULL"))
        await self.story.sync()

    async def rows(self) -> dict[str, CalendarEvent]:
        stored = await self.story.events()
        return {kind: stored[event] for kind, event in self.events.items()}


def _google(google: GoogleCalendarUnderTest, story: Story) -> Kinds:
    def add(n: int, fields: dict[str, Any]) -> str:
        at = in_days(1 + n)
        shown = {name: value for name, value in fields.items() if value is not None}
        return google.fake.add_event(start=at, end=at + HOUR, **shown)

    words = WORDS["google"]
    events = {kind: add(n, words[kind]) for n, kind in enumerate(words)}
    return Kinds(story, events, lambda event, fields: google.fake.update_event(event, **fields), words)


def _microsoft(fake: FakeMicrosoft, story: Story) -> Kinds:
    def add(n: int, fields: dict[str, Any]) -> str:
        at = in_days(1 + n)
        return fake.add_event(start=at, end=at + HOUR, **fields)

    words = WORDS["microsoft"]
    events = {kind: add(n, words[kind]) for n, kind in enumerate(words)}
    return Kinds(story, events, lambda event, fields: fake.update_event(event, **fields), words)


def _feed(feed: WordedFeed, story: Story) -> Kinds:
    words = WORDS["feed"]
    events = {kind: feed.add(in_days(1 + n)) for n, kind in enumerate(words)}
    feed.lines = {events[kind]: words[kind] for kind in words}
    return Kinds(story, events, feed.lines.__setitem__, words)


@pytest.fixture
async def worded_feed(
    settings: Settings, sessions: Sessions, project: TestProject, api: httpx.AsyncClient
) -> AsyncIterator[tuple[WordedFeed, Story]]:
    feed = WordedFeed()
    async with serve(feed) as url, factories.sync_engine(settings, sessions) as engine:
        calendar_id = await factories.add_calendar(
            sessions, settings, project.id, platform="ics", secrets={"feed_url": f"{url}/secret.ics"}
        )
        yield feed, _story_of_feed(feed, sessions, engine, calendar_id, api)


def _story_of_feed(
    feed: WordedFeed, sessions: Sessions, engine: SyncEngine, calendar_id: str, api: httpx.AsyncClient
) -> Story:
    def refuse(*_: Any) -> Any:
        raise AssertionError("not used here")

    return Story(
        sessions, engine, calendar_id, api, add=feed.add, move=feed.move, delete=feed.delete, add_series=refuse,
        change_rule=refuse, instance=refuse, forget=lambda: None,
    )  # fmt: skip


@pytest.fixture(params=["google", "microsoft", "feed"])
def kinds(request: pytest.FixtureRequest) -> Kinds:
    if request.param == "google":
        story = request.getfixturevalue("google_calendar")
        return _google(request.getfixturevalue("google"), story)
    if request.param == "microsoft":
        story = request.getfixturevalue("microsoft_calendar")
        return _microsoft(request.getfixturevalue("fake_microsoft"), story)
    return _feed(*request.getfixturevalue("worded_feed"))


def derived(row: CalendarEvent) -> tuple[str | None, ...]:
    return row.busy_status, row.visibility, row.event_type


async def announced(sessions: Sessions) -> tuple[int, int]:
    """How many created and updated events the messages state."""
    async with sessions() as session:
        bodies = (await session.scalars(text("SELECT body FROM webhook_deliveries"))).all()
    changes = [orjson.loads(body)["data"]["changes"] for body in bodies]
    return sum(one["created"] for one in changes), sum(one["updated"] for one in changes)


async def at_last_change(kinds: Kinds) -> tuple[Any, ...]:
    """What an application could notice a change by."""
    row = await kinds.story.row()
    events = {kind: (event.updated_at, event.content_hash) for kind, event in (await kinds.rows()).items()}
    return events, row.last_change_at, row.unannounced_since, await announced(kinds.story.sessions)


async def set_columns(sessions: Sessions, event_id: str, values: tuple[Any, ...]) -> None:
    names = ("busy_status", "visibility", "event_type", "etag")
    async with transaction(sessions) as session:
        await session.execute(
            text("UPDATE calendar_events SET (busy_status, visibility, event_type, etag) = (:a, :b, :c, :d) WHERE id = :id"),
            {"id": event_id, **dict(zip("abcd", values, strict=True))},
        )  # fmt: skip
    assert len(names) == len(values)


async def subscribe(api: httpx.AsyncClient) -> None:
    body = {
        "url": "https://hooks.example.com/",
        "triggers": ["calendar.events_update"],
        "include_events": True,
    }
    response = await api.post("/api/v1/webhooks", json=body)
    assert response.status_code == 201, response.text


async def upgraded(sessions: Sessions, url: str) -> None:
    """Let the installation be one of the release before these columns, and upgrade it."""

    def migrate() -> None:
        config = Config()
        config.set_main_option("script_location", "migrations")
        config.attributes["database_url"] = url
        command.downgrade(config, BEFORE)
        upgrade_to_head(url)

    await asyncio.to_thread(migrate)
    await sessions.kw["bind"].dispose()  # its prepared statements are of the earlier schema


@pytest.mark.changes_schema
@pytest.mark.parametrize("is_filled_first", [True, False], ids=["filled, then synced", "synced, then filled"])
async def test_an_upgrade_fills_the_fields_and_announces_nothing(
    kinds: Kinds, is_filled_first: bool, api, settings, monkeypatch
) -> None:
    story = kinds.story
    monkeypatch.setattr(backfill, "_ROWS_AT_ONCE", 2)
    await subscribe(api)
    await story.sync()
    before, etags = await at_last_change(kinds), {k: row.etag for k, row in (await kinds.rows()).items()}
    assert before[-1] == (5, 0)

    monkeypatch.chdir(_root())
    await upgraded(story.sessions, settings.required_database_url())
    rows = await kinds.rows()
    assert {(*derived(row), row.etag) for row in rows.values()} == {(None,) * 4}
    url = "/api/v1/calendar_events"
    shown = (await api.get(url)).json()["results"][0]
    assert [shown[name] for name in Derived._fields] == ["busy", "default", "default", None]

    if is_filled_first:
        assert await fill_old_events(story.sessions) == len(rows)
        known = {kind: derived(row) for kind, row in (await kinds.rows()).items()}
        if kinds.words is WORDS["feed"]:
            # Only a sync can know what stands behind the cut.
            assert known[HIDDEN] == (None, None, "default")
            known[HIDDEN] = EXPECTED[HIDDEN]
        assert known == EXPECTED
    await kinds.full_round()
    rows = await kinds.rows()
    assert {kind: derived(row) for kind, row in rows.items()} == EXPECTED
    assert {kind: row.etag for kind, row in rows.items()} == etags
    assert await fill_old_events(story.sessions) == 0
    assert await at_last_change(kinds) == before


def _root() -> str:
    from pathlib import Path

    return str(Path(__file__).parents[3])


@pytest.mark.parametrize("kind", [FREE, TENTATIVE, PRIVATE, HIDDEN])
async def test_a_change_at_the_provider_is_a_change_here(kinds: Kinds, kind: str, api) -> None:
    story = kinds.story
    await subscribe(api)
    await story.sync()
    event = kinds.events[PLAIN]
    before = (await kinds.rows())[PLAIN]
    times = {before.updated_at}
    for step, words in enumerate((kinds.words[kind], kinds.words[PLAIN]), start=1):
        if kinds.words is WORDS["feed"] and kind == HIDDEN:
            kinds.change(event, kinds.words[HIDDEN])
            if step == 2:
                kinds.change(event, [kinds.words[HIDDEN][0]])
        else:
            kinds.change(event, words)
        await story.sync()
        row = (await kinds.rows())[PLAIN]
        assert derived(row) == EXPECTED[kind if step == 1 else PLAIN]
        times.add(row.updated_at)
        assert len(times) == 1 + step
        assert await announced(story.sessions) == (5, step)
        await story.sync()
        assert (await kinds.rows())[PLAIN].updated_at == row.updated_at


async def test_what_only_the_text_behind_the_cut_says_is_a_change(worded_feed, api) -> None:
    feed, story = worded_feed
    kinds = _feed(feed, story)
    await subscribe(api)
    await story.sync()
    long = WORDS["feed"][HIDDEN][0]
    hidden = kinds.events[HIDDEN]
    times = {(await kinds.rows())[HIDDEN].updated_at}
    for lines, expected in (
        ([long, "CLASS:CONFIDENTIAL"], ("busy", "confidential", "default")),
        ([long], EXPECTED[PLAIN]),
        (WORDS["feed"][HIDDEN], EXPECTED[HIDDEN]),
    ):
        feed.lines[hidden] = lines
        await story.sync()
        row = (await kinds.rows())[HIDDEN]
        assert derived(row) == expected
        assert row.updated_at not in times
        times.add(row.updated_at)
        assert await announced(story.sessions) == (5, len(times) - 1)


@pytest.mark.parametrize("kind", [PLAIN, FREE, PRIVATE])
async def test_what_an_older_process_left_behind_is_repaired_silently(kinds: Kinds, kind: str) -> None:
    """It changes rows without these columns, and inserts rows without them."""
    story = kinds.story
    await story.sync()
    rows = await kinds.rows()
    before = await at_last_change(kinds)
    await set_columns(story.sessions, rows[kind].id, ("tentative", "public", "focus_time", "old"))
    await set_columns(story.sessions, rows[TENTATIVE].id, (None, None, None, None))
    await kinds.full_round()
    after = await kinds.rows()
    assert {name: derived(row) for name, row in after.items()} == EXPECTED
    assert {name: row.etag for name, row in after.items()} == {name: row.etag for name, row in rows.items()}
    assert await at_last_change(kinds) == before


async def test_an_etag_that_moves_alone_is_stored_and_no_change(
    microsoft_calendar: Story, fake_microsoft: FakeMicrosoft
) -> None:
    story = microsoft_calendar
    start = in_days(1)
    series = story.add_series(start, "FREQ=DAILY;COUNT=3")
    await story.sync()
    before = await story.events()
    changed = story.instance(series, start)
    fake_microsoft.update_event(changed, subject="Another")
    await story.sync()
    after = await story.events()
    assert {before[name].etag for name in before}.isdisjoint({after[name].etag for name in after})
    moved = {name for name in before if after[name].updated_at != before[name].updated_at}
    assert moved == {changed}


async def test_a_single_read_has_the_fields_too(kinds: Kinds) -> None:
    story = kinds.story
    for days in range(12):  # few of many events may be missing at once
        if kinds.words is not WORDS["feed"]:
            story.add(in_days(days + 0.5))
    await story.sync()
    event = kinds.events[PLAIN]
    far: datetime = in_days(60)
    kinds.change(event, kinds.words[FREE])
    story.move(event, far)
    await story.sync()
    row = (await kinds.rows())[PLAIN]
    assert (row.start_time, row.is_deleted, row.busy_status) == (far, False, "free")
