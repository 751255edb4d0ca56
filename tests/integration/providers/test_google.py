"""The Google provider and its token endpoint, over HTTP against the fake (docs/reference/google.md)."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson
import pytest
import structlog

from app.core.http import httpx, operator_client
from app.events.data import RemoteEvent, Window
from app.providers.base import (
    AccessDenied,
    CalendarProvider,
    CalendarRemoved,
    ChangePage,
    ClientMisconfigured,
    CredentialsRevoked,
    CursorExpired,
    FreshToken,
    ProviderError,
    RateLimited,
    RemoteCalendar,
    Unavailable,
)
from app.providers.google import fields as google_fields
from app.providers.google import sync as google_sync
from app.providers.google.oauth import refresh_access_token
from app.providers.google.sync import GoogleCalendar
from app.providers.http import request
from tests.fakes.google import CALENDAR_SCOPE, EMAIL_SCOPE, FakeGoogle
from tests.fakes.google_store import instance_id
from tests.fakes.server import serve

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
WINDOW = Window(NOW - timedelta(days=1), NOW + timedelta(days=28))
HOUR = timedelta(hours=1)
SECRET_CALENDAR = "en.french#holiday@group.v.calendar.google.com"


class Tokens:
    """A TokenSource that keeps one token and asks the token endpoint for the next."""

    def __init__(self, client: httpx.AsyncClient, url: str, fake: FakeGoogle) -> None:
        self.client = client
        self.url = url
        self.fake = fake
        self.current: str | None = None
        self.given: list[str] = []

    async def get(self, *, rejected: str | None = None) -> str:
        if self.current is None or self.current == rejected:
            self.current = (await self.refresh()).access_token
            self.given.append(self.current)
        return self.current

    async def refresh(self) -> FreshToken:
        return await refresh_access_token(
            self.client,
            token_url=f"{self.url}/token",
            client_id=self.fake.client_id,
            client_secret=self.fake.client_secret,
            refresh_token=self.fake.refresh_token,
        )


@dataclass
class Answered:
    """One whole round."""

    pages: list[ChangePage]

    @property
    def events(self) -> dict[str, RemoteEvent]:
        return {event.platform_uuid: event for page in self.pages for event in page.events}

    @property
    def removed(self) -> set[str]:
        return {event_id for page in self.pages for event_id in page.removed}

    @property
    def cursor(self) -> str | None:
        return self.pages[-1].next_cursor


@dataclass
class World:
    fake: FakeGoogle
    url: str
    client: httpx.AsyncClient
    tokens: Tokens

    def calendar(self, calendar_id: str | None = None, **options: Any) -> GoogleCalendar:
        options = {"client": self.client, "tokens": self.tokens, **options}
        return GoogleCalendar(base_url=self.url, calendar_id=calendar_id, **options)

    async def round(
        self,
        cursor: str | None = None,
        *,
        calendar_id: str | None = None,
        after_page: Callable[[], None] | None = None,
        **options: Any,
    ) -> Answered:
        calendar: CalendarProvider = self.calendar(calendar_id, **options)
        pages = []
        async for page in calendar.changes(cursor=cursor, window=WINDOW):
            pages.append(page)
            if after_page is not None:
                after_page()
        assert [page.is_last for page in pages] == [False] * (len(pages) - 1) + [True]
        assert {page.is_snapshot for page in pages} == {cursor is None}
        assert all(page.next_cursor is None for page in pages[:-1])
        return Answered(pages)

    async def cursor(self) -> str:
        cursor = (await self.round()).cursor
        assert cursor is not None
        return cursor


@pytest.fixture
async def world() -> AsyncIterator[World]:
    fake = FakeGoogle()
    fake.now = lambda: NOW
    async with serve(fake) as url, operator_client(timeout=5.0) as client:
        yield World(fake, url, client, Tokens(client, url, fake))


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the provider logs, however other tests have configured and cached the loggers."""
    capture = structlog.testing.LogCapture()
    monkeypatch.setattr(google_sync, "log", structlog.wrap_logger(None, processors=[capture]))
    return capture.entries


def add(fake: FakeGoogle, *, days: float = 1, **fields: Any) -> str:
    return fake.add_event(start=NOW + timedelta(days=days), end=NOW + timedelta(days=days) + HOUR, **fields)


# --- full rounds and deltas ------------------------------------------------------------------------------


async def test_the_first_round_lists_the_window_and_the_next_ones_only_what_changed(world: World) -> None:
    inside, other = add(world.fake, summary="Inside"), add(world.fake, days=2)
    add(world.fake, days=-3)
    add(world.fake, days=40)
    first = await world.round()
    assert set(first.events) == {inside, other}
    event = first.events[inside]
    assert (event.name, event.start_time, event.timezone) == (
        "Inside",
        NOW + timedelta(days=1),
        "Europe/Paris",
    )

    world.fake.update_event(inside, summary="Renamed")
    second = await world.round(first.cursor)
    assert {event.name for event in second.events.values()} == {"Renamed"}
    third = await world.round(second.cursor)
    assert (third.events, third.removed) == ({}, set())
    assert third.cursor is not None


async def test_a_round_sends_only_parameters_that_a_sync_token_allows(world: World) -> None:
    await world.round(await world.cursor())
    full, delta = world.fake.requests_to("events.list")
    assert full.params == {
        "singleEvents": "true",
        "maxResults": "2500",
        "timeMin": "2026-11-19T11:59:59Z",
        "timeMax": "2026-12-18T12:00:01Z",
    }
    assert delta.params.keys() == {"singleEvents", "maxResults", "syncToken"}


async def test_a_round_without_changes_moves_next_to_nothing(world: World) -> None:
    world.fake.seed(300, start=NOW)
    cursor = await world.cursor()
    world.fake.requests.clear()
    await world.round(cursor)
    assert len(world.fake.requests) == 1
    assert world.fake.requests[0].bytes_sent < 2_000


async def test_pages_are_followed_in_both_kinds_of_rounds(world: World) -> None:
    world.fake.seed(25, start=NOW)
    first = await world.round(page_size=10)
    assert [len(page.events) for page in first.pages] == [10, 10, 5]
    for number in range(25):
        world.fake.update_event(f"seed{number:07d}", summary="New")
    second = await world.round(first.cursor, page_size=10)
    assert [len(page.events) for page in second.pages] == [10, 10, 5]
    assert {event.name for event in second.events.values()} == {"New"}
    sent = [request.params for request in world.fake.requests_to("events.list")][3:]
    assert len({params["syncToken"] for params in sent}) == 1
    assert ["pageToken" in params for params in sent] == [False, True, True]


async def test_a_page_is_given_on_before_the_next_one_is_asked_for(world: World) -> None:
    world.fake.seed(30, start=NOW)
    async for _page in world.calendar(page_size=10).changes(cursor=None, window=WINDOW):
        break
    assert len(world.fake.requests_to("events.list")) == 1


@pytest.mark.parametrize("switch", ["empty_pages", "short_pages", "omits_empty_items", "gzip"])
async def test_empty_short_and_compressed_pages_lose_nothing(world: World, switch: str) -> None:
    setattr(world.fake, switch, True)
    world.fake.empty_pages = True
    world.fake.seed(25, start=NOW)
    answered = await world.round(page_size=10)
    assert len(answered.events) == 25
    assert [] in [page.events for page in answered.pages]
    assert (await world.round(answered.cursor)).events == {}


async def test_a_change_made_while_pages_are_read_comes_in_the_next_round(world: World) -> None:
    world.fake.seed(25, start=NOW)
    names: list[str | None] = []
    cursor: str | None = None
    async for page in world.calendar(page_size=10).changes(cursor=None, window=WINDOW):
        if not names:
            world.fake.update_event("seed0000020", summary="Late")
            world.fake.delete_event("seed0000021")
        names += [event.name for event in page.events]
        cursor = page.next_cursor
    assert "Late" not in names
    delta = await world.round(cursor)
    assert ([event.name for event in delta.events.values()], delta.removed) == (["Late"], {"seed0000021"})


async def test_a_last_page_without_a_sync_token_is_a_broken_answer(world: World) -> None:
    world.fake.no_sync_token = True
    add(world.fake)
    with pytest.raises(Unavailable) as caught:
        await world.round()
    assert caught.value.code == "broken_answer"


async def test_changes_outside_the_window_may_come_and_moves_are_told_with_their_new_times(
    world: World,
) -> None:
    moved_out, moved_in = add(world.fake), add(world.fake, days=60)
    cursor = await world.cursor()
    world.fake.move(moved_out, start=NOW + timedelta(days=90), end=NOW + timedelta(days=90) + HOUR)
    world.fake.move(moved_in, start=NOW, end=NOW + HOUR)
    far = add(world.fake, days=120)
    leaky = await world.round(cursor)
    assert set(leaky.events) == {moved_out, moved_in, far}
    world.fake.window_leak = False
    tight = await world.round(cursor)
    assert set(tight.events) == {moved_out, moved_in}
    assert tight.events[moved_out].start_time == NOW + timedelta(days=90)


async def test_an_event_at_the_very_edge_of_the_window_is_in_the_list(world: World) -> None:
    window = Window(NOW + timedelta(microseconds=500), NOW + timedelta(days=1, microseconds=500))
    at_start = world.fake.add_event(start=window.start, end=window.start)
    at_end = world.fake.add_event(start=NOW + timedelta(days=1), end=NOW + timedelta(days=2))
    pages = [page async for page in world.calendar().changes(cursor=None, window=window)]
    found = {event.platform_uuid: event for event in pages[0].events}
    assert found.keys() == {at_start, at_end}
    for event in found.values():
        assert event.start_time is not None
        assert event.end_time is not None
        assert window.overlaps(event.start_time, event.end_time)


# --- cursors that are no good any more -------------------------------------------------------------------


async def test_an_expired_sync_token_ends_the_round_with_cursor_expired(world: World) -> None:
    cursor = await world.cursor()
    world.fake.expire_tokens()
    with pytest.raises(CursorExpired):
        await world.round(cursor)
    assert (await world.round()).cursor is not None


async def test_a_token_that_expires_between_two_pages_ends_the_round(world: World) -> None:
    cursor = await world.cursor()
    world.fake.seed(25, start=NOW)
    with pytest.raises(CursorExpired):
        await world.round(cursor, page_size=10, after_page=world.fake.change_acl)
    assert len(world.fake.requests_to("events.list")) == 3


@pytest.mark.parametrize("status", [400, 410])
async def test_a_sync_token_that_google_cannot_read_ends_the_round(world: World, status: int) -> None:
    world.fake.garbled_sync_token_status = status
    with pytest.raises(CursorExpired):
        await world.round(await world.cursor() + "x")


async def test_a_cursor_of_another_version_is_not_even_sent(world: World) -> None:
    with pytest.raises(CursorExpired):
        await world.round("google-0:CPDAlvWDx70CEPDAlvWDx70CGAU=")
    assert world.fake.requests == []


async def test_a_forgotten_page_token_means_a_full_round_after_a_delta_and_a_retry_after_a_full_one(
    world: World,
) -> None:
    cursor = await world.cursor()
    world.fake.seed(25, start=NOW)
    with pytest.raises(CursorExpired):
        await world.round(cursor, page_size=10, after_page=world.fake.forget_pages)
    with pytest.raises(Unavailable) as caught:
        await world.round(page_size=10, after_page=world.fake.forget_pages)
    assert caught.value.code == "page_token_refused"


# --- deletions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["full", "exception", "bare"])
async def test_a_cancelled_entry_of_any_shape_is_gone(world: World, style: Any) -> None:
    world.fake.tombstone_style = style
    single = add(world.fake)
    series = world.fake.add_series(start=NOW, end=NOW + HOUR, rrule="FREQ=DAILY;COUNT=5")
    cursor = await world.cursor()
    instance = instance_id(series, NOW + timedelta(days=2))
    world.fake.delete_event(single)
    world.fake.delete_event(instance)
    world.fake.add_event(start=NOW, end=NOW + HOUR, event_id="neverseen")
    world.fake.delete_event("neverseen")
    delta = await world.round(cursor)
    assert (delta.events, delta.removed) == ({}, {single, instance, "neverseen"})
    assert single not in (await world.round()).events


@pytest.mark.parametrize("way", ["instances", "master", "both"])
async def test_a_deleted_series_is_told_by_its_instances_or_its_own_id(world: World, way: Any) -> None:
    world.fake.series_tombstone = way
    series = world.fake.add_series(start=NOW - timedelta(hours=3), end=NOW, rrule="FREQ=DAILY;COUNT=300")
    first = await world.round()
    assert len(first.events) == 29
    assert {event.recurring_event_id for event in first.events.values()} == {series}
    world.fake.delete_series(series)
    delta = await world.round(first.cursor)
    assert delta.events == {}
    assert (series in delta.removed) == (way != "instances")
    # Past instances and those after half a year vanish without a word: the next full round tells.
    assert len(delta.removed - {series}) == (0 if way == "master" else 183)
    assert (await world.round()).events == {}


async def test_an_event_that_comes_back_is_an_event_again(world: World) -> None:
    event_id = add(world.fake)
    cursor = await world.cursor()
    world.fake.delete_event(event_id)
    world.fake.update_event(event_id, status="confirmed")
    delta = await world.round(cursor)
    assert (set(delta.events), delta.removed) == ({event_id}, set())


async def test_a_move_to_another_calendar_is_gone_here_and_new_there(world: World) -> None:
    team = world.fake.add_calendar("team@group.calendar.google.com")
    event_id = add(world.fake)
    here, there = await world.round(), await world.round(calendar_id=team)
    world.fake.move_to_calendar(event_id, to=team)
    assert (await world.round(here.cursor)).removed == {event_id}
    arrived = (await world.round(there.cursor, calendar_id=team)).events[event_id]
    assert arrived.ical_uid == here.events[event_id].ical_uid


@pytest.mark.parametrize("is_cancelled_last", [True, False])
async def test_of_two_entries_with_one_id_on_a_page_the_later_one_counts(
    world: World, is_cancelled_last: bool
) -> None:
    alive = {"id": "twice", "start": {"date": "2026-11-24"}, "end": {"date": "2026-11-25"}}
    items = [alive, {"id": "twice", "status": "cancelled"}]
    answer_with(world.fake, {"nextSyncToken": "s", "items": items if is_cancelled_last else items[::-1]})
    answered = await world.round()
    assert (set(answered.events), answered.removed) == (
        (set(), {"twice"}) if is_cancelled_last else ({"twice"}, set())
    )


# --- series and all-day events ---------------------------------------------------------------------------


async def test_instances_keep_their_id_and_slot_when_they_are_moved(world: World) -> None:
    series = world.fake.add_series(
        start=NOW, end=NOW + HOUR, rrule="FREQ=WEEKLY;COUNT=4", exdates=[NOW + timedelta(days=7)]
    )
    cursor = await world.cursor()
    third = instance_id(series, NOW + timedelta(days=14))
    world.fake.move(third, start=NOW + timedelta(days=15), end=NOW + timedelta(days=15) + HOUR)
    delta = await world.round(cursor)
    assert set(delta.events) == {third}
    event = delta.events[third]
    assert event.start_time == NOW + timedelta(days=15)
    assert (event.recurring_event_id, event.original_start_time) == (series, NOW + timedelta(days=14))
    everything = await world.round()
    assert set(everything.events) == {instance_id(series, NOW + timedelta(days=days)) for days in (0, 14, 21)}
    assert {event.ical_uid for event in everything.events.values()} == {f"{series}@google.com"}


async def test_a_split_series_is_cancelled_from_there_on_and_goes_on_under_another_id(world: World) -> None:
    series = world.fake.add_series(start=NOW, end=NOW + HOUR, rrule="FREQ=WEEKLY", series_id="old")
    cursor = await world.cursor()
    at = NOW + timedelta(days=14)
    later = world.fake.split_series(series, at=at, summary="After")
    assert later == "old_R20261204T120000"
    world.fake.window_leak = False
    delta = await world.round(cursor)
    assert {instance_id(series, NOW + timedelta(days=days)) for days in (14, 21)} < delta.removed
    after = {event.platform_uuid for event in delta.events.values() if event.name == "After"}
    assert after == {instance_id(later, at + timedelta(days=days)) for days in (0, 7, 14)}


async def test_all_day_events_last_from_midnight_to_midnight_in_the_calendars_zone(world: World) -> None:
    tokyo = world.fake.add_calendar("tokyo@group.calendar.google.com", time_zone="Asia/Tokyo")
    single = world.fake.add_event(calendar_id=tokyo, start=date(2026, 11, 24), end=date(2026, 11, 26))
    series = world.fake.add_series(
        calendar_id=tokyo, start=date(2026, 11, 23), end=date(2026, 11, 24), rrule="FREQ=WEEKLY;COUNT=2"
    )
    events = (await world.round(calendar_id=tokyo)).events
    event = events[single]
    assert (event.is_all_day, event.timezone) == (True, "Asia/Tokyo")
    assert event.start_time == datetime(2026, 11, 23, 15, tzinfo=UTC)
    assert event.end_time == datetime(2026, 11, 25, 15, tzinfo=UTC)
    second = events[f"{series}_20261130"]
    assert second.original_start_time == second.start_time == datetime(2026, 11, 29, 15, tzinfo=UTC)


# --- odd events ------------------------------------------------------------------------------------------


def answer_with(fake: FakeGoogle, document: Any, *, count: int = 1) -> None:
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    fake.inject_fault("events.list", 200, count=count, body=body, content_type="application/json")


async def test_odd_events_stop_nothing_and_are_logged_by_id_only(world: World, logs: list[Any]) -> None:
    good = add(world.fake)
    odd: dict[str, dict[str, Any]] = {
        "nostart": {"summary": "PRIVATE"},
        "longtitle": {"summary": "PRIVATE" * 300, "start": {"date": "2026-11-24"}},
        "nul": {"summary": "PRIVATE\x00", "start": {"date": "2026-11-24"}},
        "zone": {"summary": "PRIVATE", "start": {"dateTime": "2026-11-24T10:00:00", "timeZone": "PRIVATE/X"}},
        "types": {"summary": {"PRIVATE": 1}, "start": [], "attendees": {"PRIVATE": 2}, "organizer": 7},
    }
    for event_id, fields in odd.items():
        world.fake.put_raw({"id": event_id, **fields})
    world.fake.put_raw({"summary": "no id at all: PRIVATE"})
    world.fake.put_raw({"id": 5, "summary": "PRIVATE"})
    answered = await world.round()
    assert set(answered.events) == {good, *odd}
    assert answered.events["nostart"].name == "PRIVATE"
    assert answered.events["zone"].start_time is None
    assert {entry.get("event_id") for entry in logs} == {*odd, None}
    assert {entry["log_level"] for entry in logs} == {"warning"}
    assert "PRIVATE" not in repr(logs)


async def test_an_event_on_which_our_own_code_fails_is_kept_by_id_and_stops_nothing(
    world: World, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**texts: Any) -> None:
        if texts["title"] == "PRIVATE":
            raise ZeroDivisionError("PRIVATE")

    monkeypatch.setattr(google_fields, "find_meeting_link", fail)  # no input is known that makes it fail
    bad, good = add(world.fake, summary="PRIVATE"), add(world.fake)
    answered = await world.round()
    assert set(answered.events) == {bad, good}
    assert (answered.events[bad].name, orjson.loads(answered.events[bad].raw)["summary"]) == (None, "PRIVATE")
    assert logs == [
        {
            "event": "google.event_unreadable",
            "event_id": bad,
            "error": "ZeroDivisionError",
            "log_level": "warning",
        }
    ]


async def test_one_lone_surrogate_does_not_hide_a_page(world: World) -> None:
    answer_with(
        world.fake,
        b'{"nextSyncToken": "s", "items": [{"id": "a", "summary": "\\ud800"}, {"id": "b", "start": {"date": "2026-11-24"}}]}',
    )
    assert set((await world.round()).events) == {"a", "b"}


async def test_other_work_goes_on_while_a_large_page_is_parsed(world: World) -> None:
    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    working = asyncio.create_task(other_work())
    items = [{"id": str(number), "start": {"date": "2026-11-24"}} for number in range(1000)]
    events, _ = await world.calendar()._read_items({"items": items})
    working.cancel()
    assert len(events) == 1000
    assert turns >= 10


# --- tokens ----------------------------------------------------------------------------------------------


async def test_a_refused_token_is_renewed_once_even_in_the_middle_of_a_round(world: World) -> None:
    world.fake.seed(25, start=NOW)
    found = 0
    async for page in world.calendar(page_size=10).changes(cursor=None, window=WINDOW):
        found += len(page.events)
        world.fake.expire_access_tokens()
    assert found == 25
    statuses = [request.status for request in world.fake.requests_to("events.list")]
    assert statuses == [200, 401, 200, 401, 200]
    sent = [request.headers["authorization"] for request in world.fake.requests_to("events.list")]
    assert len(set(sent)) == 3


async def test_a_token_that_lives_for_no_time_at_all_is_renewed_once_and_no_more(world: World) -> None:
    world.fake.access_token_ttl = 0.0
    with pytest.raises(CredentialsRevoked):
        await world.round()
    assert len(world.fake.requests_to("events.list")) == 2


async def test_a_revoked_grant_ends_with_credentials_revoked(world: World) -> None:
    cursor = await world.cursor()
    world.fake.revoke_grant(world.fake.refresh_token)
    with pytest.raises(CredentialsRevoked):
        await world.round(cursor)


async def test_a_token_without_the_calendar_scope_is_denied(world: World) -> None:
    token = world.fake.issue_access_token(refresh_token=world.fake.add_grant(scopes=[EMAIL_SCOPE]))
    world.tokens.current = token
    with pytest.raises(AccessDenied) as caught:
        await world.round()
    assert caught.value.code == "scope_missing"


# --- failures of the API ---------------------------------------------------------------------------------


async def test_a_calendar_that_is_not_there_is_gone(world: World) -> None:
    team = world.fake.add_calendar("team@group.calendar.google.com")
    cursor = (await world.round(calendar_id=team)).cursor
    world.fake.remove_calendar(team)
    with pytest.raises(CalendarRemoved):
        await world.round(cursor, calendar_id=team)


async def test_calendar_ids_are_percent_encoded(world: World) -> None:
    world.fake.add_calendar(SECRET_CALENDAR)
    event_id = add(world.fake, calendar_id=SECRET_CALENDAR)
    assert set((await world.round(calendar_id=SECRET_CALENDAR)).events) == {event_id}
    assert world.fake.requests_to("events.list")[0].path == (
        "/calendar/v3/calendars/en.french%23holiday%40group.v.calendar.google.com/events"
    )


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (403, "rateLimitExceeded", RateLimited),
        (403, "userRateLimitExceeded", RateLimited),
        (429, "rateLimitExceeded", RateLimited),
        (403, "accessNotConfigured", ClientMisconfigured),
        (403, "notACalendarUser", AccessDenied),
        (403, "forbidden", AccessDenied),
        (500, "backendError", Unavailable),
        (503, "internalError", Unavailable),
        (410, "fullSyncRequired", CursorExpired),
    ],
)
async def test_every_refusal_has_its_error(
    world: World, status: int, reason: str, expected: type[ProviderError]
) -> None:
    world.fake.inject_fault("events.list", status, reason, headers={"Retry-After": "17"})
    with pytest.raises(expected) as caught:
        await world.round()
    if isinstance(caught.value, RateLimited | Unavailable):
        assert caught.value.retry_after == 17.0
    assert (await world.round()).cursor is not None


async def test_a_bad_request_of_our_own_is_told_as_such_and_is_not_retried(world: World) -> None:
    with pytest.raises(ProviderError) as caught:
        await world.round(page_size=0)
    assert (type(caught.value), caught.value.code) == (ProviderError, "bad_request")
    assert len(world.fake.requests_to("events.list")) == 1


@pytest.mark.parametrize(
    "body",
    [b"<html>Sign in</html>", b"[]", b"null", b"{}", b'{"ok": true}', b'{"items": {}}', b'{"items": [], "nextPageToken": 5}',
     b'{"items": [], "nextSyncToken": {}}', b"", b"[" * 100_000],
)  # fmt: skip
async def test_an_answer_that_is_no_list_is_an_outage_never_an_empty_calendar(
    world: World, body: bytes
) -> None:
    answer_with(world.fake, body)
    with pytest.raises(Unavailable):
        await world.round()


async def test_pages_that_go_round_in_a_circle_end(world: World) -> None:
    answer_with(world.fake, {"items": [], "nextPageToken": "again"}, count=100)
    with pytest.raises(Unavailable) as caught:
        await world.round()
    assert caught.value.code == "broken_answer"
    assert len(world.fake.requests_to("events.list")) == 2


@pytest.mark.parametrize("kind", ["reset", "cut"])
@pytest.mark.parametrize("after", [0, 1])
async def test_a_connection_that_breaks_is_an_outage(world: World, kind: str, after: int) -> None:
    world.fake.seed(25, start=NOW)
    world.fake.inject_fault("events.list", kind=kind, after=after)
    with pytest.raises(Unavailable):
        await world.round(page_size=20)
    assert len((await world.round()).events) == 25


async def test_html_slow_and_unreachable_servers_are_outages(world: World) -> None:
    world.fake.inject_fault("events.list", 502, body=b"<html>Bad gateway</html>")
    with pytest.raises(Unavailable):
        await world.round()
    world.fake.inject_fault("events.list", delay=5.0)
    async with operator_client(timeout=0.1) as hasty:
        with pytest.raises(Unavailable) as caught:
            await world.round(client=hasty)
        assert caught.value.code == "timeout"
    async with serve(world.fake) as closed:
        pass
    provider = GoogleCalendar(client=world.client, tokens=world.tokens, base_url=closed, calendar_id=None)
    with pytest.raises(Unavailable) as caught:
        await anext(provider.changes(cursor=None, window=WINDOW))
    assert caught.value.code == "connection_failed"


async def test_a_server_that_dribbles_or_floods_is_cut_off(world: World) -> None:
    world.fake.inject_fault("events.list", kind="dribble", count=2)
    url = f"{world.url}/calendar/v3/calendars/primary/events"
    with pytest.raises(Unavailable) as caught:
        async with asyncio.timeout(5):  # the test's own patience
            await request(world.client, "GET", url, provider="Google", max_bytes=10_000, deadline_seconds=0.2)
    assert caught.value.code == "timeout"
    with pytest.raises(Unavailable) as caught:
        await request(world.client, "GET", url, provider="Google", max_bytes=10, deadline_seconds=10.0)
    assert caught.value.code == "answer_too_large"


async def test_no_error_and_no_log_holds_a_token_or_an_address(world: World, logs: list[Any]) -> None:
    cursor = await world.cursor()
    assert world.tokens.current is not None
    secrets = {
        world.tokens.current,
        cursor.partition(":")[2],
        world.fake.refresh_token,
        world.fake.client_secret,
    }
    failures: list[ProviderError] = []
    for fault in (
        {"status": 403, "reason": "forbidden"},
        {"status": 404, "reason": "notFound"},
        {"status": 429, "reason": world.tokens.current},
        {"status": 400, "reason": world.tokens.current},
        {"status": 502, "body": world.tokens.current.encode()},
        {"status": 200, "body": cursor.encode()},
        {"kind": "reset"},
        {"kind": "cut"},
    ):
        world.fake.inject_fault("events.list", **fault)
        with pytest.raises(ProviderError) as caught:
            await world.round(cursor)
        failures.append(caught.value)
    for fault in (
        {"status": 400, "reason": "invalid_grant"},
        {"status": 401, "reason": "invalid_client"},
        {"kind": "reset"},
    ):
        world.fake.inject_fault("token", **fault)
        with pytest.raises(ProviderError) as caught:
            await world.tokens.refresh()
        failures.append(caught.value)
    for failure in failures:
        assert failure.__context__ is None or isinstance(failure.__context__, ProviderError)
        told = "".join(traceback.format_exception(failure)) + repr(failure)
        assert not [secret for secret in secrets if secret in told]
        assert world.url not in str(failure)
    assert logs == []


# --- the calendars of an account -------------------------------------------------------------------------


async def test_the_calendars_of_an_account_are_listed_over_all_pages(world: World) -> None:
    world.fake.add_calendar("team@group.calendar.google.com", summary="Team", time_zone="Asia/Tokyo")
    world.fake.add_calendar("busy@group.calendar.google.com", access_role="freeBusyReader")
    for number in range(260):
        world.fake.add_calendar(f"{number}@group.calendar.google.com")
    calendars = await world.calendar().list_calendars()
    assert calendars[0] == RemoteCalendar(
        "ada@example.com", "ada@example.com", is_primary=True, time_zone="Europe/Paris"
    )
    assert calendars[1] == RemoteCalendar("team@group.calendar.google.com", "Team", time_zone="Asia/Tokyo")
    assert len(calendars) == 262
    assert len(world.fake.requests_to("calendarList.list")) == 2


async def test_odd_calendars_are_left_out_and_chosen_names_are_preferred(world: World) -> None:
    entries = [
        {"id": "a", "summary": "Given", "summaryOverride": "Chosen", "timeZone": "Mars/Olympus"},
        {"id": "b", "summary": 5},
        {"id": "c", "deleted": True},
        {"summary": "no id"},
        "nothing",
    ]
    world.fake.inject_fault("calendarList.list", 200, body=orjson.dumps({"items": entries}))
    assert await world.calendar().list_calendars() == [
        RemoteCalendar("a", "Chosen"),
        RemoteCalendar("b", "b"),
    ]


# --- the token endpoint ----------------------------------------------------------------------------------


async def test_a_refresh_gives_a_token_its_lifetime_and_scopes_and_no_new_refresh_token(world: World) -> None:
    fresh = await world.tokens.refresh()
    assert (fresh.expires_in, fresh.refresh_token) == (3599, None)
    assert fresh.scope == f"{CALENDAR_SCOPE} {EMAIL_SCOPE}"
    world.tokens.current = fresh.access_token
    await world.round()
    assert fresh.access_token not in repr(fresh)


async def test_the_fault_of_a_refused_refresh_is_told_apart(world: World) -> None:
    fake = world.fake
    assert await refused(world, client_id="nobody") == (ClientMisconfigured, "invalid_client")
    assert await refused(world, client_secret="wrong") == (ClientMisconfigured, "invalid_client")
    assert await refused(world, refresh_token="1//0unknown") == (CredentialsRevoked, "invalid_grant")
    assert await refused(world, refresh_token="") == (ClientMisconfigured, "invalid_request")
    fake.add_client("other", "secret")
    of_other = fake.add_grant(client_id="other")
    assert await refused(world, refresh_token=of_other) == (ClientMisconfigured, "unauthorized_client")
    without_calendar = fake.add_grant(scopes=[EMAIL_SCOPE, "openid"])
    assert await refused(world, refresh_token=without_calendar) == (AccessDenied, "scope_missing")
    fake.revoke_grant(fake.refresh_token)
    assert await refused(world) == (CredentialsRevoked, "invalid_grant")
    fake.delete_client(fake.client_id)
    assert await refused(world) == (ClientMisconfigured, "deleted_client")


async def refused(world: World, **changes: str) -> tuple[type[ProviderError], str]:
    credentials = {
        "client_id": world.fake.client_id,
        "client_secret": world.fake.client_secret,
        "refresh_token": world.fake.refresh_token,
        **changes,
    }
    with pytest.raises(ProviderError) as caught:
        await refresh_access_token(world.client, token_url=f"{world.url}/token", **credentials)
    return type(caught.value), caught.value.code


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b'{"error": "invalid_grant", "error_description": "Bad Request"}', CredentialsRevoked),
        (400, b'{"error": "invalid_grant", "error_subtype": "invalid_rapt"}', CredentialsRevoked),
        (400, b'{"error": "admin_policy_enforced"}', AccessDenied),
        (403, b'{"error": "deleted_client"}', ClientMisconfigured),
        (400, b'{"error": "invalid_scope"}', ClientMisconfigured),
        (400, b'{"error": "a_new_word", "error_description": "invalid_grant"}', Unavailable),
        (400, b'{"error": {"code": 400, "status": "invalid_grant"}}', Unavailable),
        (400, b"<html>invalid_grant</html>", Unavailable),
        (403, b'{"error": "rate_limit_exceeded"}', RateLimited),
        (429, b"", RateLimited),
        (500, b'{"error": "internal_failure"}', Unavailable),
        (503, b'{"error": "invalid_grant"}', Unavailable),
        (302, b"", Unavailable),
        (200, b"<html>", Unavailable),
        (200, b"[]", Unavailable),
        (200, b'{"access_token": ""}', Unavailable),
        (200, b'{"access_token": "a\\nb"}', Unavailable),
        (200, '{"access_token": "ü"}'.encode(), Unavailable),
    ],
)
async def test_no_answer_of_the_token_endpoint_disconnects_by_mistake(
    world: World, status: int, body: bytes, expected: type[ProviderError]
) -> None:
    world.fake.inject_fault("token", status, body=body, headers={"Retry-After": "9"})
    with pytest.raises(ProviderError) as caught:
        await world.tokens.refresh()
    assert type(caught.value) is expected
    if status != 200 and isinstance(caught.value, RateLimited | Unavailable):
        assert caught.value.retry_after == 9.0


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, (3600, None, None)),
        ({"expires_in": "1800", "refresh_token": "1//new"}, (1800, "1//new", None)),
        ({"expires_in": -5, "refresh_token": ""}, (0, None, None)),
        ({"expires_in": None, "scope": ""}, (3600, None, None)),
        ({"expires_in": 7.9, "scope": "email https://www.googleapis.com/auth/calendar"},
         (7, None, "email https://www.googleapis.com/auth/calendar")),
    ],
)  # fmt: skip
async def test_what_a_token_answer_leaves_out_has_a_default(
    world: World, extra: dict[str, Any], expected: tuple[int, str | None, str | None]
) -> None:
    world.fake.inject_fault("token", 200, body=orjson.dumps({"access_token": "ya29.x", **extra}))
    fresh = await world.tokens.refresh()
    assert (fresh.expires_in, fresh.refresh_token, fresh.scope) == expected
