"""Pure: what `include_events` webhooks tell of a sync's changes (contract 6): each event, and old and new values."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from app.core.clock import isoformat
from app.events.diff import EventWrite, attendees
from app.webhooks.payloads import ChangedEvent

MOST = 50

_FIELDS = (
    "name",
    "start_time",
    "end_time",
    "is_all_day",
    "timezone",
    "location",
    "description",
    "meeting_url",
    "response_status",
    "attendees",
    "is_deleted",
)


def _plain(value: Any) -> Any:
    return isoformat(value) if isinstance(value, datetime) else value


def _after(write: EventWrite) -> dict[str, Any]:
    values = {name: getattr(write.event, name) for name in _FIELDS if name not in {"attendees", "is_deleted"}}
    return {**values, "attendees": attendees(write.event), "is_deleted": write.is_deleted}


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (_plain(before[name]), _plain(after[name])) for name in _FIELDS if before[name] != after[name]
    }


def describe_changes(
    writes: Sequence[EventWrite],
    ids: Sequence[str],
    deleted_ids: Sequence[str],
    before: Mapping[str, Mapping[str, Any]],
) -> list[ChangedEvent]:
    """The first `MOST` changes. `ids` are those of `writes`; `before` has the stored rows' fields by id."""
    described: list[ChangedEvent] = []
    for write, event_id in zip(writes[:MOST], ids, strict=False):
        after = _after(write)
        old = before.get(event_id)
        described.append(
            ChangedEvent(
                id=event_id,
                change=write.change,
                event={"id": event_id, **{name: _plain(value) for name, value in after.items()}},
                changed_fields=_changed(old, after) if old is not None else {},
            )
        )
    for event_id in deleted_ids[: MOST - len(described)]:
        old = before[event_id]
        after = {**old, "is_deleted": True}
        described.append(
            ChangedEvent(
                id=event_id,
                change="deleted",
                event={"id": event_id, **{name: _plain(value) for name, value in after.items()}},
                changed_fields=_changed(old, after),
            )
        )
    return described
