"""A calendar's own sync window: wider, narrower, back to the settings', and changed while a sync runs.

See docs/reference/http-api.md, "Sync window".
"""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from sqlalchemy import select, update
from starlette.requests import Request
from starlette.responses import Response

from app.core.clock import isoformat, utcnow
from app.core.db import Sessions, transaction
from app.core.http import httpx
from app.models import Calendar, WebhookDelivery
from app.settings import Settings
from app.sync.engine import SyncEngine
from tests import factories
from tests.conftest import TestProject
from tests.fakes.server import serve
from tests.flows.sync.stories import DAY, HOUR, Feed, Story, in_days


async def show(story: Story) -> dict[str, Any]:
    response = await story.api.get(f"/api/v1/calendars/{story.id}")
    shown: dict[str, Any] = response.json()
    return shown


async def choose(story: Story, past_days: int, future_days: int) -> dict[str, Any]:
    return await change(story, {"window": {"past_days": past_days, "future_days": future_days}})


async def change(story: Story, body: dict[str, Any]) -> dict[str, Any]:
    response = await story.api.patch(f"/api/v1/calendars/{story.id}", json=body)
    assert response.status_code == 200, response.text
    shown: dict[str, Any] = response.json()
    return shown


async def sync(story: Story) -> None:
    """A sync from where the last one ended, and not one that is made to list everything."""
    await factories.sync_now(story.engine, story.sessions, story.id)


async def deliveries(story: Story) -> int:
    async with story.sessions() as session:
        return len((await session.scalars(select(WebhookDelivery.id))).all())


def covers(shown: dict[str, Any], past_days: int, future_days: int) -> bool:
    """Whether the calendar covers these days, and little more."""
    begins = datetime.fromisoformat(shown["covered_from"]) - (utcnow() - past_days * DAY)
    ends = datetime.fromisoformat(shown["covered_until"]) - (utcnow() + future_days * DAY)
    return -HOUR < begins <= timedelta(0) and timedelta(0) < ends < 13 * HOUR


async def test_what_a_calendar_covers_is_null_before_the_first_sync(story: Story) -> None:
    shown = await show(story)
    assert shown["window"] == {"past_days": 1, "future_days": 28}
    assert (shown["covered_from"], shown["covered_until"]) == (None, None)
    await sync(story)
    assert covers(await show(story), 1, 28)


async def test_a_wider_window_brings_the_events_of_the_added_time(story: Story) -> None:
    near = story.add(in_days(2))
    far, past, beyond = story.add(in_days(100)), story.add(in_days(-20)), story.add(in_days(300))
    await sync(story)
    assert await story.live() == {near}
    before = (await story.events())[near]
    shown = await choose(story, 30, 200)
    assert shown["window"] == {"past_days": 30, "future_days": 200}
    # What is covered is what was read.
    assert covers(shown, 1, 28)
    await sync(story)
    assert await story.live() == {near, far, past}
    assert (await story.events())[near].updated_at == before.updated_at
    assert covers(await show(story), 30, 200)
    # The next ones go on from there.
    row, added = await story.row(), story.add(in_days(150))
    await sync(story)
    assert await story.live() == {near, far, past, added}
    assert (await story.row()).window_end == row.window_end
    assert beyond not in await story.events()


async def test_events_that_leave_a_window_that_became_smaller_are_not_announced(story: Story) -> None:
    await choose(story, 30, 200)
    near, far, past = (story.add(in_days(days)) for days in (2, 100, -20))
    await sync(story)
    bot = await story.add_bot(far)
    before = await story.events()
    webhook = {"url": "https://example.com/", "triggers": ["calendar.events_update"]}
    assert (await story.api.post("/api/v1/webhooks", json=webhook)).status_code == 201
    assert covers(await choose(story, 0, 7), 30, 200)
    await sync(story)
    after = await story.events()
    assert await story.live() == {near, far, past}
    assert all(after[key].updated_at == before[key].updated_at for key in before)
    assert await deliveries(story) == 0
    assert covers(await show(story), 0, 7)
    # They only stop being kept in sync; their bots follow what is known.
    assert await story.join_at(bot) == isoformat(before[far].start_time or utcnow())


async def test_what_was_deleted_outside_of_the_window_is_found_out_when_it_is_widened(story: Story) -> None:
    await choose(story, 1, 200)
    kept = {story.add(in_days(days)) for days in (2, 3, 4, 101)}
    far = story.add(in_days(100))
    await sync(story)
    bot = await story.add_bot(far)
    await choose(story, 1, 28)
    await sync(story)
    story.delete(far)
    await change(story, {"window": {"past_days": 1, "future_days": 300}})
    await sync(story)
    assert await story.live() == kept
    assert await story.join_at(bot) is None


async def test_null_goes_back_to_the_window_of_the_settings(story: Story) -> None:
    near, far = story.add(in_days(2)), story.add(in_days(100))
    await choose(story, 5, 200)
    await sync(story)
    assert await story.live() == {near, far}
    shown = await change(story, {"window": None})
    assert shown["window"] == {"past_days": 1, "future_days": 28}
    await sync(story)
    assert covers(await show(story), 1, 28)
    story.engine._settings.calendar_sync_window_future_days = 40
    await sync(story)
    assert covers(await show(story), 1, 40)


async def test_a_change_that_changes_nothing_starts_no_full_round(story: Story) -> None:
    story.add(in_days(2))
    await sync(story)
    row = await story.row()
    await choose(story, 1, 28)  # which it had from the settings
    for body in ({"window": {"past_days": 1, "future_days": 28}}, {"window": None}, {"metadata": {"a": "b"}}):
        await change(story, body)
        await sync(story)
        after = await story.row()
        assert (after.window_start, after.window_end) == (row.window_start, row.window_end)
        assert (after.covered_from, after.covered_until) == (row.window_start, row.window_end)
    assert (await story.row()).sync_failing_since is None


async def test_updated_at_moves_with_the_window_and_the_calendar_is_not_reconnected(story: Story) -> None:
    await sync(story)
    first = await choose(story, 2, 30)
    again = await choose(story, 2, 30)
    assert again["updated_at"] == first["updated_at"]
    assert (await choose(story, 2, 31))["updated_at"] > first["updated_at"]
    row = await story.row()
    assert row.sync_cursor is not None  # the next sync compares the windows, and loses no lease
    assert row.next_sync_at < utcnow() + timedelta(seconds=6)


@pytest.mark.parametrize("failures", [0, 10], ids=["asked for at once", "asked for after a pause"])
async def test_a_window_that_changes_while_a_sync_runs(
    story: Story, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    near, far = story.add(in_days(2)), story.add(in_days(100))
    finish = SyncEngine._finish

    async def change_and_finish(engine: SyncEngine, *values: Any, **more: Any) -> None:
        monkeypatch.setattr(SyncEngine, "_finish", finish)
        await choose(story, 1, 200)
        await finish(engine, *values, **more)

    async with transaction(story.sessions) as session:
        # After failures, a request has to wait, for a feed for longer than a lease.
        await session.execute(
            update(Calendar).where(Calendar.id == story.id).values(sync_failure_count=failures)
        )
    monkeypatch.setattr(SyncEngine, "_finish", change_and_finish)
    await sync(story)
    assert await story.live() == {near}
    shown = await show(story)
    assert shown["window"] == {"past_days": 1, "future_days": 200}
    assert covers(shown, 1, 28)
    assert (await story.row()).next_sync_at < utcnow() + timedelta(seconds=61 if failures else 6)
    if failures and (await story.row()).platform == "ics":
        assert (await story.row()).next_sync_at <= utcnow()
    await sync(story)
    assert await story.live() == {near, far}
    row = await story.row()
    assert row.next_sync_at > utcnow() + timedelta(minutes=20)


async def test_a_failed_sync_leaves_what_is_covered(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    await sync(story)
    before = await show(story)
    await choose(story, 1, 200)

    async def fail(*_values: Any, **_more: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(SyncEngine, "_finish", fail)
    await sync(story)
    monkeypatch.undo()
    after = await show(story)
    assert after["sync_failure"]["code"] == "internal_error"
    assert (after["covered_from"], after["covered_until"]) == (
        before["covered_from"],
        before["covered_until"],
    )


async def test_a_process_of_the_release_before_widens_nothing_that_it_did_not_read(story: Story) -> None:
    """It stores the window that it read, and knows neither the calendar's own window nor what is covered."""
    await choose(story, 30, 200)
    await sync(story)
    far = story.add(in_days(100))
    now = utcnow()
    old = {"window_start": now - DAY, "window_end": now + 28 * DAY + 11 * HOUR}
    async with transaction(story.sessions) as session:
        await session.execute(update(Calendar).where(Calendar.id == story.id).values(**old))
    assert covers(await show(story), 1, 28)
    await sync(story)
    assert far in await story.live()
    assert covers(await show(story), 30, 200)
    # A calendar that only such processes have synced.
    async with transaction(story.sessions) as session:
        values = {**old, "covered_from": None, "covered_until": None}
        await session.execute(update(Calendar).where(Calendar.id == story.id).values(**values))
    assert covers(await show(story), 1, 28)


async def test_events_beyond_the_window_do_not_hide_that_a_list_leaves_out_all_others(
    feed_calendar: Story,
) -> None:
    story = feed_calendar
    await choose(story, 1, 200)
    far = {story.add(in_days(100 + n)) for n in range(10)}
    near = {story.add(in_days(2 + n)) for n in range(5)}
    await sync(story)
    await choose(story, 1, 28)
    await sync(story)
    for event in near:
        story.delete(event)
    await sync(story)
    assert await story.live() == near | far
    assert set((await story.row()).held_back_ids or ()) != set()
    story.engine._settings.calendar_shrink_confirm_seconds = 0
    await sync(story)
    assert await story.live() == far


class TaggedFeed(Feed):
    """A feed whose server says by 304 that nothing has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses: list[int] = []

    def respond(self, request: Request) -> Response:
        response = super().respond(request)
        tag = f'"{sha256(bytes(response.body)).hexdigest()}"'
        if request.headers.get("If-None-Match") == tag:
            response = Response(status_code=304)
        response.headers["ETag"] = tag
        self.statuses.append(response.status_code)
        return response


@pytest.fixture
async def tagged_feed() -> AsyncIterator[tuple[TaggedFeed, str]]:
    feed = TaggedFeed()
    async with serve(feed) as url:
        yield feed, f"{url}/secret.ics"


async def test_an_unchanged_feed_is_expanded_again_for_another_window(
    tagged_feed: tuple[TaggedFeed, str],
    settings: Settings,
    sessions: Sessions,
    project: TestProject,
    api: httpx.AsyncClient,
) -> None:
    feed, url = tagged_feed
    feed.add_series(in_days(0.7), "FREQ=DAILY")
    calendar_id = await factories.add_calendar(
        sessions, settings, project.id, platform="ics", secrets={"feed_url": url}
    )
    async with factories.sync_engine(settings, sessions) as engine:
        nothing: Any = None
        story = Story(sessions, engine, calendar_id, api, *[nothing] * 7)
        counts = []
        for future_days in (10, 700, 700, 5, 15):
            await choose(story, 0, future_days)
            await sync(story)
            counts.append(len(await story.live()))
    assert feed.statuses == [200, 200, 304, 200, 200]
    assert counts == [10, 700, 700, 700, 700]


async def test_of_a_series_with_too_many_instances_it_is_said_how_far_they_go(feed_calendar: Story) -> None:
    story = feed_calendar
    start = in_days(1)
    series = story.add_series(start, "FREQ=MINUTELY")
    kept, deleted = story.add(in_days(20)), story.add(in_days(21))
    story.engine._settings.calendar_shrink_confirm_seconds = 0
    await sync(story)
    end = start + timedelta(minutes=2000)
    assert (await show(story))["covered_until"] == isoformat(end)
    assert {kept, deleted} <= await story.live()
    # Nothing has changed: that is as far as it went before.
    await sync(story)
    assert (await show(story))["covered_until"] == isoformat(end)
    # What comes later is compared all the same.
    story.delete(deleted)
    await sync(story)
    assert kept in await story.live()
    assert deleted not in await story.live()
    story.change_rule(series, "FREQ=DAILY")
    for _ in range(3):
        await sync(story)
    assert covers(await show(story), 1, 28)
    assert len(await story.live()) == 29
