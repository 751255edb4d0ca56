"""A fake Microsoft: identity platform, Graph calendars and subscriptions.

As strict as docs/reference/microsoft.md describes.

    fake = FakeMicrosoft()
    async with serve(fake) as url:
        ...  # {url}/v1.0/me/..., {url}/common/oauth2/v2.0/token, {url}/common/oauth2/v2.0/authorize

Any number of mailboxes, each grant being one's. Series members share one etag and change key, which any change of
one of them moves. Pages of calendarView are counted off anew at each request; those of delta are cut from one state.
Not there: writing events, `/users/{id}` paths, `$filter`, `$expand` and `$search` of calendarView, rich notifications.
"""

import asyncio
import dataclasses
import gzip
import random
import re
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import orjson
from itsdangerous import BadSignature, URLSafeSerializer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from tests.fakes.faults import Fault, Faulty, Recorded
from tests.fakes.microsoft_http import (
    GraphError,
    applied,
    bad,
    json_answer,
    not_found,
    param,
    preferences_of,
)
from tests.fakes.microsoft_identity import Grant, IdentityPlatform, TokenError
from tests.fakes.microsoft_push import PushService
from tests.fakes.microsoft_store import (
    AllDayStyle,
    Calendar,
    Entry,
    Item,
    Mailbox,
    Preferences,
    Span,
    immutable_id,
    overlaps,
    render,
    render_entry,
)

EXPIRED_SPELLINGS = ("SyncStateNotFound", "syncStateNotFound", "resyncRequired")

_LONGEST_WINDOW_DAYS = 1825
_PAGE_SIZE = 10
_CALENDAR_SCOPES = {"calendars.read", "calendars.readwrite"}
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
class GraphRequest(Recorded):
    """`query` is as it was on the wire."""

    query: str = ""


@dataclasses.dataclass(slots=True)
class _Round:
    """The state that the pages of one delta round are cut from."""

    pages: list[list[Entry]]
    path: str
    delta_token: str


class FakeMicrosoft(Faulty, IdentityPlatform, PushService):
    """The ASGI app, its state, and what tests do to it.

    Switches are plain attributes; the methods that change calendars may be called at any time. They take
    `mailbox` (an address; None: the first one's) and `calendar_id` (None: the default calendar), and immutable ids.
    `on_request` is called with each request before it is looked at. `requests` holds every request that came;
    `requests_to(route)` those of one route. Routes: `authorize`, `token`, `me`, `calendars`, `calendarGroups`,
    `calendarView`, `delta`, `events.get`, `events.instances`, `batch`, `subscriptions.create`, `.list`, `.get`,
    `.update`, `.delete`, `.reauthorize`.
    """

    def __init__(
        self, *, email: str = "ada@example.com", windows_zone: str = "Romance Standard Time"
    ) -> None:
        Faulty.__init__(self)
        PushService.__init__(self)
        IdentityPlatform.__init__(self)
        self.on_request: Callable[[GraphRequest], None] = lambda _request: None
        # Reading
        self.all_day_style: AllDayStyle = "date"
        self.empty_pages = False
        self.duplicate_items = False
        self.unknown_removed = 0  # so many `@removed` of unknown ids in each delta round
        self.endless_delta = False  # every page leads to the same again, by another link
        self.no_delta = False
        self.foreign_links: str | None = None  # scheme and host of all links
        self.garbled_delta_status = 400
        self.gzip = False
        self.latency = 0.0
        # Throttling
        self.concurrency_limit = 4
        self.mailbox_limit = 10_000  # a mailbox, in 10 minutes
        self.global_limit = 130_000  # an app, in 10 seconds
        self.throttle_retry_after: int | None = 1
        self.batch_throttled = 0  # so many of the next requests inside of batches

        self.requests: list[GraphRequest] = []
        self._expired_spelling = EXPIRED_SPELLINGS[0]
        self._expired_location = False
        self._rounds: dict[str, tuple[_Round, int]] = {}
        self._signer = URLSafeSerializer(secrets.token_hex(16))
        self._counters: dict[str, list[float]] = {}

        self._windows_zone = windows_zone
        self.email = email
        self.add_mailbox(email)
        self.refresh_token = self.add_grant()
        self._app = Starlette(
            routes=self._routes(), exception_handlers={GraphError: _render_error, TokenError: _render_error}
        )

    def _routes(self) -> list[Route]:
        calendars = "/v1.0/me", "/v1.0/me/calendar", "/v1.0/me/calendars/{calendar}"
        views = [*calendars, "/v1.0/me/calendarGroups/{group}/calendars/{calendar}"]
        data = self._data
        one = "/v1.0/subscriptions/{subscription}"
        return [
            Route("/{tenant}/oauth2/v2.0/authorize", self.authorize, name="authorize"),
            Route("/{tenant}/oauth2/v2.0/token", self.token, methods=["POST"], name="token"),
            Route("/v1.0/me", data(self._me, {"user.read"}), name="me"),
            Route("/v1.0/me/calendars", data(self._list_calendars), name="calendars"),
            Route("/v1.0/me/calendarGroups", data(self._list_groups), name="calendarGroups"),
            Route("/v1.0/me/calendarGroups/{group}/calendars", data(self._list_calendars), name="calendars"),
            *(
                Route(f"{view}/calendarView", data(self._calendar_view), name="calendarView")
                for view in views
            ),
            *(Route(f"{view}/calendarView/delta", data(self._delta), name="delta") for view in views),
            *(Route(f"{view}/events/{{event}}", data(self._get_event), name="events.get") for view in views),
            Route("/v1.0/me/events/{event}/instances", data(self._instances), name="events.instances"),
            Route("/v1.0/subscriptions", data(self.subscribe), methods=["POST"], name="subscriptions.create"),
            Route("/v1.0/subscriptions", data(self.list_subscriptions), name="subscriptions.list"),
            Route(one, data(self.get_subscription), name="subscriptions.get"),
            Route(one, data(self.renew), methods=["PATCH"], name="subscriptions.update"),
            Route(one, data(self.unsubscribe), methods=["DELETE"], name="subscriptions.delete"),
            Route(
                f"{one}/reauthorize",
                data(self.reauthorize),
                methods=["POST"],
                name="subscriptions.reauthorize",
            ),
            Route("/v1.0/$batch", self._batch, methods=["POST"], name="batch"),
            Route("/_fake/expire_delta", self._expire_delta, methods=["POST"], name="expire_delta"),
        ]

    # --- mailboxes, calendars, events --------------------------------------------------------------------

    def add_mailbox(self, email: str, *, windows_zone: str | None = None) -> Mailbox:
        self.mailboxes[email] = Mailbox(
            email,
            tenant_id=self.tenant_id,
            windows_zone=windows_zone or self._windows_zone,
            now=lambda: self.now(),  # noqa: PLW0108 - tests set another clock later
            on_change=self.note_change,
        )
        return self.mailboxes[email]

    def calendar(self, calendar_id: str | None = None, *, mailbox: str | None = None) -> Calendar:
        owner = self.mailbox(mailbox)
        return owner.default if calendar_id is None else owner.calendars[calendar_id]

    def add_calendar(
        self,
        name: str = "Team",
        *,
        mailbox: str | None = None,
        calendar_id: str | None = None,
        group: str | None = None,
    ) -> str:
        """`group` names a new calendar group that it is put into."""
        owner = self.mailbox(mailbox)
        group_id = None if group is None else owner.add_group(group)
        return owner.add_calendar(name, calendar_id=calendar_id, group_id=group_id).id

    def remove_calendar(self, calendar_id: str, *, mailbox: str | None = None) -> None:
        """From now on it answers 404."""
        del self.mailbox(mailbox).calendars[calendar_id]

    def add_event(
        self,
        *,
        start: datetime | date,
        end: datetime | date,
        calendar_id: str | None = None,
        mailbox: str | None = None,
        event_id: str | None = None,
        **fields: Any,
    ) -> str:
        """A single event, all-day when `start` is a date. `fields` are members of the resource; `body` and
        `location` may be texts."""
        calendar = self.calendar(calendar_id, mailbox=mailbox)
        return calendar.add_event(event_id=event_id, start=start, end=end, fields=fields)

    def put_raw(
        self, resource: dict[str, Any], *, calendar_id: str | None = None, mailbox: str | None = None
    ) -> None:
        self.calendar(calendar_id, mailbox=mailbox).put_raw(resource)

    def update_event(
        self, event_id: str, *, calendar_id: str | None = None, mailbox: str | None = None, **fields: Any
    ) -> None:
        """Also for one occurrence of a series, by its own id: it becomes an exception."""
        self.calendar(calendar_id, mailbox=mailbox).update_event(event_id, fields)

    def move(
        self,
        event_id: str,
        *,
        start: datetime | date,
        end: datetime | date,
        calendar_id: str | None = None,
        mailbox: str | None = None,
    ) -> None:
        """To another time."""
        self.update_event(event_id, calendar_id=calendar_id, mailbox=mailbox, start=start, end=end)

    def move_to_calendar(
        self, event_id: str, *, to: str | None, calendar_id: str | None = None, mailbox: str | None = None
    ) -> None:
        """Its immutable id stays the same ("Immutable ids")."""
        data = self.calendar(calendar_id, mailbox=mailbox).items[event_id].data()
        self.delete_event(event_id, calendar_id=calendar_id, mailbox=mailbox)
        start, end = (datetime.fromisoformat(f"{data.pop(name)['dateTime']}Z") for name in ("start", "end"))
        self.calendar(to, mailbox=mailbox).add_event(event_id=event_id, start=start, end=end, fields=data)

    def cancel_event(
        self, event_id: str, *, calendar_id: str | None = None, mailbox: str | None = None
    ) -> None:
        """The organizer cancelled: the attendee's copy stays, marked ("Event fields")."""
        item = self.calendar(calendar_id, mailbox=mailbox).items[event_id]
        subject = f"Canceled: {item.data()['subject']}"
        self.update_event(
            event_id,
            calendar_id=calendar_id,
            mailbox=mailbox,
            isCancelled=True,
            isOrganizer=False,
            subject=subject,
        )

    def delete_event(
        self, event_id: str, *, calendar_id: str | None = None, mailbox: str | None = None
    ) -> None:
        """Also for one occurrence of a series, by its own id."""
        self.calendar(calendar_id, mailbox=mailbox).delete_event(event_id)

    def add_series(
        self,
        *,
        start: datetime | date,
        end: datetime | date,
        rrule: str,
        calendar_id: str | None = None,
        mailbox: str | None = None,
        series_id: str | None = None,
        **fields: Any,
    ) -> str:
        """`rrule` without the `RRULE:`; ids by `microsoft_store.occurrence_id(series_id, original_start)`."""
        calendar = self.calendar(calendar_id, mailbox=mailbox)
        return calendar.add_series(series_id=series_id, start=start, end=end, rrule=rrule, fields=fields)

    def update_series(
        self,
        series_id: str,
        *,
        calendar_id: str | None = None,
        mailbox: str | None = None,
        start: datetime | date | None = None,
        end: datetime | date | None = None,
        rrule: str | None = None,
        **fields: Any,
    ) -> None:
        calendar = self.calendar(calendar_id, mailbox=mailbox)
        calendar.update_series(series_id, start=start, end=end, rrule=rrule, fields=fields)

    def split_series(
        self,
        series_id: str,
        *,
        at: datetime,
        calendar_id: str | None = None,
        mailbox: str | None = None,
        **fields: Any,
    ) -> str:
        """Returns the id of the series that goes on from `at`."""
        return self.calendar(calendar_id, mailbox=mailbox).split_series(series_id, at, fields)

    def delete_series(
        self, series_id: str, *, calendar_id: str | None = None, mailbox: str | None = None
    ) -> None:
        self.calendar(calendar_id, mailbox=mailbox).delete_series(series_id)

    def seed(
        self,
        count: int,
        *,
        start: datetime,
        spacing: timedelta = timedelta(minutes=5),
        duration: timedelta = timedelta(minutes=30),
        body_length: int = 500,
        calendar_id: str | None = None,
        mailbox: str | None = None,
        prefix: str = "seed",
    ) -> None:
        """`count` single events `seed0000000`, `seed0000001`, ..., in one revision; 50,000 take about a second."""
        self.calendar(calendar_id, mailbox=mailbox).seed(
            count, start=start, spacing=spacing, duration=duration, body="x" * body_length, prefix=prefix
        )

    def window_events(
        self,
        start: datetime,
        end: datetime,
        *,
        mailbox: str | None = None,
        calendar_id: str | None = None,
    ) -> dict[str, dict[str, Any]]:
        """The truth: what is in the window now, whole, in UTC, by immutable id. Series are not in it, cancelled
        events are."""
        calendar = self.calendar(calendar_id, mailbox=mailbox)
        preferences = Preferences(has_immutable_ids=True)
        return {
            item.id: render(item.data(), preferences, all_day_style=self.all_day_style)
            for item in calendar.items.values()
            if not item.is_deleted and overlaps(item.span, (start.timestamp(), end.timestamp()))
        }

    # --- faults -----------------------------------------------------------------------------------------

    def faulty_answer(self, fault: Fault) -> Response:
        """With Graph's error body. For errors of the token route see `fail_token`."""
        return fault.answer(GraphError(fault.status or 500, fault.reason or "UnknownError", "Injected.").body)

    def fail_token(
        self, error: str, number: int, *, status: int = 400, suberror: str | None = None, count: int = 1
    ) -> None:
        """The next `count` requests to the token route are refused like this."""
        body = orjson.dumps(TokenError(status, error, number, "Injected.", suberror).body)
        self.inject_fault("token", status, body=body, content_type="application/json", count=count)

    def expire_delta(
        self,
        spelling: str = EXPIRED_SPELLINGS[0],
        *,
        mailbox: str | None = None,
        calendar_id: str | None = None,
        has_location: bool = False,
    ) -> None:
        """Every delta and page link so far (of one mailbox, of one calendar) is answered with 410."""
        self._expired_spelling = spelling
        self._expired_location = has_location
        for owner in [self.mailbox(mailbox)] if mailbox else self.mailboxes.values():
            for calendar in owner.calendars.values():
                if calendar_id in {None, calendar.id}:
                    calendar.generation += 1

    def requests_to(self, route: str) -> list[GraphRequest]:
        return [request for request in self.requests if request.route == route]

    # --- ASGI --------------------------------------------------------------------------------------------

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Ids may hold an encoded slash, so paths are matched as they came.
        scope = {**scope, "path": scope["raw_path"].decode()}
        recorded = GraphRequest(
            route=self._route_of(scope),
            method=scope["method"],
            path=scope["path"],
            params=dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True)),
            headers={name.decode(): value.decode("latin-1") for name, value in scope["headers"]},
            query=scope["query_string"].decode(),
        )
        self.requests.append(recorded)
        self.on_request(recorded)

        await self.serve(self._app, recorded, scope, receive, send)

    def _route_of(self, scope: Any) -> str:
        for route in self._app.routes:
            if isinstance(route, Route) and route.matches(scope)[0] is Match.FULL:
                return route.name
        return "unknown"

    def _data(
        self, handler: Callable[[Request, Grant], Awaitable[Response]], scopes: set[str] | None = None
    ) -> Callable[[Request], Awaitable[Response]]:
        """A Graph endpoint: token, throttling, the state of the mailbox, and the headers of every answer."""

        async def endpoint(request: Request) -> Response:
            grant = self.check_token(request, scopes or _CALENDAR_SCOPES)
            mailbox = grant.mailbox
            self._throttle(grant)
            mailbox.in_flight += 1
            mailbox.most_in_flight = max(mailbox.most_in_flight, mailbox.in_flight)
            try:
                await asyncio.sleep(self.latency)
                if mailbox.refusal is not None:
                    status, code, message = mailbox.refusal
                    wait = mailbox.refusal_retry_after
                    raise GraphError(
                        status, code, message, {} if wait is None else {"Retry-After": str(wait)}
                    )
                response = await handler(request, grant)
            finally:
                mailbox.in_flight -= 1
            response.headers["request-id"] = str(uuid.uuid4())
            if "client-request-id" in request.headers:
                response.headers["client-request-id"] = request.headers["client-request-id"]
            return response

        return endpoint

    def _throttle(self, grant: Grant) -> None:
        mailbox = grant.mailbox
        limits = {
            "MailboxConcurrency": mailbox.in_flight >= self.concurrency_limit,
            "Mailbox": self._over_limit(f"mailbox {mailbox.email}", self.mailbox_limit, 600),
            "global": self._over_limit(f"app {grant.client_id}", self.global_limit, 10),
        }
        exceeded = next((name for name, is_exceeded in limits.items() if is_exceeded), None)
        if exceeded is not None:
            message = f"Application is over its {exceeded} limit."
            wait = self.throttle_retry_after
            raise GraphError(
                429, "ApplicationThrottled", message, {} if wait is None else {"Retry-After": str(wait)}
            )

    def _over_limit(self, name: str, limit: int, seconds: float) -> bool:
        """Counts one more request, also one that is over the limit ("Throttling")."""
        now = time.monotonic()
        since, count = self._counters.get(name, [now, 0.0])
        if now - since > seconds:
            since, count = now, 0.0
        self._counters[name] = [since, count + 1]
        return count >= limit

    # --- accounts and calendars --------------------------------------------------------------------------

    async def _me(self, _request: Request, grant: Grant) -> Response:
        mailbox = grant.mailbox
        return json_answer(
            {
                "@odata.context": "https://graph.microsoft.com/v1.0/$metadata#users/$entity",
                "id": mailbox.user_id,
                "displayName": mailbox.display_name,
                "mail": mailbox.mail,
                "userPrincipalName": mailbox.email,
            }
        )

    async def _list_calendars(self, request: Request, grant: Grant) -> Response:
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

    async def _list_groups(self, request: Request, grant: Grant) -> Response:
        entries = [
            {"id": id_, "name": name, "changeKey": "AAAAA", "classId": str(uuid.uuid4())}
            for id_, name in grant.mailbox.groups.items()
        ]
        return self._collection(request, entries, {"id", "name", "changeKey", "classId"})

    def _collection(self, request: Request, entries: list[dict[str, Any]], fields: set[str]) -> Response:
        _refuse_unknown(request, {"$select", "$top", "$skip"})
        select = _select(request, fields)
        size, skip = _integer(request, "$top", _PAGE_SIZE, most=1000), _integer(request, "$skip", 0)
        shown = [
            {name: value for name, value in entry.items() if select is None or name in select | {"id"}}
            for entry in entries[skip : skip + size]
        ]
        document: dict[str, Any] = {"value": shown}
        if skip + size < len(entries):
            document["@odata.nextLink"] = self._next_skip(request, skip + size)
        return self._answer(request, document)

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

    async def _calendar_view(self, request: Request, grant: Grant) -> Response:
        calendar = self._calendar_of(request, grant)
        _refuse_unknown(
            request, {"startDateTime", "endDateTime", "$select", "$top", "$skip", "$orderby", "$count"}
        )
        if request.query_params.get("$orderby", "start/dateTime") not in {
            "start/dateTime",
            "start/dateTime asc",
        }:
            raise bad("This fake orders by start/dateTime only.", "RequestBroker--ParseUri")
        items = calendar.listing(_window(request))
        return self._event_page(request, items)

    def _event_page(self, request: Request, items: list[Item]) -> Response:
        select = _select(request, _EVENT_FIELDS)
        size, skip = _integer(request, "$top", _PAGE_SIZE, most=1000), _integer(request, "$skip", 0)
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
        return self._answer(request, document, preferences)

    async def _get_event(self, request: Request, grant: Grant) -> Response:
        _refuse_unknown(request, {"$select"})
        _, item = self._find_event(request, grant)
        preferences = preferences_of(request)
        select = _select(request, _EVENT_FIELDS | _DATES)
        resource = render(item.data(), preferences, select=select, all_day_style=self.all_day_style)
        context = "https://graph.microsoft.com/v1.0/$metadata#users('ada')/events/$entity"
        return self._answer(request, {"@odata.context": context, **resource}, preferences)

    async def _instances(self, request: Request, grant: Grant) -> Response:
        calendar, master = self._find_event(request, grant)
        _refuse_unknown(request, {"startDateTime", "endDateTime", "$select", "$top", "$skip"})
        if master.id not in calendar.series:
            raise bad("The event is not a series master.")
        items = [item for item in calendar.listing(_window(request)) if item.series_id == master.id]
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

    async def _delta(self, request: Request, grant: Grant) -> Response:
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
            _refuse_unknown(request, {"startDateTime", "endDateTime"})
            the_round, number = (
                self._start_round(request, calendar, preferences, None, _window(request)),
                0,
            )
        return self._answer(request, self._delta_page(request, the_round, number, preferences), preferences)

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

    async def _expire_delta(self, request: Request) -> Response:
        self.expire_delta(request.query_params.get("spelling", EXPIRED_SPELLINGS[0]))
        return Response(status_code=204)

    # --- answers -----------------------------------------------------------------------------------------

    def _base(self, request: Request) -> str:
        return self.foreign_links or f"{request.url.scheme}://{request.headers['host']}"

    def _next_skip(self, request: Request, skip: int) -> str:
        query = {**request.query_params, "$skip": str(skip)}
        return f"{self._base(request)}{request.scope['path']}?{urlencode(query, safe='$,:/')}"

    def _answer(
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

    # --- batch -------------------------------------------------------------------------------------------

    async def _batch(self, request: Request) -> Response:
        """Answers come in any order ("Throttling")."""
        self.check_token(request, _CALENDAR_SCOPES | {"user.read"})
        asked = (await request.json()).get("requests")
        if not isinstance(asked, list) or not 1 <= len(asked) <= 20:
            raise bad("Number of batch request steps must be between 1 and 20.", "BadRequest")
        answers: dict[str, dict[str, Any]] = {}
        for step in asked:
            failed = [id_ for id_ in step.get("dependsOn", ()) if answers[id_]["status"] >= 400]
            if failed:
                error = GraphError(424, "FailedDependency", "A request that this one depends on failed.")
                answers[step["id"]] = {"id": step["id"], "status": 424, "headers": {}, "body": error.body}
            else:
                answers[step["id"]] = await self._batch_step(request, step)
        shuffled = list(answers.values())
        random.shuffle(shuffled)
        return json_answer({"responses": shuffled})

    async def _batch_step(self, request: Request, step: dict[str, Any]) -> dict[str, Any]:
        if self.batch_throttled > 0:
            self.batch_throttled -= 1
            error = GraphError(
                429, "ApplicationThrottled", "Application is over its MailboxConcurrency limit."
            )
            return {"id": step["id"], "status": 429, "headers": {"retry-after": "1"}, "body": error.body}
        headers = {"authorization": request.headers["authorization"], "host": request.headers["host"]}
        headers |= {name.lower(): value for name, value in step.get("headers", {}).items()}
        body = b""
        if "body" in step:
            if "content-type" not in headers:
                raise bad("A body needs a Content-Type header.", "BadRequest")
            body = orjson.dumps(step["body"])
        url = urlsplit(step["url"])
        scope = {
            **request.scope,
            "method": step["method"],
            "path": f"/v1.0{url.path}",
            "query_string": url.query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "path_params": {},
        }
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        text = b"".join(message.get("body", b"") for message in sent[1:])
        return {
            "id": step["id"],
            "status": sent[0]["status"],
            "headers": {name.decode(): value.decode() for name, value in sent[0]["headers"]},
            "body": orjson.loads(text) if text else None,
        }


# --- answers ---------------------------------------------------------------------------------------------


async def _render_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, GraphError | TokenError)
    response = json_answer(error.body, error.status)
    response.headers.update({"request-id": str(uuid.uuid4()), **error.headers})
    return response


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


# --- requests --------------------------------------------------------------------------------------------


def _refuse_unknown(request: Request, known: set[str]) -> None:
    for name in request.query_params:
        if name not in known:
            raise bad(f"The query parameter '{name}' is not supported here.")


def _integer(request: Request, name: str, default: int, *, most: int | None = None) -> int:
    value = request.query_params.get(name, str(default))
    if not value.isdigit() or (most is not None and not 1 <= int(value) <= most):
        raise bad(f"Invalid value '{value}' for {name} query option.")
    return int(value)


def _select(request: Request, known: set[str]) -> set[str] | None:
    value = request.query_params.get("$select")
    if value is None:
        return None
    names = set(value.split(","))
    if unknown := sorted(names - known):
        text = f"Could not find a property named '{unknown[0]}' on type 'Microsoft.OutlookServices.Event'."
        raise bad(text, "RequestBroker--ParseUri")
    return names


def _window(request: Request) -> Span:
    bounds = []
    for name in ("startDateTime", "endDateTime"):
        value = request.query_params.get(name)
        if not value:
            raise bad(f"This request requires a time window specified by the query string parameter {name}.")
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            raise bad(f"The value '{value}' of parameter '{name}' is invalid.") from None
        bounds.append(at.replace(tzinfo=at.tzinfo or UTC).timestamp())
    start, end = bounds
    if start > end:
        raise bad("The end of the window lies before its start.")
    if end - start > _LONGEST_WINDOW_DAYS * 86_400:
        text = "Requested time range is too long. Maximum number of days: 1825"
        raise bad(text)
    return start, end
