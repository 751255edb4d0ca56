"""Like test_google_properties.py, for Microsoft: with strict token rotation, and changes while pages are being read."""

import dataclasses
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from app.core.clock import utcnow
from app.core.db import Sessions
from app.events import writer
from app.events.data import Window
from app.settings import Settings
from app.sync import attempt, deletions, failures
from app.sync import engine as sync_engine
from tests import factories
from tests.conftest import TestProject
from tests.fakes.microsoft import EXPIRED_SPELLINGS, FakeMicrosoft
from tests.fakes.server import serve
from tests.flows.checks import checked_sync, listen_to_changes

_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)
EVER = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


@dataclasses.dataclass
class Story:
    """What people, and bad luck, do to one calendar."""

    fake: FakeMicrosoft
    calendar_id: str
    start: datetime
    choose: random.Random

    def when(self) -> datetime:
        return self.start + timedelta(minutes=self.choose.randint(-5 * 24 * 60, 40 * 24 * 60))

    def word(self) -> str:
        return self.choose.choice(["red", "green", "blue"])

    def step(self) -> None:
        calendar = self.fake.calendar(self.calendar_id)
        items = sorted(item.id for item in calendar.items.values() if not item.is_deleted)
        series = sorted(calendar.series)
        actions = [self.add, self.add_all_day, self.add_series, self.misfortune]
        if items:
            actions += [self.rename, self.move, self.delete, self.cancel]
        if series:
            actions += [self.rename_series, self.delete_series, self.split_series]
        self.items, self.series = items, series
        self.choose.choice(actions)()

    def add(self) -> None:
        at = self.when()
        self.fake.add_event(start=at, end=at + _HOUR, subject=self.word(), calendar_id=self.calendar_id)

    def add_all_day(self) -> None:
        day = self.when().date()
        zone = self.choose.choice(["Romance Standard Time", "Pacific Standard Time", "Tonga Standard Time"])
        self.fake.add_event(
            start=day, end=day + _DAY, originalStartTimeZone=zone, calendar_id=self.calendar_id
        )

    def add_series(self) -> None:
        at = self.when()
        rule = self.choose.choice(["FREQ=DAILY;COUNT=7", "FREQ=WEEKLY", "FREQ=DAILY;INTERVAL=3"])
        self.fake.add_series(start=at, end=at + _HOUR, rrule=rule, calendar_id=self.calendar_id)

    def rename(self) -> None:
        self.fake.update_event(
            self.choose.choice(self.items), subject=self.word(), calendar_id=self.calendar_id
        )

    def move(self) -> None:
        at = self.when()
        self.fake.move(self.choose.choice(self.items), start=at, end=at + _HOUR, calendar_id=self.calendar_id)

    def delete(self) -> None:
        self.fake.delete_event(self.choose.choice(self.items), calendar_id=self.calendar_id)

    def cancel(self) -> None:
        self.fake.cancel_event(self.choose.choice(self.items), calendar_id=self.calendar_id)

    def rename_series(self) -> None:
        self.fake.update_series(
            self.choose.choice(self.series), subject=self.word(), calendar_id=self.calendar_id
        )

    def delete_series(self) -> None:
        self.fake.delete_series(self.choose.choice(self.series), calendar_id=self.calendar_id)

    def split_series(self) -> None:
        self.fake.split_series(self.choose.choice(self.series), at=self.when(), calendar_id=self.calendar_id)

    def misfortune(self) -> None:
        kind = self.choose.choice(["status", "broken", "expired", "token"])
        if kind == "status":
            route = self.choose.choice(["delta", "calendarView", "token", "*"])
            self.fake.inject_fault(route, self.choose.choice([500, 503, 429, 401, 410]))
        elif kind == "broken":
            # Not of the token endpoint: a new refresh token that never arrives is lost, and the old one is strictly dead.
            route = self.choose.choice(["delta", "calendarView"])
            self.fake.inject_fault(route, kind=self.choose.choice(["reset", "cut"]))
        elif kind == "expired":
            self.fake.expire_delta(self.choose.choice(EXPIRED_SPELLINGS))
        else:
            self.fake.expire_access_tokens()


@pytest.fixture
async def fake_microsoft(settings: Settings) -> AsyncIterator[FakeMicrosoft]:
    fake = FakeMicrosoft()
    fake.late_uses_allowed = 0
    async with serve(fake) as url:
        settings.microsoft_graph_base_url = f"{url}/v1.0"
        settings.microsoft_oauth_token_url = f"{url}/common/oauth2/v2.0/token"
        yield fake


@given(
    seed=strategies.integers(0, 2**32),  # drawn at once: requests come outside of hypothesis' own steps
    disturbed=strategies.booleans(),
    empty_pages=strategies.booleans(),
    duplicates=strategies.booleans(),
    all_day_style=strategies.sampled_from(["date", "shifted"]),
)
@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_what_is_stored_is_the_mailboxs_window(
    settings: Settings,
    sessions: Sessions,
    project: TestProject,
    fake_microsoft: FakeMicrosoft,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    disturbed: bool,
    empty_pages: bool,
    duplicates: bool,
    all_day_style,
) -> None:
    monkeypatch.setattr(sync_engine, "_FULL_ROUND_AGAIN_AFTER", timedelta(0))
    # Masses that a response leaves out are believed at once here, and hiccups take no time.
    monkeypatch.setattr(deletions, "_SHRINKS_ALL_OF", 10**6)
    monkeypatch.setattr(deletions, "_SHRINKS_MOST_OF", 10**6)
    monkeypatch.setattr(failures, "_RETRY_WITHIN_SYNC_AFTER_SECONDS", 0)
    monkeypatch.setattr(attempt, "_BATCH_EVENTS", 5)
    monkeypatch.setattr(sync_engine, "FEW_EVENTS", 1)  # events are written ahead
    monkeypatch.setattr(writer, "FEW_EVENTS", 1)
    monkeypatch.setattr(writer, "_MESSAGES_AT_ONCE", 1)
    choose = random.Random(seed)
    fake = fake_microsoft
    fake.clear_faults()
    fake.empty_pages, fake.duplicate_items, fake.all_day_style = empty_pages, duplicates, all_day_style
    name = fake.add_calendar(f"calendar {len(fake.requests)}")
    await listen_to_changes(sessions, project.id)
    calendar_id = await factories.add_calendar(
        sessions,
        settings,
        project.id,
        platform="microsoft",
        platform_uuid=name,
        client_id=fake.client_id,
        secrets={"client_secret": fake.client_secret, "refresh_token": fake.add_grant()},
    )
    story = Story(fake, name, utcnow().replace(microsecond=0, second=0), choose)
    if disturbed:
        fake.on_request = lambda _request: story.step() if choose.random() < 0.1 else None
    async with factories.sync_engine(settings, sessions) as engine:
        for _ in range(8):
            for _ in range(choose.randint(0, 4)):
                story.step()
            await checked_sync(engine, sessions, calendar_id)
        fake.on_request = lambda _request: None
        fake.clear_faults()
        for _ in range(2):
            await checked_sync(engine, sessions, calendar_id)
    row = await factories.load_calendar(sessions, calendar_id)
    assert (row.state, row.sync_failure_code) == ("connected", None)
    assert row.window_start is not None
    assert row.window_end is not None
    window = Window(row.window_start, row.window_end)
    rows = await factories.load_events(sessions, calendar_id)
    there = fake.window_events(*EVER, calendar_id=name)
    assert not [
        key
        for key, event in rows.items()
        if event.is_deleted and key in there and not there[key]["isCancelled"]
    ]
    stored = {
        key: event.name
        for key, event in rows.items()
        if not event.is_deleted
        and event.start_time
        and window.overlaps(event.start_time, event.end_time or event.start_time)
    }
    truth = {
        key: event["subject"]
        for key, event in fake.window_events(row.window_start, row.window_end, calendar_id=name).items()
        if not event["isCancelled"]
    }
    assert stored == truth
