"""What one response of a provider may and may not do: refusals, responses without most events, and hiccups."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import Response

from app.core.clock import utcnow
from app.core.db import Sessions, transaction
from app.schedule import request_sync
from app.settings import Settings
from tests import factories
from tests.conftest import TestProject
from tests.fakes.server import serve
from tests.flows.conftest import GoogleCalendarUnderTest

FOREVER = 10**6
HTML: dict[str, Any] = {"body": b"<html>Busy</html>", "content_type": "text/html"}


async def age(google: GoogleCalendarUnderTest, column: str, seconds: float) -> None:
    """Moves the time in this column of the calendar's row into the past."""
    async with transaction(google.sessions) as session:
        await session.execute(
            text(
                f"UPDATE calendars SET {column} = {column} - make_interval(secs => :seconds) WHERE id = :id"
            ),
            {"seconds": seconds, "id": google.id},
        )


def confirm_at_once(calendar: GoogleCalendarUnderTest) -> None:
    """From now on a second response counts however soon it comes."""
    calendar.settings.calendar_shrink_confirm_seconds = 0


async def force(google: GoogleCalendarUnderTest) -> None:
    """A sync that a client asked for; how often it may ask is not looked at here."""
    async with transaction(google.sessions) as session:
        await request_sync(session, google.id)
        await session.execute(text("UPDATE calendars SET next_sync_at = now()"))
    [claim] = await google.engine.claim(10)
    await google.engine.handle(claim)


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        (401, "authError", "token_rejected"),
        (403, "forbidden", "access_denied"),
        (403, "insufficientPermissions", "scope_missing"),
        (404, "notFound", "calendar_gone"),
    ],
)
async def test_a_refusal_of_the_calendars_address_is_believed_after_hours_of_it(
    google: GoogleCalendarUnderTest, api: Any, status: int, reason: str, code: str
) -> None:
    google.add("kept")
    await google.sync()
    google.fake.inject_fault("events.list", status, reason, count=FOREVER)
    for _ in range(5):
        await google.sync()
    row = await google.row()
    assert (row.state, row.connection_failure_data, row.sync_failure_count) == ("connected", None, 5)
    shown = (await api.get(f"/api/v1/calendars/{google.id}")).json()
    assert shown["sync_failing_since"] is not None
    assert set(shown["sync_failure"]) == {"code", "message", "count", "next_attempt_at"}
    assert (shown["sync_failure"]["code"], shown["sync_failure"]["count"]) == (code, 5)
    await age(google, "sync_failure_code_since", 21_500)
    await google.sync()
    assert (await google.row()).state == "connected"
    await age(google, "sync_failure_code_since", 101)
    await google.sync()
    row = await google.row()
    assert row.state == "disconnected"
    assert row.connection_failure_data is not None
    assert row.connection_failure_data["code"] == code
    assert (await api.get(f"/api/v1/calendars/{google.id}")).json()["sync_failure"] is None


async def test_three_attempts_are_needed_however_long_ago_the_first_was(
    google: GoogleCalendarUnderTest,
) -> None:
    google.fake.inject_fault("events.list", 404, "notFound", count=FOREVER)
    states = []
    for _ in range(3):
        await google.sync()
        await age(google, "sync_failure_code_since", 30_000)
        states.append((await google.row()).state)
    assert states == ["connected", "connected", "disconnected"]


async def test_only_the_same_code_counts(google: GoogleCalendarUnderTest) -> None:
    for status, reason in ((503, "backendError"), (403, "forbidden"), (404, "notFound")):
        google.fake.clear_faults()
        google.fake.inject_fault("events.list", status, reason, count=FOREVER)
        for _ in range(2):
            await google.sync()
            await age(google, "sync_failure_code_since", 30_000)
    row = await google.row()
    assert (row.state, row.sync_failure_code_count) == ("connected", 2)


async def test_attempts_that_a_client_forces_confirm_nothing(google: GoogleCalendarUnderTest) -> None:
    google.fake.inject_fault("events.list", 404, "notFound", count=FOREVER)
    await google.sync()
    due_at = (await google.row()).next_sync_at
    for _ in range(5):
        await force(google)
        await age(google, "sync_failure_code_since", 30_000)
    row = await google.row()
    assert (row.state, row.sync_failure_code_count) == ("connected", 1)
    # Nor do they put off the attempt that counts.
    assert abs(row.next_sync_at - due_at) < timedelta(seconds=1)
    await google.sync()
    await google.sync()
    assert (await google.row()).state == "disconnected"


async def test_the_sync_after_new_credentials_confirms_nothing(
    google: GoogleCalendarUnderTest, api: Any
) -> None:
    google.fake.inject_fault("events.list", 401, "authError", count=FOREVER)
    await api.patch(f"/api/v1/calendars/{google.id}", json={"refresh_token": google.fake.add_grant()})
    [claim] = await google.engine.claim(10)
    await google.engine.handle(claim)
    row = await google.row()
    assert (row.sync_failure_count, row.sync_failure_code_count) == (1, 0)
    assert row.next_sync_at < utcnow() + timedelta(seconds=40)


async def test_a_success_in_between_starts_the_count_anew(google: GoogleCalendarUnderTest) -> None:
    for _ in range(3):
        google.fake.inject_fault("events.list", 404, "notFound")
        await google.sync()
        await age(google, "sync_failure_code_since", 30_000)
        await google.sync()
    assert (await google.row()).state == "connected"


# --- responses that leave out most events --------------------------------------------------------------------


async def test_a_full_round_that_leaves_out_most_events_is_believed_the_second_time(
    google: GoogleCalendarUnderTest,
) -> None:
    events = [google.add(f"event {n}", in_hours=24 + n) for n in range(5)]
    await google.sync()
    for event in events[:3]:
        google.fake.delete_event(event)
    google.fake.update_event(events[3], summary="renamed")
    google.add("new")
    google.fake.expire_tokens()
    await google.sync()
    whole = ["event 0", "event 1", "event 2", "event 4", "new", "renamed"]
    assert await google.names() == whole
    row = await google.row()
    assert (row.sync_cursor, row.sync_failing_since) == (None, None)
    due_in = (row.next_sync_at - utcnow()).total_seconds()
    assert 250 < due_in <= 301
    await force(google)
    assert await google.names() == whole
    confirm_at_once(google)
    await google.sync()
    assert await google.names() == ["event 4", "new", "renamed"]
    row = await google.row()
    assert row.held_back_ids is None
    assert row.sync_cursor is not None


async def test_what_comes_back_in_time_was_never_removed(google: GoogleCalendarUnderTest) -> None:
    for n in range(3):
        google.add(f"event {n}")
    await google.sync()
    before = await google.events()
    google.fake.expire_tokens()
    empty = b'{"kind": "calendar#events", "items": [], "nextSyncToken": "x"}'
    google.fake.inject_fault("events.list", 200, body=empty, content_type="application/json", after=1)
    await google.sync()
    assert len(await google.names()) == 3
    await google.sync()
    confirm_at_once(google)
    await google.sync()
    after = await google.events()
    assert {key: event.updated_at for key, event in after.items()} == {
        key: event.updated_at for key, event in before.items()
    }
    assert (await google.row()).held_back_ids is None


async def test_a_second_response_confirms_only_what_the_first_left_out(
    google: GoogleCalendarUnderTest,
) -> None:
    events = [google.add(f"event {n}") for n in range(10)]
    await google.sync()
    for removed in (events[:6], events[6:]):
        assert len(await google.names()) == 10
        for event in removed:
            google.fake.delete_event(event)
        google.fake.expire_tokens()
        await google.sync()
        confirm_at_once(google)
    # The second response left out everything, and was the first to leave out the last four.
    assert await google.names() == ["event 6", "event 7", "event 8", "event 9"]
    await google.sync()
    assert await google.names() == []


async def test_a_few_deletions_and_deletions_by_name_are_believed_at_once(
    google: GoogleCalendarUnderTest,
) -> None:
    events = [google.add(f"event {n}") for n in range(6)]
    await google.sync()
    google.fake.delete_event(events[0])
    google.fake.expire_tokens()
    await google.sync()
    assert len(await google.names()) == 5
    for event in events[1:]:
        google.fake.delete_event(event)
    await google.sync()
    assert await google.names() == []


class Feed:
    """A feed server whose response is set: a status, or the names of its events."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.status = 200
        self.count = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.count += 1
            await self.respond(Request(scope))(scope, receive, send)

    def respond(self, _request: Request) -> Response:
        start = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
        events = "".join(
            f"BEGIN:VEVENT\r\nUID:{name}\r\nDTSTAMP:20260101T000000Z\r\nDTSTART:{start:%Y%m%dT%H0000Z}\r\n"
            f"SUMMARY:{name}\r\nEND:VEVENT\r\n"
            for name in self.names
        )
        body = f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:test\r\n{events}END:VCALENDAR\r\n"
        return Response(body if self.status == 200 else b"", self.status, media_type="text/calendar")


@pytest.fixture
async def feed(
    settings: Settings, sessions: Sessions, project: TestProject
) -> AsyncIterator[tuple[Feed, GoogleCalendarUnderTest]]:
    server = Feed()
    async with serve(server) as url, factories.sync_engine(settings, sessions) as engine:
        calendar_id = await factories.add_calendar(
            sessions, settings, project.id, platform="ics", secrets={"feed_url": f"{url}/secret.ics"}
        )
        fake: Any = None
        yield server, GoogleCalendarUnderTest(fake, settings, sessions, engine, project.id, calendar_id)


async def test_an_empty_feed_is_believed_the_second_time(feed: tuple[Feed, GoogleCalendarUnderTest]) -> None:
    server, calendar = feed
    server.names = ["a", "b", "c"]
    await calendar.sync()
    server.names = []
    await calendar.sync()
    assert await calendar.names() == ["a", "b", "c"]
    confirm_at_once(calendar)
    await calendar.sync()
    assert await calendar.names() == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_a_feeds_refusal_is_believed_after_hours_of_it(
    feed: tuple[Feed, GoogleCalendarUnderTest], status: int
) -> None:
    server, calendar = feed
    server.status = status
    for _ in range(3):
        await calendar.sync()
    assert (await calendar.row()).state == "connected"
    await age(calendar, "sync_failure_code_since", 21_600)
    await calendar.sync()
    assert (await calendar.row()).state == "disconnected"


@pytest.mark.parametrize("status", [401, 404])
async def test_a_hosts_few_feeds_are_disconnected_although_all_of_them_fail(
    settings: Settings, sessions: Sessions, project: TestProject, status: int
) -> None:
    """Three may be all that there are: a breaker that is open for days must not hide that they are removed."""
    server = Feed()
    server.status = status
    async with serve(server) as url, factories.sync_engine(settings, sessions) as engine:
        secrets = {"feed_url": f"{url}/secret.ics"}
        ids = [
            await factories.add_calendar(sessions, settings, project.id, platform="ics", secrets=secrets)
            for _ in range(3)
        ]

        async def sync_all() -> set[str]:
            for calendar_id in ids:
                async with transaction(sessions) as session:
                    await session.execute(
                        text("UPDATE sync_breakers SET next_probe_at = now(), probe_until = NULL")
                    )
                    await session.execute(
                        text("UPDATE calendars SET next_sync_at = now() + interval '1 hour'")
                    )
                await factories.sync_now(engine, sessions, calendar_id)
            return {(await factories.load_calendar(sessions, calendar_id)).state for calendar_id in ids}

        for _ in range(3):
            assert await sync_all() == {"connected"}
        async with transaction(sessions) as session:
            opened = await session.scalar(text("SELECT opened_at FROM sync_breakers"))
            await session.execute(
                text("UPDATE calendars SET sync_failure_code_since = now() - interval '6 hours 1 minute'")
            )
        assert opened is not None
        assert await sync_all() == {"disconnected"}


# --- hiccups -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        [("events.list", {"kind": "reset"}), ("events.list", {"status": 503, **HTML})],
        [("events.list", {"status": 200, **HTML}), ("events.list", {"kind": "cut"})],
        [("token", {"status": 503, **HTML}), ("token", {"kind": "reset"})],
        [("token", {"status": 500, "reason": "internal_failure"}), ("events.list", {"status": 502, **HTML})],
        [("events.list", {"status": 503, "headers": {"Retry-After": "1"}})],
    ],
)
async def test_first_events_come_although_the_first_two_requests_failed(
    google: GoogleCalendarUnderTest, faults: list[tuple[str, dict[str, Any]]]
) -> None:
    google.add("one")
    for route, fault in faults:
        google.fake.inject_fault(route, **fault)
    started = time.monotonic()
    await google.sync()
    assert time.monotonic() - started < 10
    row = await google.row()
    assert (row.sync_failure_count, row.sync_failing_since) == (0, None)
    assert await google.names() == ["one"]


async def test_what_is_no_hiccup_is_asked_once(google: GoogleCalendarUnderTest) -> None:
    faults: tuple[dict[str, Any], ...] = (
        {"status": 404, "reason": "notFound"},
        {"status": 429, "reason": "rateLimitExceeded"},
        {"status": 503, "reason": "backendError", "headers": {"Retry-After": "60"}},
    )
    for fault in faults:
        google.fake.requests.clear()
        google.fake.inject_fault("events.list", **fault)
        await google.sync()
        assert len(google.fake.requests_to("events.list")) == 1
        google.fake.clear_faults()
        await google.sync()
        assert (await google.row()).sync_failure_count == 0
