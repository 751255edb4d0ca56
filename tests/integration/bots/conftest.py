"""A calendar with events that bots can join."""

import pytest

from app.core.db import transaction
from app.core.ids import new_id
from app.models import CalendarEvent
from tests import factories
from tests.integration.bots.bots_api import LINK, in_hours


@pytest.fixture
async def calendar_id(sessions, settings, project):
    return await factories.add_calendar(
        sessions, settings, project.id, secrets={"client_secret": "s", "refresh_token": "r"}
    )


@pytest.fixture
def add_event(sessions, project, calendar_id):
    async def add(**fields):
        event_id = new_id("evt")
        values = {"start_time": in_hours(24), "end_time": in_hours(25), "meeting_url": LINK, **fields}
        async with transaction(sessions) as session:
            session.add(
                CalendarEvent(
                    id=event_id,
                    project_id=project.id,
                    calendar_id=calendar_id,
                    platform_uuid=event_id,
                    content_hash=b"",
                    **values,
                )
            )
        return event_id

    return add
