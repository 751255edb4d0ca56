"""Pure: the content of a message, and of one that replaces older undelivered messages.

When a `calendar.events_update` is announced while an older one about the same calendar still waits for the same
endpoint, the newer one replaces it. An endpoint that was unavailable for a day gets one message for a calendar instead
of fifty.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from app.webhooks.payloads import ChangedEvent, canonical_json, changed_fields_data

MOST_EVENTS = 50
MOST_EVENTS_BYTES = 20_000


def merge_content(
    older: Sequence[Mapping[str, Any]],
    newer: Mapping[str, Any],
    *,
    event_entries: Sequence[Mapping[str, Any]] | None,
) -> Mapping[str, Any]:
    """Return the `data` of a message that replaces those with the `older` data, oldest first.

    `event_entries`: the newer message's `data.events`, or None for an endpoint without `include_events`.
    """
    content = merge_changes(older, newer) if older else newer
    if event_entries is None:
        return content
    return with_events(
        content, [entry for data in older for entry in data.get("events", [])] + list(event_entries)
    )


def merge_changes(older: Sequence[Mapping[str, Any]], newer: Mapping[str, Any]) -> dict[str, Any]:
    """Return `newer` with the sum of all `changes` and the earliest `updated_after`; its state stays."""
    every = [*older, newer]
    return {
        **newer,
        "changes": {kind: sum(data["changes"].get(kind, 0) for data in every) for kind in newer["changes"]},
        "updated_after": min((data["updated_after"] for data in every), key=datetime.fromisoformat),
    }


def build_event_entries(changed_events: Iterable[ChangedEvent]) -> list[dict[str, Any]]:
    """Return the entries of `data.events`: fields, `change`, and `changed_fields` {name: {old, new}}."""
    return [
        {
            **changed.event,
            "id": changed.id,
            "change": changed.change,
            "changed_fields": changed_fields_data(changed),
        }
        for changed in changed_events
    ]


def with_events(data: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `data` with as many `events` as fit, and `truncated`: whether a change is missing."""
    events: list[Mapping[str, Any]] = []
    size = len(b"[]")
    for entry in entries:
        size_with = size + len(canonical_json(entry)) + len(b",")
        if len(events) < MOST_EVENTS and size_with <= MOST_EVENTS_BYTES:
            events.append(entry)
            size = size_with
    changed = max(len(entries), sum(data.get("changes", {}).values()))
    return {**data, "events": events, "truncated": changed > len(events)}
