"""Calendars and synced events as rows, and the same as bitmaps of minutes.

The bitmaps are the model of free/busy times and availability. The model knows nothing of the SQL. A minute of a calendar is busy, or not; a time of day begins at the first minute at
which the zone's clock shows it or a later one.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from itertools import accumulate
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import delete, insert

from app.core.db import Sessions, transaction
from app.core.ids import new_id
from app.models import Calendar, CalendarEvent

MINUTE = timedelta(minutes=1)
STRENGTH = {"out_of_office": 3, "busy": 2, "tentative": 1}
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
LONG_AHEAD = datetime(2040, 1, 1, tzinfo=UTC)


@dataclass
class Event:
    """`start`, `end`: None where the provider sent none."""

    start: datetime | None
    end: datetime | None
    busy_status: str | None = "busy"
    response_status: str | None = None
    is_deleted: bool = False
    id: str = field(default_factory=lambda: new_id("evt"))

    @property
    def counts(self) -> str | None:
        """As what it counts; None if it does not."""
        if self.is_deleted or self.response_status == "declined":
            return None
        status = self.busy_status or "busy"
        return status if status in STRENGTH else None


@dataclass
class MirroredCalendar:
    events: list[Event] = field(default_factory=list)
    covered_from: datetime | None = LONG_AGO
    covered_until: datetime | None = LONG_AHEAD
    fields: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: new_id("cal"))

    def covers(self, at: datetime) -> bool:
        if self.covered_from is None or self.covered_until is None:
            return False
        return self.covered_from <= at < self.covered_until

    def status_at(self, at: datetime, *, ignored: Sequence[str] = ()) -> str | None:
        """The strongest status of the minute that begins at `at`."""
        found = [
            event.counts
            for event in self.events
            if event.id not in ignored
            and event.counts is not None
            and event.start is not None
            and event.end is not None
            and event.start <= at < event.end
        ]
        return max(found, key=lambda status: STRENGTH[status], default=None)


async def store(sessions: Sessions, project_id: str, calendars: Sequence[MirroredCalendar]) -> None:
    """Make these the calendars of the project, and drop those that it had."""
    async with transaction(sessions) as session:
        await session.execute(delete(CalendarEvent).where(CalendarEvent.project_id == project_id))
        await session.execute(delete(Calendar).where(Calendar.project_id == project_id))
        for calendar in calendars:
            await session.execute(
                insert(Calendar).values(
                    {
                        "id": calendar.id,
                        "project_id": project_id,
                        "platform": "google",
                        "covered_from": calendar.covered_from,
                        "covered_until": calendar.covered_until,
                        "last_successful_sync_at": datetime.now(UTC),
                        **calendar.fields,
                    }
                )
            )
        rows = [
            {
                "id": event.id,
                "project_id": project_id,
                "calendar_id": calendar.id,
                "platform_uuid": event.id,
                "content_hash": b"",
                "start_time": event.start,
                "end_time": event.end,
                "busy_status": event.busy_status,
                "response_status": event.response_status,
                "is_deleted": event.is_deleted,
            }
            for calendar in calendars
            for event in calendar.events
        ]
        if rows:
            await session.execute(insert(CalendarEvent), rows)


def minutes(start: datetime, end: datetime) -> list[datetime]:
    return [start + number * MINUTE for number in range(int((end - start) / MINUTE))]


def text(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def runs(statuses: Sequence[str | None], start: datetime) -> list[dict[str, str]]:
    """The bitmap as the response has it."""
    found: list[dict[str, str]] = []
    before = None
    for number, status in enumerate(statuses):
        at = start + number * MINUTE
        if status is not None and status == before:
            found[-1]["end"] = text(at + MINUTE)
        elif status is not None:
            found.append({"start": text(at), "end": text(at + MINUTE), "status": status})
        before = status
    return found


class Clock:
    """A zone's wall clock around a range: when it first shows a time."""

    def __init__(self, zone: str, start: datetime, end: datetime) -> None:
        self._minutes = minutes(start - timedelta(days=4), end + timedelta(days=4))
        shown = [at.astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0) for at in self._minutes]
        self._latest_shown = list(accumulate(shown, max))

    def first(self, day: date, clock: str) -> datetime:
        hours, minute = map(int, clock.split(":"))
        wanted = datetime.combine(day, time()) + timedelta(hours=hours, minutes=minute)
        return self._minutes[bisect_left(self._latest_shown, wanted)]


def open_minutes(hours: list[dict[str, Any]] | None, start: datetime, end: datetime) -> set[datetime]:
    if hours is None:
        return set(minutes(start, end))
    found: set[datetime] = set()
    for entry in hours:
        clock = Clock(entry["timezone"], start, end)
        day = (start - timedelta(days=2)).date()
        while day <= (end + timedelta(days=1)).date():
            if ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[day.weekday()] in entry["days"]:
                last = day if entry["end"] > entry["start"] else day + timedelta(days=1)
                found |= set(minutes(clock.first(day, entry["start"]), clock.first(last, entry["end"])))
            day += timedelta(days=1)
    return found & set(minutes(start, end))
