"""For any events and ranges: live busy times are, minute by minute, what the events make of them."""

import contextlib
import dataclasses
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

from hypothesis import HealthCheck, given, settings, strategies

from app.availability.live import BusyTime, LiveResult
from tests.fakes.google import FakeGoogle
from tests.fakes.microsoft import FakeMicrosoft
from tests.integration.availability.live_access import DAY, Reads

_MINUTE = timedelta(minutes=1)
_DAYS = 130
_STRENGTH = {"out_of_office": 3, "busy": 2, "tentative": 1}


@dataclasses.dataclass(frozen=True)
class Entry:
    """An event. `start` and `length` are minutes, of an all-day event days."""

    is_all_day: bool
    start: int
    length: int
    show_as: str
    fate: Literal["kept", "cancelled", "declined", "tentative"]
    calendar: int


_minutes = strategies.one_of(
    strategies.integers(-3000, _DAYS * 1440),
    # Where pieces and ranges of the requests end.
    strategies.sampled_from([0, 1, 59, 60 * 1440 - 1, 60 * 1440, 60 * 1440 + 1, 62 * 1440]),
)
_timed = strategies.builds(
    Entry,
    is_all_day=strategies.just(False),
    start=_minutes,
    length=strategies.one_of(strategies.integers(0, 300), strategies.integers(0, 20_000)),
    show_as=strategies.sampled_from(["busy", "free", "tentative", "oof", "workingElsewhere"]),
    fate=strategies.sampled_from(["kept", "kept", "kept", "cancelled", "declined", "tentative"]),
    calendar=strategies.integers(0, 1),
)
_all_day = strategies.builds(
    Entry,
    is_all_day=strategies.just(True),
    start=strategies.integers(-2, _DAYS),
    length=strategies.integers(1, 4),
    show_as=strategies.sampled_from(["busy", "free", "oof"]),
    fate=strategies.just("kept"),
    calendar=strategies.integers(0, 1),
)
_entries = strategies.lists(strategies.one_of(_timed, _timed, _all_day), max_size=12)
_ranges = strategies.lists(
    strategies.tuples(_minutes, strategies.integers(1, 92 * 1440)), min_size=1, max_size=3
)
_any_number = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# Paris is an hour ahead of UTC at first, and two from this day on.
_SUMMER = 20


def _span(entry: Entry) -> tuple[int, int]:
    """In minutes of UTC; a day is one in Paris."""
    if not entry.is_all_day:
        return entry.start, entry.start + entry.length
    first, last = (
        day * 1440 - (60 if day <= _SUMMER else 120) for day in (entry.start, entry.start + entry.length)
    )
    return first, last


def _expected(entries: Sequence[Entry], ranges: Sequence[tuple[int, int]], status_of: Any) -> dict[int, str]:
    """The status of each busy minute."""
    asked = {minute for start, length in ranges for minute in range(start, start + length)}
    found: dict[int, str] = {}
    for entry in entries:
        status = status_of(entry)
        if status is not None:
            for minute in range(*_span(entry)):
                if minute in asked and _STRENGTH[status] > _STRENGTH.get(found.get(minute, ""), 0):
                    found[minute] = status
    return found


def _minutes_of(result: LiveResult) -> dict[int, str]:
    assert result.error is None
    assert result.busy is not None
    found: dict[int, str] = {}
    for one in result.busy:
        assert isinstance(one, BusyTime)
        assert one.start < one.end
        first, last = (int((at - DAY) / _MINUTE) for at in (one.start, one.end))
        for minute in range(first, last):
            if _STRENGTH[one.status] > _STRENGTH.get(found.get(minute, ""), 0):
                found[minute] = one.status
    assert list(result.busy) == sorted(result.busy, key=lambda one: one.start)
    return found


def _google_status(entry: Entry) -> str | None:
    if entry.show_as == "free" or entry.fate in {"cancelled", "declined"}:
        return None
    return "busy"


def _graph_status(entry: Entry) -> str | None:
    if entry.fate in {"cancelled", "declined"}:
        return None
    return {"busy": "busy", "tentative": "tentative", "oof": "out_of_office"}.get(entry.show_as)


def _times(entry: Entry) -> dict[str, Any]:
    if entry.is_all_day:
        start = (DAY + timedelta(days=entry.start)).date()
        return {"start": start, "end": start + timedelta(days=entry.length)}
    at = DAY + entry.start * _MINUTE
    return {"start": at, "end": at + entry.length * _MINUTE}


@_any_number
@given(entries=_entries, ranges=_ranges, cuts=strategies.booleans())
async def test_google(
    reads: Reads,
    fake_google: FakeGoogle,
    entries: list[Entry],
    ranges: list[tuple[int, int]],
    cuts: bool,
) -> None:
    fake_google.free_busy_cuts = cuts
    names = ["primary", "team@example.com"]
    with contextlib.suppress(KeyError):
        fake_google.remove_calendar(names[1])
    fake_google.add_calendar(names[1])
    fake_google.calendar().items.clear()
    for entry in entries:
        fake_google.add_event(
            calendar_id=names[entry.calendar],
            transparency="transparent" if entry.show_as == "free" else "opaque",
            status="cancelled" if entry.fate == "cancelled" else "confirmed",
            attendees=[{"email": "ada@example.com", "self": True, "responseStatus": entry.fate}]
            if entry.fate in {"declined", "tentative"}
            else None,
            **_times(entry),
        )
    first = await reads.google(fake_google)
    second = await reads.share(first, names[1])
    await _check(reads, [first, second], entries, ranges, _google_status)


@_any_number
@given(
    entries=_entries,
    ranges=_ranges,
    style=strategies.sampled_from(["own", "asked"]),
    has_address=strategies.booleans(),
)
async def test_microsoft(
    reads: Reads,
    fake_microsoft: FakeMicrosoft,
    entries: list[Entry],
    ranges: list[tuple[int, int]],
    style: Any,
    has_address: bool,
) -> None:
    fake_microsoft.schedule_all_day = style
    fake_microsoft.calendar().items.clear()
    fake_microsoft.calendar().rev += 1
    team = fake_microsoft.add_calendar()
    for entry in entries:
        if entry.fate == "declined" and entry.calendar == 0 and has_address:
            continue  # Outlook removes it from the default calendar
        own: dict[str, Any] = {}
        if entry.fate == "declined":
            declined = {"response": "declined", "time": "2026-11-01T00:00:00Z"}
            own = {"responseStatus": declined, "isOrganizer": False}
        fake_microsoft.add_event(
            calendar_id=[None, team][entry.calendar],
            showAs=entry.show_as,
            isCancelled=entry.fate == "cancelled",
            **own,
            **_times(entry),
        )
    first = await reads.microsoft(fake_microsoft, owner_email="ada@example.com" if has_address else None)
    second = await reads.share(first, team)
    await _check(reads, [first, second], entries, ranges, _graph_status)


async def _check(
    reads: Reads,
    calendar_ids: list[str],
    entries: list[Entry],
    ranges: list[tuple[int, int]],
    status_of: Any,
) -> None:
    asked = [(DAY + start * _MINUTE, DAY + (start + length) * _MINUTE) for start, length in ranges]
    results = await reads.read(calendar_ids, *asked)
    for number, calendar_id in enumerate(calendar_ids):
        own = [entry for entry in entries if entry.calendar == number]
        assert _minutes_of(results[calendar_id]) == _expected(own, ranges, status_of)
