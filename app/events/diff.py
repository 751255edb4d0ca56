"""The difference between what a provider sent and what is stored, as rows to write (pure)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import orjson

from app.events.data import RemoteEvent, Window
from app.events.fields import hashed_values

Change = Literal["created", "updated", "deleted"]

# Raise it to have every stored event compared and rewritten once.
_HASH_VERSION = 1


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A stored row, as far as the diff needs it."""

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


def content_hash(event: RemoteEvent) -> bytes:
    """Hash everything that an application can see of an event, except whether it is deleted; 16 bytes."""
    digest = sha256(orjson.dumps((_HASH_VERSION, *hashed_values(event))))
    digest.update(event.raw.encode())
    return digest.digest()[:16]


def is_in_window(event: RemoteEvent, window: Window) -> bool:
    """Whether an event overlaps the window, or has no start that could be read."""
    start, end = event.start_time, event.end_time
    return start is None or window.overlaps(start, end if end is not None else start)


def diff_events(
    events: Iterable[RemoteEvent],
    hashes: Mapping[str, bytes],
    stored: Mapping[str, StoredEvent],
    window: Window,
) -> list[EventWrite]:
    """Find the writes that bring `stored` to the state of `events`; unchanged events need none.

    `hashes` and `stored` are keyed by platform_uuid; `stored` has every known one of `events`.
    Unknown events that are cancelled or outside the window are left out. Known ones are followed wherever they move.
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
