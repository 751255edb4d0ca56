"""The sample feed always has meetings ahead, each with a link."""

from datetime import UTC, datetime, timedelta

import pytest

from app.demo.api import build_demo_feed
from app.events.data import Window
from app.ical.feed import Feed
from app.providers.ics.events import FeedEvents


@pytest.mark.parametrize("day", range(7))
def test_the_coming_week_has_meetings_with_links(day: int) -> None:
    now = datetime(2026, 11, 16 + day, 22, tzinfo=UTC)
    selection = FeedEvents(Feed(build_demo_feed(now)).select(Window(now, now + timedelta(days=7))))
    events = selection.page(0, 100)
    assert len(events) == 7
    assert {event.meeting_platform for event in events} == {"google_meet", "zoom", "teams"}


def test_the_feed_is_the_same_all_week() -> None:
    monday = datetime(2026, 11, 16, 1, tzinfo=UTC)
    assert build_demo_feed(monday) == build_demo_feed(monday + timedelta(days=6, hours=20))
