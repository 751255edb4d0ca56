"""Feeds of the shapes that real calendars publish, and events in pages."""

from datetime import timedelta
from itertools import pairwise

import icalendar
import orjson

from app.events.data import RemoteAttendee, RemoteOrganizer
from app.ical.feed import Feed
from app.providers.ics.events import FeedEvents
from tests.unit.ical.feeds import FILES, WINDOW, calendar, read, read_file, starts, utc, vevent


def test_a_google_export_gives_its_events_and_the_instances_in_the_window():
    events = read_file("google_export.ics", owner_email="ada@example.com")
    assert starts(events) == {
        "4kq1one0ff@google.com": utc(11, 24, 9),
        "4kq1weekly@google.com_20261123T090000Z": utc(11, 23, 9),
        "4kq1weekly@google.com_20261207T090000Z": utc(12, 8, 13),  # moved to Tuesday
        "4kq1weekly@google.com_20261214T090000Z": utc(12, 14, 9),
        "4kq1allday@google.com": utc(11, 24, 23),
    }
    moved = events["4kq1weekly@google.com_20261207T090000Z"]
    assert moved.name == "Monday round (on Tuesday)"
    assert moved.recurring_event_id == moved.ical_uid == "4kq1weekly@google.com"
    assert moved.original_start_time == utc(12, 7, 9)
    assert moved.timezone == "Europe/Paris"
    all_day = events["4kq1allday@google.com"]
    assert all_day.is_all_day
    assert all_day.end_time == utc(11, 26, 23)
    assert all_day.recurring_event_id is None
    assert all_day.original_start_time is None


def test_every_field_of_a_google_event_is_read():
    event = read_file("google_export.ics", owner_email="ADA@example.com")["4kq1one0ff@google.com"]
    assert event.name == "Kick-off ☕"
    assert event.location == "2, rue de la Paix"
    assert event.description == (
        "Agenda\n1. Budget, costs; and more\n\nJoin with Google Meet: https://meet.google.com/abc-defg-hij"
    )
    assert event.end_time == utc(11, 24, 9, 30)
    assert event.organizer == RemoteOrganizer(email="ada@example.com", name="Ada Lovelace")
    assert event.attendees == (
        RemoteAttendee("ada@example.com", "Ada Lovelace", "accepted", is_organizer=True),
        RemoteAttendee("bob@example.org", "Müller, Bob", "declined", is_optional=True),
        RemoteAttendee("c_1885room@resource.calendar.google.com", "Room 4", "tentative", is_resource=True),
    )
    assert event.response_status == "accepted"
    assert event.meeting_url == "https://meet.google.com/abc-defg-hij"
    assert event.meeting_platform == "google_meet"
    assert event.ical_uid == "4kq1one0ff@google.com"
    raw = orjson.loads(event.raw)
    assert raw["uid"] == "4kq1one0ff@google.com"
    assert raw["sequence"] == "3"
    assert raw["status"] == "CONFIRMED"
    assert raw["ics"].startswith("BEGIN:VEVENT\r\nDTSTART:20261124T090000Z\r\n")
    assert raw["ics"].endswith("\r\nEND:VEVENT")


def test_without_an_owner_there_is_no_response():
    assert read_file("google_export.ics")["4kq1one0ff@google.com"].response_status is None


def test_an_exchange_feed_with_windows_zones_is_read():
    events = read_file("outlook_exchange.ics", owner_email="charles@example.com")
    uid = "040000008200E00074C5B7101A82E00800000000"
    assert starts(events) == {
        f"{uid}D0B1_20261125T100000Z": utc(11, 25, 15),
        f"{uid}D0B1_20261202T100000Z": utc(12, 2, 10),
        f"{uid}D0B1_20261209T100000Z": utc(12, 9, 10),  # UNTIL is inclusive
        f"{uid}C057": utc(11, 24, 6, 30),  # +03:30, by the feed's own definition
        f"{uid}A11D": utc(11, 26, 23),
    }
    moved = events[f"{uid}D0B1_20261125T100000Z"]
    assert moved.timezone == "Europe/Paris"
    assert moved.organizer == RemoteOrganizer("ada@example.com", "Lovelace, Ada")
    assert moved.response_status == "needs_action"
    assert moved.meeting_platform == "teams"
    assert moved.description is not None
    assert moved.description.startswith("<html><body>")
    assert events[f"{uid}D0B1_20261202T100000Z"].meeting_platform == "teams"
    assert events[f"{uid}C057"].timezone is None
    assert events[f"{uid}A11D"].is_all_day


def test_the_zone_of_one_feed_does_not_leak_into_another():
    body = (FILES / "outlook_exchange.ics").read_bytes()
    icalendar.Calendar.from_ical(
        body.replace(b"+0330", b"+0800")
    )  # leaves another definition in the library's cache
    uid = "040000008200E00074C5B7101A82E00800000000C057"
    other = body.replace(b"+0330", b"-0200").replace(b"+0430", b"-0100")
    assert {event.platform_uuid: event.start_time for event in read(other)}[uid] == utc(11, 24, 12)
    assert read_file("outlook_exchange.ics")[uid].start_time == utc(11, 24, 6, 30)


def test_an_apple_feed_with_alarms_and_principals_is_read():
    (event,) = read_file("apple_icloud.ics", owner_email="ada@example.com").values()
    assert event.platform_uuid == "7B0D4C1E-1111-4222-8333-AAAAAAAAAAAA"  # not the alarm's
    assert (event.start_time, event.end_time) == (utc(11, 26, 10, 30), utc(11, 26, 11, 30))
    assert event.location == "Café de la Gare\nParis"
    assert event.organizer == RemoteOrganizer("grace@example.com", "Grace Hopper")
    assert [attendee.is_organizer for attendee in event.attendees] == [True, False]
    assert event.response_status == "tentative"
    assert event.meeting_platform == "zoom"
    assert "ALARM" not in event.raw


def test_a_nextcloud_feed_gives_its_event_and_not_its_task():
    (event,) = read_file("nextcloud.ics").values()
    assert event.start_time == utc(11, 24, 17)
    assert event.timezone == "Europe/Paris"
    assert event.meeting_platform == "visio"


def test_thousands_of_events_are_given_in_the_pages_that_are_asked_for():
    texts = [
        vevent(
            str(number),
            f"DTSTART:{utc(1, 1) + timedelta(minutes=40 * number):%Y%m%dT%H%M%SZ}",
            "DURATION:PT30M",
        )
        for number in range(20_000)
    ]
    selection = FeedEvents(Feed(calendar(*texts)).select(WINDOW))
    assert len(selection) == 29 * 36
    pages = [selection.page(0, 1_000), selection.page(1_000, 1_000)]
    assert [len(page) for page in pages] == [1_000, 44]
    times = [event.start_time for page in pages for event in page]
    assert all(one < other for one, other in pairwise(times) if one and other)
