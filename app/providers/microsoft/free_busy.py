"""Busy times of an Outlook calendar, by getSchedule or calendarView.

See docs/reference/microsoft.md, "Free/busy".
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, time, timedelta
from typing import Any
from urllib.parse import quote

import structlog

from app.core.http import httpx
from app.events.data import RemoteEvent
from app.ical.timezones import named_zone
from app.providers.base import (
    AccessDenied,
    CalendarRemoved,
    ClientMisconfigured,
    CredentialsRevoked,
    CursorExpired,
    NotAsked,
    ProviderError,
    RateLimited,
    TokenSource,
    Transient,
    Unavailable,
)
from app.providers.free_busy import BusyStatus, BusyTime, Range, check_time, cut_to, pieces, widened
from app.providers.http import require_object
from app.providers.microsoft.client import GraphClient, classify_error
from app.providers.microsoft.fields import parse_event

log = structlog.get_logger(__name__)

# Graph sees an all-day event in the mailbox's zone, we in its creator's: a day more at both ends leaves no gap.
_EDGE = timedelta(days=1)
# getSchedule takes 62 days.
_LONGEST = timedelta(days=62) - 2 * _EDGE
_MAX_BODY_BYTES = 8 * 1024 * 1024
_PAGE_SIZE = 1000
_MOST_VIEWS = 12
_PREFER = 'IdType="ImmutableId", outlook.timezone="UTC"'
_SELECT = "id,type,start,end,isAllDay,isCancelled,isOrganizer,responseStatus,originalStartTimeZone,showAs"
# What calendarView would get as well, or what asking once more would make worse.
_STOPS = (ClientMisconfigured, CredentialsRevoked, NotAsked, RateLimited)
_NO_RESPONSE = frozenset({"timeout", "connection_failed", "answer_too_large"})
_SCOPE_MISSING = (
    "Microsoft refuses to say when this calendar is busy: connect again and allow Calendars.Read."
)
# Keys in lower case: the case of getSchedule's differs. What is not here counts as busy.
_STATUSES: dict[str, BusyStatus | None] = {
    "free": None,
    "workingelsewhere": None,
    "tentative": "tentative",
    "busy": "busy",
    "oof": "out_of_office",
}


class MicrosoftFreeBusy:
    """The busy times of the calendars of one account. One request at a time.

    `base_url` is MICROSOFT_GRAPH_BASE_URL, with the version; `deadline_seconds` is for each request.
    """

    def __init__(
        self, *, client: httpx.AsyncClient, tokens: TokenSource, base_url: str, deadline_seconds: float
    ) -> None:
        self._graph = GraphClient(client=client, tokens=tokens, base_url=base_url)
        self._deadline_seconds = deadline_seconds

    async def read_schedule(self, address: str, ranges: Sequence[Range]) -> list[BusyTime] | None:
        """The busy times of the default calendar of the account with this address, by getSchedule.

        None if calendarView must be asked instead: getSchedule refuses, as for personal accounts, or it names whole
        days, whose zone it does not say. Raises ProviderError where calendarView would not work either.
        """
        found: list[BusyTime] = []
        for piece in pieces(ranges, _LONGEST):
            try:
                times = _schedule_times(await self._post_schedule(address, piece), address, piece)
            except _STOPS:
                raise
            except ProviderError as err:
                is_put_off = isinstance(err, Transient) and err.retry_after is not None
                if err.code in _NO_RESPONSE or is_put_off:
                    raise
                log.info("microsoft.schedule_not_usable", code=err.code)
                return None
            if any(_is_whole_days(one) for one in times):
                return None
            found += times
        return cut_to(found, ranges)

    async def read_view(self, calendar_id: str | None, ranges: Sequence[Range]) -> list[BusyTime]:
        """The busy times of any calendar of the account, by calendarView; None is the default calendar.

        Raises ProviderError.
        """
        owner = f"{self._graph.base_url}/me"
        if calendar_id is not None:
            owner += f"/calendars/{quote(calendar_id, safe='', errors='replace')}"
        found: list[BusyTime] = []
        try:
            for piece in pieces(ranges, _LONGEST):
                found += await self._view_times(f"{owner}/calendarView", piece)
        except AccessDenied as err:
            if err.code == AccessDenied.code:
                raise AccessDenied(_SCOPE_MISSING) from None
            raise
        except CursorExpired:
            raise Unavailable("Microsoft's response cannot be used.", code="broken_answer") from None
        return cut_to(found, ranges)

    async def _post_schedule(self, address: str, asked: Range) -> dict[str, Any]:
        start, end = ({"dateTime": _written(at), "timeZone": "UTC"} for at in widened(asked, _EDGE))
        response = await self._graph.send(
            "POST",
            f"{self._graph.base_url}/me/calendar/getSchedule",
            prefer='outlook.timezone="UTC"',
            document={
                "schedules": [address],
                "startTime": start,
                "endTime": end,
                # The digits of `availabilityView` are not read: few of them are enough.
                "availabilityViewInterval": 1440,
            },
            max_bytes=_MAX_BODY_BYTES,
            deadline_seconds=self._deadline_seconds,
        )
        if response.status != 200:
            raise classify_error(response.status, response.body, response.headers)
        return require_object(response, "Microsoft")

    async def _view_times(self, url: str, asked: Range) -> list[BusyTime]:
        """The times of one calendarView, in halves where it has more than one page.

        Pages are counted off when they are requested: a deletion meanwhile would hide an event ("Calendar view").
        """
        found: list[BusyTime] = []
        left = [asked]
        for _ in range(_MOST_VIEWS):
            some = left.pop()
            start, end = widened(some, _EDGE)
            document = await self._graph.get(
                url,
                {
                    "startDateTime": f"{_written(start)}Z",
                    "endDateTime": f"{_written(end)}Z",
                    "$select": _SELECT,
                    "$top": str(_PAGE_SIZE),
                },
                prefer=_PREFER,
                max_bytes=_MAX_BODY_BYTES,
                deadline_seconds=self._deadline_seconds,
            )
            items = document.get("value")
            if not isinstance(items, list):
                raise Unavailable("Microsoft's response is not a list.", code="broken_answer")
            if document.get("@odata.nextLink") is None:
                found += [one for item in items if (one := _event_time(item, some)) is not None]
            else:
                middle = (some[0] + (some[1] - some[0]) / 2).replace(microsecond=0)
                left += [(middle, some[1]), (some[0], middle)]
            if not left:
                return found
        raise Unavailable("This calendar has too many events to be read at once.", code="answer_too_large")


def _schedule_times(document: Mapping[str, Any], address: str, asked: Range) -> list[BusyTime]:
    """The times of the address's schedule. Raises ProviderError for one that does not say when it is busy."""
    entries = document.get("value")
    entry = next(
        (
            one
            for one in (entries if isinstance(entries, list) else [])
            if isinstance(one, dict) and _is_same(one.get("scheduleId"), address)
        ),
        None,
    )
    if entry is None:
        raise Unavailable("Microsoft's response says nothing about this calendar.", code="broken_answer")
    if entry.get("error"):
        raise CalendarRemoved("Microsoft does not know this address, or it has no mailbox.")
    items = entry.get("scheduleItems")
    if not isinstance(items, list):
        raise Unavailable("Microsoft's response says nothing about this calendar.", code="broken_answer")
    return [one for item in items if (one := _item_time(item, asked)) is not None]


def _is_same(schedule_id: Any, address: str) -> bool:
    return isinstance(schedule_id, str) and schedule_id.casefold() == address.casefold()


def _item_time(item: Any, asked: Range) -> BusyTime | None:
    if not isinstance(item, dict):
        raise Unavailable("Microsoft's response is unreadable.", code="broken_answer")
    status = _status(item.get("status"))
    if status is None:
        return None
    start, end = _moment(item.get("start")), _moment(item.get("end"))
    if start is None or end is None:
        raise Unavailable("Microsoft's response has unreadable times.", code="broken_answer")
    return check_time(BusyTime(start, end, status), asked, "Microsoft")


def _event_time(item: Any, asked: Range) -> BusyTime | None:
    """The time of an event of calendarView; None if it does not keep the calendar busy."""
    try:
        event: RemoteEvent | None = parse_event(item) if isinstance(item, dict) else None
    except ValueError:
        event = None
    if event is None:
        raise Unavailable("Microsoft's response is unreadable.", code="broken_answer")
    status = _status(item.get("showAs"))
    # A series is listed as its occurrences.
    is_series = item.get("type") == "seriesMaster"
    if status is None or is_series or event.is_cancelled or event.response_status == "declined":
        return None
    # A RemoteEvent never ends before it starts.
    start, end = _moment(item.get("start")), _moment(item.get("end"))
    is_reversed = start is not None and end is not None and start > end
    if event.start_time is None or event.end_time is None or is_reversed:
        raise Unavailable("Microsoft's response has unreadable times.", code="broken_answer")
    return check_time(BusyTime(event.start_time, event.end_time, status), asked, "Microsoft")


def _status(value: Any) -> BusyStatus | None:
    return _STATUSES.get(value.lower(), "busy") if isinstance(value, str) else "busy"


def _is_whole_days(time_: BusyTime) -> bool:
    return time_.start.time() == time.min and time_.end.time() == time.min


def _moment(value: Any) -> datetime | None:
    """A dateTimeTimeZone; None for anything else, and for an unknown zone."""
    if not isinstance(value, dict) or not isinstance(value.get("dateTime"), str):
        return None
    name = value.get("timeZone")
    zone = named_zone(name) if isinstance(name, str) else None
    try:
        at = datetime.fromisoformat(value["dateTime"])  # digits of a second past the sixth are dropped
    except ValueError:
        return None
    if at.tzinfo is not None:
        return at
    return at.replace(tzinfo=zone.tzinfo) if zone else None


def _written(at: datetime) -> str:
    return at.replace(tzinfo=None).isoformat()
