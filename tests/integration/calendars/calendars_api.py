"""Calendars that are made over the API, and what is stored of them."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select, update

from app.core.crypto import SecretBox
from app.core.db import transaction
from app.core.ids import new_id
from app.credentials.sealed import context_of
from app.models import Calendar, CalendarEvent, Credentials, WebhookDelivery, WebhookSubscription

URL = "/api/v1/calendars"


GOOGLE = {"platform": "google", "client_id": "id-1", "client_secret": "hidden-1", "refresh_token": "hidden-2"}


FEED = {"platform": "ics", "feed_url": "https://example.com/hidden-3.ics"}


FIELDS = {
    "id", "platform", "client_id", "platform_uuid", "state", "metadata", "deduplication_key",
    "connection_failure_data", "created_at", "updated_at", "last_successful_sync_at", "last_attempted_sync_at",
    "sync_failing_since", "sync_failure", "name", "owner_email", "owner_name", "timezone", "locale", "sending_identity",
    "window", "covered_from", "covered_until",
}  # fmt: skip


async def create(api, **fields):
    response = await api.post(URL, json={**GOOGLE, **fields})
    assert response.status_code == 201, response.text
    return response.json()


async def secrets_of(sessions, settings, calendar_id):
    async with sessions() as session:
        stored = (
            await session.execute(
                select(Credentials)
                .join(Calendar, Calendar.credentials_id == Credentials.id)
                .where(Calendar.id == calendar_id)
            )
        ).scalar_one()
    return SecretBox(settings.fernet_keys).open(context_of(stored.id), stored.sealed)


async def disconnect(sessions, *calendar_ids):
    async with transaction(sessions) as session:
        await session.execute(
            update(Calendar)
            .where(Calendar.id.in_(calendar_ids))
            .values(
                state="disconnected",
                connection_failure_data={"error": "revoked", "code": "credentials_revoked"},
                sync_failing_since=func.now(),
                sync_failure_count=3,
                sync_failure_code="credentials_revoked",
                sync_cursor="old",
                next_sync_at=datetime.now(UTC) + timedelta(hours=1),
            )
        )


async def subscribe(sessions, project_id, trigger):
    async with transaction(sessions) as session:
        session.add(
            WebhookSubscription(
                id=new_id("webhook"),
                project_id=project_id,
                url="https://example.com/",
                triggers=[trigger],
                secrets_sealed=b"",
            )
        )


async def deliveries(sessions):
    async with sessions() as session:
        return list(await session.scalars(select(WebhookDelivery)))


async def add_event(sessions, project_id, calendar_id, platform_uuid="e1"):
    async with transaction(sessions) as session:
        session.add(
            CalendarEvent(
                id=new_id("evt"), project_id=project_id, calendar_id=calendar_id, platform_uuid=platform_uuid,
                content_hash=b"", attendees=[], raw={},
            )
        )  # fmt: skip
