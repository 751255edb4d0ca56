"""An instance across the hour that comes twice, in a mail: DTEND must be later than DTSTART (RFC 5545 3.8.2.2)."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import icalendar
import pytest

from app.ical.feed import Feed
from app.itip.build import build_request
from app.itip.event import MailedEvent, Person
from app.providers.ics.events import FeedEvents

STAMP = datetime(2026, 10, 1, 10, tzinfo=UTC)
# In Paris, 02:30 in summer time to 02:10 in winter time.
EVENT = MailedEvent(
    uid="u",
    sequence=0,
    name="Night shift",
    description=None,
    location=None,
    meeting_url=None,
    start=datetime(2026, 10, 25, 0, 30, tzinfo=UTC),
    end=datetime(2026, 10, 25, 1, 10, tzinfo=UTC),
    is_all_day=False,
    timezone="Europe/Paris",
    organizer=Person(email="ada@example.com", name=None),
    guests=(),
)
SERIES = replace(EVENT, recurrence=("RRULE:FREQ=WEEKLY;COUNT=2",))
INSTANCE = replace(EVENT, recurrence_id=EVENT.start)


class Always:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    end = datetime(2027, 1, 1, tzinfo=UTC)

    def overlaps(self, _start: datetime, _end: datetime) -> bool:
        return True


def read(event: MailedEvent) -> Any:
    (vevent,) = icalendar.Calendar.from_ical(build_request(event, stamp=STAMP)).walk("VEVENT")
    return vevent


@pytest.mark.parametrize("event", [SERIES, INSTANCE])
def test_it_has_a_duration(event):
    vevent = read(event)
    assert vevent["DURATION"].dt == timedelta(minutes=40)
    assert "DTEND" not in vevent


def test_a_guest_sees_the_rows_of_the_host():
    instances = Feed(build_request(SERIES, stamp=STAMP)).select(Always())
    times = [(event.start_time, event.end_time) for event in FeedEvents(instances).page(0, 9)]
    later = datetime(2026, 11, 1, 1, 30, tzinfo=UTC)
    assert times == [(EVENT.start, EVENT.end), (later, later + timedelta(minutes=40))]


def test_a_single_event_is_in_utc_and_has_an_end():
    vevent = read(EVENT)
    assert (vevent["DTSTART"].dt, vevent["DTEND"].dt) == (EVENT.start, EVENT.end)
