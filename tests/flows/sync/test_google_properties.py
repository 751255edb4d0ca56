"""For any sequence of provider changes, faults and syncs: what is stored equals the provider's window in the
end, every real change moved `updated_at` exactly once, and no unchanged event moved.
"""

import dataclasses
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from app.core.clock import utcnow
from app.core.ids import new_id
from app.events import writer
from app.events.data import Window
from app.sync import attempt, deletions, failures
from app.sync import engine as sync_engine
from tests import factories
from tests.fakes.google import FakeGoogle
from tests.fakes.google_store import Item, instance_id
from tests.flows.checks import checked_sync, listen_to_changes
from tests.flows.conftest import GoogleCalendarUnderTest

_HOURS = (-60, -30, 2, 30, 200, 24 * 27, 24 * 31, 24 * 60)
_TITLES = ("one", "two", "three")

hours = strategies.sampled_from(_HOURS)
titles = strategies.sampled_from(_TITLES)
which = strategies.integers(0, 3)

steps = strategies.one_of(
    strategies.tuples(strategies.just("add"), hours, titles),
    strategies.tuples(strategies.just("rename"), which, titles),
    strategies.tuples(strategies.just("move"), which, hours),
    strategies.tuples(strategies.just("delete"), which),
    strategies.tuples(strategies.just("restore"), which),
    strategies.tuples(strategies.just("add_series"), hours, titles),
    strategies.tuples(strategies.just("rename_series"), which, titles),
    strategies.tuples(strategies.just("delete_series"), which),
    strategies.tuples(strategies.just("delete_instance"), which, which),
    strategies.tuples(strategies.just("move_instance"), which, which, hours),
    strategies.tuples(strategies.just("expire_tokens")),
    strategies.tuples(strategies.just("fault"), strategies.sampled_from(["503", "reset", "cut", "410"])),
    strategies.tuples(strategies.just("sync")),
    strategies.tuples(strategies.just("sync")),
)


@dataclasses.dataclass
class Story:
    """One calendar at the fake, and what the steps did to it."""

    fake: FakeGoogle
    name: str
    start: datetime
    events: list[str] = dataclasses.field(default_factory=list)
    series: list[tuple[str, datetime]] = dataclasses.field(default_factory=list)

    def times(self, in_hours: float) -> dict[str, Any]:
        """`start` and `end` for the fake's methods."""
        start = self.start + timedelta(hours=in_hours)
        return {"start": start, "end": start + timedelta(hours=1)}

    def do(self, step: tuple[Any, ...]) -> None:
        action: Callable[..., None] = getattr(self, step[0])
        action(*step[1:])

    def add(self, in_hours: float, title: str) -> None:
        self.events.append(self.fake.add_event(calendar_id=self.name, summary=title, **self.times(in_hours)))

    def _live(self, number: int) -> str | None:
        items = self.fake.calendar(self.name).items
        live = [one for one in self.events if not items[one].is_cancelled]
        return live[number % len(live)] if live else None

    def rename(self, number: int, title: str) -> None:
        if event := self._live(number):
            self.fake.update_event(event, calendar_id=self.name, summary=title)

    def move(self, number: int, in_hours: float) -> None:
        if event := self._live(number):
            self.fake.move(event, calendar_id=self.name, **self.times(in_hours))

    def delete(self, number: int) -> None:
        if event := self._live(number):
            self.fake.delete_event(event, calendar_id=self.name)

    def restore(self, number: int) -> None:
        items = self.fake.calendar(self.name).items
        dead = [one for one in self.events if items[one].is_cancelled]
        if dead:
            event = dead[number % len(dead)]
            self.events.remove(event)
            self.events.append(
                self.fake.add_event(calendar_id=self.name, event_id=event, summary="back", **self.times(30))
            )

    def add_series(self, in_hours: float, title: str) -> None:
        times = self.times(in_hours)
        series = self.fake.add_series(
            calendar_id=self.name, summary=title, rrule="FREQ=DAILY;INTERVAL=3;COUNT=4", **times
        )
        self.series.append((series, times["start"]))

    def _series(self, number: int) -> tuple[str, datetime] | None:
        alive = self.fake.calendar(self.name).series
        live = [one for one in self.series if one[0] in alive]
        return live[number % len(live)] if live else None

    def rename_series(self, number: int, title: str) -> None:
        if one := self._series(number):
            self.fake.update_series(one[0], calendar_id=self.name, summary=title)

    def delete_series(self, number: int) -> None:
        if one := self._series(number):
            self.fake.delete_series(one[0], calendar_id=self.name)

    def _instance(self, number: int, nth: int) -> str | None:
        one = self._series(number)
        if one is None:
            return None
        instance = instance_id(one[0], one[1] + timedelta(days=3 * nth))
        item = self.fake.calendar(self.name).items.get(instance)
        return instance if item is not None and not item.is_cancelled else None

    def delete_instance(self, number: int, nth: int) -> None:
        if instance := self._instance(number, nth):
            self.fake.delete_event(instance, calendar_id=self.name)

    def move_instance(self, number: int, nth: int, in_hours: float) -> None:
        if instance := self._instance(number, nth):
            self.fake.move(instance, calendar_id=self.name, **self.times(in_hours))

    def expire_tokens(self) -> None:
        self.fake.expire_tokens(self.name)

    def fault(self, kind: str) -> None:
        if kind == "410":
            self.fake.inject_fault("events.list", 410, "fullSyncRequired")
        elif kind == "503":
            self.fake.inject_fault("events.list", 503, body=b"<html></html>", content_type="text/html")
        else:
            self.fake.inject_fault("events.list", kind=kind)

    def truth(self, window_start: datetime, window_end: datetime) -> dict[str, tuple[str, str]]:
        """id -> (title, start) of what a person sees in the window."""
        items = self.fake.calendar(self.name).listing(
            is_expanded=True,
            window=(window_start.timestamp(), window_end.timestamp()),
            shows_cancelled=False,
        )
        found = {item.id: item.data() for item in items}
        return {
            key: (data["summary"], datetime.fromisoformat(data["start"]["dateTime"]).isoformat())
            for key, data in found.items()
        }


def is_alive(item: Item | None) -> bool:
    return item is not None and not item.is_cancelled


@given(
    story=strategies.lists(steps, max_size=25),
    leak=strategies.booleans(),
    tombstones=strategies.sampled_from(["full", "exception", "bare"]),
    series_tombstone=strategies.sampled_from(["instances", "master", "both"]),
    short_pages=strategies.booleans(),
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_what_is_stored_is_the_providers_window(
    google: GoogleCalendarUnderTest,
    monkeypatch: pytest.MonkeyPatch,
    story: list[tuple[Any, ...]],
    leak: bool,
    tombstones,
    series_tombstone,
    short_pages: bool,
) -> None:
    monkeypatch.setattr(sync_engine, "_FULL_ROUND_AGAIN_AFTER", timedelta(0))
    # Masses that a response leaves out are believed at once here, and hiccups take no time.
    monkeypatch.setattr(deletions, "_SHRINKS_ALL_OF", 10**6)
    monkeypatch.setattr(deletions, "_SHRINKS_MOST_OF", 10**6)
    monkeypatch.setattr(failures, "_RETRY_WITHIN_SYNC_AFTER_SECONDS", 0)
    monkeypatch.setattr(attempt, "_BATCH_EVENTS", 3)
    monkeypatch.setattr(sync_engine, "FEW_EVENTS", 1)  # events are written ahead
    monkeypatch.setattr(writer, "FEW_EVENTS", 1)
    monkeypatch.setattr(writer, "_MESSAGES_AT_ONCE", 1)
    fake = google.fake
    fake.clear_faults()
    fake.window_leak, fake.tombstone_style, fake.series_tombstone = leak, tombstones, series_tombstone
    fake.short_pages = short_pages
    await listen_to_changes(google.sessions, google.project_id)
    name = fake.add_calendar(new_id("cal").lower())
    played = Story(fake, name, utcnow().replace(microsecond=0))
    google.id = await factories.add_calendar(
        google.sessions,
        google.settings,
        google.project_id,
        platform_uuid=name,
        client_id=fake.client_id,
        secrets={"client_secret": fake.client_secret, "refresh_token": fake.refresh_token},
    )

    for step in story:
        if step[0] == "sync":
            await checked_sync(google.engine, google.sessions, google.id)
        else:
            played.do(step)
    fake.clear_faults()
    await checked_sync(google.engine, google.sessions, google.id)

    row = await google.row()
    assert row.state == "connected"
    assert row.window_start is not None
    assert row.window_end is not None
    window = Window(row.window_start, row.window_end)
    rows = await google.events()
    items = fake.calendar(name).items
    assert not [key for key, event in rows.items() if event.is_deleted and is_alive(items.get(key))]
    stored = {
        key: (event.name, event.start_time.astimezone().isoformat() if event.start_time else None)
        for key, event in rows.items()
        if not event.is_deleted
        and event.start_time
        and window.overlaps(event.start_time, event.end_time or event.start_time)
    }
    truth = {
        key: (title, datetime.fromisoformat(start).astimezone().isoformat())
        for key, (title, start) in played.truth(row.window_start, row.window_end).items()
    }
    assert stored == truth
