import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.fetch import load_json, retry_after
from app.events.data import RemoteAttendee, RemoteOrganizer
from app.meeting_links.extract import DEFAULT_HOSTS
from app.providers.base import (
    AccessDenied,
    CalendarRemoved,
    ClientMisconfigured,
    CredentialsRevoked,
    CursorExpired,
    ProviderError,
    RateLimited,
    Unavailable,
)
from app.providers.google.client import classify_error
from app.providers.google.fields import parse_event, read_event

PARIS = "Europe/Paris"
WEEKLY: dict[str, Any] = {
    "kind": "calendar#event",
    "etag": '"3530000000000000"',
    "id": "4k2fakeid_20261124T090000Z",
    "status": "confirmed",
    "summary": "Weekly",
    "description": "<p>notes</p>",
    "location": "Room 1",
    "organizer": {"email": "ada@example.com", "displayName": "Ada", "self": True},
    "start": {"dateTime": "2026-11-24T10:00:00+01:00", "timeZone": PARIS},
    "end": {"dateTime": "2026-11-24T10:30:00+01:00", "timeZone": PARIS},
    "recurringEventId": "4k2fakeid",
    "originalStartTime": {"dateTime": "2026-11-24T10:00:00+01:00", "timeZone": PARIS},
    "iCalUID": "4k2fakeid@google.com",
    "eventType": "default",
    "attendees": [
        {"email": "ada@example.com", "organizer": True, "self": True, "responseStatus": "tentative"},
        {"email": "bob@example.org", "displayName": "Bob", "optional": True, "responseStatus": "needsAction"},
        {
            "email": "room@example.com",
            "displayName": "Room 1",
            "resource": True,
            "responseStatus": "accepted",
        },
        {"email": "eve@example.com", "responseStatus": "declined"},
    ],
    "hangoutLink": "https://meet.google.com/abc-defg-hij",
}


def utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, tzinfo=UTC)


def parse(**changes: Any):
    return parse_event({**WEEKLY, **changes}, calendar_timezone=PARIS)


def test_every_field_of_an_event_is_taken_over() -> None:
    event = parse()
    assert event.platform_uuid == "4k2fakeid_20261124T090000Z"
    assert (event.start_time, event.end_time) == (utc(2026, 11, 24, 9), utc(2026, 11, 24, 9, 30))
    assert (event.is_all_day, event.timezone) == (False, PARIS)
    assert (event.name, event.description, event.location) == ("Weekly", "<p>notes</p>", "Room 1")
    assert event.ical_uid == "4k2fakeid@google.com"
    assert event.organizer == RemoteOrganizer("ada@example.com", "Ada")
    assert event.recurring_event_id == "4k2fakeid"
    assert event.original_start_time == utc(2026, 11, 24, 9)
    assert event.attendees == (
        RemoteAttendee("ada@example.com", None, "tentative", is_organizer=True),
        RemoteAttendee("bob@example.org", "Bob", "needs_action", is_optional=True),
        RemoteAttendee("room@example.com", "Room 1", "accepted", is_resource=True),
        RemoteAttendee("eve@example.com", None, "declined"),
    )
    assert event.response_status == "tentative"
    assert not event.is_cancelled
    assert json.loads(event.raw) == WEEKLY


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "tentative"),
        ({"attendees": None}, "accepted"),  # one's own event without guests
        ({"attendees": [{"email": "bob@example.org", "responseStatus": "declined"}]}, "accepted"),
        ({"attendees": None, "organizer": {"email": "boss@example.com"}}, None),
        ({"attendees": [{"self": True, "responseStatus": "new word"}]}, "needs_action"),
    ],
)
def test_the_own_response_is_that_of_the_attendee_who_is_this_calendar(
    changes: dict[str, Any], expected: str | None
) -> None:
    assert parse(**changes).response_status == expected


@pytest.mark.parametrize(
    ("start", "expected", "timezone"),
    [
        ({"dateTime": "2026-11-24T10:00:00+01:00"}, utc(2026, 11, 24, 9), PARIS),
        ({"dateTime": "2026-11-24T09:00:00Z", "timeZone": "America/New_York"}, utc(2026, 11, 24, 9), "America/New_York"),
        ({"dateTime": "2026-11-24T09:00:00.123Z", "timeZone": "Mars/Olympus"}, datetime(2026, 11, 24, 9, 0, 0, 123000, UTC), None),
        ({"dateTime": "2026-11-24T10:00:00", "timeZone": "America/New_York"}, utc(2026, 11, 24, 15), "America/New_York"),
        ({"dateTime": "2026-11-24T10:00:00"}, utc(2026, 11, 24, 9), PARIS),
        ({"dateTime": "2026-11-24T10:00:00", "timeZone": "Mars/Olympus"}, None, None),
        ({"dateTime": "9999-12-31T23:59:59-12:00"}, None, PARIS),
        ({"dateTime": "0001-01-01T00:00:00+12:00"}, None, PARIS),
        ({"dateTime": "tomorrow"}, None, PARIS),
    ],
)  # fmt: skip
def test_a_timed_start_is_its_offset_in_utc_and_names_its_zone(
    start: dict[str, str], expected: datetime | None, timezone: str | None
) -> None:
    event = parse(start=start)
    assert (event.start_time, event.timezone, event.is_all_day) == (expected, timezone, False)


@pytest.mark.parametrize(
    ("calendar_timezone", "start", "end", "timezone"),
    [
        (PARIS, utc(2026, 11, 23, 23), utc(2026, 11, 25, 23), PARIS),
        ("America/Los_Angeles", utc(2026, 11, 24, 8), utc(2026, 11, 26, 8), "America/Los_Angeles"),
        ("UTC", utc(2026, 11, 24), utc(2026, 11, 26), "UTC"),
        ("Mars/Olympus", utc(2026, 11, 24), utc(2026, 11, 26), "UTC"),
        ("../../etc/passwd", utc(2026, 11, 24), utc(2026, 11, 26), "UTC"),
        ("", utc(2026, 11, 24), utc(2026, 11, 26), "UTC"),
    ],
)
def test_an_all_day_event_lasts_whole_days_in_the_calendars_zone(
    calendar_timezone: str, start: datetime, end: datetime, timezone: str
) -> None:
    days = {
        "start": {"date": "2026-11-24", "timeZone": "Asia/Tokyo"},
        "end": {"date": "2026-11-26"},
        "originalStartTime": {"date": "2026-11-24"},
    }
    event = parse_event({**WEEKLY, **days}, calendar_timezone=calendar_timezone)
    assert (event.is_all_day, event.start_time, event.end_time) == (True, start, end)
    assert (event.original_start_time, event.timezone) == (start, timezone)


def test_an_all_day_event_across_a_clock_change_is_25_hours_long() -> None:
    event = parse(start={"date": "2026-10-25"}, end={"date": "2026-10-26"})
    assert (event.start_time, event.end_time) == (utc(2026, 10, 24, 22), utc(2026, 10, 25, 23))


@pytest.mark.parametrize(
    ("changes", "url", "platform"),
    [
        ({}, "https://meet.google.com/abc-defg-hij", "google_meet"),
        (
            {
                "conferenceData": {
                    "conferenceSolution": {"key": {"type": "addOn"}, "name": "Zoom Meeting"},
                    "entryPoints": [
                        {"entryPointType": "phone", "uri": "tel:+33-1-00-00-00-00"},
                        {
                            "entryPointType": "video",
                            "uri": "https://us02web.zoom.us/j/81234567890?pwd=AbC123",
                        },
                    ],
                }
            },
            "https://us02web.zoom.us/j/81234567890?pwd=AbC123",
            "zoom",
        ),
        (
            {"hangoutLink": "https://meet.google.com/abc-def-hij"},
            "https://meet.google.com/abc-def-hij",
            "google_meet",
        ),
        (
            {
                "conferenceData": {
                    "entryPoints": [{"entryPointType": "video", "uri": "https://zoom.us/j/12345?pwd=x"}]
                }
            },
            "https://zoom.us/j/12345?pwd=x",
            "zoom",
        ),
        (
            {"hangoutLink": None, "location": "https://us02web.zoom.us/j/81234567890"},
            "https://us02web.zoom.us/j/81234567890",
            "zoom",
        ),
        (
            {
                "hangoutLink": None,
                "description": "<a href='https://meet.google.com/xyz-defg-hij?a=1&amp;b'>x</a>",
            },
            "https://meet.google.com/xyz-defg-hij",
            "google_meet",
        ),
        (
            {
                "hangoutLink": None,
                "description": "x" * 7_990 + " https://us02web.zoom.us/j/81234567890?pwd=AbC123",
            },
            "https://us02web.zoom.us/j/81234567890?pwd=AbC123",
            "zoom",
        ),
        (
            {"hangoutLink": None, "conferenceData": {"createRequest": {"status": {"statusCode": "pending"}}}},
            None,
            None,
        ),
        ({"eventType": "workingLocation"}, None, None),
        ({"eventType": "birthday"}, None, None),
    ],
)
def test_the_meeting_url_comes_from_the_conference_then_from_the_texts(
    changes: dict[str, Any], url: str | None, platform: str | None
) -> None:
    event = parse(**changes)
    assert (event.meeting_url or "").partition("?a=")[0] == (url or "")
    assert event.meeting_platform == platform


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, []),
        ({"summary": "x" * 2000}, ["summary"]),
        ({"summary": "a\x00b"}, ["summary"]),
        ({"summary": ["a"]}, ["summary"]),
        ({"description": "\ud800"}, ["description"]),
        ({"start": None}, ["start"]),
        ({"start": {}}, ["start"]),
        ({"start": "2026-11-24"}, ["start"]),
        ({"start": {"dateTime": 5}}, ["start"]),
        ({"start": {"date": "2026-02-30"}}, ["start"]),
        ({"start": {"dateTime": "2026-11-24T10:00:00Z", "timeZone": "Mars/Olympus"}}, ["start"]),
        ({"start": {"dateTime": "2026-11-24T10:00:00Z", "timeZone": ["UTC"]}}, ["start"]),
        ({"end": 7}, ["end"]),
        ({"originalStartTime": []}, ["originalStartTime"]),
        ({"attendees": "everybody"}, ["attendees"]),
        ({"attendees": ["bob"]}, ["attendees"]),
        ({"attendees": [{"email": 5, "displayName": {}, "responseStatus": [], "self": "yes"}]}, []),
        ({"attendees": [{"email": f"{n}@example.com"} for n in range(1500)]}, ["attendees"]),
        ({"organizer": "ada"}, ["organizer"]),
        ({"iCalUID": 5}, ["iCalUID"]),
        ({"iCalUID": "é" * 1000}, ["iCalUID"]),
        ({"recurringEventId": {}}, ["recurringEventId"]),
        ({"conferenceData": "zoom", "hangoutLink": 5}, []),
        ({"conferenceData": {"entryPoints": {"0": 1}, "conferenceSolution": []}}, []),
        ({"conferenceData": {"entryPoints": [None, {"entryPointType": "video", "uri": 3}]}}, []),
        ({"eventType": "somethingNew", "unknownField": {"a": 1}}, []),
    ],
)
def test_what_cannot_be_read_is_named_and_the_rest_is_kept(
    changes: dict[str, Any], fields: list[str]
) -> None:
    event, unreadable = read_event({**WEEKLY, **changes}, calendar_timezone=PARIS, hosts=DEFAULT_HOSTS)
    assert unreadable == fields
    assert event.platform_uuid == WEEKLY["id"]
    assert "start" in fields or event.start_time in {utc(2026, 11, 24, 9), utc(2026, 11, 24, 10)}
    for text in (event.raw, event.name or "", event.description or ""):
        assert "\x00" not in text
        text.encode()


def test_long_texts_are_cut_and_large_lists_too() -> None:
    event = parse(
        summary="t" * 2000,
        description="d" * 9000,
        location="l" * 3000,
        attendees=[{"email": f"{n}@example.com"} for n in range(1500)],
    )
    assert [len(text or "") for text in (event.name, event.description, event.location)] == [1000, 8000, 2000]
    assert len(event.attendees) == 1000


def test_without_a_start_everything_else_is_kept() -> None:
    event = parse(start=None, end=None)
    assert (event.start_time, event.end_time, event.timezone) == (None, None, None)
    assert (event.name, len(event.attendees)) == ("Weekly", 4)


@pytest.mark.parametrize("event_id", [None, "", 5, ["a"], "x" * 1025, "é" * 600, "a\x00b", "\ud800"])
def test_an_event_without_an_id_that_can_be_stored_is_refused(event_id: Any) -> None:
    with pytest.raises(ValueError, match="usable id"):
        parse(id=event_id)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
_MOMENT = st.fixed_dictionaries(
    {},
    optional={
        "dateTime": st.sampled_from(["2026-11-24T10:00:00Z", "0001-01-01T00:00:00+14:00", "2026-11-24"])
        | _JSON,
        "date": st.sampled_from(["9999-12-31", "0001-01-01"]) | _JSON,
        "timeZone": st.sampled_from([PARIS, "Nowhere/Land", "..", "a" * 300, "posix"]) | _JSON,
    },
)
_PERSON = st.dictionaries(
    st.sampled_from(["email", "displayName", "self", "responseStatus", "optional"]), _JSON
)
_ITEM = st.fixed_dictionaries(
    {"id": st.just("e1")},
    optional={
        "summary": _JSON,
        "description": _JSON,
        "location": _JSON,
        "iCalUID": _JSON,
        "recurringEventId": _JSON,
        "eventType": _JSON,
        "hangoutLink": _JSON,
        "start": _MOMENT | _JSON,
        "end": _MOMENT | _JSON,
        "originalStartTime": _MOMENT | _JSON,
        "organizer": _PERSON | _JSON,
        "attendees": st.lists(_PERSON | _JSON, max_size=3) | _JSON,
        "conferenceData": _JSON
        | st.fixed_dictionaries(
            {"entryPoints": st.lists(st.fixed_dictionaries({"entryPointType": st.just("video"), "uri": _JSON}) | _JSON, max_size=3)}
        ),
    },
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(item=_ITEM, calendar_timezone=st.sampled_from([PARIS, "", "Mars"]) | st.text(max_size=10))
def test_whatever_an_event_holds_it_is_parsed_into_what_a_database_can_store(
    item: dict[str, Any], calendar_timezone: str
) -> None:
    event = parse_event(item, calendar_timezone=calendar_timezone)
    for at in (event.start_time, event.end_time, event.original_start_time):
        assert at is None or at.utcoffset() == UTC.utcoffset(None)
    json.loads(event.raw)
    for person in event.attendees:
        assert person.response_status in {"needs_action", "accepted", "tentative", "declined"}
    for text in (event.raw, event.name, event.description, event.location, event.ical_uid, event.timezone):
        assert text is None or ("\x00" not in text and text.encode()) or text == ""


def error_body(reason: str, *, domain: str = "global") -> bytes:
    return json.dumps(
        {
            "error": {
                "errors": [{"domain": domain, "reason": reason, "message": "m"}],
                "code": 0,
                "message": "m",
            }
        }
    ).encode()


def new_style_body(status: str, reason: str) -> bytes:
    detail = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
    }
    return json.dumps(
        {"error": {"code": 403, "message": "m", "status": status, "details": [detail]}}
    ).encode()


HTML = b"<!DOCTYPE html><title>Error</title>"


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (400, error_body("badRequest"), ProviderError, "bad_request"),
        (400, HTML, ProviderError, "bad_request"),
        (401, error_body("authError"), CredentialsRevoked, "token_rejected"),
        (401, b"", CredentialsRevoked, "token_rejected"),
        (403, error_body("rateLimitExceeded", domain="usageLimits"), RateLimited, "rate_limited"),
        (403, error_body("userRateLimitExceeded", domain="usageLimits"), RateLimited, "rate_limited"),
        (403, error_body("quotaExceeded", domain="usageLimits"), RateLimited, "rate_limited"),
        (403, error_body("someNewLimitExceeded", domain="usageLimits"), RateLimited, "rate_limited"),
        (403, new_style_body("RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED"), RateLimited, "rate_limited"),
        (403, error_body("accessNotConfigured", domain="usageLimits"), ClientMisconfigured, "api_not_usable"),
        (403, error_body("dailyLimitExceeded", domain="usageLimits"), ClientMisconfigured, "api_not_usable"),
        (403, new_style_body("PERMISSION_DENIED", "SERVICE_DISABLED"), ClientMisconfigured, "api_not_usable"),
        (403, error_body("insufficientPermissions"), AccessDenied, "scope_missing"),
        (403, new_style_body("PERMISSION_DENIED", "ACCESS_TOKEN_SCOPE_INSUFFICIENT"), AccessDenied, "scope_missing"),
        (403, error_body("notACalendarUser"), AccessDenied, "not_a_calendar_user"),
        (403, error_body("forbidden"), AccessDenied, "access_denied"),
        (403, error_body("forbiddenForNonOrganizer"), AccessDenied, "access_denied"),
        (403, error_body("backendError"), Unavailable, "unavailable"),
        (403, HTML, Unavailable, "unavailable"),
        (404, error_body("notFound"), CalendarRemoved, "calendar_gone"),
        (404, b'{"error": "Not Found"}', CalendarRemoved, "calendar_gone"),
        (404, HTML, Unavailable, "unavailable"),
        (410, error_body("fullSyncRequired"), CursorExpired, "cursor_expired"),
        (410, error_body("updatedMinTooLongAgo"), CursorExpired, "cursor_expired"),
        (410, HTML, CursorExpired, "cursor_expired"),
        (429, error_body("rateLimitExceeded"), RateLimited, "rate_limited"),
        (429, HTML, RateLimited, "rate_limited"),
        (500, error_body("backendError"), Unavailable, "unavailable"),
        (502, HTML, Unavailable, "unavailable"),
        (503, b"", Unavailable, "unavailable"),
        (408, b"", Unavailable, "unavailable"),
        (302, b"", Unavailable, "unavailable"),
        (412, error_body("conditionNotMet"), ProviderError, "unexpected_status"),
    ],
)  # fmt: skip
def test_every_error_of_the_contract_has_its_class(
    status: int, body: bytes, expected: type[ProviderError], code: str
) -> None:
    error = classify_error(status, body, {})
    assert type(error) is expected
    assert error.code == code


@pytest.mark.parametrize(
    "body",
    [b"[]", b"5", b'{"error": 5}', b'{"error": {"errors": 5, "details": [5, {"reason": ["x"]}]}}', b'"\xff"', b"[" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_an_error_body_of_any_shape_is_classified(status: int, body: bytes) -> None:
    assert isinstance(classify_error(status, body, {}), ProviderError)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": "30"}, 30.0),
        ({"Retry-After": " 0 "}, 0.0),
        ({"Retry-After": "9" * 500}, 86_400.0),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Tue, 24 Nov 2026 09:01:00 GMT", "Date": "Tue, 24 Nov 2026 09:00:00 GMT"}, 60.0),
        ({"Retry-After": "Tue, 24 Nov 2026 09:01:00 -0000", "Date": "Tue, 24 Nov 2026 09:00:00 GMT"}, 60.0),
        ({"Retry-After": "Tue, 24 Nov 2026 08:00:00 GMT", "Date": "Tue, 24 Nov 2026 09:00:00 GMT"}, 0.0),
        ({"Retry-After": "Tue, 24 Nov 2099 08:00:00 GMT", "Date": "?"}, 86_400.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after(headers) == expected
    limited = classify_error(429, b"", headers)
    assert isinstance(limited, RateLimited)
    assert limited.retry_after == expected


def test_broken_characters_in_one_text_do_not_hide_the_rest_of_a_page() -> None:
    assert load_json(b'{"a": "\\ud800", "b": "\xff", "c": 1}') == {"a": "\ud800", "b": "�", "c": 1}
    with pytest.raises(ValueError, match="Expecting"):
        load_json(b"<html>")
