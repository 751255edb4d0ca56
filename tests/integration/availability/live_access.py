"""Live reads in tests: what they need, and calendars whose accounts the fake providers know."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from app.availability.live import BusyTime, LiveAccess, LiveRequest, LiveResult, read_live
from app.core.crypto import SecretBox
from app.core.db import Sessions
from app.core.http import operator_client
from app.providers.free_busy import Range
from app.settings import Settings
from tests.conftest import TestProject
from tests.factories import add_calendar
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
        self._sessions = sessions
        self._project = project

    async def google(self, fake: FakeGoogle, *, refresh_token: str | None = None, **fields: Any) -> str:
        """A calendar of the fake's account; its id."""
        secrets = {
            "client_secret": fake.client_secret,
            "refresh_token": refresh_token or fake.refresh_token,
        }
        return await add_calendar(
            self._sessions,
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
            self._sessions,
            self._settings,
            self._project.id,
            platform="microsoft",
            client_id=fake.client_id,
            secrets=secrets,
            **fields,
        )

    async def read(self, calendar_ids: Sequence[str], *ranges: Range) -> dict[str, LiveResult]:
        requests = [LiveRequest(one, ranges or [hours(0, 24)]) for one in calendar_ids]
        results = await read_live(self.access, self._project.id, requests)
        for result in results.values():
            assert (result.busy is None) != (result.error is None)
        return results

    async def read_one(self, calendar_id: str, *ranges: Range) -> LiveResult:
        return (await self.read([calendar_id], *ranges))[calendar_id]
