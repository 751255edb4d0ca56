"""POST /availability offers the slots that bitmaps of minutes offer, for any people, hours and events."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core.db import Sessions
from app.core.http import httpx
from tests.conftest import TestProject
from tests.integration.availability.mirror import (
    MINUTE,
    Event,
    MirroredCalendar,
    minutes,
    open_minutes,
    store,
    text,
)

_DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
# Each with the days on which its clock is put forward and back.
_CHANGES = {
    "Europe/Paris": [datetime(2027, 3, 28, tzinfo=UTC), datetime(2027, 10, 31, tzinfo=UTC)],
    "America/New_York": [datetime(2027, 3, 14, tzinfo=UTC), datetime(2027, 11, 7, tzinfo=UTC)],
    "Australia/Lord_Howe": [datetime(2027, 10, 3, tzinfo=UTC), datetime(2027, 4, 4, tzinfo=UTC)],
    "Africa/Cairo": [datetime(2027, 4, 30, tzinfo=UTC), datetime(2027, 10, 29, tzinfo=UTC)],
    "Asia/Kathmandu": [datetime(2027, 6, 1, tzinfo=UTC)],
    "Pacific/Apia": [datetime(2011, 12, 30, tzinfo=UTC)],
}


@dataclass
class Case:
    start: datetime
    end: datetime
    calendars: list[MirroredCalendar]
    participants: list[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)


@st.composite
def cases(draw: Any) -> Case:
    zone = draw(st.sampled_from(sorted(_CHANGES)))
    start = draw(st.sampled_from(_CHANGES[zone])) + draw(st.integers(-1800, 900)) * MINUTE
    end = start + draw(st.integers(1, 3000)) * MINUTE
    near = st.integers(-600, int((end - start) / MINUTE) + 600).map(lambda number: start + number * MINUTE)

    def event() -> Event:
        begin = draw(near)
        length = draw(st.one_of(st.integers(0, 300), st.sampled_from([1440, 3000, 10_000])))
        return Event(
            start=begin,
            end=begin + length * MINUTE,
            busy_status=draw(st.sampled_from(["busy", "tentative", "out_of_office", "free", None])),
            response_status=draw(st.sampled_from([None, "accepted", "declined"])),
        )

    calendars = [
        MirroredCalendar(
            [event() for _ in range(draw(st.integers(0, 5)))],
            covered_from=draw(st.one_of(st.just(start - timedelta(days=9)), near)),
            covered_until=draw(st.one_of(st.just(end + timedelta(days=9)), near, st.none())),
        )
        for _ in range(draw(st.integers(1, 3)))
    ]
    clocks = st.one_of(
        st.sampled_from(["00:00", "02:00", "02:15", "02:30", "03:00", "23:30"]),
        st.integers(0, 1439).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}"),
    )

    def hours() -> dict[str, Any]:
        begin = draw(clocks)
        return {
            "days": draw(st.lists(st.sampled_from(_DAYS), min_size=1, max_size=7, unique=True)),
            "start": begin,
            "end": draw(st.one_of(clocks, st.just("24:00")).filter(lambda clock: clock != begin)),
            "timezone": draw(st.sampled_from([zone, zone, "UTC", "Asia/Kathmandu"])),
        }

    participants = []
    for _ in range(draw(st.integers(1, 4))):
        one: dict[str, Any] = {
            "calendars": [
                calendar.id
                for calendar in draw(
                    st.lists(st.sampled_from(calendars), min_size=1, max_size=2, unique_by=id)
                )
            ]
        }
        if draw(st.booleans()):
            one["required"] = draw(st.booleans())
        if draw(st.booleans()):
            one["open_hours"] = [hours() for _ in range(draw(st.integers(1, 3)))]
        participants.append(one)
    all_ids = [event.id for calendar in calendars for event in calendar.events]
    options: dict[str, Any] = {
        "duration_minutes": draw(st.sampled_from([1, 15, 30, 45, 60, 90])),
        "interval_minutes": draw(st.sampled_from([1, 5, 15, 20, 60, 120, 300, 1440])),
        "limit": draw(st.sampled_from([1, 7, 500, 10_000])),
    }
    optional = {
        "buffer_before_minutes": st.integers(0, 100),
        "buffer_after_minutes": st.integers(0, 100),
        "minimum_free": st.one_of(st.just("all"), st.integers(1, len(participants))),
        "tentative_is_busy": st.booleans(),
        "ignore_event_ids": st.lists(st.sampled_from(all_ids), max_size=3) if all_ids else st.just([]),
    }
    options |= {name: draw(values) for name, values in optional.items() if draw(st.booleans())}
    return Case(start, end, calendars, participants, options)


def expected(case: Case) -> list[dict[str, Any]]:
    asked = case.options
    before = asked.get("buffer_before_minutes", 0)
    after = asked.get("buffer_after_minutes", 0)
    duration, interval = asked["duration_minutes"], asked["interval_minutes"]
    margin = timedelta(days=1)
    all_minutes = minutes(case.start - margin, case.end + margin)
    by_id = {calendar.id: calendar for calendar in case.calendars}

    def is_clear(calendar: MirroredCalendar, at: datetime) -> bool:
        status = calendar.status_at(at, ignored=asked.get("ignore_event_ids", ()))
        if status == "tentative" and not asked.get("tentative_is_busy", True):
            status = None
        return status is None and calendar.covers(at)

    clear = {calendar.id: {at for at in all_minutes if is_clear(calendar, at)} for calendar in case.calendars}
    opened = [open_minutes(one.get("open_hours"), case.start, case.end) for one in case.participants]
    minimum = asked.get("minimum_free", "all")
    least = len(case.participants) if minimum == "all" else minimum
    slots = []
    for at in minutes(case.start, case.end):
        counted = at.minute if interval <= 60 else at.hour * 60 + at.minute
        if counted % interval:
            continue
        free = [
            number
            for number, one in enumerate(case.participants)
            if all(minute in opened[number] for minute in minutes(at, at + duration * MINUTE))
            and all(
                minute in clear[calendar_id]
                for calendar_id in one["calendars"]
                for minute in minutes(at - before * MINUTE, at + (duration + after) * MINUTE)
            )
        ]
        required = [number for number, one in enumerate(case.participants) if one.get("required", True)]
        if len(free) >= least and set(required) <= set(free):
            slots.append({"start": text(at), "end": text(at + duration * MINUTE), "free": free})
    assert by_id
    return slots


@given(cases())
@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_the_slots_are_those_of_the_model(
    api: httpx.AsyncClient, sessions: Sessions, project: TestProject, case: Case
) -> None:
    await store(sessions, project.id, case.calendars)
    body = {
        "participants": case.participants,
        "start": text(case.start),
        "end": text(case.end),
        **case.options,
    }
    response = await api.post("/api/v1/availability", json=body)
    assert response.status_code == 200, response.text
    found, slots = response.json(), expected(case)
    assert found["slots"] == slots[: case.options["limit"]]
    assert found["truncated"] == (len(slots) > case.options["limit"])
    deciding = [one for one in case.participants if one.get("required", True)] or case.participants
    by_id = {calendar.id: calendar for calendar in case.calendars}
    known = [by_id[calendar_id].covered_until for one in deciding for calendar_id in one["calendars"]]
    until = min((at for at in known if at is not None), default=None)
    assert found["covered_until"] == (None if None in known or until is None else text(until))
