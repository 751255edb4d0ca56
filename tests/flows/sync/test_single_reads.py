"""Requests for single events: their number, their failures, and changes meanwhile."""

import asyncio
from datetime import timedelta

import orjson
import pytest
from limits import RateLimitItemPerMinute
from sqlalchemy import text

from app.core.clock import utcnow
from app.core.db import transaction
from app.credentials import budgets
from app.providers import single_reads
from app.settings import Settings
from tests import factories
from tests.fakes.microsoft import FakeMicrosoft
from tests.flows.conftest import GoogleCalendarUnderTest
from tests.flows.sync.stories import Story, in_days


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


async def test_a_mass_of_deletions_waits_for_a_second_list_and_then_goes_on_in_parts(
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
    moved, deleted = google_calendar.add(in_days(2)), google_calendar.add(in_days(3))
    kept = google_calendar.add(in_days(4))
    await google_calendar.sync()
    to = in_days(50)
    google_calendar.move(moved, to)
    google_calendar.delete(deleted)
    new = google_calendar.add(in_days(5))
    google.fake.expire_tokens()
    google.fake.inject_fault(route, status, reason, count=100)
    for _ in range(2):
        await factories.sync_now(google.engine, google.sessions, google.id)
        assert await google_calendar.live() == {moved, deleted, kept, new}
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


async def test_a_worker_that_lost_the_lease_meanwhile_writes_nothing(
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
    # An event that was read alone is the same as in a list.
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
