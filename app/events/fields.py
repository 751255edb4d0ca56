"""The fields of an event, from which every list of columns is derived.

`RemoteEvent` declares them, and `CalendarEvent` (the table) has a column of the same name for each. To add a field:
the model with a migration, `RemoteEvent`, the providers that read it, and `CalendarEventRead` if the API shows it.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

import orjson
from sqlalchemy import JSON
from sqlalchemy.dialects import postgresql

from app.events.data import RemoteEvent
from app.events.derived import Derived
from app.models import CalendarEvent
from app.webhooks.payloads import CHANGED_FIELDS

# They decide what is written (app/events/diff.py), and have no column.
_NOT_STORED = frozenset({"is_cancelled", "is_raw_cut"})
# The values of these are hashed in this order. Another order, or another name in the list, changes the hash of every
# stored event: each would be written and announced as changed.
_ALWAYS_HASHED = (
    "start_time",
    "end_time",
    "is_all_day",
    "timezone",
    "name",
    "description",
    "location",
    "ical_uid",
    "organizer",
    "attendees",
    "response_status",
    "recurring_event_id",
    "original_start_time",
    "meeting_url",
    "meeting_platform",
)
# Rows are found by `platform_uuid`. `raw` is hashed by itself (app/events/diff.py), and the derived fields are read
# from it: events that were stored before they existed keep their hash.
_NOT_HASHED = frozenset({"platform_uuid", "raw", *Derived._fields})
# The fields that messages about one event state, besides those whose old and new values are stated.
_MORE_STATED = (
    "platform_uuid",
    "ical_uid",
    "organizer",
    "meeting_platform",
    "recurring_event_id",
    "original_start_time",
)


@dataclass(frozen=True, slots=True)
class EventField:
    """A field of `RemoteEvent` that is a column of calendar_events.

    `sql_type`: the type of its values in bulk writes, where JSON is text. `is_notified`: in `changed_fields` of
    webhooks.
    """

    name: str
    sql_type: str
    is_json: bool
    is_notified: bool


_POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]


def _describe(name: str) -> EventField:
    column_type = CalendarEvent.__table__.c[name].type
    is_json = isinstance(column_type, JSON)
    return EventField(
        name=name,
        sql_type="text" if is_json else column_type.compile(dialect=_POSTGRESQL),
        is_json=is_json,
        is_notified=name in CHANGED_FIELDS,
    )


EVENT_FIELDS = tuple(_describe(field.name) for field in fields(RemoteEvent) if field.name not in _NOT_STORED)
NOTIFIED_FIELDS = tuple(field.name for field in EVENT_FIELDS if field.is_notified)
STATED_FIELDS = (*NOTIFIED_FIELDS, *_MORE_STATED)

STATED_JSON_FIELDS = tuple(
    field.name for field in EVENT_FIELDS if field.is_json and field.name in STATED_FIELDS
)

_load_always_hashed: Callable[[RemoteEvent], tuple[Any, ...]] = attrgetter(*_ALWAYS_HASHED)
# Fields that came later, with their defaults. They are hashed where they have a value, so that the stored events
# without one keep their hash.
_HASHED_IF_SET = {
    field.name: field.default
    for field in fields(RemoteEvent)
    if field.name not in {*_ALWAYS_HASHED, *_NOT_HASHED, *_NOT_STORED}
}

_load_stored: Callable[[RemoteEvent], tuple[Any, ...]] = attrgetter(*(field.name for field in EVENT_FIELDS))
_ENCODED = tuple(index for index, field in enumerate(EVENT_FIELDS) if field.is_json and field.name != "raw")


def hashed_values(event: RemoteEvent) -> tuple[Any, ...]:
    """The values that the content hash covers, besides `raw`."""
    values = _load_always_hashed(event)
    added = [
        (name, value)
        for name, default in _HASHED_IF_SET.items()
        if (value := getattr(event, name)) != default
    ]
    return (*values, *added)


def stored_values(event: RemoteEvent) -> list[Any]:
    """The values of EVENT_FIELDS as they are written; JSON as text."""
    values = list(_load_stored(event))
    for index in _ENCODED:
        if values[index] is not None:
            values[index] = orjson.dumps(values[index]).decode()
    return values


def stated_values(event: RemoteEvent) -> dict[str, Any]:
    """The values of STATED_FIELDS as they are read back; people as dicts."""
    values = {}
    for name in STATED_FIELDS:
        value = getattr(event, name)
        values[name] = orjson.loads(orjson.dumps(value)) if name in STATED_JSON_FIELDS else value
    return values
