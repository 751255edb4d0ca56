"""Bots that are made over the API, and what is stored of them."""

from datetime import timedelta

from sqlalchemy import select, update

from app.core.clock import isoformat, utcnow
from app.core.db import transaction
from app.core.ids import new_id
from app.models import Bot, WebhookDelivery, WebhookSubscription

URL = "/api/v1/bots"


LINK = "https://zoom.us/j/5551112222?pwd=hidden-1"


FIELDS = {
    "id", "metadata", "meeting_url", "bot_name", "state", "join_at", "deduplication_key", "calendar_event_id",
    "events", "transcription_state", "recording_state", "created_at", "updated_at",
}  # fmt: skip


def in_hours(hours: float):
    return utcnow().replace(microsecond=0) + timedelta(hours=hours)


def by_hand(**fields):
    return {"bot_name": "Notetaker", "meeting_url": LINK, "join_at": isoformat(in_hours(24)), **fields}


async def create(api, **fields):
    response = await api.post(URL, json=by_hand(**fields))
    assert response.status_code == 201, response.text
    return response.json()


async def set_state(sessions, bot_id, state, **values):
    async with transaction(sessions) as session:
        await session.execute(update(Bot).where(Bot.id == bot_id).values(state=state, **values))


async def subscribe(sessions, project_id):
    async with transaction(sessions) as session:
        session.add(
            WebhookSubscription(
                id=new_id("webhook"),
                project_id=project_id,
                url="https://example.com",
                triggers=["bot.state_change"],
                secrets_sealed=b"",
            )
        )


async def deliveries(sessions):
    async with sessions() as session:
        rows = await session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.created_at))
        return list(rows)
