"""Endpoints: create, change and delete them, read their deliveries, and send deliveries again."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from app.api.pages import ListQuery
from app.core.crypto import SecretBox
from app.core.db import AnySession, ReadSession, Session
from app.core.ids import new_id
from app.core.pagination import Page
from app.core.wakeups import wake_after_commit
from app.models import WebhookSubscription
from app.settings import Settings
from app.webhooks import endpoint_secrets, requeue
from app.webhooks.delivery import BODY_HEADERS
from app.webhooks.errors import (
    DeliveryNotFound,
    TooManyWebhooks,
    UnknownCalendars,
    UrlRefused,
    WebhookInactive,
    WebhookNotFound,
)
from app.webhooks.repository import endpoints, log
from app.webhooks.repository import replay as replay_rows
from app.webhooks.schemas import (
    DEFAULT_LEAD_MINUTES,
    DeliveriesQuery,
    DeliveryDetail,
    DeliveryRead,
    WebhookCreate,
    WebhookRead,
    WebhookUpdate,
    WebhookWithSecret,
)
from app.webhooks.signing import MESSAGE_ID_HEADER
from app.webhooks.targets import url_fault

PAGE_SIZE = 25
MOST_WEBHOOKS = 100


async def list_webhooks(session: ReadSession, project_id: str, query: ListQuery) -> Page[WebhookRead]:
    """List the project's endpoints, newest first. Raises BadQuery for a bad cursor."""
    page = await endpoints.list_endpoints(session, project_id, query.cursor, query.rows_of(PAGE_SIZE))
    return Page([WebhookRead.model_validate(row) for row in page.rows], page.next, page.previous)


async def get_webhook(session: AnySession, project_id: str, webhook_id: str) -> WebhookRead:
    """Return one endpoint. Raises WebhookNotFound."""
    return WebhookRead.model_validate(await find_webhook(session, project_id, webhook_id))


async def create_webhook(
    session: Session, box: SecretBox, settings: Settings, project_id: str, body: WebhookCreate
) -> WebhookWithSecret:
    """Create an endpoint; only this result has its secret.

    Raises UrlRefused, UnknownCalendars, TooManyWebhooks.
    """
    _check_url(body.url, settings)
    await _check_calendars(session, project_id, body.calendar_ids)
    if await endpoints.count_endpoints(session, project_id) >= MOST_WEBHOOKS:
        raise TooManyWebhooks(MOST_WEBHOOKS)
    webhook_id = new_id("webhook")
    secret, sealed = endpoint_secrets.create_secret(box, webhook_id)
    row = await endpoints.insert_endpoint(
        session,
        {"id": webhook_id, "project_id": project_id, "secrets_sealed": sealed, **_columns(body.model_dump())},
    )
    return _with_secret(row, secret)


async def update_webhook(
    session: Session, settings: Settings, project_id: str, webhook_id: str, body: WebhookUpdate
) -> WebhookRead:
    """Change an endpoint. Raises WebhookNotFound, UrlRefused, UnknownCalendars.

    When it is enabled again, its pending deliveries become due: the first thousand at once, workers do the others.
    """
    row = await _lock(session, project_id, webhook_id)
    values = _columns(body.model_dump(exclude_unset=True))
    if "url" in values:
        _check_url(values["url"], settings)
    # Calendars that it already has may have been deleted since.
    stored = set(row.calendar_ids or ())
    await _check_calendars(
        session, project_id, [one for one in values.get("calendar_ids") or () if one not in stored]
    )
    is_enabled_again = values.get("is_active", False) and not row.is_active
    if "is_active" in values:
        values["disabled_reason"] = None
    if is_enabled_again or values.get("url", row.url) != row.url:
        # Earlier failures do not count against an endpoint that was changed.
        values |= {"failing_since": None, "failing_days": 0, "failing_day_at": None, "paused_until": None}
        values |= {"is_slow": False}
        wake_after_commit(session, "deliveries")
    if values:
        row = await endpoints.update_endpoint(session, webhook_id, values)
    if is_enabled_again:
        await requeue.resume(session, webhook_id)
    return WebhookRead.model_validate(row)


async def delete_webhook(session: Session, project_id: str, webhook_id: str) -> None:
    """Delete an endpoint and all of its deliveries. Raises WebhookNotFound."""
    if not await endpoints.delete_endpoint(session, project_id, webhook_id):
        raise WebhookNotFound


async def rotate_secret(
    session: Session, box: SecretBox, project_id: str, webhook_id: str
) -> WebhookWithSecret:
    """Create a new secret; the old one signs, too, for another 24 hours. Raises WebhookNotFound."""
    row = await _lock(session, project_id, webhook_id)
    secret, sealed = endpoint_secrets.rotate_secret(box, webhook_id, row.secrets_sealed)
    row = await endpoints.update_endpoint(session, webhook_id, {"secrets_sealed": sealed})
    return _with_secret(row, secret)


async def list_deliveries(
    session: ReadSession, project_id: str, webhook_id: str, query: DeliveriesQuery
) -> Page[DeliveryRead]:
    """List an endpoint's deliveries, newest first. Raises WebhookNotFound, BadQuery for a bad cursor."""
    await find_webhook(session, project_id, webhook_id)
    if query.finds_nothing:
        return Page([], None, None)
    page = await log.list_deliveries(
        session, webhook_id, status=query.status, cursor_text=query.cursor, limit=query.rows_of(PAGE_SIZE)
    )
    return Page([DeliveryRead.model_validate(row) for row in page.rows], page.next, page.previous)


async def get_delivery(session: ReadSession, project_id: str, delivery_id: str) -> DeliveryDetail:
    """Return one delivery with its body and headers. Raises DeliveryNotFound."""
    row = await log.find_delivery(session, project_id, delivery_id)
    if row is None:
        raise DeliveryNotFound
    return DeliveryDetail(
        **DeliveryRead.model_validate(row).model_dump(),
        webhook_id=row.subscription_id,
        body=row.body.decode(),
        headers={**BODY_HEADERS, MESSAGE_ID_HEADER: row.idempotency_key},
    )


async def redeliver(session: Session, project_id: str, delivery_id: str) -> DeliveryRead:
    """Make a delivery due now, whatever its status. Raises DeliveryNotFound, WebhookInactive."""
    webhook_id = await log.find_endpoint_id(session, project_id, delivery_id)
    if webhook_id is None:
        raise DeliveryNotFound
    await _lock_active(session, project_id, webhook_id)
    delivery = await replay_rows.requeue(session, delivery_id)
    if delivery is None:
        raise DeliveryNotFound
    return DeliveryRead.model_validate(delivery)


async def replay(session: Session, project_id: str, webhook_id: str, since: datetime) -> int:
    """Send every delivery created since then again; return how many, counted up to 10,000.

    The first thousand are due when this returns, workers do the others. Deliveries that were merged into a newer one
    are left out, because the newer one has their changes. Raises WebhookNotFound, WebhookInactive.
    """
    webhook = await _lock_active(session, project_id, webhook_id)
    return await requeue.begin_replay(session, webhook, since)


async def find_webhook(session: AnySession, project_id: str, webhook_id: str) -> WebhookSubscription:
    """Return the row itself, which SampleSender (samples.py) needs. Raises WebhookNotFound."""
    row = await endpoints.find_endpoint(session, project_id, webhook_id)
    if row is None:
        raise WebhookNotFound
    return row


async def _lock(session: Session, project_id: str, webhook_id: str) -> WebhookSubscription:
    row = await endpoints.lock_endpoint(session, project_id, webhook_id)
    if row is None:
        raise WebhookNotFound
    return row


async def _lock_active(session: Session, project_id: str, webhook_id: str) -> WebhookSubscription:
    webhook = await _lock(session, project_id, webhook_id)
    if not webhook.is_active:
        raise WebhookInactive
    return webhook


async def _check_calendars(session: AnySession, project_id: str, ids: Sequence[str] | None) -> None:
    if ids:
        known = await endpoints.find_calendars(session, project_id, ids)
        for calendar_id in ids:
            if calendar_id not in known:
                raise UnknownCalendars(calendar_id)


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a body's fields. Null stands for the default."""
    columns = {"metadata_" if name == "metadata" else name: value for name, value in values.items()}
    for name, default in (("ordering", "any"), ("starting_soon_minutes", DEFAULT_LEAD_MINUTES)):
        if name in columns and columns[name] is None:
            columns[name] = default
    return columns


def _check_url(url: str, settings: Settings) -> None:
    fault = url_fault(url, settings)
    if fault is not None:
        raise UrlRefused(fault)


def _with_secret(row: WebhookSubscription, secret: str) -> WebhookWithSecret:
    return WebhookWithSecret(**WebhookRead.model_validate(row).model_dump(), secret=secret)
