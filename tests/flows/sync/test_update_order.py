"""No change is ever missed: clients that keep the largest `updated_at` see every change.

See docs/reference/http-api.md, "No change is missed".
"""

import asyncio
import random
from datetime import datetime, timedelta
from urllib.parse import quote

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from app.core.clock import isoformat, utcnow
from app.core.db import ReadSession, Session, create_engine, create_sessions, transaction
from app.core.http import httpx
from app.core.ids import new_id
from app.events.data import RemoteEvent, Unannounced
from app.events.diff import EventWrite
from app.events.repository import record_changes, write_events
from app.events.visibility import enter_as_writer, load_horizon
from app.models import Calendar
from app.settings import Settings
from app.sync.repository import Claim
from migrations.revisions import upgrade_to_head
from tests import factories
from tests.conftest import FERNET_KEY, TestProject
from tests.fakes.google import FakeGoogle

_CALENDARS = 12
_ROUNDS = 6


class PollingClient:
    """Polls the whole project, as applications do, and remembers what it saw of each event."""

    def __init__(self, api: httpx.AsyncClient) -> None:
        self._api = api
        self._largest: str | None = None
        self.seen: dict[str, str] = {}

    async def poll(self) -> None:
        params = {"ordering": "updated_at"}
        if self._largest is not None:
            params["updated_after"] = self._largest
        url: str | None = str(httpx.URL("/api/v1/calendar_events", params=params))
        while url is not None:
            page = (await self._api.get(url)).raise_for_status().json()
            for event in page["results"]:
                self.seen[event["id"]] = event["updated_at"]
                self._largest = max(self._largest or "", event["updated_at"])
            url = page["next"]


async def test_a_client_polling_the_project_misses_nothing_while_many_calendars_sync(
    google_settings, sessions, project: TestProject, fake_google: tuple[FakeGoogle, str], api
) -> None:
    fake, _ = fake_google
    now = utcnow().replace(microsecond=0)
    names = [fake.add_calendar(f"c{n}@group.calendar.google.com") for n in range(_CALENDARS)]
    for number, name in enumerate(names):
        fake.seed(200, start=now + timedelta(hours=1), calendar_id=name, prefix=f"c{number}e")
    ids = [
        await factories.add_calendar(
            sessions,
            google_settings,
            project.id,
            platform_uuid=name,
            client_id=fake.client_id,
            secrets={"client_secret": fake.client_secret, "refresh_token": fake.refresh_token},
        )
        for name in names
    ]
    client = PollingClient(api)
    done = asyncio.Event()

    async def keep_polling() -> None:
        while not done.is_set():
            await client.poll()

    async def keep_changing(engine) -> None:
        choose = random.Random(7)
        for round_number in range(_ROUNDS):
            for number, name in enumerate(names):
                for n in choose.sample(range(200), choose.choice([1, 3, 150])):
                    fake.update_event(f"c{number}e{n:07}", calendar_id=name, summary=f"round {round_number}")
            async with transaction(sessions) as session:
                await session.execute(text("UPDATE calendars SET next_sync_at = now()"))
            claims = await engine.claim(100)
            await asyncio.gather(*(engine.handle(claim) for claim in claims))

    async with factories.sync_engine(google_settings, sessions) as engine:
        polling = asyncio.create_task(keep_polling())
        await keep_changing(engine)
        done.set()
        await polling
    await client.poll()

    async with sessions() as session:
        rows = await session.execute(
            text(
                "SELECT id, to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM calendar_events"
            )
        )
        assert {row[0]: row[1] for row in rows} == client.seen
    assert len(client.seen) == 200 * _CALENDARS
    assert len(ids) == _CALENDARS


@pytest.fixture
async def two_calendars(sessions, settings, project: TestProject) -> tuple[str, str]:
    secrets = {"client_secret": "s", "refresh_token": "r"}
    first = await factories.add_calendar(sessions, settings, project.id, secrets=secrets)
    return first, await factories.add_calendar(sessions, settings, project.id, secrets=secrets)


@pytest.fixture
def read_sessions(engine):
    return create_sessions(engine.execution_options(isolation_level="AUTOCOMMIT"))


async def horizon(read_sessions, project_id: str) -> datetime:
    async with read_sessions() as session:
        return await load_horizon(ReadSession(session), project_id)


async def test_the_horizon_stays_below_every_writer_in_flight(
    sessions, read_sessions, project: TestProject, other_project: TestProject, two_calendars
) -> None:
    first, second = two_calendars
    before = await horizon(read_sessions, project.id)
    async with transaction(sessions) as slow:
        slow_at = await enter_as_writer(slow, project_id=project.id, calendar_id=first)
        held = await horizon(read_sessions, project.id)
        assert before < held <= slow_at
        async with transaction(sessions) as quick:
            quick_at = await enter_as_writer(quick, project_id=project.id, calendar_id=second)
        assert quick_at > slow_at
        # The quick writer has committed; its rows are held back while the slow one could still undercut them.
        assert await horizon(read_sessions, project.id) == held
        assert await horizon(read_sessions, other_project.id) > slow_at
    assert await horizon(read_sessions, project.id) > quick_at


async def test_times_within_a_calendar_grow_even_if_the_clock_stood_still(
    sessions, project: TestProject, two_calendars
) -> None:
    first, _ = two_calendars
    ahead = utcnow() + timedelta(minutes=5)
    async with transaction(sessions) as session:
        row = await session.get(Calendar, first)
        assert row is not None
        row.last_change_at = ahead
    async with transaction(sessions) as session:
        at = await enter_as_writer(Session(session), project_id=project.id, calendar_id=first)
    assert at == ahead + timedelta(microseconds=1)


# PostgreSQL looks in the schema `paused` first, where the table of locks waits for the test's gate before or after it
# is copied. The statement under test is the real one.
_PAUSED = (
    "CREATE SCHEMA paused",
    """
    CREATE FUNCTION paused.locks() RETURNS SETOF pg_catalog.pg_locks LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_lock(1, 1), pg_advisory_unlock(1, 1);
        RETURN QUERY SELECT * FROM pg_catalog.pg_locks;
        PERFORM pg_advisory_lock(1, 2), pg_advisory_unlock(1, 2);
    END $$
    """,
    "CREATE VIEW paused.pg_locks AS SELECT * FROM paused.locks()",
)


@pytest.mark.changes_schema
@pytest.mark.parametrize("gate", [1, 2], ids=["before the locks are read", "after they are read"])
async def test_writers_that_come_while_the_horizon_is_looked_for_are_above_it(
    gate: int, sessions, settings, project: TestProject, two_calendars
) -> None:
    first, second = two_calendars
    async with transaction(sessions) as session:
        for statement in _PAUSED:
            await session.execute(text(statement))
    options = quote("-c search_path=paused,pg_catalog,public")
    paused = create_engine(f"{settings.required_database_url()}&options={options}")
    reader = paused.execution_options(isolation_level="AUTOCOMMIT")
    async with sessions() as holder, transaction(sessions) as slow:
        await holder.execute(text("SELECT pg_advisory_lock(1, :gate)"), {"gate": gate})
        # Thousands of locks of other programs, as pg_dump or a job queue holds them.
        await holder.execute(text("SELECT pg_advisory_lock(n) FROM generate_series(1, 4000) n"))
        looking = asyncio.create_task(horizon(create_sessions(reader), project.id))
        waits = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        while not await holder.scalar(waits):
            await asyncio.sleep(0.01)
        slow_at = await enter_as_writer(slow, project_id=project.id, calendar_id=first)
        async with transaction(sessions) as quick:
            quick_at = await enter_as_writer(quick, project_id=project.id, calendar_id=second)
        assert slow_at < quick_at
        await holder.execute(text("SELECT pg_advisory_unlock_all()"))
        found = await looking
    await reader.dispose()
    # A client that got the quick writer's row would never ask for the slow one's, which is older.
    assert found <= slow_at


async def test_a_client_polling_the_project_misses_nothing_while_thousands_of_locks_are_held(
    sessions, project: TestProject, api
) -> None:
    secrets = {"client_secret": "s", "refresh_token": "r"}
    settings = Settings(credentials_encryption_keys=SecretStr(FERNET_KEY))
    calendars = [
        await factories.add_calendar(sessions, settings, project.id, secrets=secrets) for _ in range(4)
    ]
    client = PollingClient(api)
    stop_at = asyncio.get_running_loop().time() + 2
    written: dict[str, str] = {}

    async def write(calendar_id: str) -> None:
        claim = Claim(calendar_id, project.id, "google", "", timedelta(0))
        while asyncio.get_running_loop().time() < stop_at:
            async with transaction(sessions) as session:
                lock = text("SELECT FROM calendars WHERE id = :id FOR UPDATE")
                await session.execute(lock, {"id": calendar_id})
                at = await enter_as_writer(session, project_id=project.id, calendar_id=calendar_id)
                event = RemoteEvent(platform_uuid=new_id("evt"), raw="{}")
                write = EventWrite(event, b"", is_deleted=False, change="created", stored_id=None)
                (event_id,) = await write_events(session, claim, [write], [at])
                await record_changes(session, claim, Unannounced(), last_change_at=at)
            written[event_id] = isoformat(at)

    async with sessions() as holder:
        await holder.execute(text("SELECT pg_advisory_lock(n) FROM generate_series(1, 4000) n"))
        writers = asyncio.gather(*map(write, calendars))
        while not writers.done():
            await client.poll()
        await writers
        await holder.execute(text("SELECT pg_advisory_unlock_all()"))
    await client.poll()
    assert written == client.seen


async def test_locks_of_other_programs_and_of_the_migration_are_no_writers(
    sessions, read_sessions, project: TestProject
) -> None:
    async with sessions() as session:
        bucket = await session.scalar(text("SELECT hashtext(:id) & 4095"), {"id": project.id})
        long_ago = (bucket << 51) | 7142201
        ahead = (bucket << 51) | int((utcnow() + timedelta(days=1)).timestamp() * 1_000_000)
        for key in (long_ago, ahead, -long_ago):
            await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        await session.execute(text("SELECT pg_advisory_xact_lock(:bucket << 19, 1)"), {"bucket": bucket >> 8})
        before = utcnow() - timedelta(seconds=5)
        assert await horizon(read_sessions, project.id) > before


@pytest.mark.changes_schema
async def test_a_migration_that_waits_for_another_hides_nothing_and_goes_on_after_it(
    sessions, read_sessions, settings, project: TestProject
) -> None:
    url = settings.required_database_url()
    async with sessions() as other:
        await other.execute(text("SELECT pg_advisory_lock(7142201, 1)"))
        migrating = asyncio.create_task(asyncio.to_thread(upgrade_to_head, url))
        await asyncio.sleep(0.5)
        assert not migrating.done()
        # It waits without a snapshot, for which CREATE INDEX CONCURRENTLY would wait in turn.
        idle = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_xmin IS NOT NULL AND pid <> pg_backend_pid()"
        assert await other.scalar(text(idle)) == 0
        assert await horizon(read_sessions, project.id) > utcnow() - timedelta(seconds=5)
        await other.execute(text("SELECT pg_advisory_unlock(7142201, 1)"))
    await migrating
