"""Busy times of calendars, with those of the provider where the mirror covers nothing."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from app.availability.knowledge import Knowledge
from app.availability.live import LiveAccess, LiveRequest, read_live
from app.availability.schemas import FreeBusyRequest
from app.availability.service import CalendarTimes
from app.providers.free_busy import Range


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
    results = await read_live(access, project_id, requests) if requests else {}
    for calendar_id, result in results.items():
        found = by_id[calendar_id]
        if result.busy is None:
            found.error = result.error
            continue
        found.source = "live"
        found.error = None
        found.live = result.busy
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
