"""Syncs of a Google calendar, from the provider's change to the rows that applications read."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text

from app.core.clock import utcnow
from app.core.db import Session, transaction
from app.core.http import httpx
from app.events import writer
from app.schedule import sync_within
from app.sync import attempt, repository
from app.sync import engine as sync_engine
from tests import factories
from tests.flows.conftest import GoogleCalendarUnderTest


async def test_a_first_sync_brings_the_events_of_the_window(google: GoogleCalendarUnderTest) -> None:
    google.add("in the window")
    google.add("long ago", in_hours=-72)
    google.add("far ahead", in_hours=24 * 40)
    await google.sync()
    assert await google.names() == ["in the window"]
    row = await google.row()
    assert row.state == "connected"
    assert row.sync_cursor is not None
    assert row.last_successful_sync_at is not None
    assert row.last_attempted_sync_at is not None


async def test_changes_come_by_the_sync_token(google: GoogleCalendarUnderTest) -> None:
    kept, edited, dropped = google.add("kept"), google.add("before"), google.add("dropped")
    await google.sync()
    first = await google.events()
    google.fake.update_event(edited, summary="after")
    google.fake.delete_event(dropped)
    google.add("new")
    await google.sync()
    second = await google.events()
    assert await google.names() == ["after", "kept", "new"]
    assert second[kept].updated_at == first[kept].updated_at
    assert second[edited].updated_at > first[edited].updated_at
    assert second[dropped].is_deleted
    assert second[dropped].name == "dropped"
    assert [r.params.get("syncToken") is not None for r in google.fake.requests_to("events.list")] == [
        False,
        True,
    ]


@pytest.mark.parametrize("style", ["full", "exception", "bare"])
async def test_tombstones_of_every_shape_delete(google: GoogleCalendarUnderTest, style) -> None:
    google.fake.tombstone_style = style
    start = utcnow().replace(microsecond=0) + timedelta(hours=2)
    single = google.add("single")
    series = google.fake.add_series(start=start, end=start + timedelta(hours=1), rrule="FREQ=DAILY;COUNT=5")
    await google.sync()
    assert len(await google.names()) == 6
    instance = sorted(uuid for uuid in await google.events() if uuid.startswith(series))[2]
    google.fake.delete_event(single)
    google.fake.delete_event(instance)
    await google.sync()
    events = await google.events()
    assert events[single].is_deleted
    assert events[instance].is_deleted
    assert len(await google.names()) == 4


async def test_a_deleted_series_takes_all_its_instances(google: GoogleCalendarUnderTest) -> None:
    start = utcnow().replace(microsecond=0) + timedelta(hours=2)
    series = google.fake.add_series(start=start, end=start + timedelta(hours=1), rrule="FREQ=DAILY;COUNT=9")
    google.add("kept")
    await google.sync()
    assert len(await google.names()) == 10
    google.fake.series_tombstone = "master"
    google.fake.delete_series(series)
    await google.sync()
    assert await google.names() == ["kept"]


async def test_an_expired_sync_token_deletes_nothing_that_is_still_there(
    google: GoogleCalendarUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_engine, "_FULL_ROUND_AGAIN_AFTER", timedelta(0))
    kept, removed = google.add("kept"), google.add("removed")
    await google.sync()
    before = await google.events()
    google.fake.delete_event(removed)
    google.add("new")
    google.fake.expire_tokens()
    await google.sync()
    after = await google.events()
    assert await google.names() == ["kept", "new"]
    assert after[kept].updated_at == before[kept].updated_at
    assert after[removed].is_deleted


async def test_a_cursor_that_expires_soon_is_followed_by_a_full_round_once(
    google: GoogleCalendarUnderTest,
) -> None:
    google.add("one")
    await google.sync()
    google.add("two")
    google.fake.expire_tokens()
    await google.sync()
    assert await google.names() == ["one", "two"]
    assert (await google.row()).sync_failing_since is None
    for _ in range(3):
        google.fake.expire_tokens()
        await google.sync()
    full = [r for r in google.fake.requests_to("events.list") if "syncToken" not in r.params]
    assert len(full) == 2
    row = await google.row()
    assert row.sync_failure_code == "cursor_expired_again"
    assert row.state == "connected"


async def test_a_response_with_neither_token_is_no_end(google: GoogleCalendarUnderTest) -> None:
    google.add("kept")
    await google.sync()
    google.fake.expire_tokens()
    google.fake.inject_fault(
        "events.list",
        200,
        body=b'{"kind": "calendar#events"}',
        content_type="application/json",
        after=1,
        count=3,
    )
    await google.sync()
    row = await google.row()
    assert (row.state, row.sync_failure_code) == ("connected", "broken_answer")
    assert await google.names() == ["kept"]


async def test_events_move_out_of_the_window_and_back(google: GoogleCalendarUnderTest) -> None:
    event = google.add("traveller")
    await google.sync()
    google.move(event, in_hours=24 * 60)
    await google.sync()
    outside = (await google.events())[event]
    assert not outside.is_deleted
    google.move(event, in_hours=48)
    await google.sync()
    back = (await google.events())[event]
    assert not back.is_deleted
    assert back.id == outside.id


async def test_of_several_links_an_event_gets_one_that_the_runner_can_join(
    google: GoogleCalendarUnderTest,
) -> None:
    room, meeting = "https://acme.webex.com/meet/ada", "https://zoom.us/j/5551112222"
    event = google.add("two links", location=room, description=meeting)
    await google.sync()
    row = (await google.events())[event]
    assert (row.meeting_url, row.meeting_platform) == (meeting, "zoom")
    google.settings.bot_runner_platforms = frozenset({"webex"})
    # Another runner changes no event by itself; with its next change an event has the other link.
    google.fake.update_event(event, summary="renamed")
    async with factories.sync_engine(google.settings, google.sessions) as engine:
        await factories.sync_now(engine, google.sessions, google.id)
    row = (await google.events())[event]
    assert (row.meeting_url, row.meeting_platform) == (room, "webex")


async def test_the_window_rolls_on(google: GoogleCalendarUnderTest) -> None:
    google.add("soon")
    google.add("beyond the edge", in_hours=24 * 30)
    await google.sync()
    assert await google.names() == ["soon"]
    # Two days later: the calendar was last anchored two days ago.
    async with transaction(google.sessions) as session:
        await session.execute(
            text(
                "UPDATE calendars SET window_start = window_start - interval '2 days', window_end = window_end - interval '2 days'"
            )
        )
    google.settings.calendar_sync_window_future_days = 31
    await google.sync()
    assert await google.names() == ["beyond the edge", "soon"]


async def test_odd_events_stop_nothing(google: GoogleCalendarUnderTest) -> None:
    google.fake.put_raw({"id": "nostart", "status": "confirmed", "summary": "no start"})
    google.add("a\x00b" + "x" * 2000)
    google.add("unknown zone", in_hours=3)
    google.add("fine")
    await google.sync()
    names = await google.names()
    assert "fine" in names
    assert "no start" in names
    assert len(names) == 4
    assert max(map(len, names)) <= 1000
    assert not any("\x00" in name for name in names)


async def test_nothing_changed_means_no_row_is_written_but_the_sync_times(
    google: GoogleCalendarUnderTest,
) -> None:
    for n in range(20):
        google.add(f"event {n}")
    await google.sync()
    versions = text(
        "SELECT id, xmin::text FROM calendar_events UNION ALL SELECT id, xmin::text FROM credentials"
    )

    async def row_versions() -> list[tuple[str, str]]:
        async with google.sessions() as session:
            return sorted((row[0], row[1]) for row in await session.execute(versions))

    before = await row_versions()
    await google.sync()
    assert await row_versions() == before
    assert google.fake.requests_to("events.list")[-1].bytes_sent < 20_000


async def test_a_request_during_a_sync_leads_to_one_more(google: GoogleCalendarUnderTest) -> None:
    google.add("one")
    google.fake.inject_fault("events.list", delay=0.2)

    [claim] = await google.engine.claim(10)
    running = asyncio.create_task(google.engine.handle(claim))
    await asyncio.sleep(0.05)
    for _ in range(3):
        async with transaction(google.sessions) as session:
            await sync_within(session, google.id, timedelta(0))
    assert await google.engine.claim(10) == []
    await running
    [again] = await google.engine.claim(10)
    assert again.calendar_id == google.id
    await google.engine.handle(again)
    assert await google.engine.claim(10) == []


async def test_a_killed_sync_is_done_by_another_worker_after_its_lease(
    google: GoogleCalendarUnderTest,
) -> None:
    google.add("one")
    [lost] = await google.engine.claim(10)
    assert await google.engine.claim(10) == []
    async with transaction(google.sessions) as session:
        await session.execute(
            text(
                "UPDATE calendars SET lease_until = now() - interval '1 s', next_sync_at = now() - interval '1 s'"
            )
        )
    [taken] = await google.engine.claim(10)
    await google.engine.handle(taken)
    assert await google.names() == ["one"]
    # The first worker was only slow: its writes are fenced off.
    google.add("two")
    await google.engine.handle(lost)
    assert await google.names() == ["one"]


async def test_a_sync_of_many_batches_is_announced_whole(
    google: GoogleCalendarUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "_BATCH_EVENTS", 10)
    google.fake.short_pages = True
    for n in range(45):
        google.add(f"event {n:02}")
    await google.sync()
    assert len(await google.names()) == 45
    row = await google.row()
    assert row.unannounced_since is None


async def test_a_page_with_messages_for_many_webhooks_is_written_in_several_transactions(
    google: GoogleCalendarUnderTest, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_engine, "FEW_EVENTS", 2)
    monkeypatch.setattr(writer, "FEW_EVENTS", 2)
    monkeypatch.setattr(writer, "_MESSAGES_AT_ONCE", 9)
    for number in range(3):
        body = {"url": f"https://hooks.example/{number}", "triggers": ["event.created", "event.deleted"]}
        assert (await api.post("/api/v1/webhooks", json=body)).status_code == 201
    for number in range(10):
        google.add(f"event {number}")
    await google.sync()
    assert len(await google.names()) == 10
    assert (await google.row()).unannounced_since is None
    async with google.sessions() as session:
        written = await session.execute(
            text("SELECT count(*), count(DISTINCT xmin::text) FROM webhook_deliveries")
        )
    assert tuple(written.one()) == (30, 4)


@pytest.mark.parametrize("kind", ["reset", "cut"])
async def test_a_broken_round_deletes_nothing_and_is_tried_again(
    google: GoogleCalendarUnderTest, kind: str
) -> None:
    google.add("kept")
    await google.sync()
    google.fake.inject_fault("events.list", kind=kind, count=3)
    google.add("new")
    await google.sync()
    row = await google.row()
    assert row.state == "connected"
    assert row.sync_failing_since is not None
    assert await google.names() == ["kept"]
    await google.sync()
    assert await google.names() == ["kept", "new"]
    assert (await google.row()).sync_failing_since is None


async def test_the_window_is_renewed_before_it_falls_short(google: GoogleCalendarUnderTest) -> None:
    await google.sync()
    for reach, is_full in ((370, False), (350, True)):
        async with transaction(google.sessions) as session:
            await session.execute(
                text(
                    "UPDATE calendars SET window_end = now() + interval '28 days' + CAST(:reach AS interval),"
                    " window_start = now() + interval '28 days' + CAST(:reach AS interval)"
                    " - (window_end - window_start)"
                ),
                {"reach": timedelta(minutes=reach)},
            )
        await google.sync()
        assert ("syncToken" not in google.fake.requests_to("events.list")[-1].params) is is_full


async def test_a_lease_is_extended_again_after_an_error_of_the_database(
    google: GoogleCalendarUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_engine, "_EXTEND_EVERY_SECONDS", 0.05)
    extend, calls = repository.extend_lease, 0

    async def fail_once(session: Session, claim: repository.Claim) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await session.execute(text("SELECT 1 / 0"))
        await extend(session, claim)

    monkeypatch.setattr(repository, "extend_lease", fail_once)
    google.fake.inject_fault("events.list", delay=1.0)
    [claim] = await google.engine.claim(10)
    before = (await google.row()).lease_until
    running = asyncio.create_task(google.engine.handle(claim))
    await asyncio.sleep(0.7)
    after = (await google.row()).lease_until
    await running
    assert before is not None
    assert after is not None
    assert after > before
    assert calls > 1
