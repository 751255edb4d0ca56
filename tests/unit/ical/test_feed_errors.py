"""Odd, damaged and hostile feeds."""

import re
import time

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from app.events.data import RemoteAttendee
from app.ical.components import Line, parse_lines
from app.ical.errors import CalendarUnreadable
from app.ical.feed import Feed
from app.providers.ics.events import FeedEvents
from tests.unit.ical.feeds import FILES, GOOD_FILES, WINDOW, calendar, read, read_file, starts, utc, vevent


def test_a_bad_event_is_kept_with_what_is_known_of_it_and_stops_nothing():
    with capture_logs() as logs:
        events = read_file("bad_event.ics")
    assert starts(events) == {
        "before": utc(11, 23, 9),
        "bad": None,
        "nostart": None,
        "feb30": None,
        "after": utc(11, 25, 9),
    }
    assert events["bad"].location == "Somewhere"
    assert {entry["uid"] for entry in logs if "uid" in entry} == {"bad", "nostart", "feb30"}
    assert all(set(entry) <= {"event", "log_level", "uid", "counts", "unknown_zones"} for entry in logs)


def test_control_characters_are_left_out():
    (event,) = read_file("control_characters.ics").values()
    assert event.platform_uuid == event.ical_uid == "ctrlid"
    assert event.name == "Null and bell"
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", f"{event.name}{event.description}")
    assert "\\u0000" not in event.raw


def test_wrong_folding_is_fixed():
    events = read_file("wrong_folding.ics")
    folds = events["folds"]
    assert folds.start_time == utc(11, 24, 9)
    assert folds.name == "Café split inside a character"
    assert (
        folds.description == "First line\nsecond line without a fold and a tab\nhttps://zoom.us/j/81234567890"
    )
    assert folds.meeting_platform == "zoom"
    assert folds.location == "Here"
    assert events["quotes"].organizer is not None
    assert events["quotes"].organizer.email == "ada@example.com"


@pytest.mark.parametrize("name", ["lf_line_ends.ics", "bom.ics", "latin1.ics"])
def test_line_ends_byte_order_marks_and_encodings_do_not_matter(name):
    (event,) = read_file(name).values()
    assert (event.platform_uuid, event.name, event.start_time) == ("plain", "Café – 5 €", utc(11, 24, 9))


def test_old_line_ends_and_several_calendars_in_one_file_are_read():
    body = calendar(vevent("a", "DTSTART:20261124T090000Z")) + calendar(
        vevent("b", "DTSTART:20261124T090000Z")
    )
    assert [event.platform_uuid for event in read(body.replace(b"\r\n", b"\r"))] == ["a", "b"]


def test_a_calendar_without_events_is_complete():
    assert read_file("empty_calendar.ics") == {}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ((FILES / "empty_file.ics").read_bytes(), "feed_empty"),
        (b" \r\n\x00\r\n", "feed_empty"),
        ((FILES / "html.ics").read_bytes(), "feed_not_ics"),
        (b'{"error": "not found"}', "feed_not_ics"),
        ((FILES / "truncated.ics").read_bytes(), "feed_truncated"),
        (b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\n", "feed_truncated"),
        (b"BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nUID:a\r\nEND:VCALENDAR\r\n", "feed_truncated"),
        (calendar("BEGIN:VEVENT", "UID:a", vevent("b"), "END:VEVENT"), "feed_truncated"),
        (calendar("END:VEVENT"), "feed_truncated"),
        (calendar("BEGIN:VTIMEZONE", vevent("a")), "feed_truncated"),
        (calendar("BEGIN:VTODO", vevent("a"), "END:VTODO"), "feed_truncated"),
        (calendar() + b"END:VCALENDAR\r\n", "feed_truncated"),
        (calendar(*["BEGIN:X"] * 50, *["END:X"] * 50), "feed_truncated"),
        (calendar() + b"<!-- 0.3 seconds -->", "feed_truncated"),
    ],
)
def test_what_is_not_a_complete_calendar_is_unavailable(body, code):
    with pytest.raises(CalendarUnreadable) as caught:
        read(body)
    assert caught.value.code == code


def test_an_alarm_without_an_end_ends_with_its_event():
    body = calendar(
        "BEGIN:VEVENT",
        "UID:a",
        "DTSTART:20261124T090000Z",
        "BEGIN:VALARM",
        "UID:alarm",
        "END:VEVENT",
        vevent("b"),
    )
    assert [event.platform_uuid for event in read(body)] == ["a", "b"]


def test_texts_are_cut_at_their_limits():
    body = calendar(
        vevent(
            "a",
            "DTSTART:20261124T090000Z",
            f"SUMMARY:{'t' * 5_000}",
            f"DESCRIPTION:{'d' * 50_000}",
            f"LOCATION:{'l' * 5_000}",
            *[f"ATTENDEE;CN={'n' * 1_000}:mailto:{number}@example.com" for number in range(1_200)],
        )
    )
    (event,) = read(body)
    assert [len(text or "") for text in (event.name, event.description, event.location)] == [
        1_000,
        8_000,
        2_000,
    ]
    assert len(event.attendees) == 1_000
    assert len(event.attendees[0].name or "") == 300
    assert len(orjson.loads(event.raw)["ics"]) == 8_000


@pytest.mark.parametrize(
    ("line", "email", "name"),
    [
        ("ATTENDEE:MAILTO:Ada@example.com", "Ada@example.com", None),
        ("ATTENDEE;CN=Ada^'s:mailto:ada%2Bx@example.com?subject=x", "ada+x@example.com", 'Ada"s'),
        ("ATTENDEE;EMAIL=ada@example.com:urn:uuid:5", "ada@example.com", None),
        ("ATTENDEE;CN=Carol:invalid:nomail", None, "Carol"),
        ("ATTENDEE:ada@example.com", "ada@example.com", None),
        ("ATTENDEE;CN=", None, None),
    ],
)
def test_addresses_of_every_form_are_read(line, email, name):
    (event,) = read(
        calendar(vevent("a", "DTSTART:20261124T090000Z", f"{line}" if ":" in line else f"{line}:"))
    )
    assert event.attendees == (RemoteAttendee(email, name),)


def test_the_organizer_who_is_no_attendee_has_accepted():
    body = calendar(vevent("a", "DTSTART:20261124T090000Z", "ORGANIZER:mailto:ada@example.com"))
    (event,) = read(body, owner_email="ada@example.com")
    assert event.response_status == "accepted"


def test_content_lines_with_quoted_parameters_are_parsed():
    text = 'ATTENDEE;CN="A; B: C";ROLE=CHAIR:mailto:a@example.com\nsummary:x\n\nX-URL:https://a.example/?b=c'
    assert list(parse_lines(text.encode())) == [
        Line("ATTENDEE", 'CN="A; B: C";ROLE=CHAIR', "mailto:a@example.com"),
        Line("SUMMARY", "", "x"),
        Line("X-URL", "", "https://a.example/?b=c"),
    ]


@pytest.mark.parametrize(
    "hostile",
    [
        b"\n" * 2_000_000,
        b"DESCRIPTION:x\n" + b"no property\n" * 150_000,
        b"ATTENDEE" + b';CN="' * 300_000,
        b"ATTENDEE" + b';CN=""' * 200_000 + b"\n",
        b"RRULE:FREQ=DAILY\n" * 1_000,
        b"RDATE:" + b"20261124T090000Z," * 50_000 + b"\n",
        b"BEGIN:VALARM\nEND:VALARM\n" * 50_000,
    ],
)
def test_hostile_texts_take_no_more_time_than_their_length_deserves(hostile):
    body = calendar(vevent("a", "DTSTART:20261124T090000Z")).replace(b"UID:a", b"UID:a\n" + hostile)
    before = time.thread_time()
    read(body)
    # Quadratic work on these would take minutes.
    assert time.thread_time() - before < 20


COMPLETE = [(FILES / name).read_bytes() for name in GOOD_FILES if name != "absurd_rules.ics"]


@st.composite
def damaged_feeds(draw):
    body = bytearray(draw(st.sampled_from(COMPLETE)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(body) - 1, 0)))
        length = draw(st.integers(0, 40))
        match draw(st.sampled_from(["cut", "drop", "overwrite", "insert", "repeat"])):
            case "cut":
                del body[at:]
            case "drop":
                del body[at : at + length]
            case "overwrite":
                body[at : at + length] = draw(st.binary(max_size=length))
            case "insert":
                body[at:at] = draw(
                    st.sampled_from(
                        [
                            b"\x00",
                            b"\r\n",
                            b"\xff\xfe",
                            b"BEGIN:VEVENT\r\n",
                            b"END:VEVENT\r\n",
                            b";",
                            b":",
                            b'"',
                        ]
                    )
                )
            case "repeat":
                body[at:at] = body[at : at + length]
    return bytes(body)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(damaged_feeds())
def test_a_damaged_feed_is_either_a_complete_calendar_or_unavailable(body):
    try:
        selection = FeedEvents(Feed(body).select(WINDOW))
        events = selection.page(0, len(selection))
    except CalendarUnreadable as err:
        assert err.code in {"feed_empty", "feed_not_ics", "feed_truncated"}  # noqa: PT017 - not every example raises
        return
    text = body.removeprefix(b"\xef\xbb\xbf").translate(None, bytes({*range(32), 127} - {9, 10, 13}))
    text = re.sub(rb"\n+[ \t]", b"", text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").strip()).upper()
    assert text.startswith(b"BEGIN:VCALENDAR")
    assert text.splitlines()[-1] == b"END:VCALENDAR"
    for component in (b"VCALENDAR", b"VEVENT"):
        edges = re.findall(rb"^(BEGIN|END):[ \t]*" + component + rb"[ \t]*$", text, re.MULTILINE)
        assert edges == [b"BEGIN", b"END"] * (len(edges) // 2)
    ids = [event.platform_uuid for event in events]
    assert len(set(ids)) == len(ids)
    assert all("\x00" not in f"{event}" for event in events)
    assert all(event.end_time >= event.start_time for event in events if event.end_time and event.start_time)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_unavailable(body):
    with pytest.raises(CalendarUnreadable):
        Feed(body)
