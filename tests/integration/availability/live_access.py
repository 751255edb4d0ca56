"""Live reads in tests: what they need, and calendars whose accounts the fake providers know."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert, update

from app.availability.live import BusyTime, LiveAccess, LiveRequest, LiveResult, read_live
from app.core.crypto import SecretBox
from app.core.db import Sessions, transaction
from app.core.http import operator_client
from app.core.ids import new_id
from app.models import Calendar
from app.providers.free_busy import Range
from app.settings import Settings
from tests.conftest import TestProject
from tests.factories import add_calendar, load_calendar
from tests.fakes.google import FakeGoogle
from tests.fakes.microsoft import FakeMicrosoft

# Far in the future, where a mirror covers nothing. A Monday.
DAY = datetime(2028, 3, 6, tzinfo=UTC)


def hours(start: float, end: float) -> Range:
    """A range on DAY; hours beyond 24 are on the next days."""
    return DAY + timedelta(hours=start), DAY + timedelta(hours=end)


def busy(start: float, end: float, status: Any = "busy") -> BusyTime:
    return BusyTime(*hours(start, end), status)


@contextlib.asynccontextmanager
async def live_access(settings: Settings, sessions: Sessions) -> AsyncIterator[LiveAccess]:
    async with operator_client() as client:
        access = LiveAccess(
            settings=settings,
            sessions=sessions,
            read_sessions=sessions,
            box=SecretBox(settings.required_fernet_keys()),
            client=client,
        )
        yield access
        await access.aclose()


class Reads:
    """`read_live` for a project, and calendars to read."""

    def __init__(
        self, access: LiveAccess, settings: Settings, sessions: Sessions, project: TestProject
    ) -> None:
        self.access = access
        self._settings = settings
        self.sessions = sessions
        self._project = project

    async def google(self, fake: FakeGoogle, *, refresh_token: str | None = None, **fields: Any) -> str:
        """A calendar of the fake's account; its id."""
        secrets = {
            "client_secret": fake.client_secret,
            "refresh_token": refresh_token or fake.refresh_token,
        }
        return await add_calendar(
            self.sessions,
            self._settings,
            self._project.id,
            client_id=fake.client_id,
            secrets=secrets,
            **fields,
        )

    async def microsoft(self, fake: FakeMicrosoft, *, refresh_token: str | None = None, **fields: Any) -> str:
        secrets = {
            "client_secret": fake.client_secret,
            "refresh_token": refresh_token or fake.refresh_token,
        }
        return await add_calendar(
            self.sessions,
            self._settings,
            self._project.id,
            platform="microsoft",
            client_id=fake.client_id,
            secrets=secrets,
            **fields,
        )

    async def share(self, calendar_id: str, platform_uuid: str) -> str:
        """Another calendar of the same account; its id."""
        shared = await load_calendar(self.sessions, calendar_id)
        new = new_id("cal")
        async with transaction(self.sessions) as session:
            await session.execute(
                insert(Calendar).values(
                    id=new,
                    project_id=shared.project_id,
                    platform=shared.platform,
                    platform_uuid=platform_uuid,
                    credentials_id=shared.credentials_id,
                    owner_email=shared.owner_email,
                )
            )
        return new

    async def change(self, calendar_id: str, **values: Any) -> None:
        async with transaction(self.sessions) as session:
            await session.execute(update(Calendar).where(Calendar.id == calendar_id).values(**values))

    async def check_untouched(self, calendar_id: str) -> None:
        """Check that a read has changed nothing about the calendar."""
        calendar = await load_calendar(self.sessions, calendar_id)
        assert calendar.state == "connected"
        assert calendar.sync_failure_count == 0
        assert calendar.sync_failing_since is None
        assert calendar.outage_scope is None

    async def row(self, calendar_id: str) -> Calendar:
        return await load_calendar(self.sessions, calendar_id)

    @staticmethod
    def requests(calendar_ids: Sequence[str], *ranges: Range) -> list[LiveRequest]:
        """For all of DAY, unless other ranges are given."""
        return [LiveRequest(one, ranges or [hours(0, 24)]) for one in calendar_ids]

    async def read(self, calendar_ids: Sequence[str], *ranges: Range) -> dict[str, LiveResult]:
        requests = self.requests(calendar_ids, *ranges)
        results = await read_live(self.access, self._project.id, requests)
        for result in results.values():
            assert (result.busy is None) != (result.error is None)
        return results

    async def read_one(self, calendar_id: str, *ranges: Range) -> LiveResult:
        return (await self.read([calendar_id], *ranges))[calendar_id]
