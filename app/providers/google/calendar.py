"""Google Calendar API v3 (contract/providers.md A).

A full round lists the window with `singleEvents=true` and ends with a sync token; later rounds send the token.
`showDeleted` is never sent: with a token Google reports deletions anyway (A.5), and in a full round
what is deleted is what is missing.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote
from zoneinfo import ZoneInfo

import structlog

from app.core.http import httpx
from app.core.http_json import load_json, retry_after
from app.events import limits
from app.events.data import KnownEvent, RemoteAttendee, RemoteEvent, RemoteOrganizer, ResponseStatus, Window
from app.events.raw import dump_raw
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
from app.providers.single_reads import read_singly
from app.providers.wire import Answer, exchange, load_object

log = structlog.get_logger()

_MAX_BODY_BYTES = 64 * 1024 * 1024
_DEADLINE_SECONDS = 60.0
_CALENDARS_PER_PAGE = 250
# Parsing a page of 2,500 events takes long enough to be felt by whatever else runs in the worker.
_EVENTS_PER_TURN = 100
# A cursor is this prefix and the sync token. Another prefix means that another version of this module listed
# with other parameters, and a sync token is good only for the parameters that it was made with (A.5).
_CURSOR_PREFIX = "google-1:"

_RESPONSES: dict[str, ResponseStatus] = {
    "needsAction": "needs_action",
    "declined": "declined",
    "tentative": "tentative",
    "accepted": "accepted",
}
# What a cancelled entry has at the least: nothing of the event itself (A.7).
_BARE = frozenset({"kind", "etag", "id", "status"})
_READS_AT_ONCE = 4
_NOT_MEETINGS = ("workingLocation", "birthday")

_RATE_REASONS = frozenset(
    {
        "rateLimitExceeded",
        "userRateLimitExceeded",
        "quotaExceeded",
        "RATE_LIMIT_EXCEEDED",
        "RESOURCE_EXHAUSTED",
    }
)
_CLIENT_REASONS = frozenset(
    {
        "accessNotConfigured",
        "SERVICE_DISABLED",
        "dailyLimitExceeded",
        "dailyLimitExceededUnreg",
        "CONSUMER_INVALID",
    }
)
_SCOPE_REASONS = frozenset({"insufficientPermissions", "ACCESS_TOKEN_SCOPE_INSUFFICIENT"})
_TRANSIENT_REASONS = frozenset({"backendError", "internalError"})


class GoogleCalendar:
    """One Google calendar; implements `app.providers.base.CalendarProvider`.

    `base_url` is GOOGLE_API_BASE_URL, without `/calendar/v3`; `calendar_id` None is the account's primary one.
    """

    def __init__(
        self,
        *,
        client: httpx.AsyncClient,
        tokens: TokenSource,
        base_url: str,
        calendar_id: str | None,
        hosts: MeetingHosts = DEFAULT_HOSTS,
        page_size: int = 2500,
    ) -> None:
        self._client = client
        self._tokens = tokens
        self._base_url = base_url.rstrip("/") + "/calendar/v3"
        self._events_path = f"/calendars/{quote(calendar_id or 'primary', safe='', errors='replace')}/events"
        self._hosts = hosts
        self._page_size = page_size
        self._time_zone = "UTC"  # the calendar's, as its lists tell it

    async def changes(self, *, cursor: str | None, window: Window) -> AsyncIterator[ChangePage]:
        """See `CalendarProvider.changes`. Cancelled entries of every shape are in `removed` (A.7).

        A cancelled series may be given by its own id only, or by its instances' ids, or by both.
        Raises CursorExpired, CredentialsRevoked, AccessDenied, CalendarGone, ClientMisconfigured, RateLimited,
        Unavailable, and ProviderError (`bad_request`) for what only a change of this code can mend.
        """
        query = {"singleEvents": "true", "maxResults": str(self._page_size)}
        if cursor is None:
            query |= {"timeMin": _bound(window.start, -1), "timeMax": _bound(window.end, 1)}
        else:
            query["syncToken"] = _sync_token(cursor)
        async for document in self._pages(self._events_path, query):
            is_last = not document["nextPageToken"]
            sync_token = document["nextSyncToken"]
            if is_last and not sync_token:
                # Each page has the one or the other (A.4): this is a stub, and taken for the end it would delete.
                raise Unavailable("Google's answer has neither token.", code="broken_answer")
            events, removed = await self._read_items(document)
            yield ChangePage(
                events=events,
                removed=removed,
                is_snapshot=cursor is None,
                is_last=is_last,
                next_cursor=_CURSOR_PREFIX + sync_token if is_last else None,
            )

    async def reread(self, events: Sequence[KnownEvent]) -> Reread:
        """See `CalendarProvider.reread`."""
        return await read_singly(self._read_one, events, at_once=_READS_AT_ONCE)

    async def _read_one(self, event_id: str, *, is_series: bool) -> RemoteEvent | None:
        """By events.get, which knows cancelled events too, for a while (A.8)."""
        try:
            item = await self._get(f"{self._events_path}/{quote(event_id, safe='')}", {})
        except (
            CalendarGone,
            CursorExpired,
        ):  # 404, and 410: the list of the same calendar was there just now
            return None
        if item.get("id") != event_id:
            raise Unavailable("Google's answer is not the event that was asked for.", code="broken_answer")
        if "recurrence" in item and not is_series:
            return None  # it was made a series, whose instances are events of their own
        event = self._read_event(item, event_id, self._time_zone)
        return replace(event, is_cancelled=True) if item.get("status") == "cancelled" else event

    async def list_calendars(self) -> list[RemoteCalendar]:
        """The calendars of the account whose events can be read (A.3). Raises the same as `changes`."""
        calendars = []
        query = {"maxResults": str(_CALENDARS_PER_PAGE)}
        async for document in self._pages("/users/me/calendarList", query):
            for item in document["items"]:
                if (
                    not isinstance(item, dict)
                    or item.get("deleted")
                    or item.get("accessRole") == "freeBusyReader"
                ):
                    continue
                calendar_id = limits.id_of(item)
                if calendar_id is None:
                    continue
                name = item.get("summaryOverride") or item.get("summary")
                calendars.append(
                    RemoteCalendar(
                        id=calendar_id,
                        name=limits.cut(name, limits.NAME) or calendar_id,
                        is_primary=item.get("primary") is True,
                        time_zone=_zone_name(item.get("timeZone")),
                    )
                )
        return calendars

    async def _pages(self, path: str, query: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
        """The pages of a list. In each, `items` is a list and the two tokens are texts or None."""
        page_token: str | None = None
        seen: set[str] = set()
        while True:
            try:
                # Every other parameter is repeated unchanged, the sync token too (A.4, A.5).
                document = await self._get(path, {**query, "pageToken": page_token} if page_token else query)
            except ProviderError as err:
                if err.code != "bad_request":
                    raise
                if "syncToken" in query:
                    raise CursorExpired("Google does not understand the sync token any more.") from err
                if page_token:
                    raise Unavailable(
                        "Google refused its own page token.", code="page_token_refused"
                    ) from err
                raise
            _check_page(document)
            yield document
            page_token = document["nextPageToken"]
            if not page_token:
                return
            if page_token in seen:
                raise Unavailable("Google's pages go round in a circle.", code="broken_answer")
            seen.add(page_token)

    async def _get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        token = await self._tokens.get()
        answer = await self._send(path, query, token)
        if answer.status == 401:
            token = await self._tokens.get(rejected=token)
            answer = await self._send(path, query, token)
        if answer.status != 200:
            raise classify_error(answer.status, answer.body, answer.headers)
        return load_object(answer.body, "Google")

    async def _send(self, path: str, query: dict[str, str], token: str) -> Answer:
        return await exchange(
            self._client,
            "GET",
            self._base_url + path,
            provider="Google",
            params=query,
            headers={"Authorization": f"Bearer {token}"},
            max_bytes=_MAX_BODY_BYTES,
            deadline_seconds=_DEADLINE_SECONDS,
        )

    async def _read_items(self, document: dict[str, Any]) -> tuple[list[RemoteEvent], dict[str, str | None]]:
        calendar_timezone = document.get("timeZone")
        if not isinstance(calendar_timezone, str):
            calendar_timezone = "UTC"
        self._time_zone = calendar_timezone
        # An id may come twice, confirmed and cancelled: the later entry is the truth.
        events: dict[str, RemoteEvent] = {}
        removed: dict[str, str | None] = {}
        items: list[Any] = document["items"]
        items.reverse()
        count = 0
        while items:
            item = items.pop()  # what is parsed is let go at once: a page is large
            count += 1
            if count % _EVENTS_PER_TURN == 0:
                await asyncio.sleep(0)
            event_id = limits.id_of(item)
            if event_id is None:
                log.warning("google.event_without_id")
                continue
            events.pop(event_id, None)
            removed.pop(event_id, None)
            if item.get("status") == "cancelled":
                removed[event_id] = dump_raw(item) if item.keys() - _BARE else None
            else:
                events[event_id] = self._read_event(item, event_id, calendar_timezone)
        return list(events.values()), removed

    def _read_event(self, item: dict[str, Any], event_id: str, calendar_timezone: str) -> RemoteEvent:
        try:
            event, unreadable = read_event(item, calendar_timezone=calendar_timezone, hosts=self._hosts)
        except Exception as err:  # noqa: BLE001 - whatever is wrong with one event must not stop the calendar
            log.warning("google.event_unreadable", event_id=event_id, error=type(err).__name__)
            return RemoteEvent(platform_uuid=event_id, raw=dump_raw(item))
        if unreadable:
            log.warning("google.event_partly_unreadable", event_id=event_id, fields=unreadable)
        return event


def parse_event(
    item: dict[str, Any], *, calendar_timezone: str, hosts: MeetingHosts = DEFAULT_HOSTS
) -> RemoteEvent:
    """An `events` resource (A.6) in the neutral form. What cannot be read is None; raises ValueError without an id.

    An all-day event starts at midnight in `calendar_timezone` (an IANA name; UTC if it is unknown).
    """
    return read_event(item, calendar_timezone=calendar_timezone, hosts=hosts)[0]


def read_event(
    item: dict[str, Any], *, calendar_timezone: str, hosts: MeetingHosts
) -> tuple[RemoteEvent, list[str]]:
    """`parse_event`, and the names of the fields that could not be taken over as they are."""
    event_id = limits.id_of(item)
    if event_id is None:
        raise ValueError("an event without a usable id")
    reader = _Reader(item, calendar_timezone)
    start, end = reader.moment("start"), reader.moment("end")
    if start.at is None and "start" not in reader.unreadable:
        reader.unreadable.append("start")
    attendees, own_response = reader.attendees()
    organizer, is_own = reader.organizer()
    if own_response is None and is_own:
        own_response = "accepted"
    link = reader.meeting_link(hosts)
    event = RemoteEvent(
        platform_uuid=event_id,
        raw=dump_raw(item),
        start_time=start.at,
        end_time=end.at,
        is_all_day=start.is_date,
        timezone=start.timezone,
        name=reader.text("summary", limits.TITLE),
        description=reader.text("description", limits.DESCRIPTION),
        location=reader.text("location", limits.LOCATION),
        ical_uid=reader.key("iCalUID"),
        organizer=organizer,
        attendees=attendees,
        response_status=own_response,
        recurring_event_id=reader.key("recurringEventId"),
        original_start_time=reader.moment("originalStartTime").at,
        meeting_url=link.url if link else None,
        meeting_platform=link.platform if link else None,
    )
    return event, reader.unreadable


class _Moment(NamedTuple):
    at: datetime | None = None
    is_date: bool = False
    timezone: str | None = None


class _Reader:
    """Takes single fields out of an event whose members may have any type, and notes which were no good."""

    def __init__(self, item: dict[str, Any], calendar_timezone: str) -> None:
        self._item = item
        self.unreadable: list[str] = []
        self._calendar_timezone = _zone_name(calendar_timezone)
        if self._calendar_timezone is None:
            self._calendar_timezone = "UTC"
            self.unreadable.append("timeZone")
        self._calendar_zone = ZoneInfo(self._calendar_timezone)

    def text(self, name: str, length: int) -> str | None:
        value = self._item.get(name)
        if value is None:
            return None
        text = limits.cut(value, length)
        if text != value:
            self.unreadable.append(name)
        return text

    def key(self, name: str) -> str | None:
        value = self._item.get(name)
        key = limits.storable_key(value)
        if key != value:
            self.unreadable.append(name)
        return key

    def moment(self, name: str) -> _Moment:
        value = self._item.get(name)
        if value is None:
            return _Moment()
        moment = self._moment(value)
        if moment.at is None or moment.timezone is None:
            self.unreadable.append(name)
        return moment

    def _moment(self, value: Any) -> _Moment:
        if not isinstance(value, dict):
            return _Moment()
        written, day, named = value.get("dateTime"), value.get("date"), value.get("timeZone")
        if isinstance(written, str):
            timezone = self._calendar_timezone if named is None else _zone_name(named)
            return _Moment(_instant(written, timezone), is_date=False, timezone=timezone)
        if isinstance(day, str):
            # The zone of an all-day event means nothing (A.6): the day is the calendar's.
            return _Moment(
                _midnight(day, self._calendar_zone), is_date=True, timezone=self._calendar_timezone
            )
        return _Moment()

    def attendees(self) -> tuple[tuple[RemoteAttendee, ...], ResponseStatus | None]:
        """The attendees, and the answer of the one who is this calendar."""
        value = self._item.get("attendees")
        if value is None:
            return (), None
        if not isinstance(value, list):
            self.unreadable.append("attendees")
            return (), None
        entries = [entry for entry in value if isinstance(entry, dict)]
        if len(entries) < len(value) or len(entries) > limits.ATTENDEES:
            self.unreadable.append("attendees")
        own = next((_response(entry) for entry in entries if entry.get("self") is True), None)
        return tuple(_attendee(entry) for entry in entries[: limits.ATTENDEES]), own

    def organizer(self) -> tuple[RemoteOrganizer | None, bool]:
        """The organizer, and whether it is this calendar."""
        value = self._item.get("organizer")
        if value is None:
            return None, False
        if not isinstance(value, dict):
            self.unreadable.append("organizer")
            return None, False
        email = limits.cut(value.get("email"), limits.EMAIL)
        name = limits.cut(value.get("displayName"), limits.NAME)
        organizer = RemoteOrganizer(email=email, name=name) if email or name else None
        return organizer, value.get("self") is True

    def meeting_link(self, hosts: MeetingHosts) -> MeetingLink | None:
        if self._item.get("eventType") in _NOT_MEETINGS:
            return None
        data = self._item.get("conferenceData")
        conference = data if isinstance(data, dict) else {}
        entry_points, solution = conference.get("entryPoints"), conference.get("conferenceSolution")
        candidates = [
            entry.get("uri")
            for entry in (entry_points if isinstance(entry_points, list) else [])
            if isinstance(entry, dict) and entry.get("entryPointType") == "video"
        ]
        candidates.append(self._item.get("hangoutLink"))
        name = _whole(solution.get("name")) if isinstance(solution, dict) else None
        # Texts as long as they come: one cut in the middle of a link would give a link that leads nowhere.
        return find_meeting_link(
            join_urls=[text for value in candidates if (text := _whole(value))],
            conference=[name] if name else [],
            location=_whole(self._item.get("location")),
            description=_whole(self._item.get("description")),
            title=_whole(self._item.get("summary")),
            hosts=hosts,
        )


def classify_error(status: int, body: bytes, headers: Mapping[str, str]) -> ProviderError:
    """What an answer that is not 200 means (A.10, F.2). Texts of the answer are never taken into the message."""
    reasons = _reasons(body)
    is_about_usage = bool(reasons & _RATE_REASONS) or (
        "usageLimits" in reasons and not reasons & _CLIENT_REASONS
    )
    if status == 429 or (status == 403 and is_about_usage):
        return RateLimited("Google asks to slow down.", retry_after=retry_after(headers))
    if status == 401:
        return CredentialsRevoked(
            "Google does not accept the access token, not even a fresh one.", code="token_rejected"
        )
    if status == 410:
        return CursorExpired("Google asks for a full synchronisation.")
    if status == 400:
        return ProviderError("Google refused the request as malformed.", code="bad_request")
    if status in {403, 404} and reasons and not reasons & _TRANSIENT_REASONS:
        return _refusal(status, reasons)
    if status in {403, 404, 408} or status >= 500 or status < 400:
        # A 403 or 404 without JSON comes from something in between, not from the calendar.
        return Unavailable(f"Google answered with HTTP status {status}.", retry_after=retry_after(headers))
    return ProviderError(f"Google answered with HTTP status {status}.", code="unexpected_status")


def _refusal(status: int, reasons: frozenset[str]) -> ProviderError:
    if status == 404:
        return CalendarGone("Google does not know this calendar, or the account may not see it any more.")
    if reasons & _CLIENT_REASONS:
        return ClientMisconfigured(
            "The Google Cloud project may not use the Calendar API: enable it, and check its daily quota.",
            code="api_not_usable",
        )
    if reasons & _SCOPE_REASONS:
        return AccessDenied("The connection lacks the permission to read calendars.", code="scope_missing")
    if "notACalendarUser" in reasons:
        return AccessDenied("This Google account has no Google Calendar.", code="not_a_calendar_user")
    return AccessDenied("Google refuses access to this calendar.")


def _reasons(body: bytes) -> frozenset[str]:
    """Every reason word in an error body of either style (A.10); empty if the body is not even a JSON object."""
    try:
        document = load_json(body)
    except ValueError:
        return frozenset()
    if not isinstance(document, dict):
        return frozenset()
    error = document.get("error")
    entries = [error]
    for name in ("errors", "details"):
        value = error.get(name) if isinstance(error, dict) else None
        entries += value if isinstance(value, list) else []
    words = [
        entry.get(key)
        for entry in entries
        if isinstance(entry, dict)
        for key in ("reason", "status", "domain")
    ]
    return frozenset(word for word in words if isinstance(word, str)) or frozenset({"unknown"})


def _sync_token(cursor: str) -> str:
    if not cursor.startswith(_CURSOR_PREFIX):
        raise CursorExpired("The cursor was made for other list parameters.")
    return cursor.removeprefix(_CURSOR_PREFIX)


def _bound(at: datetime, seconds: int) -> str:
    """A window bound as Google wants it. It ignores fractions of seconds: a second more keeps the edge inside."""
    return (at.astimezone(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _check_page(document: dict[str, Any]) -> None:
    """Raises Unavailable for JSON that is not a list answer: taken for an empty list it would delete everything."""
    if not document.keys() & {"kind", "items", "nextPageToken", "nextSyncToken"}:
        raise Unavailable("Google's answer is not a list.", code="broken_answer")
    items = document.setdefault("items", [])
    tokens = [document.setdefault(name, None) for name in ("nextPageToken", "nextSyncToken")]
    if not isinstance(items, list) or not all(token is None or isinstance(token, str) for token in tokens):
        raise Unavailable("Google's answer is not a list.", code="broken_answer")


def _whole(value: Any) -> str | None:
    return limits.cut(value, _MAX_BODY_BYTES)


@lru_cache(maxsize=1024)
def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, LookupError):  # unknown, a path, a folder of the zone database
        return False
    return True


def _zone_name(value: Any) -> str | None:
    return value if isinstance(value, str) and len(value) <= 64 and _is_zone(value) else None


def _instant(written: str, timezone: str | None) -> datetime | None:
    """A `dateTime` in UTC. It carries its offset; should one lack it, its zone tells."""
    try:
        at = datetime.fromisoformat(written)
        if at.tzinfo is None:
            if timezone is None:
                return None
            at = at.replace(tzinfo=ZoneInfo(timezone))
        return at.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _midnight(day: str, zone: ZoneInfo) -> datetime | None:
    try:
        return datetime.combine(date.fromisoformat(day), time.min, tzinfo=zone).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _response(entry: dict[str, Any]) -> ResponseStatus:
    value = entry.get("responseStatus")
    return _RESPONSES.get(value, "needs_action") if isinstance(value, str) else "needs_action"


def _attendee(entry: dict[str, Any]) -> RemoteAttendee:
    return RemoteAttendee(
        email=limits.cut(entry.get("email"), limits.EMAIL),
        name=limits.cut(entry.get("displayName"), limits.NAME),
        response_status=_response(entry),
        is_organizer=entry.get("organizer") is True,
        is_optional=entry.get("optional") is True,
        is_resource=entry.get("resource") is True,
    )
