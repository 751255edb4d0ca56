"""iCalendar feeds: a calendar behind a secret address.

See docs/reference/icalendar.md, "Incomplete feeds" and "Unchanged feeds".

A feed has no change list. Every round reads the whole file and is a snapshot, unless the server or the digest of the
file says that nothing changed. A broken or incomplete response deletes nothing: there is a snapshot
only of a complete calendar.

The feed's address is a secret, which no error and no log line may hold.
"""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import orjson
import structlog

from app.core.fetch import FetchFailed, Response, fetch, retry_after
from app.core.http import httpx
from app.events import limits
from app.events.data import KnownEvent, Window
from app.meeting_links.extract import DEFAULT_HOSTS, MeetingHosts
from app.providers.base import (
    AccessDenied,
    CalendarRemoved,
    ChangePage,
    ProviderError,
    RateLimited,
    Reread,
    Unavailable,
)
from app.providers.ics.events import Reader
from app.providers.ics.process import FeedJob, too_large
from app.providers.ics.readers import FeedReaders

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 20 * 1024 * 1024
_DEADLINE_SECONDS = 60.0
_MAX_REDIRECTS = 5
_LAST_PORT = 65_535
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# A file that was written less than this before it was sent may be written again within the same second.
_LAST_MODIFIED_SETTLES = timedelta(seconds=60)


def normalize_feed_url(value: str, *, allow_http: bool = False) -> str:
    """A feed's address as it is stored: `webcal://` becomes https, the fragment is dropped.

    Raises ValueError with a sentence for the caller; the address is not in it.
    """
    text = value.strip()
    if len(text) > limits.URL:
        raise ValueError(f"A feed's address has at most {limits.URL} characters.")
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in {"webcal", "webcals", "https", "http"}:
        raise ValueError("A feed's address starts with https:// or webcal://.")
    if scheme == "http" and not allow_http:
        raise ValueError(
            "A feed's address must be https://, so that no one on the way can read the calendar."
        )
    if not text.isprintable() or " " in text:
        raise ValueError("A feed's address holds no spaces and no control characters.")
    text = f"{'http' if scheme == 'http' else 'https'}://{rest.partition('#')[0]}"
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        raise ValueError("This is not a valid address.") from None
    if (url.port or 0) > _LAST_PORT:
        raise ValueError("This is not a valid address: its port is too high.")
    if not url.host:
        raise ValueError("A feed's address needs a host, as in https://calendar.example/feed.ics.")
    return text


class _Cursor(NamedTuple):
    """The marks of an unchanged feed: the two validators of HTTP, and the digest of the calendar itself."""

    etag: str | None = None
    last_modified: str | None = None
    digest: str | None = None

    @classmethod
    def load(cls, text: str | None) -> "_Cursor":
        try:
            values: Any = orjson.loads(text) if text else {}
        except orjson.JSONDecodeError:
            values = {}
        known = values if isinstance(values, dict) else {}
        texts = (known.get(name) for name in cls._fields)
        return cls(*(value if isinstance(value, str) and value.isascii() else None for value in texts))

    def dump(self) -> str:
        return orjson.dumps(self._asdict()).decode()

    def headers(self) -> dict[str, str]:
        pairs = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in pairs.items() if value}


class IcsFeed:
    """One feed; implements `app.providers.base.CalendarProvider`.

    `client` comes from `app.core.http.public_client`; `readers` serve the projects in turn.
    `allow_http` lets the feed, and what it redirects to, be http:// (ALLOW_PRIVATE_NETWORK_TARGETS). `owner_email`
    is the attendee who is the calendar's owner.
    """

    def __init__(
        self,
        *,
        client: httpx.AsyncClient,
        readers: FeedReaders,
        project_id: str,
        feed_url: str,
        owner_email: str | None = None,
        hosts: MeetingHosts = DEFAULT_HOSTS,
        allow_http: bool = False,
    ) -> None:
        self._client = client
        self._readers = readers
        self._project_id = project_id
        self._feed_url = feed_url
        self._reader = Reader(owner_email=owner_email, hosts=hosts)
        self._allow_http = allow_http
        self._last_job: FeedJob | None = None

    async def changes(self, *, cursor: str | None, window: Window) -> AsyncIterator[ChangePage]:
        """See `CalendarProvider.changes`.

        With a cursor, a feed that did not change gives one page without events.

        Raises AccessDenied, CalendarRemoved, RateLimited, and Unavailable with one of the codes `address_refused`,
        `connection_failed`, `timeout`, `feed_empty`, `feed_not_ics`, `feed_truncated`, `feed_too_large`,
        `feed_too_complex`, `feed_reader_died`, `too_many_redirects`, `unexpected_status`.
        """
        known = _Cursor.load(cursor)
        response = await self._fetch(known)
        if response is None:
            yield ChangePage(is_snapshot=False, is_last=True, next_cursor=cursor)
            return
        job = FeedJob(
            body=response.body,
            encoding=response.headers.get("Content-Encoding", "").strip().lower(),
            max_bytes=MAX_BODY_BYTES,
            window=window,
            reader=self._reader,
            log_context=structlog.contextvars.get_contextvars(),
        )
        read = await self._readers.read(job, project_id=self._project_id, known_digest=known.digest)
        next_cursor = _Cursor(
            etag=response.headers.get("ETag"), last_modified=_settled(response.headers), digest=read.digest
        ).dump()
        self._last_job = job
        del response, job
        if read.pages is None:
            yield ChangePage(is_snapshot=False, is_last=True, next_cursor=next_cursor)
            return
        count = max(len(read.pages), 1)
        for number in range(count):
            is_last = number + 1 == count
            yield ChangePage(
                events=await read.events(number) if read.pages else [],
                is_snapshot=True,
                is_last=is_last,
                next_cursor=next_cursor if is_last else None,
                complete_until=read.complete_until if is_last else None,
            )

    async def reread(self, events: Sequence[KnownEvent]) -> Reread:
        """See `CalendarProvider.reread`: all of them, in the file that was read last."""
        wanted = [event.platform_uuid for event in events]
        job, self._last_job = self._last_job, None
        if job is None:
            return Reread(unread=wanted)
        try:
            read = await self._readers.read(
                replace(job, wanted=tuple(events)), project_id=self._project_id, known_digest=None
            )
        except Unavailable as err:
            log.warning("ics.not_reread", code=err.code)
            return Reread(unread=wanted)
        pages = [await read.events(number) for number in range(len(read.pages or ()))]
        found = {event.platform_uuid: event for page in pages for event in page}
        return Reread(found=list(found.values()), removed={one: None for one in wanted if one not in found})

    async def _fetch(self, known: _Cursor) -> Response | None:
        """The response with the feed, or None if the feed did not change."""
        try:
            return await self._follow(known.headers())
        except FetchFailed as err:
            failure = _unavailable(err)
        raise failure

    async def _follow(self, conditions: dict[str, str]) -> Response | None:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        url = origin = httpx.URL(self._feed_url)
        for _ in range(_MAX_REDIRECTS + 1):
            is_allowed = url.scheme == "https" or (self._allow_http and url.scheme == "http")
            if not is_allowed or (url.port or 0) > _LAST_PORT:
                raise Unavailable(
                    "The feed's address, or where it leads, is not https://.", code="address_refused"
                )
            response = await self._send(url, origin, conditions, within_seconds=deadline - time.monotonic())
            if response.status == 304 and conditions:
                return None
            if response.status == 200:
                return response
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                raise _refusal(response.status, response.headers)
            url = _redirected(url, location)
        raise Unavailable("The feed redirects too often.", code="too_many_redirects")

    async def _send(
        self, url: httpx.URL, origin: httpx.URL, conditions: dict[str, str], *, within_seconds: float
    ) -> Response:
        # A user and password belong to the host for which they were given, and not to one that a redirect names.
        auth = (
            httpx.BasicAuth(origin.username, origin.password)
            if origin.userinfo and _is_home(url, origin)
            else None
        )
        return await fetch(
            self._client,
            "GET",
            url.copy_with(userinfo=b"", fragment=None),
            headers={"Accept": "text/calendar, */*;q=0.5", **conditions},
            auth=auth,
            max_bytes=MAX_BODY_BYTES,
            deadline_seconds=within_seconds,
            decode=False,  # a process of FeedReaders does it
            read_body_of={200},
        )


def _unavailable(err: FetchFailed) -> Unavailable:
    if err.code == "too_large":
        return too_large(MAX_BODY_BYTES)
    if err.code == "timeout":
        return Unavailable("The feed's server did not respond in time.", code="timeout")
    if err.code == "refused":
        return Unavailable("The feed's address does not lead to a public server.", code="address_refused")
    return Unavailable(f"The feed's server could not be reached ({err.cause}).", code="connection_failed")


def _redirected(url: httpx.URL, location: str) -> httpx.URL:
    """The address that a redirect names. Raises Unavailable, without that address."""
    try:
        return url.join(location)
    except (httpx.InvalidURL, UnicodeError) as err:
        cause = type(err).__name__
    raise Unavailable(f"The feed's server could not be reached ({cause}).", code="connection_failed")


def _is_home(url: httpx.URL, origin: httpx.URL) -> bool:
    return url.host == origin.host and (
        (url.scheme, url.port) == (origin.scheme, origin.port) or (url.scheme, url.port) == ("https", None)
    )


def _settled(headers: httpx.Headers) -> str | None:
    """`Last-Modified` if no change in the same second can be lost by it (RFC 9110 8.8.2.2)."""
    text = headers.get("Last-Modified")
    try:
        age = parsedate_to_datetime(headers["Date"]) - parsedate_to_datetime(headers["Last-Modified"])
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    return text if age >= _LAST_MODIFIED_SETTLES else None


def _refusal(status: int, headers: httpx.Headers) -> ProviderError:
    """The error for a status other than 200: only what a person must fix ends the connection.

    See docs/reference/http-api.md, "Disconnecting".
    """
    if status in {404, 410}:
        return CalendarRemoved("The feed is not there any more: its secret address was perhaps reset.")
    is_passing = "Retry-After" in headers or "cf-mitigated" in headers  # a firewall's 403, not the calendar's
    if status == 401 or (status == 403 and not is_passing):
        return AccessDenied("The feed's address is refused: it needs another secret, or a user and password.")
    if status == 429 or (status == 403 and is_passing):
        return RateLimited("The feed's server asks to slow down.", retry_after=retry_after(headers))
    return Unavailable(
        f"The feed's server returned HTTP status {status}.",
        code="unexpected_status",
        retry_after=retry_after(headers),
    )
