"""Live reads: which calendars are asked, in what time, and what a failure means."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from app.availability.live import LiveResult, read_live
from app.core.db import Sessions, transaction
from app.core.ids import new_id
from app.settings import Settings
from tests.conftest import TestProject
from tests.factories import add_calendar, load_calendar
from tests.fakes.google import FakeGoogle
from tests.fakes.microsoft import FakeMicrosoft
from tests.integration.availability.live_access import Reads, busy, hours, live_access

FREE = LiveResult([], None)


async def test_no_calendars(reads: Reads) -> None:
    assert await reads.read([]) == {}


async def test_calendars_of_one_and_of_other_platforms(
    reads: Reads,
    fake_google: FakeGoogle,
    fake_microsoft: FakeMicrosoft,
    settings: Settings,
    sessions: Sessions,
    project: TestProject,
) -> None:
    google, microsoft = await reads.google(fake_google), await reads.microsoft(fake_microsoft)
    feed = await add_calendar(
        sessions, settings, project.id, platform="ics", secrets={"feed_url": "https://example.com/a.ics"}
    )
    local = await add_calendar(sessions, settings, project.id, platform="local", secrets={})
    unknown = new_id("cal")
    results = await reads.read([google, microsoft, feed, local, unknown])
    assert list(results) == [google, microsoft, feed, local, unknown]
    assert results[google] == results[microsoft] == FREE
    assert results[feed].error == "A feed cannot be asked for busy times: only what was synced is known."
    assert str(results[local].error).startswith("A local calendar has no provider to ask")
    assert results[unknown].error == "This calendar does not exist any more."


async def test_calendars_of_another_project_do_not_exist(
    reads: Reads, fake_google: FakeGoogle, other_project: TestProject
) -> None:
    calendar_id = await reads.google(fake_google)
    (request,) = reads.requests([calendar_id])
    results = await read_live(reads.access, other_project.id, [request])
    assert results[calendar_id].error == "This calendar does not exist any more."
    assert fake_google.requests == []


async def test_disconnected_calendars_are_not_asked(reads: Reads, fake_google: FakeGoogle) -> None:
    calendar_id = await reads.google(fake_google, state="disconnected")
    assert (await reads.read_one(calendar_id)).error == (
        "The calendar is disconnected: only what was synced is known."
    )
    assert fake_google.requests == []


async def test_nothing_is_asked_for_empty_ranges(reads: Reads, fake_google: FakeGoogle) -> None:
    calendar_id = await reads.google(fake_google)
    assert await reads.read_one(calendar_id, hours(5, 5), hours(7, 6)) == LiveResult((), None)
    assert fake_google.requests == []


async def test_several_requests_for_one_calendar_are_one(reads: Reads, fake_google: FakeGoogle) -> None:
    fake_google.add_event(start=hours(9, 10)[0], end=hours(9, 10)[1])
    calendar_id = await reads.google(fake_google)
    requests = [*reads.requests([calendar_id], hours(0, 9.5)), *reads.requests([calendar_id], hours(9, 24))]
    results = await read_live(reads.access, (await reads.row(calendar_id)).project_id, requests)
    assert results == {calendar_id: LiveResult([busy(9, 10)], None)}


# -- held back ------------------------------------------------------------------------------------------------


async def test_no_calendar_of_a_platform_that_fails_is_asked(
    reads: Reads, fake_google: FakeGoogle, sessions: Sessions
) -> None:
    calendar_id = await reads.google(fake_google)
    async with transaction(sessions) as session:
        await session.execute(
            text(
                "INSERT INTO sync_breakers (scope, opened_at, outage_since, next_probe_at) "
                "VALUES ('google', clock_timestamp(), clock_timestamp(), clock_timestamp())"
            )
        )
    result = await reads.read_one(calendar_id)
    assert result.error is not None
    assert "fails for many calendars" in result.error
    assert fake_google.requests == []


async def test_a_calendar_whose_syncs_were_asked_to_slow_down_is_not_asked(
    reads: Reads, fake_google: FakeGoogle
) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=5)
    calendar_id = await reads.google(fake_google, sync_failure_code="rate_limited", next_sync_at=soon)
    result = await reads.read_one(calendar_id)
    assert result.error == "The provider asked to slow down for this calendar: try again later."
    assert fake_google.requests == []
    await reads.change(calendar_id, next_sync_at=datetime.now(UTC) - timedelta(seconds=1))
    assert await reads.read_one(calendar_id) == FREE


@pytest.mark.parametrize("platform", ["google", "microsoft"])
async def test_retry_after_holds_for_the_whole_account(
    reads: Reads, fake_google: FakeGoogle, fake_microsoft: FakeMicrosoft, platform: str
) -> None:
    fake = fake_google if platform == "google" else fake_microsoft
    route = "freebusy.query" if platform == "google" else "calendarView"
    first = await (reads.google(fake_google) if platform == "google" else reads.microsoft(fake_microsoft))
    team = fake.add_calendar("team@example.com") if platform == "google" else fake_microsoft.add_calendar()
    second = await reads.share(first, team)
    fake.inject_fault(route, 429, "rateLimitExceeded", headers={"Retry-After": "1"})
    results = await reads.read([first, second])
    assert all("asks to slow down" in str(result.error) for result in results.values())
    asked = len(fake.requests_to(route))
    assert asked == 1
    assert (await reads.read_one(second)).error == (
        "The provider asked to slow down for this calendar: try again later."
    )
    assert len(fake.requests_to(route)) == asked
    await asyncio.sleep(1)
    assert await reads.read_one(second) == FREE
    await reads.check_untouched(first)


async def test_a_spent_budget_is_an_error(
    reads: Reads, fake_google: FakeGoogle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limits import RateLimitItemPerMinute

    from app.credentials import budgets

    monkeypatch.setitem(budgets._USER, "google", RateLimitItemPerMinute(1))
    calendar_id = await reads.google(fake_google)
    assert await reads.read_one(calendar_id) == FREE
    assert "budget" in str((await reads.read_one(calendar_id)).error)
    assert len(fake_google.requests_to("freebusy.query")) == 1


@pytest.mark.parametrize("kind", ["of the account", "of the project"])
async def test_live_reads_have_a_share_of_the_budget(
    reads: Reads, fake_google: FakeGoogle, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from limits import RateLimitItemPerMinute

    from app.credentials import budgets

    if kind == "of the account":
        monkeypatch.setitem(budgets._LIVE, "google", RateLimitItemPerMinute(1))
    else:
        monkeypatch.setattr(budgets, "_LIVE_OF_PROJECT", RateLimitItemPerMinute(1))
    first, second = await reads.google(fake_google), await reads.google(fake_google)
    assert await reads.read_one(first) == FREE
    assert "Too many live requests" in str((await reads.read_one(first)).error)
    result = await reads.read_one(second)
    assert (result == FREE) == (kind == "of the account")


async def test_an_outage_with_retry_after_is_respected(reads: Reads, fake_microsoft: FakeMicrosoft) -> None:
    calendar_id = await reads.microsoft(fake_microsoft, owner_email="ada@example.com")
    fake_microsoft.inject_fault("getSchedule", 503, headers={"Retry-After": "1"})
    assert (await reads.read_one(calendar_id)).error == "Microsoft returned HTTP status 503."
    assert "slow down" in str((await reads.read_one(calendar_id)).error)
    assert len(fake_microsoft.requests_to("getSchedule")) == 1
    assert fake_microsoft.requests_to("calendarView") == []
    await asyncio.sleep(1)
    assert await reads.read_one(calendar_id) == FREE


# -- tokens ---------------------------------------------------------------------------------------------------


async def test_a_token_that_is_not_accepted_is_renewed_once(reads: Reads, fake_google: FakeGoogle) -> None:
    calendar_id = await reads.google(fake_google)
    assert await reads.read_one(calendar_id) == FREE
    fake_google.expire_access_tokens()
    assert await reads.read_one(calendar_id) == FREE
    assert [request.status for request in fake_google.requests_to("freebusy.query")] == [200, 401, 200]


async def test_a_refusal_is_no_evidence_about_the_calendar(reads: Reads, fake_google: FakeGoogle) -> None:
    calendar_id = await reads.google(fake_google)
    for status, reason in ((401, "authError"), (403, "forbidden"), (404, "notFound"), (410, "gone")):
        fake_google.inject_fault("freebusy.query", status, reason, count=2)
        result = await reads.read_one(calendar_id)
        assert result.error is not None, status
        fake_google.clear_faults()
        await reads.check_untouched(calendar_id)
    fake_google.revoke_grant(fake_google.refresh_token)
    assert (await reads.read_one(calendar_id)).error is not None
    await reads.check_untouched(calendar_id)


async def test_a_refresh_goes_on_when_the_time_is_over(
    reads: Reads, fake_microsoft: FakeMicrosoft, sessions: Sessions
) -> None:
    """Microsoft replaces the refresh token: a refresh that is broken off would lose it."""
    calendar_id = await reads.microsoft(fake_microsoft)
    fake_microsoft.late_uses_allowed = 0
    fake_microsoft.inject_fault("token", delay=0.5)
    reads.access.within_seconds = 0.1
    assert (await reads.read_one(calendar_id)).error == "The provider did not respond in time."
    reads.access.within_seconds = 8
    assert await reads.read_one(calendar_id) == FREE
    assert len(fake_microsoft.requests_to("token")) == 1


async def test_requests_that_wait_for_a_refresh_share_it(reads: Reads, fake_google: FakeGoogle) -> None:
    calendar_id = await reads.google(fake_google)
    fake_google.inject_fault("token", 500, delay=1, count=10)
    reads.access.within_seconds = 0.1
    for _ in range(5):
        assert (await reads.read_one(calendar_id)).busy is None
    assert len(reads.access._refreshes) == 1
    while reads.access._refreshes:
        await asyncio.sleep(0.05)
    assert len(fake_google.requests_to("token")) == 1


# -- faults ---------------------------------------------------------------------------------------------------

_FAULTS = {
    "HTML": {"status": 502, "body": b"<html>Bad Gateway</html>"},
    "200 with HTML": {"status": 200, "body": b"<html>Sign in</html>"},
    "200 without a body": {"status": 200, "body": b""},
    "200 with half a document": {"status": 200, "body": b'{"calendars":', "content_type": "application/json"},
    "500": {"status": 500},
    "503": {"status": 503},
    "redirect": {"status": 302, "body": b"", "headers": {"Location": "http://127.0.0.1:1/"}},
    "no content": {"status": 204, "body": b""},
    "cut off": {"kind": "cut"},
    "reset": {"kind": "reset"},
    "a page of HTML with 403": {"status": 403, "body": b"<html>Forbidden</html>"},
}


@pytest.mark.parametrize("platform", ["google", "microsoft"])
@pytest.mark.parametrize("fault", _FAULTS)
async def test_faults_are_errors_and_never_free(
    reads: Reads, fake_google: FakeGoogle, fake_microsoft: FakeMicrosoft, platform: str, fault: str
) -> None:
    if platform == "google":
        calendar_id = await reads.google(fake_google)
        fake_google.inject_fault("freebusy.query", count=5, **_FAULTS[fault])  # type: ignore[arg-type]
    else:
        calendar_id = await reads.microsoft(fake_microsoft)
        fake_microsoft.inject_fault("calendarView", count=5, **_FAULTS[fault])  # type: ignore[arg-type]
    result = await reads.read_one(calendar_id)
    assert result.busy is None
    assert result.error
    await reads.check_untouched(calendar_id)
    fake_google.clear_faults()
    fake_microsoft.clear_faults()
    assert await reads.read_one(calendar_id) == FREE


async def test_a_response_that_is_too_large_is_an_error(
    reads: Reads, fake_google: FakeGoogle, fake_microsoft: FakeMicrosoft
) -> None:
    large = b" " * (9 * 1024 * 1024)
    google, microsoft = await reads.google(fake_google), await reads.microsoft(fake_microsoft)
    fake_google.inject_fault("freebusy.query", 200, body=large)
    fake_microsoft.inject_fault("calendarView", 200, body=large)
    results = await reads.read([google, microsoft])
    assert "more than" in str(results[google].error)
    assert "more than" in str(results[microsoft].error)


async def test_a_provider_that_does_not_respond_holds_up_no_other(
    reads: Reads, fake_google: FakeGoogle, fake_microsoft: FakeMicrosoft
) -> None:
    google, microsoft = await reads.google(fake_google), await reads.microsoft(fake_microsoft)
    fake_google.inject_fault("freebusy.query", kind="dribble")
    reads.access.within_seconds = 1
    began = time.monotonic()
    results = await reads.read([google, microsoft])
    assert time.monotonic() - began < 5
    assert results[google].error == "The provider did not respond in time."
    assert results[microsoft] == FREE
    await reads.check_untouched(google)


async def test_requests_of_one_account_are_sent_one_at_a_time(
    reads: Reads, fake_microsoft: FakeMicrosoft
) -> None:
    fake_microsoft.latency = 0.02
    first = await reads.microsoft(fake_microsoft)
    calendars = [first, *[await reads.share(first, fake_microsoft.add_calendar()) for _ in range(5)]]
    found = await asyncio.gather(*(reads.read(calendars) for _ in range(3)))
    assert [result for results in found for result in results.values()] == [FREE] * 18
    assert fake_microsoft.mailbox().most_in_flight == 1


async def test_a_project_with_slow_accounts_does_not_hold_up_another(
    reads: Reads,
    fake_google: FakeGoogle,
    fake_microsoft: FakeMicrosoft,
    settings: Settings,
    sessions: Sessions,
    other_project: TestProject,
) -> None:
    slow = [await reads.google(fake_google) for _ in range(20)]
    fake_google.inject_fault("freebusy.query", kind="dribble", count=100)
    reads.access.within_seconds = 3
    other = Reads(reads.access, settings, sessions, other_project)
    quick = await other.microsoft(fake_microsoft)
    waiting = asyncio.create_task(reads.read(slow))
    while not fake_google.requests_to("freebusy.query"):
        await asyncio.sleep(0.01)
    assert await other.read_one(quick) == FREE
    assert not waiting.done()
    results = await waiting
    assert {result.error for result in results.values()} == {"The provider did not respond in time."}
    assert len(fake_google.requests_to("freebusy.query")) == 8


async def test_a_read_that_is_cancelled_leaves_nothing_behind(reads: Reads, fake_google: FakeGoogle) -> None:
    calendar_id = await reads.google(fake_google)
    fake_google.inject_fault("freebusy.query", kind="dribble")
    task = asyncio.create_task(reads.read_one(calendar_id))
    while not fake_google.requests_to("freebusy.query"):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await reads.read_one(calendar_id) == FREE
    assert reads.access._account_turns == {}
    assert reads.access._project_slots == {}


async def test_no_connection_to_the_database_is_held_during_a_call(
    settings: Settings, sessions: Sessions, project: TestProject, fake_google: FakeGoogle
) -> None:
    from app.core.db import create_engine, create_sessions

    engine = create_engine(settings.required_database_url(), pool_size=1)
    own = create_sessions(engine)
    async with live_access(settings, own) as access:
        reads = Reads(access, settings, sessions, project)
        calendar_id = await reads.google(fake_google)
        fake_google.inject_fault("freebusy.query", delay=1)
        task = asyncio.create_task(reads.read_one(calendar_id))
        while not fake_google.requests_to("freebusy.query"):
            await asyncio.sleep(0.01)
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert await task == FREE
    await engine.dispose()


async def test_logs_have_neither_tokens_nor_addresses(
    reads: Reads, fake_google: FakeGoogle, capsys: pytest.CaptureFixture[str]
) -> None:
    calendar_id = await reads.google(fake_google, owner_email="ada@example.com")
    unknown = await reads.share(calendar_id, "secret-team@group.calendar.google.com")
    fake_google.inject_fault("freebusy.query", 403, "forbidden")
    results = await reads.read([calendar_id, unknown])
    results |= await reads.read([unknown])
    printed = capsys.readouterr().out + str(results)
    for secret in ("ada@", "secret-team", "ya29.", fake_google.refresh_token):
        assert secret not in printed
    assert (await load_calendar(reads.sessions, calendar_id)).state == "connected"
