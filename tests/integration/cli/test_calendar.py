"""`calbridge calendar show` and `calbridge calendar sync`."""

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import func, update
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from app.calendars.inspection import find_sync_result, load_sync_record, request_sync_by_hand
from app.core.clock import utcnow
from app.core.db import transaction
from app.core.errors import NotFound
from app.models import Calendar, CalendarEvent, PushChannel
from tests import factories
from tests.commands import calbridge, one_json_line
from tests.fakes.server import serve

FEED = "https://calendars.example/private-0815/basic.ics"
EMPTY = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nEND:VCALENDAR\r\n"


async def add_feed(sessions, settings, project, url: str = FEED, **fields: Any) -> str:
    return await factories.add_calendar(
        sessions, settings, project.id, platform="ics", secrets={"feed_url": url}, **fields
    )


async def change(sessions, calendar_id: str, **values: Any) -> None:
    async with transaction(sessions) as session:
        await session.execute(update(Calendar).where(Calendar.id == calendar_id).values(**values))


async def run(settings, *arguments: str, redis: bool = True):
    given = {"DATABASE_URL": settings.required_database_url(), "ALLOW_PRIVATE_NETWORK_TARGETS": "true"}
    if redis:
        given["REDIS_URL"] = settings.required_redis_url()
    return await asyncio.to_thread(calbridge, "calendar", *arguments, **given)


@asynccontextmanager
async def feed(status: int = 200):
    async def read(_request) -> Response:
        return Response(EMPTY if status == 200 else "", status_code=status, media_type="text/calendar")

    async with serve(Starlette(routes=[Route("/feed.ics", read)])) as url:
        yield f"{url}/feed.ics"


# -- show ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["show", "sync"])
async def test_an_unknown_calendar_is_a_sentence_and_1(settings, command):
    done = await run(settings, command, "cal_x")
    assert (done.returncode, done.stdout) == (1, "")
    assert "There is no calendar cal_x. GET /api/v1/calendars lists those of a project" in done.stderr


async def test_a_calendar_that_syncs_well(sessions, settings, project):
    now = utcnow()
    calendar_id = await add_feed(
        sessions,
        settings,
        project,
        sync_cursor='{"etag": "0816"}',
        last_successful_sync_at=now - timedelta(minutes=10),
        last_attempted_sync_at=now - timedelta(minutes=10),
        next_sync_at=now + timedelta(minutes=20),
        lease_until=now - timedelta(minutes=5),
    )
    async with transaction(sessions) as session:
        for number, is_deleted in enumerate([False, False, True]):
            session.add(
                CalendarEvent(
                    id=f"evt_{number}",
                    project_id=project.id,
                    calendar_id=calendar_id,
                    platform_uuid=str(number),
                    content_hash=b"",
                    is_deleted=is_deleted,
                )
            )
    done = await run(settings, "show", calendar_id, "--json")
    found = one_json_line(done)
    assert 600 <= found.pop("cursor_age_seconds") < 660
    shown = {name: value for name, value in found.items() if not name.endswith("_at") and value is not None}
    assert shown == {
        "calendar_id": calendar_id,
        "project_id": project.id,
        "project_name": "test",
        "platform": "ics",
        "state": "connected",
        "failure_count": 0,
        "held_back_events": 0,
        "push_verified": False,
        "window": {"past_days": 1, "future_days": 28},
        "events": 2,
        "deleted_events": 1,
    }
    assert found["next_sync_at"].endswith("Z")
    text = await run(settings, "show", calendar_id)
    lines = dict(line.split("  ", 1) for line in text.stdout.splitlines())
    assert lines["calendar"].strip() == f"{calendar_id} (ics)"
    assert lines["failure"].strip() == "none"
    assert lines["claimed"].strip() == "no"
    assert lines["cursor"].strip() == "10 min old"
    assert "(10 min ago)" in text.stdout
    assert "(in 19 min)" in text.stdout
    for secret in ("private-0815", "0816"):
        assert secret not in done.stdout + text.stdout


async def test_a_calendar_that_fails_while_a_worker_syncs_it(sessions, settings, project):
    now = utcnow()
    calendar_id = await factories.add_calendar(
        sessions,
        settings,
        project.id,
        secrets={"client_secret": "hunter2", "refresh_token": "hunter3"},
        sync_failing_since=now - timedelta(hours=3),
        sync_failure_count=4,
        sync_failure_code="timeout",
        sync_failure_message="Google did not respond in time.",
        lease_token="4711",
        lease_until=now + timedelta(minutes=2),
        held_back_ids=["a", "b"],
        outage_scope="google",
    )
    async with transaction(sessions) as session:
        session.add(
            PushChannel(
                id="7c9e6679-7425-40de-944b-e07fc1f90ae7",
                project_id=project.id,
                calendar_id=calendar_id,
                platform="google",
                state="open",
                secret_sha256="4712",
                expires_at=now + timedelta(days=3),
            )
        )
    done = await run(settings, "show", calendar_id, "--json")
    found = one_json_line(done)
    assert (found["failure_code"], found["failure_count"]) == ("timeout", 4)
    assert found["failure_message"] == "Google did not respond in time."
    assert found["claimed_until"] is not None
    assert found["cursor_age_seconds"] is None
    assert found["held_back_events"] == 2
    assert (found["push_channel"], found["push_verified"]) == ("open", False)
    text = await run(settings, "show", calendar_id)
    assert "timeout, 4 in a row, since" in text.stdout
    assert "by a worker, until" in text.stdout
    assert "held by an outage of google" in text.stdout
    assert "none: the next sync reads everything" in text.stdout
    assert "open, no notification has arrived yet, expires" in text.stdout
    for secret in ("hunter", "4711", "4712"):
        assert secret not in done.stdout + text.stdout


async def test_a_disconnected_and_a_local_calendar(api, sessions, settings, project):
    failure = {
        "error": "The feed is not there.",
        "code": "calendar_gone",
        "timestamp": "2026-01-31T09:00:00Z",
    }
    disconnected = await add_feed(
        sessions, settings, project, state="disconnected", connection_failure_data=failure
    )
    found = one_json_line(await run(settings, "show", disconnected, "--json"))
    assert (found["connection_failure_data"], found["next_sync_at"]) == (failure, None)
    text = await run(settings, "show", disconnected)
    assert "disconnected at 2026-01-31T09:00:00Z: calendar_gone, The feed is not there." in text.stdout
    made = await api.post(
        "/api/v1/calendars", json={"platform": "local", "name": "Ours", "owner_email": "ada@example.com"}
    )
    local = made.json()["id"]
    found = one_json_line(await run(settings, "show", local, "--json"))
    assert (found["platform"], found["next_sync_at"]) == ("local", None)
    assert "next sync" not in (await run(settings, "show", local)).stdout
    for calendar_id, sentence in (
        (disconnected, "The calendar is disconnected. PATCH it with new credentials"),
        (local, "A local calendar has no provider to sync from."),
    ):
        done = await run(settings, "sync", calendar_id)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(sentence)


# -- sync ---------------------------------------------------------------------------------------------------


async def test_a_sync_by_hand_is_due_now_and_wakes_a_worker(sessions, settings, project):
    calendar_id = await add_feed(sessions, settings, project, next_sync_at=utcnow() + timedelta(hours=1))
    done = await run(settings, "sync", calendar_id)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"The sync of {calendar_id} is due: ")
    calendar = await factories.load_calendar(sessions, calendar_id)
    assert calendar.next_sync_at <= utcnow()
    assert calendar.sync_forced
    with Redis.from_url(settings.required_redis_url()) as redis:
        assert redis.keys("arq:job:*syncs*")


async def test_without_redis_it_is_due_all_the_same(sessions, settings, project):
    calendar_id = await add_feed(sessions, settings, project, next_sync_at=utcnow() + timedelta(hours=1))
    done = await run(settings, "sync", calendar_id, redis=False)
    assert done.returncode == 0
    assert done.stderr.startswith("REDIS_URL is not set, so the workers are not woken.")
    assert (await factories.load_calendar(sessions, calendar_id)).next_sync_at <= utcnow()


async def test_waiting_for_a_sync_shows_its_result(sessions, settings, project, worker):
    async with feed() as url:
        calendar_id = await add_feed(sessions, settings, project, url)
        done = await run(settings, "sync", calendar_id, "--wait")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("The sync succeeded.\n")
    async with feed(500) as url:
        broken = await add_feed(sessions, settings, project, url)
        done = await run(settings, "sync", broken, "--wait", "--json")
    found = one_json_line(done)
    assert (done.returncode, found["result"]) == (1, "failed")
    assert found["failure_code"] is not None


async def test_waiting_ends_where_no_worker_runs(sessions, settings, project):
    calendar_id = await add_feed(sessions, settings, project)
    done = await run(settings, "sync", calendar_id, "--wait", "--timeout", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("The sync has not ended within 1 s.")
    assert "`calbridge doctor` says whether a worker runs" in done.stderr


async def test_when_a_requested_sync_has_ended(sessions, settings, project):
    calendar_id = await add_feed(sessions, settings, project, next_sync_at=utcnow() + timedelta(hours=1))
    async with transaction(sessions) as session:
        requested = await request_sync_by_hand(session, calendar_id)

    async def result(**values: Any) -> str | None:
        if values:
            await change(sessions, calendar_id, **values)
        async with transaction(sessions) as session:
            return (await find_sync_result(session, settings, calendar_id, requested))[0]

    before, after = requested.now - timedelta(seconds=1), requested.now + timedelta(seconds=1)
    later = func.now() + timedelta(hours=1)
    failing = {"sync_failing_since": before, "sync_failure_code": "timeout", "sync_failure_message": "x"}
    well = {"sync_failing_since": None, "sync_failure_code": None}
    assert await result() is None
    # One that ran at the time of the request ends well: another one follows.
    assert await result(lease_until=later, sync_started_at=before, next_sync_at=later) is None
    assert await result(lease_until=None, last_attempted_sync_at=before, next_sync_at=before) is None
    # It failed: its retry serves the request too.
    assert await result(**failing, next_sync_at=later) == "failed"
    # The one that was asked for runs, was given back at the end of its worker, and was put off.
    assert await result(**well, lease_until=later, sync_started_at=after) is None
    assert await result(lease_until=None, next_sync_at=before) is None
    assert await result(next_sync_at=later) == "postponed"
    assert await result(last_attempted_sync_at=after) == "succeeded"
    assert await result(**failing) == "failed"


async def test_a_calendar_that_is_deleted_meanwhile(sessions, settings, project):
    calendar_id = await add_feed(sessions, settings, project)
    async with transaction(sessions) as session:
        requested = await load_sync_record(session, calendar_id)
        await session.delete(await session.get_one(Calendar, calendar_id))
    async with transaction(sessions) as session:
        with pytest.raises(NotFound):
            await find_sync_result(session, settings, calendar_id, requested)
