"""A fake Google: OAuth, userinfo, Calendar v3 and push channels.

As strict as docs/reference/google.md describes.

    fake = FakeGoogle()
    async with serve(fake) as url:
        ...  # {url}/calendar/v3/..., {url}/token, {url}/o/oauth2/v2/auth, {url}/oauth2/v2/userinfo

One account with any number of calendars; every client and grant of it sees them all.
Not there: `fields` masks, `syncToken` of calendarList, batch, events.instances, writing events.
"""

import asyncio
import base64
import contextlib
import dataclasses
import gzip
import hashlib
import random
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import orjson
from itsdangerous import BadSignature, URLSafeSerializer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match, Route

from app.core.clock import utcnow
from app.core.http import httpx, operator_client
from tests.fakes.faults import Fault, Faulty, Recorded
from tests.fakes.google_store import (
    EVERYWHERE,
    Calendar,
    Item,
    SeriesTombstone,
    Span,
    TombstoneStyle,
    tombstone,
)

CALENDAR_SCOPE = "https://www.googleapis.com/auth/calendar.readonly"
EMAIL_SCOPE = "https://www.googleapis.com/auth/userinfo.email"
EVENT_TYPES = {"default", "birthday", "focusTime", "fromGmail", "outOfOffice", "workingLocation"}
PUSH_AGENT = "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)"

_COMMON_PARAMETERS = {"alt", "prettyPrint", "quotaUser", "key"}
_FORBIDDEN_WITH_SYNC_TOKEN = {
    "iCalUID", "orderBy", "privateExtendedProperty", "q", "sharedExtendedProperty", "timeMin", "timeMax", "updatedMin",
}  # fmt: skip
_LIST_PARAMETERS = _FORBIDDEN_WITH_SYNC_TOKEN | {
    "alwaysIncludeEmail", "eventTypes", "maxAttendees", "maxResults", "pageToken", "showDeleted",
    "showHiddenInvitations", "singleEvents", "syncToken", "timeZone",
}  # fmt: skip
_BOUND = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_CHANNEL_ID = re.compile(r"[A-Za-z0-9\-_+/=]{1,64}")


@dataclasses.dataclass(slots=True)
class OAuthClient:
    secret: str
    redirect_uris: tuple[str, ...]
    is_deleted: bool = False
    has_consented_user: bool = False


@dataclasses.dataclass(slots=True)
class Grant:
    client_id: str
    scopes: tuple[str, ...]
    is_revoked: bool = False
    account: tuple[str, str] | None = None  # (id, address); None: the fake's own


@dataclasses.dataclass(slots=True)
class _Code:
    grant: Grant
    redirect_uri: str
    challenge: str | None
    gives_refresh_token: bool


@dataclasses.dataclass(slots=True)
class Channel:
    id: str
    resource_id: str
    calendar_id: str
    address: str
    token: str | None
    expires_at: datetime
    client_id: str
    number: int = 1


@dataclasses.dataclass(slots=True)
class _Round:
    """The snapshot that the pages of one round are cut from."""

    parameters: frozenset[tuple[str, str]]
    head: bytes
    pages: list[list[Item]]
    sync_token: str | None


class ApiError(Exception):
    def __init__(
        self, status: int, reason: str, message: str, *, domain: str = "global", location: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        entry = {"domain": domain, "reason": reason, "message": message}
        if location:
            entry |= {"locationType": "parameter", "location": location}
        self.body: dict[str, Any] = {"error": {"errors": [entry], "code": status, "message": message}}


class OAuthError(Exception):
    def __init__(self, status: int, error: str, description: str) -> None:
        super().__init__(error)
        self.status = status
        self.body = {"error": error, "error_description": description}


def _bad(message: str, *, reason: str = "badRequest", location: str | None = None) -> ApiError:
    return ApiError(400, reason, message, location=location)


def _expired() -> ApiError:
    text = "Sync token is no longer valid, a full sync is required."
    return ApiError(410, "fullSyncRequired", text, domain="calendar", location="syncToken")


class FakeGoogle(Faulty):
    """The ASGI app, its state, and what tests do to it.

    Switches are plain attributes; the methods that change calendars may be called at any time.
    `requests` holds every request that came; `requests_to(route)` those of one route. Routes: `authorize`, `token`,
    `revoke`, `userinfo`, `calendarList.list`, `events.list`, `events.get`, `events.watch`, `channels.stop`.
    """

    def __init__(self, *, email: str = "ada@example.com", time_zone: str = "Europe/Paris") -> None:
        super().__init__()
        self.email = email
        self.user_id = "108900000000000000000"
        self.signed_in: tuple[str, str] | None = (
            None  # (id, address) of who is in the browser, if somebody else
        )
        self.now: Callable[[], datetime] = utcnow
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
        # OAuth
        self.access_token_ttl = 3599.0
        self.denies_consent = False
        self.granted_scopes: tuple[str, ...] | None = (
            None  # what the person ticks; None: everything asked for
        )
        # Push
        self.allow_http_push = False
        self.sync_message_first = False
        self.duplicate_notifications = False
        self.lost_notifications = 0  # how many of the next ones get lost
        self.push_unsupported: set[str] = set()
        self.push_retry_seconds = 0.02
        self.channels: dict[str, Channel] = {}

        self.requests: list[Recorded] = []
        self._calendars: dict[str, Calendar] = {}
        self._rounds: dict[str, tuple[_Round, int]] = {}
        self._signer = URLSafeSerializer(secrets.token_hex(16))
        self._clients: dict[str, OAuthClient] = {}
        self._codes: dict[str, _Code] = {}
        self._refresh_tokens: dict[str, Grant] = {}
        self._access_tokens: dict[str, tuple[Grant, float]] = {}
        self._changed: set[str] = set()
        self._sending: set[asyncio.Task[None]] = set()

        self.add_calendar(email, summary=email, time_zone=time_zone, is_primary=True)
        self.client_id, self.client_secret = "fake-client.apps.googleusercontent.com", "GOCSPX-fake-secret"
        self.add_client(self.client_id, self.client_secret)
        self.refresh_token = self.add_grant()

        self._app = Starlette(
            routes=[
                Route("/o/oauth2/v2/auth", self._authorize, name="authorize"),
                Route("/token", self._token, methods=["POST"], name="token"),
                Route("/revoke", self._revoke, methods=["POST"], name="revoke"),
                Route("/oauth2/v2/userinfo", self._userinfo, name="userinfo"),
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
                Route("/_fake/expire_tokens", self._expire_tokens, methods=["POST"], name="expire_tokens"),
            ],
            exception_handlers={ApiError: _render_error, OAuthError: _render_error},
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
            on_change=self._changed_calendar,
        )
        return calendar_id

    def remove_calendar(self, calendar_id: str) -> None:
        """From now on it answers 404."""
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
        """Every sync token so far (of one calendar) is answered with 410."""
        for calendar in self._calendars.values() if calendar_id is None else [self.calendar(calendar_id)]:
            calendar.token_generation += 1

    change_acl = expire_tokens

    def forget_pages(self) -> None:
        """Every page token so far is unknown from now on."""
        self._rounds.clear()

    def add_client(self, client_id: str, secret: str, *, redirect_uris: Iterable[str] = ()) -> None:
        self._clients[client_id] = OAuthClient(secret, tuple(redirect_uris))

    def delete_client(self, client_id: str) -> None:
        self._clients[client_id].is_deleted = True

    def add_grant(
        self, *, client_id: str | None = None, scopes: Iterable[str] = (CALENDAR_SCOPE, EMAIL_SCOPE)
    ) -> str:
        """A refresh token, as if a person had just consented."""
        client_id = client_id or self.client_id
        self._clients[client_id].has_consented_user = True
        return self._issue_refresh_token(Grant(client_id, tuple(scopes)))

    def revoke_grant(self, refresh_token: str) -> None:
        """The person takes the grant back: the refresh token and its access tokens die."""
        self._refresh_tokens[refresh_token].is_revoked = True

    def issue_access_token(self, *, refresh_token: str | None = None, ttl: float | None = None) -> str:
        return self._issue_access_token(self._refresh_tokens[refresh_token or self.refresh_token], ttl)

    def expire_access_tokens(self) -> None:
        self._access_tokens = {token: (grant, 0.0) for token, (grant, _) in self._access_tokens.items()}

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

    def faulty_answer(self, fault: Fault) -> Response:
        """With Google's error body."""
        if fault.route in {"token", "revoke"}:
            body = {"error": fault.reason, "error_description": "Bad Request"}
        else:
            domain = "usageLimits" if "imit" in (fault.reason or "") else "global"
            body = ApiError(
                fault.status or 500, fault.reason or "backendError", "Injected", domain=domain
            ).body
        return fault.answer(body)

    # --- OAuth -------------------------------------------------------------------------------------------

    async def _authorize(self, request: Request) -> Response:
        asked = request.query_params
        client = self._clients.get(asked.get("client_id", ""))
        if client is None or client.is_deleted:
            return Response("invalid_client: The OAuth client was not found.", 401, media_type="text/html")
        redirect_uri = asked.get("redirect_uri", "")
        if redirect_uri not in client.redirect_uris:
            return Response("redirect_uri_mismatch", 400, media_type="text/html")
        method = asked.get("code_challenge_method")
        is_wrong = asked.get("response_type") != "code" or not asked.get("scope")
        if is_wrong or ("code_challenge" in asked and method != "S256"):
            return Response("invalid_request", 400, media_type="text/html")
        state = {"state": asked["state"]} if "state" in asked else {}
        if self.denies_consent:
            return _redirect(redirect_uri, {"error": "access_denied", **state})
        scopes = self.granted_scopes or tuple(asked["scope"].split())
        code = f"4/0A{secrets.token_urlsafe(16)}"
        is_first = not client.has_consented_user
        client.has_consented_user = True
        self._codes[code] = _Code(
            grant=Grant(asked["client_id"], scopes, account=self.signed_in),
            redirect_uri=redirect_uri,
            challenge=asked.get("code_challenge"),
            gives_refresh_token=asked.get("access_type") == "offline"
            and (is_first or "consent" in asked.get("prompt", "").split()),
        )
        return _redirect(redirect_uri, {**state, "code": code, "scope": " ".join(scopes)})

    async def _token(self, request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        client = self._clients.get(form.get("client_id", ""))
        if client is None:
            raise OAuthError(401, "invalid_client", "The OAuth client was not found.")
        if client.is_deleted:
            raise OAuthError(401, "deleted_client", "The OAuth client was deleted.")
        if not secrets.compare_digest(client.secret, form.get("client_secret", "")):
            raise OAuthError(401, "invalid_client", "Unauthorized")
        if form.get("grant_type") == "refresh_token":
            return self._answer_with_token(self._refreshed(form))
        if form.get("grant_type") == "authorization_code":
            code = self._exchanged(form)
            extra = (
                {"refresh_token": self._issue_refresh_token(code.grant)} if code.gives_refresh_token else {}
            )
            return self._answer_with_token(code.grant, extra)
        raise OAuthError(400, "unsupported_grant_type", "Invalid grant_type.")

    def _refreshed(self, form: dict[str, str]) -> Grant:
        if not form.get("refresh_token"):
            raise OAuthError(400, "invalid_request", "Missing required parameter: refresh_token")
        grant = self._refresh_tokens.get(form["refresh_token"])
        if grant is None:
            raise OAuthError(400, "invalid_grant", "Bad Request")
        if grant.is_revoked:
            raise OAuthError(400, "invalid_grant", "Token has been expired or revoked.")
        if grant.client_id != form["client_id"]:
            raise OAuthError(401, "unauthorized_client", "Unauthorized")
        return grant

    def _exchanged(self, form: dict[str, str]) -> _Code:
        code = self._codes.pop(form.get("code", ""), None)  # good for one attempt
        if code is None or code.grant.client_id != form["client_id"]:
            raise OAuthError(400, "invalid_grant", "Malformed auth code.")
        if form.get("redirect_uri") != code.redirect_uri:
            raise OAuthError(400, "redirect_uri_mismatch", "Bad Request")
        if code.challenge is not None:
            verifier = form.get("code_verifier", "")
            digest = hashlib.sha256(verifier.encode()).digest()
            expected = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            if not re.fullmatch(r"[A-Za-z0-9\-._~]{43,128}", verifier) or expected != code.challenge:
                raise OAuthError(400, "invalid_grant", "Invalid code verifier.")
        return code

    def _answer_with_token(self, grant: Grant, extra: Mapping[str, str] | None = None) -> Response:
        return _json(
            {
                "access_token": self._issue_access_token(grant, None),
                "expires_in": int(self.access_token_ttl),
                "token_type": "Bearer",
                "scope": " ".join(grant.scopes),
                **(extra or {}),
            }
        )

    async def _revoke(self, request: Request) -> Response:
        form = await request.form()
        token = str(form.get("token") or request.query_params.get("token", ""))
        grant = self._refresh_tokens.get(token) or self._access_tokens.get(token, (None, 0.0))[0]
        if grant is None or grant.is_revoked:
            raise OAuthError(400, "invalid_token", "Token expired or revoked")
        for other in (*self._refresh_tokens.values(), grant):  # the whole grant of that person and client
            other.is_revoked = other.is_revoked or other.client_id == grant.client_id
        return _json({})

    async def _userinfo(self, request: Request) -> Response:
        grant = self._check_token(request, lambda scope: scope in {EMAIL_SCOPE, "email"})
        user_id, email = grant.account or (self.user_id, self.email)
        return _json({"id": user_id, "email": email, "verified_email": True, "picture": ""})

    def _issue_refresh_token(self, grant: Grant) -> str:
        token = f"1//0{secrets.token_urlsafe(24)}"
        self._refresh_tokens[token] = grant
        return token

    def _issue_access_token(self, grant: Grant, ttl: float | None) -> str:
        token = f"ya29.{secrets.token_urlsafe(24)}"
        expires_at = time.monotonic() + (self.access_token_ttl if ttl is None else ttl)
        self._access_tokens[token] = (grant, expires_at)
        return token

    def _check_token(self, request: Request, is_enough: Callable[[str], bool]) -> Grant:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        grant, expires_at = self._access_tokens.get(token, (None, 0.0))
        if scheme != "Bearer" or grant is None or grant.is_revoked or expires_at <= time.monotonic():
            raise ApiError(401, "authError", "Invalid Credentials")
        if not any(is_enough(scope) for scope in grant.scopes):
            error = ApiError(
                403, "insufficientPermissions", "Request had insufficient authentication scopes."
            )
            detail = {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
                "domain": "googleapis.com",
            }
            error.body["error"] |= {"status": "PERMISSION_DENIED", "details": [detail]}
            raise error
        return grant

    def _check_calendar_token(self, request: Request) -> Grant:
        return self._check_token(
            request, lambda scope: scope.startswith("https://www.googleapis.com/auth/calendar")
        )

    # --- Calendar v3 -------------------------------------------------------------------------------------

    async def _list_calendars(self, request: Request) -> Response:
        self._check_calendar_token(request)
        query = request.query_params
        _refuse_unknown(
            query, _COMMON_PARAMETERS | {"maxResults", "pageToken", "minAccessRole", "showHidden"}
        )
        size = min(_integer(query, "maxResults", 100), 250)
        offset = int(query.get("pageToken") or 0)
        entries = [_calendar_entry(calendar) for calendar in self._calendars.values()]
        document: dict[str, Any] = {
            "kind": "calendar#calendarList",
            "etag": '"p33"',
            "items": entries[offset : offset + size],
        }
        if offset + size < len(entries):
            document["nextPageToken"] = str(offset + size)
        else:
            document["nextSyncToken"] = "CPDA"
        return _json(document)

    async def _get_event(self, request: Request) -> Response:
        self._check_calendar_token(request)
        item = self._calendar_of(request).find(request.path_params["event"])
        if item is None:
            raise ApiError(404, "notFound", "Not Found")
        return _conditional(request, item.data().get("etag", '"0"'), item.body)

    async def _list_events(self, request: Request) -> Response:
        self._check_calendar_token(request)
        calendar = self._calendar_of(request)
        query = request.query_params
        self._check_list_parameters(calendar, query)
        page_token = query.get("pageToken")
        if page_token is None:
            the_round, number = self._start_round(calendar, query), 0
        else:
            if page_token not in self._rounds:
                raise _bad("Invalid page token value.", reason="invalid", location="pageToken")
            the_round, number = self._rounds[page_token]
            if the_round.parameters != _parameters(query, without={"pageToken"}):
                raise _bad("Page token does not belong to these parameters.", location="pageToken")
        return self._answer_with_page(request, calendar, the_round, number)

    def _calendar_of(self, request: Request) -> Calendar:
        try:
            return self.calendar(request.path_params["calendar"])
        except KeyError:
            raise ApiError(404, "notFound", "Not Found") from None

    def _check_list_parameters(self, calendar: Calendar, query: Mapping[str, str]) -> None:
        """The parameters that a list may have ("Event lists", "Sync tokens")."""
        _refuse_unknown(query, _COMMON_PARAMETERS | _LIST_PARAMETERS)
        if _integer(query, "maxResults", 250) < 1:
            raise _bad("Invalid value for maxResults.", reason="invalidParameter", location="maxResults")
        for name in ("singleEvents", "showDeleted", "showHiddenInvitations"):
            if query.get(name, "true") not in {"true", "false"}:
                raise _bad(f"Invalid boolean value for {name}.", reason="invalidParameter", location=name)
        order = query.get("orderBy")
        if order not in {None, "startTime", "updated"}:
            raise _bad("Invalid value for orderBy.", reason="invalidParameter", location="orderBy")
        if order == "startTime" and query.get("singleEvents") != "true":
            raise _bad(
                "The requested ordering is not available for the particular query.", location="orderBy"
            )
        if query.get("eventTypes", "default") not in EVENT_TYPES:
            raise _bad("Invalid value for eventTypes.", reason="invalidParameter", location="eventTypes")
        token = query.get("syncToken")
        if token is not None:
            clash = sorted(_FORBIDDEN_WITH_SYNC_TOKEN & query.keys())
            if clash or query.get("showDeleted") == "false":
                raise _bad(
                    "Sync token cannot be used with other request restrictions.",
                    reason="syncTokenWithRequestRestrictions",
                    location=clash[0] if clash else "showDeleted",
                )
            self._read_sync_token(calendar, query)
        updated_min = _bound(query, "updatedMin")
        if updated_min is not None and updated_min < (self.now() - timedelta(days=30)).timestamp():
            raise ApiError(
                410,
                "updatedMinTooLongAgo",
                "The requested minimum modification time lies too far in the past.",
            )
        window = _window(query)
        if window[0] >= window[1]:
            raise _bad("The specified time range is empty.", reason="timeRangeEmpty", location="timeMax")

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
            window = _window(query)
            items = calendar.listing(
                is_expanded=is_expanded, window=window, shows_cancelled=query.get("showDeleted") == "true"
            )
            items = _filtered(items, query)
        size = min(_integer(query, "maxResults", 250), 2500)
        if self.short_pages:
            size = max(size // 2, 1)
        pages = [items[at : at + size] for at in range(0, len(items), size)] or [[]]
        if self.empty_pages:
            pages.insert(len(pages) // 2, [])
        gives_token = "orderBy" not in query and not self.no_sync_token
        return _Round(
            parameters=_parameters(query, without={"pageToken"}),
            head=_list_head(calendar, query),
            pages=pages,
            sync_token=self._make_sync_token(calendar, query, window) if gives_token else None,
        )

    def _answer_with_page(
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
            return _conditional(request, etag, gzip.compress(body, 1), {"Content-Encoding": "gzip"})
        return _conditional(request, etag, body)

    def _make_sync_token(self, calendar: Calendar, query: Mapping[str, str], window: Span) -> str:
        return self._signer.dumps(
            {
                "calendar": calendar.id,
                "generation": calendar.token_generation,
                "rev": calendar.rev,
                "parameters": _sync_parameters(query),
                "window": [None if bound in EVERYWHERE else bound for bound in window],
            }
        )

    def _read_sync_token(self, calendar: Calendar, query: Mapping[str, str]) -> tuple[int, Span]:
        try:
            token = self._signer.loads(query["syncToken"])
        except BadSignature:
            if self.garbled_sync_token_status == 410:
                raise _expired() from None
            raise _bad("Invalid sync token value.", reason="invalid", location="syncToken") from None
        if (token["calendar"], token["generation"]) != (calendar.id, calendar.token_generation):
            raise _expired()
        if token["parameters"] != _sync_parameters(query):
            # Google calls this undefined behaviour; here it is an error, so that tests see it.
            raise _bad("The parameters differ from those of the initial sync.", location="syncToken")
        first, last = token["window"]
        return token["rev"], (
            EVERYWHERE[0] if first is None else first,
            EVERYWHERE[1] if last is None else last,
        )

    async def _expire_tokens(self, _request: Request) -> Response:
        self.expire_tokens()
        return Response(status_code=204)

    # --- push channels -----------------------------------------------------------------------------------

    async def _watch(self, request: Request) -> Response:
        grant = self._check_calendar_token(request)
        calendar = self._calendar_of(request)
        if calendar.id in self.push_unsupported:
            text = "Push notifications are not supported by this resource."
            raise _bad(text, reason="pushNotSupportedForRequestedResource")
        channel = self._read_channel(await request.json(), calendar, grant)
        self.channels[channel.id] = channel
        uri = f"{request.base_url}calendar/v3/calendars/{quote(calendar.id, safe='')}/events?alt=json"
        if self.sync_message_first:
            await self._notify(channel, "sync", uri)
        else:
            self._send_soon(self._notify(channel, "sync", uri))
        answer = {
            "kind": "api#channel",
            "id": channel.id,
            "resourceId": channel.resource_id,
            "resourceUri": uri,
            "expiration": str(int(channel.expires_at.timestamp() * 1000)),
        }
        return _json(answer | ({"token": channel.token} if channel.token else {}))

    def _read_channel(self, asked: dict[str, Any], calendar: Calendar, grant: Grant) -> Channel:
        channel_id, address, token = asked.get("id"), asked.get("address"), asked.get("token")
        if not isinstance(channel_id, str) or not _CHANNEL_ID.fullmatch(channel_id):
            raise _bad("Invalid channel id.", reason="required", location="id")
        if channel_id in self.channels:
            raise _bad(f"Channel id {channel_id} not unique", reason="channelIdNotUnique")
        if asked.get("type") not in {"web_hook", "webhook"}:
            raise _bad("Unknown channel type.", reason="unknownChannelType")
        if not isinstance(address, str) or not address.startswith(("https://", "http://")):
            raise _bad("Invalid address.", reason="required", location="address")
        if not self.allow_http_push and not address.startswith("https://"):
            raise _bad(f"WebHook callback must be HTTPS: {address}", reason="push.webhookUrlNotHttps")
        if token is not None and (not isinstance(token, str) or len(token) > 256):
            raise _bad("Channel token too long.", reason="invalidParameter", location="token")
        lifetime = timedelta(seconds=int(asked.get("params", {}).get("ttl", 604_800)))
        if "expiration" in asked:
            lifetime = datetime.fromtimestamp(int(asked["expiration"]) / 1000, UTC) - self.now()
        return Channel(
            id=channel_id,
            resource_id=hashlib.sha256(calendar.id.encode()).hexdigest()[:27],
            calendar_id=calendar.id,
            address=address,
            token=token,
            expires_at=self.now() + min(lifetime, timedelta(days=7)),
            client_id=grant.client_id,
        )

    async def _stop(self, request: Request) -> Response:
        grant = self._check_calendar_token(request)
        asked = await request.json()
        channel = self.channels.get(str(asked.get("id")))
        is_known = (
            channel is not None
            and (channel.resource_id, channel.client_id) == (asked.get("resourceId"), grant.client_id)
            and channel.expires_at > self.now()
        )
        if channel is None or not is_known:
            raise ApiError(404, "notFound", f"Channel '{asked.get('id')}' not found for project 'fake'")
        del self.channels[channel.id]
        return Response(status_code=204)

    def _changed_calendar(self, calendar: Calendar) -> None:
        """Changes of one turn of the event loop are one batch, and one notification."""
        if not any(channel.calendar_id == calendar.id for channel in self.channels.values()):
            return
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._notify_changed)
        self._changed.add(calendar.id)

    def _notify_changed(self) -> None:
        changed, self._changed = self._changed, set()
        for channel in self.channels.values():
            if channel.calendar_id not in changed or channel.expires_at <= self.now():
                continue
            if self.lost_notifications > 0:
                self.lost_notifications -= 1
                continue
            for _ in range(2 if self.duplicate_notifications else 1):
                self._send_soon(
                    self._notify(channel, "exists", "https://www.googleapis.com/calendar/v3/fake")
                )

    def _send_soon(self, sending: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(sending)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def drain_notifications(self) -> None:
        """Waits until every notification of the changes so far has been sent or given up."""
        await asyncio.sleep(0)
        while self._sending:
            await asyncio.gather(*self._sending)

    async def _notify(self, channel: Channel, state: str, uri: str) -> None:
        headers = {
            "User-Agent": PUSH_AGENT,
            "X-Goog-Channel-ID": channel.id,
            "X-Goog-Channel-Expiration": format_datetime(channel.expires_at, usegmt=True),
            "X-Goog-Resource-ID": channel.resource_id,
            "X-Goog-Resource-URI": uri,
            "X-Goog-Resource-State": state,
            "X-Goog-Message-Number": str(channel.number),
        }
        if channel.token:
            headers["X-Goog-Channel-Token"] = channel.token
        channel.number += random.randint(1, 1000)
        async with operator_client(timeout=5.0) as client:
            for attempt in range(4):
                with contextlib.suppress(httpx.HTTPError):
                    answer = await client.post(channel.address, content=b"", headers=headers)
                    if answer.status_code not in {500, 502, 503, 504}:
                        return
                await asyncio.sleep(self.push_retry_seconds * 2**attempt)


# --- answers ---------------------------------------------------------------------------------------------


def _json(document: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")


async def _render_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError | OAuthError)
    return _json(error.body, error.status)


def _redirect(uri: str, query: Mapping[str, str]) -> Response:
    return RedirectResponse(f"{uri}{'&' if '?' in uri else '?'}{urlencode(query)}", 302)


def _conditional(
    request: Request, etag: str, body: bytes, headers: Mapping[str, str] | None = None
) -> Response:
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"ETag": etag})
    return Response(body, media_type="application/json", headers={"ETag": etag, **(headers or {})})


# --- list parameters -------------------------------------------------------------------------------------


def _refuse_unknown(query: Mapping[str, str], known: set[str]) -> None:
    for name in query:
        if name not in known:
            raise _bad(f"Unknown parameter {name}.", reason="invalidParameter", location=name)


def _integer(query: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(query.get(name, default))
    except ValueError:
        raise _bad(f"Invalid integer value for {name}.", reason="invalidParameter", location=name) from None


def _bound(query: Mapping[str, str], name: str) -> float | None:
    """A time bound in seconds; milliseconds are ignored ("Event lists")."""
    value = query.get(name)
    if value is None:
        return None
    if not _BOUND.fullmatch(value):
        raise _bad("Bad Request", reason="badRequest", location=name)
    return datetime.fromisoformat(value.upper()).replace(microsecond=0).timestamp()


def _window(query: Mapping[str, str]) -> Span:
    first, last = _bound(query, "timeMin"), _bound(query, "timeMax")
    return EVERYWHERE[0] if first is None else first, EVERYWHERE[1] if last is None else last


def _parameters(query: Mapping[str, str], *, without: set[str]) -> frozenset[tuple[str, str]]:
    return frozenset((name, value) for name, value in query.items() if name not in without)


def _sync_parameters(query: Mapping[str, str]) -> list[list[str]]:
    """What must stay the same from the initial sync on; `showDeleted` left out and true differ, too."""
    free = {"maxResults", "pageToken", "syncToken", "timeMin", "timeMax", "updatedMin", *_COMMON_PARAMETERS}
    return sorted([name, value] for name, value in _parameters(query, without=free))


def _filtered(items: list[Item], query: Mapping[str, str]) -> list[Item]:
    if "iCalUID" in query:
        items = [item for item in items if item.data().get("iCalUID") == query["iCalUID"]]
    if "q" in query:
        items = [item for item in items if query["q"].lower() in str(item.data().get("summary", "")).lower()]
    if "eventTypes" in query:
        items = [item for item in items if item.data().get("eventType", "default") == query["eventTypes"]]
    for kind in ("private", "shared"):
        wanted = query.get(f"{kind}ExtendedProperty")
        if wanted is not None:
            name, _, value = wanted.partition("=")
            items = [
                item
                for item in items
                if item.data().get("extendedProperties", {}).get(kind, {}).get(name) == value
            ]
    updated_min = _bound(query, "updatedMin")
    if updated_min is not None:
        items = [
            item
            for item in items
            if datetime.fromisoformat(item.data()["updated"]).timestamp() >= updated_min
        ]
    if query.get("orderBy") == "startTime":
        items = sorted(items, key=lambda item: item.span[0])
    if query.get("orderBy") == "updated":
        items = sorted(items, key=lambda item: item.rev)
    return items


def _list_head(calendar: Calendar, query: Mapping[str, str]) -> bytes:
    return orjson.dumps(
        {
            "kind": "calendar#events",
            "etag": f'"p33g{calendar.rev}"',
            "summary": calendar.summary,
            "description": "",
            "updated": calendar.now().strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "timeZone": query.get("timeZone", calendar.time_zone),
            "accessRole": calendar.access_role,
            "defaultReminders": [],
        }
    )


def _calendar_entry(calendar: Calendar) -> dict[str, Any]:
    entry = {
        "kind": "calendar#calendarListEntry",
        "etag": '"1500000000000000"',
        "id": calendar.id,
        "summary": calendar.summary,
        "timeZone": calendar.time_zone,
        "accessRole": calendar.access_role,
        "selected": True,
    }
    return entry | ({"primary": True} if calendar.is_primary else {})
