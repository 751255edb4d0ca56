"""Events over HTTP (docs/reference/http-api.md, "Calendar events")."""

from datetime import UTC, date, datetime, timedelta
from functools import partial
from urllib.parse import urlencode

import icalendar
import orjson
import pytest
from sqlalchemy import Engine, event, insert, text

from app.core.db import transaction
from app.core.ids import new_id
from app.core.pagination import Cursor
from app.events.visibility import enter_as_writer
from app.models import CalendarEvent
from tests import factories

URL = "/api/v1/calendar_events"
FIELDS = {
    "id", "calendar_id", "platform_uuid", "meeting_url", "meeting_platform", "start_time", "end_time", "is_deleted",
    "attendees", "ical_uid", "name", "raw", "bots", "created_at", "updated_at", "is_all_day", "timezone", "location",
    "description", "organizer", "response_status", "recurring_event_id", "original_start_time", "busy_status", "visibility", "event_type", "etag",
}  # fmt: skip
START = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
async def add_calendar(sessions, settings, project):
    async def add(project_id=project.id, **fields):
        return await factories.add_calendar(sessions, settings, project_id, secrets={}, **fields)

    return add


@pytest.fixture
async def calendar_id(add_calendar):
    return await add_calendar(deduplication_key="u1")


@pytest.fixture
def add_events(sessions, project):
    async def add(calendar_id, *rows, project_id=project.id):
        """One event for each dict of columns; their ids."""
        values = [
            {
                "id": new_id("evt"), "project_id": project_id, "calendar_id": calendar_id, "platform_uuid": new_id("evt"),
                "content_hash": b"", "is_deleted": False, "start_time": START, "end_time": START + HOUR, "is_all_day": False,
                "timezone": None, "name": None, "description": None, "location": None, "ical_uid": None, "organizer": None,
                "attendees": [], "response_status": None, "recurring_event_id": None, "original_start_time": None,
                "meeting_url": None, "meeting_platform": None, "raw": {}, "created_at": START, "updated_at": START, **row,
            }
            for row in rows
        ]  # fmt: skip
        async with transaction(sessions) as session:
            await session.execute(insert(CalendarEvent), values)
        return [row["id"] for row in values]

    return add


async def ids(api, **query):
    response = await api.get(URL, params=query)
    assert response.status_code == 200, response.text
    return [result["id"] for result in response.json()["results"]]


async def walk(api, link, towards="next"):
    """The ids of all pages from `link` on, a list for each."""
    pages = []
    while link is not None:
        page = (await api.get(link)).json()
        pages.append([result["id"] for result in page["results"]])
        link = page[towards]
    return pages


# -- one event ----------------------------------------------------------------------------------------------

PERSON = {
    "email": "a@example.com", "name": "Åsa", "response_status": "accepted", "is_organizer": True, "is_optional": False,
    "is_resource": False,
}  # fmt: skip


async def test_an_event_has_exactly_the_contracts_fields(api, calendar_id, add_events):
    (event_id,) = await add_events(
        calendar_id,
        {
            "platform_uuid": "p1", "start_time": START, "end_time": START + timedelta(microseconds=5), "timezone": "Europe/Paris",
            "name": "Café ☕", "description": "<b>x</b>", "location": "Room", "ical_uid": "uid-1",
            "organizer": {"email": "a@example.com", "name": None}, "attendees": [PERSON], "response_status": "tentative",
            "recurring_event_id": "series", "original_start_time": START - HOUR, "meeting_url": "https://zoom.us/j/1",
            "meeting_platform": "zoom", "busy_status": "free", "visibility": "private", "event_type": "focus_time",
            "etag": '"1"', "raw": {"id": "p1"},
        },
    )  # fmt: skip
    expected = {
        "id": event_id, "calendar_id": calendar_id, "platform_uuid": "p1", "meeting_url": "https://zoom.us/j/1",
        "meeting_platform": "zoom", "start_time": "2026-01-01T12:00:00.000000Z", "end_time": "2026-01-01T12:00:00.000005Z",
        "is_deleted": False, "attendees": [PERSON], "ical_uid": "uid-1", "name": "Café ☕", "raw": {"id": "p1"}, "bots": [],
        "created_at": "2026-01-01T12:00:00.000000Z", "updated_at": "2026-01-01T12:00:00.000000Z", "is_all_day": False,
        "timezone": "Europe/Paris", "location": "Room", "description": "<b>x</b>",
        "organizer": {"email": "a@example.com", "name": None}, "response_status": "tentative", "recurring_event_id": "series",
        "original_start_time": "2026-01-01T11:00:00.000000Z", "busy_status": "free", "visibility": "private",
        "event_type": "focus_time", "etag": '"1"',
    }  # fmt: skip
    assert expected.keys() == FIELDS
    one = await api.get(f"{URL}/{event_id}")
    assert one.headers["Content-Type"] == "application/json"
    assert one.json() == expected
    assert (await api.get(URL)).json() == {"next": None, "previous": None, "results": [expected]}


async def test_what_is_not_known_of_an_event_is_null(api, calendar_id, add_events):
    (event_id,) = await add_events(calendar_id, {"start_time": None, "end_time": None})
    shown = (await api.get(f"{URL}/{event_id}")).json()
    nulls = {name for name, value in shown.items() if value is None}
    assert nulls == {
        "meeting_url", "meeting_platform", "start_time", "end_time", "ical_uid", "name", "timezone", "location",
        "description", "organizer", "response_status", "recurring_event_id", "original_start_time",
        "etag",
    }  # fmt: skip
    # A row that was written before these columns existed.
    assert (shown["busy_status"], shown["visibility"], shown["event_type"]) == ("busy", "default", "default")


async def test_raw_comes_back_as_the_very_text_that_was_stored(api, sessions, calendar_id, add_events):
    (event_id,) = await add_events(calendar_id, {})
    raw = '{"b": 1.10,  "a": 1e400, "b": "\\ud83d\\ude00 \\u0000 é"}'  # which no parser would write again like this
    async with transaction(sessions) as session:
        await session.execute(text("UPDATE calendar_events SET raw = CAST(:raw AS json)"), {"raw": raw})
    for path in (URL, f"{URL}/{event_id}"):
        assert f'"raw":{raw},' in (await api.get(path)).text


async def test_another_projects_event_is_not_found(api, other_api, calendar_id, add_events):
    (event_id,) = await add_events(calendar_id, {})
    for name in (event_id, f"{event_id}.ics"):
        response = await other_api.get(f"{URL}/{name}")
        assert (response.status_code, response.json()) == (404, {"error": "Calendar event not found"})
    assert await ids(other_api) == []
    assert await ids(other_api, calendar_id=calendar_id) == []
    assert await ids(other_api, event_id=event_id) == []
    assert await ids(other_api, calendar_deduplication_key="u1") == []


async def test_what_cannot_be_an_id_is_not_found(api):
    for name in (
        "evt_0000000000000000",
        "x",
        "evt_%00",
        "cal_0000000000000000",
        ".ics",
        "x.ics",
        "evt_0000000000000000.ics",
    ):
        response = await api.get(f"{URL}/{name}")
        assert (response.status_code, response.json()) == (404, {"error": "Calendar event not found"}), name


# -- lists --------------------------------------------------------------------------------------------------

ORDERINGS = [
    "updated_at",
    "-updated_at",
    "created_at",
    "-created_at",
    "start_time",
    "-start_time",
    "end_time",
    "-end_time",
]


@pytest.mark.parametrize("scope", ["project", "calendar"])
async def test_every_ordering_is_walked_both_ways_without_repeating_or_losing_rows(
    api, add_calendar, add_events, scope
):
    wanted, other = await add_calendar(), await add_calendar()
    times = [START + (number % 5) * HOUR for number in range(23)]  # many ties
    rows = [
        {
            "updated_at": at, "created_at": at, "start_time": at if number % 4 else None,
            "end_time": at + HOUR if number % 6 else None,
        }
        for number, at in enumerate(times)
    ]  # fmt: skip
    made = dict(zip(await add_events(wanted, *rows), rows, strict=True))
    if scope == "calendar":
        await add_events(other, *rows)

    def place(name, row_id):
        return (made[row_id][name] or datetime.max.replace(tzinfo=UTC), row_id)

    query = {"page_size": 4, **({"calendar_id": wanted} if scope == "calendar" else {})}
    for ordering in ORDERINGS:
        name = ordering.removeprefix("-")
        expected = sorted(made, key=partial(place, name))
        if ordering.startswith("-"):
            expected.reverse()
        chunks = [expected[at : at + 4] for at in range(0, 23, 4)]
        first = f"{URL}?{urlencode({**query, 'ordering': ordering})}"
        assert await walk(api, first) == chunks, ordering
        last_page = (await api.get(first)).json()
        while last_page["next"]:
            last_page = (await api.get(last_page["next"])).json()
        back = await walk(api, last_page["previous"], "previous")
        assert back == chunks[-2::-1], ordering


async def test_a_page_has_100_events_and_rows_written_meanwhile_do_not_disturb_the_walk(
    api, calendar_id, add_events
):
    made = await add_events(calendar_id, *({"updated_at": START + number * HOUR} for number in range(150)))
    first = (await api.get(URL)).json()
    assert [result["id"] for result in first["results"]] == made[:49:-1]
    assert first["next"].startswith("http://testserver/api/v1/calendar_events?cursor=")
    await add_events(calendar_id, {"updated_at": START + 200 * HOUR})
    assert await walk(api, first["next"]) == [made[49::-1]]


async def test_a_client_that_asks_updated_after_gets_what_is_at_or_after_it(api, calendar_id, add_events):
    made = await add_events(
        calendar_id, *({"updated_at": START + number * timedelta(microseconds=1)} for number in range(4))
    )
    since = "2026-01-01T12:00:00.000002Z"
    for name in ("updated_after", "updated_at_gte"):
        assert await ids(api, **{name: since}) == [made[3], made[2]]
        assert await ids(api, **{name: since, "calendar_id": calendar_id, "ordering": "updated_at"}) == [
            made[2],
            made[3],
        ]
    assert await ids(api, updated_after=since, updated_at_gte="2026-01-01T12:00:00.000003Z") == [made[3]]


async def test_times_in_queries_may_have_any_offset_or_none(api, calendar_id, add_events):
    (_, later) = await add_events(calendar_id, {"updated_at": START}, {"updated_at": START + HOUR})
    for written in (
        "2026-01-01T13:00:00Z", "2026-01-01T13:00:00", "2026-01-01 13:00:00", "2026-01-01T15:00:00+02:00",
        "2026-01-01T11:00:00.000-0200", "20260101T130000Z",
    ):  # fmt: skip
        assert await ids(api, updated_after=written) == [later], written
    unquoted = await api.get(f"{URL}?updated_after=2026-01-01T15:00:00+02:00")  # the "+" arrives as a blank
    assert [result["id"] for result in unquoted.json()["results"]] == [later]


async def test_each_filter_narrows_the_list(api, calendar_id, add_calendar, add_events):
    other = await add_calendar()
    (early, late, deleted) = await add_events(
        calendar_id,
        {"ical_uid": "x", "updated_at": START + 3 * HOUR},
        {"start_time": START + HOUR, "end_time": START + 2 * HOUR, "updated_at": START + 2 * HOUR},
        {"is_deleted": True, "start_time": None, "end_time": None, "updated_at": START + HOUR},
    )
    (elsewhere,) = await add_events(other, {"ical_uid": "x"})
    assert await ids(api, calendar_id=calendar_id) == [early, late, deleted]
    assert await ids(api, calendar_deduplication_key="u1") == [early, late, deleted]
    assert await ids(api, calendar_deduplication_key="u1", calendar_id=other) == []
    assert await ids(api, event_id=late) == [late]
    assert await ids(api, event_id=late, calendar_id=other) == []
    assert await ids(api, ical_uid="x") == [early, elsewhere]
    assert await ids(api, ical_uid="x", calendar_id=other) == [elsewhere]
    assert await ids(api, start_time_gte="2026-01-01T12:30:00Z") == [late]
    assert await ids(api, end_time_lte="2026-01-01T13:00:00Z") == [early, elsewhere]
    assert await ids(api, is_deleted="true") == [deleted]
    assert await ids(api, is_deleted="False") == [early, late, elsewhere]
    for query in (
        {"calendar_id": "cal_0000000000000000"},
        {"calendar_deduplication_key": "no"},
        {"event_id": "no"},
    ):
        assert await ids(api, **query) == []


def _cursor(ordering="-updated_at", key=START, row_id="evt_1"):
    return Cursor(ordering, key, row_id).encode()


def _raw_cursor(*parts):
    import base64

    return base64.urlsafe_b64encode(orjson.dumps(parts)).decode().rstrip("=")


NO_TIME = "Not a date and time: use ISO 8601, for example 2026-01-31T09:00:00Z."
BAD_CURSOR = "The cursor is not one that this list gave out. Start again without it."
BAD_QUERIES = [
    ("updated_after=yesterday", f"updated_after: {NO_TIME}"),
    ("updated_at_gte=2026-13-01T00:00:00Z", f"updated_at_gte: {NO_TIME}"),
    ("start_time_gte=0001-01-01T00:00:00%2B14:00", "start_time_gte: The date is out of range."),
    ("end_time_lte=" + "1" * 50, f"end_time_lte: {NO_TIME}"),
    ("is_deleted=maybe", "is_deleted: Not a boolean."),
    (
        "ordering=name",
        "Invalid ordering. Allowed values: -updated_at, updated_at, start_time, -start_time, end_time, -end_time, ",
    ),
    ("ordering=", "Invalid ordering. Allowed values: "),
    ("updated_after=", f"updated_after: {NO_TIME}"),
    ("end_time_lte=", f"end_time_lte: {NO_TIME}"),
    ("page_size=0", "page_size: Must be at least 1."),
    ("page_size=x", "page_size: Not an integer."),
    ("calendar_id=a%00b", "query: NUL characters are not allowed."),
    ("calendar_id%00=a", "query: NUL characters are not allowed."),
    ("ical_uid=" + "x" * 1025, "ical_uid: Longer than 1024 characters."),
    ("colour=red", "colour: Unknown query parameter."),
    ("cursor=%C3%A9", BAD_CURSOR),
    ("cursor=" + _cursor("updated_at"), BAD_CURSOR),
    ("cursor=" + _raw_cursor("-updated_at", "2026-01-01T00:00:00", "evt_1", False), BAD_CURSOR),
    ("cursor=" + _raw_cursor("-updated_at", 5, "evt_1", False), BAD_CURSOR),
    ("cursor=" + _raw_cursor("-updated_at", None, "evt\u0000", False), BAD_CURSOR),
    ("cursor=" + _raw_cursor("-updated_at", None, "evt_1"), BAD_CURSOR),
]


async def test_bad_query_values_are_refused_with_a_sentence(api):
    for query, sentence in BAD_QUERIES:
        response = await api.get(f"{URL}?{query}")
        assert response.status_code == 400, query
        assert response.json()["error"].startswith(sentence), query


async def test_no_cursor_however_made_up_is_an_error_of_the_server(api, calendar_id, add_events):
    await add_events(calendar_id, {})
    made_up = [
        _raw_cursor("-updated_at", "0001-01-01T00:00:00+14:00", "evt_1", False),
        _raw_cursor("-updated_at", "9999-12-31T23:59:59-14:00", "evt_1", True),
        _raw_cursor("-updated_at", None, "_", True),
        _raw_cursor("-updated_at", None, "x" * 500, False),
        _raw_cursor("-updated_at", "2026-01-01", "evt_1", False),
    ]
    for cursor in made_up:
        response = await api.get(URL, params={"cursor": cursor})
        assert response.status_code in {200, 400}, cursor


async def test_a_query_that_is_not_utf_8_is_no_error_of_the_server(api, calendar_id, add_events):
    await add_events(calendar_id, {}, {})
    response = await api.get(f"{URL}?page_size=1&ical_uid=%ff")
    assert (response.status_code, response.json()["results"]) == (200, [])


async def test_rows_that_an_older_change_in_flight_could_undercut_are_held_back_over_the_project(
    api, sessions, calendar_id, add_calendar, add_events
):
    other = await add_calendar()
    (before,) = await add_events(calendar_id, {})
    project_id = (await factories.load_calendar(sessions, other)).project_id
    async with transaction(sessions) as writer:
        first = await enter_as_writer(writer, project_id=project_id, calendar_id=other)
        (after,) = await add_events(calendar_id, {"updated_at": first + timedelta(milliseconds=1)})
        assert await ids(api) == [before]
        assert await ids(api, is_deleted="false", ordering="start_time") == [before]
        assert await ids(api, calendar_id=calendar_id) == [after, before]
        assert await ids(api, calendar_deduplication_key="u1") == [after, before]
        assert await ids(api, event_id=after) == [after]
    assert await ids(api) == [after, before]


async def test_a_page_takes_three_statements_at_most(api, calendar_id, add_events):
    await add_events(calendar_id, *({} for _ in range(150)))
    seen = []

    def note(_connection, _cursor, statement, *_):
        # That a key is used is written once a minute, beside the request.
        if not statement.startswith("UPDATE api_keys"):
            seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        for query, most in (
            ({}, 3),
            ({"calendar_id": calendar_id}, 2),
            ({"calendar_deduplication_key": "u1"}, 2),
        ):
            seen.clear()
            assert len(await ids(api, **query)) == 100
            assert len(seen) == most, seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


async def test_a_deleted_event_stays_in_the_list(api, calendar_id, add_events):
    (event_id,) = await add_events(calendar_id, {"is_deleted": True})
    (shown,) = (await api.get(URL)).json()["results"]
    assert (shown["id"], shown["is_deleted"]) == (event_id, True)


# -- writing ------------------------------------------------------------------------------------------------

NEW = {"name": "x", "start_time": "2026-01-01T10:00:00Z", "end_time": "2026-01-01T11:00:00Z"}


async def test_a_providers_calendar_is_read_only_and_says_so(api, calendar_id, add_events):
    (event_id,) = await add_events(calendar_id, {})
    sentence = "This is a google calendar, and access to it is read-only: change its events at Google."
    created = await api.post(URL, json={**NEW, "calendar_id": calendar_id})
    assert (created.status_code, created.json()) == (400, {"calendar_id": [sentence]})
    for response in (
        await api.patch(f"{URL}/{event_id}", json={"name": "y"}),
        await api.delete(f"{URL}/{event_id}"),
    ):
        assert (response.status_code, response.json()) == (400, {"non_field_errors": [sentence]})
    assert await ids(api) == [event_id]


async def test_writing_to_another_project_is_not_found(other_api, calendar_id, add_events):
    (event_id,) = await add_events(calendar_id, {})
    created = await other_api.post(URL, json={**NEW, "calendar_id": calendar_id})
    assert (created.status_code, created.json()) == (404, {"error": "Calendar not found"})
    for response in (
        await other_api.patch(f"{URL}/{event_id}", json={}),
        await other_api.delete(f"{URL}/{event_id}"),
    ):
        assert (response.status_code, response.json()) == (404, {"error": "Calendar event not found"})


async def test_bad_fields_of_a_new_event_are_refused_by_name(api, calendar_id):
    body = {
        "calendar_id": calendar_id, "start_time": "soon", "end_time": 5, "timezone": "Mars/Olympus", "attendees": [{"name": "x"}],
        "colour": "red",
    }  # fmt: skip
    response = await api.post(URL, json=body)
    assert response.status_code == 400
    assert response.json().keys() == {"name", "start_time", "end_time", "timezone", "attendees", "colour"}
    assert response.json()["attendees"] == ["0.email: This field is required."]


# -- .ics ---------------------------------------------------------------------------------------------------


async def exported(api, event_id):
    response = await api.get(f"{URL}/{event_id}.ics")
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "text/calendar; charset=utf-8"
    assert response.headers["Content-Disposition"] == f'attachment; filename="{event_id}.ics"'
    calendar = icalendar.Calendar.from_ical(response.content)
    assert (calendar["VERSION"], len(calendar.subcomponents)) == ("2.0", 1)
    (vevent,) = calendar.events
    assert vevent.errors == []
    return vevent


async def test_an_event_is_exported_with_people_places_and_replies(api, calendar_id, add_events):
    guest = {
        **PERSON,
        "email": "b@example.com",
        "name": "B",
        "response_status": "declined",
        "is_optional": True,
        "is_organizer": False,
    }
    (event_id,) = await add_events(
        calendar_id,
        {
            "name": "Plan; review, Café", "description": "one\r\ntwo", "location": "Room\\1", "ical_uid": "uid-1",
            "organizer": {"email": "a@example.com", "name": "Åsa"}, "attendees": [PERSON, guest, {**PERSON, "email": None}],
            "meeting_url": "https://zoom.us/j/1?pwd=a,b;c", "updated_at": START + HOUR,
        },
    )  # fmt: skip
    vevent = await exported(api, event_id)
    assert (vevent["UID"], vevent["SUMMARY"], vevent["LOCATION"]) == (
        "uid-1",
        "Plan; review, Café",
        "Room\\1",
    )
    assert vevent["DESCRIPTION"] == "one\ntwo"
    assert vevent["URL"] == "https://zoom.us/j/1?pwd=a,b;c"
    assert (vevent.start, vevent.end) == (START, START + HOUR)
    assert (vevent.DTSTAMP, vevent.LAST_MODIFIED, vevent["STATUS"]) == (
        START + HOUR,
        START + HOUR,
        "CONFIRMED",
    )
    assert "RECURRENCE-ID" not in vevent
    assert (vevent["ORGANIZER"], vevent["ORGANIZER"].params["CN"]) == ("mailto:a@example.com", "Åsa")
    replies = {
        str(p): (p.params["PARTSTAT"], p.params["ROLE"], p.params["CUTYPE"]) for p in vevent["ATTENDEE"]
    }
    assert replies == {
        "mailto:a@example.com": ("ACCEPTED", "REQ-PARTICIPANT", "INDIVIDUAL"),
        "mailto:b@example.com": ("DECLINED", "OPT-PARTICIPANT", "INDIVIDUAL"),
    }


async def test_an_all_day_event_is_exported_as_the_days_of_its_own_zone(api, calendar_id, add_events):
    midnight = datetime(2026, 6, 1, 22, tzinfo=UTC)  # the 2nd in Paris
    row = {"is_all_day": True, "start_time": midnight, "end_time": midnight + timedelta(days=2)}
    in_paris, in_utc, nowhere = await add_events(
        calendar_id,
        {**row, "timezone": "Europe/Paris"},
        {**row, "timezone": None},
        {**row, "timezone": "Mars/Olympus"},
    )
    vevent = await exported(api, in_paris)
    assert (vevent.start, vevent.end) == (date(2026, 6, 2), date(2026, 6, 4))
    for event_id in (in_utc, nowhere):
        assert (await exported(api, event_id)).start == date(2026, 6, 1)


async def test_an_instance_names_its_slot_in_the_series_and_a_cancelled_one_its_state(
    api, calendar_id, add_events
):
    (event_id,) = await add_events(
        calendar_id,
        {
            "ical_uid": "s",
            "recurring_event_id": "s",
            "original_start_time": START - HOUR,
            "is_deleted": True,
            "end_time": None,
        },
    )
    vevent = await exported(api, event_id)
    assert (vevent["RECURRENCE-ID"].dt, vevent["STATUS"]) == (START - HOUR, "CANCELLED")
    assert "DTEND" not in vevent


async def test_no_text_of_a_stranger_writes_lines_of_its_own(api, calendar_id, add_events):
    evil = 'x\r\nEND:VEVENT\r\nBEGIN:VEVENT\nATTENDEE:mailto:y@example.com\r"\x0b\x7f\x85\u2028\u2029;:,\\'
    (event_id,) = await add_events(
        calendar_id,
        {
            "name": evil, "description": evil, "location": evil, "ical_uid": evil, "meeting_url": evil,
            "organizer": {"email": evil, "name": evil}, "attendees": [{**PERSON, "email": evil, "name": evil}],
        },
    )  # fmt: skip
    vevent = await exported(api, event_id)
    assert vevent.keys() == {
        "SUMMARY", "DTSTART", "DTEND", "DTSTAMP", "UID", "CREATED", "LAST-MODIFIED", "DESCRIPTION", "LOCATION", "URL",
        "STATUS", "ORGANIZER", "ATTENDEE",
    }  # fmt: skip
    assert not isinstance(vevent["ATTENDEE"], list)
    # Nor for readers to whom NEL and the separators of Unicode end a line.
    text = (await api.get(f"{URL}/{event_id}.ics")).text
    assert text.splitlines() == text.removesuffix("\r\n").split("\r\n")


async def test_an_event_without_a_start_has_no_file(api, calendar_id, add_events):
    (event_id,) = await add_events(calendar_id, {"start_time": None})
    response = await api.get(f"{URL}/{event_id}.ics")
    sentence = "The provider did not tell when this event starts, so there is no iCalendar file of it."
    assert (response.status_code, response.json()) == (400, {"error": sentence})
