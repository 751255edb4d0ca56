"""While many calendars of a platform fail alike: none is blamed, one probe at a time looks, all come back."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from starlette.responses import Response

from app.core.clock import utcnow
from app.core.db import Sessions, transaction
from app.core.ids import new_id
from app.models import Calendar, SyncBreaker
from app.outages import breakers
from app.settings import Settings
from app.sync import failures, repository
from app.sync.engine import LEASE_FOR, SyncEngine
from tests import factories
from tests.conftest import TestProject
from tests.fakes.google import FakeGoogle
from tests.fakes.server import serve

FOREVER = 10**6


class Fleet:
    """Google calendars of several projects, and a worker that is moved by hand."""

    def __init__(self, fake: FakeGoogle, settings: Settings, sessions: Sessions, syncs: SyncEngine) -> None:
        self.fake = fake
        self.settings = settings
        self.sessions = sessions
        self.syncs = syncs

    async def add(self, project: TestProject, count: int, *, missing: bool = False) -> list[str]:
        """Connected calendars that are due; `missing` ones are not known at Google."""
        ids = []
        for _ in range(count):
            name = new_id("cal").lower()
            if not missing:
                self.fake.add_calendar(name)
                start = utcnow() + timedelta(hours=2)
                self.fake.add_event(start=start, end=start + timedelta(hours=1), calendar_id=name)
            ids.append(
                await factories.add_calendar(
                    self.sessions,
                    self.settings,
                    project.id,
                    platform_uuid=name,
                    client_id=self.fake.client_id,
                    secrets={
                        "client_secret": self.fake.client_secret,
                        "refresh_token": self.fake.refresh_token,
                    },
                )
            )
        return ids

    async def make_due(self, ids: Sequence[str]) -> None:
        async with transaction(self.sessions) as session:
            await session.execute(
                update(Calendar)
                .where(Calendar.id.in_(ids))
                .values(next_sync_at=func.clock_timestamp(), sync_forced_before=None)
            )

    async def sync(self, ids: Sequence[str]) -> None:
        """One after the other, each as if it were due."""
        for calendar_id in ids:
            await factories.sync_now(self.syncs, self.sessions, calendar_id)

    async def work(self, ids: Sequence[str], *, seconds: float = 20) -> None:
        """As a worker does, until all of them have been synced without a failure."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            claims = await self.syncs.claim(16)
            await asyncio.gather(*map(self.syncs.handle, claims))
            rows = await self.rows(ids)
            if all(row.sync_failing_since is None and row.last_successful_sync_at for row in rows):
                return
            await asyncio.sleep(0.02)
        raise AssertionError("not all were synced")

    async def rows(self, ids: Sequence[str]) -> Sequence[Calendar]:
        async with self.sessions() as session:
            return (await session.scalars(select(Calendar).where(Calendar.id.in_(ids)))).all()

    async def breaker(self, scope: str = "google") -> SyncBreaker | None:
        async with self.sessions() as session:
            return await session.get(SyncBreaker, scope)

    async def is_open(self, scope: str = "google") -> bool:
        breaker = await self.breaker(scope)
        return breaker is not None and breaker.opened_at is not None

    async def shift(self, statement: str) -> None:
        async with transaction(self.sessions) as session:
            await session.execute(text(statement))

    def lists(self) -> int:
        return len(self.fake.requests_to("events.list"))


@pytest.fixture
async def fleet(
    google_settings: Settings,
    fake_google: tuple[FakeGoogle, str],
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Fleet]:
    monkeypatch.setattr(breakers, "_PROBE_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(breakers, "_PROBE_SELDOM_SECONDS", {"platform": 0.05})
    monkeypatch.setattr(breakers, "_LOOK_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(breakers, "_RELEASE_PER_SECOND", 50.0)
    monkeypatch.setattr(failures, "_RETRY_WITHIN_SYNC_AFTER_SECONDS", 0.01)
    async with factories.sync_engine(google_settings, sessions) as syncs:
        yield Fleet(fake_google[0], google_settings, sessions, syncs)


# Outages whose responses blame the calendar wrongly, and one without any response.
OUTAGES: list[dict[str, Any]] = [
    {"status": 401, "reason": "authError"},
    {"status": 404, "reason": "notFound"},
    {"status": 503, "reason": "backendError"},
    {"kind": "reset"},
]


@pytest.mark.parametrize("outage", OUTAGES)
@pytest.mark.settings(calendar_gone_confirm_seconds=0)
async def test_an_outage_disconnects_no_calendar_and_all_come_back_soon_after_it(
    fleet: Fleet, project: TestProject, other_project: TestProject, other_api: Any, outage: dict[str, Any]
) -> None:
    ids = await fleet.add(project, 12) + await fleet.add(other_project, 12)
    await fleet.sync(ids)
    fleet.fake.inject_fault("events.list", count=FOREVER, **outage)
    for _ in range(5):
        await fleet.sync(ids)
    rows = await fleet.rows(ids)
    assert {row.state for row in rows} == {"connected"}
    assert await fleet.is_open()
    assert {row.outage_scope for row in rows} == {"google"}
    held = [row for row in rows if row.sync_failure_count == 0]
    assert len(held) >= 10
    assert {row.sync_failing_since for row in held} == {None}
    theirs = {row.id for row in held if row.project_id == other_project.id}
    shown = (await other_api.get(f"/api/v1/calendars/{theirs.pop()}")).json()
    assert (shown["state"], shown["sync_failing_since"], shown["sync_failure"]["code"]) == (
        "connected", None, "platform_outage",
    )  # fmt: skip

    fleet.fake.clear_faults()
    await fleet.work(ids)
    rows = await fleet.rows(ids)
    assert {(row.state, row.outage_scope, row.sync_failure_count) for row in rows} == {("connected", None, 0)}
    assert not await fleet.is_open()


async def test_while_the_breaker_is_open_only_probes_reach_the_provider(
    fleet: Fleet, project: TestProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await fleet.add(project, 8)
    fleet.fake.inject_fault("events.list", 503, "backendError", count=FOREVER)
    await fleet.sync(ids)
    assert await fleet.is_open()
    monkeypatch.setattr(breakers, "_PROBE_SELDOM_SECONDS", {"platform": 3600.0})
    monkeypatch.setattr(breakers, "_PROBE_EVERY_SECONDS", 3600.0)
    await fleet.shift("UPDATE sync_breakers SET next_probe_at = now(), probe_until = NULL")
    fleet.fake.requests.clear()
    await fleet.make_due(ids)
    claims = await fleet.syncs.claim(16)
    assert len(claims) == 8
    await asyncio.gather(*map(fleet.syncs.handle, claims))
    assert fleet.lists() == 1
    assert await fleet.syncs.claim(16) == []


async def test_a_probe_that_was_killed_is_followed_by_another(fleet: Fleet, project: TestProject) -> None:
    ids = await fleet.add(project, 8)
    fleet.fake.inject_fault("events.list", 503, "backendError", count=FOREVER)
    await fleet.sync(ids)
    fleet.fake.clear_faults()
    await fleet.make_due(ids[:1])
    async with transaction(fleet.sessions) as session:
        [killed] = await repository.claim_due(session, limit=1, lease_for=LEASE_FOR)
    await fleet.shift("UPDATE sync_breakers SET next_probe_at = now(), probe_until = NULL")
    assert await breakers.Breakers(fleet.sessions).take_probe("google", killed.project_id)
    # The lease of the killed probe holds the others up, not for long.
    await fleet.sync(ids[1:])
    assert await fleet.is_open()
    await fleet.shift("UPDATE sync_breakers SET next_probe_at = now(), probe_until = now()")
    await fleet.work(ids[1:])
    assert not await fleet.is_open()


async def test_a_release_that_was_cut_short_is_continued_by_any_worker(
    fleet: Fleet, project: TestProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await fleet.add(project, 8)
    fleet.fake.inject_fault("events.list", 503, "backendError", count=FOREVER)
    await fleet.sync(ids)
    fleet.fake.clear_faults()
    # The worker that finds the platform back is killed before it has released a single one.
    await breakers.Breakers(fleet.sessions).close("google")
    assert {row.outage_scope for row in await fleet.rows(ids)} == {"google"}
    monkeypatch.setattr(breakers, "_RELEASE_BATCH", 3)
    await fleet.work(ids)
    breaker = await fleet.breaker()
    assert breaker is not None
    assert breaker.release_until is None


async def test_a_large_release_does_not_hold_up_claims(
    fleet: Fleet, project: TestProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await fleet.add(project, 8)
    await fleet.shift("UPDATE calendars SET outage_scope = 'google'")
    await fleet.shift(
        "INSERT INTO sync_breakers (scope, opened_at, outage_since) VALUES ('google', now(), now())"
    )
    monkeypatch.setattr(breakers, "_RELEASE_BATCH", 1)
    looking = breakers.Breakers(fleet.sessions)
    await looking.close("google")
    await looking.look()
    waiting = [row for row in await fleet.rows(ids) if row.outage_scope is not None]
    assert 0 < len(waiting) < 8
    await fleet.work(ids)


async def test_one_calendars_refusals_open_nothing(fleet: Fleet, project: TestProject) -> None:
    [broken] = await fleet.add(project, 1, missing=True)
    for _ in range(10):
        await fleet.sync([broken])
    assert not await fleet.is_open()


async def test_a_refused_oauth_client_is_tried_by_one_refresh_at_a_time(
    fleet: Fleet, project: TestProject, api: Any
) -> None:
    ids = await fleet.add(project, 8)
    fleet.fake.inject_fault("token", 401, "invalid_client", count=FOREVER)
    await fleet.sync(ids[:3])
    scope = f"client:{project.id}:{fleet.fake.client_id}"
    assert await fleet.is_open(scope)
    await fleet.shift("UPDATE sync_breakers SET next_probe_at = now() + interval '1 hour'")
    fleet.fake.requests.clear()
    await fleet.sync(ids)
    assert fleet.fake.requests == []
    rows = await fleet.rows(ids)
    assert {(row.state, row.outage_scope) for row in rows} == {("connected", scope)}
    # New secrets are tried at once, and bring all others back.
    fleet.fake.clear_faults()
    secrets = {"client_secret": fleet.fake.client_secret, "refresh_token": fleet.fake.refresh_token}
    assert (await api.patch(f"/api/v1/calendars/{ids[0]}", json=secrets)).status_code == 200
    await fleet.work(ids)
    assert not await fleet.is_open(scope)


async def test_a_project_full_of_broken_calendars_stops_no_other(
    fleet: Fleet, project: TestProject, other_project: TestProject
) -> None:
    [well] = await fleet.add(other_project, 1)
    await fleet.sync([well])
    broken = await fleet.add(project, 10, missing=True)
    await fleet.sync(broken)
    assert not await fleet.is_open()


async def test_a_project_full_of_broken_calendars_does_not_keep_the_breaker_open(
    fleet: Fleet, project: TestProject, other_project: TestProject
) -> None:
    broken = await fleet.add(project, 10, missing=True)
    await fleet.sync(broken)
    # It was the only active project, so no other one knows better yet.
    assert await fleet.is_open()
    [well] = await fleet.add(other_project, 1)
    await fleet.work([well])
    assert not await fleet.is_open()
    assert {row.state for row in await fleet.rows(broken)} == {"connected"}


async def test_probes_take_turns_between_projects(
    fleet: Fleet, project: TestProject, other_project: TestProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No probe before the first of those that are looked at, however long all this takes.
    monkeypatch.setattr(breakers, "_PROBE_EVERY_SECONDS", 3600.0)
    ids = await fleet.add(project, 6) + await fleet.add(other_project, 6)
    fleet.fake.inject_fault("events.list", 503, "backendError", count=FOREVER)
    await fleet.sync(ids)
    assert await fleet.is_open()
    probes = []
    for _ in range(4):
        await fleet.shift("UPDATE calendars SET next_sync_at = now() + interval '1 hour'")
        await fleet.shift("UPDATE sync_breakers SET next_probe_at = now(), probe_until = NULL")
        await asyncio.sleep(0.03)
        [claim] = await fleet.syncs.claim(16)
        await fleet.syncs.handle(claim)
        probes.append(claim.project_id)
    assert probes[0] == probes[2] != probes[1] == probes[3]


@pytest.mark.settings(calendar_gone_confirm_seconds=0)
async def test_a_part_of_a_platform_that_fails_alike_disconnects_no_calendar(
    fleet: Fleet, project: TestProject
) -> None:
    """The others' successes keep the breaker closed."""
    well = await fleet.add(project, 1)
    broken = await fleet.add(project, 12, missing=True)
    for _ in range(4):
        for calendar_id in broken:
            await fleet.sync([calendar_id])
            fleet.syncs._breakers._said_fine.clear()
            await fleet.sync(well)
    assert not await fleet.is_open()
    assert {row.state for row in await fleet.rows(broken)} == {"connected"}


async def test_a_breaker_that_no_calendar_waits_for_closes(
    fleet: Fleet, project: TestProject, api: Any
) -> None:
    broken = await fleet.add(project, 4, missing=True)
    await fleet.sync(broken)
    assert await fleet.is_open()
    for calendar_id in broken:
        assert (await api.delete(f"/api/v1/calendars/{calendar_id}")).status_code == 200
    await fleet.shift("UPDATE sync_breakers SET next_probe_at = now(), probe_until = NULL")
    await breakers.Breakers(fleet.sessions).look()
    assert not await fleet.is_open()
    # Nor does the next failure open it again by the votes of those that are deleted.
    await fleet.sync(await fleet.add(project, 1, missing=True))
    assert not await fleet.is_open()


@pytest.mark.parametrize(
    "cannot", ["state = 'disconnected'", "lease_until = now() + interval '1 minute', lease_token = 'other'"]
)
async def test_a_project_that_cannot_be_asked_does_not_take_the_probes_turn(
    fleet: Fleet, project: TestProject, other_project: TestProject, cannot: str
) -> None:
    first, second = sorted((project, other_project), key=lambda one: one.id)
    ids = await fleet.add(first, 3) + await fleet.add(second, 1)
    fleet.fake.inject_fault("events.list", 503, "backendError", count=FOREVER)
    await fleet.sync(ids)
    await fleet.shift(f"UPDATE calendars SET {cannot} WHERE project_id = '{first.id}'")
    await fleet.shift(
        "UPDATE sync_breakers SET next_probe_at = now(), probe_until = NULL, probe_project_id = NULL"
    )
    await fleet.shift("UPDATE calendars SET next_sync_at = now() + interval '1 hour'")
    [claim] = await fleet.syncs.claim(16)
    assert claim.calendar_id == ids[-1]


async def test_a_calendar_that_went_well_is_asked_before_those_that_fail(
    fleet: Fleet, project: TestProject, other_project: TestProject
) -> None:
    """Many projects full of broken calendars take no more than a moment of the others' time."""
    [well] = await fleet.add(other_project, 1)
    await fleet.sync([well])
    broken = []
    for _ in range(5):
        many = TestProject(new_id("proj"), "")
        await fleet.shift(f"INSERT INTO projects (id, name) VALUES ('{many.id}', 'many')")
        broken += await fleet.add(many, 3, missing=True)
    await fleet.sync(broken)
    assert await fleet.is_open()
    await fleet.shift("UPDATE sync_breakers SET next_probe_at = now() + interval '1 hour'")
    await fleet.sync([well])
    assert (await fleet.rows([well]))[0].outage_scope == "google"
    await fleet.shift("UPDATE calendars SET next_sync_at = now() + interval '1 hour'")
    # Even where it was the last one's turn.
    await fleet.shift(
        "UPDATE sync_breakers SET next_probe_at = now(), probe_until = NULL, "
        f"probe_project_id = '{other_project.id}'"
    )
    [claim] = await fleet.syncs.claim(16)
    assert claim.calendar_id == well
    await fleet.syncs.handle(claim)
    assert not await fleet.is_open()


async def test_our_own_database_is_no_fault_of_the_platform(
    fleet: Fleet, project: TestProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await fleet.add(project, 4)
    load_state = repository.load_state
    asked: set[str] = set()

    async def slow_once(session: Any, claim: repository.Claim) -> Any:
        if claim.calendar_id not in asked:
            asked.add(claim.calendar_id)
            raise TimeoutError  # as asyncpg does, of a connection or a statement
        return await load_state(session, claim)

    monkeypatch.setattr(repository, "load_state", slow_once)
    await fleet.sync(ids[:1])  # and with it all that are due
    assert {row.sync_failure_code for row in await fleet.rows(ids)} == {"internal_error"}
    assert not await fleet.is_open()


async def test_a_new_feed_waits_only_a_moment_for_a_host_that_others_feeds_have_left(
    settings: Settings, sessions: Sessions, project: TestProject, other_project: TestProject
) -> None:
    responses = {"/well": Response(_FEED, media_type="text/calendar")}

    async def host(scope: Any, receive: Any, send: Any) -> None:
        await responses.get(scope["path"], Response(status_code=404))(scope, receive, send)

    async with serve(host) as url, factories.sync_engine(settings, sessions) as syncs:

        async def add(owner: TestProject, path: str) -> str:
            secrets = {"feed_url": f"{url}/{path}"}
            return await factories.add_calendar(sessions, settings, owner.id, platform="ics", secrets=secrets)

        for n in range(3):
            await factories.sync_now(syncs, sessions, await add(project, f"missing{n}"))
        async with transaction(sessions) as session:
            opened = await session.execute(
                text(
                    "UPDATE sync_breakers SET opened_at = now() - interval '1 day', probe_until = NULL, "
                    "next_probe_at = now() + interval '1 minute' RETURNING scope"
                )
            )
            assert [scope for (scope,) in opened] == ["feed:127.0.0.1"]
        new = await add(other_project, "well")
        await factories.sync_now(syncs, sessions, new)
        async with transaction(sessions) as session:
            wait = await session.scalar(text("SELECT next_probe_at - now() FROM sync_breakers"))
        assert wait < timedelta(seconds=6)
        async with transaction(sessions) as session:
            await session.execute(text("UPDATE calendars SET next_sync_at = now() + interval '1 hour'"))
            await session.execute(text("UPDATE sync_breakers SET next_probe_at = now()"))
        [claim] = await syncs.claim(16)
        await syncs.handle(claim)
        assert (claim.calendar_id, await factories.live_names(sessions, new)) == (new, ["Well"])


_FEED = "\r\n".join(
    [
        "BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//tests//EN", "BEGIN:VEVENT", "UID:well", "SUMMARY:Well",
        f"DTSTART:{utcnow() + timedelta(days=1):%Y%m%dT%H0000Z}", "DURATION:PT1H", "END:VEVENT", "END:VCALENDAR", "",
    ]
)  # fmt: skip
