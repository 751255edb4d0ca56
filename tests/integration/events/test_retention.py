"""What is cleared away, and what is not: expired events, the events of deleted calendars, and housekeeping's own rows."""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from sqlalchemy import insert, text

from app.core import db
from app.core.db import transaction
from app.core.ids import new_id
from app.events import retention
from app.events.retention import clear_deleted, clear_expired
from app.models import CalendarEvent
from tests import factories
from workers import housekeeping

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
URL = "/api/v1/calendar_events"
OLD = NOW - 92 * DAY  # EVENT_RETENTION_DAYS and the day of the window, and one more
_numbers = count()


@pytest.fixture
def add_events(sessions):
    async def add(calendar_id, *rows):
        async with transaction(sessions) as session:
            project_id = await session.scalar(
                text("SELECT project_id FROM calendars WHERE id = :id"), {"id": calendar_id}
            )
            values = [
                {
                    "id": new_id("evt"), "project_id": project_id, "calendar_id": calendar_id, "content_hash": b"",
                    "platform_uuid": f"p{next(_numbers)}", "is_deleted": False, "start_time": OLD, "end_time": OLD,
                    "created_at": OLD, "updated_at": OLD, **row,
                }
                for row in rows
            ]  # fmt: skip
            await session.execute(insert(CalendarEvent), values)
        return [row["id"] for row in values]

    return add


@pytest.fixture
async def calendar_id(sessions, settings, project):
    return await factories.add_calendar(sessions, settings, project.id, secrets={}, deduplication_key="u1")


async def left(sessions):
    async with sessions() as session:
        return set(await session.scalars(text("SELECT id FROM calendar_events")))


async def add_bot(sessions, project_id, event_id):
    async with transaction(sessions) as session:
        await session.execute(
            text(
                "INSERT INTO bots (id, project_id, calendar_event_id, join_at, bot_name, state) "
                "VALUES (:id, :project_id, :event_id, now(), 'b', 'launched')"
            ),
            {"id": new_id("bot"), "project_id": project_id, "event_id": event_id},
        )


async def test_what_was_over_or_deleted_long_before_the_window_goes(
    sessions, settings, project, calendar_id, add_events
):
    recent = NOW - 90 * DAY
    expired = await add_events(
        calendar_id,
        {},
        {"end_time": None},
        {"is_deleted": True},
        {"is_deleted": True, "start_time": NOW + 9 * DAY, "end_time": NOW + 10 * DAY},
        {"is_deleted": True, "start_time": None, "end_time": None},
    )
    kept = await add_events(
        calendar_id,
        {"end_time": recent},
        {"updated_at": recent},  # a client has yet to see that it was moved into the past
        {"is_deleted": True, "updated_at": recent},
        {"start_time": None, "end_time": None},
        {"start_time": recent, "end_time": None},
        {"start_time": NOW, "end_time": NOW},
        {},
        {"is_deleted": True},
    )
    for event_id in kept[-2:]:
        await add_bot(sessions, project.id, event_id)
    assert await clear_expired(sessions, settings) == len(expired)
    assert await left(sessions) == set(kept)


async def test_of_a_hosted_calendar_only_what_was_deleted_goes(sessions, settings, project, api, add_events):
    response = await api.post(
        "/api/v1/calendars",
        json={"platform": "local", "name": "Team", "owner_email": "o@example.com", "timezone": "UTC"},
    )
    live, _ = await add_events(response.json()["id"], {}, {"is_deleted": True})
    assert await clear_expired(sessions, settings) == 1
    assert await left(sessions) == {live}


@pytest.mark.settings(event_retention_days=0)
async def test_retention_of_0_days_is_for_ever(sessions, settings, calendar_id, add_events):
    await add_events(calendar_id, {}, {"is_deleted": True})
    assert await clear_expired(sessions, settings) == 0


async def test_a_window_that_has_not_moved_on_keeps_its_rows(sessions, settings, calendar_id, add_events):
    await add_events(calendar_id, {})
    async with transaction(sessions) as session:
        await session.execute(text("UPDATE calendars SET window_start = now() - interval '9 days'"))
    assert await clear_expired(sessions, settings) == 0


async def test_rows_are_kept_beyond_their_calendars_own_window(
    sessions, settings, project, calendar_id, add_events
):
    wide = await factories.add_calendar(sessions, settings, project.id, secrets={}, window_past_days=30)
    narrow = await factories.add_calendar(sessions, settings, project.id, secrets={}, window_past_days=0)
    times = {f"p{days}": NOW - timedelta(days=days, hours=12) for days in (89, 90, 91, 119, 120)}
    for calendar in (calendar_id, wide, narrow):
        rows = ({"platform_uuid": key, "end_time": at, "updated_at": at} for key, at in times.items())
        await add_events(calendar, *rows)
    await clear_expired(sessions, settings)
    kept = {
        calendar: set(await factories.load_events(sessions, calendar))
        for calendar in (calendar_id, wide, narrow)
    }
    assert kept == {calendar_id: {"p89", "p90"}, wide: {"p89", "p90", "p91", "p119"}, narrow: {"p89"}}


async def test_workers_share_the_clearing_and_skip_calendars_that_are_written(
    sessions, settings, project, add_events, monkeypatch
):
    monkeypatch.setattr(retention, "_CALENDARS_AT_ONCE", 2)
    monkeypatch.setattr(retention, "_ROWS_AT_ONCE", 7)
    calendars = [await factories.add_calendar(sessions, settings, project.id, secrets={}) for _ in range(5)]
    for calendar in calendars:
        await add_events(calendar, *({} for _ in range(30)))
    async with transaction(sessions) as writer:
        # The row becomes an event to come: a worker that clears by what it saw before would delete the change.
        await writer.execute(
            text("SELECT FROM calendars WHERE id = :id FOR NO KEY UPDATE"), {"id": calendars[0]}
        )
        moved = await writer.scalar(
            text(
                "UPDATE calendar_events SET end_time = now(), updated_at = now() WHERE id = "
                "(SELECT id FROM calendar_events WHERE calendar_id = :id LIMIT 1) RETURNING id"
            ),
            {"id": calendars[0]},
        )
        done = await asyncio.gather(*(clear_expired(sessions, settings) for _ in range(3)))
        assert sum(done) == 120
    assert await clear_expired(sessions, settings) == 29
    assert await left(sessions) == {moved}


async def test_a_worker_clears_at_its_start(sessions, settings, calendar_id, add_events, worker):
    await add_events(calendar_id, {})
    # The first round may have come before the row: the next worker's is its own first.
    for _ in range(100):
        if not await left(sessions):
            break
        pruning = asyncio.create_task(housekeeping.prune_expired(sessions, settings).run())
        await asyncio.sleep(0.1)
        pruning.cancel()
    assert await left(sessions) == set()


async def test_a_step_that_fails_does_not_keep_the_others_from_theirs(
    sessions, settings, project, calendar_id, add_events, monkeypatch
):
    async def fail(*_args, **_kwargs):
        raise RuntimeError

    async with transaction(sessions) as session:
        await session.execute(
            text(
                "INSERT INTO worker_heartbeats (id, seen_at) "
                "SELECT 'w' || n, now() - interval '2 hours' FROM generate_series(1, 25) n"
            )
        )
        await session.execute(
            text(
                "INSERT INTO idempotent_answers (project_id, key, request_sha256, created_at) "
                "SELECT :id, 'k' || n, '', now() - interval '25 hours' FROM generate_series(1, 25) n"
            ),
            {"id": project.id},
        )
    await add_events(calendar_id, {})
    monkeypatch.setattr(db, "_BATCH_ROWS", 10)
    monkeypatch.setattr(housekeeping, "prune_mail_contents", fail)
    monkeypatch.setattr(housekeeping, "prune_deliveries", fail)
    pruning = asyncio.create_task(housekeeping.prune_expired(sessions, settings).run())
    try:
        async with asyncio.timeout(10):
            while await left(sessions):
                await asyncio.sleep(0.05)
    finally:
        pruning.cancel()
    async with sessions() as session:
        for table in ("worker_heartbeats", "idempotent_answers"):
            assert await session.scalar(text(f"SELECT count(*) FROM {table}")) == 0


# -- deleted calendars --------------------------------------------------------------------------------------


async def test_the_api_hides_a_deleted_calendars_events_at_once(
    sessions, settings, project, calendar_id, api, add_events, monkeypatch
):
    event_id, *_ = await add_events(calendar_id, *({"start_time": NOW} for _ in range(30)))
    other = await factories.add_calendar(sessions, settings, project.id, secrets={})
    (others,) = await add_events(other, {})
    await add_bot(sessions, project.id, event_id)
    assert (await api.delete(f"/api/v1/calendars/{calendar_id}")).status_code == 200
    assert len(await left(sessions)) == 31  # they are only hidden yet
    for query in ({}, {"ordering": "start_time"}, {"start_time_gte": "2020-01-01T00:00:00Z"}):
        listed = (await api.get(URL, params=query)).json()["results"]
        assert [result["id"] for result in listed] == [others], query
    for query in ({"calendar_id": calendar_id}, {"calendar_deduplication_key": "u1"}, {"event_id": event_id}):
        assert (await api.get(URL, params=query)).json()["results"] == [], query
    assert (await api.get(f"{URL}/{event_id}")).status_code == 404
    bot = {"calendar_event_id": event_id, "bot_name": "b"}
    assert (await api.post("/api/v1/bots", json=bot)).status_code in {400, 404}
    # The key is free; what comes under it is not taken for what was.
    again = await factories.add_calendar(sessions, settings, project.id, secrets={}, deduplication_key="u1")
    (new,) = await add_events(again, {})
    monkeypatch.setattr(retention, "_ROWS_AT_ONCE", 7)
    assert sum(await asyncio.gather(*(clear_deleted(sessions) for _ in range(3)))) == 30
    assert await left(sessions) == {others, new}
    async with sessions() as session:
        assert await session.scalar(text("SELECT count(*) FROM deleted_calendars")) == 0


async def test_a_worker_clears_what_another_one_began(
    sessions, project, calendar_id, api, add_events, monkeypatch, start_worker
):
    await add_events(calendar_id, *({} for _ in range(30)))
    await api.delete(f"/api/v1/calendars/{calendar_id}")
    with monkeypatch.context() as patch:
        patch.setattr(retention, "_ROWS_AT_ONCE", 7)
        patch.setattr(retention, "_clear_batch", die_after(2, retention._clear_batch))
        with pytest.raises(asyncio.CancelledError):
            await clear_deleted(sessions)
    assert len(await left(sessions)) == 16
    await start_worker()
    async with asyncio.timeout(20):
        while await left(sessions):
            await asyncio.sleep(0.05)


def die_after(times, batch):
    """`batch`, which is cut off within its transaction once it was called so often."""
    calls = count()

    async def cut(*args):
        done = await batch(*args)
        if next(calls) >= times:
            raise asyncio.CancelledError
        return done

    return cut


async def test_what_was_decided_about_expired_events_goes_with_them(
    sessions, settings, project, calendar_id, add_events
):
    expired, cancelled, kept = await add_events(
        calendar_id, {}, {"is_deleted": True}, {"start_time": NOW, "end_time": NOW + DAY}
    )
    async with transaction(sessions) as session:
        for table, column, value in (
            ("event_bot_policies", "policy", "'never'"),
            ("deleted_rule_bots", "join_at", "e.start_time"),
        ):
            await session.execute(
                text(
                    f"INSERT INTO {table} (calendar_event_id, project_id, calendar_id, {column}) "
                    f"SELECT e.id, e.project_id, e.calendar_id, {value} FROM calendar_events e"
                )
            )
        # The meeting of a cancelled event may be ahead: other calendars' events of it get no bot.
        await session.execute(
            text(
                "UPDATE deleted_rule_bots SET join_at = now() + interval '9 days' WHERE calendar_event_id = :id"
            ),
            {"id": cancelled},
        )
    assert await clear_expired(sessions, settings) == 2
    async with sessions() as session:
        policies = set(await session.scalars(text("SELECT calendar_event_id FROM event_bot_policies")))
        marks = set(await session.scalars(text("SELECT calendar_event_id FROM deleted_rule_bots")))
    assert (policies, marks) == ({kept}, {cancelled, kept})
    assert expired not in marks
