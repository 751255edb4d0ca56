"""Subscriptions, what is announced to them, and sending it again.

Announcing writes rows (the outbox) in the caller's transaction: what is committed will be told, what is
rolled back never was. app/webhooks/delivery.py sends them.

Merging. When a `calendar.events_update` is announced while an older one about the same calendar still waits
for the same endpoint, the newer one takes its place: it carries the earliest `updated_after` and the sum of
the `changes`. An endpoint that was away for a day gets one message for a calendar and not fifty. The older
one's bytes never change: one that was attempted is closed as `failed` with `merged_into` (the endpoint may
have seen its id), one that was not is deleted. One that a worker has under way right now, or that was asked
for by redeliver or replay, is left alone. State changes, bots' and answers' messages are never merged.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import orjson

from app.api.pages import ListQuery
from app.core.clock import isoformat, utcnow
from app.core.crypto import SealBroken, SecretBox
from app.core.db import AnySession, ReadSession, Session
from app.core.ids import new_id
from app.core.pagination import Page
from app.core.wakeups import wake_after_commit
from app.models import WebhookSubscription
from app.settings import Settings
from app.webhooks import repository, requeue
from app.webhooks.delivery import BODY_HEADERS, secrets_context
from app.webhooks.errors import (
    DeliveryNotFound,
    TooManyWebhooks,
    UrlRefused,
    WebhookInactive,
    WebhookNotFound,
)
from app.webhooks.payloads import (
    BotFacts,
    CalendarFacts,
    ChangedEvent,
    Trigger,
    build_body,
    event_entries,
    merged_data,
    with_events,
)
from app.webhooks.repository import Mergeable
from app.webhooks.schemas import (
    DeliveriesQuery,
    DeliveryDetail,
    DeliveryRead,
    WebhookCreate,
    WebhookRead,
    WebhookUpdate,
    WebhookWithSecret,
)
from app.webhooks.signing import MESSAGE_ID_HEADER, new_secret
from app.webhooks.targets import url_fault

__all__ = [
    "BotFacts",
    "CalendarFacts",
    "ChangedEvent",
    "Trigger",
    "announce",
    "create_webhook",
    "delete_webhook",
    "find_webhook",
    "get_delivery",
    "get_webhook",
    "list_deliveries",
    "list_webhooks",
    "redeliver",
    "replay",
    "rotate_secret",
    "update_webhook",
    "wants_events",
]

PAGE_SIZE = 25
MOST_WEBHOOKS = 100

_EVENTS_UPDATE: Trigger = "calendar.events_update"
_OLD_SECRET_SIGNS_FOR = timedelta(hours=24)
_MOST_SECRETS = 5


async def announce(
    session: Session,
    *,
    project_id: str,
    trigger: Trigger,
    calendar: CalendarFacts | None,
    data: Mapping[str, Any],
    bot: BotFacts | None = None,
    calendar_event_id: str | None = None,
    changed_events: Sequence[ChangedEvent] = (),
) -> int:
    """Writes one pending delivery for each active subscription to `trigger`; how many.

    It is part of the caller's transaction: call it last.
    `data` is JSON-able, times as ISO 8601 text; with `calendar.events_update` it has `changes` and
    `updated_after`. `changed_events` go to subscriptions with `include_events` only.
    """
    subscribers = await repository.lock_subscribers(session, project_id, trigger)
    if not subscribers:
        return 0
    can_merge = trigger == _EVENTS_UPDATE and calendar is not None
    older: list[Mergeable] = []
    if can_merge and calendar is not None:
        ids = [subscriber.id for subscriber in subscribers]
        older = await repository.lock_mergeable(session, calendar.id, ids)
    entries = event_entries(changed_events)
    rows = []
    merged_into: dict[str, str] = {}
    for subscriber in subscribers:
        replaced = [message for message in older if message.subscription_id == subscriber.id]
        told = [orjson.loads(message.body)["data"] for message in replaced]
        content = merged_data(told, data) if told else data
        if subscriber.include_events and trigger == _EVENTS_UPDATE:
            content = with_events(
                content, [entry for before in told for entry in before.get("events", [])] + entries
            )
        delivery_id, idempotency_key = new_id("dlv"), str(uuid4())
        merged_into |= {message.id: delivery_id for message in replaced if message.attempted}
        rows.append(
            {
                "id": delivery_id,
                "subscription_id": subscriber.id,
                "trigger": trigger,
                "calendar_id": calendar.id if calendar else None,
                "idempotency_key": idempotency_key,
                "can_merge": can_merge,
                "body": build_body(
                    idempotency_key=idempotency_key,
                    trigger=trigger,
                    calendar=calendar,
                    data=content,
                    bot=bot,
                    calendar_event_id=calendar_event_id,
                ),
            }
        )
    await repository.insert_deliveries(session, rows)
    if merged_into:
        await repository.close_merged(session, merged_into)
    unseen = [message.id for message in older if not message.attempted]
    if unseen:
        await repository.delete_deliveries(session, unseen)
    return len(rows)


async def wants_events(session: AnySession, project_id: str) -> bool:
    """Whether any active subscription asks for the changed events themselves."""
    return await repository.wants_events(session, project_id, _EVENTS_UPDATE)


async def list_webhooks(session: ReadSession, project_id: str, query: ListQuery) -> Page[WebhookRead]:
    """Raises BadQuery for a bad cursor."""
    page = await repository.list_subscriptions(session, project_id, query.cursor, query.rows_of(PAGE_SIZE))
    return Page([WebhookRead.model_validate(row) for row in page.rows], page.next, page.previous)


async def get_webhook(session: AnySession, project_id: str, webhook_id: str) -> WebhookRead:
    """Raises WebhookNotFound."""
    return WebhookRead.model_validate(await find_webhook(session, project_id, webhook_id))


async def create_webhook(
    session: Session, box: SecretBox, settings: Settings, project_id: str, body: WebhookCreate
) -> WebhookWithSecret:
    """Raises UrlRefused, TooManyWebhooks."""
    _check_url(body.url, settings)
    if await repository.count_subscriptions(session, project_id) >= MOST_WEBHOOKS:
        raise TooManyWebhooks(MOST_WEBHOOKS)
    webhook_id, secret = new_id("webhook"), new_secret()
    sealed = box.seal(secrets_context(webhook_id), [{"secret": secret, "until": None}])
    row = await repository.insert_subscription(
        session,
        {"id": webhook_id, "project_id": project_id, "secrets_sealed": sealed, **body.model_dump()},
    )
    return _with_secret(row, secret)


async def update_webhook(
    session: Session, settings: Settings, project_id: str, webhook_id: str, body: WebhookUpdate
) -> WebhookRead:
    """Raises WebhookNotFound, UrlRefused. Switched on again, everything that still waits is due at once.

    (The first thousand when this returns, the others as the workers come to them.)
    """
    row = await _lock(session, project_id, webhook_id)
    values = body.model_dump(exclude_unset=True)
    if "url" in values:
        _check_url(values["url"], settings)
    switched_on = values.get("is_active", False) and not row.is_active
    if "is_active" in values:
        values["disabled_reason"] = None
    if switched_on or values.get("url", row.url) != row.url:
        # What an endpoint did before is not held against it.
        values |= {"failing_since": None, "failing_days": 0, "failing_day_at": None, "paused_until": None}
        values |= {"is_slow": False}
        wake_after_commit(session, "deliveries")
    if values:
        row = await repository.update_subscription(session, webhook_id, values)
    if switched_on:
        await requeue.resume(session, webhook_id)
    return WebhookRead.model_validate(row)


async def delete_webhook(session: Session, project_id: str, webhook_id: str) -> None:
    """Its deliveries, pending or not, go with it. Raises WebhookNotFound."""
    if not await repository.delete_subscription(session, project_id, webhook_id):
        raise WebhookNotFound


async def rotate_secret(
    session: Session, box: SecretBox, project_id: str, webhook_id: str
) -> WebhookWithSecret:
    """A new secret; the old one signs along for 24 hours. Raises WebhookNotFound."""
    row = await _lock(session, project_id, webhook_id)
    now = utcnow()
    context = secrets_context(webhook_id)
    secret = new_secret()
    kept: list[dict[str, Any]] = [{"secret": secret, "until": None}]
    # Old secrets that can no longer be opened cannot sign along; a new one is the way out of that.
    with suppress(SealBroken):
        current, *rotated = box.open(context, row.secrets_sealed)
        kept.append({**current, "until": isoformat(now + _OLD_SECRET_SIGNS_FOR)})
        kept.extend(old for old in rotated if old["until"] > isoformat(now))
    sealed = box.seal(context, kept[:_MOST_SECRETS])
    row = await repository.update_subscription(session, webhook_id, {"secrets_sealed": sealed})
    return _with_secret(row, secret)


async def list_deliveries(
    session: ReadSession, project_id: str, webhook_id: str, query: DeliveriesQuery
) -> Page[DeliveryRead]:
    """Newest first. Raises WebhookNotFound, BadQuery for a bad cursor."""
    await find_webhook(session, project_id, webhook_id)
    if query.finds_nothing:
        return Page([], None, None)
    page = await repository.list_deliveries(
        session, webhook_id, status=query.status, cursor=query.cursor, limit=query.rows_of(PAGE_SIZE)
    )
    return Page([DeliveryRead.model_validate(row) for row in page.rows], page.next, page.previous)


async def get_delivery(session: ReadSession, project_id: str, delivery_id: str) -> DeliveryDetail:
    """Raises DeliveryNotFound."""
    row = await repository.find_delivery(session, project_id, delivery_id)
    if row is None:
        raise DeliveryNotFound
    return DeliveryDetail(
        **DeliveryRead.model_validate(row).model_dump(),
        webhook_id=row.subscription_id,
        body=row.body.decode(),
        headers={**BODY_HEADERS, MESSAGE_ID_HEADER: row.idempotency_key},
    )


async def redeliver(session: Session, project_id: str, delivery_id: str) -> DeliveryRead:
    """Makes a delivery due now, whatever became of it. Raises DeliveryNotFound, WebhookInactive."""
    webhook_id = await repository.find_subscription_of(session, project_id, delivery_id)
    if webhook_id is None:
        raise DeliveryNotFound
    await _lock_active(session, project_id, webhook_id)
    delivery = await repository.requeue(session, delivery_id)
    if delivery is None:
        raise DeliveryNotFound
    return DeliveryRead.model_validate(delivery)


async def replay(session: Session, project_id: str, webhook_id: str, since: datetime) -> int:
    """Sends every delivery created since then again; how many, counted up to 10,000.

    The first thousand are due when this returns, the others as the workers come to them. Those that were merged
    into a newer one are left out: the newer one tells what they told. Raises WebhookNotFound, WebhookInactive.
    """
    webhook = await _lock_active(session, project_id, webhook_id)
    return await requeue.begin_replay(session, webhook, since)


async def find_webhook(session: AnySession, project_id: str, webhook_id: str) -> WebhookSubscription:
    """The row itself, for `SampleSender` (samples.py). Raises WebhookNotFound."""
    row = await repository.find_subscription(session, project_id, webhook_id)
    if row is None:
        raise WebhookNotFound
    return row


async def _lock(session: Session, project_id: str, webhook_id: str) -> WebhookSubscription:
    row = await repository.lock_subscription(session, project_id, webhook_id)
    if row is None:
        raise WebhookNotFound
    return row


async def _lock_active(session: Session, project_id: str, webhook_id: str) -> WebhookSubscription:
    webhook = await _lock(session, project_id, webhook_id)
    if not webhook.is_active:
        raise WebhookInactive
    return webhook


def _check_url(url: str, settings: Settings) -> None:
    fault = url_fault(url, settings)
    if fault is not None:
        raise UrlRefused(fault)


def _with_secret(row: WebhookSubscription, secret: str) -> WebhookWithSecret:
    return WebhookWithSecret(**WebhookRead.model_validate(row).model_dump(), secret=secret)
