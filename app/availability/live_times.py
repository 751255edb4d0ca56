"""Busy times of calendars, with those of the provider where the mirror covers nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from app.availability.knowledge import Knowledge
from app.availability.live import BusyTime, LiveAccess, LiveRequest, LiveResult, read_live
from app.availability.schemas import FreeBusyRequest
from app.availability.service import CalendarTimes
from app.availability.spans import Span, instant_of, union
from app.availability.turns import compute
from app.providers.free_busy import Range

_STRONGEST_FIRST = ("out_of_office", "busy", "tentative")


async def add_live(
    access: LiveAccess, project_id: str, request: FreeBusyRequest, times: Sequence[CalendarTimes]
) -> None:
    """Add the times of the providers to `times`. The caller holds no session.

    A calendar whose provider could not be asked gets the reason as its error, and keeps what is known of it.
    """
    by_id = {found.calendar.id: found for found in times}
    uncovered = {
        calendar_id: ranges
        for calendar_id, found in by_id.items()
        if (ranges := _uncovered(found.known, request.start, request.end))
    }
    requests = [LiveRequest(calendar_id, ranges) for calendar_id, ranges in uncovered.items()]
    if requests:
        await compute(project_id, _add, request, by_id, await read_live(access, project_id, requests))


def _add(
    request: FreeBusyRequest, by_id: Mapping[str, CalendarTimes], results: Mapping[str, LiveResult]
) -> None:
    for calendar_id, result in results.items():
        found = by_id[calendar_id]
        if result.busy is None:
            found.error = result.error
            continue
        found.source = "live"
        found.error = None
        found.busy = _joined(found.busy, result.busy)
        found.known = _extended(found.known, request.start, request.end)


def _uncovered(known: Knowledge, start: datetime, end: datetime) -> list[Range]:
    """Return the parts of the range of which nothing is known."""
    if known.until is None:
        return [(start, end)]
    ranges = [(max(start, known.until), end)]
    if known.since is not None:
        ranges.insert(0, (start, min(end, known.since)))
    return [(first, last) for first, last in ranges if first < last]


def _extended(known: Knowledge, start: datetime, end: datetime) -> Knowledge:
    """Return what is known once the provider has said what was not covered of the range."""
    until, since = known.until, known.since
    if until is None or until < start or (since is not None and since > end):
        return replace(known, since=start, until=end)  # nothing is known between the two
    return replace(known, since=None if since is None else min(since, start), until=max(until, end))


def _joined(busy: Iterable[tuple[int, int, str]], more: Iterable[BusyTime]) -> list[tuple[int, int, str]]:
    """Return both merged and sorted; where two overlap, the stronger status wins."""
    by_status: dict[str, list[Span]] = {status: [] for status in _STRONGEST_FIRST}
    for start, end, status in busy:
        by_status[status].append((start, end))
    for one in more:
        by_status[one.status].append((instant_of(one.start), instant_of(one.end)))
    joined: list[tuple[int, int, str]] = []
    taken: list[Span] = []
    for status in _STRONGEST_FIRST:
        spans = union(by_status[status])
        joined += [(start, end, status) for start, end in _without(spans, taken)]
        taken = union([*taken, *spans])
    return sorted(joined)


def _without(spans: Iterable[Span], taken: Sequence[Span]) -> list[Span]:
    """Return the parts of the spans that are in none of `taken`. Both are sorted and disjoint."""
    left: list[Span] = []
    number = 0
    for first, last in spans:
        at = first
        while number < len(taken) and taken[number][1] <= at:
            number += 1
        place = number
        while place < len(taken) and taken[place][0] < last:
            if taken[place][0] > at:
                left.append((at, taken[place][0]))
            at = max(at, taken[place][1])
            place += 1
        if at < last:
            left.append((at, last))
    return left
