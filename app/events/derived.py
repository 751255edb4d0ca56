"""The fields of an event that are read from few words of the provider's object (pure).

`raw` shows these words too, so that the fields can be read again from stored rows (app/sync/backfill.py).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from app.events.data import BusyStatus, EventType, RemoteEvent, Visibility

_Word = TypeVar("_Word", BusyStatus, EventType, Visibility)


class Derived(NamedTuple):
    """Values of the columns of the same names."""

    busy_status: BusyStatus = "busy"
    visibility: Visibility = "default"
    event_type: EventType = "default"
    etag: str | None = None


def derived_of(event: RemoteEvent) -> Derived:
    """Return the derived fields of an event."""
    return Derived(event.busy_status, event.visibility, event.event_type, event.etag)


def meaning(words: Mapping[str, _Word], value: Any) -> _Word | None:
    """Look a provider's word up, in any letter case; None for an unknown word and for what is no text."""
    return words.get(value.strip().casefold()) if isinstance(value, str) else None
