"""Notifications of providers, and what becomes of a calendar's push channels when it is deleted.

A notification makes its calendar due after CALENDAR_PUSH_DEBOUNCE_SECONDS. Those that follow until then find it due
already. Those that come while the sync runs make it due once more. A notification of an unknown channel, or without
the channel's secret, changes nothing: channels go on for days after their rows are deleted.
"""

import hmac
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import structlog
from pydantic import ValidationError

from app.core import metrics
from app.core.crypto import SealBroken, SecretBox, sha256_hex
from app.core.db import AnySession, Session
from app.credentials.sealed import load_credentials
from app.push import repository
from app.push.repository import CalendarChannel, KnownChannel
from app.push.schemas import Notification
from app.schedule import mark_due

log = structlog.get_logger()

# How long opening or renewing a channel may take; a worker's lease on the calendar's channel.
LEASE_FOR = timedelta(seconds=60)

_CHANNEL_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_RESOURCE_ID = re.compile(r"[\x21-\x7e]{1,200}")
# For events only "exists" is documented. The others are documented for channels of other resources.
_CHANGES = frozenset({"exists", "update", "not_exists"})


def sealed_context(channel_id: str) -> str:
    """The context that `push_channels.sealed` is bound to."""
    return f"push_channels:{channel_id}"


async def accept_google(
    session: Session,
    *,
    channel_id: str | None,
    token: str | None,
    resource_state: str | None,
    resource_id: str | None,
    debounce: timedelta,
) -> None:
    """Take one notification of a Google channel; a change makes its calendar due after `debounce`."""
    channel = None
    if channel_id is not None and _CHANNEL_ID.fullmatch(channel_id):
        channel = await repository.find_channel(session, channel_id)
    outcome = _check(channel, token)
    if channel is not None and outcome == "accepted":
        if resource_state == "sync":
            # The first message reports no change. It may come before the response to the worker, or instead of it.
            outcome = "handshake"
            if channel.state == "opening" and _RESOURCE_ID.fullmatch(resource_id or ""):
                await repository.note_resource(session, channel.id, resource_id or "")
        elif resource_state not in _CHANGES:
            outcome = "ignored"
        elif channel.calendar_id is not None:
            await mark_due(session, sync_ids=[channel.calendar_id], delay=debounce)
        if outcome != "ignored" and _proves(channel):
            await repository.note_verified(session, [channel.id])
    metrics.PUSH_NOTIFICATIONS.labels("google", outcome).inc()


async def accept_microsoft(session: Session, items: Sequence[Any], *, debounce: timedelta) -> bool:
    """Take a batch of Graph's notifications, and make their calendars due for a sync after `debounce`.

    Returns whether any of them was for a subscription of ours.
    """
    outcomes: Counter[str] = Counter()
    notifications = []
    for item in items:
        try:
            notifications.append(Notification.model_validate(item))
        except ValidationError:
            outcomes["malformed"] += 1
    channels: dict[str, KnownChannel] = {}
    if notifications:
        wanted = {notification.subscription_id for notification in notifications}
        channels = await repository.find_subscriptions(session, wanted)
    sync_ids: set[str] = set()
    renew_ids: set[str] = set()
    removed: set[str] = set()
    unverified: set[str] = set()
    for notification in notifications:
        channel = channels.get(notification.subscription_id)
        outcome = _check(channel, notification.client_state)
        outcomes[outcome] += 1
        if channel is None or channel.calendar_id is None or outcome != "accepted":
            continue
        if _proves(channel):
            unverified.add(channel.id)
        match notification.lifecycle_event:
            case None | "missed":
                sync_ids.add(channel.calendar_id)
            case "reauthorizationRequired" if channel.state == "open":
                renew_ids.add(channel.calendar_id)
            case "subscriptionRemoved":
                removed.add(channel.id)
                if channel.state == "open":
                    renew_ids.add(channel.calendar_id)
                    sync_ids.add(channel.calendar_id)
    if sync_ids or renew_ids:
        await mark_due(session, sync_ids=sync_ids, renew_ids=renew_ids, delay=debounce)
    if unverified - removed:
        await repository.note_verified(session, unverified - removed)
    if removed:
        await repository.drop_channels(session, removed)
    for outcome, count in outcomes.items():
        metrics.PUSH_NOTIFICATIONS.labels("microsoft", outcome).inc(count)
    return outcomes["accepted"] > 0


def _proves(channel: KnownChannel) -> bool:
    """Whether a message proves that the channel works: the first one, while the channel is in use."""
    return not channel.is_verified and channel.state != "closing"


def _check(channel: KnownChannel | None, secret: str | None) -> str:
    if channel is None:
        return "unknown"
    if not hmac.compare_digest(sha256_hex(secret or ""), channel.secret_sha256):
        log.warning("push_notification_forged", channel_id=channel.id)
        return "forged"
    return "accepted" if channel.calendar_id is not None else "ignored"


async def close_channels(session: Session, calendar_id: str) -> None:
    """Have the channels of a calendar that stays closed at the provider.

    The caller holds the lock of the calendar's row, and sets its `push_due_at` to null.
    """
    await repository.close_channels(session, calendar_id)


async def release_channels(
    session: Session, box: SecretBox, *, calendar_id: str, credentials_id: str | None
) -> None:
    """Keep the channels of a calendar that is being deleted until they are closed at the provider.

    Call it under the lock of the calendar's row, before the row is deleted.
    """
    channel_ids = await repository.lock_channels(session, calendar_id)
    if not channel_ids:
        return
    grant = await _load_grant(session, box, credentials_id)
    if grant is None:
        # Without tokens they cannot be closed. They end by themselves within days.
        await repository.drop_channels(session, channel_ids)
        return
    for channel_id in channel_ids:
        sealed = box.seal(sealed_context(channel_id), grant)
        await repository.release_channel(session, channel_id, sealed=sealed, opens_within=LEASE_FOR)


async def _load_grant(session: Session, box: SecretBox, credentials_id: str | None) -> dict[str, str] | None:
    if credentials_id is None:
        return None
    with suppress(SealBroken):
        found = await load_credentials(session, box, credentials_id)
        if found is not None:
            stored, secrets = found
            return {
                "client_id": stored.client_id or "",
                "client_secret": secrets["client_secret"],
                "refresh_token": secrets["refresh_token"],
            }
    return None


async def find_channel(session: AnySession, calendar_id: str) -> CalendarChannel | None:
    """Return the channel through which the provider notifies of changes to the calendar."""
    return await repository.find_newest(session, calendar_id)
