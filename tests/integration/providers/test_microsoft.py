"""The Microsoft provider and its token endpoint, over HTTP against the fake (docs/reference/microsoft.md)."""

import traceback
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson
import pytest
import structlog

from app.core.http import httpx, operator_client
from app.events.data import RemoteEvent, Window
from app.ical.timezones import named_zone
from app.providers.base import (
    AccessDenied,
    CalendarProvider,
    CalendarRemoved,
    ChangePage,
    ClientMisconfigured,
    ConnectionLost,
    CredentialsRevoked,
    CursorExpired,
    FreshToken,
    ProviderError,
    RateLimited,
    RemoteCalendar,
    Unavailable,
)
from app.providers.microsoft import client as microsoft_client
from app.providers.microsoft import fields as microsoft_fields
from app.providers.microsoft import sync as microsoft_sync
from app.providers.microsoft.oauth import refresh_access_token
from app.providers.microsoft.sync import MicrosoftCalendar
from tests.fakes.microsoft import EXPIRED_SPELLINGS, FakeMicrosoft, GraphRequest
from tests.fakes.microsoft_identity import CALENDAR_SCOPE, USER_SCOPE
from tests.fakes.microsoft_store import default_id, occurrence_id
from tests.fakes.server import serve

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
WINDOW = Window(NOW - timedelta(days=1), NOW + timedelta(days=28))
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


class Tokens:
    """A TokenSource that keeps one token and asks the token endpoint for the next; keeps what rotates."""

    def __init__(self, client: httpx.AsyncClient, url: str, fake: FakeMicrosoft) -> None:
        self.client = client
        self.url = url
        self.fake = fake
        self.refresh_token = fake.refresh_token
        self.current: str | None = None
        self.given: list[str] = []

    async def get(self, *, rejected: str | None = None) -> str:
        if self.current is None or self.current == rejected:
            self.current = (await self.refresh()).access_token
            self.given.append(self.current)
        return self.current

    async def refresh(self, **changes: str) -> FreshToken:
        fresh = await refresh_access_token(
            self.client,
            **{
                "token_url": f"{self.url}/common/oauth2/v2.0/token",
                "client_id": self.fake.client_id,
                "client_secret": self.fake.client_secret,
                "refresh_token": self.refresh_token,
                **changes,
            },
        )
        self.refresh_token = fresh.refresh_token or self.refresh_token
        return fresh


@dataclass
class Answered:
    """One whole round."""

    pages: list[ChangePage]

    @property
    def events(self) -> dict[str, RemoteEvent]:
        return {event.platform_uuid: event for page in self.pages for event in page.events}

    @property
    def kept(self) -> set[str]:
        """What the engine takes as being there, of a snapshot."""
        kept: set[str] = set()
        for page in self.pages:
            kept |= {event.platform_uuid for event in page.events}
            kept -= {*page.removed, *page.unlisted}
        return kept

    @property
    def is_snapshot(self) -> bool:
        return self.pages[0].is_snapshot

    @property
    def cursor(self) -> str | None:
        return self.pages[-1].next_cursor


@dataclass
class World:
    fake: FakeMicrosoft
    url: str
    client: httpx.AsyncClient
    tokens: Tokens

    def calendar(self, calendar_id: str | None = None, **options: Any) -> MicrosoftCalendar:
        options = {"client": self.client, "tokens": self.tokens, "base_url": f"{self.url}/v1.0", **options}
        return MicrosoftCalendar(calendar_id=calendar_id, **options)

    async def round(
        self,
        cursor: str | None = None,
        *,
        calendar_id: str | None = None,
        window: Window = WINDOW,
        **options: Any,
    ) -> Answered:
        calendar: CalendarProvider = self.calendar(calendar_id, **options)
        pages = [page async for page in calendar.changes(cursor=cursor, window=window)]
        assert [page.is_last for page in pages] == [False] * (len(pages) - 1) + [True]
        assert len({page.is_snapshot for page in pages}) == 1
        assert all(page.next_cursor is None for page in pages[:-1])
        return Answered(pages)

    async def cursor(self, **options: Any) -> str:
        cursor = (await self.round(**options)).cursor
        assert cursor is not None
        return cursor

    def truth(self, **where: Any) -> set[str]:
        return set(self.fake.window_events(WINDOW.start, WINDOW.end, **where))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    fake = FakeMicrosoft()
    fake.now = lambda: NOW
    async with serve(fake) as url, operator_client(timeout=5.0) as client:
        yield World(fake, url, client, Tokens(client, url, fake))


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the provider logs, however other tests have configured and cached the loggers."""
    capture = structlog.testing.LogCapture()
    for module in (microsoft_client, microsoft_sync):
        monkeypatch.setattr(module, "log", structlog.wrap_logger(None, processors=[capture]))
    return capture.entries


def add(fake: FakeMicrosoft, *, days: float = 1, **fields: Any) -> str:
    return fake.add_event(start=NOW + timedelta(days=days), end=NOW + timedelta(days=days) + HOUR, **fields)


def add_daily(fake: FakeMicrosoft, *, count: int = 5, **fields: Any) -> tuple[str, list[str]]:
    """A series and the ids of its occurrences."""
    start = NOW + 2 * HOUR
    series = fake.add_series(start=start, end=start + HOUR, rrule=f"FREQ=DAILY;COUNT={count}", **fields)
    return series, [occurrence_id(series, start + number * DAY) for number in range(count)]


def on_nth(route: str, number: int, action: Callable[[], object]) -> Callable[[GraphRequest], None]:
    """Does something as the nth request to a route comes in."""
    count = 0

    def look(request: GraphRequest) -> None:
        nonlocal count
        if request.route == route:
            count += 1
            if count == number:
                action()

    return look


def raws(events: dict[str, RemoteEvent], ids: Iterable[str]) -> list[str]:
    return [events[event_id].raw for event_id in ids]


# --- rounds ----------------------------------------------------------------------------------------------


async def test_the_first_round_lists_the_window_and_an_unchanged_one_nothing(world: World) -> None:
    inside = add(world.fake, subject="Inside")
    add(world.fake, days=-4)
    add(world.fake, days=40)
    first = await world.round()
    assert first.is_snapshot
    assert set(first.events) == {inside} == world.truth()
    event = first.events[inside]
    assert (event.name, event.start_time, event.timezone) == ("Inside", NOW + DAY, "Europe/Paris")

    second = await world.round(first.cursor)
    assert (second.is_snapshot, second.events, second.kept) == (False, {}, set())
    assert second.cursor is not None


async def test_a_round_without_changes_is_one_small_request(world: World) -> None:
    world.fake.seed(300, start=NOW)
    add_daily(world.fake)
    cursor = await world.cursor()
    for _ in range(3):
        world.fake.requests.clear()
        answered = await world.round(cursor)
        assert [request.route for request in world.fake.requests] == ["delta"]
        assert world.fake.requests[0].bytes_sent < 2_000
        assert answered.cursor is not None
        cursor = answered.cursor


async def test_any_change_brings_the_whole_window_in_full(world: World) -> None:
    edited, deleted, kept = (add(world.fake, subject=name) for name in ("edited", "deleted", "kept"))
    first = await world.round()
    world.fake.update_event(edited, subject="after")
    world.fake.delete_event(deleted)
    added = add(world.fake, subject="added")
    second = await world.round(first.cursor)
    assert second.is_snapshot
    assert {event.name for event in second.events.values()} == {"after", "kept", "added"}
    assert second.kept == {edited, kept, added} == world.truth()
    assert second.events[kept].raw == first.events[kept].raw
    assert second.events[edited].raw != first.events[edited].raw
    assert (await world.round(second.cursor)).events == {}


async def test_every_request_asks_for_immutable_ids_in_utc_and_delta_for_nothing_it_refuses(
    world: World,
) -> None:
    world.fake.seed(7, start=NOW)
    world.fake.empty_pages = True
    first = await world.round(page_size=3)
    add(world.fake)
    await world.round(first.cursor, page_size=3)
    views, deltas = world.fake.requests_to("calendarView"), world.fake.requests_to("delta")
    assert len(views) == 3 + 3
    assert all('IdType="ImmutableId"' in request.headers["prefer"] for request in views + deltas)
    assert all('outlook.timezone="UTC"' in request.headers["prefer"] for request in views + deltas)
    assert all("odata.maxpagesize=500" in request.headers["prefer"] for request in deltas)
    assert deltas[0].params == {
        "startDateTime": "2026-11-18T12:00:00Z",
        "endDateTime": "2026-12-19T12:00:00Z",
    }
    assert views[0].params["$top"] == "3"
    assert [request.params.get("$skip") for request in views] == [None, "3", "6", None, "3", "6"]


async def test_ids_are_the_immutable_ones_on_every_page(world: World) -> None:
    world.fake.seed(5, start=NOW)
    series, _ = add_daily(world.fake)
    answered = await world.round(page_size=2)
    assert set(answered.events) == world.truth()
    assert {event.recurring_event_id for event in answered.events.values()} == {None, series}


@pytest.mark.parametrize("switch", ["empty_pages", "duplicate_items", "gzip"])
async def test_empty_duplicated_and_compressed_pages_lose_nothing(world: World, switch: str) -> None:
    setattr(world.fake, switch, True)
    single = add(world.fake, subject="first")
    _, occurrences = add_daily(world.fake)
    first = await world.round(page_size=2)
    assert set(first.events) == {single, *occurrences}
    world.fake.update_event(single, subject="second")
    second = await world.round(first.cursor, page_size=2)
    assert second.events[single].name == "second"
    assert second.kept == world.truth()
    assert (await world.round(second.cursor)).events == {}


async def test_removed_entries_of_unknown_ids_take_nothing_away(world: World) -> None:
    kept = add(world.fake)
    first = await world.round()
    world.fake.unknown_removed = 3
    far = add(world.fake, days=100)
    world.fake.delete_event(far)
    second = await world.round(first.cursor)
    assert second.kept == {kept}
    assert second.events[kept].raw == first.events[kept].raw


async def test_an_event_that_moves_in_or_out_of_the_window_is_told_by_the_snapshot(world: World) -> None:
    leaving, coming = add(world.fake), add(world.fake, days=60)
    first = await world.round()
    assert first.kept == {leaving}
    world.fake.move(leaving, start=NOW + 60 * DAY, end=NOW + 60 * DAY + HOUR)
    world.fake.move(coming, start=NOW, end=NOW + HOUR)
    assert (await world.round(first.cursor)).kept == {coming}


# --- series ----------------------------------------------------------------------------------------------


async def test_occurrences_are_full_events(world: World) -> None:
    series, occurrences = add_daily(
        world.fake,
        subject="Weekly",
        body="<p>agenda</p>",
        location="Room 1",
        onlineMeeting={"joinUrl": "https://teams.microsoft.com/meet/2345678901234?p=AbCdEf"},
    )
    events = (await world.round()).events
    assert set(events) == set(occurrences)
    second = events[occurrences[1]]
    assert second.recurring_event_id == series
    assert second.original_start_time == second.start_time == NOW + 2 * HOUR + DAY
    assert (second.name, second.description, second.location) == ("Weekly", "<p>agenda</p>", "Room 1")
    assert second.meeting_url == "https://teams.microsoft.com/meet/2345678901234?p=AbCdEf"
    assert len({event.ical_uid for event in events.values()}) == 5


async def test_a_deleted_occurrence_vanishes_and_its_siblings_stay_as_they_are(world: World) -> None:
    _, occurrences = add_daily(world.fake)
    first = await world.round()
    world.fake.delete_event(occurrences[2])
    second = await world.round(first.cursor)
    siblings = [event_id for event_id in occurrences if event_id != occurrences[2]]
    assert second.kept == set(siblings) == world.truth()
    assert raws(second.events, siblings) == raws(first.events, siblings)


async def test_an_exception_has_its_own_content_and_its_siblings_stay_as_they_are(world: World) -> None:
    series, occurrences = add_daily(world.fake, subject="Daily")
    first = await world.round()
    changed = occurrences[1]
    start = NOW + 2 * HOUR + DAY
    world.fake.update_event(changed, subject="Moved", start=start + HOUR, end=start + 2 * HOUR)
    second = await world.round(first.cursor)
    event = second.events[changed]
    assert (event.name, event.start_time, event.original_start_time) == ("Moved", start + HOUR, start)
    assert event.recurring_event_id == series
    siblings = [event_id for event_id in occurrences if event_id != changed]
    assert raws(second.events, siblings) == raws(first.events, siblings)


async def test_a_changed_master_changes_every_occurrence(world: World) -> None:
    series, occurrences = add_daily(world.fake, subject="Before")
    cursor = await world.cursor()
    world.fake.update_series(series, subject="After")
    events = (await world.round(cursor)).events
    assert [events[event_id].name for event_id in occurrences] == ["After"] * 5


async def test_a_deleted_and_a_split_series_end_as_the_mailbox_shows_them(world: World) -> None:
    deleted, _ = add_daily(world.fake)
    split, _ = add_daily(world.fake, subject="Old")
    first = await world.round()
    world.fake.delete_series(deleted)
    world.fake.split_series(split, at=NOW + 2 * HOUR + 2 * DAY, subject="New")
    second = await world.round(first.cursor)
    in_window = {
        event_id
        for event_id, event in second.events.items()
        if event.start_time and event.end_time and WINDOW.overlaps(event.start_time, event.end_time)
    }
    assert second.kept >= in_window == world.truth()
    names = [second.events[event_id].name for event_id in in_window]
    assert (names.count("Old"), names.count("New")) == (2, 26)


async def test_a_series_far_larger_than_a_page_is_read_once(world: World) -> None:
    start = NOW.replace(minute=0)
    series = world.fake.add_series(start=start, end=start + HOUR, rrule="FREQ=HOURLY;COUNT=600")
    answered = await world.round()
    assert len(answered.events) == 600
    world.fake.update_series(series, subject="New")
    assert len((await world.round(answered.cursor)).events) == 600


# --- kinds of events -------------------------------------------------------------------------------------


async def test_a_cancelled_event_is_marked_as_such(world: World) -> None:
    event_id = add(world.fake, subject="Review")
    cursor = await world.cursor()
    world.fake.cancel_event(event_id)
    event = (await world.round(cursor)).events[event_id]
    assert (event.is_cancelled, event.name) == (True, "Canceled: Review")


@pytest.mark.parametrize("style", ["date", "shifted"])
@pytest.mark.parametrize("zone", ["Romance Standard Time", "Pacific Standard Time", "Tonga Standard Time"])
async def test_an_all_day_event_keeps_its_day_however_it_is_rendered(
    world: World, style: Any, zone: str
) -> None:
    world.fake.all_day_style = style
    event_id = world.fake.add_event(
        start=date(2026, 11, 24), end=date(2026, 11, 26), originalStartTimeZone=zone
    )
    event = (await world.round()).events[event_id]
    assert event.is_all_day
    assert event.start_time is not None
    assert event.end_time is not None
    home = named_zone(zone)
    assert home is not None
    assert event.timezone == home.name
    assert f"{event.start_time.astimezone(home.tzinfo):%Y-%m-%d %H:%M}" == "2026-11-24 00:00"
    assert f"{event.end_time.astimezone(home.tzinfo):%Y-%m-%d %H:%M}" == "2026-11-26 00:00"


async def test_all_day_events_at_the_windows_edge_are_not_missed(world: World) -> None:
    ends_in_the_window = world.fake.add_event(
        start=date(2026, 11, 18), end=date(2026, 11, 20), originalStartTimeZone="Hawaiian Standard Time"
    )
    starts_in_the_window = world.fake.add_event(
        start=date(2026, 12, 19), end=date(2026, 12, 20), originalStartTimeZone="Tonga Standard Time"
    )
    events = (await world.round()).events
    assert {ends_in_the_window, starts_in_the_window} <= set(events)
    assert world.truth() <= set(events)


async def test_fractions_of_seven_digits_are_read(world: World) -> None:
    start = NOW.replace(second=30, microsecond=123456)
    event_id = world.fake.add_event(start=start, end=start + HOUR)
    assert world.truth() == {event_id}
    event = (await world.round()).events[event_id]
    assert b'30.1234560"' in event.raw.encode()
    assert event.start_time == start


async def test_an_unreadable_event_does_not_stop_the_others(world: World, logs: list[Any]) -> None:
    good = add(world.fake)
    world.fake.put_raw({"id": "odd", "start": "now", "subject": 5, "attendees": {"a": 1}, "body": []})
    world.fake.put_raw({"subject": "no id"})
    world.fake.put_raw({"id": "master", "type": "seriesMaster", "subject": "a master is not an occurrence"})
    world.fake.put_raw({"id": "year 0", "start": {"dateTime": "0000-01-01T00:00:00", "timeZone": "UTC"}})
    answered = await world.round()
    assert set(answered.events) == {good, "odd", "year 0"}
    assert answered.events["odd"].start_time is None
    assert orjson.loads(answered.events["odd"].raw)["subject"] == 5
    warned = [entry["event"] for entry in logs]
    assert warned.count("microsoft.event_without_id") == 1
    assert warned.count("microsoft.event_without_start") == 2


async def test_a_bug_in_reading_one_event_costs_that_event_only(
    world: World, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = add(world.fake, subject="good"), add(world.fake, subject="bad")
    parse = microsoft_fields.parse_event

    def fails_for_one(item: dict[str, Any], **options: Any) -> RemoteEvent:
        if item["subject"] == "bad":
            raise RecursionError
        return parse(item, **options)

    monkeypatch.setattr(microsoft_sync, "parse_event", fails_for_one)
    events = (await world.round()).events
    assert (events[good].name, events[bad].name) == ("good", None)
    assert orjson.loads(events[bad].raw)["subject"] == "bad"
    assert [entry["error"] for entry in logs] == ["RecursionError"]


# --- calendars -------------------------------------------------------------------------------------------


async def test_a_secondary_calendar_is_read_by_its_id(world: World) -> None:
    team = world.fake.add_calendar("Team", calendar_id="AQMkA/b+c/d=?#%2F e=")
    mine, theirs = add(world.fake), add(world.fake, calendar_id=team)
    first = await world.round(calendar_id=team)
    assert set(first.events) == {theirs}
    add(world.fake)
    assert (await world.round(first.cursor, calendar_id=team)).events == {}
    world.fake.update_event(theirs, calendar_id=team, subject="New")
    assert set((await world.round(first.cursor, calendar_id=team)).events) == {theirs}
    assert mine in (await world.round()).events


async def test_an_event_keeps_its_id_when_it_moves_to_another_calendar(world: World) -> None:
    team = world.fake.add_calendar("Team")
    event_id = add(world.fake)
    here, there = await world.cursor(), await world.cursor(calendar_id=team)
    world.fake.move_to_calendar(event_id, to=team)
    assert (await world.round(here)).kept == set()
    assert (await world.round(there, calendar_id=team)).kept == {event_id}


async def test_the_calendars_of_all_groups_are_listed_once(world: World) -> None:
    team = world.fake.add_calendar("Team")
    other = world.fake.add_calendar("Other", group="Projects")
    for number in range(120):
        world.fake.add_calendar(f"Calendar {number}")
    world.fake.mailbox().default.name = ""
    calendars = await world.calendar().list_calendars()
    default_calendar = world.fake.calendar().id
    assert len(calendars) == len({calendar.id for calendar in calendars}) == 123
    assert calendars[0] == RemoteCalendar(id=default_calendar, name=default_calendar, is_primary=True)
    assert RemoteCalendar(id=team, name="Team") in calendars
    assert RemoteCalendar(id=other, name="Other") in calendars


async def test_a_missing_calendar_and_a_malformed_id_are_gone(world: World) -> None:
    team = world.fake.add_calendar("Team")
    cursor = await world.cursor(calendar_id=team)
    world.fake.remove_calendar(team)
    for calendar_id in (team, "nonsense"):
        with pytest.raises(CalendarRemoved):
            await world.round(calendar_id=calendar_id)
    # The delta link alone could be what is unknown: the next full round decides.
    with pytest.raises(CursorExpired):
        await world.round(cursor, calendar_id=team)


async def test_one_request_at_a_time(world: World) -> None:
    world.fake.seed(20, start=NOW)
    world.fake.latency = 0.001
    cursor = await world.cursor(page_size=3)
    add(world.fake)
    await world.round(cursor, page_size=3)
    await world.calendar().list_calendars()
    assert world.fake.mailbox().most_in_flight == 1


# --- cursors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", EXPIRED_SPELLINGS)
@pytest.mark.parametrize("has_location", [False, True])
async def test_an_expired_delta_link_asks_for_a_full_round(
    world: World, spelling: str, has_location: bool
) -> None:
    event_id = add(world.fake)
    cursor = await world.cursor()
    world.fake.expire_delta(spelling, has_location=has_location)
    with pytest.raises(CursorExpired):
        await world.round(cursor)
    assert set((await world.round()).events) == {event_id}


async def test_a_link_may_expire_between_two_pages(world: World) -> None:
    cursor = await world.cursor()
    add(world.fake)
    world.fake.empty_pages = True
    world.fake.on_request = on_nth("delta", 2, world.fake.expire_delta)
    with pytest.raises(CursorExpired):
        await world.round(cursor)


@pytest.mark.parametrize("status", [400, 404])
async def test_a_delta_link_that_is_not_understood_asks_for_a_full_round(world: World, status: int) -> None:
    cursor = await world.cursor()
    world.fake.garbled_delta_status = status
    with pytest.raises(CursorExpired):
        await world.round(cursor[:-9] + "garbled%3d")


@pytest.mark.parametrize(
    "cursor", ["", "graph-1:", "google-1:abc", "graph-1:not a link", "graph-1:http://[x"]
)
async def test_a_cursor_of_somebody_else_asks_for_a_full_round(world: World, cursor: str) -> None:
    with pytest.raises(CursorExpired):
        await world.round(cursor)
    assert world.fake.requests == []


@pytest.mark.parametrize(
    "change",
    [
        lambda link: link.replace("127.0.0.1", "localhost"),
        lambda link: link.replace("http://", "http://someone@"),
        lambda link: link.replace("http://", "https://"),
        lambda link: link.replace("/v1.0", "1/v1.0", 1),
    ],
)
async def test_no_token_is_sent_where_a_cursor_points_elsewhere(
    world: World, change: Callable[[str], str]
) -> None:
    cursor = await world.cursor()
    world.fake.requests.clear()
    with pytest.raises(CursorExpired):
        await world.round(change(cursor))
    assert world.fake.requests == []


async def test_no_token_is_sent_where_a_page_link_points_elsewhere(world: World) -> None:
    world.fake.seed(5, start=NOW)
    stranger = FakeMicrosoft()
    async with serve(stranger) as stranger_url:
        world.fake.foreign_links = stranger_url
        with pytest.raises(Unavailable):
            await world.round(page_size=2)
    assert stranger.requests == []


async def test_links_are_followed_as_they_are(world: World) -> None:
    world.fake.empty_pages = True
    await world.round(await world.cursor())
    queries = [request.query for request in world.fake.requests_to("delta")]
    assert [query.partition("=")[0] for query in queries] == [
        *("startDateTime", "$skiptoken", "$skiptoken"),
        *("$deltatoken", "$skiptoken", "$skiptoken"),
    ]
    assert [query[-3:] for query in queries[1:]] == ["%2b", "%2b", "%3d", "%2b", "%2b"]


# --- changes while a round is under way ------------------------------------------------------------------


async def test_what_changes_after_the_delta_link_is_taken_comes_in_the_next_round(world: World) -> None:
    event_id = add(world.fake, subject="before")
    late: list[str] = []
    # The delta link is given out by then; calendarView may or may not see the change.
    world.fake.on_request = on_nth("calendarView", 1, lambda: late.append(add(world.fake, subject="late")))
    first = await world.round()
    assert event_id in first.events
    second = await world.round(first.cursor)
    assert second.kept == {event_id, *late}
    assert (await world.round(second.cursor)).events == {}


async def test_an_event_that_goes_between_two_pages_does_not_hide_another(world: World) -> None:
    world.fake.seed(6, start=NOW)
    # The third page now starts one event later than it would have.
    world.fake.on_request = on_nth("calendarView", 2, lambda: world.fake.delete_event("seed0000000"))
    answered = await world.round(page_size=2)
    assert answered.kept == world.truth() == {f"seed000000{number}" for number in range(1, 6)}
    assert len(world.fake.requests_to("calendarView")) == 3 + 3
    assert (await world.round(answered.cursor)).events == {}


async def test_a_calendar_that_never_stands_still_loses_nothing_and_is_looked_at_again(world: World) -> None:
    world.fake.seed(6, start=NOW)
    number = 0

    def change(request: GraphRequest) -> None:
        nonlocal number
        if request.route == "calendarView":
            number += 1
            world.fake.update_event("seed0000005", subject=f"Version {number}")

    world.fake.on_request = change
    first = await world.round(page_size=2)
    assert first.kept == world.truth()
    world.fake.on_request = lambda _request: None
    second = await world.round(first.cursor)
    assert second.events["seed0000005"].name == f"Version {number}"
    assert (await world.round(second.cursor)).events == {}


async def test_a_link_that_expires_while_pages_are_read_costs_a_full_round(world: World) -> None:
    world.fake.seed(6, start=NOW)
    world.fake.on_request = on_nth("calendarView", 3, world.fake.expire_delta)
    answered = await world.round(page_size=2)
    assert (answered.kept, answered.cursor) == (world.truth(), None)


# --- where delta is of no use ----------------------------------------------------------------------------


async def test_a_calendar_without_delta_is_read_whole_each_time(world: World, logs: list[Any]) -> None:
    world.fake.no_delta = True
    kept, deleted = add(world.fake), add(world.fake)
    first = await world.round()
    assert (set(first.events), first.cursor, first.is_snapshot) == ({kept, deleted}, None, True)
    world.fake.delete_event(deleted)
    assert (await world.round(first.cursor)).kept == {kept}
    assert {"event": "microsoft.delta_unusable", "code": "bad_request", "log_level": "warning"} in logs


async def test_a_delta_that_goes_round_in_circles_does_not_hold_up_the_sync(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microsoft_client, "_MOST_PAGES", 5)
    event_id = add(world.fake)
    cursor = await world.cursor()
    world.fake.endless_delta = True
    without_cursor, with_cursor = await world.round(), await world.round(cursor)
    assert (without_cursor.kept, without_cursor.cursor) == ({event_id}, None)
    assert (with_cursor.kept, with_cursor.cursor) == ({event_id}, cursor)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "headers": {"Retry-After": "7"}},
        {"status": 504, "body": b"<html>Gateway Timeout</html>"},
        {"status": 200, "body": b"not json", "content_type": "application/json"},
        {"status": 200, "body": b"{}", "content_type": "application/json"},
        {"status": 200, "body": b'{"value": []}', "content_type": "application/json"},
        {"status": 403, "reason": "ErrorAccessDenied"},
        {"status": 410, "reason": "resyncRequired"},
        {"kind": "reset"},
        {"kind": "cut"},
    ],
)
async def test_a_failing_delta_does_not_hold_up_the_first_round(world: World, fault: Any) -> None:
    event_id = add(world.fake)
    world.fake.inject_fault("delta", **fault)
    answered = await world.round()
    assert (answered.kept, answered.cursor) == ({event_id}, None)


async def test_a_failing_delta_does_not_hold_up_later_rounds_and_is_tried_again(world: World) -> None:
    event_id = add(world.fake, subject="before")
    cursor = await world.cursor()
    world.fake.inject_fault("delta", 500)
    world.fake.update_event(event_id, subject="after")
    blind = await world.round(cursor)
    assert (blind.events[event_id].name, blind.cursor) == ("after", cursor)
    assert (await world.round((await world.round(cursor)).cursor)).events == {}


async def test_throttling_is_never_answered_by_another_request(world: World) -> None:
    world.fake.inject_fault("delta", 429, "ApplicationThrottled", headers={"Retry-After": "11"})
    with pytest.raises(RateLimited) as caught:
        await world.round()
    assert caught.value.retry_after == 11
    assert world.fake.requests_to("calendarView") == []


async def test_a_window_longer_than_graph_expands_is_read_in_parts(world: World) -> None:
    near, far = add(world.fake), add(world.fake, days=1_900)
    across = world.fake.add_event(start=NOW + 1_700 * DAY, end=NOW + 1_900 * DAY)
    window = Window(NOW - 100 * DAY, NOW + 2_000 * DAY)
    answered = await world.round(window=window)
    assert (answered.kept, answered.cursor) == ({near, far, across}, None)
    assert len(world.fake.requests_to("calendarView")) == 2


# --- large calendars -------------------------------------------------------------------------------------


async def test_a_page_is_given_on_before_the_next_one_is_asked_for(world: World) -> None:
    world.fake.seed(30, start=NOW)
    async for _page in world.calendar(page_size=10).changes(cursor=None, window=WINDOW):
        break
    assert len(world.fake.requests_to("calendarView")) == 1


async def test_pages_that_are_too_large_are_read_in_smaller_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microsoft_client, "_MAX_BODY_BYTES", 40_000)
    world.fake.seed(30, start=NOW, body_length=1_000)
    answered = await world.round(page_size=100)
    assert answered.kept == world.truth()
    tops = [int(request.params["$top"]) for request in world.fake.requests_to("calendarView")]
    assert tops == [100, 10, 10, 10]


@pytest.mark.parametrize("status", [500, 504])
async def test_pages_that_graph_fails_at_are_made_smaller_and_stay_so(world: World, status: int) -> None:
    world.fake.seed(30, start=NOW)

    def fail_at_large_pages(request: GraphRequest) -> None:
        if int(request.params.get("$top", 0)) > 10:
            world.fake.inject_fault("calendarView", status, body=b"")

    world.fake.on_request = fail_at_large_pages
    first = await world.round(page_size=100)
    assert first.kept == world.truth()
    world.fake.update_event("seed0000001", subject="renamed")
    world.fake.requests.clear()
    second = await world.round(first.cursor, page_size=100)
    assert second.kept == world.truth()
    tops = {
        int(request.params["$top"]) for request in world.fake.requests_to("calendarView") if request.params
    }
    assert tops == {10}
    # A full round tries large pages again; and in an outage nothing is guessed.
    world.fake.requests.clear()
    world.fake.on_request = lambda _request: None
    world.fake.inject_fault("*", 503, body=b"", count=10)
    with pytest.raises(Unavailable):
        await world.round(page_size=100)
    assert [request.params["$top"] for request in world.fake.requests_to("calendarView")] == ["100"]


async def test_one_event_that_is_larger_than_any_answer_ends_the_sync_with_a_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microsoft_client, "_MAX_BODY_BYTES", 5_000)
    add(world.fake, body="x" * 10_000)
    with pytest.raises(Unavailable) as caught:
        await world.round(page_size=100)
    assert caught.value.code == "answer_too_large"


# --- tokens ----------------------------------------------------------------------------------------------


async def test_an_expired_access_token_is_renewed_once_between_pages(world: World) -> None:
    world.fake.seed(5, start=NOW)
    world.fake.on_request = on_nth("calendarView", 2, world.fake.expire_access_tokens)
    assert len((await world.round(page_size=2)).events) == 5
    assert len(world.tokens.given) == 2


async def test_a_token_that_is_refused_even_when_fresh_is_a_dead_grant(world: World) -> None:
    world.fake.inject_fault("delta", 401, "InvalidAuthenticationToken", count=2)
    with pytest.raises(CredentialsRevoked):
        await world.round()
    assert len(world.fake.requests_to("delta")) == 2


async def test_a_claims_challenge_asks_the_person_to_sign_in_again(world: World) -> None:
    world.fake.mailbox().asks_for_claims = True
    with pytest.raises(CredentialsRevoked) as caught:
        await world.round()
    assert caught.value.code == "conditional_access"


async def test_a_grant_without_the_calendar_is_refused_by_graph_too(world: World) -> None:
    world.tokens.current = world.fake.issue_access_token(
        refresh_token=world.fake.add_grant(scopes=[USER_SCOPE])
    )
    with pytest.raises(AccessDenied):
        await world.round()


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "kind", "code"),
    [
        (
            (404, "MailboxNotEnabledForRESTAPI", "REST API is not yet supported for this mailbox."),
            AccessDenied,
            "mailbox_not_enabled",
        ),
        (
            (404, "ResourceNotFound", "Resource could not be discovered."),
            CalendarRemoved,
            "mailbox_not_enabled",
        ),
        ((403, "ErrorAccessDenied", "Access is denied."), AccessDenied, "access_denied"),
        ((404, "ErrorItemNotFound", "Not found."), CalendarRemoved, "calendar_gone"),
        ((503, "ErrorMailboxMoveInProgress", "Moving."), Unavailable, "mailbox_moving"),
        ((503, "ServiceUnavailable", "Later."), Unavailable, "unavailable"),
        ((429, "TooManyRequests", "Slow down."), RateLimited, "rate_limited"),
    ],
)
async def test_what_a_mailbox_answers_is_told_by_its_kind(
    world: World, refusal: tuple[int, str, str], kind: type[ProviderError], code: str
) -> None:
    cursor = await world.cursor()
    world.fake.mailbox().refusal = refusal
    with pytest.raises(kind) as caught:
        await world.round()
    assert (type(caught.value), caught.value.code) == (kind, code)
    with pytest.raises(CursorExpired if kind is CalendarRemoved else kind):
        await world.round(cursor)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "body": b"<html>Service Unavailable</html>"},
        {"status": 404, "body": b"<html>Not Found</html>"},
        {"status": 200, "body": b"<html>Sign in to this network</html>"},
        {"status": 200, "body": b'{"value": null}', "content_type": "application/json"},
        {"status": 200, "body": b"[]", "content_type": "application/json"},
        {"status": 302, "body": b"", "headers": {"Location": "https://elsewhere.example/"}},
        {"kind": "reset"},
        {"kind": "cut"},
    ],
)
async def test_an_outage_is_never_taken_for_an_empty_or_lost_calendar(world: World, fault: Any) -> None:
    add(world.fake)
    world.fake.inject_fault("calendarView", count=8, **fault)  # smaller pages are tried, too
    with pytest.raises(Unavailable):
        await world.round()


async def test_an_answer_that_dribbles_does_not_hold_the_worker(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microsoft_client, "_DEADLINE_SECONDS", 0.05)
    world.fake.inject_fault("calendarView", kind="dribble", count=8)
    with pytest.raises(Unavailable) as caught:
        await world.round()
    assert caught.value.code == "timeout"


async def test_errors_hold_neither_tokens_nor_links(world: World) -> None:
    cursor = await world.cursor()
    token = world.tokens.current
    assert token is not None
    for kind in ("reset", "cut"):
        world.fake.inject_fault("*", kind=kind, count=2)
        with pytest.raises(Unavailable) as caught:
            await world.round(cursor)
        text = "".join(traceback.format_exception(caught.value))
        assert token not in text
        assert "deltatoken" not in text


# --- the token endpoint ----------------------------------------------------------------------------------


async def test_a_refresh_gives_an_access_token_and_the_next_refresh_token(world: World) -> None:
    fresh = await world.tokens.refresh()
    assert (fresh.expires_in, fresh.scope) == (3599, "Calendars.Read User.Read")
    assert fresh.refresh_token not in {None, world.fake.refresh_token}
    assert fresh.access_token not in repr(fresh)
    await world.tokens.refresh()
    # The one that was replaced still works, for a worker that had not heard of the new one.
    await world.tokens.refresh(refresh_token=world.fake.refresh_token)


async def test_an_answer_without_a_refresh_token_leaves_the_old_one_in_use(world: World) -> None:
    world.fake.omits_refresh_token = True
    assert (await world.tokens.refresh()).refresh_token is None


async def test_rotation_can_be_strict(world: World) -> None:
    world.fake.late_uses_allowed = 1
    await world.tokens.refresh()
    await world.tokens.refresh(refresh_token=world.fake.refresh_token)
    with pytest.raises(CredentialsRevoked):
        await world.tokens.refresh(refresh_token=world.fake.refresh_token)


async def test_a_refresh_token_that_is_not_used_for_90_days_expires(world: World) -> None:
    world.fake.now = lambda: NOW + 89 * DAY
    await world.tokens.refresh()
    world.fake.now = lambda: NOW + 170 * DAY
    await world.tokens.refresh()
    world.fake.now = lambda: NOW + 261 * DAY
    with pytest.raises(CredentialsRevoked) as caught:
        await world.tokens.refresh()
    assert caught.value.code == "invalid_grant"
    assert "90 days" in caught.value.message


@pytest.mark.parametrize("style", ["short", "url", "lower"])
@pytest.mark.parametrize("scope", [CALENDAR_SCOPE, "Calendars.ReadWrite", "Calendars.Read.Shared"])
async def test_the_calendar_scope_is_known_in_every_spelling(world: World, style: Any, scope: str) -> None:
    world.fake.scope_style = style
    token = world.fake.add_grant(scopes=[USER_SCOPE, scope, "offline_access"])
    assert (await world.tokens.refresh(refresh_token=token)).access_token


async def test_a_grant_without_the_calendar_scope_is_refused(world: World) -> None:
    for scopes in ([USER_SCOPE], ["Calendars.ReadBasic"], ["Mail.Read", "MyCalendars.Read"]):
        token = world.fake.add_grant(scopes=scopes)
        with pytest.raises(AccessDenied) as caught:
            await world.tokens.refresh(refresh_token=token)
        assert caught.value.code == "scope_missing"


@pytest.mark.parametrize(
    ("error", "number", "kind", "code"),
    [
        ("invalid_grant", 50173, CredentialsRevoked, "invalid_grant"),
        ("invalid_grant", 700082, CredentialsRevoked, "invalid_grant"),
        ("invalid_grant", 50057, CredentialsRevoked, "invalid_grant"),
        ("invalid_grant", 65001, CredentialsRevoked, "invalid_grant"),
        ("invalid_grant", 9002313, CredentialsRevoked, "invalid_grant"),
        ("interaction_required", 50076, CredentialsRevoked, "interaction_required"),
        ("interaction_required", 53003, CredentialsRevoked, "interaction_required"),
        ("login_required", 50058, CredentialsRevoked, "login_required"),
        ("consent_required", 99, CredentialsRevoked, "consent_required"),
        ("unauthorized_client", 700016, ClientMisconfigured, "unauthorized_client"),
        ("invalid_request", 50194, ClientMisconfigured, "invalid_request"),
        ("invalid_client", 7000215, ClientMisconfigured, "invalid_client"),
        ("invalid_client", 7000222, ClientMisconfigured, "invalid_client"),
        # The operator's fault, whatever the word says.
        ("invalid_grant", 7000222, ClientMisconfigured, "invalid_client"),
        ("invalid_scope", 70011, ClientMisconfigured, "invalid_scope"),
        ("access_denied", 65004, AccessDenied, "access_denied"),
        ("invalid_grant", 50196, RateLimited, "request_loop"),
        ("temporarily_unavailable", 90033, Unavailable, "unavailable"),
        ("server_error", 90033, Unavailable, "unavailable"),
        ("something_new", 12345, Unavailable, "unavailable"),
    ],
)
async def test_errors_of_the_token_endpoint_are_told_by_their_word_and_number(
    world: World, error: str, number: int, kind: type[ProviderError], code: str
) -> None:
    world.fake.fail_token(error, number)
    with pytest.raises(kind) as caught:
        await world.tokens.refresh()
    assert (type(caught.value), caught.value.code) == (kind, code)
    if isinstance(caught.value, ConnectionLost):
        assert caught.value.message.endswith(f"({error})")
    assert "Trace" not in caught.value.message
    assert world.fake.client_secret not in caught.value.message


async def test_the_state_of_the_app_registration_is_the_operators_concern(world: World) -> None:
    single = "single-tenant-app"
    world.fake.add_client(single, "secret", tenant_id=world.fake.tenant_id)
    token = world.fake.add_grant(client_id=single)
    with pytest.raises(ClientMisconfigured) as caught:
        await world.tokens.refresh(client_id=single, client_secret="secret", refresh_token=token)
    assert "single-tenant" in caught.value.message
    own_tenant = f"{world.url}/{world.fake.tenant_id}/oauth2/v2.0/token"
    await world.tokens.refresh(
        token_url=own_tenant, client_id=single, client_secret="secret", refresh_token=token
    )
    world.fake.client().is_secret_expired = True
    with pytest.raises(ClientMisconfigured) as caught:
        await world.tokens.refresh()
    assert "expired" in caught.value.message
    world.fake.delete_client(world.fake.client_id)
    with pytest.raises(ClientMisconfigured):
        await world.tokens.refresh()


@pytest.mark.parametrize(
    ("fault", "kind", "retry_after"),
    [
        ({"status": 429, "headers": {"Retry-After": "9"}}, RateLimited, 9),
        ({"status": 503, "body": b"<html>Down</html>", "headers": {"Retry-After": "5"}}, Unavailable, 5),
        ({"status": 400, "body": b"<html>Proxy</html>"}, Unavailable, None),
        ({"status": 500, "body": b'{"error": "invalid_grant"}'}, Unavailable, None),
        ({"status": 200, "body": b"<html>Sign in to this network</html>"}, Unavailable, None),
        ({"status": 200, "body": b'{"access_token": "a\\nb"}'}, Unavailable, None),
        ({"kind": "reset"}, Unavailable, None),
    ],
)
async def test_outages_of_the_token_endpoint_disconnect_nobody(
    world: World, fault: Any, kind: type[RateLimited | Unavailable], retry_after: float | None
) -> None:
    world.fake.inject_fault("token", **fault)
    with pytest.raises(kind) as caught:
        await world.tokens.refresh()
    assert caught.value.retry_after == retry_after


async def test_the_default_id_of_an_event_never_comes_in(world: World) -> None:
    event_id = add(world.fake)
    events = (await world.round()).events
    assert default_id(event_id) not in events
    assert default_id(event_id) not in events[event_id].raw
