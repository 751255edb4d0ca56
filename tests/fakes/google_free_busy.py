"""freeBusy.query of the fake Google (docs/reference/google.md, "Free/busy")."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from tests.fakes.google_http import ApiError, bad, json_response
from tests.fakes.google_store import EVERYWHERE, Calendar, Span, overlaps

FREE_BUSY_SCOPES = frozenset(
    f"https://www.googleapis.com/auth/{name}"
    for name in ("calendar", "calendar.readonly", "calendar.freebusy", "calendar.events.freebusy")
)
_LONGEST = timedelta(days=90)
_MOST_ITEMS = 50


class FreeBusyService:
    """Busy times of calendars. Switches are plain attributes.

    `rewrite_free_busy` changes the document before it is sent, for responses that are wrong.
    """

    def __init__(self) -> None:
        self.free_busy_cuts = True  # to the range that was asked for
        self.free_busy_internal_errors: set[str] = set()  # ids of calendars that cannot be read now
        self.free_busy_malformed: set[str] = set()  # ids that make the whole request a 400
        self.rewrite_free_busy: Callable[[dict[str, Any]], Any] = lambda document: document
        self.free_busy_bodies: list[dict[str, Any]] = []

    def busy_periods(self, calendar: Calendar, window: Span) -> list[Span]:
        """The truth: merged times at which the calendar is busy."""
        spans = [
            item.span
            for item in calendar.items.values()
            if item.span != EVERYWHERE and overlaps(item.span, window) and keeps_busy(item.data())
        ]
        return merged(spans)

    async def query_free_busy(self, request: Request, find: Callable[[str], Calendar]) -> Response:
        try:
            asked = orjson.loads(await request.body())
        except orjson.JSONDecodeError:
            raise bad("Parse Error", reason="parseError") from None
        self.free_busy_bodies.append(asked)
        window = (_bound(asked, "timeMin"), _bound(asked, "timeMax"))
        if window[0] >= window[1]:
            raise bad("The specified time range is empty.", reason="timeRangeEmpty", location="timeMax")
        if window[1] - window[0] > _LONGEST.total_seconds():
            raise bad("The requested time range is too long.", reason="timeRangeTooLong")
        items = asked.get("items")
        if not isinstance(items, list) or not all(isinstance(one.get("id"), str) for one in items):
            raise bad("Missing calendars.", reason="required", location="items")
        if len(items) > _MOST_ITEMS:
            raise bad("Too many calendars requested.", reason="tooManyCalendarsRequested")
        ids = [one["id"] for one in items]
        if self.free_busy_malformed.intersection(ids):
            raise bad("Invalid value", reason="invalid")
        document = {
            "kind": "calendar#freeBusy",
            "timeMin": _written(window[0]),
            "timeMax": _written(window[1]),
            "groups": {},
            "calendars": {one: self._entry(one, window, find) for one in ids},
        }
        return json_response(self.rewrite_free_busy(document))

    def _entry(self, calendar_id: str, window: Span, find: Callable[[str], Calendar]) -> dict[str, Any]:
        if calendar_id in self.free_busy_internal_errors:
            return {"errors": [{"domain": "global", "reason": "internalError"}]}
        try:
            calendar = find(calendar_id)
        except KeyError:
            return {"errors": [{"domain": "global", "reason": "notFound"}], "busy": []}
        periods = self.busy_periods(calendar, window)
        if self.free_busy_cuts:
            periods = [(max(start, window[0]), min(end, window[1])) for start, end in periods]
        return {"busy": [{"start": _written(start), "end": _written(end)} for start, end in periods]}


def keeps_busy(event: dict[str, Any]) -> bool:
    """Opaque, not cancelled, not declined. Without a length, it takes no time."""
    own: dict[str, Any] = next((one for one in event.get("attendees", ()) if one.get("self")), {})
    return (
        event.get("status") != "cancelled"
        and event.get("transparency", "opaque") == "opaque"
        and own.get("responseStatus") != "declined"
    )


def merged(spans: Iterable[Span]) -> list[Span]:
    joined: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _bound(asked: Any, name: str) -> float:
    written = asked.get(name) if isinstance(asked, dict) else None
    if written is None:
        raise bad(f"Missing {name}.", reason="required", location=name)
    try:
        at = datetime.fromisoformat(written)
    except (TypeError, ValueError):
        at = None
    if at is None or at.tzinfo is None:
        raise ApiError(400, "badRequest", "Bad Request")
    return at.timestamp()


def _written(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
