"""Reading of the fake Graph: accounts, calendars, events and delta.

See docs/reference/microsoft.md, "Calendar view" and "Delta".
"""

import dataclasses
import gzip
import re
import secrets
import uuid
from typing import Any
from urllib.parse import urlencode

import orjson
from itsdangerous import BadSignature, URLSafeSerializer
from starlette.requests import Request
from starlette.responses import Response

from tests.fakes.microsoft_http import (
    GraphError,
    applied,
    bad,
    integer,
    json_response,
    not_found,
    param,
    preferences_of,
    refuse_unknown,
    select_of,
    window_of,
)
from tests.fakes.microsoft_identity import Grant
from tests.fakes.microsoft_store import (
    AllDayStyle,
    Calendar,
    Entry,
    Item,
    Preferences,
    Span,
    immutable_id,
    render,
    render_entry,
)

EXPIRED_SPELLINGS = ("SyncStateNotFound", "syncStateNotFound", "resyncRequired")

_PAGE_SIZE = 10
_DELTA_TOKEN = re.compile(r"\$deltatoken=([\w.\-]+)%3d")
_EVENT_FIELDS = {
    "id", "type", "subject", "body", "bodyPreview", "start", "end", "isAllDay", "isCancelled", "isOrganizer",
    "isOnlineMeeting", "onlineMeeting", "onlineMeetingProvider", "onlineMeetingUrl", "location", "locations",
    "attendees", "organizer", "responseStatus", "responseRequested", "iCalUId", "seriesMasterId", "originalStart",
    "originalStartTimeZone", "originalEndTimeZone", "showAs", "sensitivity", "importance", "categories",
    "hasAttachments", "webLink", "recurrence", "changeKey", "transactionId", "reminderMinutesBeforeStart",
    "isReminderOn", "allowNewTimeProposals", "isDraft", "hideAttendees",
}  # fmt: skip
_DATES = {"createdDateTime", "lastModifiedDateTime"}  # not selectable in calendarView ("Calendar view")
_CALENDAR_FIELDS = {
    "id", "name", "color", "hexColor", "isDefaultCalendar", "changeKey", "canEdit", "canShare",
    "canViewPrivateItems", "isRemovable", "isTallyingResponses", "owner",
}  # fmt: skip


@dataclasses.dataclass(slots=True)
class _Round:
    """The state that the pages of one delta round are cut from."""

    pages: list[list[Entry]]
    path: str
    delta_token: str


class GraphReader:
    """What a mailbox shows. Switches are plain attributes."""

    def __init__(self) -> None:
        self.all_day_style: AllDayStyle = "date"
        self.empty_pages = False
        self.duplicate_items = False
        self.unknown_removed = 0  # so many `@removed` of unknown ids in each delta round
        self.endless_delta = False  # every page leads to the same again, by another link
        self.no_delta = False
        self.foreign_links: str | None = None  # scheme and host of all links
        self.garbled_delta_status = 400
        self.gzip = False
        self._expired_spelling = EXPIRED_SPELLINGS[0]
        self._expired_location = False
        self._rounds: dict[str, tuple[_Round, int]] = {}
        self._signer = URLSafeSerializer(secrets.token_hex(16))

    # --- accounts and calendars --------------------------------------------------------------------------

    async def me(self, _request: Request, grant: Grant) -> Response:
        mailbox = grant.mailbox
        return json_response(
            {
                "@odata.context": "https://graph.microsoft.com/v1.0/$metadata#users/$entity",
                "id": mailbox.user_id,
                "displayName": mailbox.display_name,
                "mail": mailbox.mail,
                "userPrincipalName": mailbox.email,
            }
        )

    async def list_calendars(self, request: Request, grant: Grant) -> Response:
        mailbox = grant.mailbox
        group_id = param(request, "group") or mailbox.group_id
        if group_id not in mailbox.groups:
            raise not_found()
        entries = [
            _calendar_entry(calendar)
            for calendar in mailbox.calendars.values()
            if calendar.group_id == group_id
        ]
        return self._collection(request, entries, _CALENDAR_FIELDS)

    async def list_groups(self, request: Request, grant: Grant) -> Response:
        entries = [
            {"id": id_, "name": name, "changeKey": "AAAAA", "classId": str(uuid.uuid4())}
            for id_, name in grant.mailbox.groups.items()
        ]
        return self._collection(request, entries, {"id", "name", "changeKey", "classId"})

    def _collection(self, request: Request, entries: list[dict[str, Any]], fields: set[str]) -> Response:
        refuse_unknown(request, {"$select", "$top", "$skip"})
        select = select_of(request, fields)
        size, skip = integer(request, "$top", _PAGE_SIZE, most=1000), integer(request, "$skip", 0)
        shown = [
            {name: value for name, value in entry.items() if select is None or name in select | {"id"}}
            for entry in entries[skip : skip + size]
        ]
        document: dict[str, Any] = {"value": shown}
        if skip + size < len(entries):
            document["@odata.nextLink"] = self._next_skip(request, skip + size)
        return self._respond(request, document)

    def _calendar_of(self, request: Request, grant: Grant) -> Calendar:
        calendar_id = param(request, "calendar")
        if calendar_id is None:
            return grant.mailbox.default
        calendar = grant.mailbox.calendars.get(calendar_id)
        if calendar is None:
            if not calendar_id.startswith(("AQMk", "AAMk")):
                raise bad("Id is malformed.", "ErrorInvalidIdMalformed")
            raise not_found()
        group_id = param(request, "group")
        if group_id not in {None, calendar.group_id}:
            raise not_found()
        return calendar

    # --- events ------------------------------------------------------------------------------------------

    async def calendar_view(self, request: Request, grant: Grant) -> Response:
        calendar = self._calendar_of(request, grant)
        refuse_unknown(
            request, {"startDateTime", "endDateTime", "$select", "$top", "$skip", "$orderby", "$count"}
        )
        if request.query_params.get("$orderby", "start/dateTime") not in {
            "start/dateTime",
            "start/dateTime asc",
        }:
            raise bad("This fake orders by start/dateTime only.", "RequestBroker--ParseUri")
        items = calendar.listing(window_of(request))
        return self._event_page(request, items)

    def _event_page(self, request: Request, items: list[Item]) -> Response:
        select = select_of(request, _EVENT_FIELDS)
        size, skip = integer(request, "$top", _PAGE_SIZE, most=1000), integer(request, "$skip", 0)
        preferences = preferences_of(request)
        document: dict[str, Any] = {
            "@odata.context": "https://graph.microsoft.com/v1.0/$metadata#Collection(event)",
            "value": [
                render(item.data(), preferences, select=select, all_day_style=self.all_day_style)
                for item in items[skip : skip + size]
            ],
        }
        if skip + size < len(items):
            document["@odata.nextLink"] = self._next_skip(request, skip + size)
        return self._respond(request, document, preferences)

    async def get_event(self, request: Request, grant: Grant) -> Response:
        refuse_unknown(request, {"$select"})
        _, item = self._find_event(request, grant)
        preferences = preferences_of(request)
        select = select_of(request, _EVENT_FIELDS | _DATES)
        resource = render(item.data(), preferences, select=select, all_day_style=self.all_day_style)
        context = "https://graph.microsoft.com/v1.0/$metadata#users('ada')/events/$entity"
        return self._respond(request, {"@odata.context": context, **resource}, preferences)

    async def instances(self, request: Request, grant: Grant) -> Response:
        calendar, master = self._find_event(request, grant)
        refuse_unknown(request, {"startDateTime", "endDateTime", "$select", "$top", "$skip"})
        if master.id not in calendar.series:
            raise bad("The event is not a series master.")
        items = [item for item in calendar.listing(window_of(request)) if item.series_id == master.id]
        return self._event_page(request, items)

    def _find_event(self, request: Request, grant: Grant) -> tuple[Calendar, Item]:
        asked = param(request, "event") or ""
        for calendar in grant.mailbox.calendars.values():
            item = calendar.find(immutable_id(asked))
            if item is not None:
                return calendar, item
        if not asked.startswith(("AAMk", "AAkA")):
            raise bad("Id is malformed.", "ErrorInvalidIdMalformed")
        raise not_found()

    # --- delta -------------------------------------------------------------------------------------------

    async def delta(self, request: Request, grant: Grant) -> Response:
        calendar = self._calendar_of(request, grant)
        if self.no_delta:
            raise bad("Change tracking is not supported against 'microsoft.graph.event'.", "BadRequest")
        query = request.scope["query_string"].decode()
        preferences = preferences_of(request)
        if query.startswith("$skiptoken="):
            if query not in self._rounds:
                raise GraphError(self.garbled_delta_status, "BadRequest", "Badly formed token.")
            the_round, number = self._rounds[query]
            self._read_delta_token(the_round.delta_token, calendar)
        elif query.startswith("$deltatoken="):
            token = _DELTA_TOKEN.fullmatch(query)
            if token is None:
                raise GraphError(self.garbled_delta_status, "BadRequest", "Badly formed token.")
            since, window = self._read_delta_token(token[1], calendar)
            the_round, number = self._start_round(request, calendar, preferences, since, window), 0
        else:
            refuse_unknown(request, {"startDateTime", "endDateTime"})
            the_round, number = (
                self._start_round(request, calendar, preferences, None, window_of(request)),
                0,
            )
        return self._respond(request, self._delta_page(request, the_round, number, preferences), preferences)

    def _start_round(
        self,
        request: Request,
        calendar: Calendar,
        preferences: Preferences,
        since: int | None,
        window: Span,
    ) -> _Round:
        units = calendar.delta(since, window)
        units += [
            [Entry(f"AAkALgUnknown{secrets.token_urlsafe(6)}", "removed")]
            for _ in range(self.unknown_removed)
        ]
        if self.duplicate_items:
            units = [*(_stale(unit) for unit in units), *units]
        size = preferences.page_size or _PAGE_SIZE
        pages: list[list[Entry]] = [[]]
        for unit in units:
            if len(pages[-1]) >= size:
                pages.append([])
            pages[-1].extend(unit)  # a series is never split, however small the page
        if self.empty_pages:
            pages = [[], *pages, []]
        token = self._signer.dumps(
            {
                "mailbox": calendar.owner.email,
                "calendar": calendar.id,
                "generation": calendar.generation,
                "rev": calendar.rev,
                "window": window,
            }
        )
        assert isinstance(token, str)
        return _Round(pages, request.scope["path"], token)

    def _delta_page(
        self, request: Request, the_round: _Round, number: int, preferences: Preferences
    ) -> dict[str, Any]:
        base = f"{self._base(request)}{the_round.path}"
        document: dict[str, Any] = {
            "@odata.context": "https://graph.microsoft.com/v1.0/$metadata#Collection(event)",
            "value": [
                render_entry(entry, preferences, self.all_day_style) for entry in the_round.pages[number]
            ],
        }
        is_last = number + 1 == len(the_round.pages)
        if is_last and not self.endless_delta:
            document["@odata.deltaLink"] = f"{base}?$deltatoken={the_round.delta_token}%3d"
        else:
            query = f"$skiptoken={secrets.token_urlsafe(12)}%2b"
            self._rounds[query] = (the_round, number if is_last else number + 1)
            document["@odata.nextLink"] = f"{base}?{query}"
        return document

    def _read_delta_token(self, text: str, calendar: Calendar) -> tuple[int, Span]:
        try:
            token = self._signer.loads(text)
        except BadSignature:
            raise GraphError(self.garbled_delta_status, "BadRequest", "Badly formed token.") from None
        if (token["mailbox"], token["calendar"]) != (calendar.owner.email, calendar.id):
            raise GraphError(self.garbled_delta_status, "BadRequest", "Badly formed token.")
        if token["generation"] != calendar.generation:
            headers = {"Location": "https://graph.microsoft.com/v1.0/me/calendarView/delta"}
            text = "The sync state generation is not found; a full synchronization is needed."
            raise GraphError(410, self._expired_spelling, text, headers if self._expired_location else {})
        start, end = token["window"]
        return token["rev"], (start, end)

    # --- responses ---------------------------------------------------------------------------------------

    def _base(self, request: Request) -> str:
        return self.foreign_links or f"{request.url.scheme}://{request.headers['host']}"

    def _next_skip(self, request: Request, skip: int) -> str:
        query = {**request.query_params, "$skip": str(skip)}
        return f"{self._base(request)}{request.scope['path']}?{urlencode(query, safe='$,:/')}"

    def _respond(
        self, request: Request, document: dict[str, Any], preferences: Preferences | None = None
    ) -> Response:
        body = orjson.dumps(document)
        headers = {}
        if preferences is not None and "prefer" in request.headers:
            headers["Preference-Applied"] = applied(preferences)
        if self.gzip and "gzip" in request.headers.get("accept-encoding", ""):
            body = gzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        return Response(body, headers=headers, media_type="application/json;odata.metadata=minimal")


def _calendar_entry(calendar: Calendar) -> dict[str, Any]:
    return {
        "id": calendar.id,
        "name": calendar.name,
        "color": "auto",
        "hexColor": "",
        "isDefaultCalendar": calendar.is_default,
        "changeKey": "DwAAABYAAAC",
        "canEdit": True,
        "canShare": True,
        "canViewPrivateItems": True,
        "isRemovable": not calendar.is_default,
        "isTallyingResponses": calendar.is_default,
        "owner": {"name": calendar.owner.display_name, "address": calendar.owner.email},
    }


def _stale(unit: list[Entry]) -> list[Entry]:
    """The same entries as an earlier state of the server had them; the later ones count ("Delta")."""
    return [
        dataclasses.replace(
            entry,
            item=dataclasses.replace(
                entry.item, body=orjson.dumps({**entry.item.data(), "subject": "stale"})
            ),
        )
        if entry.item is not None
        else entry
        for entry in unit
    ]
