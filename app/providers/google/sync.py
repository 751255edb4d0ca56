"""The changes of a Google calendar: full rounds, rounds by sync token, and single events.

A full round lists the window with `singleEvents=true` and ends with a sync token; later rounds send the token.
`showDeleted` is never sent: with a token Google reports deletions anyway (docs/reference/google.md, "Sync tokens"),
and what a full round does not list is removed.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import structlog

from app.core.http import httpx
from app.events import limits
from app.events.data import KnownEvent, RemoteEvent, Window
from app.events.raw import dump_raw
from app.meeting_links.extract import DEFAULT_HOSTS, MeetingHosts
from app.providers.base import (
    CalendarRemoved,
    ChangePage,
    CursorExpired,
    RemoteCalendar,
    Reread,
    TokenSource,
    Unavailable,
)
from app.providers.google.client import GoogleClient
from app.providers.google.fields import read_derived, read_event, zone_name
from app.providers.single_reads import read_singly

log = structlog.get_logger()

_CALENDARS_PER_PAGE = 250
# Parsing a page of 2,500 events takes long enough to delay the other tasks of the worker.
_EVENTS_PER_TURN = 100
# A cursor is this prefix and the sync token. Another prefix means that another version of this module listed with
# other parameters, and a sync token is valid only for the parameters that it was made with ("Sync tokens").
_CURSOR_PREFIX = "google-1:"
# What a cancelled entry has at the least: nothing of the event itself ("Cancelled entries").
_BARE = frozenset({"kind", "etag", "id", "status"})
_READS_AT_ONCE = 4


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
        self._google = GoogleClient(client=client, tokens=tokens, base_url=base_url)
        self._events_path = f"/calendars/{quote(calendar_id or 'primary', safe='', errors='replace')}/events"
        self._hosts = hosts
        self._page_size = page_size
        self._time_zone = "UTC"  # the calendar's, as its lists state it

    async def changes(self, *, cursor: str | None, window: Window) -> AsyncIterator[ChangePage]:
        """See `CalendarProvider.changes`. Cancelled entries of every shape are in `removed`.

        A cancelled series may be given by its own id only, or by its instances' ids, or by both.
        Raises CursorExpired, CredentialsRevoked, AccessDenied, CalendarRemoved, ClientMisconfigured, RateLimited,
        Unavailable, and ProviderError (`bad_request`) for what only a change of this code can fix.
        """
        query = {"singleEvents": "true", "maxResults": str(self._page_size)}
        if cursor is None:
            query |= {"timeMin": _bound(window.start, -1), "timeMax": _bound(window.end, 1)}
        else:
            query["syncToken"] = _sync_token(cursor)
        async for document in self._google.pages(self._events_path, query):
            is_last = not document["nextPageToken"]
            sync_token = document["nextSyncToken"]
            if is_last and not sync_token:
                # Each page has the one or the other ("Pages"): this one is incomplete, and taken for the end it would delete.
                raise Unavailable("Google's response has neither token.", code="broken_answer")
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
        """Read one event by events.get, which for a while also returns cancelled ones ("Single events")."""
        try:
            item = await self._google.get(f"{self._events_path}/{quote(event_id, safe='')}", {})
        except (
            CalendarRemoved,
            CursorExpired,
        ):  # 404, and 410: the list of the same calendar was there just now
            return None
        if item.get("id") != event_id:
            raise Unavailable("Google's response is not the event that was asked for.", code="broken_answer")
        if "recurrence" in item and not is_series:
            return None  # it was made a series, whose instances are events of their own
        event = self._read_event(item, event_id, self._time_zone)
        return replace(event, is_cancelled=True) if item.get("status") == "cancelled" else event

    async def list_calendars(self) -> list[RemoteCalendar]:
        """The calendars of the account whose events can be read ("Calendar list").

        Raises the same as `changes`.
        """
        calendars = []
        query = {"maxResults": str(_CALENDARS_PER_PAGE)}
        async for document in self._google.pages("/users/me/calendarList", query):
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
                        time_zone=zone_name(item.get("timeZone")),
                    )
                )
        return calendars

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
            item = items.pop()  # what is parsed is freed at once: a page is large
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
            return RemoteEvent(platform_uuid=event_id, raw=dump_raw(item), **read_derived(item)._asdict())
        if unreadable:
            log.warning("google.event_partly_unreadable", event_id=event_id, fields=unreadable)
        return event


def _sync_token(cursor: str) -> str:
    if not cursor.startswith(_CURSOR_PREFIX):
        raise CursorExpired("The cursor was made for other list parameters.")
    return cursor.removeprefix(_CURSOR_PREFIX)


def _bound(at: datetime, seconds: int) -> str:
    """A window bound for Google, which ignores fractions of seconds: a second more keeps the edge inside."""
    return (at.astimezone(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
