"""One sync under way: what it started from, and what the provider's pages have brought so far."""

import time
from dataclasses import dataclass, field
from datetime import datetime

from app.core.clock import utcnow
from app.events.data import RemoteEvent
from app.providers.base import ChangePage
from app.sync.repository import Claim, SyncState

_BATCH_EVENTS = 2500
_BATCH_BYTES = 8_000_000


@dataclass(slots=True)
class Attempt:
    """One sync under way. Times are the database's.

    `state`: what it started from. `scope`: that of the breaker, once it is known. `is_probe`: the breaker is open, and
    this sync finds out whether the platform is back.
    """

    claim: Claim
    started: float = field(default_factory=time.monotonic)
    state: SyncState | None = None
    scope: str | None = None
    is_probe: bool = False

    @property
    def started_at(self) -> datetime:
        return self.state.now if self.state is not None else utcnow()

    @property
    def is_forced(self) -> bool:
        """Whether a client's request made it start before it was due."""
        forced_before = self.state.forced_before if self.state is not None else None
        return forced_before is not None and forced_before > self.started_at

    @property
    def is_trial(self) -> bool:
        """Whether the calendar was disconnected when it started."""
        return self.state is not None and self.state.is_trial


@dataclass(slots=True)
class Batch:
    """The changes of the pages since the last write. A later entry of the same id replaces an earlier one.

    `removed`: platform_uuids, each with the cancelled event's `raw`, if there is one. `taken`: platform_uuids of events
    that were written ahead of the rest.
    """

    events: dict[str, RemoteEvent] = field(default_factory=dict)
    removed: dict[str, str | None] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    size: int = 0

    def add(self, page: ChangePage) -> None:
        for platform_uuid, raw in page.removed.items():
            self.removed[platform_uuid] = raw
            self.events.pop(platform_uuid, None)
            self.taken.discard(platform_uuid)
            self.size += len(raw or "")
        for platform_uuid in page.unlisted:
            self.events.pop(platform_uuid, None)
        for event in page.events:
            self.events[event.platform_uuid] = event
            self.removed.pop(event.platform_uuid, None)
            self.size += len(event.raw)

    def take(self, count: int) -> "Batch":
        """Take the oldest `count` events out, as a batch of their own. What is removed stays."""
        part = Batch({name: self.events.pop(name) for name in list(self.events)[:count]})
        self.taken.update(part.events)
        self.size -= sum(len(event.raw) for event in part.events.values())
        return part

    @property
    def is_full(self) -> bool:
        return len(self.events) + len(self.removed) >= _BATCH_EVENTS or self.size >= _BATCH_BYTES
