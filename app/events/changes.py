"""Changed events as webhooks state them, with old and new values (pure)."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from app.core.clock import isoformat
from app.events.derived import Derived
from app.events.diff import EventWrite
from app.events.fields import NOTIFIED_FIELDS, stated_values
from app.webhooks.payloads import CalendarFacts, ChangedEvent

# What `include_events` webhooks get at most.
MOST = 50

_FIELDS = (*NOTIFIED_FIELDS, "is_deleted")
# Rows from before these columns existed have null in them, and are shown with these values.
_IF_NULL = {name: value for name, value in Derived()._asdict().items() if value is not None}


def _plain(value: Any) -> Any:
    return isoformat(value) if isinstance(value, datetime) else value


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (_plain(before[name]), _plain(after[name]))
        for name in _FIELDS
        # A value that was never read cannot have changed.
        if before[name] != after[name] and not (name in _IF_NULL and before[name] is None)
    }


def state_event(event_id: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split STATED_FIELDS and `is_deleted` into `ChangedEvent.event` and `.more`; times become text."""
    shown = {name: _plain(_IF_NULL.get(name) if value is None else value) for name, value in values.items()}
    event = {"id": event_id, **{name: shown.pop(name) for name in _FIELDS}}
    return event, shown


def event_data(
    event: Mapping[str, Any], more: Mapping[str, Any], calendar: CalendarFacts, updated_at: datetime
) -> dict[str, Any]:
    """Return `data.event` of a message about one event; `event` and `more` as `state_event` splits them."""
    return {**event, **more, "calendar_id": calendar.id, "updated_at": isoformat(updated_at)}


def describe_changes(
    writes: Sequence[EventWrite],
    ids: Sequence[str],
    deleted_ids: Sequence[str],
    before: Mapping[str, Mapping[str, Any]],
) -> Iterator[ChangedEvent]:
    """Describe each change: `writes`, then `deleted_ids`.

    `ids`: those of the rows of `writes`. `before`: the fields of the stored rows, by id.
    """
    for write, event_id in zip(writes, ids, strict=True):
        after = {**stated_values(write.event), "is_deleted": write.is_deleted}
        old = before.get(event_id)
        event, more = state_event(event_id, after)
        changed = _changed(old, after) if old is not None else {}
        yield ChangedEvent(event_id, write.change, event, changed, more)
    for event_id in deleted_ids:
        old = before[event_id]
        after = {**old, "is_deleted": True}
        event, more = state_event(event_id, after)
        yield ChangedEvent(event_id, "deleted", event, _changed(old, after), more)
