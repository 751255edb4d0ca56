"""Live busy times of Google calendars, against the fake Google."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.availability.live import LiveRequest, LiveResult, read_live
from tests.conftest import TestProject
from tests.fakes.google import FakeGoogle
from tests.integration.availability.live_access import DAY, Reads, busy, hours

_GUEST = {"email": "ada@example.com", "self": True}


async def test_busy_times_are_those_that_google_counts(reads: Reads, fake_google: FakeGoogle) -> None:
    def add(start: float, end: float, **fields: Any) -> None:
        first, last = hours(start, end)
        fake_google.add_event(start=first, end=last, **fields)

    add(9, 10)
    add(9.5, 10.5, attendees=[{**_GUEST, "responseStatus": "tentative"}])
    add(11, 12, transparency="transparent")
    add(12, 13, status="cancelled")
    add(13, 14, attendees=[{**_GUEST, "responseStatus": "declined"}])
    add(14, 15, attendees=[{**_GUEST, "responseStatus": "needsAction"}])
    add(16, 16)
    calendar_id = await reads.google(fake_google)

    assert await reads.read_one(calendar_id) == LiveResult([busy(9, 10.5), busy(14, 15)], None)
    (request,) = fake_google.requests_to("freebusy.query")
    assert request.status == 200


async def test_busy_times_are_cut_to_the_ranges(reads: Reads, fake_google: FakeGoogle) -> None:
    fake_google.add_event(start=DAY - timedelta(days=3), end=DAY + timedelta(hours=30))
    fake_google.free_busy_cuts = False
    calendar_id = await reads.google(fake_google)
    result = await reads.read_one(calendar_id, hours(2, 3), hours(5, 7), hours(29, 40))
    assert result.busy == [busy(2, 3), busy(5, 7), busy(29, 30)]


async def test_a_calendar_that_is_connected_twice_gets_what_each_was_asked_for(
    reads: Reads, fake_google: FakeGoogle, project: TestProject
) -> None:
    first, last = hours(1, 9)
    fake_google.add_event(start=first, end=last)
    one = await reads.google(fake_google)
    other = await reads.share(one, "primary")
    requests = [LiveRequest(one, [hours(2, 4)]), LiveRequest(other, [hours(3, 5), hours(8, 20)])]
    assert await read_live(reads.access, project.id, requests) == {
        one: LiveResult([busy(2, 4)], None),
        other: LiveResult([busy(3, 5), busy(8, 9)], None),
    }


async def test_calendars_of_one_account_share_a_request(reads: Reads, fake_google: FakeGoogle) -> None:
    ids = [fake_google.add_calendar(f"team{number}@group.calendar.google.com") for number in range(60)]
    for number, google_id in enumerate(ids):
        first, last = hours(number / 10, number / 10 + 1)
        fake_google.add_event(start=first, end=last, calendar_id=google_id)
    primary = await reads.google(fake_google)
    calendars = {await reads.share(primary, google_id): number for number, google_id in enumerate(ids)}

    results = await reads.read([primary, *calendars])
    assert results.pop(primary).busy == []
    for calendar_id, result in results.items():
        number = calendars[calendar_id]
        assert result == LiveResult([busy(number / 10, number / 10 + 1)], None)
    assert [len(body["items"]) for body in fake_google.free_busy_bodies] == [50, 11]


async def test_long_ranges_are_asked_for_in_pieces(reads: Reads, fake_google: FakeGoogle) -> None:
    piece = 60 * 24
    for start in (10, piece - 1, piece + 5, 91 * 24):
        first, last = hours(start, start + 3)
        fake_google.add_event(start=first, end=last)
    calendar_id = await reads.google(fake_google)
    result = await reads.read_one(calendar_id, hours(0, 92 * 24))
    assert result.busy == [
        busy(10, 13),
        busy(piece - 1, piece + 2),
        busy(piece + 5, piece + 8),
        busy(91 * 24, 91 * 24 + 3),
    ]
    assert len(fake_google.requests_to("freebusy.query")) == 2


async def test_ranges_with_fractions_of_a_second_are_covered(reads: Reads, fake_google: FakeGoogle) -> None:
    first, last = hours(0, 24)
    fake_google.add_event(start=first, end=last)
    calendar_id = await reads.google(fake_google)
    start = first + timedelta(microseconds=1)
    result = await reads.read_one(calendar_id, (start, start + timedelta(microseconds=5)))
    assert result.busy is not None
    assert [(one.start, one.end) for one in result.busy] == [(start, start + timedelta(microseconds=5))]


@pytest.mark.parametrize("year", [1, 9999])
async def test_ranges_at_the_ends_of_time(reads: Reads, fake_google: FakeGoogle, year: int) -> None:
    calendar_id = await reads.google(fake_google)
    start = datetime(year, 1, 1, tzinfo=UTC) if year == 1 else datetime(year, 12, 1, tzinfo=UTC)
    end = start + timedelta(days=30, hours=23, minutes=59, seconds=59, microseconds=999_999)
    assert await reads.read_one(calendar_id, (start, end)) == LiveResult([], None)


async def test_unknown_calendars_are_not_free(reads: Reads, fake_google: FakeGoogle) -> None:
    primary = await reads.google(fake_google)
    unknown = await reads.share(primary, "unknown@group.calendar.google.com")
    broken = await reads.share(primary, fake_google.add_calendar("broken@group.calendar.google.com"))
    fake_google.free_busy_internal_errors.add("broken@group.calendar.google.com")
    results = await reads.read([primary, unknown, broken])
    assert results[primary] == LiveResult([], None)
    assert results[unknown].error == "Google does not know this calendar, or the account may not see it."
    assert results[broken].error == "Google could not read this calendar: try again later."


async def test_a_malformed_id_does_not_hide_the_other_calendars(
    reads: Reads, fake_google: FakeGoogle
) -> None:
    fake_google.free_busy_malformed.add("not an id")
    primary = await reads.google(fake_google)
    malformed = await reads.share(primary, "not an id")
    others = [
        await reads.share(primary, fake_google.add_calendar(f"team{number}@example.com"))
        for number in range(10)
    ]
    results = await reads.read([*others, malformed, primary])
    assert results.pop(malformed).error == "Google refused the request as malformed."
    assert {result.error for result in results.values()} == {None}


async def test_requests_that_are_always_malformed_are_few(reads: Reads, fake_google: FakeGoogle) -> None:
    primary = await reads.google(fake_google)
    ids = [primary, *[await reads.share(primary, f"team{number}@example.com") for number in range(49)]]
    fake_google.inject_fault("freebusy.query", 400, "badRequest", count=1000)
    results = await reads.read(ids)
    assert {result.error for result in results.values()} == {"Google refused the request as malformed."}
    assert len(fake_google.requests_to("freebusy.query")) <= 25


@pytest.mark.parametrize(
    ("scope", "is_enough"),
    [
        ("calendar", True),
        ("calendar.readonly", True),
        ("calendar.freebusy", True),
        ("calendar.events.freebusy", True),
        ("calendar.events", False),
    ],
)
async def test_scopes(reads: Reads, fake_google: FakeGoogle, scope: str, is_enough: bool) -> None:
    token = fake_google.add_grant(scopes=[f"https://www.googleapis.com/auth/{scope}"])
    calendar_id = await reads.google(fake_google, refresh_token=token)
    result = await reads.read_one(calendar_id)
    if is_enough:
        assert result == LiveResult([], None)
    else:
        assert result.error is not None
        assert "calendar.freebusy" in result.error
        assert "calendar.events alone is not enough" in result.error
    await reads.check_untouched(calendar_id)


def _entry(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    def rewrite(document: dict[str, Any]) -> Any:
        document["calendars"]["primary"] |= changes
        return document

    return rewrite


def _period(start: Any, end: Any) -> Callable[[dict[str, Any]], Any]:
    return _entry(busy=[{"start": start, "end": end}])


def _without(name: str) -> Callable[[dict[str, Any]], Any]:
    def rewrite(document: dict[str, Any]) -> Any:
        del document["calendars"]["primary"][name]
        return document

    return rewrite


_LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an empty object": lambda _: {},
    "a list": lambda _: [],
    "an error with status 200": lambda _: {"error": {"code": 500}},
    "no calendars": lambda document: {**document, "calendars": {}},
    "calendars as a list": lambda document: {**document, "calendars": list(document["calendars"].items())},
    "another key": lambda document: {
        **document,
        "calendars": {"ada@example.com": document["calendars"]["primary"]},
    },
    "an entry that is null": lambda document: {**document, "calendars": {"primary": None}},
    "no busy": _without("busy"),
    "busy is null": _entry(busy=None),
    "busy is an object": _entry(busy={}),
    "errors beside busy": _entry(errors=[{"reason": "somethingNew"}]),
    "errors of another shape": _entry(errors={"reason": "notFound"}),
    "a period that is a text": _entry(busy=["2028-03-06T09:00:00Z"]),
    "a period without an end": _entry(busy=[{"start": "2028-03-06T09:00:00Z"}]),
    "a time without an offset": _period("2028-03-06T09:00:00", "2028-03-06T10:00:00"),
    "a time that is a number": _period(1, 2),
    "a time that is none": _period("noon", "midnight"),
    "a time before the first year": _period("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"),
    "a period that is reversed": _period("2028-03-06T10:00:00Z", "2028-03-06T09:00:00Z"),
    "a period in another year": _period("2027-03-06T09:00:00Z", "2027-03-06T10:00:00Z"),
    "a range that begins later": lambda document: {**document, "timeMin": "2028-03-06T12:00:00.000Z"},
    "a range that ends earlier": lambda document: {**document, "timeMax": "2028-03-06T12:00:00.000+09:00"},
}


@pytest.mark.parametrize("lie", _LIES)
async def test_a_wrong_response_is_never_free(reads: Reads, fake_google: FakeGoogle, lie: str) -> None:
    fake_google.rewrite_free_busy = _LIES[lie]
    calendar_id = await reads.google(fake_google)
    result = await reads.read_one(calendar_id)
    assert result.busy is None
    assert result.error is not None
    assert result.error.startswith("Google")


async def test_times_in_any_zone_are_understood(reads: Reads, fake_google: FakeGoogle) -> None:
    fake_google.rewrite_free_busy = _period("2028-03-06T10:00:00+01:00", "2028-03-06T05:00:00.000-05:00")
    calendar_id = await reads.google(fake_google)
    assert (await reads.read_one(calendar_id)).busy == [busy(9, 10)]


async def test_all_day_events_are_days_of_the_calendars_zone(reads: Reads, fake_google: FakeGoogle) -> None:
    fake_google.add_event(start=DAY.date(), end=DAY.date() + timedelta(days=1))
    calendar_id = await reads.google(fake_google)
    assert (await reads.read_one(calendar_id, hours(-24, 48))).busy == [busy(-1, 23)]
