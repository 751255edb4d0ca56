"""A fake Microsoft: identity platform, Graph calendars and subscriptions.

As strict as docs/reference/microsoft.md describes.

    fake = FakeMicrosoft()
    async with serve(fake) as url:
        ...  # {url}/v1.0/me/..., {url}/common/oauth2/v2.0/token, {url}/common/oauth2/v2.0/authorize

Any number of mailboxes, each grant being one's. Series members share one etag and change key, which any change of
one of them moves. Pages of calendarView are counted off anew at each request; those of delta are cut from one state.
Not supported: writing events, `/users/{id}` paths, `$filter`, `$expand` and `$search` of calendarView, rich notifications.
"""

import asyncio
import dataclasses
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import date, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from tests.fakes.faults import Fault, Faulty, Recorded
from tests.fakes.microsoft_http import GraphError, bad, json_response
from tests.fakes.microsoft_identity import Grant, IdentityPlatform, TokenError
from tests.fakes.microsoft_push import PushService
from tests.fakes.microsoft_reading import EXPIRED_SPELLINGS, GraphReader
from tests.fakes.microsoft_schedule import ScheduleService
from tests.fakes.microsoft_store import Calendar, Mailbox, Preferences, overlaps, render

__all__ = ["EXPIRED_SPELLINGS", "FakeMicrosoft", "GraphRequest"]

_CALENDAR_SCOPES = {"calendars.read", "calendars.readwrite"}


@dataclasses.dataclass(slots=True)
class GraphRequest(Recorded):
    """`query` is as it was on the wire."""

    query: str = ""


class FakeMicrosoft(Faulty, IdentityPlatform, PushService, GraphReader, ScheduleService):
    """The ASGI app, its state, and what tests do to it.

    Switches are plain attributes; the methods that change calendars may be called at any time. They take
    `mailbox` (an address; None: the first one's) and `calendar_id` (None: the default calendar), and immutable ids.
    `on_request` is called with each request before it is looked at. `requests` holds every request that came;
    `requests_to(route)` those of one route. Routes: `authorize`, `token`, `me`, `calendars`, `calendarGroups`,
    `calendarView`, `delta`, `events.get`, `events.instances`, `getSchedule`, `batch`, `subscriptions.create`, `.list`, `.get`,
    `.update`, `.delete`, `.reauthorize`.
    """

    def __init__(
        self, *, email: str = "ada@example.com", windows_zone: str = "Romance Standard Time"
    ) -> None:
        Faulty.__init__(self)
        PushService.__init__(self)
        IdentityPlatform.__init__(self)
        GraphReader.__init__(self)
        ScheduleService.__init__(self)
        self.on_request: Callable[[GraphRequest], None] = lambda _request: None
        self.latency = 0.0
        # Throttling
        self.concurrency_limit = 4
        self.mailbox_limit = 10_000  # a mailbox, in 10 minutes
        self.global_limit = 130_000  # an app, in 10 seconds
        self.throttle_retry_after: int | None = 1
        self.batch_throttled = 0  # so many of the next requests inside of batches

        self.requests: list[GraphRequest] = []
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
            Route("/v1.0/me", data(self.me, {"user.read"}), name="me"),
            Route("/v1.0/me/calendars", data(self.list_calendars), name="calendars"),
            Route("/v1.0/me/calendarGroups", data(self.list_groups), name="calendarGroups"),
            Route("/v1.0/me/calendarGroups/{group}/calendars", data(self.list_calendars), name="calendars"),
            *(Route(f"{view}/calendarView", data(self.calendar_view), name="calendarView") for view in views),
            *(Route(f"{view}/calendarView/delta", data(self.delta), name="delta") for view in views),
            *(Route(f"{view}/events/{{event}}", data(self.get_event), name="events.get") for view in views),
            Route("/v1.0/me/events/{event}/instances", data(self.instances), name="events.instances"),
            Route(
                "/v1.0/me/calendar/getSchedule", data(self.get_schedule), methods=["POST"], name="getSchedule"
            ),
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
        """Remove a calendar: from now on its responses are 404."""
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

    def fault_response(self, fault: Fault) -> Response:
        """With Graph's error body. For errors of the token route see `fail_token`."""
        return fault.to_response(
            GraphError(fault.status or 500, fault.reason or "UnknownError", "Injected.").body
        )

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
        """Expire every delta and page link so far (of one mailbox, of one calendar): the response is 410."""
        self._expired_spelling = spelling
        self._expired_location = has_location
        for owner in [self.mailbox(mailbox)] if mailbox else self.mailboxes.values():
            for calendar in owner.calendars.values():
                if calendar_id in {None, calendar.id}:
                    calendar.generation += 1

    async def _expire_delta(self, request: Request) -> Response:
        self.expire_delta(request.query_params.get("spelling", EXPIRED_SPELLINGS[0]))
        return Response(status_code=204)

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
        """A Graph endpoint: token, throttling, the state of the mailbox, and the headers of every response."""

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

    # --- batch -------------------------------------------------------------------------------------------

    async def _batch(self, request: Request) -> Response:
        """Responses come in any order ("Throttling")."""
        self.check_token(request, _CALENDAR_SCOPES | {"user.read"})
        asked = (await request.json()).get("requests")
        if not isinstance(asked, list) or not 1 <= len(asked) <= 20:
            raise bad("Number of batch request steps must be between 1 and 20.", "BadRequest")
        responses: dict[str, dict[str, Any]] = {}
        for step in asked:
            failed = [id_ for id_ in step.get("dependsOn", ()) if responses[id_]["status"] >= 400]
            if failed:
                error = GraphError(424, "FailedDependency", "A request that this one depends on failed.")
                responses[step["id"]] = {"id": step["id"], "status": 424, "headers": {}, "body": error.body}
            else:
                responses[step["id"]] = await self._batch_step(request, step)
        shuffled = list(responses.values())
        random.shuffle(shuffled)
        return json_response({"responses": shuffled})

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


async def _render_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, GraphError | TokenError)
    response = json_response(error.body, error.status)
    response.headers.update({"request-id": str(uuid.uuid4()), **error.headers})
    return response
