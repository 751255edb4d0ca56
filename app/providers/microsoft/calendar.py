"""Microsoft Graph calendars (contract/providers.md B).

A delta round cannot be taken over as it is: occurrences come without content, a deleted occurrence leaves no
trace, and what changed outside the window is called removed (B.5). But an empty one says for one small answer
that nothing changed. So delta only tells whether to read; what is read then is always the whole window by
calendarView, full events in one shape, which the engine reconciles by id. The link for the next delta round is
taken before the window is read: what changes meanwhile shows up in that next round.

Where delta itself fails, the window is read all the same: only calendarView decides how a calendar is doing.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple
from urllib.parse import quote

import structlog

from app.core.fetch import Response, load_object, retry_after
from app.core.http import httpx
from app.events import limits
from app.events.data import KnownEvent, RemoteAttendee, RemoteEvent, RemoteOrganizer, ResponseStatus, Window
from app.events.raw import dump_raw
from app.ical.timezones import UTC_ZONE, Zone, named_zone
from app.meeting_links.extract import DEFAULT_HOSTS, MeetingHosts, MeetingLink, find_meeting_link
from app.providers.base import (
    AccessDenied,
    CalendarGone,
    ChangePage,
    ClientMisconfigured,
    CredentialsRevoked,
    CursorExpired,
    ProviderError,
    RateLimited,
    RemoteCalendar,
    Reread,
    TokenSource,
    Unavailable,
)
from app.providers.http import request, require_object, send_authorized
from app.providers.single_reads import read_singly

log = structlog.get_logger(__name__)

_MAX_BODY_BYTES = 64 * 1024 * 1024
_DEADLINE_SECONDS = 60.0
_CALENDARS_PER_PAGE = 100
# Parsing a page takes long enough to be felt by whatever else runs in the worker.
_EVENTS_PER_TURN = 100
# Delta pages have been seen to go round for ever, each with a new link (msgraph-sdk-dotnet issue 3070); a page
# that is larger than any one series in it is the known way around.
_DELTA_PAGE_SIZE = 500
_MOST_PAGES = 2_000
# How often a window of several pages is read again because it changed meanwhile.
_MOST_WALKS = 3
# 1,825 days are the most that Graph expands (B.4).
_LONGEST_READ = timedelta(days=1_800)
# Graph sees an all-day event in the mailbox's zone, we in its creator's: a day more at both ends leaves no gap.
_EDGE = timedelta(days=1)
# A cursor is this prefix, a page size and a colon where pages had to be made smaller, and the delta link.
# Another prefix would mean other headers.
_CURSOR_PREFIX = "graph-1:"
_PAGE_SIZE_IN_CURSOR = re.compile(r"(\d{1,4}):(.*)", re.DOTALL)
# What pages of full events that are too much for Graph look like, while its answers to delta are fine.
_PERHAPS_TOO_MUCH = frozenset({"timeout", "unavailable"})
_LEAST_PAGE_SIZE_BY_GUESS = 5
_MAILBOX_MOVE_PAUSE_SECONDS = 3600.0
_MOST_PLACES = 20

_PREFER = 'IdType="ImmutableId", outlook.timezone="UTC"'
_PREFER_DELTA = f"{_PREFER}, odata.maxpagesize={_DELTA_PAGE_SIZE}"
_SELECT = (
    "id,type,subject,body,start,end,isAllDay,isCancelled,isOrganizer,isOnlineMeeting,onlineMeeting,"
    "onlineMeetingProvider,onlineMeetingUrl,location,locations,attendees,organizer,responseStatus,iCalUId,"
    "seriesMasterId,originalStart,originalStartTimeZone,originalEndTimeZone,showAs,sensitivity,importance,"
    "categories,hasAttachments,webLink"
)
# They change with a reminder, by themselves overnight (gdocs issue 14632), and on every occurrence of a series
# as soon as one of them changes: in `raw` they would make events look changed that are not.
_VOLATILE = frozenset({"@odata.context", "@odata.etag", "@odata.type", "changeKey", "lastModifiedDateTime"})
# Of the four that Graph allows an app in a mailbox (B.8). A $batch would count as many requests.
_READS_AT_ONCE = 2

_RESPONSES: dict[str, ResponseStatus] = {
    "organizer": "accepted",
    "accepted": "accepted",
    "tentativelyAccepted": "tentative",
    "declined": "declined",
}

# Codes are compared without regard to case.
_RATE_CODES = frozenset({"applicationthrottled", "toomanyrequests", "activitylimitreached"})
_RESYNC_CODES = frozenset({"syncstatenotfound", "resyncrequired"})
_NO_MAILBOX_CODES = frozenset({"mailboxnotenabledforrestapi", "errorinvaliduser", "errormissingemailaddress"})
_MOVING_CODES = frozenset({"mailboxmoveinprogress", "errormailboxmoveinprogress"})
_NOT_FOUND_CODES = frozenset({"erroritemnotfound", "itemnotfound", "errorinvalididmalformed"})
_NO_MAILBOX = "This Microsoft account has no mailbox in Exchange Online, so it has no calendar to read."
# Comes under several codes, this sentence being all that they share (B.9).
_NO_MAILBOX_TEXT = "mailbox is either inactive, soft-deleted, or is hosted on-premise"


class MicrosoftCalendar:
    """One Outlook calendar; implements `app.providers.base.CalendarProvider`. One request at a time (B.8).

    `base_url` is MICROSOFT_GRAPH_BASE_URL, with the version; `calendar_id` None is the account's default calendar.
    """

    def __init__(
        self,
        *,
        client: httpx.AsyncClient,
        tokens: TokenSource,
        base_url: str,
        calendar_id: str | None,
        hosts: MeetingHosts = DEFAULT_HOSTS,
        page_size: int = 500,
    ) -> None:
        self._client = client
        self._tokens = tokens
        self._base_url = base_url.rstrip("/")
        self._origin = _origin(httpx.URL(base_url))
        self._owner_url = f"{self._base_url}/me"
        if calendar_id is not None:
            self._owner_url += f"/calendars/{quote(calendar_id, safe='', errors='replace')}"
        self._hosts = hosts
        self._full_page_size = self._page_size = page_size

    async def changes(self, *, cursor: str | None, window: Window) -> AsyncIterator[ChangePage]:
        """See `CalendarProvider.changes`. A round is a snapshot of the window, or empty.

        With a cursor, `window` is the one that the cursor's first round was asked for.
        Raises CursorExpired, CredentialsRevoked, AccessDenied, CalendarGone, RateLimited, Unavailable, and
        ProviderError (`bad_request`) for what only a change of this code can mend.
        """
        reach = Window(window.start - _EDGE, window.end + _EDGE)
        self._page_size = self._full_page_size
        if cursor is None:
            position = await self._first_position(reach)
        else:
            position = await self._next_position(cursor)
        if not position.has_changes:
            yield ChangePage(is_snapshot=False, is_last=True, next_cursor=self._cursor(position.link))
            return
        async for page in self._snapshot(reach, position):
            yield page

    async def reread(self, events: Sequence[KnownEvent]) -> Reread:
        """See `CalendarProvider.reread`. An event of the mailbox's other calendars may count as found."""
        return await read_singly(self._read_one, events, at_once=_READS_AT_ONCE)

    async def _read_one(self, event_id: str, *, is_series: bool) -> RemoteEvent | None:
        url = f"{self._owner_url}/events/{quote(event_id, safe='')}"
        try:
            item = await self._get(url, {"$select": _SELECT}, _PREFER)
        except CalendarGone as err:
            if err.code != CalendarGone.code:
                raise
            return None  # the list of the same calendar was there just now
        if item.get("id") != event_id:
            raise Unavailable("Microsoft's answer is not the event that was asked for.", code="broken_answer")
        if item.get("type") == "seriesMaster" and not is_series:
            return None  # it was made a series, whose occurrences are events of their own
        return self._read_event(item, event_id)

    async def list_calendars(self) -> list[RemoteCalendar]:
        """The account's calendars, those of every group (B.2). Raises the same as `changes`."""
        calendars: dict[str, RemoteCalendar] = {}
        async for item in self._list(f"{self._base_url}/me/calendars", "id,name,isDefaultCalendar"):
            _collect_calendar(calendars, item)
        async for group in self._list(f"{self._base_url}/me/calendarGroups", "id"):
            group_id = limits.id_of(group)
            if group_id is not None:
                url = f"{self._base_url}/me/calendarGroups/{quote(group_id, safe='')}/calendars"
                async for item in self._list(url, "id,name,isDefaultCalendar"):
                    _collect_calendar(calendars, item)
        return list(calendars.values())

    async def _list(self, url: str, select: str) -> AsyncIterator[dict[str, Any]]:
        query = {"$top": str(_CALENDARS_PER_PAGE), "$select": select}
        async for document in self._pages(url, query, prefer=_PREFER):
            for item in document["value"]:
                yield item

    # --- delta: did anything change? ---------------------------------------------------------------------

    async def _first_position(self, reach: Window) -> "_Position":
        """A delta round over the whole window, for its link alone; without one every sync reads everything."""
        if reach.end - reach.start > _LONGEST_READ:
            return _Position(None, has_changes=True, delta_works=False)
        try:
            link, _ = await self._delta_round(f"{self._owner_url}/calendarView/delta", _range(reach))
        except ProviderError as err:
            if not _may_be_deltas_own(err):
                raise
            log.warning("microsoft.delta_unusable", code=err.code)
            return _Position(None, has_changes=True, delta_works=False)
        return _Position(link, has_changes=True, delta_works=True)

    async def _next_position(self, cursor: str) -> "_Position":
        link = cursor.removeprefix(_CURSOR_PREFIX)
        is_known = link != cursor
        if sized := _PAGE_SIZE_IN_CURSOR.fullmatch(link):
            # It grows again with the next full round, which has no cursor.
            self._page_size = min(max(int(sized[1]), 1), self._full_page_size)
            link = sized[2]
        if not is_known or not self._is_ours(link):
            raise CursorExpired("The cursor was made for another address or by another version.")
        try:
            return await self._advance(link)
        except ProviderError as err:
            if isinstance(err, CalendarGone) or err.code == "bad_request":
                # Graph does not understand the link any more (B.5).
                raise CursorExpired("Microsoft does not accept the sync position any more.") from err
            if isinstance(err, CursorExpired) or not _may_be_deltas_own(err):
                raise
            log.warning("microsoft.delta_unusable", code=err.code)
            return _Position(link, has_changes=True, delta_works=False)

    async def _advance(self, link: str) -> "_Position":
        next_link, has_changes = await self._delta_round(link, None)
        return _Position(next_link, has_changes=has_changes, delta_works=True)

    async def _delta_round(self, url: str, query: dict[str, str] | None) -> tuple[str, bool]:
        """Reads a round to its end: the link of the next one, and whether anything at all was in it."""
        has_items, link = False, None
        async for document in self._pages(url, query, prefer=_PREFER_DELTA):
            has_items = has_items or bool(document["value"])
            link = document.get("@odata.deltaLink")
        if not isinstance(link, str) or not self._is_ours(link):
            raise Unavailable("Microsoft's delta round ended without a usable link.", code="broken_answer")
        return link, has_items

    # --- calendarView: what is there? --------------------------------------------------------------------

    async def _snapshot(self, reach: Window, position: "_Position") -> AsyncIterator[ChangePage]:
        """The whole window, as pages of one snapshot.

        Pages are counted off by Graph as they are asked for: when an event goes while they are read, the next
        page may skip one that stays. So a window of several pages counts only once delta says that nothing
        changed meanwhile; otherwise it is read again, at last in the next round.
        """
        known: set[str] = set()
        unlisted: list[str] = []
        link = position.link
        for walk in range(1, _MOST_WALKS + 1):
            listed: set[str] = set()
            page_count = 0
            async for events in self._walk(reach, delta_works=position.delta_works):
                page_count += 1
                listed.update(event.platform_uuid for event in events)
                yield ChangePage(events=events, is_snapshot=True)
            known |= listed
            if page_count == 1 or link is None or not position.delta_works:
                unlisted = list(known - listed)
                break
            try:
                after = await self._advance(link)
            except CursorExpired:
                link = None
                break
            if not after.has_changes:
                link, unlisted = after.link, list(known - listed)
                break
            if walk < _MOST_WALKS:
                link = after.link
            # else still changing: nothing that was seen counts as gone, and the next round finds these changes.
        yield ChangePage(unlisted=unlisted, is_snapshot=True, is_last=True, next_cursor=self._cursor(link))

    async def _walk(self, reach: Window, *, delta_works: bool) -> AsyncIterator[list[RemoteEvent]]:
        """The events of each page, read in smaller pages where one is too large. Events may come twice.

        Too large for us, or for Graph, which then fails or is too slow (gdocs issue 6499). With `delta_works`
        that is no outage.
        """
        url = f"{self._owner_url}/calendarView"
        while True:
            try:
                for part in _parts(reach):
                    query = {
                        **_range(part),
                        "$select": _SELECT,
                        "$orderby": "start/dateTime",
                        "$top": str(self._page_size),
                    }
                    async for document in self._pages(url, query, prefer=_PREFER):
                        yield await self._read_items(document["value"])
                return
            except Unavailable as err:
                by_guess = delta_works and err.code in _PERHAPS_TOO_MUCH and err.retry_after is None
                least = 1 if err.code == "answer_too_large" else _LEAST_PAGE_SIZE_BY_GUESS
                if not (by_guess or err.code == "answer_too_large") or self._page_size <= least:
                    raise
                self._page_size = max(self._page_size // 10, least)
                log.warning("microsoft.page_too_large", code=err.code, next_page_size=self._page_size)

    async def _read_items(self, items: list[Any]) -> list[RemoteEvent]:
        events: dict[str, RemoteEvent] = {}
        count = 0
        items.reverse()
        while items:
            item = items.pop()  # what is parsed is let go at once: a page is large
            count += 1
            if count % _EVENTS_PER_TURN == 0:
                await asyncio.sleep(0)
            event_id = limits.id_of(item)
            if event_id is None:
                log.warning("microsoft.event_without_id")
            elif item.get("type") != "seriesMaster":
                events[event_id] = self._read_event(item, event_id)
        return list(events.values())

    def _read_event(self, item: dict[str, Any], event_id: str) -> RemoteEvent:
        try:
            event = parse_event(item, hosts=self._hosts)
        except Exception as err:  # noqa: BLE001 - whatever is wrong with one event must not stop the calendar
            log.warning("microsoft.event_unreadable", event_id=event_id, error=type(err).__name__)
            return RemoteEvent(platform_uuid=event_id, raw=_raw(item))
        if event.start_time is None:
            log.warning("microsoft.event_without_start", event_id=event_id)
        return event

    # --- requests ----------------------------------------------------------------------------------------

    async def _pages(
        self, url: str, query: dict[str, str] | None, *, prefer: str
    ) -> AsyncIterator[dict[str, Any]]:
        """The pages of a collection; in each, `value` is a list. Links are followed as they are (B.2)."""
        seen: set[str] = set()
        while True:
            try:
                document = await self._get(url, query, prefer)
            except ProviderError as err:
                if seen and err.code == "bad_request":
                    raise Unavailable(
                        "Microsoft refused its own page link.", code="page_link_refused"
                    ) from err
                raise
            if not isinstance(document.get("value"), list):
                raise Unavailable("Microsoft's answer is not a list.", code="broken_answer")
            yield document
            link = document.get("@odata.nextLink")
            if link is None:
                return
            if not isinstance(link, str) or not self._is_ours(link):
                raise Unavailable("Microsoft's answer leads on to another address.", code="broken_answer")
            if link in seen or len(seen) >= _MOST_PAGES:
                raise Unavailable("Microsoft's pages go round in a circle.", code="broken_answer")
            seen.add(link)
            url, query = link, None

    def _cursor(self, link: str | None) -> str | None:
        if link is None:
            return None
        size = "" if self._page_size == self._full_page_size else f"{self._page_size}:"
        return f"{_CURSOR_PREFIX}{size}{link}"

    def _is_ours(self, link: str) -> bool:
        """Whether a link leads to where tokens may be sent."""
        try:
            url = httpx.URL(link)
        except httpx.InvalidURL:
            return False
        return _origin(url) == self._origin and not url.userinfo

    async def _get(self, url: str, query: dict[str, str] | None, prefer: str) -> dict[str, Any]:
        response = await send_authorized(self._tokens, lambda token: self._send(url, query, prefer, token))
        if response.status != 200:
            error = classify_error(response.status, response.body, response.headers)
            # What Microsoft's support asks for.
            request_id = limits.cut(response.headers.get("request-id"), limits.NAME)
            log.info("microsoft.refused", status=response.status, code=error.code, request_id=request_id)
            raise error
        return require_object(response, "Microsoft")

    async def _send(self, url: str, query: dict[str, str] | None, prefer: str, token: str) -> Response:
        return await request(
            self._client,
            "GET",
            url,
            provider="Microsoft Graph",
            params=query,
            headers={"Authorization": f"Bearer {token}", "Prefer": prefer},
            max_bytes=_MAX_BODY_BYTES,
            deadline_seconds=_DEADLINE_SECONDS,
        )


class _Position(NamedTuple):
    """Where a calendar stands: `link` starts the next delta round; None where there is no such link."""

    link: str | None
    has_changes: bool
    delta_works: bool


def parse_event(item: dict[str, Any], *, hosts: MeetingHosts = DEFAULT_HOSTS) -> RemoteEvent:
    """An event resource (B.3) in the neutral form. What cannot be read is None; raises ValueError without an id.

    The day of an all-day event is anchored at midnight in the zone in which it was created. `raw` lacks what
    changes while the event does not.
    """
    event_id = limits.id_of(item)
    if event_id is None:
        raise ValueError("an event without a usable id")
    home = _zone(item.get("originalStartTimeZone")) or _zone(_part(item, "start", "timeZone")) or UTC_ZONE
    is_all_day = item.get("isAllDay") is True
    organizer = _organizer(item.get("organizer"))
    start_time = _time_of(item.get("start"), home, is_all_day=is_all_day)
    link = _meeting_link(item, hosts)
    return RemoteEvent(
        platform_uuid=event_id,
        raw=_raw(item),
        start_time=start_time,
        end_time=_time_of(item.get("end"), home, is_all_day=is_all_day),
        is_all_day=is_all_day,
        timezone=home.name,
        name=limits.cut(item.get("subject"), limits.TITLE),
        description=limits.cut(_part(item, "body", "content"), limits.DESCRIPTION) or None,
        location=limits.cut(_part(item, "location", "displayName"), limits.LOCATION) or None,
        ical_uid=limits.storable_key(item.get("iCalUId")),
        organizer=organizer,
        attendees=_attendees(item.get("attendees"), organizer),
        response_status=_own_response(item),
        recurring_event_id=limits.storable_key(item.get("seriesMasterId")),
        original_start_time=_original_start(item, home, start_time, is_all_day=is_all_day),
        meeting_url=link.url if link else None,
        meeting_platform=link.platform if link else None,
        is_cancelled=item.get("isCancelled") is True,
    )


def classify_error(status: int, body: bytes, headers: Mapping[str, str]) -> ProviderError:
    """What an answer that is not 200 means (B.9, F.2). Texts of the answer are never taken into the message."""
    codes, text = _error(body)
    if status == 429 or codes & _RATE_CODES:
        return RateLimited("Microsoft asks to slow down.", retry_after=retry_after(headers))
    if status in {401, 403} and _asks_for_claims(headers):
        return CredentialsRevoked(
            "The organisation's access rules want this person to sign in again: connect the calendar again.",
            code="conditional_access",
            is_final=True,
        )
    if status == 401:
        return CredentialsRevoked(
            "Microsoft does not accept the access token, not even a fresh one.", code="token_rejected"
        )
    if status == 410 or codes & _RESYNC_CODES:
        return CursorExpired("Microsoft asks for a full synchronisation.")
    if codes & _MOVING_CODES:
        return Unavailable(
            "Microsoft is moving this mailbox.",
            code="mailbox_moving",
            retry_after=retry_after(headers) or _MAILBOX_MOVE_PAUSE_SECONDS,
        )
    if 400 <= status < 500 and (codes & _NO_MAILBOX_CODES or _NO_MAILBOX_TEXT in text):
        return AccessDenied(_NO_MAILBOX, code="mailbox_not_enabled")
    if status in {403, 404} and codes:
        return _refusal(status, codes)
    if status == 400 and codes & _NOT_FOUND_CODES:
        return _refusal(404, codes)
    if status == 400:
        return ProviderError("Microsoft refused the request as malformed.", code="bad_request")
    if status in {403, 404, 408, 423} or status >= 500 or status < 400:
        # A 403 or 404 without an error code comes from something in between, not from the calendar.
        return Unavailable(f"Microsoft answered with HTTP status {status}.", retry_after=retry_after(headers))
    return ProviderError(f"Microsoft answered with HTTP status {status}.", code="unexpected_status")


def _refusal(status: int, codes: frozenset[str]) -> ProviderError:
    if status == 403:
        return AccessDenied("Microsoft refuses access to this calendar: connect again and allow it.")
    if "resourcenotfound" in codes:
        # Only sometimes a missing mailbox (B.9).
        return CalendarGone(_NO_MAILBOX, code="mailbox_not_enabled")
    if codes == {"unknownerror"}:
        return Unavailable(f"Microsoft answered with HTTP status {status}.")
    return CalendarGone("Microsoft does not know this calendar, or the account may not see it any more.")


def _asks_for_claims(headers: Mapping[str, str]) -> bool:
    challenge = headers.get("WWW-Authenticate", "").lower()
    return "claims=" in challenge or "insufficient_claims" in challenge


def _error(body: bytes) -> tuple[frozenset[str], str]:
    """Every code in an error body, outer and inner, and its message, all in lower case; nothing if it is no JSON."""
    error = (load_object(body) or {}).get("error")
    message = _part({"error": error}, "error", "message")
    codes: set[str] = set()
    while isinstance(error, dict):
        code = error.get("code")
        if isinstance(code, str) and code:
            codes.add(code.lower())
        error = error.get("innerError") or error.get("innererror")
    return frozenset(codes), message.lower() if isinstance(message, str) else ""


def _may_be_deltas_own(err: ProviderError) -> bool:
    """Whether calendarView may work although delta answered this."""
    return not isinstance(err, RateLimited | CredentialsRevoked | ClientMisconfigured)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _range(window: Window) -> dict[str, str]:
    bounds = (
        ("startDateTime", window.start),
        ("endDateTime", window.end),
    )
    return {name: at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for name, at in bounds}


def _parts(window: Window) -> Iterator[Window]:
    start = window.start
    while start < window.end:
        end = min(start + _LONGEST_READ, window.end)
        yield Window(start, end)
        start = end


def _collect_calendar(calendars: dict[str, RemoteCalendar], item: Any) -> None:
    calendar_id = limits.id_of(item)
    if calendar_id is not None and calendar_id not in calendars:
        name = limits.cut(item.get("name"), limits.NAME)
        calendars[calendar_id] = RemoteCalendar(
            id=calendar_id, name=name or calendar_id, is_primary=item.get("isDefaultCalendar") is True
        )


# --- fields of an event, whose members may have any type -----------------------------------------------------


def _part(item: Mapping[str, Any], name: str, member: str) -> Any:
    value = item.get(name)
    return value.get(member) if isinstance(value, dict) else None


def _whole(value: Any) -> str | None:
    """A text of any length without what cannot be stored: half a link would be another link."""
    return limits.cut(value, len(value)) if isinstance(value, str) else None


def _raw(item: dict[str, Any]) -> str:
    return dump_raw({name: value for name, value in item.items() if name not in _VOLATILE})


def _zone(name: Any) -> Zone | None:
    return named_zone(name) if isinstance(name, str) else None


def _wall(value: Any) -> datetime | None:
    """A dateTimeTimeZone as an aware time, in the zone that it is written in; UTC where it names none."""
    if not isinstance(value, dict) or not isinstance(value.get("dateTime"), str):
        return None
    name = value.get("timeZone")
    zone = UTC_ZONE if name is None else _zone(name)
    return _aware(value["dateTime"], zone)


def _aware(written: str, zone: Zone | None) -> datetime | None:
    try:
        at = datetime.fromisoformat(written)  # digits of a second past the sixth are dropped
    except ValueError:
        return None
    if at.tzinfo is not None:
        return at
    return at.replace(tzinfo=zone.tzinfo) if zone else None


def _time_of(value: Any, home: Zone, *, is_all_day: bool) -> datetime | None:
    at = _wall(value)
    if at is None:
        return None
    if is_all_day:
        # Neither midnight here nor there: the nearest one is meant.
        return _midnight(_day(at, home) or _shifted(at, timedelta(hours=12)), home)
    return _in_utc(at)


def _day(at: datetime, home: Zone) -> date | None:
    """The day whose midnight `at` is: as it is written, or else in the zone of the event's creator (B.3)."""
    if at.time() == time.min:
        return at.date()
    try:
        local = at.astimezone(home.tzinfo)
    except OverflowError:
        return None
    return local.date() if local.time() == time.min else None


def _shifted(at: datetime, by: timedelta) -> date:
    try:
        return (at + by).date()
    except OverflowError:
        return at.date()


def _midnight(day: date, home: Zone) -> datetime | None:
    return _in_utc(datetime.combine(day, time.min, home.tzinfo))


def _in_utc(at: datetime) -> datetime | None:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        return None


def _original_start(
    item: dict[str, Any], home: Zone, start_time: datetime | None, *, is_all_day: bool
) -> datetime | None:
    written = item.get("originalStart")
    at = _aware(written, UTC_ZONE) if isinstance(written, str) else None
    if at is None:
        return start_time if item.get("type") == "occurrence" else None
    day = _day(at, home) if is_all_day else None
    return _midnight(day, home) if day else _in_utc(at)


def _address(value: Any) -> tuple[str | None, str | None]:
    """E-mail address and name of a recipient."""
    if not isinstance(value, dict):
        return None, None
    email = limits.cut(_part(value, "emailAddress", "address"), limits.EMAIL)
    name = limits.cut(_part(value, "emailAddress", "name"), limits.NAME)
    return email or None, name or None


def _organizer(value: Any) -> RemoteOrganizer | None:
    email, name = _address(value)
    return RemoteOrganizer(email=email, name=name) if email or name else None


def _attendees(value: Any, organizer: RemoteOrganizer | None) -> tuple[RemoteAttendee, ...]:
    if not isinstance(value, list):
        return ()
    organizer_email = organizer.email.casefold() if organizer and organizer.email else None
    return tuple(
        _attendee(entry, organizer_email) for entry in value[: limits.ATTENDEES] if isinstance(entry, dict)
    )


def _attendee(entry: dict[str, Any], organizer_email: str | None) -> RemoteAttendee:
    email, name = _address(entry)
    response = _part(entry, "status", "response")
    is_organizer = response == "organizer" or (email is not None and email.casefold() == organizer_email)
    return RemoteAttendee(
        email=email,
        name=name,
        response_status=_response(response),
        is_organizer=is_organizer,
        is_optional=entry.get("type") == "optional",
        is_resource=entry.get("type") == "resource",
    )


def _response(word: Any) -> ResponseStatus:
    return _RESPONSES.get(word, "needs_action") if isinstance(word, str) else "needs_action"


def _own_response(item: dict[str, Any]) -> ResponseStatus | None:
    """The answer of the calendar's owner; "none" is what an event without invitations has."""
    word = _part(item, "responseStatus", "response")
    if (word is None or word == "none") and item.get("isOrganizer") is True:
        return "accepted"
    return None if word is None else _response(word)


def _meeting_link(item: dict[str, Any], hosts: MeetingHosts) -> MeetingLink | None:
    join_urls = (_part(item, "onlineMeeting", "joinUrl"), item.get("onlineMeetingUrl"))
    provider = _whole(item.get("onlineMeetingProvider"))
    places = item.get("locations")
    places = [item.get("location"), *(places[:_MOST_PLACES] if isinstance(places, list) else ())]
    texts = [
        _whole(place.get(member))
        for place in places
        if isinstance(place, dict)
        for member in ("displayName", "locationUri")
    ]
    return find_meeting_link(
        join_urls=[text for value in join_urls if (text := _whole(value))],
        conference=[provider] if provider else [],
        location="\n".join(text for text in texts if text),
        # The whole of it: a Teams block stands at the end, often behind what is kept of the description.
        description=_whole(_part(item, "body", "content")),
        title=_whole(item.get("subject")),
        hosts=hosts,
    )
