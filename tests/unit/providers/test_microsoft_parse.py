import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.events.data import RemoteAttendee, RemoteOrganizer
from app.providers.base import (
    AccessDenied,
    CalendarRemoved,
    ClientMisconfigured,
    CredentialsRevoked,
    CursorExpired,
    ProviderError,
    RateLimited,
    Transient,
    Unavailable,
)
from app.providers.microsoft.client import classify_error
from app.providers.microsoft.fields import parse_event
from app.providers.microsoft.oauth import classify_token_error

PARIS = "Europe/Paris"
TEAMS_URL = (
    "https://teams.microsoft.com/l/meetup-join/19%3ameeting_ABC%40thread.v2/0?context=%7b%22Tid%22%3a%22"
    "11111111-2222-3333-4444-555555555555%22%2c%22Oid%22%3a%2266666666-7777-8888-9999-000000000000%22%7d"
)
VOLATILE: dict[str, Any] = {
    "@odata.etag": 'W/"DwAAABYAAAB1"',
    "@odata.type": "#microsoft.graph.event",
    "changeKey": "DwAAABYAAAB1",
    "lastModifiedDateTime": "2026-11-20T09:30:01.7654321Z",
}
NEVER = "0001-01-01T00:00:00Z"
WEEKLY: dict[str, Any] = {
    "id": "AAkALgOcc1",
    "originalStartTimeZone": "Romance Standard Time",
    "originalEndTimeZone": "Romance Standard Time",
    "iCalUId": "040000008200E000",
    "subject": "Weekly",
    "isAllDay": False,
    "isCancelled": False,
    "isOrganizer": False,
    "seriesMasterId": "AAkALgMaster",
    "type": "occurrence",
    "originalStart": "2026-11-24T09:00:00Z",
    "onlineMeetingUrl": None,
    "isOnlineMeeting": True,
    "onlineMeetingProvider": "teamsForBusiness",
    "responseStatus": {"response": "tentativelyAccepted", "time": "2026-11-20T09:30:01.7654321Z"},
    "body": {"contentType": "html", "content": "<p>notes</p>"},
    "start": {"dateTime": "2026-11-24T09:00:00.0000000", "timeZone": "UTC"},
    "end": {"dateTime": "2026-11-24T09:30:00.0000000", "timeZone": "UTC"},
    "location": {"displayName": "Room 1", "locationType": "default"},
    "locations": [{"displayName": "Room 1"}],
    "attendees": [
        {
            "type": "required",
            "status": {"response": "none", "time": NEVER},
            "emailAddress": {"name": "Ada", "address": "Ada@example.com"},
        },
        {
            "type": "optional",
            "status": {"response": "accepted", "time": NEVER},
            "emailAddress": {"name": "Bob", "address": "bob@example.org"},
        },
        {
            "type": "resource",
            "status": {"response": "declined", "time": NEVER},
            "emailAddress": {"name": "Room 1", "address": "room@example.com"},
        },
        {
            "type": "required",
            "status": {"response": "notResponded", "time": NEVER},
            "emailAddress": {"name": "", "address": "eve@example.com"},
        },
    ],
    "organizer": {"emailAddress": {"name": "Ada", "address": "ada@example.com"}},
    "onlineMeeting": {"joinUrl": TEAMS_URL, "conferenceId": "123456789"},
}


def utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, tzinfo=UTC)


def parse(**changes: Any):
    return parse_event({**WEEKLY, **changes})


def test_every_field_of_an_event_is_taken_over() -> None:
    event = parse(**VOLATILE)
    assert event.platform_uuid == "AAkALgOcc1"
    assert (event.start_time, event.end_time) == (utc(2026, 11, 24, 9), utc(2026, 11, 24, 9, 30))
    assert (event.is_all_day, event.timezone) == (False, PARIS)
    assert (event.name, event.description, event.location) == ("Weekly", "<p>notes</p>", "Room 1")
    assert event.ical_uid == "040000008200E000"
    assert event.organizer == RemoteOrganizer("ada@example.com", "Ada")
    assert event.recurring_event_id == "AAkALgMaster"
    assert event.original_start_time == utc(2026, 11, 24, 9)
    assert event.attendees == (
        RemoteAttendee("Ada@example.com", "Ada", "needs_action", is_organizer=True),
        RemoteAttendee("bob@example.org", "Bob", "accepted", is_optional=True),
        RemoteAttendee("room@example.com", "Room 1", "declined", is_resource=True),
        RemoteAttendee("eve@example.com", None, "needs_action"),
    )
    assert event.response_status == "tentative"
    assert not event.is_cancelled
    assert (event.meeting_url, event.meeting_platform) == (TEAMS_URL, "teams")


def test_raw_is_the_providers_object_without_what_changes_by_itself() -> None:
    assert json.loads(parse(**VOLATILE).raw) == WEEKLY
    assert parse(**VOLATILE).raw == parse(**{**VOLATILE, "changeKey": "another"}).raw


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"responseStatus": {"response": "organizer"}}, "accepted"),
        ({"responseStatus": {"response": "accepted"}}, "accepted"),
        ({"responseStatus": {"response": "declined"}}, "declined"),
        ({"responseStatus": {"response": "notResponded"}}, "needs_action"),
        ({"responseStatus": {"response": "none"}}, "needs_action"),
        ({"responseStatus": {"response": "none"}, "isOrganizer": True}, "accepted"),
        ({"responseStatus": None, "isOrganizer": True}, "accepted"),
        ({"responseStatus": None}, None),
        ({"responseStatus": {"response": ["accepted"]}}, "needs_action"),
    ],
)
def test_the_own_response_is_that_of_the_calendars_owner(
    changes: dict[str, Any], expected: str | None
) -> None:
    assert parse(**changes).response_status == expected


def test_an_attendee_whose_status_says_organizer_is_one_under_any_address() -> None:
    person = {"status": {"response": "organizer"}, "emailAddress": {"address": "alias@example.com"}}
    assert parse(attendees=[person]).attendees == (
        RemoteAttendee("alias@example.com", None, "accepted", is_organizer=True),
    )


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ({"dateTime": "2026-11-24T09:00:00.0000000"}, utc(2026, 11, 24, 9)),
        ({"dateTime": "2026-11-24T09:00:00.1234567", "timeZone": "UTC"}, datetime(2026, 11, 24, 9, 0, 0, 123456, UTC)),
        ({"dateTime": "2026-11-24T10:00:00.0000000", "timeZone": "Romance Standard Time"}, utc(2026, 11, 24, 9)),
        ({"dateTime": "2026-11-24T04:00:00.0000000", "timeZone": "America/New_York"}, utc(2026, 11, 24, 9)),
        ({"dateTime": "2026-11-24T09:00:00", "timeZone": "tzone://Microsoft/Utc"}, utc(2026, 11, 24, 9)),
        ({"dateTime": "2026-11-24T10:00:00+01:00", "timeZone": "UTC"}, utc(2026, 11, 24, 9)),
        ({"dateTime": "2026-11-24T09:00:00", "timeZone": "tzone://Microsoft/Custom"}, None),
        ({"dateTime": "2026-11-24T09:00:00", "timeZone": ["UTC"]}, None),
        ({"dateTime": "0001-01-01T00:00:00", "timeZone": "Tonga Standard Time"}, None),
        ({"dateTime": "tomorrow", "timeZone": "UTC"}, None),
        ({"dateTime": 5}, None),
        ("2026-11-24", None),
        (None, None),
    ],
)  # fmt: skip
def test_a_timed_start_is_a_wall_time_in_its_zone(start: Any, expected: datetime | None) -> None:
    event = parse(start=start)
    assert (event.start_time, event.is_all_day, event.name) == (expected, False, "Weekly")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Romance Standard Time", PARIS),
        ("America/New_York", "America/New_York"),
        ("tzone://Microsoft/Utc", "UTC"),
        ("tzone://Microsoft/Custom", "UTC"),
        (None, "UTC"),
        (5, "UTC"),
    ],
)
def test_the_zone_is_the_one_in_which_the_event_was_made(name: Any, expected: str) -> None:
    assert parse(originalStartTimeZone=name).timezone == expected


@pytest.mark.parametrize(
    ("start", "zone", "expected"),
    [
        # As a midnight wherever it is asked for.
        ("2026-11-24T00:00:00.0000000", "Romance Standard Time", utc(2026, 11, 23, 23)),
        ("2026-11-24T00:00:00.0000000", "Pacific Standard Time", utc(2026, 11, 24, 8)),
        ("2026-11-24T00:00:00.0000000", "UTC", utc(2026, 11, 24)),
        # As its creator's midnight, in UTC.
        ("2026-11-23T23:00:00.0000000", "Romance Standard Time", utc(2026, 11, 23, 23)),
        ("2026-11-24T08:00:00.0000000", "Pacific Standard Time", utc(2026, 11, 24, 8)),
        # As the midnight of an unknown zone: the nearest day.
        ("2026-11-23T22:00:00.0000000", "UTC", utc(2026, 11, 24)),
        ("2026-11-24T05:00:00.0000000", "UTC", utc(2026, 11, 24)),
    ],
)
def test_the_day_of_an_all_day_event_starts_at_midnight_where_it_was_made(
    start: str, zone: str, expected: datetime
) -> None:
    event = parse(
        isAllDay=True,
        originalStartTimeZone=zone,
        start={"dateTime": start, "timeZone": "UTC"},
        originalStart=f"{start[:19]}Z",
    )
    assert (event.is_all_day, event.start_time) == (True, expected)
    if start[11:13] in {"00", "23", "08"}:
        assert event.original_start_time == expected


def test_an_all_day_event_across_a_clock_change_is_25_hours_long() -> None:
    days = [{"dateTime": f"2026-10-{day}T00:00:00.0000000", "timeZone": "UTC"} for day in (25, 26)]
    event = parse(isAllDay=True, start=days[0], end=days[1])
    assert (event.start_time, event.end_time) == (utc(2026, 10, 24, 22), utc(2026, 10, 25, 23))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, utc(2026, 11, 24, 9)),
        ({"originalStart": None}, utc(2026, 11, 24, 9)),  # an occurrence is where it always was
        ({"originalStart": None, "type": "exception"}, None),
        ({"originalStart": "2026-11-23T09:00:00Z", "type": "exception"}, utc(2026, 11, 23, 9)),
        ({"originalStart": "2026-11-23T09:00:00", "type": "exception"}, utc(2026, 11, 23, 9)),
        ({"originalStart": "soon", "type": "exception"}, None),
        ({"originalStart": None, "seriesMasterId": None, "type": "singleInstance"}, None),
    ],
)
def test_the_original_start_distinguishes_an_occurrence_from_its_siblings(
    changes: dict[str, Any], expected: datetime | None
) -> None:
    assert parse(**changes).original_start_time == expected


ZOOM = "https://us02web.zoom.us/j/81234567890?pwd=AbC123"
NO_TEAMS: dict[str, Any] = {"onlineMeeting": None, "onlineMeetingProvider": "unknown"}
SAFE_LINK = (
    "https://eur03.safelinks.protection.outlook.com/?url=https%3A%2F%2Fteams.microsoft.com%2Fmeet%2F"
    "2345678901234%3Fp%3DAbCdEf&amp;data=05%7C02&amp;reserved=0"
)


@pytest.mark.parametrize(
    ("changes", "url", "platform"),
    [
        ({"location": {"displayName": ZOOM}}, TEAMS_URL, "teams"),
        ({**NO_TEAMS, "onlineMeetingUrl": ZOOM, "body": {"content": TEAMS_URL}}, ZOOM, "zoom"),
        ({**NO_TEAMS, "location": {"displayName": ZOOM}, "body": {"content": TEAMS_URL}}, ZOOM, "zoom"),
        ({**NO_TEAMS, "location": {"displayName": "Zoom", "locationUri": ZOOM}}, ZOOM, "zoom"),
        ({**NO_TEAMS, "locations": [{"displayName": "Room"}, {"displayName": ZOOM}]}, ZOOM, "zoom"),
        ({**NO_TEAMS, "subject": f"Call {ZOOM}"}, ZOOM, "zoom"),
        (
            {**NO_TEAMS, "body": {"content": f'<a href="{SAFE_LINK}">Join</a>'}},
            "https://teams.microsoft.com/meet/2345678901234?p=AbCdEf",
            "teams",
        ),
        # Behind what is kept of the description.
        ({**NO_TEAMS, "body": {"content": f"<p>{'x' * 20_000}</p> {ZOOM} "}}, ZOOM, "zoom"),
        # The provider's name decides between the links of a text.
        (
            {"onlineMeeting": None, "body": {"content": f"{ZOOM} or {TEAMS_URL}"}},
            TEAMS_URL,
            "teams",
        ),
        # A link that is too long for a link is none; a part of it would be another one.
        ({**NO_TEAMS, "onlineMeetingUrl": f"{ZOOM}&x={'y' * 5_000}"}, None, None),
        # What the provider itself calls the join link counts, whatever its code looks like.
        ({**NO_TEAMS, "onlineMeetingUrl": "https://zoom.us/j/12345"}, "https://zoom.us/j/12345", "zoom"),
        (
            {"onlineMeeting": {"joinUrl": "https://teams.microsoft.com/meet/123456789?p=x"}},
            "https://teams.microsoft.com/meet/123456789?p=x",
            "teams",
        ),
        ({**NO_TEAMS, "location": {"displayName": "https://zoom.us/j/12345"}, "locations": []}, None, None),
        (NO_TEAMS, None, None),
        ({**NO_TEAMS, "onlineMeeting": "zoom", "location": [], "locations": {}, "body": 5}, None, None),
    ],
)
def test_the_meeting_url_comes_from_the_online_meeting_then_from_the_texts(
    changes: dict[str, Any], url: str | None, platform: str | None
) -> None:
    event = parse(**changes)
    assert (event.meeting_url, event.meeting_platform) == (url, platform)


def test_long_texts_are_cut_and_large_lists_too() -> None:
    event = parse(
        subject="t" * 2000,
        body={"contentType": "html", "content": "d" * 9000},
        location={"displayName": "l" * 3000},
        attendees=[{"emailAddress": {"address": f"{n}@example.com"}} for n in range(1500)],
    )
    assert [len(text or "") for text in (event.name, event.description, event.location)] == [1000, 8000, 2000]
    assert len(event.attendees) == 1000


def test_empty_texts_are_none() -> None:
    event = parse(body={"content": ""}, location={"displayName": ""}, organizer={"emailAddress": {}})
    assert (event.description, event.location, event.organizer) == (None, None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": ["a"]},
        {"subject": "a\x00b\ud800"},
        {"body": "text"},
        {"body": {"content": "\x00 https://zoom.us/j/81234567890?pwd=\x00\ud800"}, "onlineMeeting": None},
        {"location": "Room"},
        {"attendees": "everybody"},
        {"attendees": ["bob", None, {"emailAddress": "bob"}, {"emailAddress": {"address": 5}, "type": []}]},
        {"organizer": "ada"},
        {"iCalUId": 5},
        {"iCalUId": "é" * 1000},
        {"seriesMasterId": {}},
        {"originalStart": 5},
        {"isAllDay": "yes", "isCancelled": "no"},
        {"onlineMeeting": {"joinUrl": 5}, "onlineMeetingUrl": [], "onlineMeetingProvider": {}},
    ],
)
def test_what_cannot_be_read_is_left_out_and_the_rest_is_kept(changes: dict[str, Any]) -> None:
    event = parse(**changes)
    assert (event.platform_uuid, event.start_time) == ("AAkALgOcc1", utc(2026, 11, 24, 9))
    assert (event.is_all_day, event.is_cancelled) == (False, False)
    for text in (event.raw, event.name or "", event.description or "", event.meeting_url or ""):
        assert "\x00" not in text
        text.encode()


@pytest.mark.parametrize("event_id", [None, "", 5, ["a"], "x" * 1025, "é" * 600, "a\x00b", "\ud800"])
def test_an_event_without_an_id_that_can_be_stored_is_refused(event_id: Any) -> None:
    with pytest.raises(ValueError, match="usable id"):
        parse(id=event_id)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
_ZONE = st.sampled_from(["UTC", "Romance Standard Time", PARIS, "tzone://Microsoft/Custom", "..", "a" * 300])
_MOMENT = st.fixed_dictionaries(
    {},
    optional={
        "dateTime": st.sampled_from(
            ["2026-11-24T10:00:00.0000000", "0001-01-01T00:00:00", "9999-12-31T23:59:59", "2026-11-24"]
        )
        | _JSON,
        "timeZone": _ZONE | _JSON,
    },
)
_PERSON = st.fixed_dictionaries(
    {},
    optional={
        "type": _JSON,
        "status": st.fixed_dictionaries({"response": _JSON}) | _JSON,
        "emailAddress": st.fixed_dictionaries({"address": _JSON, "name": _JSON}) | _JSON,
    },
)
_PLACE = st.fixed_dictionaries({"displayName": _JSON, "locationUri": _JSON}) | _JSON
_ITEM = st.fixed_dictionaries(
    {"id": st.just("e1")},
    optional={
        "subject": _JSON,
        "body": st.fixed_dictionaries({"content": _JSON}) | _JSON,
        "location": _PLACE,
        "locations": st.lists(_PLACE, max_size=3) | _JSON,
        "iCalUId": _JSON,
        "seriesMasterId": _JSON,
        "isAllDay": st.booleans() | _JSON,
        "isCancelled": _JSON,
        "isOrganizer": _JSON,
        "type": st.sampled_from(["occurrence", "exception"]) | _JSON,
        "originalStartTimeZone": _ZONE | _JSON,
        "originalStart": st.sampled_from(["0001-01-01T00:00:00+14:00", "2026-11-24T00:00:00Z"]) | _JSON,
        "start": _MOMENT | _JSON,
        "end": _MOMENT | _JSON,
        "organizer": _PERSON | _JSON,
        "attendees": st.lists(_PERSON | _JSON, max_size=3) | _JSON,
        "responseStatus": st.fixed_dictionaries({"response": _JSON}) | _JSON,
        "onlineMeeting": st.fixed_dictionaries({"joinUrl": _JSON}) | _JSON,
        "onlineMeetingUrl": _JSON,
        "onlineMeetingProvider": _JSON,
    },
)


@settings(max_examples=300, deadline=None)
@given(item=_ITEM)
def test_whatever_an_event_holds_it_is_parsed_into_what_a_database_can_store(item: dict[str, Any]) -> None:
    event = parse_event(item)
    for at in (event.start_time, event.end_time, event.original_start_time):
        assert at is None or at.utcoffset() == UTC.utcoffset(None)
    json.loads(event.raw)
    for person in event.attendees:
        assert person.response_status in {"needs_action", "accepted", "tentative", "declined"}
    for text in (event.raw, event.name, event.description, event.location, event.ical_uid, event.timezone):
        assert text is None or ("\x00" not in text and text.encode()) or text == ""


def error_body(code: str, message: str = "m", *, inner: str | None = None) -> bytes:
    inner_error = {"date": "2026-11-20T10:00:00", "request-id": "r", "code": inner}
    return json.dumps({"error": {"code": code, "message": message, "innerError": inner_error}}).encode()


HTML = b"<!DOCTYPE html><title>Error</title>"
HOSTED_ELSEWHERE = "The mailbox is either inactive, soft-deleted, or is hosted on-premise."


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (400, error_body("ErrorInvalidRequest"), ProviderError, "bad_request"),
        (400, error_body("RequestBroker--ParseUri"), ProviderError, "bad_request"),
        (400, HTML, ProviderError, "bad_request"),
        (400, error_body("ErrorInvalidIdMalformed"), CalendarRemoved, "calendar_gone"),
        (400, error_body("ErrorMissingEmailAddress"), AccessDenied, "mailbox_not_enabled"),
        (400, error_body("syncStateNotFound"), CursorExpired, "cursor_expired"),
        (401, error_body("InvalidAuthenticationToken"), CredentialsRevoked, "token_rejected"),
        (401, b"", CredentialsRevoked, "token_rejected"),
        (403, error_body("ErrorAccessDenied"), AccessDenied, "access_denied"),
        (403, error_body("accessDenied"), AccessDenied, "access_denied"),
        (403, error_body("Authorization_RequestDenied"), AccessDenied, "access_denied"),
        (403, error_body("ErrorSomething", HOSTED_ELSEWHERE), AccessDenied, "mailbox_not_enabled"),
        (403, error_body("TooManyRequests"), RateLimited, "rate_limited"),
        (403, HTML, Unavailable, "unavailable"),
        (404, error_body("MailboxNotEnabledForRESTAPI"), AccessDenied, "mailbox_not_enabled"),
        (404, error_body("UnknownError", inner="MailboxNotEnabledForRESTAPI"), AccessDenied, "mailbox_not_enabled"),
        (404, error_body("ErrorInvalidUser"), AccessDenied, "mailbox_not_enabled"),
        (404, error_body("MailboxInfoStale", HOSTED_ELSEWHERE), AccessDenied, "mailbox_not_enabled"),
        (404, error_body("ResourceNotFound"), CalendarRemoved, "mailbox_not_enabled"),
        (404, error_body("ErrorItemNotFound"), CalendarRemoved, "calendar_gone"),
        (404, error_body("itemNotFound"), CalendarRemoved, "calendar_gone"),
        (404, error_body("UnknownError"), Unavailable, "unavailable"),
        (404, HTML, Unavailable, "unavailable"),
        (404, b"", Unavailable, "unavailable"),
        (409, error_body("ErrorIrresolvableConflict"), ProviderError, "unexpected_status"),
        (410, error_body("SyncStateNotFound"), CursorExpired, "cursor_expired"),
        (410, error_body("resyncRequired"), CursorExpired, "cursor_expired"),
        (410, error_body("somethingNew"), CursorExpired, "cursor_expired"),
        (410, b"", CursorExpired, "cursor_expired"),
        (423, error_body("MailboxMoveInProgress"), Unavailable, "mailbox_moving"),
        (423, b"", Unavailable, "unavailable"),
        (429, error_body("ApplicationThrottled"), RateLimited, "rate_limited"),
        (429, error_body("activityLimitReached"), RateLimited, "rate_limited"),
        (429, HTML, RateLimited, "rate_limited"),
        (500, error_body("ErrorInternalServerError"), Unavailable, "unavailable"),
        (500, error_body("generalException"), Unavailable, "unavailable"),
        (502, HTML, Unavailable, "unavailable"),
        (503, error_body("ErrorMailboxMoveInProgress"), Unavailable, "mailbox_moving"),
        (503, error_body("ServiceUnavailable"), Unavailable, "unavailable"),
        (503, error_body("serviceNotAvailable", inner="ApplicationThrottled"), RateLimited, "rate_limited"),
        (504, b"", Unavailable, "unavailable"),
        (507, error_body("quotaLimitReached"), Unavailable, "unavailable"),
        (408, b"", Unavailable, "unavailable"),
        (302, b"", Unavailable, "unavailable"),
    ],
)  # fmt: skip
def test_every_error_of_the_contract_has_its_class(
    status: int, body: bytes, expected: type[ProviderError], code: str
) -> None:
    error = classify_error(status, body, {})
    assert (type(error), error.code) == (expected, code)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("challenge", ['Bearer claims="eyJ9"', 'Bearer error="insufficient_claims"'])
def test_a_claims_challenge_needs_the_person(status: int, challenge: str) -> None:
    error = classify_error(status, error_body("ErrorAccessDenied"), {"WWW-Authenticate": challenge})
    assert (type(error), error.code) == (CredentialsRevoked, "conditional_access")


@pytest.mark.parametrize(
    ("status", "code", "headers", "expected"),
    [
        (429, "TooManyRequests", {"Retry-After": "30"}, 30.0),
        (429, "TooManyRequests", {}, None),
        (503, "ServiceUnavailable", {"Retry-After": "120"}, 120.0),
        (503, "ErrorMailboxMoveInProgress", {}, 3600.0),
        (503, "ErrorMailboxMoveInProgress", {"Retry-After": "60"}, 60.0),
    ],
)
def test_the_time_to_wait_is_the_servers(
    status: int, code: str, headers: dict[str, str], expected: float | None
) -> None:
    error = classify_error(status, error_body(code), headers)
    assert isinstance(error, Transient)
    assert error.retry_after == expected


@pytest.mark.parametrize(
    "body",
    [b"[]", b"5", b'{"error": 5}', b'{"error": {"code": 5, "message": [], "innererror": [1]}}', b'"\xff"', b"[" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_an_error_body_of_any_shape_is_classified(status: int, body: bytes) -> None:
    assert type(classify_error(status, body, {})) in {ProviderError, Unavailable}


def test_no_message_repeats_what_the_server_wrote() -> None:
    for status in (400, 401, 403, 404, 410, 429, 500):
        error = classify_error(status, error_body("ErrorItemNotFound", "a secret"), {})
        assert "secret" not in error.message


@pytest.mark.parametrize(
    ("fields", "expected", "code"),
    [
        # Where the list of numbers is missing, the description has one.
        ({"error": "invalid_grant", "error_description": "AADSTS50057: The account is disabled."}, CredentialsRevoked, "invalid_grant"),
        ({"error": "invalid_request", "error_description": "AADSTS50194: not multi-tenant."}, ClientMisconfigured, "invalid_request"),
        # Where it is there, the description is not looked at.
        ({"error": "invalid_grant", "error_codes": [50173], "error_description": "AADSTS7000222"}, CredentialsRevoked, "invalid_grant"),
        ({"error": "invalid_grant", "error_codes": ["7000222", None]}, CredentialsRevoked, "invalid_grant"),
        ({"error": "invalid_grant", "error_codes": 5, "error_description": 5}, CredentialsRevoked, "invalid_grant"),
        ({"error": ["invalid_grant"]}, Unavailable, "unavailable"),
        ({"error": {"code": "invalid_grant"}}, Unavailable, "unavailable"),
        ({}, Unavailable, "unavailable"),
    ],
)  # fmt: skip
def test_token_errors_are_recognized_by_word_and_number(
    fields: dict[str, Any], expected: type[ProviderError], code: str
) -> None:
    error = classify_token_error(400, fields, {})
    assert (type(error), error.code) == (expected, code)
