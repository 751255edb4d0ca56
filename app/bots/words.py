"""The API's words for a bot's states and log entries, which are Attendee's.

Rows keep the words of the first release (app/bots/lifecycle.py), because workers of both releases read and write the
same rows during an upgrade.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from app.models.bot import EntryType, State

ShownState = Literal["scheduled", "staged", "joining", "fatal_error"]
ShownEntryType = Literal[
    "scheduled",
    "updated",
    "event_changed",
    "staged",
    "launch_failed",
    "join_requested",
    "fatal_error",
    "deleted",
]
# The states that a list can be filtered by: all of Attendee, most of which only the runner knows, and the words of the
# first release.
AskedState = Literal[
    "scheduled",
    "staged",
    "joining",
    "fatal_error",
    "ready",
    "waiting_room",
    "joined_not_recording",
    "joined_recording",
    "joined_recording_paused",
    "joined_recording_permission_denied",
    "joining_breakout_room",
    "leaving_breakout_room",
    "leaving",
    "post_processing",
    "ended",
    "data_deleted",
    "launching",
    "launched",
]

_STATES: Mapping[State, ShownState] = {
    "scheduled": "scheduled",
    "launching": "staged",
    "launched": "joining",
    "fatal_error": "fatal_error",
}
_ENTRY_TYPES: Mapping[str, ShownEntryType] = {"launching": "staged", "launched": "join_requested"}
_STORED: Mapping[str, State] = {shown: stored for stored, shown in _STATES.items()} | {
    stored: stored for stored in _STATES
}


def shown_state(state: State) -> ShownState:
    return _STATES[state]


def shown_entry_type(entry_type: EntryType | str) -> str:
    return _ENTRY_TYPES.get(entry_type, entry_type)


def stored_states(asked: Iterable[AskedState]) -> list[State]:
    """Return the stored states of these words; none for states that only the runner knows."""
    return [_STORED[word] for word in dict.fromkeys(asked) if word in _STORED]


def shown_bot(row: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a row of a bot into the fields of BotRead, in their order."""
    return {
        "id": row["id"],
        "metadata": row["metadata"],
        "meeting_url": row["meeting_url"],
        "bot_name": row["bot_name"],
        "state": shown_state(row["state"]),
        "events": [entry | {"type": shown_entry_type(entry["type"])} for entry in row["events"]],
        "transcription_state": "not_started",
        "recording_state": "not_started",
        "join_at": row["join_at"],
        "deduplication_key": row["deduplication_key"],
        "calendar_event_id": row["calendar_event_id"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }
