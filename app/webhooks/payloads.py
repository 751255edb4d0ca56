"""Pure: the triggers and the bodies of deliveries.

openapi.py describes the same bodies in the OpenAPI document.
See docs/reference/http-api.md, "Payloads".

A body is canonical JSON: keys sorted, separators `,` and `:`, UTF-8 not escaped, and only strings, integers, booleans
and null as values. So a receiver in any language that parses and serialises it again gets the bytes that were signed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, get_args

import orjson

from app.core.clock import isoformat

Trigger = Literal[
    "calendar.events_update",
    "calendar.state_change",
    "bot.state_change",
    "event.rsvp_update",
    "event.created",
    "event.updated",
    "event.deleted",
    "event.starting_soon",
]
Change = Literal["created", "updated", "deleted"]
ChangedFieldName = Literal[
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
    "busy_status",
    "visibility",
    "event_type",
]

TRIGGERS: tuple[Trigger, ...] = get_args(Trigger)
EVENT_TRIGGERS: dict[Change, Trigger] = {
    "created": "event.created",
    "updated": "event.updated",
    "deleted": "event.deleted",
}
CHANGED_FIELDS: tuple[ChangedFieldName, ...] = get_args(ChangedFieldName)
"""The fields whose old and new values messages state."""

# JavaScript's numbers are exact up to this one.
_LARGEST_INTEGER = 2**53 - 1


@dataclass(frozen=True, slots=True)
class CalendarFacts:
    """The calendar in a delivery."""

    id: str
    deduplication_key: str | None
    metadata: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class BotFacts:
    """The bot in a delivery."""

    id: str
    metadata: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class ChangedEvent:
    """One changed event. JSON-able, times as ISO 8601 text.

    `event`: what `include_events` states of it. `more`: what messages about one event state besides.
    `changed_fields`: {name: (old value, new value)}.
    """

    id: str
    change: Change
    event: dict[str, Any]
    changed_fields: dict[str, tuple[Any, Any]]
    more: dict[str, Any] = field(default_factory=dict)


def canonical_json(value: Any) -> bytes:
    """Return the bytes that are stored, signed and sent."""
    return orjson.dumps(_plain(value), option=orjson.OPT_SORT_KEYS)


def _plain(value: Any) -> Any:
    """Return `value` with everything that canonical JSON does not allow (see above) as text."""
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return value if abs(value) <= _LARGEST_INTEGER else str(value)
    if isinstance(value, Mapping):
        return {_text(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return isoformat(value)
    return str(value)


def _text(value: str) -> str:
    # A lone surrogate has no UTF-8 encoding.
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def build_body(
    *,
    idempotency_key: str,
    trigger: Trigger,
    calendar: CalendarFacts | None,
    data: Mapping[str, Any],
    bot: BotFacts | None = None,
    calendar_event_id: str | None = None,
) -> bytes:
    """Return the whole body of one delivery."""
    payload: dict[str, Any] = {
        "idempotency_key": idempotency_key,
        "calendar_id": calendar.id if calendar else None,
        "calendar_deduplication_key": calendar.deduplication_key if calendar else None,
        "calendar_metadata": calendar.metadata if calendar else None,
        "trigger": trigger,
        "data": data,
    }
    if bot is not None:
        payload |= {"bot_id": bot.id, "bot_metadata": bot.metadata}
    if calendar_event_id is not None:
        payload["calendar_event_id"] = calendar_event_id
    return canonical_json(payload)


def changed_fields_data(changed: ChangedEvent) -> dict[str, dict[str, Any]]:
    """Return the changed fields as messages state them: {name: {"old", "new"}}."""
    return {name: {"old": old, "new": new} for name, (old, new) in changed.changed_fields.items()}


_SAMPLE_EVENT_ID = "evt_0000000000000000"
_SAMPLE_CALENDAR_ID = "cal_0000000000000000"


def _sample_event(now: datetime) -> dict[str, Any]:
    return {
        "id": _SAMPLE_EVENT_ID,
        "calendar_id": _SAMPLE_CALENDAR_ID,
        "platform_uuid": "sample",
        "ical_uid": "sample@calbridge",
        "name": "Analysis",
        "start_time": isoformat(now + timedelta(minutes=10)),
        "end_time": isoformat(now + timedelta(minutes=40)),
        "is_all_day": False,
        "timezone": "Europe/Paris",
        "location": None,
        "description": None,
        "meeting_url": "https://meet.example.com/sample",
        "meeting_platform": None,
        "organizer": {"email": "ada@example.com", "name": "Ada Lovelace"},
        "attendees": [],
        "response_status": "accepted",
        "busy_status": "busy",
        "visibility": "default",
        "event_type": "default",
        "recurring_event_id": None,
        "original_start_time": None,
        "is_deleted": False,
        "updated_at": isoformat(now),
    }


def _sample_data(now: datetime) -> dict[Trigger, dict[str, Any]]:
    at = isoformat(now)
    state = {
        "state": "connected",
        "connection_failure_data": None,
        "last_successful_sync_at": at,
        "last_attempted_sync_at": at,
    }
    event = _sample_event(now)
    return {
        "calendar.events_update": {
            **state,
            "changes": {"created": 0, "updated": 0, "deleted": 0},
            "updated_after": at,
        },
        "calendar.state_change": state,
        "bot.state_change": {
            "state": "scheduled",
            "new_state": "scheduled",
            "old_state": "scheduled",
            "join_at": at,
            "meeting_url": "https://meet.example.com/sample",
            "event_type": "updated",
            "event_sub_type": None,
            "event_metadata": {"fields": ["bot_name"]},
            "created_at": at,
        },
        "event.rsvp_update": {
            "response_status": "accepted",
            "previous_response_status": "needs_action",
            "attendee": {"email": "ada@example.com", "name": "Ada Lovelace", "is_optional": False},
            "ical_uid": "sample@calbridge",
            "scope": "event",
            "original_start_time": None,
            "answered_at": at,
        },
        "event.created": {"event": event, "changed_fields": {}},
        "event.updated": {
            "event": event,
            "changed_fields": {"name": {"old": "Algebra", "new": "Analysis"}},
        },
        "event.deleted": {
            "event": {**event, "is_deleted": True},
            "changed_fields": {"is_deleted": {"old": False, "new": True}},
        },
        "event.starting_soon": {"event": event, "starting_soon_minutes": 10},
    }


def sample_body(*, idempotency_key: str, trigger: Trigger, now: datetime) -> bytes:
    """Return the body of a test: no object has its ids, and `data.test` is true."""
    return build_body(
        idempotency_key=idempotency_key,
        trigger=trigger,
        calendar=CalendarFacts(_SAMPLE_CALENDAR_ID, deduplication_key=None, metadata=None),
        data={**_sample_data(now)[trigger], "test": True},
        bot=BotFacts("bot_0000000000000000", metadata=None) if trigger == "bot.state_change" else None,
        calendar_event_id=_SAMPLE_EVENT_ID if trigger.startswith("event.") else None,
    )


class CalendarState(Protocol):
    """How a calendar's connection is doing."""

    @property
    def state(self) -> str: ...
    @property
    def connection_failure_data(self) -> dict[str, Any] | None: ...
    @property
    def last_successful_sync_at(self) -> datetime | None: ...
    @property
    def last_attempted_sync_at(self) -> datetime | None: ...


def state_data(calendar: CalendarState) -> dict[str, Any]:
    """Return what `data` says of a calendar's state, with times as ISO 8601 text."""
    succeeded_at, attempted_at = calendar.last_successful_sync_at, calendar.last_attempted_sync_at
    return {
        "state": calendar.state,
        "connection_failure_data": calendar.connection_failure_data,
        "last_successful_sync_at": isoformat(succeeded_at) if succeeded_at is not None else None,
        "last_attempted_sync_at": isoformat(attempted_at) if attempted_at is not None else None,
    }
