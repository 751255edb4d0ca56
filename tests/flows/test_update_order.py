"""No change is ever missed (contract 4): clients that keep the largest `updated_at` see every change."""

import asyncio
import random
from datetime import datetime, timedelta

import pytest
from sqlalchemy import text

from app.calendar_events.visibility import enter_as_writer, load_horizon
from app.core.clock import utcnow
from app.core.db import ReadSession, Session, create_sessions, transaction
from app.core.http import httpx
from app.models import Calendar
from tests import factories
from tests.conftest import TestProject
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
