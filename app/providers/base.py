"""The interface between the sync engine and calendar providers: changes, errors, tokens.

A provider turns its own wire format into `RemoteEvent`s and its own failures into the errors below.
It knows neither the database nor the other providers.

Errors:

    ProviderError
    ├── CursorExpired           the cursor is no longer accepted: the engine starts a full round
    ├── ConnectionLost          only the account's owner can fix it. With `is_final`, the token endpoint refused, or there
    │   │                       was a claims challenge: the calendar is disconnected at once. Without, the calendar's
    │   │                       own address refused: it is disconnected once that has lasted for hours
    │   ├── CredentialsRevoked  the grant has ended, or a fresh token is not accepted
    │   ├── AccessDenied        the grant lacks the calendar scope, or the account has no calendar
    │   └── CalendarRemoved     the calendar itself returns 404
    ├── ClientMisconfigured     the operator's OAuth client is wrong: no calendar is disconnected
    └── Transient               try again later
        ├── NotAsked            held back here, before any request: says nothing about the calendar
        ├── RateLimited         `retry_after` seconds, where the provider said so
        └── Unavailable         outage, timeout, HTML instead of JSON, a feed that is broken right now
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from app.events.data import KnownEvent, RemoteEvent, Window


class ProviderError(Exception):
    """Base of all errors that a provider raises. `code` is a stable word for logs and metrics.

    Messages are shown to people and logged: never put a token, a secret or a feed's address in one.
    """

    code = "provider_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class CursorExpired(ProviderError):
    code = "cursor_expired"


class ConnectionLost(ProviderError):
    code = "connection_lost"

    def __init__(self, message: str, *, code: str | None = None, is_final: bool = False) -> None:
        super().__init__(message, code=code)
        self.is_final = is_final


class CredentialsRevoked(ConnectionLost):
    code = "credentials_revoked"


class AccessDenied(ConnectionLost):
    code = "access_denied"


class CalendarRemoved(ConnectionLost):
    code = "calendar_gone"


class ClientMisconfigured(ProviderError):
    code = "client_misconfigured"
    scope: str | None = None  # of the client's breaker, where the token endpoint said so


class Transient(ProviderError):
    code = "transient"

    def __init__(self, message: str, *, code: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class NotAsked(Transient):
    code = "not_asked"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retry_after: float | None = None,
        scope: str | None = None,
    ) -> None:
        """`scope`: of the breaker that it waits for (app/outages/breakers.py)."""
        super().__init__(message, code=code, retry_after=retry_after)
        self.scope = scope


class RateLimited(Transient):
    code = "rate_limited"


class Unavailable(Transient):
    code = "unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePage:
    """A part of one round of changes. A round ends with exactly one page that has `is_last`.

    `events`      created or changed (a later page or entry of the same id wins)
    `removed`     platform_uuids that no longer exist; an id may be a series' id: its instances go with it. With the
                  `raw` of the cancelled event, where the provider sent more than its id
    `unlisted`    platform_uuids that an earlier page of this snapshot had, and that are not in it after all
    `is_snapshot` the round lists everything in the window: what is missing from it was removed, or moved beyond
                  the window (see `CalendarProvider.reread`); the same on every page of a round
    `next_cursor` on the last page: where the next round starts; None makes that one a full round again
    `complete_until` on the last page of a snapshot: some events that start later were too many to list; None where
                  the whole window is listed
    """

    events: list[RemoteEvent] = field(default_factory=list)
    removed: dict[str, str | None] = field(default_factory=dict)
    unlisted: list[str] = field(default_factory=list)
    is_snapshot: bool
    is_last: bool = False
    next_cursor: str | None = None
    complete_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reread:
    """The state of events that a snapshot left out. An event in none of the three could not be read.

    `found`    they exist, as these
    `removed`  by platform_uuid, as in `ChangePage`
    `unread`   platform_uuids that were not asked for, or have no result for now: ask again in the next round
    """

    found: list[RemoteEvent] = field(default_factory=list)
    removed: dict[str, str | None] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RemoteCalendar:
    """One calendar that an account can read. `id` is what a calendar's `platform_uuid` may be set to."""

    id: str
    name: str
    is_primary: bool = False
    time_zone: str | None = None


@dataclass(frozen=True, slots=True)
class FreshToken:
    """A grant of a token endpoint. `expires_in` is in seconds from now.

    `refresh_token` None means that the old one stays in use; `scope` is space separated, None where unsaid.
    """

    access_token: str = field(repr=False)
    expires_in: int
    refresh_token: str | None = field(default=None, repr=False)
    scope: str | None = None


class TokenSource(Protocol):
    """Access tokens of one calendar; the only source of them for a provider."""

    async def get(self, *, rejected: str | None = None) -> str:
        """The cached token, or a fresh one when it is about to expire or equals `rejected`.

        Raises CredentialsRevoked, ClientMisconfigured, RateLimited, Unavailable.
        """
        ...


class CalendarProvider(Protocol):
    """One calendar at one provider, for the length of one sync."""

    def changes(self, *, cursor: str | None, window: Window) -> AsyncIterator[ChangePage]:
        """All changes since `cursor`, or with None everything that overlaps `window`.

        With a cursor, changes outside the window may be included: the engine filters.
        Raises any ProviderError while it is being iterated.
        """
        ...

    async def reread(self, events: Sequence[KnownEvent]) -> Reread:
        """Read events that the snapshot just read with `changes` left out, wherever they are now.

        Bounded: of very many, some are `unread`; the first ones are asked for first.
        Raises CredentialsRevoked, ClientMisconfigured.
        """
        ...
