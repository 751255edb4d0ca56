"""The difference between what a provider sent and what is stored, as rows to write (pure)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, NamedTuple

import orjson

from app.events.data import RemoteEvent, Window
from app.events.derived import Derived, derived_of
from app.events.fields import hashed_values

Change = Literal["created", "updated", "deleted"]

# Raise it to have every stored event compared and rewritten once.
_HASH_VERSION = 1
# The derived fields without `etag`, which may move while the event stays the same.
_SHOWN = Derived._fields.index("etag")
_VISIBILITY = Derived._fields.index("visibility")


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A stored row, as far as the diff needs it.

    `derived`: the columns of `Derived`; null where the row was written before they existed.
    """

    id: str
    platform_uuid: str
    content_hash: bytes
    is_deleted: bool
    derived: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class EventWrite:
    """One row to write. `stored_id` is None for a row to insert."""

    event: RemoteEvent
    content_hash: bytes
    is_deleted: bool
    change: Change
    stored_id: str | None


@dataclass(frozen=True, slots=True)
class Refresh:
    """A row whose derived fields are written although the event did not change. It counts as no change.

    `has_other_visibility`: than the stored row, in which null counts as the default.
    """

    event: RemoteEvent
    stored_id: str
    has_other_visibility: bool


class Difference(NamedTuple):
    writes: list[EventWrite]
    refreshes: list[Refresh]


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
) -> Difference:
    """Find the writes that bring `stored` to the state of `events`; unchanged events need none.

    `hashes` and `stored` are keyed by platform_uuid; `stored` has every known one of `events`.
    Unknown events that are cancelled or outside the window are left out. Known ones are followed wherever they move.
    """
    writes: list[EventWrite] = []
    refreshes: list[Refresh] = []
    for event in events:
        new_hash = hashes[event.platform_uuid]
        known = stored.get(event.platform_uuid)
        if known is None:
            if not event.is_cancelled and is_in_window(event, window):
                writes.append(EventWrite(event, new_hash, is_deleted=False, change="created", stored_id=None))
            continue
        is_deleted = event.is_cancelled
        if known.content_hash == new_hash and known.is_deleted == is_deleted:
            derived = derived_of(event)
            if derived == known.derived:
                continue
            if not _has_changed_unseen(event, derived, known):
                stored_visibility = known.derived[_VISIBILITY] or "default"
                refreshes.append(Refresh(event, known.id, stored_visibility != event.visibility))
                continue
        change: Change = "deleted" if is_deleted and not known.is_deleted else "updated"
        if known.is_deleted and not is_deleted:
            change = "created"
        writes.append(EventWrite(event, new_hash, is_deleted, change, known.id))
    return Difference(writes, refreshes)


def _has_changed_unseen(event: RemoteEvent, derived: Derived, known: StoredEvent) -> bool:
    """Whether the event changed where `raw` was cut, so that its hash did not see it.

    Elsewhere the hash sees every change. Other values than the stored ones then mean that the row is from before the
    columns existed, that a process of an earlier release changed it, or that the provider moved `etag` alone.
    """
    shown, stored = derived[:_SHOWN], known.derived[:_SHOWN]
    return event.is_raw_cut and None not in stored and shown != stored
