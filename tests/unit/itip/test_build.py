"""What goes out as iTIP, read back by the icalendar library."""

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import icalendar
import pytest
import recurring_ical_events
from hypothesis import given
from hypothesis import strategies as st

from app.core.web_urls import safe_url
from app.ical.vtimezone import vtimezone
from app.itip.build import RequestsToOne, build_cancel, build_reply, build_request, is_whole_cancel
from app.itip.event import Guest, MailedEvent, Person

STAMP = datetime(2026, 11, 20, 10, tzinfo=UTC)
BOB = Guest(email="bob@example.org", name="Bob", is_optional=False, response_status="needs_action")
EVE = Guest(email="eve@example.org", name=None, is_optional=True, response_status="accepted")
EVENT = MailedEvent(
    uid="6c1f4c52-1111-4222-8333-123456789abc",
    sequence=3,
    name="Weekly",
    description="Agenda",
    location=None,
    meeting_url="https://visio.example/abc?x=1,2;3",
    start=datetime(2026, 11, 24, 9, tzinfo=UTC),
    end=datetime(2026, 11, 24, 10, tzinfo=UTC),
    is_all_day=False,
    timezone="Europe/Paris",
    organizer=Person(email="ada@example.com", name="Ada"),
    guests=(BOB, EVE),
)
SERIES = replace(EVENT, recurrence=("RRULE:FREQ=WEEKLY;COUNT=30",))


def read(ics: bytes):
    calendar = icalendar.Calendar.from_ical(ics)
    (event,) = calendar.walk("VEVENT")
    return calendar, event


def lines(ics: bytes) -> list[str]:
    return ics.decode().replace("\r\n ", "").split("\r\n")


def test_a_request_has_what_rfc_5546_asks_for():
    calendar, event = read(build_request(EVENT, stamp=STAMP))
    assert calendar["METHOD"] == "REQUEST"
    assert (event["UID"], event["SEQUENCE"], event["STATUS"]) == (EVENT.uid, 3, "CONFIRMED")
    assert event["DTSTAMP"].dt == STAMP
    assert (event["DTSTART"].dt, event["DTEND"].dt) == (EVENT.start, EVENT.end)
    assert event["ORGANIZER"] == "mailto:ada@example.com"
    assert "PARTSTAT" not in event["ORGANIZER"].params
    assert event["LOCATION"] == event["CONFERENCE"] == EVENT.meeting_url
    assert event["DESCRIPTION"] == f"Agenda\n\n{EVENT.meeting_url}"
    host, bob, eve = event["ATTENDEE"]
    assert (host, host.params["ROLE"]) == ("mailto:ada@example.com", "CHAIR")
    assert (bob.params["CN"], bob.params["PARTSTAT"], bob.params["RSVP"]) == ("Bob", "NEEDS-ACTION", "TRUE")
    assert (eve.params["ROLE"], eve.params["PARTSTAT"]) == ("OPT-PARTICIPANT", "ACCEPTED")


def test_an_organizer_who_is_a_guest_is_listed_once():
    ada = replace(BOB, email="ADA@example.com")
    _, event = read(build_request(replace(EVENT, guests=(ada, BOB)), stamp=STAMP))
    assert [str(address) for address in event["ATTENDEE"]] == [
        "mailto:ADA@example.com",
        "mailto:bob@example.org",
    ]


def test_own_addresses_are_not_asked():
    """The organizer is known to come, and so is the owner of the calendar where a shared mailbox invites."""
    ada = replace(BOB, email="ADA@example.com")
    owner = replace(EVE, response_status="needs_action", is_host=True)
    _, event = read(build_request(replace(EVENT, guests=(ada, owner, BOB)), stamp=STAMP))
    *hosts, bob = event["ATTENDEE"]
    assert [(host.params["ROLE"], host.params["PARTSTAT"]) for host in hosts] == [("CHAIR", "ACCEPTED")] * 2
    assert all("RSVP" not in host.params for host in hosts)
    assert (bob.params["PARTSTAT"], bob.params["RSVP"]) == ("NEEDS-ACTION", "TRUE")


@pytest.mark.parametrize("text", ["Data:Science", "Big data:a talk", "data: none", "metadata:x"])
def test_data_is_a_word_too(text):
    _, event = read(build_request(replace(EVENT, name=text, description=text), stamp=STAMP))
    assert event["SUMMARY"] == text


@pytest.mark.parametrize(
    "address",
    ["data:text/html,x", "data:;base64,eA==", "data:,x", "data:image/svg+xml;charset=utf-8,x", "DATA://x"],
)
def test_an_address_of_data_does_not_reach_a_mail(address):
    event = replace(EVENT, name=address, description=f"see {address}", location=address)
    assert b"data:" not in build_request(event, stamp=STAMP).lower()


def test_a_request_to_one_guest_is_the_same_without_the_others():
    name = 'Ada: "Boss", ' + "é" * 60
    long = replace(BOB, name=name, email="BOB@example.org")
    moved = replace(SERIES, recurrence=(), recurrence_id=datetime(2026, 12, 1, 9, tzinfo=UTC), sequence=4)
    event = replace(SERIES, guests=(long, EVE), overrides=(moved, replace(moved, guests=(EVE,))))
    requests = RequestsToOne(event, stamp=STAMP)
    for guest, counts in ((long, [2, 2, 1]), (EVE, [2, 2, 2])):
        found = requests.to(guest.email.lower())
        alone = replace(
            event,
            guests=(guest,),
            overrides=tuple(
                replace(
                    one,
                    guests=tuple(some for some in one.guests if some.email.lower() == guest.email.lower()),
                )
                for one in event.overrides
            ),
        )
        assert sorted(lines(found)) == sorted(lines(build_request(alone, stamp=STAMP)))
        assert all(len(line) <= 75 for line in found.split(b"\r\n"))
        people = [event.get("ATTENDEE") for event in icalendar.Calendar.from_ical(found).walk("VEVENT")]
        assert [len(some) if isinstance(some, list) else 1 for some in people] == counts


def test_an_all_day_event_has_at_least_one_day():
    event = replace(EVENT, is_all_day=True, timezone="UTC", end=EVENT.start)
    found = lines(build_request(event, stamp=STAMP))
    assert {"DTSTART;VALUE=DATE:20261124", "DTEND;VALUE=DATE:20261125"} <= set(found)


def test_a_single_event_is_in_utc_without_a_zone():
    ics = build_request(EVENT, stamp=STAMP)
    assert b"DTSTART:20261124T090000Z" in ics
    assert b"VTIMEZONE" not in ics


def test_a_series_is_in_its_zone_and_keeps_its_hour_over_a_change_of_clocks():
    ics = build_request(SERIES, stamp=STAMP)
    assert b"DTSTART;TZID=Europe/Paris:20261124T100000" in ics
    calendar, _ = read(ics)
    found = recurring_ical_events.of(calendar).between(date(2027, 3, 22), date(2027, 4, 7))
    assert [item["DTSTART"].dt.astimezone(UTC).hour for item in found] == [9, 8, 8]


def test_exceptions_get_the_form_of_the_start():
    series = replace(
        SERIES,
        recurrence=(
            "RRULE:FREQ=WEEKLY;UNTIL=20270101",
            "EXDATE:20261201T090000Z",
            "EXDATE;TZID=America/New_York:20261208T040000",
            "EXDATE;VALUE=DATE:20261215",
        ),
    )
    found = lines(build_request(series, stamp=STAMP))
    assert [line for line in found if line.startswith("EXDATE")] == [
        "EXDATE;TZID=Europe/Paris:20261201T100000",
        "EXDATE;TZID=Europe/Paris:20261208T100000",
        "EXDATE;TZID=Europe/Paris:20261215T100000",
    ]
    assert "RRULE:FREQ=WEEKLY;UNTIL=20270101T225959Z" in found


def test_an_all_day_event_has_dates_of_its_zone():
    zone = ZoneInfo("Europe/Paris")
    event = replace(
        EVENT,
        is_all_day=True,
        start=datetime(2026, 11, 24, tzinfo=zone).astimezone(UTC),
        end=datetime(2026, 11, 26, tzinfo=zone).astimezone(UTC),
        recurrence=("RRULE:FREQ=YEARLY;UNTIL=20301124T000000Z",),
    )
    found = lines(build_request(event, stamp=STAMP))
    assert {"DTSTART;VALUE=DATE:20261124", "DTEND;VALUE=DATE:20261126"} <= set(found)
    assert "RRULE:FREQ=YEARLY;UNTIL=20301124" in found
    assert "BEGIN:VTIMEZONE" not in found


def test_one_instance_has_the_original_start_and_no_rule():
    instance = replace(SERIES, recurrence_id=datetime(2026, 12, 1, 9, tzinfo=UTC))
    found = lines(build_request(instance, stamp=STAMP))
    assert "RECURRENCE-ID;TZID=Europe/Paris:20261201T100000" in found
    assert not any(line.startswith("RRULE:FREQ=WEEKLY") for line in found)


def test_a_reply_has_exactly_one_attendee_and_the_same_sequence():
    guest = replace(BOB, response_status="declined")
    calendar, event = read(build_reply(EVENT, stamp=STAMP, replying=guest))
    assert calendar["METHOD"] == "REPLY"
    assert event["ATTENDEE"] == "mailto:bob@example.org"
    assert event["ATTENDEE"].params["PARTSTAT"] == "DECLINED"
    assert event["SEQUENCE"] == 3
    assert "STATUS" not in event


def test_a_cancel_for_all_is_cancelled_and_one_for_some_is_not():
    _, whole = read(build_cancel(EVENT, stamp=STAMP, uninvited=EVENT.guests, is_whole=True))
    assert (whole["STATUS"], len(whole["ATTENDEE"])) == ("CANCELLED", 2)
    assert all("RSVP" not in address.params for address in whole["ATTENDEE"])
    _, partial = read(build_cancel(EVENT, stamp=STAMP, uninvited=[BOB], is_whole=False))
    assert "STATUS" not in partial
    assert partial["ATTENDEE"] == "mailto:bob@example.org"


def test_a_cancel_of_one_instance_names_it_and_is_cancelled():
    instance = replace(SERIES, recurrence_id=datetime(2026, 12, 1, 9, tzinfo=UTC))
    found = lines(build_cancel(instance, stamp=STAMP, uninvited=SERIES.guests, is_whole=True))
    assert {"METHOD:CANCEL", "STATUS:CANCELLED", "RECURRENCE-ID;TZID=Europe/Paris:20261201T100000"} <= set(
        found
    )
    assert "RRULE:FREQ=WEEKLY;COUNT=30" not in found


def test_a_meetings_address_is_written_once():
    event = replace(EVENT, description=f"Join: {EVENT.meeting_url}")
    _, found = read(build_request(event, stamp=STAMP))
    assert found["DESCRIPTION"] == event.description


def test_a_cancel_is_whole_when_it_reaches_every_guest():
    assert is_whole_cancel(EVENT, [replace(BOB, email="BOB@example.org"), EVE])
    assert not is_whole_cancel(EVENT, [BOB])
    assert not is_whole_cancel(replace(EVENT, guests=()), [BOB])


NASTY = 'x"; :,^n\\\r\nATTENDEE:mailto:evil@x.y\r\nBEGIN:VALARM\x00\x85\u2028é'


def test_an_address_is_a_uri_and_no_client_has_to_decode_more_than_it_must():
    """RFC 6068: % begins an escape, ? the parameters, # a fragment."""
    odd = replace(BOB, email="a%b?c&d#e+f/g@example.org")
    _, event = read(build_reply(EVENT, stamp=STAMP, replying=odd))
    assert event["ATTENDEE"] == "mailto:a%25b%3Fc%26d%23e+f/g@example.org"


def test_no_line_and_no_parameter_can_be_injected():
    person = replace(BOB, name=NASTY, email="bob@example.org")
    event = replace(
        EVENT,
        name=NASTY,
        description=NASTY,
        location=NASTY,
        organizer=Person(email="ada@example.com", name=NASTY),
        guests=(person,),
    )
    ics = build_request(event, stamp=STAMP)
    plain, _ = build_request(replace(EVENT, guests=(BOB,), location="x"), stamp=STAMP), None
    names = [line.split(":")[0].split(";")[0] for line in lines(ics)]
    assert names == [line.split(":")[0].split(";")[0] for line in lines(plain)]
    _, read_back = read(ics)
    assert "\n" not in str(read_back["SUMMARY"])
    assert set(read_back["ATTENDEE"][1].params) == {"CN", "CUTYPE", "PARTSTAT", "ROLE", "RSVP"}


@pytest.mark.parametrize("name", ["a\\", "\\", 'Ada: "Boss", Jr; \U0001f600', "^n", "a\\;b"])
def test_a_name_ends_where_it_ends(name):
    """Not everybody reads a backslash in a parameter as RFC 5545 does, as a plain character."""
    _, event = read(build_request(replace(EVENT, guests=(replace(BOB, name=name),)), stamp=STAMP))
    bob = event["ATTENDEE"][1]
    assert bob.params["CN"] == name.replace('"', "'").replace("\\", "/")
    assert set(bob.params) == {"CN", "CUTYPE", "PARTSTAT", "ROLE", "RSVP"}


@given(st.text(max_size=300), st.text(max_size=60))
def test_any_text_gives_folded_lines_that_read_back(text, name):
    event = replace(EVENT, name=text, description=text, location=text, guests=(replace(BOB, name=name),))
    ics = build_request(event, stamp=STAMP)
    assert all(len(line) <= 75 for line in ics.split(b"\r\n"))
    assert b"\n" not in ics.replace(b"\r\n", b"")
    calendar, read_back = read(ics)
    assert calendar["METHOD"] == "REQUEST"
    assert len(read_back["ATTENDEE"]) == 2


@pytest.mark.parametrize(
    "line",
    [
        "RRULE:FREQ=WEEKLY\r\nATTENDEE:mailto:x@y.z",
        "ATTENDEE:mailto:x@y.z",
        "EXDATE:never",
        "RRULE:FREQ=WEEKLY;UNTIL=x",
        "",
    ],
)
def test_a_recurrence_line_that_is_none_is_refused(line):
    with pytest.raises(ValueError):
        build_request(replace(EVENT, recurrence=(line,)), stamp=STAMP)


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        "JaVaScRiPt:x",
        " https://x y",
        "https://x\r\nBcc: y",
        'https://x"onclick',
        "ftp://x",
        "",
    ],
)
def test_only_plain_http_addresses_reach_a_mail(url):
    assert safe_url(url) is None
    ics = build_request(replace(EVENT, meeting_url=url, description=f"see {url}", location=url), stamp=STAMP)
    assert b"CONFERENCE" not in ics
    assert b"javascript:" not in ics.lower()
    assert b"data:" not in ics.lower()


# -- zones --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [2018, 2026])
@pytest.mark.parametrize(
    "name",
    ["Europe/Paris", "Europe/Dublin", "America/New_York", "Asia/Tokyo", "Asia/Kathmandu", "Australia/Lord_Howe",
     "Africa/Casablanca", "Asia/Jerusalem", "America/Santiago", "Africa/Cairo", "Pacific/Apia", "Asia/Tehran",
     "America/Sao_Paulo", "Asia/Gaza"],
)  # fmt: skip
def test_a_zones_definition_has_the_offsets_of_the_zone(name, year):
    # Under a name of its own: the library takes a zone that it knows from elsewhere.
    own_name = f"Custom-{year}-" + name.replace("/", "-")
    text = vtimezone(name, year).to_ical().replace(name.encode(), own_name.encode())
    (component,) = icalendar.Timezone.from_ical(text, multiple=True)
    assert isinstance(component, icalendar.Timezone)
    definition = component.to_tz()
    zone = ZoneInfo(name)
    for day in range(0, 9 * 365, 5):
        at = datetime(year, 1, 2, 12) + timedelta(days=day)
        assert at.replace(tzinfo=zone).utcoffset() == definition.utcoffset(at), at


@pytest.mark.parametrize("first_year", [1995, 2006, 2010, 2014, 2020, 2025, 2026])
@pytest.mark.parametrize(
    "name",
    ["America/New_York", "America/Santiago", "Asia/Jerusalem", "Africa/Cairo", "Asia/Gaza", "America/Nuuk",
     "Europe/Paris", "Europe/Moscow", "America/Sao_Paulo", "Asia/Tehran", "Europe/Istanbul", "America/Mexico_City",
     "Africa/Casablanca", "Asia/Kathmandu", "Australia/Lord_Howe", "Asia/Pyongyang"],
)  # fmt: skip
def test_a_series_of_long_ago_has_the_offsets_of_the_years_ahead(name, first_year):
    own_name = f"Custom-since-{first_year}-" + name.replace("/", "-")
    found = vtimezone(name, first_year, 2026).to_ical()
    assert len(found) < 2000
    (component,) = icalendar.Timezone.from_ical(
        found.replace(name.encode(), own_name.encode()), multiple=True
    )
    assert isinstance(component, icalendar.Timezone)
    definition, zone = component.to_tz(), ZoneInfo(name)
    for first_day, days in ((datetime(first_year, 1, 2, 12), 364), (datetime(2026, 1, 2, 12), 7 * 365)):
        for day in range(0, days, 3):
            at = first_day + timedelta(days=day)
            assert at.replace(tzinfo=zone).utcoffset() == definition.utcoffset(at), at


def test_a_series_of_long_ago_is_sent_with_the_rule_of_today():
    series = replace(SERIES, timezone="America/New_York", start=datetime(2006, 3, 20, 14, tzinfo=UTC),
                     end=datetime(2006, 3, 20, 15, tzinfo=UTC))  # fmt: skip
    ics = build_request(series, stamp=STAMP)
    assert b"RRULE:FREQ=YEARLY;BYDAY=2SU;BYMONTH=3" in ics
    assert b"DTSTART;TZID=America/New_York:20060320T090000" in ics


def test_a_definition_holds_for_the_original_start_too():
    """In Casablanca, the clocks change between the two."""
    moved = replace(
        SERIES,
        timezone="Africa/Casablanca",
        start=datetime(2030, 1, 8, 10, tzinfo=UTC),
        end=datetime(2030, 1, 8, 11, tzinfo=UTC),
        recurrence_id=datetime(2029, 12, 11, 9, tzinfo=UTC),
    )
    ics = build_request(moved, stamp=STAMP)
    assert b"RECURRENCE-ID;TZID=Africa/Casablanca:20291211T100000" in ics
    (definition,) = icalendar.Timezone.from_ical(vtimezone_text(ics, "Custom-original-start"), multiple=True)
    assert isinstance(definition, icalendar.Timezone)
    assert definition.to_tz().utcoffset(datetime(2029, 12, 11, 10)) == timedelta(hours=1)


def vtimezone_text(ics: bytes, own_name: str) -> bytes:
    """The definition in an object, under a name of its own: the library takes a zone that it knows from elsewhere."""
    start, end = ics.index(b"BEGIN:VTIMEZONE"), ics.index(b"END:VTIMEZONE")
    return re.sub(rb"TZID:.*", b"TZID:" + own_name.encode() + b"\r", ics[start:end]) + b"END:VTIMEZONE\r\n"


def test_a_zones_definition_is_as_outlook_wants_it():
    text = vtimezone("Europe/Paris", 2026).to_ical().decode()
    assert "DTSTART:19700329T020000" in text
    assert "RRULE:FREQ=YEARLY;BYDAY=-1SU;BYMONTH=3" in text
    assert "RDATE" not in text
    assert len(text) < 500
    tokyo = vtimezone("Asia/Tokyo", 2026).to_ical().decode()
    assert tokyo.count("BEGIN:STANDARD") == 1
    assert "RRULE" not in tokyo
    # At midnight, the evening before has the rule: Outlook reads no list of dates.
    santiago = vtimezone("America/Santiago", 2026).to_ical().decode()
    assert "DTSTART:19700905T235959" in santiago
    assert "RRULE:FREQ=YEARLY;BYDAY=1SA;BYMONTH=9" in santiago
    assert "RDATE" not in santiago
