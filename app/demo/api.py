"""The sample feed of `calbridge up`, a calendar for first attempts."""

from datetime import UTC, datetime, time, timedelta

from fastapi import APIRouter, Response
from icalendar import Calendar, Event, vRecur

from app.core.clock import utcnow

PATH = "/demo/calendar.ics"

router = APIRouter(include_in_schema=False)


def build_demo_feed(now: datetime) -> bytes:
    """Return a feed with a few recurring meetings around `now`. It stays the same for a week."""
    monday = datetime.combine(now.date() - timedelta(days=now.weekday()), time(), UTC)
    calendar = Calendar()
    calendar.add("version", "2.0")
    calendar.add("prodid", "-//calbridge//demo//EN")
    calendar.add("x-wr-calname", "calbridge demo")
    meetings = [
        (
            "stand-up",
            "Stand-up",
            0,
            8,
            "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR",
            "https://meet.google.com/abc-defg-hij",
        ),
        ("customer", "Customer call", 1, 14, "FREQ=WEEKLY", "https://zoom.us/j/81234567890?pwd=demo"),
        (
            "planning",
            "Planning",
            3,
            10,
            "FREQ=WEEKLY",
            "https://teams.microsoft.com/meet/2345678901234?p=demo",
        ),
    ]
    for uid, summary, day, hour, rule, link in meetings:
        start = monday + timedelta(days=day, hours=hour)
        event = Event.new(
            uid=f"{uid}@demo.calbridge",
            summary=summary,
            start=start,
            end=start + timedelta(minutes=45),
            description=f"Join: {link}",
            stamp=monday,
        )
        event.add("rrule", vRecur.from_ical(rule))
        calendar.add_component(event)
    feed: bytes = calendar.to_ical()
    return feed


@router.get(PATH)
async def read_demo_feed() -> Response:
    return Response(build_demo_feed(utcnow()), media_type="text/calendar; charset=utf-8")
