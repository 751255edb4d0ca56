"""POST /free_busy and POST /availability: what is known, what is refused, and the shapes of responses."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, insert, update

from app.core.db import Sessions, transaction
from app.core.http import httpx
from app.models import Calendar, CalendarEvent, HostedEvent, PushChannel
from tests.conftest import TestProject
from tests.integration.availability.mirror import Event, MirroredCalendar, store, text

_START = datetime(2027, 3, 1, tzinfo=UTC)
_RANGE = {"start": text(_START), "end": text(_START + timedelta(days=2))}


def _at(hours: float) -> datetime:
    return _START + timedelta(hours=hours)


async def _free_busy(api: httpx.AsyncClient, names: list[Any], **fields: Any) -> list[dict[str, Any]]:
    response = await api.post("/api/v1/free_busy", json={"calendars": names, **_RANGE, **fields})
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["results"]
    return results


async def _availability(api: httpx.AsyncClient, *participants: Any, **fields: Any) -> dict[str, Any]:
    body = {"participants": list(participants), **_RANGE, "duration_minutes": 60, **fields}
    response = await api.post("/api/v1/availability", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_a_result_has_the_documented_fields(
    api: httpx.AsyncClient, sessions: Sessions, project: TestProject
) -> None:
    synced_at = datetime.now(UTC) - timedelta(minutes=1)
    calendar = MirroredCalendar(
        [
            Event(_at(-1), _at(1), "tentative"),
            Event(_at(0.5), _at(2), "busy"),
            Event(_at(1.5), _at(3) + timedelta(microseconds=5), "out_of_office"),
            Event(_at(47), _at(60)),
        ],
        fields={"deduplication_key": "user-1", "last_successful_sync_at": synced_at},
    )
    await store(sessions, project.id, [calendar])
    [result] = await _free_busy(api, ["user-1"])
    assert result == {
        "calendar_id": calendar.id,
        "deduplication_key": "user-1",
        "busy": [
            {"start": text(_at(0)), "end": text(_at(0.5)), "status": "tentative"},
            {"start": text(_at(0.5)), "end": text(_at(1.5)), "status": "busy"},
            {"start": text(_at(1.5)), "end": "2027-03-01T03:00:00.000005Z", "status": "out_of_office"},
            {"start": text(_at(47)), "end": text(_at(48)), "status": "busy"},
        ],
        "as_of": text(synced_at),
        "is_stale": False,
        "covered_from": text(calendar.covered_from or _START),
        "covered_until": text(calendar.covered_until or _START),
        "source": "mirror",
        "error": None,
    }


async def test_results_come_in_the_order_asked_and_as_often(
    api: httpx.AsyncClient, sessions: Sessions, project: TestProject
) -> None:
    calendars = [MirroredCalendar(fields={"deduplication_key": f"key-{n}"}) for n in range(3)]
    # A key that is another calendar's id: the id counts.
    calendars.append(MirroredCalendar(fields={"deduplication_key": calendars[0].id}))
    await store(sessions, project.id, calendars)
    names = ["key-2", calendars[0].id, "key-2", f" {calendars[1].id} ", calendars[3].id]
    results = await _free_busy(api, names)
    ids = [calendars[n].id for n in (2, 0, 2, 1, 3)]
    assert [result["calendar_id"] for result in results] == ids


async def test_unknown_calendars_and_those_of_others_are_404_by_name(
    api: httpx.AsyncClient, other_api: httpx.AsyncClient, sessions: Sessions, project: TestProject
) -> None:
    calendar = MirroredCalendar(fields={"deduplication_key": "mine"})
    await store(sessions, project.id, [calendar])
    for client, names, missing in (
        (api, ["mine", "cal_unknown"], "cal_unknown"),
        (other_api, [calendar.id], calendar.id),
        (other_api, ["mine"], "mine"),
    ):
        response = await client.post("/api/v1/free_busy", json={"calendars": names, **_RANGE})
        assert (response.status_code, response.json()) == (404, {"error": f"Calendar not found: {missing}"})
        body = {"participants": [{"calendars": names}], **_RANGE, "duration_minutes": 30}
        response = await client.post("/api/v1/availability", json=body)
        assert (response.status_code, response.json()) == (404, {"error": f"Calendar not found: {missing}"})


async def test_what_was_never_synced_is_not_free(
    api: httpx.AsyncClient, sessions: Sessions, project: TestProject
) -> None:
    new = MirroredCalendar(covered_from=None, covered_until=None, fields={"last_successful_sync_at": None})
    await store(sessions, project.id, [new])
    [result] = await _free_busy(api, [new.id])
    assert (result["as_of"], result["is_stale"], result["covered_until"]) == (None, True, None)
    assert "has not been synced yet" in result["error"]
    found = await _availability(api, {"calendars": [new.id]})
    assert found == {"slots": [], "as_of": None, "is_stale": True, "covered_until": None, "truncated": False}


async def test_the_part_before_what_is_covered_has_an_error(
    api: httpx.AsyncClient, sessions: Sessions, project: TestProject
) -> None:
    calendar = MirroredCalendar(covered_from=_at(5), covered_until=_at(8))
    await store(sessions, project.id, [calendar])
    [result] = await _free_busy(api, [calendar.id])
    assert result["error"] == f"Nothing is known before {text(_at(5))}."
    found = await _availability(
        api, {"calendars": [calendar.id]}, buffer_before_minutes=60, interval_minutes=60
    )
    assert [slot["start"] for slot in found["slots"]] == [text(_at(6)), text(_at(7))]


@pytest.mark.settings(calendar_sync_interval_seconds=600, calendar_sync_interval_with_push_seconds=6000)
async def test_what_is_stale(api: httpx.AsyncClient, sessions: Sessions, project: TestProject) -> None:
    now = datetime.now(UTC)
    old, older = now - timedelta(seconds=1300), now - timedelta(seconds=12_100)
    cases: dict[str, tuple[dict[str, Any], bool]] = {
        "fresh": ({"last_successful_sync_at": now - timedelta(seconds=1100)}, False),
        "old": ({"last_successful_sync_at": old}, True),
        "old, with push": ({"last_successful_sync_at": old}, False),
        "too old with push, too": ({"last_successful_sync_at": older}, True),
        "disconnected": ({"state": "disconnected"}, True),
        "failing": ({"sync_failing_since": now}, True),
        "in an outage": ({"outage_scope": "google"}, True),
        "local": ({"platform": "local", "last_successful_sync_at": None}, False),
    }
    calendars = {
        name: MirroredCalendar(fields={"deduplication_key": name, **fields})
        for name, (fields, _) in cases.items()
    }
    await store(sessions, project.id, list(calendars.values()))
    async with transaction(sessions) as session:
        for name in ("old, with push", "too old with push, too"):
            values = {
                "id": f"ch-{name}",
                "project_id": project.id,
                "calendar_id": calendars[name].id,
                "platform": "google",
                "state": "open",
                "secret_sha256": "x",
                "verified_at": now,
            }
            await session.execute(insert(PushChannel).values(values))
    results = await _free_busy(api, list(cases))
    assert {result["deduplication_key"]: result["is_stale"] for result in results} == {
        name: is_stale for name, (_, is_stale) in cases.items()
    }
    found = await _availability(api, {"calendars": ["fresh"]}, {"calendars": ["old"]})
    assert found["is_stale"]
    assert found["as_of"] == text(old)


async def test_a_local_calendar_is_known_unless_a_series_goes_on(api: httpx.AsyncClient) -> None:
    body = {
        "platform": "local",
        "name": "Room",
        "owner_email": "room@example.com",
        "timezone": "Europe/Paris",
    }
    calendar = (await api.post("/api/v1/calendars", json=body)).json()["id"]
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(days=50)
    asked = {"start": text(start - timedelta(days=52)), "end": text(start + timedelta(days=10))}
    [result] = await _free_busy(api, [calendar], **asked)
    assert (result["covered_until"], result["error"], result["is_stale"]) == (asked["end"], None, False)

    event = {"calendar_id": calendar, "name": "Weekly", "start_time": text(start - timedelta(days=49))}
    event["end_time"] = text(start - timedelta(days=49) + timedelta(hours=1))
    response = await api.post("/api/v1/calendar_events", json={**event, "recurrence": ["RRULE:FREQ=WEEKLY"]})
    assert response.status_code == 201, response.text
    [result] = await _free_busy(api, [calendar], **asked)
    until = datetime.fromisoformat(result["covered_until"])
    assert timedelta(days=26) < until - datetime.now(UTC) < timedelta(days=31)
    assert len([busy for busy in result["busy"] if busy["start"] < text(until)]) >= 4
    found = await _availability(api, {"calendars": [calendar]}, **asked, interval_minutes=1440, limit=10_000)
    assert max(slot["end"] for slot in found["slots"]) <= text(until)


async def test_a_series_is_known_as_far_as_the_workers_have_expanded_it(
    api: httpx.AsyncClient, sessions: Sessions
) -> None:
    body = {"platform": "local", "name": "Room", "owner_email": "room@example.com", "timezone": "UTC"}
    calendar = (await api.post("/api/v1/calendars", json=body)).json()["id"]
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    asked = {"start": text(now), "end": text(now + timedelta(days=60))}
    event = {
        "calendar_id": calendar,
        "name": "Daily",
        "start_time": text(now),
        "recurrence": ["RRULE:FREQ=DAILY"],
    }
    event["end_time"] = text(now + timedelta(hours=1))
    assert (await api.post("/api/v1/calendar_events", json=event)).status_code == 201
    for late in (0, 20):  # days
        async with transaction(sessions) as session:
            await session.execute(update(HostedEvent).values(expand_at=now - timedelta(days=late)))
            far = CalendarEvent.start_time > now + timedelta(days=29 - late)
            await session.execute(delete(CalendarEvent).where(far))
        [result] = await _free_busy(api, [calendar], **asked)
        until = (await api.get(f"/api/v1/calendars/{calendar}")).json()["covered_until"]
        assert result["covered_until"] == until
        found = await _availability(api, {"calendars": [calendar]}, **asked, limit=10_000)
        assert found["covered_until"] == until
        assert max(slot["end"] for slot in found["slots"]) <= until
        assert not [slot for slot in found["slots"] if slot["start"][11:16] == text(now)[11:16]]


async def test_a_series_that_began_before_it_was_created_is_not_known_before(api: httpx.AsyncClient) -> None:
    body = {"platform": "local", "name": "Room", "owner_email": "room@example.com", "timezone": "UTC"}
    calendar = (await api.post("/api/v1/calendars", json=body)).json()["id"]
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    asked = {"start": text(now - timedelta(days=30)), "end": text(now + timedelta(days=3))}
    for start, is_known in ((now, True), (now - timedelta(days=60), False)):
        event: dict[str, Any] = {"calendar_id": calendar, "name": "Daily", "start_time": text(start)}
        event |= {"end_time": text(start + timedelta(hours=1)), "recurrence": ["RRULE:FREQ=DAILY"]}
        assert (await api.post("/api/v1/calendar_events", json=event)).status_code == 201
        [result] = await _free_busy(api, [calendar], **asked)
        found = await _availability(api, {"calendars": [calendar]}, **asked, limit=10_000)
        if is_known:
            assert (result["covered_from"], result["error"]) == (None, None)
            assert found["slots"][0]["start"] == asked["start"]
        else:
            since = datetime.fromisoformat(result["covered_from"])
            assert timedelta(hours=22) < now - since <= timedelta(hours=24)
            assert result["error"] == f"Nothing is known before {result['covered_from']}."
            assert found["slots"][0]["start"] >= result["covered_from"]
            assert min(busy["start"] for busy in result["busy"]) <= text(since + timedelta(days=1))


async def test_ignored_events_and_their_twins(
    api: httpx.AsyncClient, other_api: httpx.AsyncClient, sessions: Sessions, project: TestProject
) -> None:
    """Two events at the same time: ignoring one leaves the other."""
    first, second = Event(_at(9), _at(10)), Event(_at(9), _at(10))
    calendar = MirroredCalendar([first, second])
    await store(sessions, project.id, [calendar])
    nine = {"start": text(_at(9)), "end": text(_at(10))}

    async def slots(*ignored: str) -> list[dict[str, Any]]:
        found = await _availability(api, {"calendars": [calendar.id]}, **nine, ignore_event_ids=list(ignored))
        found_slots: list[dict[str, Any]] = found["slots"]
        return found_slots

    assert await slots() == []
    assert await slots(first.id) == []
    assert await slots(first.id, first.id) == []
    assert await slots(first.id, second.id) == [{**nine, "free": [0]}]
    body = {"participants": [{"calendars": [calendar.id]}], **nine, "duration_minutes": 60}
    response = await api.post("/api/v1/availability", json={**body, "ignore_event_ids": [first.id, "evt_x"]})
    assert (response.status_code, response.json()) == (404, {"error": "Calendar event not found: evt_x"})


async def test_limit_and_truncated(api: httpx.AsyncClient, sessions: Sessions, project: TestProject) -> None:
    calendar = MirroredCalendar()
    await store(sessions, project.id, [calendar])
    one = {"calendars": [calendar.id]}
    exact = {"end": text(_at(2)), "interval_minutes": 30}  # 00:00, 00:30, 01:00
    assert len((await _availability(api, one, **exact))["slots"]) == 3
    for limit, is_truncated in ((2, True), (3, False)):
        found = await _availability(api, one, **exact, limit=limit)
        assert (len(found["slots"]), found["truncated"]) == (limit, is_truncated)
    found = await _availability(api, one)
    assert (len(found["slots"]), found["truncated"]) == (189, False)
    found = await _availability(api, one, interval_minutes=1)
    assert (len(found["slots"]), found["truncated"]) == (500, True)


_HOURS = {"days": ["mon"], "start": "09:00", "end": "17:00", "timezone": "Europe/Paris"}
_BAD: list[tuple[str, dict[str, Any], str]] = [
    ("free_busy", {"calendars": []}, "calendars"),
    ("free_busy", {"calendars": ["x"] * 201}, "calendars"),
    ("free_busy", {"calendars": "x"}, "calendars"),
    ("free_busy", {"calendars": [""]}, "calendars"),
    ("free_busy", {"calendars": ["a\x00b"]}, "calendars"),
    ("free_busy", {"calendars": ["\ud800"]}, "calendars"),
    ("free_busy", {"calendars": [None]}, "calendars"),
    ("free_busy", {"end": _RANGE["start"]}, "end"),
    ("free_busy", {"end": "2027-02-28T00:00:00Z"}, "end"),
    ("free_busy", {"end": "2027-06-01T00:00:00.000001Z"}, "end"),
    ("free_busy", {"start": "0001-01-01T00:00:00Z", "end": "0001-01-02T00:00:00Z"}, "start"),
    ("free_busy", {"start": "9999-12-30T00:00:00Z", "end": "9999-12-31T00:00:00Z"}, "start"),
    ("free_busy", {"start": "0001-01-01T00:00:00+14:00"}, "start"),
    ("free_busy", {"start": "2027-03-01"}, ""),  # a date is midnight in UTC
    ("free_busy", {"start": 5}, "start"),
    ("free_busy", {"start": None}, "start"),
    ("free_busy", {"live": "yes"}, "live"),
    ("free_busy", {"unknown": 1}, "unknown"),
    ("availability", {"participants": []}, "participants"),
    ("availability", {"participants": [{"calendars": ["x"]}] * 51}, "participants"),
    ("availability", {"participants": [{"calendars": ["x"] * 101}] * 2}, "participants"),
    ("availability", {"participants": [{"calendars": []}]}, "participants"),
    ("availability", {"participants": [{"calendars": ["x"], "color": 1}]}, "participants"),
    ("availability", {"participants": [{"calendars": ["x"], "required": None}]}, "participants"),
    ("availability", {"duration_minutes": 0}, "duration_minutes"),
    ("availability", {"duration_minutes": 2**63}, "duration_minutes"),
    ("availability", {"duration_minutes": 30.5}, "duration_minutes"),
    ("availability", {"duration_minutes": True}, "duration_minutes"),
    ("availability", {"interval_minutes": 7}, "interval_minutes"),
    ("availability", {"interval_minutes": 90}, "interval_minutes"),
    ("availability", {"interval_minutes": 0}, "interval_minutes"),
    ("availability", {"interval_minutes": 1500}, "interval_minutes"),
    ("availability", {"buffer_before_minutes": -1}, "buffer_before_minutes"),
    ("availability", {"buffer_after_minutes": 10_081}, "buffer_after_minutes"),
    ("availability", {"minimum_free": 0}, "minimum_free"),
    ("availability", {"minimum_free": 2}, "minimum_free"),
    ("availability", {"minimum_free": "most"}, "minimum_free"),
    ("availability", {"minimum_free": True}, "minimum_free"),
    ("availability", {"minimum_free": None}, "minimum_free"),
    ("availability", {"limit": 0}, "limit"),
    ("availability", {"limit": 10_001}, "limit"),
    ("availability", {"ignore_event_ids": ["x"] * 1001}, "ignore_event_ids"),
    ("availability", {"ignore_event_ids": [3]}, "ignore_event_ids"),
    ("availability", {"end": "2027-06-02T00:00:00Z"}, "end"),
]
_BAD_HOURS: list[Any] = [
    [],
    [{**_HOURS, "days": []}],
    [{**_HOURS, "days": ["Mon"]}],
    [{**_HOURS, "start": "9:00"}],
    [{**_HOURS, "start": "24:00"}],
    [{**_HOURS, "end": "24:01"}],
    [{**_HOURS, "end": "25:00"}],
    [{**_HOURS, "end": "09:00"}],
    [{**_HOURS, "end": "17:00\n"}],
    [{**_HOURS, "start": "٠٩:00"}],
    [{**_HOURS, "start": "0٩:00"}],
    [{**_HOURS, "end": "17:٠0"}],
    [{**_HOURS, "timezone": "Europe/Atlantis"}],
    [{**_HOURS, "timezone": "../../etc/passwd"}],
    [{**_HOURS, "timezone": None}],
    [{"days": ["mon"], "start": "09:00", "end": "10:00"}],
    [_HOURS] * 15,
]
_BAD += [
    ("availability", {"participants": [{"calendars": ["x"], "open_hours": hours}]}, "participants")
    for hours in _BAD_HOURS
]


@pytest.mark.parametrize(("call", "fields", "field"), _BAD, ids=range(len(_BAD)))
async def test_bad_input_is_refused_by_field(
    api: httpx.AsyncClient, sessions: Sessions, project: TestProject, call: str, fields: Any, field: str
) -> None:
    await store(sessions, project.id, [MirroredCalendar(fields={"deduplication_key": "x"})])
    body: dict[str, Any] = {**_RANGE, "calendars": ["x"]}
    if call == "availability":
        body = {**_RANGE, "participants": [{"calendars": ["x"]}], "duration_minutes": 30}
    # With escapes: half of a surrogate pair has no UTF-8.
    headers = {"Content-Type": "application/json"}
    response = await api.post(f"/api/v1/{call}", content=json.dumps(body | fields), headers=headers)
    if not field:
        assert response.status_code == 200, response.text
        return
    assert response.status_code == 400, response.text
    assert set(response.json()) == {field}
    for sentence in response.json()[field]:
        assert sentence.endswith(".")


async def test_times_at_the_edges_of_what_is_taken(
    api: httpx.AsyncClient, sessions: Sessions, project: TestProject
) -> None:
    await store(
        sessions, project.id, [MirroredCalendar(fields={"deduplication_key": "x", "platform": "local"})]
    )
    one = {"calendars": ["x"], "open_hours": [{**_HOURS, "days": ["mon", "tue", "wed", "thu", "fri"]}]}
    for start in ("1971-01-01T00:00:00Z", "8999-12-01T00:00:00+14:00"):
        end = text(datetime.fromisoformat(start) + timedelta(days=20))
        await _free_busy(api, ["x"], start=start, end=end)
        found = await _availability(
            api, one, start=start, end=end, buffer_before_minutes=10_080, buffer_after_minutes=10_080
        )
        assert len(found["slots"]) > 100


async def test_a_calendar_that_only_the_release_before_has_synced_is_known_by_its_window(
    api: httpx.AsyncClient, sessions: Sessions, project: TestProject
) -> None:
    calendar = MirroredCalendar(covered_from=None, covered_until=None)
    await store(sessions, project.id, [calendar])
    async with transaction(sessions) as session:
        await session.execute(
            update(Calendar)
            .where(Calendar.id == calendar.id)
            .values(window_start=_at(1), window_end=_at(5), covered_until=_at(9))
        )
    [result] = await _free_busy(api, [calendar.id])
    assert (result["covered_from"], result["covered_until"]) == (text(_at(1)), text(_at(5)))
