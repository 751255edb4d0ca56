"""How long the instances of hosted series are."""

from datetime import UTC, datetime, timedelta

from app.events.data import Window
from app.hosted.components import EventComponent
from app.hosted.expand import expand
from app.itip.event import Person
from app.meeting_links.extract import MeetingHosts


def test_an_all_day_series_keeps_its_days_when_its_end_is_no_midnight_any_more():
    """The rules of its zone have changed since it was stored."""
    start = datetime(2026, 10, 24, 22, tzinfo=UTC)  # midnight in Paris; the day has 25 hours
    series = EventComponent(
        uid="u",
        name="n",
        start=start,
        end=start + timedelta(hours=24),
        is_all_day=True,
        timezone="Europe/Paris",
        rrule="FREQ=WEEKLY",
    )
    window = Window(start, start + timedelta(days=30))
    rows = expand(
        series,
        [],
        window,
        organizer=Person(email="ada@example.com"),
        owner_email=None,
        hosts=MeetingHosts(),
        undelivered=[],
    )
    lengths = [row.end_time - row.start_time for row in rows if row.start_time and row.end_time]
    assert lengths == [timedelta(hours=25), *[timedelta(hours=24)] * 4]
