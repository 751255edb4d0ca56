"""Live busy times of Google calendars, against the fake Google."""

from datetime import timedelta
from typing import Any

from app.availability.live import LiveResult
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
