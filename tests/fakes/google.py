"""A fake Google: OAuth, userinfo, Calendar v3 and push channels.

As strict as docs/reference/google.md describes.

    fake = FakeGoogle()
    async with serve(fake) as url:
        ...  # {url}/calendar/v3/..., {url}/token, {url}/o/oauth2/v2/auth, {url}/oauth2/v2/userinfo

One account with any number of calendars; every client and grant of it sees them all.
Not supported: `fields` masks, `syncToken` of calendarList, batch, events.instances, writing events.
"""

import dataclasses
import gzip
import secrets
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

import orjson
from itsdangerous import BadSignature, URLSafeSerializer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from tests.fakes.faults import Fault, Faulty, Recorded
from tests.fakes.google_free_busy import FREE_BUSY_SCOPES, FreeBusyService
from tests.fakes.google_http import (
    ApiError,
    OAuthError,
    bad,
    conditional,
    expired,
    json_response,
    render_error,
)
from tests.fakes.google_identity import CALENDAR_SCOPE, EMAIL_SCOPE, IdentityPlatform
from tests.fakes.google_lists import (
    COMMON_PARAMETERS,
    EVENT_TYPES,
    FORBIDDEN_WITH_SYNC_TOKEN,
    LIST_PARAMETERS,
    bound_of,
    calendar_entry,
    filtered,
    integer,
    list_head,
    parameters_of,
    refuse_unknown,
    sync_parameters,
    window_of,
)
from tests.fakes.google_push import PushService
from tests.fakes.google_store import (
    EVERYWHERE,
    Calendar,
    Item,
    SeriesTombstone,
    Span,
    TombstoneStyle,
    tombstone,
)

__all__ = ["CALENDAR_SCOPE", "EMAIL_SCOPE", "FakeGoogle"]


@dataclasses.dataclass(slots=True)
class _Round:
    """The snapshot that the pages of one round are cut from."""

    parameters: frozenset[tuple[str, str]]
    head: bytes
    pages: list[list[Item]]
    sync_token: str | None


class FakeGoogle(Faulty, IdentityPlatform, PushService, FreeBusyService):
    """The ASGI app, its state, and what tests do to it.

    Switches are plain attributes; the methods that change calendars may be called at any time.
    `requests` holds every request that came; `requests_to(route)` those of one route. Routes: `authorize`, `token`,
    `revoke`, `userinfo`, `calendarList.list`, `events.list`, `events.get`, `events.watch`, `channels.stop`,
    `freebusy.query`.
    """

    def __init__(self, *, email: str = "ada@example.com", time_zone: str = "Europe/Paris") -> None:
        Faulty.__init__(self)
        PushService.__init__(self)
        FreeBusyService.__init__(self)
        IdentityPlatform.__init__(self, email)
        # Lists and sync
        self.tombstone_style: TombstoneStyle = "exception"
        self.series_tombstone: SeriesTombstone = "instances"
        self.window_leak = True
        self.no_sync_token = False
        self.short_pages = False
        self.empty_pages = False
        self.omits_empty_items = False
        self.garbled_sync_token_status = 410
        self.gzip = False

        self.requests: list[Recorded] = []
        self._calendars: dict[str, Calendar] = {}
        self._rounds: dict[str, tuple[_Round, int]] = {}
        self._signer = URLSafeSerializer(secrets.token_hex(16))

        self.add_calendar(email, summary=email, time_zone=time_zone, is_primary=True)
        self._app = Starlette(
            routes=[
                Route("/o/oauth2/v2/auth", self.authorize, name="authorize"),
                Route("/token", self.token, methods=["POST"], name="token"),
                Route("/revoke", self.revoke, methods=["POST"], name="revoke"),
                Route("/oauth2/v2/userinfo", self.userinfo, name="userinfo"),
                Route("/calendar/v3/users/me/calendarList", self._list_calendars, name="calendarList.list"),
                Route("/calendar/v3/calendars/{calendar}/events", self._list_events, name="events.list"),
                Route(
                    "/calendar/v3/calendars/{calendar}/events/watch",
                    self._watch,
                    methods=["POST"],
                    name="events.watch",
                ),
                Route("/calendar/v3/calendars/{calendar}/events/{event}", self._get_event, name="events.get"),
                Route("/calendar/v3/channels/stop", self._stop, methods=["POST"], name="channels.stop"),
                Route("/calendar/v3/freeBusy", self._free_busy, methods=["POST"], name="freebusy.query"),
                Route("/_fake/expire_tokens", self._expire_tokens, methods=["POST"], name="expire_tokens"),
            ],
            exception_handlers={ApiError: render_error, OAuthError: render_error},
        )

    # --- calendars and events ----------------------------------------------------------------------------

    def add_calendar(
        self,
        calendar_id: str,
        *,
        summary: str = "Team",
        time_zone: str = "Europe/Paris",
        access_role: str = "owner",
        is_primary: bool = False,
    ) -> str:
        self._calendars[calendar_id] = Calendar(
            calendar_id,
            summary=summary,
            time_zone=time_zone,
            access_role=access_role,
            is_primary=is_primary,
            now=lambda: self.now(),  # noqa: PLW0108 - tests set another clock later
            on_change=self.note_change,
        )
        return calendar_id

    def remove_calendar(self, calendar_id: str) -> None:
        """Remove a calendar: from now on its responses are 404."""
        del self._calendars[calendar_id]

    def calendar(self, calendar_id: str = "primary") -> Calendar:
        return self._calendars[self.email if calendar_id == "primary" else calendar_id]

    def add_event(
        self,
        *,
        start: datetime | date,
        end: datetime | date,
        calendar_id: str = "primary",
        event_id: str | None = None,
        summary: str = "Meeting",
        **fields: Any,
    ) -> str:
        """A single event, all-day when `start` is a date. `fields` are members of the resource; None removes one."""
        return self.calendar(calendar_id).add_event(
            event_id=event_id, start=start, end=end, fields={"summary": summary, **fields}
        )

    def put_raw(self, resource: dict[str, Any], *, calendar_id: str = "primary") -> None:
        self.calendar(calendar_id).put_raw(resource)

    def update_event(self, event_id: str, *, calendar_id: str = "primary", **fields: Any) -> None:
        """Also for one instance of a series, by its instance id."""
        self.calendar(calendar_id).update_event(event_id, fields)

    def move(
        self, event_id: str, *, start: datetime | date, end: datetime | date, calendar_id: str = "primary"
    ) -> None:
        """To another time."""
        self.update_event(event_id, calendar_id=calendar_id, start=start, end=end)

    def move_to_calendar(self, event_id: str, *, to: str, calendar_id: str = "primary") -> None:
        """A tombstone stays behind; the other calendar gets an entry with the same iCalUID.

        See "Cancelled entries".
        """
        data = self.calendar(calendar_id).items[event_id].data()
        self.delete_event(event_id, calendar_id=calendar_id)
        kept = {name: data.pop(name) for name in ("start", "end")}
        self.calendar(to).add_event(event_id=event_id, fields=data, **kept)

    def delete_event(self, event_id: str, *, calendar_id: str = "primary") -> None:
        """Also for one instance of a series, by its instance id."""
        self.calendar(calendar_id).delete_event(event_id)

    def add_series(
        self,
        *,
        start: datetime | date,
        end: datetime | date,
        rrule: str,
        exdates: Iterable[datetime | date] = (),
        calendar_id: str = "primary",
        series_id: str | None = None,
        summary: str = "Series",
        **fields: Any,
    ) -> str:
        """`rrule` without the `RRULE:`; instance ids by `google_store.instance_id(series_id, original_start)`."""
        return self.calendar(calendar_id).add_series(
            series_id=series_id,
            start=start,
            end=end,
            rrule=rrule,
            exdates=exdates,
            fields={"summary": summary, **fields},
        )

    def update_series(
        self,
        series_id: str,
        *,
        calendar_id: str = "primary",
        start: datetime | date | None = None,
        end: datetime | date | None = None,
        rrule: str | None = None,
        exdates: Iterable[datetime | date] | None = None,
        **fields: Any,
    ) -> None:
        self.calendar(calendar_id).update_series(
            series_id, start=start, end=end, rrule=rrule, exdates=exdates, fields=fields
        )

    def split_series(
        self, series_id: str, *, at: datetime, calendar_id: str = "primary", **fields: Any
    ) -> str:
        """Returns the id of the series that goes on from `at`."""
        return self.calendar(calendar_id).split_series(series_id, at, fields)

    def delete_series(self, series_id: str, *, calendar_id: str = "primary") -> None:
        self.calendar(calendar_id).delete_series(series_id)

    def seed(
        self,
        count: int,
        *,
        start: datetime,
        spacing: timedelta = timedelta(minutes=5),
        duration: timedelta = timedelta(minutes=30),
        description_length: int = 500,
        calendar_id: str = "primary",
        prefix: str = "seed",
    ) -> None:
        """`count` single events `seed0000000`, `seed0000001`, ..., in one revision; 50,000 take two seconds."""
        self.calendar(calendar_id).seed(
            count,
            start=start,
            spacing=spacing,
            duration=duration,
            description="x" * description_length,
            prefix=prefix,
        )

    # --- tokens ------------------------------------------------------------------------------------------

    def expire_tokens(self, calendar_id: str | None = None) -> None:
        """Expire every sync token so far (of one calendar): the response to it is 410."""
        for calendar in self._calendars.values() if calendar_id is None else [self.calendar(calendar_id)]:
            calendar.token_generation += 1

    change_acl = expire_tokens

    def forget_pages(self) -> None:
        """Every page token so far is unknown from now on."""
        self._rounds.clear()

    def requests_to(self, route: str) -> list[Recorded]:
        return [request for request in self.requests if request.route == route]

    # --- ASGI --------------------------------------------------------------------------------------------

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = next(
            (
                route.name
                for route in self._app.routes
                if isinstance(route, Route) and route.matches(scope)[0] is Match.FULL
            ),
            "unknown",
        )
        recorded = Recorded(
            route=route,
            method=scope["method"],
            path=scope["raw_path"].decode(),
            params=dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True)),
            headers={name.decode(): value.decode("latin-1") for name, value in scope["headers"]},
        )
        self.requests.append(recorded)

        await self.serve(self._app, recorded, scope, receive, send)

    def fault_response(self, fault: Fault) -> Response:
        """With Google's error body."""
        if fault.route in {"token", "revoke"}:
            body = {"error": fault.reason, "error_description": "Bad Request"}
        else:
            domain = "usageLimits" if "imit" in (fault.reason or "") else "global"
            body = ApiError(
                fault.status or 500, fault.reason or "backendError", "Injected", domain=domain
            ).body
        return fault.to_response(body)

    # --- Calendar v3 -------------------------------------------------------------------------------------

    async def _list_calendars(self, request: Request) -> Response:
        self.check_calendar_token(request)
        query = request.query_params
        refuse_unknown(query, COMMON_PARAMETERS | {"maxResults", "pageToken", "minAccessRole", "showHidden"})
        size = min(integer(query, "maxResults", 100), 250)
        offset = int(query.get("pageToken") or 0)
        entries = [calendar_entry(calendar) for calendar in self._calendars.values()]
        document: dict[str, Any] = {
            "kind": "calendar#calendarList",
            "etag": '"p33"',
            "items": entries[offset : offset + size],
        }
        if offset + size < len(entries):
            document["nextPageToken"] = str(offset + size)
        else:
            document["nextSyncToken"] = "CPDA"
        return json_response(document)

    async def _get_event(self, request: Request) -> Response:
        self.check_calendar_token(request)
        item = self._calendar_of(request).find(request.path_params["event"])
        if item is None:
            raise ApiError(404, "notFound", "Not Found")
        return conditional(request, item.data().get("etag", '"0"'), item.body)

    async def _list_events(self, request: Request) -> Response:
        self.check_calendar_token(request)
        calendar = self._calendar_of(request)
        query = request.query_params
        self._check_list_parameters(calendar, query)
        page_token = query.get("pageToken")
        if page_token is None:
            the_round, number = self._start_round(calendar, query), 0
        else:
            if page_token not in self._rounds:
                raise bad("Invalid page token value.", reason="invalid", location="pageToken")
            the_round, number = self._rounds[page_token]
            if the_round.parameters != parameters_of(query, without={"pageToken"}):
                raise bad("Page token does not belong to these parameters.", location="pageToken")
        return self._respond_with_page(request, calendar, the_round, number)

    def _calendar_of(self, request: Request) -> Calendar:
        try:
            return self.calendar(request.path_params["calendar"])
        except KeyError:
            raise ApiError(404, "notFound", "Not Found") from None

    def _check_list_parameters(self, calendar: Calendar, query: Mapping[str, str]) -> None:
        """The parameters that a list may have ("Event lists", "Sync tokens")."""
        refuse_unknown(query, COMMON_PARAMETERS | LIST_PARAMETERS)
        if integer(query, "maxResults", 250) < 1:
            raise bad("Invalid value for maxResults.", reason="invalidParameter", location="maxResults")
        for name in ("singleEvents", "showDeleted", "showHiddenInvitations"):
            if query.get(name, "true") not in {"true", "false"}:
                raise bad(f"Invalid boolean value for {name}.", reason="invalidParameter", location=name)
        order = query.get("orderBy")
        if order not in {None, "startTime", "updated"}:
            raise bad("Invalid value for orderBy.", reason="invalidParameter", location="orderBy")
        if order == "startTime" and query.get("singleEvents") != "true":
            raise bad("The requested ordering is not available for the particular query.", location="orderBy")
        if query.get("eventTypes", "default") not in EVENT_TYPES:
            raise bad("Invalid value for eventTypes.", reason="invalidParameter", location="eventTypes")
        token = query.get("syncToken")
        if token is not None:
            clash = sorted(FORBIDDEN_WITH_SYNC_TOKEN & query.keys())
            if clash or query.get("showDeleted") == "false":
                raise bad(
                    "Sync token cannot be used with other request restrictions.",
                    reason="syncTokenWithRequestRestrictions",
                    location=clash[0] if clash else "showDeleted",
                )
            self._read_sync_token(calendar, query)
        updated_min = bound_of(query, "updatedMin")
        if updated_min is not None and updated_min < (self.now() - timedelta(days=30)).timestamp():
            raise ApiError(
                410,
                "updatedMinTooLongAgo",
                "The requested minimum modification time lies too far in the past.",
            )
        window = window_of(query)
        if window[0] >= window[1]:
            raise bad("The specified time range is empty.", reason="timeRangeEmpty", location="timeMax")

    def _start_round(self, calendar: Calendar, query: Mapping[str, str]) -> _Round:
        is_expanded = query.get("singleEvents") == "true"
        if "syncToken" in query:
            since, window = self._read_sync_token(calendar, query)
            items = calendar.delta(
                since=since,
                is_expanded=is_expanded,
                window=window,
                leaks=self.window_leak,
                series_tombstone=self.series_tombstone,
            )
        else:
            window = window_of(query)
            items = calendar.listing(
                is_expanded=is_expanded, window=window, shows_cancelled=query.get("showDeleted") == "true"
            )
            items = filtered(items, query)
        size = min(integer(query, "maxResults", 250), 2500)
        if self.short_pages:
            size = max(size // 2, 1)
        pages = [items[at : at + size] for at in range(0, len(items), size)] or [[]]
        if self.empty_pages:
            pages.insert(len(pages) // 2, [])
        gives_token = "orderBy" not in query and not self.no_sync_token
        return _Round(
            parameters=parameters_of(query, without={"pageToken"}),
            head=list_head(calendar, query),
            pages=pages,
            sync_token=self._make_sync_token(calendar, query, window) if gives_token else None,
        )

    def _respond_with_page(
        self, request: Request, calendar: Calendar, the_round: _Round, number: int
    ) -> Response:
        items = the_round.pages[number]
        bodies = [tombstone(item, self.tombstone_style) if item.is_cancelled else item.body for item in items]
        parts = [the_round.head[:-1]]
        if bodies or not self.omits_empty_items:
            parts += [b',"items":[', b",".join(bodies), b"]"]
        if number + 1 < len(the_round.pages):
            page_token = f"EAAa{secrets.token_urlsafe(12)}"
            self._rounds[page_token] = (the_round, number + 1)
            parts.append(b',"nextPageToken":' + orjson.dumps(page_token))
        elif the_round.sync_token is not None:
            parts.append(b',"nextSyncToken":' + orjson.dumps(the_round.sync_token))
        body = b"".join([*parts, b"}"])
        etag = f'"p33g{calendar.rev}-{number}-{hash(the_round.parameters) & 0xFFFFFF:x}"'
        wants_gzip = "gzip" in request.headers.get("accept-encoding", "") and "gzip" in request.headers.get(
            "user-agent", ""
        )
        if self.gzip and wants_gzip:
            return conditional(request, etag, gzip.compress(body, 1), {"Content-Encoding": "gzip"})
        return conditional(request, etag, body)

    def _make_sync_token(self, calendar: Calendar, query: Mapping[str, str], window: Span) -> str:
        return self._signer.dumps(
            {
                "calendar": calendar.id,
                "generation": calendar.token_generation,
                "rev": calendar.rev,
                "parameters": sync_parameters(query),
                "window": [None if bound in EVERYWHERE else bound for bound in window],
            }
        )

    def _read_sync_token(self, calendar: Calendar, query: Mapping[str, str]) -> tuple[int, Span]:
        try:
            token = self._signer.loads(query["syncToken"])
        except BadSignature:
            if self.garbled_sync_token_status == 410:
                raise expired() from None
            raise bad("Invalid sync token value.", reason="invalid", location="syncToken") from None
        if (token["calendar"], token["generation"]) != (calendar.id, calendar.token_generation):
            raise expired()
        if token["parameters"] != sync_parameters(query):
            # Google calls this undefined behaviour; here it is an error, so that tests see it.
            raise bad("The parameters differ from those of the initial sync.", location="syncToken")
        first, last = token["window"]
        return token["rev"], (
            EVERYWHERE[0] if first is None else first,
            EVERYWHERE[1] if last is None else last,
        )

    async def _expire_tokens(self, _request: Request) -> Response:
        self.expire_tokens()
        return Response(status_code=204)

    # --- free/busy ---------------------------------------------------------------------------------------

    async def _free_busy(self, request: Request) -> Response:
        self.check_token(request, FREE_BUSY_SCOPES.__contains__)
        return await self.query_free_busy(request, self.calendar)

    # --- push channels -----------------------------------------------------------------------------------

    async def _watch(self, request: Request) -> Response:
        grant = self.check_calendar_token(request)
        return await self.watch(request, self._calendar_of(request), grant)

    async def _stop(self, request: Request) -> Response:
        return await self.stop(request, self.check_calendar_token(request))
