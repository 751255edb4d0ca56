"""Live busy times of Outlook calendars, against the fake Graph."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from app.availability.live import LiveResult
from tests.fakes.microsoft import FakeMicrosoft
from tests.integration.availability.live_access import DAY, Reads, busy, hours

ADDRESS = "ada@example.com"
FREE = LiveResult([], None)


def _add(fake: FakeMicrosoft, start: float, end: float, **fields: Any) -> None:
    first, last = hours(start, end)
    fake.add_event(start=first, end=last, **fields)


def _fill(fake: FakeMicrosoft, **fields: Any) -> list[Any]:
    """Events of every status; returns the busy times."""
    _add(fake, 8, 9, showAs="free", **fields)
    _add(fake, 9, 10, showAs="busy", **fields)
    _add(fake, 9.5, 11, showAs="busy", **fields)
    _add(fake, 10, 12, showAs="tentative", **fields)
    _add(fake, 13, 14, showAs="oof", **fields)
    _add(fake, 15, 16, showAs="workingElsewhere", **fields)
    _add(fake, 17, 18, showAs="unknown", **fields)
    _add(fake, 19, 20, isCancelled=True, **fields)
    _add(fake, 21, 21, **fields)
    return [busy(9, 11), busy(10, 12, "tentative"), busy(13, 14, "out_of_office"), busy(17, 18)]


async def test_default_calendars_are_read_by_get_schedule(
    reads: Reads, fake_microsoft: FakeMicrosoft
) -> None:
    expected = _fill(fake_microsoft)
    calendar_id = await reads.microsoft(fake_microsoft, owner_email=ADDRESS.upper())
    for _ in range(5):  # the case of the letters differs
        assert await reads.read_one(calendar_id) == LiveResult(expected, None)
    assert fake_microsoft.requests_to("calendarView") == []


async def test_other_calendars_are_read_by_calendar_view(reads: Reads, fake_microsoft: FakeMicrosoft) -> None:
    team = fake_microsoft.add_calendar()
    expected = _fill(fake_microsoft, calendar_id=team)
    _add(fake_microsoft, 0, 24)  # in the default calendar
    declined = {"response": "declined", "time": "2026-11-01T00:00:00Z"}
    _add(fake_microsoft, 22, 23, calendar_id=team, isOrganizer=False, responseStatus=declined)
    calendar_id = await reads.microsoft(fake_microsoft, owner_email=ADDRESS, platform_uuid=team)
    assert await reads.read_one(calendar_id) == LiveResult(expected, None)
    assert fake_microsoft.requests_to("getSchedule") == []


async def test_without_an_address_the_default_calendar_is_read_by_calendar_view(
    reads: Reads, fake_microsoft: FakeMicrosoft
) -> None:
    expected = _fill(fake_microsoft)
    calendar_id = await reads.microsoft(fake_microsoft)
    assert await reads.read_one(calendar_id) == LiveResult(expected, None)
    assert fake_microsoft.requests_to("getSchedule") == []


async def test_a_day_more_is_read_at_both_ends_of_a_view(reads: Reads, fake_microsoft: FakeMicrosoft) -> None:
    """Graph may place an all-day event in another zone."""
    await reads.read_one(await reads.microsoft(fake_microsoft), hours(0, 24))
    (request,) = fake_microsoft.requests_to("calendarView")
    assert request.params["startDateTime"] == "2028-03-05T00:00:00Z"
    assert request.params["endDateTime"] == "2028-03-08T00:00:00Z"


async def test_personal_accounts_are_read_by_calendar_view(
    reads: Reads, fake_microsoft: FakeMicrosoft
) -> None:
    expected = _fill(fake_microsoft)
    fake_microsoft.personal_mailboxes.add(ADDRESS)
    calendar_id = await reads.microsoft(fake_microsoft, owner_email=ADDRESS)
    for _ in range(3):
        assert await reads.read_one(calendar_id) == LiveResult(expected, None)
    assert len(fake_microsoft.requests_to("getSchedule")) == 1
    assert len(fake_microsoft.requests_to("calendarView")) == 3


async def test_an_address_that_is_not_the_accounts_any_more_is_not_free(
    reads: Reads, fake_microsoft: FakeMicrosoft
) -> None:
    expected = _fill(fake_microsoft)
    calendar_id = await reads.microsoft(fake_microsoft, owner_email="former@example.com")
    assert await reads.read_one(calendar_id) == LiveResult(expected, None)


@pytest.mark.parametrize("style", ["own", "asked"])
async def test_all_day_events_are_days_of_their_creators_zone(
    reads: Reads, fake_microsoft: FakeMicrosoft, style: Any
) -> None:
    fake_microsoft.schedule_all_day = style
    day = DAY.date()
    for status, start in (("oof", day), ("free", day + timedelta(days=2))):
        fake_microsoft.add_event(
            start=start,
            end=start + timedelta(days=1),
            showAs=status,
            originalStartTimeZone="Tokyo Standard Time",
        )
    absent = "out_of_office"
    for asked, expected in (
        (hours(-24, 96), [busy(-9, 15, absent)]),
        # Also where the range has none of the day, as it is written in UTC.
        (hours(-9, -5), [busy(-9, -5, absent)]),
        (hours(20, 24), []),
    ):
        # getSchedule is not asked again for an account to which it was of no use.
        calendar_id = await reads.microsoft(fake_microsoft, owner_email=ADDRESS)
        assert (await reads.read_one(calendar_id, asked)).busy == expected


async def test_long_ranges_are_asked_for_in_pieces(reads: Reads, fake_microsoft: FakeMicrosoft) -> None:
    piece = 60 * 24
    starts = (10, piece - 1, piece + 5, 91 * 24)
    for start in starts:
        _add(fake_microsoft, start, start + 3)
    expected = [busy(start, start + 3) for start in starts]
    by_schedule = await reads.microsoft(fake_microsoft, owner_email=ADDRESS)
    by_view = await reads.microsoft(fake_microsoft)
    for calendar_id in (by_schedule, by_view):
        assert (await reads.read_one(calendar_id, hours(0, 92 * 24))).busy == expected
    assert len(fake_microsoft.requests_to("getSchedule")) == 2
    assert {request.status for request in fake_microsoft.requests} == {200}


async def test_a_view_of_many_events_is_complete(reads: Reads, fake_microsoft: FakeMicrosoft) -> None:
    fake_microsoft.seed(3000, start=DAY, spacing=timedelta(minutes=20), duration=timedelta(minutes=10))
    calendar_id = await reads.microsoft(fake_microsoft)
    result = await reads.read_one(calendar_id, hours(0, 60 * 24))
    assert result.busy == [busy(number / 3, number / 3 + 1 / 6) for number in range(3000)]


async def test_a_view_of_far_too_many_events_is_an_error(reads: Reads, fake_microsoft: FakeMicrosoft) -> None:
    fake_microsoft.seed(3000, start=DAY, spacing=timedelta(seconds=1))
    calendar_id = await reads.microsoft(fake_microsoft)
    result = await reads.read_one(calendar_id, hours(0, 60 * 24))
    assert result.error == "This calendar has too many events to be read at once."
    assert len(fake_microsoft.requests_to("calendarView")) <= 12


@pytest.mark.parametrize("owner_email", [None, ADDRESS])
async def test_series_are_their_occurrences(
    reads: Reads, fake_microsoft: FakeMicrosoft, owner_email: str | None
) -> None:
    first, last = hours(9, 10)
    fake_microsoft.add_series(start=first, end=last, rrule="FREQ=DAILY;COUNT=3")
    calendar_id = await reads.microsoft(fake_microsoft, owner_email=owner_email)
    result = await reads.read_one(calendar_id, hours(0, 240))
    assert result.busy == [busy(9, 10), busy(33, 34), busy(57, 58)]


async def test_no_calendar_and_no_permission_are_errors(reads: Reads, fake_microsoft: FakeMicrosoft) -> None:
    removed = await reads.microsoft(fake_microsoft, platform_uuid="AAMkremoved")
    assert "does not know this calendar" in str((await reads.read_one(removed)).error)
    token = fake_microsoft.add_grant(scopes=("User.Read", "offline_access", "Calendars.ReadBasic"))
    calendar_id = await reads.microsoft(fake_microsoft, refresh_token=token, owner_email=ADDRESS)
    assert (await reads.read_one(calendar_id)).error
    await reads.check_untouched(calendar_id)
    await reads.check_untouched(removed)


async def test_a_refused_permission_is_named(reads: Reads, fake_microsoft: FakeMicrosoft) -> None:
    calendar_id = await reads.microsoft(fake_microsoft, owner_email=ADDRESS)
    for route in ("getSchedule", "calendarView"):
        fake_microsoft.inject_fault(route, 403, "ErrorAccessDenied")
    assert "Calendars.Read" in str((await reads.read_one(calendar_id)).error)


@pytest.mark.parametrize("code", ["timeout", "reset"])
async def test_no_second_request_follows_one_without_a_response(
    reads: Reads, fake_microsoft: FakeMicrosoft, code: str
) -> None:
    calendar_id = await reads.microsoft(fake_microsoft, owner_email=ADDRESS)
    fake_microsoft.inject_fault("getSchedule", kind="dribble" if code == "timeout" else "reset")
    reads.access.within_seconds = 1
    assert (await reads.read_one(calendar_id)).error is not None
    assert fake_microsoft.requests_to("calendarView") == []


# -- wrong responses -----------------------------------------------------------------------------------------


def _schedule(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    def rewrite(document: dict[str, Any]) -> Any:
        document["value"][0] |= changes
        return document

    return rewrite


def _item(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    def rewrite(document: dict[str, Any]) -> Any:
        document["value"][0]["scheduleItems"][0] |= changes
        return document

    return rewrite


def _at(written: Any, zone: Any = "UTC") -> dict[str, Any]:
    return {"dateTime": written, "timeZone": zone}


_LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an empty object": lambda _: {},
    "a list": lambda _: [],
    "no schedules": lambda _: {"value": []},
    "schedules as an object": lambda document: {"value": document["value"][0]},
    "a schedule that is null": lambda _: {"value": [None]},
    "another address": _schedule(scheduleId="bob@example.com"),
    "no address": _schedule(scheduleId=None),
    "null items": _schedule(scheduleItems=None),
    "an error beside items": _schedule(error={"responseCode": "5016"}, scheduleItems=[]),
    "an item that is a text": _schedule(scheduleItems=["busy"]),
    "no start": _item(start=None),
    "an unknown zone": _item(start=_at("2028-03-06T09:00:00.0000000", "Nowhere Standard Time")),
    "no zone": _item(start={"dateTime": "2028-03-06T09:00:00.0000000"}),
    "a time that is none": _item(start=_at("noon")),
    "a time that is a number": _item(start=_at(9)),
    "a reversed item": _item(end=_at("2028-03-06T08:00:00.0000000")),
    "an item in another year": _item(
        start=_at("2027-03-06T08:00:00.0000000"), end=_at("2027-03-06T09:00:00.0000000")
    ),
}


@pytest.mark.parametrize("lie", _LIES)
async def test_a_wrong_schedule_is_never_free(reads: Reads, fake_microsoft: FakeMicrosoft, lie: str) -> None:
    _add(fake_microsoft, 9, 10)
    fake_microsoft.rewrite_schedule = _LIES[lie]
    calendar_id = await reads.microsoft(fake_microsoft, owner_email=ADDRESS)
    fake_microsoft.inject_fault("calendarView", 503)
    result = await reads.read_one(calendar_id)
    assert result.busy is None
    assert await reads.read_one(calendar_id) == LiveResult([busy(9, 10)], None)


@pytest.mark.parametrize("status", ["", "Sabbatical", None, 3])
async def test_an_unknown_status_is_busy(reads: Reads, fake_microsoft: FakeMicrosoft, status: Any) -> None:
    _add(fake_microsoft, 9, 10)
    fake_microsoft.rewrite_schedule = _item(status=status)
    calendar_id = await reads.microsoft(fake_microsoft, owner_email=ADDRESS)
    assert await reads.read_one(calendar_id) == LiveResult([busy(9, 10)], None)


@pytest.mark.parametrize(
    "resource",
    [
        {"id": "AAkALgOne"},
        {"subject": "without an id"},
        {"id": "AAkALgOne", "start": _at("noon"), "end": _at("midnight")},
        {
            "id": "AAkALgOne",
            "start": _at("2028-03-06T10:00:00.0000000"),
            "end": _at("2028-03-06T09:00:00.0000000"),
        },
        {"id": "AAkALgOne", "showAs": "busy", "start": _at("2028-03-06T10:00:00.0000000"), "end": None},
    ],
)
async def test_an_unreadable_event_of_a_view_is_not_free(
    reads: Reads, fake_microsoft: FakeMicrosoft, resource: dict[str, Any]
) -> None:
    fake_microsoft.put_raw(resource)
    calendar_id = await reads.microsoft(fake_microsoft)
    result = await reads.read_one(calendar_id)
    assert result.busy is None
    assert str(result.error).startswith("Microsoft")


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b'{"value": {}}', b'{"value": [null]}', b'{"value": ["x"]}', b'{"value": null}']
)
async def test_a_wrong_view_is_never_free(reads: Reads, fake_microsoft: FakeMicrosoft, body: bytes) -> None:
    calendar_id = await reads.microsoft(fake_microsoft)
    fake_microsoft.inject_fault("calendarView", 200, body=body, content_type="application/json")
    assert (await reads.read_one(calendar_id)).busy is None
    assert await reads.read_one(calendar_id) == FREE


async def test_a_view_with_endless_pages_ends(reads: Reads, fake_microsoft: FakeMicrosoft) -> None:
    calendar_id = await reads.microsoft(fake_microsoft)
    body = b'{"value": [], "@odata.nextLink": "http://example.com/"}'
    fake_microsoft.inject_fault("calendarView", 200, body=body, content_type="application/json", count=99)
    assert "too many events" in str((await reads.read_one(calendar_id)).error)
    assert len(fake_microsoft.requests_to("calendarView")) == 12
