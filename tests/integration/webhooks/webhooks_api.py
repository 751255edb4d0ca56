"""Webhooks that are made over the API, and deliveries that are announced and read in the database."""

from typing import Any

import httpx
from sqlalchemy import select, update

from app.core.clock import isoformat, utcnow
from app.core.db import Sessions, transaction
from app.models import WebhookDelivery
from app.webhooks.outbox import announce
from app.webhooks.payloads import CalendarFacts
from tests.conftest import TestProject

URL = "https://hooks.example/calbridge"


CALENDAR = CalendarFacts("cal_0123456789abcdef", deduplication_key="user-7", metadata={"user": "7"})


async def create(api: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {"url": URL, "triggers": ["calendar.events_update"], **fields}
    response = await api.post("/api/v1/webhooks", json=body)
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def announce_change(
    sessions: Sessions,
    project: TestProject,
    trigger: Any = "calendar.events_update",
    *,
    calendar: CalendarFacts | None = CALENDAR,
    created: int = 1,
    **options: Any,
) -> int:
    data: dict[str, Any] = {"state": "connected"}
    if trigger == "calendar.events_update":
        data |= {
            "changes": {"created": created, "updated": 0, "deleted": 0},
            "updated_after": options.pop("updated_after", isoformat(utcnow())),
        }
    async with transaction(sessions) as session:
        return await announce(
            session, project_id=project.id, trigger=trigger, calendar=calendar, data=data, **options
        )


async def stored(sessions: Sessions) -> list[WebhookDelivery]:
    async with sessions() as session:
        return list(await session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.created_at)))


async def change(sessions: Sessions, delivery_id: str, **values: Any) -> None:
    async with transaction(sessions) as session:
        await session.execute(
            update(WebhookDelivery).where(WebhookDelivery.id == delivery_id).values(**values)
        )


ATTEMPT = {
    "at": "2026-01-31T09:00:00.000000Z",
    "status_code": 500,
    "duration_ms": 12,
    "response": "oops",
    "error": "status: answered 500 instead of 2xx",
}


async def finish(sessions: Sessions, delivery_id: str, status: str = "success") -> None:
    await change(
        sessions, delivery_id, status=status, next_attempt_at=None, finished_at=utcnow(), attempts=[ATTEMPT]
    )
