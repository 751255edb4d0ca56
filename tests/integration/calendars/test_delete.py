"""`DELETE /calendars/{id}`: what is deleted with a calendar."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text, update

from app.core.db import transaction
from app.core.lease import LeaseLost
from app.events.retention import clear_deleted
from app.models import Calendar, CalendarEvent, Credentials
from app.sync import repository as sync_repository
from tests.integration.calendars.calendars_api import (
    URL,
    add_event,
    create,
    deliveries,
    disconnect,
    subscribe,
)


async def test_deleting_takes_events_pending_deliveries_and_credentials_along(api, sessions, project):
    calendar, other = await create(api), await create(api)
    await subscribe(sessions, project.id, "calendar.state_change")
    for each in (calendar, other):
        await add_event(sessions, project.id, each["id"])
        await disconnect(sessions, each["id"])
        await api.patch(f"{URL}/{each['id']}", json={"client_secret": "x"})
    assert len(await deliveries(sessions)) == 2

    response = await api.delete(f"{URL}/{calendar['id']}")

    assert (response.status_code, response.content) == (200, b"")
    assert (await api.get(f"{URL}/{calendar['id']}")).status_code == 404
    assert (await api.delete(f"{URL}/{calendar['id']}")).status_code == 404
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(Credentials)) == 1
    listed = (await api.get("/api/v1/calendar_events")).json()["results"]
    assert [event["calendar_id"] for event in listed] == [other["id"]]
    await clear_deleted(sessions)
    async with sessions() as session:
        assert list(await session.scalars(select(CalendarEvent.calendar_id))) == [other["id"]]
    assert [delivery.calendar_id for delivery in await deliveries(sessions)] == [other["id"]]


async def test_shared_credentials_go_with_the_last_calendar_that_uses_them(api, sessions):
    first, second = await create(api), await create(api)
    async with transaction(sessions) as session:
        shared = select(Calendar.credentials_id).where(Calendar.id == first["id"]).scalar_subquery()
        await session.execute(
            update(Calendar).where(Calendar.id == second["id"]).values(credentials_id=shared)
        )

    async def count():
        async with sessions() as session:
            used = select(Calendar.id).where(Calendar.credentials_id == Credentials.id).exists()
            return await session.scalar(select(func.count()).select_from(Credentials).where(used))

    await api.delete(f"{URL}/{first['id']}")
    assert await count() == 1
    await api.delete(f"{URL}/{second['id']}")
    assert await count() == 0


async def test_calendars_that_share_credentials_can_be_deleted_at_the_same_time(api, sessions):
    made = [(await create(api))["id"] for _ in range(6)]
    async with transaction(sessions) as session:
        shared = select(Calendar.credentials_id).where(Calendar.id == made[0]).scalar_subquery()
        await session.execute(update(Calendar).values(credentials_id=shared))
    responses = await asyncio.gather(*(api.delete(f"{URL}/{calendar_id}") for calendar_id in made))
    assert {response.status_code for response in responses} == {200}
    async with sessions() as session:
        left = await session.scalar(select(func.count()).select_from(Credentials))
    assert left == 5  # those that no calendar used any more before


async def test_a_sync_that_is_under_way_cannot_write_to_a_deleted_calendar(api, sessions):
    calendar = await create(api)
    async with transaction(sessions) as session:
        (claim,) = await sync_repository.claim_due(session, limit=1, lease_for=timedelta(seconds=60))
    await api.delete(f"{URL}/{calendar['id']}")
    with pytest.raises(LeaseLost):
        async with transaction(sessions) as session:
            await sync_repository.lock_calendar(session, claim)


async def test_a_calendar_that_stays_locked_returns_503_and_not_500(api, sessions) -> None:
    body = {"platform": "google", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    calendar = (await api.post("/api/v1/calendars", json=body)).json()
    async with transaction(sessions) as session:
        await session.execute(text("SELECT FROM calendars FOR UPDATE"))
        response = await api.delete(f"/api/v1/calendars/{calendar['id']}")
    assert response.status_code == 503
    assert "Retry-After" in response.headers
