"""Pure: from what a provider sent to what has to be written. No database, no network."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import orjson

from app.events.data import RemoteEvent, Window

Change = Literal["created", "updated", "deleted"]

# Raise it when the hash covers other fields: every stored event is then compared and rewritten once.
_HASH_VERSION = 1


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """What the diff needs to know of a row."""

    id: str
    platform_uuid: str
    content_hash: bytes
    is_deleted: bool


@dataclass(frozen=True, slots=True)
class EventWrite:
    """One row to write. `stored_id` is None for a row to insert."""

    event: RemoteEvent
    content_hash: bytes
    is_deleted: bool
    change: Change
    stored_id: str | None


def attendees(event: RemoteEvent) -> list[dict[str, Any]]:
    """The attendees as the API shows them."""
    return [
        {
            "email": person.email,
            "name": person.name,
            "response_status": person.response_status,
            "is_organizer": person.is_organizer,
            "is_optional": person.is_optional,
            "is_resource": person.is_resource,
        }
        for person in event.attendees
    ]


def attendees_json(event: RemoteEvent) -> str:
    return orjson.dumps(attendees(event)).decode()


def organizer_json(event: RemoteEvent) -> str | None:
    """The organizer as the API shows it, as JSON text."""
    if event.organizer is None:
        return None
    return orjson.dumps({"email": event.organizer.email, "name": event.organizer.name}).decode()


def content_hash(event: RemoteEvent) -> bytes:
    """16 bytes over everything of an event that an application can see, save whether it is deleted."""
    digest = sha256(
        orjson.dumps(
            (
                _HASH_VERSION,
                event.start_time,
                event.end_time,
                event.is_all_day,
                event.timezone,
                event.name,
                event.description,
                event.location,
                event.ical_uid,
                event.organizer,
                event.attendees,
                event.response_status,
                event.recurring_event_id,
                event.original_start_time,
                event.meeting_url,
                event.meeting_platform,
            )
        )
    )
    digest.update(event.raw.encode())
    return digest.digest()[:16]


def is_in_window(event: RemoteEvent, window: Window) -> bool:
    """Whether it overlaps the window. What has no readable start cannot be placed: the provider listed it."""
    start, end = event.start_time, event.end_time
    return start is None or window.overlaps(start, end if end is not None else start)


def diff_events(
    events: Iterable[RemoteEvent],
    hashes: Mapping[str, bytes],
    stored: Mapping[str, StoredEvent],
    window: Window,
) -> list[EventWrite]:
    """The writes that bring `stored` to what `events` say; nothing for events that are the same.

    `hashes` and `stored` are keyed by platform_uuid; `stored` has every known one of `events`.
    Unknown events that are cancelled or outside the window are left out: nobody has ever seen them. Known ones
    are followed wherever they move.
    """
    writes: list[EventWrite] = []
    for event in events:
        new_hash = hashes[event.platform_uuid]
        known = stored.get(event.platform_uuid)
        if known is None:
            if not event.is_cancelled and is_in_window(event, window):
                writes.append(EventWrite(event, new_hash, is_deleted=False, change="created", stored_id=None))
            continue
        is_deleted = event.is_cancelled
        if known.content_hash == new_hash and known.is_deleted == is_deleted:
            continue
        change: Change = "deleted" if is_deleted and not known.is_deleted else "updated"
        if known.is_deleted and not is_deleted:
            change = "created"
        writes.append(EventWrite(event, new_hash, is_deleted, change, known.id))
    return writes
