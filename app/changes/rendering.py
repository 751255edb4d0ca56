"""Changes as JSON and as Server-Sent Events. Each is rendered once, however many clients get it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import Row

from app.calendar_events.service import event_body
from app.changes.places import Place, Scope, encode_cursor
from app.changes.schemas import ChangeType

_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")
# Within a line by the standard, but many programs split lines at them.
_SEPARATORS = {char.encode(): f"\\u{ord(char):04x}".encode() for char in "\x85\u2028\u2029"}


@dataclass(slots=True, eq=False, weakref_slot=True)
class Change:
    """An event as it is now, at its place in the order of changes. `event`: the event of the API, as JSON."""

    place: Place
    created_at: datetime
    calendar_id: str
    is_deleted: bool
    event: bytes
    _frames: dict[tuple[str | None, ChangeType], bytes] = field(default_factory=dict)

    def type_seen_from(self, place: Place) -> ChangeType:
        if self.is_deleted:
            return "event.deleted"
        is_new = place.is_before(self.created_at, self.place.event_id)
        return "event.created" if is_new else "event.updated"

    def as_json(self, place: Place) -> bytes:
        """Return the object of `results`, on one line. `place`: the client's."""
        return self._json(self.type_seen_from(place))

    def _json(self, kind: ChangeType) -> bytes:
        return b'{"type":"%b","calendar_id":"%b","event":%b}' % (
            kind.encode(),
            self.calendar_id.encode(),
            self.event,
        )

    def as_server_sent_event(self, scope: Scope, place: Place) -> bytes:
        kind = self.type_seen_from(place)
        frame = self._frames.get((scope.calendar_id, kind))
        if frame is None:
            cursor = encode_cursor(scope, self.place).encode()
            frame = b"id: %b\nevent: %b\ndata: %b\n\n" % (cursor, kind.encode(), self._json(kind))
            self._frames[scope.calendar_id, kind] = frame
        return frame


def read_change(row: Row[Any]) -> Change:
    """Render a row of `list_changes`."""
    return Change(
        place=Place(row.updated_at.replace(tzinfo=UTC), row.id),
        created_at=row.created_at.replace(tzinfo=UTC),
        calendar_id=row.calendar_id,
        is_deleted=row.is_deleted,
        event=_on_one_line(orjson.dumps(event_body(row))),
    )


def _on_one_line(json: bytes) -> bytes:
    """Return the same JSON on one line. `raw` is stored text, which may have line ends between its tokens."""
    json = json.translate(_LINE_ENDS)
    for separator, escaped in _SEPARATORS.items():
        json = json.replace(separator, escaped)
    return json
