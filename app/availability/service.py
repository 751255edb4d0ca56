"""Free/busy times and slots, from the synced events.

Nothing is known of a calendar outside the time that its last successful sync covered. There, no one counts as free.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import orjson

from app.availability import repository
from app.availability.busy_json import busy_json, merge_busy
from app.availability.errors import Unknown
from app.availability.hours import DAYS, Hours, open_spans
from app.availability.knowledge import Knowledge, knowledge_of
from app.availability.repository import CalendarFacts
from app.availability.schemas import (
    MAX_CALENDARS,
    MAX_DAYS,
    AvailabilityRequest,
    FreeBusyRequest,
    OpenHours,
    Participant,
    minutes_of,
)
from app.availability.slots import Grid, find_slots
from app.availability.spans import (
    MINUTE,
    Span,
    count_pairs,
    instant_of,
    read_closed,
    read_pairs,
    text_of,
    write_closed,
)
from app.availability.turns import compute
from app.core.clock import isoformat
from app.core.db import ReadSession, Sessions, reading
from app.core.errors import InvalidFields
from app.hosted.service import find_horizon
from app.providers.free_busy import BusyTime
from app.settings import Settings

_FIRST_YEAR, _LAST_YEAR = 1971, 9000
# Events that one request may lead to. Their times are all in memory, here and in PostgreSQL.
_MOST_EVENTS = 500_000
_TOO_MANY = (
    "These calendars have too many events in this range: ask for fewer of them, or for a shorter range."
)
_NEVER_SYNCED = "This calendar has not been synced yet, so nothing is known of its times."


def check_range(start: datetime, end: datetime) -> None:
    """Raise InvalidFields for a range that is turned around, too long, or in another age."""
    for name, at in (("start", start), ("end", end)):
        if not _FIRST_YEAR <= at.year <= _LAST_YEAR:
            raise InvalidFields.one(name, f"Must be between the years {_FIRST_YEAR} and {_LAST_YEAR}.")
    if start >= end:
        raise InvalidFields.one("end", "Must be after start.")
    if end - start > timedelta(days=MAX_DAYS):
        raise InvalidFields.one("end", f"Must be at most {MAX_DAYS} days after start.")


async def find_calendars(
    session: ReadSession, settings: Settings, project_id: str, names: Iterable[str]
) -> dict[str, CalendarFacts]:
    """Return the calendars by their names, which are ids or deduplication keys.

    Raises Unknown for the first that the project does not have.
    """
    asked = list(dict.fromkeys(names))
    found = await repository.find_calendars(
        session, project_id, asked, window_past=settings.sync_window_past_for
    )
    by_key = {calendar.deduplication_key: calendar for calendar in found}
    by_id = {calendar.id: calendar for calendar in found}
    calendars: dict[str, CalendarFacts] = {}
    for name in asked:
        calendar = by_id.get(name) or by_key.get(name)
        if calendar is None:
            raise Unknown("Calendar", name)
        calendars[name] = calendar
    return calendars


# -- free/busy ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class CalendarTimes:
    """When one calendar is busy, as far as it is known.

    - `stored`: the times of its events by status, for `app.availability.spans.read_pairs`.
    - `live`: those from the provider.
    """

    calendar: CalendarFacts
    known: Knowledge
    stored: Mapping[str, bytes]
    live: Sequence[BusyTime] = ()
    source: str = "mirror"
    error: str | None = None


async def load_times(
    sessions: Sessions, settings: Settings, project_id: str, request: FreeBusyRequest
) -> list[CalendarTimes]:
    """Return the times of the asked calendars, in the order asked. Raises InvalidFields, Unknown."""
    check_range(request.start, request.end)
    async with reading(sessions) as session:
        calendars = await find_calendars(session, settings, project_id, request.calendars)
        horizon = await _find_horizon(session, settings, calendars.values())
        ids = list({calendar.id: None for calendar in calendars.values()})
        busy = await repository.load_busy(session, ids, request.start, request.end, most=_MOST_EVENTS + 1)
    if sum(count_pairs(sent) for found in busy.values() for sent in found.values()) > _MOST_EVENTS:
        raise InvalidFields.one("calendars", _TOO_MANY)
    times: dict[str, CalendarTimes] = {}
    for calendar in calendars.values():
        known = knowledge_of(calendar, settings, asked_until=request.end, horizon=horizon)
        error = _said_of(known, request.start)
        times[calendar.id] = CalendarTimes(calendar, known, busy.get(calendar.id, {}), error=error)
    return [times[calendars[name].id] for name in request.calendars]


async def _find_horizon(
    session: ReadSession, settings: Settings, calendars: Iterable[CalendarFacts]
) -> datetime | None:
    """Return how far the series of local calendars are expanded; None if none of these has one."""
    if not any(calendar.has_series for calendar in calendars):
        return None
    return await find_horizon(session, settings)


def _said_of(known: Knowledge, start: datetime) -> str | None:
    """Return a sentence for a part of the range that is unknown, and that `covered_until` does not show."""
    if known.until is None:
        return _NEVER_SYNCED
    if known.since is not None and start < known.since:
        return f"Nothing is known before {isoformat(known.since)}."
    return None


async def free_busy_body(project_id: str, times: Sequence[CalendarTimes]) -> bytes:
    """Return the response."""
    return await compute(project_id, _free_busy_body, times)


def _free_busy_body(times: Sequence[CalendarTimes]) -> bytes:
    shown: dict[str, orjson.Fragment] = {}
    for found in times:
        calendar, known = found.calendar, found.known
        if calendar.id not in shown:
            busy = _merged(found)
            result = {
                "calendar_id": calendar.id,
                "deduplication_key": calendar.deduplication_key,
                "busy": orjson.Fragment(busy_json(busy)),
                "as_of": _text(known.as_of),
                "is_stale": known.is_stale,
                "covered_from": _text(known.since),
                "covered_until": _text(known.until),
                "source": found.source,
                "error": found.error,
            }
            shown[calendar.id] = orjson.Fragment(orjson.dumps(result))
    return orjson.dumps({"results": [shown[found.calendar.id] for found in times]})


def _merged(times: CalendarTimes) -> dict[str, list[Span]]:
    by_status = {status: read_pairs(sent) for status, sent in times.stored.items()}
    for one in times.live:
        by_status.setdefault(one.status, []).append((instant_of(one.start), instant_of(one.end)))
    return merge_busy(by_status)


def _text(at: datetime | None) -> str | None:
    return isoformat(at) if at is not None else None


# -- availability -------------------------------------------------------------------------------------------


async def find_availability(
    sessions: Sessions, settings: Settings, project_id: str, request: AvailabilityRequest
) -> bytes:
    """Return the response. Raises InvalidFields, Unknown.

    No connection is held while slots are computed.
    """
    _check(request)
    people = request.participants
    ignored = list(dict.fromkeys(request.ignore_event_ids))
    async with reading(sessions) as session:
        calendars = await find_calendars(
            session, settings, project_id, (name for one in people for name in one.calendars)
        )
        horizon = await _find_horizon(session, settings, calendars.values())
        if ignored:
            unknown = await repository.find_unknown_event(session, project_id, ignored)
            if unknown is not None:
                raise Unknown("Calendar event", unknown)
    asked_until = request.end + timedelta(minutes=request.buffer_after_minutes)
    known = {
        name: knowledge_of(calendar, settings, asked_until=asked_until, horizon=horizon)
        for name, calendar in calendars.items()
    }
    possible = await compute(project_id, _possible_starts, request, known)
    async with reading(sessions) as session:
        sent = await repository.load_starts(
            session,
            [[calendars[name].id for name in one.calendars] for one in people],
            possible,
            start=request.start,
            end=request.end,
            duration=timedelta(minutes=request.duration_minutes),
            buffer_before=timedelta(minutes=request.buffer_before_minutes),
            buffer_after=timedelta(minutes=request.buffer_after_minutes),
            tentative_is_busy=request.tentative_is_busy,
            ignored=ignored,
            most=_MOST_EVENTS + 1,
        )
    if sum(events for _, events in sent) > _MOST_EVENTS:
        raise InvalidFields.one("participants", _TOO_MANY)
    return await compute(project_id, _availability_body, request, known, [starts for starts, _ in sent])


def _availability_body(
    request: AvailabilityRequest, known: Mapping[str, Knowledge], sent: Sequence[bytes]
) -> bytes:
    people = request.participants
    slots = find_slots(
        [read_closed(starts) for starts in sent],
        Grid.of_minutes(request.interval_minutes),
        required={number for number, one in enumerate(people) if one.required},
        minimum=len(people) if request.minimum_free == "all" else request.minimum_free,
    )
    length = request.duration_minutes * MINUTE
    found = list(islice(slots, request.limit + 1))
    return orjson.dumps(
        {
            "slots": [
                {"start": text_of(slot.start), "end": text_of(slot.start + length), "free": slot.free}
                for slot in found[: request.limit]
            ],
            **_known_of_all(people, known),
            "truncated": len(found) > request.limit,
        }
    )


def _check(request: AvailabilityRequest) -> None:
    check_range(request.start, request.end)
    people = request.participants
    if sum(len(one.calendars) for one in people) > MAX_CALENDARS:
        raise InvalidFields.one("participants", f"More than {MAX_CALENDARS} calendars together.")
    if request.minimum_free != "all" and request.minimum_free > len(people):
        raise InvalidFields.one("minimum_free", "More than there are participants.")
    for number, one in enumerate(people):
        for place, hours in enumerate(one.open_hours or ()):
            if hours.start == hours.end:
                sentence = f"{number}.open_hours.{place}.end: Must not be the start. The whole day is 00:00 to 24:00."
                raise InvalidFields.one("participants", sentence)


def _possible_starts(request: AvailabilityRequest, known: Mapping[str, Knowledge]) -> list[str]:
    """Return for each participant when a meeting could start if there were no events.

    Each is the text of a multirange. The meeting lies in the range and in open hours. With its buffers, it lies in
    what is known.
    """
    whole = instant_of(request.start), instant_of(request.end)
    length = request.duration_minutes * MINUTE
    before, after = request.buffer_before_minutes * MINUTE, request.buffer_after_minutes * MINUTE
    opened: dict[tuple[Hours, ...], list[Span]] = {}
    possible = []
    for one in request.participants:
        first, last = whole
        for name in one.calendars:
            span = known[name].span() or (last, first)
            first, last = max(first, span[0] + before), min(last, span[1] - after)
        hours = tuple(_hours(entry) for entry in one.open_hours or ())
        if hours not in opened:
            opened[hours] = open_spans(hours, whole) if hours else [whole]
        fitting = [(max(start, first), min(end, last) - length) for start, end in opened[hours]]
        possible.append(write_closed((start, end) for start, end in fitting if start <= end))
    return possible


def _hours(entry: OpenHours) -> Hours:
    return Hours(
        weekdays=frozenset(DAYS.index(day) for day in entry.days),
        start=minutes_of(entry.start),
        end=minutes_of(entry.end),
        timezone=entry.timezone,
    )


def _known_of_all(people: Sequence[Participant], known: Mapping[str, Knowledge]) -> dict[str, Any]:
    """Return `as_of`, `is_stale` and `covered_until` of the response.

    If no participant is required, all calendars count as required ones.
    """
    deciding = [one for one in people if one.required] or people
    counted = [known[name] for one in deciding for name in one.calendars]
    return {
        "as_of": _text(_earliest([one.as_of for one in counted])),
        "is_stale": any(one.is_stale for one in known.values()),
        "covered_until": _text(_earliest([one.until for one in counted])),
    }


def _earliest(times: Sequence[datetime | None]) -> datetime | None:
    """Return the earliest of the times; None if one of them is None."""
    given = [at for at in times if at is not None]
    return min(given) if len(given) == len(times) else None
