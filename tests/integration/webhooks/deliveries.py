"""Endpoints at one receiver, their pending deliveries, and a deliverer to send them."""

import asyncio
import ssl
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import insert, select, update

from app.core.clock import utcnow
from app.core.crypto import SecretBox
from app.core.db import Sessions, transaction
from app.core.ids import new_id
from app.models import WebhookDelivery, WebhookSubscription
from app.settings import Settings
from app.webhooks import outbox, service
from app.webhooks.delivery import Deliverer
from app.webhooks.payloads import CalendarFacts
from app.webhooks.schemas import WebhookCreate, WebhookUpdate
from tests.fakes.receiver import Receiver

CALENDAR = CalendarFacts("cal_0123456789abcdef", deduplication_key=None, metadata={"name": "Zoë"})


@dataclass
class Webhooks:
    """Subscriptions at one receiver, each with its own path, and a deliverer to send to them."""

    settings: Settings
    sessions: Sessions
    project_id: str
    receiver: Receiver
    url: str
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def box(self) -> SecretBox:
        return SecretBox(self.settings.fernet_keys)

    async def subscribe(self, path: str = "/", *, url: str | None = None) -> str:
        body = WebhookCreate(url=url or self.url + path, triggers=["calendar.state_change"])
        async with transaction(self.sessions) as session:
            created = await service.create_webhook(session, self.box, self.settings, self.project_id, body)
        self.secrets[created.id] = created.secret
        return created.id

    async def add(self, subscription_id: str, count: int = 1, **values: Any) -> list[str]:
        """Pending deliveries, due now; their ids."""
        added = []
        async with transaction(self.sessions) as session:
            for _ in range(count):
                row = a_delivery(subscription_id) | values
                await session.execute(insert(WebhookDelivery).values(**row))
                added.append(row["id"])
        return added

    async def announce(self) -> None:
        async with transaction(self.sessions) as session:
            await outbox.announce(
                session,
                project_id=self.project_id,
                trigger="calendar.state_change",
                calendar=CALENDAR,
                data={"state": "disconnected"},
            )

    async def rows(self) -> list[WebhookDelivery]:
        async with self.sessions() as session:
            statement = select(WebhookDelivery).order_by(WebhookDelivery.created_at, WebhookDelivery.id)
            return list(await session.scalars(statement))

    async def row(self, delivery_id: str) -> WebhookDelivery:
        return next(row for row in await self.rows() if row.id == delivery_id)

    async def subscription(self, subscription_id: str) -> WebhookSubscription:
        async with self.sessions() as session:
            statement = select(WebhookSubscription).where(WebhookSubscription.id == subscription_id)
            return (await session.scalars(statement)).one()

    async def set_subscription(self, subscription_id: str, **values: Any) -> None:
        async with transaction(self.sessions) as session:
            await session.execute(
                update(WebhookSubscription).where(WebhookSubscription.id == subscription_id).values(**values)
            )

    async def patch(self, subscription_id: str, **fields: Any) -> None:
        body = WebhookUpdate.model_validate(fields)
        async with transaction(self.sessions) as session:
            await service.update_webhook(session, self.settings, self.project_id, subscription_id, body)

    async def make_due(self) -> None:
        """Make every pending delivery due: leases run out, retries come."""
        async with transaction(self.sessions) as session:
            await session.execute(
                update(WebhookDelivery)
                .where(WebhookDelivery.status == "pending")
                .values(next_attempt_at=WebhookDelivery.created_at)
            )

    def deliverer(self, *, verify: ssl.SSLContext | bool = True, **settings: Any) -> Deliverer:
        changed = self.settings.model_copy(update=settings)
        return Deliverer(settings=changed, sessions=self.sessions, box=self.box, verify=verify)

    async def deliver(self, **options: Any) -> None:
        """Send everything that is due, by a deliverer of its own."""
        async with self.deliverer(**options) as deliverer:
            await deliver_due(deliverer)


def a_delivery(subscription_id: str) -> dict[str, Any]:
    delivery_id = new_id("dlv")
    key = f"key-of-{delivery_id}"
    return {
        "id": delivery_id,
        "subscription_id": subscription_id,
        "trigger": "calendar.state_change",
        "idempotency_key": key,
        "body": b'{"idempotency_key":"' + key.encode() + b'"}',
        "next_attempt_at": utcnow() - timedelta(seconds=1),
    }


async def deliver_due(deliverer: Deliverer, limit: int = 20) -> None:
    while claimed := await deliverer.claim(limit):
        await asyncio.gather(*(deliverer.handle(delivery) for delivery in claimed))


def last_attempt(row: WebhookDelivery) -> dict[str, Any]:
    return row.attempts[-1]
