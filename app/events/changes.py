"""Changed events as `include_events` webhooks state them, with old and new values (pure)."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from app.core.clock import isoformat
from app.events.derived import Derived
from app.events.diff import EventWrite
from app.events.fields import NOTIFIED_FIELDS, notified_values
from app.webhooks.payloads import ChangedEvent

MOST = 50

_FIELDS = (*NOTIFIED_FIELDS, "is_deleted")
_DEFAULTS = {name: value for name, value in Derived()._asdict().items() if name in NOTIFIED_FIELDS}


def _plain(value: Any) -> Any:
    return isoformat(value) if isinstance(value, datetime) else value


def _after(write: EventWrite) -> dict[str, Any]:
    return {**notified_values(write.event), "is_deleted": write.is_deleted}


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (_plain(before[name]), _plain(after[name]))
        for name in _FIELDS
        if before[name] != after[name] and not _is_unknown(name, before)
    }


def _is_unknown(name: str, stored: Mapping[str, Any]) -> bool:
    """Whether a row is from before the column existed, so that the old value is not known."""
    return stored[name] is None and name in _DEFAULTS


def describe_changes(
    writes: Sequence[EventWrite],
    ids: Sequence[str],
    deleted_ids: Sequence[str],
    before: Mapping[str, Mapping[str, Any]],
) -> list[ChangedEvent]:
    """Describe the first `MOST` changes: `writes`, then `deleted_ids`.

    `ids`: those of the rows of `writes`. `before`: the fields of the stored rows, by id.
    """
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
        known = {name: default for name, default in _DEFAULTS.items() if _is_unknown(name, old)}
        after = {**old, **known, "is_deleted": True}
        described.append(
            ChangedEvent(
                id=event_id,
                change="deleted",
                event={"id": event_id, **{name: _plain(value) for name, value in after.items()}},
                changed_fields=_changed(old, after),
            )
        )
    return described
