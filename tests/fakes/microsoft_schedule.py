"""getSchedule of the fake Graph (docs/reference/microsoft.md, "Free/busy")."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import orjson
from starlette.requests import Request
from starlette.responses import Response

from app.ical.timezones import named_zone
from tests.fakes.microsoft_http import GraphError, bad, json_response, preferences_of
from tests.fakes.microsoft_identity import Grant
from tests.fakes.microsoft_store import Mailbox, Span, graph_time, overlaps

_MOST_ADDRESSES = 20
_LONGEST = timedelta(days=62)


class ScheduleService:
    """Schedules of default calendars. Switches are plain attributes.

    `schedule_all_day`: all-day events come at the midnights of their own zone, in UTC, or at those of the zone that was
    asked for; both have been seen. `rewrite_schedule` changes the document before it is sent.
    """

    mailboxes: dict[str, Mailbox]

    def __init__(self) -> None:
        self.schedule_all_day: Literal["own", "asked"] = "asked"
        self.personal_mailboxes: set[str] = set()  # addresses whose accounts getSchedule refuses
        self.rewrite_schedule: Callable[[dict[str, Any]], Any] = lambda document: document
        self.schedule_bodies: list[dict[str, Any]] = []

    async def get_schedule(self, request: Request, grant: Grant) -> Response:
        if grant.mailbox.email in self.personal_mailboxes:
            raise GraphError(403, "ErrorAccessDenied", "Access is denied. Check credentials and try again.")
        try:
            asked = orjson.loads(await request.body())
        except orjson.JSONDecodeError:
            raise bad("Unable to read JSON request payload.", "BadRequest") from None
        self.schedule_bodies.append(asked)
        addresses = asked.get("schedules")
        if not isinstance(addresses, list) or not addresses:
            raise bad("The parameter schedules is missing.", "ErrorInvalidParameter")
        if len(addresses) > _MOST_ADDRESSES:
            raise bad("The number of schedules is too big.", "ErrorInvalidParameter")
        interval = asked.get("availabilityViewInterval", 30)
        if not isinstance(interval, int) or not 5 <= interval <= 1440:
            raise bad("availabilityViewInterval is out of range.", "ErrorInvalidMergedFreeBusyInterval")
        start, end = _bound(asked, "startTime"), _bound(asked, "endTime")
        if start >= end:
            raise bad("The end is not after the start.", "ErrorInvalidTimeInterval")
        if end - start > _LONGEST:
            text = "The requested time duration specified for FreeBusyViewOptions.TimeWindow is too long."
            raise bad(text, "ErrorTimeIntervalTooBig")
        zone_name = preferences_of(request).zone_name
        window = (start.timestamp(), end.timestamp())
        document = {
            "@odata.context": "https://graph.microsoft.com/v1.0/$metadata#Collection(scheduleInformation)",
            "value": [self._schedule(address, window, zone_name) for address in addresses],
        }
        return json_response(self.rewrite_schedule(document))

    def _schedule(self, address: str, window: Span, zone_name: str) -> dict[str, Any]:
        mailbox = next(
            (one for email, one in self.mailboxes.items() if email.lower() == address.lower()), None
        )
        if mailbox is None:
            error = {"message": "Unable to resolve e-mail address to a recipient.", "responseCode": "5016"}
            return {
                "scheduleId": address,
                "availabilityView": "",
                "scheduleItems": None,
                "error": error,
            }
        items = [
            shown
            for item in mailbox.default.listing((window[0] - 86_400, window[1] + 86_400))
            if not item.data()["isCancelled"]
            and overlaps(_span(shown := self._item(item.data(), zone_name)), window)
        ]
        return {
            "scheduleId": address,
            "availabilityView": "0",
            "scheduleItems": items,
            "workingHours": {"daysOfWeek": ["monday"], "timeZone": {"name": mailbox.windows_zone}},
        }

    def _item(self, event: dict[str, Any], zone_name: str) -> dict[str, Any]:
        zone, home = named_zone(zone_name), named_zone(event["originalStartTimeZone"])
        assert zone is not None
        times = {}
        for name in ("start", "end"):
            written = datetime.fromisoformat(event[name]["dateTime"])
            if not event["isAllDay"]:
                written = written.replace(tzinfo=UTC).astimezone(zone.tzinfo)
            elif self.schedule_all_day == "own" and home is not None:
                written = written.replace(tzinfo=home.tzinfo).astimezone(zone.tzinfo)
            times[name] = {"dateTime": graph_time(written), "timeZone": zone_name}
        status = str(event["showAs"])
        return {
            "isPrivate": event["sensitivity"] == "private",
            "status": random.choice((status, status.upper(), status.capitalize())),
            "subject": event["subject"],
            "location": event["location"]["displayName"],
            "isMeeting": bool(event["attendees"]),
            "isRecurring": event["seriesMasterId"] is not None,
            "isException": event["type"] == "exception",
            "isReminderSet": True,
            **times,
        }


def _span(item: dict[str, Any]) -> Span:
    """By the times as they are shown, also of an all-day event."""
    zone = named_zone(item["start"]["timeZone"])
    assert zone is not None
    start, end = (
        datetime.fromisoformat(item[name]["dateTime"]).replace(tzinfo=zone.tzinfo)
        for name in ("start", "end")
    )
    return start.timestamp(), end.timestamp()


def _bound(asked: dict[str, Any], name: str) -> datetime:
    value = asked.get(name)
    if not isinstance(value, dict) or not isinstance(value.get("timeZone"), str):
        raise bad(f"The parameter {name} is missing.", "ErrorInvalidParameter")
    zone = named_zone(value["timeZone"])
    if zone is None:
        raise bad("The time zone is not supported.", "TimeZoneNotSupportedException")
    try:
        at = datetime.fromisoformat(value["dateTime"])
    except (KeyError, TypeError, ValueError):
        raise bad(f"The parameter {name} is not valid.", "ErrorInvalidParameter") from None
    if at.tzinfo is not None:
        raise bad(f"The parameter {name} has an offset.", "ErrorInvalidParameter")
    return at.replace(tzinfo=zone.tzinfo)
