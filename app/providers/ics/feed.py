"""iCalendar feeds: a calendar behind a secret address (contract/http-api.md 3, providers.md C.1).

A feed has no change list. Every round reads the whole file and is a snapshot, unless the server or the digest of the
file says that nothing changed. What is missing or broken in an answer deletes nothing: a snapshot is given only
of a complete calendar.

The feed's address is a secret. It stands in the errors of the HTTP client, so none of those is let out of here.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import orjson
import structlog

from app.core.http import TargetRefused, httpx
from app.core.http_json import retry_after
from app.events import limits
from app.events.data import KnownEvent, Window
from app.ical.event_fields import Reader
from app.meeting_links.extract import DEFAULT_HOSTS, MeetingHosts
from app.providers.base import (
    AccessDenied,
    CalendarGone,
    ChangePage,
    ProviderError,
    RateLimited,
    Reread,
    Unavailable,
)
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
    """A feed's address as it is stored: `webcal://` means https; without fragment. User and password are allowed.

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
            "A feed's address must be https://, so that nobody on the way can read the calendar."
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
    """What tells an unchanged feed: the two validators of HTTP, and the digest of the calendar itself."""

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


@dataclass(frozen=True, slots=True)
class _Answer:
    headers: httpx.Headers
    body: bytes


class IcsFeed:
    """One feed; implements `app.providers.base.CalendarProvider`.

    `client` comes from `app.core.http.public_client`; `readers` serve the projects by turns. `allow_http` lets the feed, and what it redirects to, be
    http:// (ALLOW_PRIVATE_NETWORK_TARGETS). `owner_email` tells which attendee is the calendar's owner.
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
        """See `CalendarProvider.changes`. With a cursor, a feed that did not change gives one page without events.

        Raises AccessDenied, CalendarGone, RateLimited, and Unavailable with one of the codes `address_refused`,
        `connection_failed`, `timeout`, `feed_empty`, `feed_not_ics`, `feed_truncated`, `feed_too_large`,
        `feed_too_complex`, `feed_reader_died`, `too_many_redirects`, `unexpected_status`.
        """
        known = _Cursor.load(cursor)
        answer = await self._fetch(known)
        if answer is None:
            yield ChangePage(is_snapshot=False, is_last=True, next_cursor=cursor)
            return
        job = FeedJob(
            body=answer.body,
            encoding=answer.headers.get("Content-Encoding", "").strip().lower(),
            max_bytes=MAX_BODY_BYTES,
            window=window,
            reader=self._reader,
            log_context=structlog.contextvars.get_contextvars(),
        )
        read = await self._readers.read(job, project_id=self._project_id, known_digest=known.digest)
        next_cursor = _Cursor(
            etag=answer.headers.get("ETag"), last_modified=_settled(answer.headers), digest=read.digest
        ).dump()
        self._last_job = job
        del answer, job
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

    async def _fetch(self, known: _Cursor) -> _Answer | None:
        """The feed, or None if it did not change."""
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                return await self._follow(known.headers())
        except (TimeoutError, httpx.TimeoutException):
            problem, code = "The feed's server did not answer in time.", "timeout"
        except TargetRefused:
            problem, code = "The feed's address does not lead to a public server.", "address_refused"
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as err:
            problem, code = (
                f"The feed's server could not be reached ({type(err).__name__}).",
                "connection_failed",
            )
        # Raised out here, so that the client's error is not even the context of this one.
        raise Unavailable(problem, code=code)

    async def _follow(self, conditions: dict[str, str]) -> _Answer | None:
        origin = httpx.URL(self._feed_url)
        url = origin
        for _ in range(_MAX_REDIRECTS + 1):
            is_allowed = url.scheme == "https" or (self._allow_http and url.scheme == "http")
            if not is_allowed or (url.port or 0) > _LAST_PORT:
                raise Unavailable(
                    "The feed's address, or where it leads, is not https://.", code="address_refused"
                )
            response = await self._send(url, origin, conditions)
            try:
                if response.status_code == 304 and conditions:
                    return None
                if response.status_code == 200:
                    return _Answer(response.headers, await _read_body(response))
                location = response.headers.get("Location")
                if response.status_code not in _REDIRECTS or not location:
                    raise _refusal(response.status_code, response.headers)
            finally:
                await response.aclose()
            url = url.join(location)
        raise Unavailable("The feed redirects too often.", code="too_many_redirects")

    async def _send(self, url: httpx.URL, origin: httpx.URL, conditions: dict[str, str]) -> httpx.Response:
        # A user and password belong to the host for which they were given, and only to an address typed in by hand.
        auth = (
            httpx.BasicAuth(origin.username, origin.password)
            if origin.userinfo and _is_home(url, origin)
            else None
        )
        request = self._client.build_request(
            "GET",
            url.copy_with(userinfo=b"", fragment=None),
            # gzip alone, because it can be decoded in bounded memory.
            headers={"Accept": "text/calendar, */*;q=0.5", "Accept-Encoding": "gzip", **conditions},
        )
        # The client is shared by all feeds: what one server set must not reach it in another's name.
        request.headers.pop("Cookie", None)
        return await self._client.send(request, auth=auth, stream=True, follow_redirects=False)


def _is_home(url: httpx.URL, origin: httpx.URL) -> bool:
    return url.host == origin.host and (
        (url.scheme, url.port) == (origin.scheme, origin.port) or (url.scheme, url.port) == ("https", None)
    )


async def _read_body(response: httpx.Response) -> bytes:
    """The body as transferred: the sizes before and after decoding are both bounded. Raises Unavailable."""
    chunks = []
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise too_large(MAX_BODY_BYTES)
        chunks.append(chunk)
    return b"".join(chunks)


def _settled(headers: httpx.Headers) -> str | None:
    """`Last-Modified`, if it is safe to ask by it (RFC 9110 8.8.2.2): else a change in the same second is lost."""
    text = headers.get("Last-Modified")
    try:
        age = parsedate_to_datetime(headers["Date"]) - parsedate_to_datetime(headers["Last-Modified"])
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    return text if age >= _LAST_MODIFIED_SETTLES else None


def _refusal(status: int, headers: httpx.Headers) -> ProviderError:
    """What a status other than 200 means (providers.md F.2: only what a person must mend ends the connection)."""
    if status in {404, 410}:
        return CalendarGone("The feed is not there any more: its secret address was perhaps reset.")
    is_passing = "Retry-After" in headers or "cf-mitigated" in headers  # a firewall's 403, not the calendar's
    if status == 401 or (status == 403 and not is_passing):
        return AccessDenied("The feed's address is refused: it needs another secret, or a user and password.")
    if status == 429 or (status == 403 and is_passing):
        return RateLimited("The feed's server asks to slow down.", retry_after=retry_after(headers))
    return Unavailable(
        f"The feed's server answered with HTTP status {status}.",
        code="unexpected_status",
        retry_after=retry_after(headers),
    )
