"""The one writer of calendar_events (app/events/writer.py)."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from app.core.db import transaction
from app.events.data import RemoteEvent, Unannounced, Window
from app.events.writer import apply_changes
from app.models import Calendar
from tests import factories

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
WINDOW = Window(NOW - timedelta(days=1), NOW + timedelta(days=28))
MICROSECOND = timedelta(microseconds=1)


@dataclass
class Ref:
    calendar_id: str
    project_id: str


@pytest.fixture
async def ref(sessions, settings, project):
    return Ref(await factories.add_calendar(sessions, settings, project.id, secrets={}), project.id)


def remote(name: str, **fields) -> RemoteEvent:
    values = {"start_time": NOW, "end_time": NOW + timedelta(hours=1), "name": name, "raw": "{}", **fields}
    return RemoteEvent(platform_uuid=name, **values)


async def apply(sessions, ref, events, *, removed=(), earlier=Unannounced(), is_announced_now=False):  # noqa: B008
    """`removed`: pairs of a stored event's platform_uuid and the new `raw`."""
    stored = await factories.load_events(sessions, ref.calendar_id)
    async with transaction(sessions) as session:
        await session.execute(select(Calendar.id).where(Calendar.id == ref.calendar_id).with_for_update())
        return await apply_changes(
            session,
            ref,
            events,
            window=WINDOW,
            removed={stored[name].id: raw for name, raw in removed},
            earlier=earlier,
            is_announced_now=is_announced_now,
            bot_platforms={"zoom"},
        )


async def counters(sessions, ref) -> tuple[Unannounced, datetime | None]:
    async with transaction(sessions) as session:
        row = await session.get_one(Calendar, ref.calendar_id)
        unannounced = Unannounced(
            row.unannounced_since, row.unannounced_created, row.unannounced_updated, row.unannounced_deleted
        )
        return unannounced, row.last_change_at


async def test_each_changed_row_has_a_time_of_its_own_and_unchanged_rows_keep_theirs(sessions, ref) -> None:
    events = [remote("a"), remote("b"), remote("c")]
    await apply(sessions, ref, events)
    before = await factories.load_events(sessions, ref.calendar_id)
    events = [events[0], replace(events[1], location="Room"), remote("d")]
    written = await apply(sessions, ref, events, removed=[("c", '{"status":"cancelled"}')])
    after = await factories.load_events(sessions, ref.calendar_id)
    assert after["a"].updated_at == before["a"].updated_at
    first = written.unannounced.since
    assert [after[name].updated_at - first for name in "bdc"] == [
        0 * MICROSECOND,
        MICROSECOND,
        2 * MICROSECOND,
    ]
    assert first > max(event.updated_at for event in before.values())
    assert (after["c"].is_deleted, after["c"].raw, after["b"].location) == (
        True,
        {"status": "cancelled"},
        "Room",
    )
    assert await counters(sessions, ref) == (written.unannounced, after["c"].updated_at)
    assert written.unannounced == Unannounced(first, created=1, updated=1, deleted=1)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, "1"),
        ('{"status":"cancelled"}', "1"),
        ('{"status":"cancelled","etag":"2"}', "2"),
        ('{"etag":null}', "1"),
        ('{"etag":7}', "1"),
        ('{"etag":""}', "1"),
        ('{"etag":{"a":1}}', "1"),
        (f'{{"etag":"{"x" * 2_000}"}}', "1"),
    ],
)
async def test_a_deleted_event_has_the_etag_of_its_raw(sessions, ref, raw: str | None, expected: str) -> None:
    await apply(sessions, ref, [remote("a", etag="1")])
    await apply(sessions, ref, [], removed=[("a", raw)])
    assert (await factories.load_events(sessions, ref.calendar_id))["a"].etag == expected


async def test_changes_that_were_not_announced_add_up(sessions, ref) -> None:
    earlier = Unannounced(NOW, created=3, updated=2, deleted=1)
    written = await apply(sessions, ref, [remote("a"), remote("b")], earlier=earlier)
    assert written.unannounced == Unannounced(NOW, created=5, updated=2, deleted=1)
    assert (await counters(sessions, ref))[0] == written.unannounced
    assert (await apply(sessions, ref, [remote("a")], earlier=earlier)).unannounced == earlier


async def test_changes_that_are_announced_now_are_not_kept_for_later(sessions, ref) -> None:
    written = await apply(sessions, ref, [remote("a")], is_announced_now=True)
    assert written.unannounced.created == 1
    unannounced, last_change_at = await counters(sessions, ref)
    assert unannounced == Unannounced()
    assert last_change_at == written.unannounced.since
