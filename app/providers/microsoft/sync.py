"""The changes of an Outlook calendar, through Microsoft Graph.

A delta round cannot be taken over as it is: occurrences come without content, a deleted occurrence leaves no trace,
and what changed outside the window is called removed (docs/reference/microsoft.md, "Delta"). But an empty round says
with one small response that nothing changed. So delta only decides whether to read. What is read then is always the
whole window by calendarView, full events in one shape, which the engine reconciles by id. The link for the next
delta round is taken before the window is read: what changes meanwhile shows up in that next round.

Where delta itself fails, the window is read all the same: only calendarView decides how a calendar is doing.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, timedelta
from typing import Any, NamedTuple
from urllib.parse import quote

import structlog

from app.core.http import httpx
from app.events import limits
from app.events.data import KnownEvent, RemoteEvent, Window
from app.meeting_links.extract import DEFAULT_HOSTS, MeetingHosts
from app.providers.base import (
    CalendarRemoved,
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
from app.providers.microsoft.client import GraphClient
from app.providers.microsoft.fields import SELECT, parse_event, raw_of, read_derived
from app.providers.single_reads import read_singly

log = structlog.get_logger(__name__)

_CALENDARS_PER_PAGE = 100
# Parsing a page takes long enough to delay the other tasks of the worker.
_EVENTS_PER_TURN = 100
# Delta pages have been seen to go round for ever, each with a new link; a page larger than any one series in it is
# the known way around (https://github.com/microsoftgraph/msgraph-sdk-dotnet/issues/3070).
_DELTA_PAGE_SIZE = 500
# How often a window of several pages is read again because it changed meanwhile.
_MOST_WALKS = 3
# 1,825 days are the most that Graph expands ("Calendar view").
_LONGEST_READ = timedelta(days=1_800)
# Graph sees an all-day event in the mailbox's zone, we in its creator's: a day more at both ends leaves no gap.
_EDGE = timedelta(days=1)
# A cursor is this prefix, a page size and a colon where pages had to be made smaller, and the delta link.
# Another prefix would mean other headers.
_CURSOR_PREFIX = "graph-1:"
_PAGE_SIZE_IN_CURSOR = re.compile(r"(\d{1,4}):(.*)", re.DOTALL)
# Errors that may mean that a page of full events is too much for Graph, while its delta works.
_PERHAPS_TOO_MUCH = frozenset({"timeout", "unavailable"})
_LEAST_PAGE_SIZE_BY_GUESS = 5
_PREFER = 'IdType="ImmutableId", outlook.timezone="UTC"'
_PREFER_DELTA = f"{_PREFER}, odata.maxpagesize={_DELTA_PAGE_SIZE}"
# Of the four that Graph allows an app in a mailbox ("Throttling"). A $batch would count as many requests.
_READS_AT_ONCE = 2


class MicrosoftCalendar:
    """One Outlook calendar; implements `app.providers.base.CalendarProvider`. One request at a time.

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
        self._graph = GraphClient(client=client, tokens=tokens, base_url=base_url)
        self._owner_url = f"{self._graph.base_url}/me"
        if calendar_id is not None:
            self._owner_url += f"/calendars/{quote(calendar_id, safe='', errors='replace')}"
        self._hosts = hosts
        self._full_page_size = self._page_size = page_size

    async def changes(self, *, cursor: str | None, window: Window) -> AsyncIterator[ChangePage]:
        """See `CalendarProvider.changes`. A round is a snapshot of the window, or empty.

        With a cursor, `window` is the one that the cursor's first round was asked for.
        Raises CursorExpired, CredentialsRevoked, AccessDenied, CalendarRemoved, RateLimited, Unavailable, and
        ProviderError (`bad_request`) for what only a change of this code can fix.
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
            item = await self._graph.get(url, {"$select": SELECT}, prefer=_PREFER)
        except CalendarRemoved as err:
            if err.code != CalendarRemoved.code:
                raise
            return None  # the list of the same calendar was there just now
        if item.get("id") != event_id:
            raise Unavailable(
                "Microsoft's response is not the event that was asked for.", code="broken_answer"
            )
        if item.get("type") == "seriesMaster" and not is_series:
            return None  # it was made a series, whose occurrences are events of their own
        return self._read_event(item, event_id)

    async def list_calendars(self) -> list[RemoteCalendar]:
        """The account's calendars, those of every group ("Calendar list"). Raises the same as `changes`."""
        calendars: dict[str, RemoteCalendar] = {}
        async for item in self._list(f"{self._graph.base_url}/me/calendars", "id,name,isDefaultCalendar"):
            _collect_calendar(calendars, item)
        async for group in self._list(f"{self._graph.base_url}/me/calendarGroups", "id"):
            group_id = limits.id_of(group)
            if group_id is not None:
                url = f"{self._graph.base_url}/me/calendarGroups/{quote(group_id, safe='')}/calendars"
                async for item in self._list(url, "id,name,isDefaultCalendar"):
                    _collect_calendar(calendars, item)
        return list(calendars.values())

    async def _list(self, url: str, select: str) -> AsyncIterator[dict[str, Any]]:
        query = {"$top": str(_CALENDARS_PER_PAGE), "$select": select}
        async for document in self._graph.pages(url, query, prefer=_PREFER):
            for item in document["value"]:
                yield item

    # --- delta: has anything changed? --------------------------------------------------------------------

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
        if not is_known or not self._graph.is_own(link):
            raise CursorExpired("The cursor was made for another address or by another version.")
        try:
            return await self._advance(link)
        except ProviderError as err:
            if isinstance(err, CalendarRemoved) or err.code == "bad_request":
                # Graph does not understand the link any more ("Expired delta links").
                raise CursorExpired("Microsoft does not accept the sync position any more.") from err
            if isinstance(err, CursorExpired) or not _may_be_deltas_own(err):
                raise
            log.warning("microsoft.delta_unusable", code=err.code)
            return _Position(link, has_changes=True, delta_works=False)

    async def _advance(self, link: str) -> "_Position":
        next_link, has_changes = await self._delta_round(link, None)
        return _Position(next_link, has_changes=has_changes, delta_works=True)

    async def _delta_round(self, url: str, query: dict[str, str] | None) -> tuple[str, bool]:
        """Read a round to its end: the link of the next one, and whether anything at all was in it."""
        has_items, link = False, None
        async for document in self._graph.pages(url, query, prefer=_PREFER_DELTA):
            has_items = has_items or bool(document["value"])
            link = document.get("@odata.deltaLink")
        if not isinstance(link, str) or not self._graph.is_own(link):
            raise Unavailable("Microsoft's delta round ended without a usable link.", code="broken_answer")
        return link, has_items

    # --- calendarView: what is there? --------------------------------------------------------------------

    async def _snapshot(self, reach: Window, position: "_Position") -> AsyncIterator[ChangePage]:
        """The whole window, as pages of one snapshot.

        Graph counts off the pages when they are requested: when an event is deleted while they are read, the next
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
            # else still changing: nothing that was seen counts as removed, and the next round finds these changes.
        yield ChangePage(unlisted=unlisted, is_snapshot=True, is_last=True, next_cursor=self._cursor(link))

    async def _walk(self, reach: Window, *, delta_works: bool) -> AsyncIterator[list[RemoteEvent]]:
        """The events of each page, read in smaller pages where one is too large. Events may come twice.

        Too large for us, or for Graph, which then fails or is too slow (https://github.com/microsoftgraph/microsoft-graph-docs/issues/6499). With `delta_works`
        that is no outage.
        """
        url = f"{self._owner_url}/calendarView"
        while True:
            try:
                for part in _parts(reach):
                    query = {
                        **_range(part),
                        "$select": SELECT,
                        "$orderby": "start/dateTime",
                        "$top": str(self._page_size),
                    }
                    async for document in self._graph.pages(url, query, prefer=_PREFER):
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
            item = items.pop()  # what is parsed is freed at once: a page is large
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
            return RemoteEvent(platform_uuid=event_id, raw=raw_of(item), **read_derived(item)._asdict())
        if event.start_time is None:
            log.warning("microsoft.event_without_start", event_id=event_id)
        return event

    def _cursor(self, link: str | None) -> str | None:
        if link is None:
            return None
        size = "" if self._page_size == self._full_page_size else f"{self._page_size}:"
        return f"{_CURSOR_PREFIX}{size}{link}"


class _Position(NamedTuple):
    """A position in the delta rounds: `link` starts the next one, or is None where there is no such link."""

    link: str | None
    has_changes: bool
    delta_works: bool


def _may_be_deltas_own(err: ProviderError) -> bool:
    """Whether calendarView may work although delta failed with this."""
    return not isinstance(err, RateLimited | CredentialsRevoked | ClientMisconfigured)


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
