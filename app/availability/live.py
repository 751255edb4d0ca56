"""Busy times from the provider, for the ranges that the mirror does not cover.

See docs/reference/google.md and docs/reference/microsoft.md, "Free/busy".

No transaction is open during a call. Nothing is stored: a refusal here is no evidence about the calendar, and neither
disconnects it nor counts in an outage.
"""

import asyncio
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from app.availability.turns import Shared, shared
from app.calendars.account import find_connected
from app.core.crypto import SecretBox
from app.core.db import Sessions, reading
from app.core.http import httpx
from app.credentials.account import ConnectedCalendar
from app.credentials.budgets import Budgets, MeteredTokens
from app.credentials.store import CredentialStore
from app.outages.breakers import Breakers, find_open
from app.providers.base import NotAsked, ProviderError, RateLimited, TokenSource, Unavailable
from app.providers.free_busy import BusyStatus, BusyTime, Range, cut_to, union
from app.providers.google.free_busy import GoogleFreeBusy
from app.providers.microsoft.free_busy import MicrosoftFreeBusy
from app.settings import Settings

__all__ = ["BusyStatus", "BusyTime", "LiveAccess", "LiveRequest", "LiveResult", "read_live"]

log = structlog.get_logger(__name__)

# For one `read_live`, whatever the providers do.
_WITHIN_SECONDS = 8.0
# Accounts that are read at the same time, for one project and for all.
_PROJECT_AT_ONCE = 8
_AT_ONCE = 64
_SLOW_DOWN_SECONDS = 10.0
# How long an account is not asked by getSchedule again after that was of no use.
_NO_SCHEDULE_SECONDS = 3600.0
_ACCOUNTS_KEPT = 10_000
_CLOSE_WITHIN_SECONDS = 5.0

_DELETED = "This calendar does not exist any more."
_DISCONNECTED = "The calendar is disconnected: only what was synced is known."
_NOT_LIVE = {
    "ics": "A feed cannot be asked for busy times: only what was synced is known.",
    "local": "A local calendar has no provider to ask: only what is stored here is known.",
}
_OUTAGE = "The provider fails for many calendars at the moment, and is not asked until it works again."
_PUT_OFF = "The provider asked to slow down for this calendar: try again later."
_TOO_LATE = "The provider did not respond in time."
_INTERNAL = "The busy times could not be read."

# By credentials, and by the token that the provider rejected.
_Refreshes = dict[tuple[str, str | None], asyncio.Task[str]]


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """The ranges of a calendar that the mirror does not cover. Their times are aware."""

    calendar_id: str
    ranges: Sequence[Range]


@dataclass(frozen=True, slots=True)
class LiveResult:
    """The busy times within the ranges, or why they are not known. Exactly one is None."""

    busy: Sequence[BusyTime] | None
    error: str | None


class LiveAccess:
    """What live reads need; one per process.

    It also keeps which accounts must not be asked before when, and which are of no use to getSchedule.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        sessions: Sessions,
        read_sessions: Sessions,
        box: SecretBox,
        client: httpx.AsyncClient,
    ) -> None:
        self.settings = settings
        self.read_sessions = read_sessions
        self.client = client
        self.within_seconds = _WITHIN_SECONDS
        self._budgets = Budgets(settings.required_redis_url())
        self._store = CredentialStore(
            settings=settings, sessions=sessions, box=box, client=client, breakers=Breakers(sessions)
        )
        self._refreshes: _Refreshes = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._project_slots: Shared = {}
        self._account_turns: Shared = {}
        self._put_off = _Until()
        self._without_schedule = _Until()

    def tokens(self, project_id: str, calendar: ConnectedCalendar) -> TokenSource:
        """The access tokens of the calendar's account, within its budget."""
        assert calendar.credentials_id is not None
        return MeteredTokens(
            _UncancelledTokens(self._store, calendar.credentials_id, self._refreshes),
            self._budgets,
            platform=calendar.platform,
            account=calendar.owner_email or calendar.credentials_id,
            client_id=calendar.client_id or calendar.credentials_id,
            live_of=project_id,
        )

    @asynccontextmanager
    async def turn(self, project_id: str, account: str) -> AsyncIterator[None]:
        """Wait until this account may be asked: one request at a time for each, a few at a time for a project."""
        async with (
            shared(self._account_turns, account, 1),
            shared(self._project_slots, project_id, _PROJECT_AT_ONCE),
            self._slots,
        ):
            yield

    def check_put_off(self, account: str) -> None:
        """Raise NotAsked if the provider has asked to slow down for this account."""
        if self._put_off.has(account):
            raise NotAsked(_PUT_OFF)

    def note(self, account: str, err: ProviderError) -> None:
        """Remember that the provider asks to slow down."""
        if isinstance(err, RateLimited):
            self._put_off.add(account, err.retry_after or _SLOW_DOWN_SECONDS)
        elif isinstance(err, Unavailable) and err.retry_after:
            self._put_off.add(account, err.retry_after)

    def uses_schedule(self, account: str) -> bool:
        return not self._without_schedule.has(account)

    def note_no_schedule(self, account: str) -> None:
        self._without_schedule.add(account, _NO_SCHEDULE_SECONDS)

    async def aclose(self) -> None:
        """Wait for the refreshes of tokens that go on after their request has ended."""
        if self._refreshes:
            _, late = await asyncio.wait(self._refreshes.values(), timeout=_CLOSE_WITHIN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._budgets.aclose()


async def read_live(
    access: LiveAccess, project_id: str, requests: Sequence[LiveRequest]
) -> dict[str, LiveResult]:
    """Ask the providers for the busy times of these calendars; returns a result for each.

    It ends after `access.within_seconds`: what is not known by then has an error. The caller holds no session.
    """
    wanted: dict[str, list[Range]] = defaultdict(list)
    for request in requests:
        wanted[request.calendar_id] += request.ranges
    ranges_of = {calendar_id: union(ranges) for calendar_id, ranges in wanted.items()}
    results = {calendar_id: LiveResult(None, _TOO_LATE) for calendar_id in ranges_of}
    async with reading(access.read_sessions) as session:
        found = {
            calendar.calendar_id: calendar
            for calendar in await find_connected(session, project_id, list(ranges_of))
        }
        held = await find_open(session, {calendar.platform for calendar in found.values()})
    accounts: dict[str, list[ConnectedCalendar]] = defaultdict(list)
    for calendar_id, ranges in ranges_of.items():
        calendar = found.get(calendar_id)
        if calendar is None:
            results[calendar_id] = LiveResult(None, _DELETED)
        elif (refusal := _refusal(calendar, held)) is not None:
            results[calendar_id] = LiveResult(None, refusal)
        elif not ranges:
            results[calendar_id] = LiveResult((), None)
        elif calendar.credentials_id is not None:
            accounts[calendar.credentials_id].append(calendar)
    tasks = [
        asyncio.create_task(_read_account(access, project_id, calendars, ranges_of, results))
        for calendars in accounts.values()
    ]
    try:
        if tasks:
            await asyncio.wait(tasks, timeout=access.within_seconds)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return results


def _refusal(calendar: ConnectedCalendar, held: set[str]) -> str | None:
    """Why the calendar's provider is not asked; None if it is."""
    if calendar.platform in _NOT_LIVE:
        return _NOT_LIVE[calendar.platform]
    if calendar.state != "connected" or calendar.credentials_id is None:
        return _DISCONNECTED
    if calendar.platform in held:
        return _OUTAGE
    return _PUT_OFF if calendar.put_off_until is not None else None


async def _read_account(
    access: LiveAccess,
    project_id: str,
    calendars: Sequence[ConnectedCalendar],
    ranges_of: Mapping[str, Sequence[Range]],
    results: dict[str, LiveResult],
) -> None:
    """Read the calendars of one account into `results`, each as soon as it is known."""
    account = _account(calendars[0])
    read = _read_google if calendars[0].platform == "google" else _read_microsoft
    left = {calendar.calendar_id for calendar in calendars}
    tokens = access.tokens(project_id, calendars[0])
    codes: Counter[str] = Counter()

    def note(calendar_id: str, result: list[BusyTime] | ProviderError) -> None:
        if isinstance(result, ProviderError):
            access.note(account, result)
            codes[result.code] += 1
        results[calendar_id] = _result(result)

    try:
        async with access.turn(project_id, account):
            async for calendar_id, result in read(access, tokens, calendars, ranges_of):
                note(calendar_id, result)
                left.discard(calendar_id)
    except ProviderError as err:
        for calendar_id in left:
            note(calendar_id, err)
    except Exception as err:
        log.exception("live_read_crashed", error=type(err).__name__)
        for calendar_id in left:
            results[calendar_id] = LiveResult(None, _INTERNAL)
    if codes:
        log.info("live_read_failed", platform=calendars[0].platform, codes=dict(codes))


async def _read_google(
    access: LiveAccess,
    tokens: TokenSource,
    calendars: Sequence[ConnectedCalendar],
    ranges_of: Mapping[str, Sequence[Range]],
) -> AsyncIterator[tuple[str, list[BusyTime] | ProviderError]]:
    access.check_put_off(_account(calendars[0]))
    google = GoogleFreeBusy(
        client=access.client,
        tokens=tokens,
        base_url=access.settings.google_api_base_url,
        deadline_seconds=access.within_seconds,
    )
    wanted: dict[str, list[Range]] = defaultdict(list)
    for calendar in calendars:
        wanted[calendar.platform_uuid or "primary"] += ranges_of[calendar.calendar_id]
    found = await google.read(wanted)
    for calendar in calendars:
        result = found[calendar.platform_uuid or "primary"]
        if not isinstance(result, ProviderError):
            # Another calendar here may be the same one of Google's, asked for other ranges.
            result = cut_to(result, ranges_of[calendar.calendar_id])
        yield calendar.calendar_id, result


async def _read_microsoft(
    access: LiveAccess,
    tokens: TokenSource,
    calendars: Sequence[ConnectedCalendar],
    ranges_of: Mapping[str, Sequence[Range]],
) -> AsyncIterator[tuple[str, list[BusyTime] | ProviderError]]:
    account = _account(calendars[0])
    graph = MicrosoftFreeBusy(
        client=access.client,
        tokens=tokens,
        base_url=access.settings.microsoft_graph_base_url,
        deadline_seconds=access.within_seconds,
    )
    for calendar in calendars:
        access.check_put_off(account)
        ranges = ranges_of[calendar.calendar_id]
        try:
            busy = None
            address = calendar.owner_email
            if calendar.platform_uuid is None and address and access.uses_schedule(account):
                busy = await graph.read_schedule(address, ranges)
                if busy is None:
                    access.note_no_schedule(account)
            if busy is None:
                busy = await graph.read_view(calendar.platform_uuid, ranges)
        except (NotAsked, RateLimited):
            raise
        except ProviderError as err:
            yield calendar.calendar_id, err
        else:
            yield calendar.calendar_id, busy


def _account(calendar: ConnectedCalendar) -> str:
    """What stands for the calendar's account."""
    assert calendar.credentials_id is not None
    return calendar.credentials_id


def _result(result: list[BusyTime] | ProviderError) -> LiveResult:
    if not isinstance(result, ProviderError):
        return LiveResult(result, None)
    return LiveResult(None, _TOO_LATE if result.code == "timeout" else result.message)


class _Until:
    """Names that count for some time each; the oldest are forgotten first."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def has(self, name: str) -> bool:
        return self._until.get(name, 0.0) > time.monotonic()

    def add(self, name: str, seconds: float) -> None:
        self._until[name] = time.monotonic() + seconds
        self._until.move_to_end(name)
        if len(self._until) > _ACCOUNTS_KEPT:
            self._until.popitem(last=False)


class _UncancelledTokens:
    """A TokenSource whose refreshes go on when the request is over, and are shared.

    A refresh that broke off would lose a refresh token that the provider has just replaced.
    """

    def __init__(self, store: CredentialStore, credentials_id: str, under_way: _Refreshes) -> None:
        self._store = store
        self._credentials_id = credentials_id
        self._under_way = under_way

    async def get(self, *, rejected: str | None = None) -> str:
        key = (self._credentials_id, rejected)
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._store.access_token(self._credentials_id, rejected))
            self._under_way[key] = task
            task.add_done_callback(lambda ended: self._end(key, ended))
        return await asyncio.shield(task)

    def _end(self, key: tuple[str, str | None], task: asyncio.Task[str]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # no request may wait for it any more
