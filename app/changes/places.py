"""Places in the order of changes, and their cursors."""

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from app.changes.errors import BadCursor

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LAST = datetime.max.replace(tzinfo=UTC)
_TIME = struct.Struct(">q")
_CHECK_BYTES = 8


@dataclass(frozen=True, slots=True)
class Scope:
    """What a client follows: a project, or one calendar of it."""

    project_id: str
    calendar_id: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Behind the event with this `updated_at` and id; with an empty id, before all events of that time."""

    at: datetime
    event_id: str = ""

    @property
    def until(self) -> datetime:
        """The time before which all events are behind: each was visible when the place was made."""
        return self.at + _MICROSECOND if self.event_id and self.at < _LAST else self.at

    def is_before(self, at: datetime, event_id: str) -> bool:
        return (self.at, self.event_id) < (at, event_id)


def encode_cursor(scope: Scope, place: Place) -> str:
    """Return the place as text that is good only for this scope."""
    payload = _TIME.pack((place.at - _EPOCH) // _MICROSECOND) + place.event_id.encode()
    return base64.urlsafe_b64encode(payload + _check(scope, payload)).decode().rstrip("=")


def decode_cursor(scope: Scope, text: str) -> Place:
    """Parse what `encode_cursor` returned for the same scope. Raises BadCursor for any other text."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        payload = raw[:-_CHECK_BYTES]
        # A second spelling of the same bytes would be another cursor.
        is_ours = _check(scope, payload) == raw[-_CHECK_BYTES:] and len(payload) >= _TIME.size
        if not is_ours or base64.urlsafe_b64encode(raw).decode().rstrip("=") != text:
            raise BadCursor
        at = _EPOCH + _TIME.unpack_from(payload)[0] * _MICROSECOND
        event_id = payload[_TIME.size :].decode("ascii")
    except (binascii.Error, ValueError, OverflowError):
        raise BadCursor from None
    if event_id and not event_id.replace("_", "").isalnum():
        raise BadCursor
    return Place(at, event_id)


def _check(scope: Scope, payload: bytes) -> bytes:
    """Return a checksum over scope and place.

    It finds mistakes. It is no signature, because who makes up a cursor of the own project gains nothing.
    """
    owner = f"{scope.project_id}/{scope.calendar_id or ''}/".encode()
    return hashlib.blake2b(owner + payload, digest_size=_CHECK_BYTES).digest()
