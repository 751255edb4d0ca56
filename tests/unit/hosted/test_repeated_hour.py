"""A series whose first instance spans the hour that comes twice: on the clock, it ends before it begins."""

from datetime import UTC, datetime, timedelta

import pytest

from app.events.data import Window
from app.hosted.components import EventComponent, instance_from_series
from app.hosted.expand import expand, has_instance, recurrence_key_of
from app.itip.event import Person
from app.meeting_links.extract import DEFAULT_HOSTS

# In Paris, 02:30 in summer time to 02:10 in winter time.
START = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
END = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)
SERIES = EventComponent(
    uid="u", name="n", start=START, end=END, timezone="Europe/Paris", rrule="FREQ=WEEKLY;COUNT=3"
)


def times(window: Window) -> list[tuple[datetime | None, datetime | None]]:
    rows = expand(
        SERIES,
        (),
        window,
        organizer=Person(email="ada@example.org", name=None),
        owner_email=None,
        hosts=DEFAULT_HOSTS,
        undelivered=(),
    )
    return [(row.start_time, row.end_time) for row in rows]


def test_every_instance_lasts_as_long_as_the_first():
    # RFC 5545 section 3.8.5.3: the exact duration applies to all instances.
    length = timedelta(minutes=40)
    later = [datetime(2026, 11, day, 1, 30, tzinfo=UTC) for day in (1, 8)]
    found = times(Window(START - timedelta(days=1), START + timedelta(days=30)))
    assert found == [(START, END), *((start, start + length) for start in later)]


def test_so_does_the_next_instance_after_the_window():
    start = datetime(2026, 11, 8, 1, 30, tzinfo=UTC)
    assert times(Window(start - timedelta(days=3), start - timedelta(days=2))) == [
        (start, start + timedelta(minutes=40))
    ]


@pytest.mark.parametrize("start", [START, datetime(2026, 11, 1, 1, 30, tzinfo=UTC)])
def test_a_changed_instance_has_the_times_of_its_row(start):
    key = recurrence_key_of(SERIES, start)
    assert has_instance(SERIES, key)
    instance = instance_from_series(SERIES, start, key)
    assert (instance.start, instance.end) == (start, start + timedelta(minutes=40))


def test_an_instance_that_began_in_the_repeated_hour_is_still_running():
    # 10 minutes before its end; the window is after its start.
    now = END - timedelta(minutes=10)
    assert (START, END) in times(Window(now, now + timedelta(minutes=1)))
