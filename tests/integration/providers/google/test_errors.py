"""Errors of the Google Calendar API and refused access tokens."""

import asyncio
import traceback
from typing import Any

import pytest

from app.core.http import operator_client
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
from app.providers.google.sync import GoogleCalendar
from app.providers.http import request
from tests.fakes.google import EMAIL_SCOPE
from tests.fakes.server import serve
from tests.integration.providers.google.calendar import NOW, WINDOW, World, add, respond_with

SECRET_CALENDAR = "en.french#holiday@group.v.calendar.google.com"


# --- tokens ----------------------------------------------------------------------------------------------


async def test_a_refused_token_is_renewed_once_even_in_the_middle_of_a_round(world: World) -> None:
    world.fake.seed(25, start=NOW)
    found = 0
    async for page in world.calendar(page_size=10).changes(cursor=None, window=WINDOW):
        found += len(page.events)
        world.fake.expire_access_tokens()
    assert found == 25
    statuses = [request.status for request in world.fake.requests_to("events.list")]
    assert statuses == [200, 401, 200, 401, 200]
    sent = [request.headers["authorization"] for request in world.fake.requests_to("events.list")]
    assert len(set(sent)) == 3


async def test_a_token_that_lives_for_no_time_at_all_is_renewed_once_and_no_more(world: World) -> None:
    world.fake.access_token_ttl = 0.0
    with pytest.raises(CredentialsRevoked):
        await world.round()
    assert len(world.fake.requests_to("events.list")) == 2


async def test_a_revoked_grant_ends_with_credentials_revoked(world: World) -> None:
    cursor = await world.cursor()
    world.fake.revoke_grant(world.fake.refresh_token)
    with pytest.raises(CredentialsRevoked):
        await world.round(cursor)


async def test_a_token_without_the_calendar_scope_is_denied(world: World) -> None:
    token = world.fake.issue_access_token(refresh_token=world.fake.add_grant(scopes=[EMAIL_SCOPE]))
    world.tokens.current = token
    with pytest.raises(AccessDenied) as caught:
        await world.round()
    assert caught.value.code == "scope_missing"


# --- failures of the API ---------------------------------------------------------------------------------


async def test_a_calendar_that_is_not_there_is_removed(world: World) -> None:
    team = world.fake.add_calendar("team@group.calendar.google.com")
    cursor = (await world.round(calendar_id=team)).cursor
    world.fake.remove_calendar(team)
    with pytest.raises(CalendarRemoved):
        await world.round(cursor, calendar_id=team)


async def test_calendar_ids_are_percent_encoded(world: World) -> None:
    world.fake.add_calendar(SECRET_CALENDAR)
    event_id = add(world.fake, calendar_id=SECRET_CALENDAR)
    assert set((await world.round(calendar_id=SECRET_CALENDAR)).events) == {event_id}
    assert world.fake.requests_to("events.list")[0].path == (
        "/calendar/v3/calendars/en.french%23holiday%40group.v.calendar.google.com/events"
    )


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (403, "rateLimitExceeded", RateLimited),
        (403, "userRateLimitExceeded", RateLimited),
        (429, "rateLimitExceeded", RateLimited),
        (403, "accessNotConfigured", ClientMisconfigured),
        (403, "notACalendarUser", AccessDenied),
        (403, "forbidden", AccessDenied),
        (500, "backendError", Unavailable),
        (503, "internalError", Unavailable),
        (410, "fullSyncRequired", CursorExpired),
    ],
)
async def test_every_refusal_has_its_error(
    world: World, status: int, reason: str, expected: type[ProviderError]
) -> None:
    world.fake.inject_fault("events.list", status, reason, headers={"Retry-After": "17"})
    with pytest.raises(expected) as caught:
        await world.round()
    if isinstance(caught.value, RateLimited | Unavailable):
        assert caught.value.retry_after == 17.0
    assert (await world.round()).cursor is not None


async def test_a_bad_request_of_our_own_is_reported_as_such_and_is_not_retried(world: World) -> None:
    with pytest.raises(ProviderError) as caught:
        await world.round(page_size=0)
    assert (type(caught.value), caught.value.code) == (ProviderError, "bad_request")
    assert len(world.fake.requests_to("events.list")) == 1


@pytest.mark.parametrize(
    "body",
    [b"<html>Sign in</html>", b"[]", b"null", b"{}", b'{"ok": true}', b'{"items": {}}', b'{"items": [], "nextPageToken": 5}',
     b'{"items": [], "nextSyncToken": {}}', b"", b"[" * 100_000],
)  # fmt: skip
async def test_a_response_that_is_no_list_is_an_outage_never_an_empty_calendar(
    world: World, body: bytes
) -> None:
    respond_with(world.fake, body)
    with pytest.raises(Unavailable):
        await world.round()


async def test_pages_that_go_round_in_a_circle_end(world: World) -> None:
    respond_with(world.fake, {"items": [], "nextPageToken": "again"}, count=100)
    with pytest.raises(Unavailable) as caught:
        await world.round()
    assert caught.value.code == "broken_answer"
    assert len(world.fake.requests_to("events.list")) == 2


@pytest.mark.parametrize("kind", ["reset", "cut"])
@pytest.mark.parametrize("after", [0, 1])
async def test_a_connection_that_breaks_is_an_outage(world: World, kind: str, after: int) -> None:
    world.fake.seed(25, start=NOW)
    world.fake.inject_fault("events.list", kind=kind, after=after)
    with pytest.raises(Unavailable):
        await world.round(page_size=20)
    assert len((await world.round()).events) == 25


async def test_html_slow_and_unreachable_servers_are_outages(world: World) -> None:
    world.fake.inject_fault("events.list", 502, body=b"<html>Bad gateway</html>")
    with pytest.raises(Unavailable):
        await world.round()
    world.fake.inject_fault("events.list", delay=5.0)
    async with operator_client(timeout=0.1) as hasty:
        with pytest.raises(Unavailable) as caught:
            await world.round(client=hasty)
        assert caught.value.code == "timeout"
    async with serve(world.fake) as closed:
        pass
    provider = GoogleCalendar(client=world.client, tokens=world.tokens, base_url=closed, calendar_id=None)
    with pytest.raises(Unavailable) as caught:
        await anext(provider.changes(cursor=None, window=WINDOW))
    assert caught.value.code == "connection_failed"


async def test_a_server_that_dribbles_or_floods_is_cut_off(world: World) -> None:
    world.fake.inject_fault("events.list", kind="dribble", count=2)
    url = f"{world.url}/calendar/v3/calendars/primary/events"
    with pytest.raises(Unavailable) as caught:
        async with asyncio.timeout(5):  # the most that this test waits
            await request(world.client, "GET", url, provider="Google", max_bytes=10_000, deadline_seconds=0.2)
    assert caught.value.code == "timeout"
    with pytest.raises(Unavailable) as caught:
        await request(world.client, "GET", url, provider="Google", max_bytes=10, deadline_seconds=10.0)
    assert caught.value.code == "answer_too_large"


async def test_no_error_and_no_log_holds_a_token_or_an_address(world: World, logs: list[Any]) -> None:
    cursor = await world.cursor()
    assert world.tokens.current is not None
    secrets = {
        world.tokens.current,
        cursor.partition(":")[2],
        world.fake.refresh_token,
        world.fake.client_secret,
    }
    failures: list[ProviderError] = []
    for fault in (
        {"status": 403, "reason": "forbidden"},
        {"status": 404, "reason": "notFound"},
        {"status": 429, "reason": world.tokens.current},
        {"status": 400, "reason": world.tokens.current},
        {"status": 502, "body": world.tokens.current.encode()},
        {"status": 200, "body": cursor.encode()},
        {"kind": "reset"},
        {"kind": "cut"},
    ):
        world.fake.inject_fault("events.list", **fault)
        with pytest.raises(ProviderError) as caught:
            await world.round(cursor)
        failures.append(caught.value)
    for fault in (
        {"status": 400, "reason": "invalid_grant"},
        {"status": 401, "reason": "invalid_client"},
        {"kind": "reset"},
    ):
        world.fake.inject_fault("token", **fault)
        with pytest.raises(ProviderError) as caught:
            await world.tokens.refresh()
        failures.append(caught.value)
    for failure in failures:
        assert failure.__context__ is None or isinstance(failure.__context__, ProviderError)
        shown = "".join(traceback.format_exception(failure)) + repr(failure)
        assert not [secret for secret in secrets if secret in shown]
        assert world.url not in str(failure)
    assert logs == []
