"""Delta links of Microsoft Graph: expired, refused and changed while pages are read."""

from collections.abc import Callable
from typing import Any

import pytest

from app.events.data import Window
from app.providers.base import (
    CursorExpired,
    RateLimited,
    Unavailable,
)
from app.providers.microsoft import client as microsoft_client
from tests.fakes.microsoft import EXPIRED_SPELLINGS, FakeMicrosoft, GraphRequest
from tests.fakes.server import serve
from tests.integration.providers.microsoft.calendar import DAY, NOW, World, add, on_nth


@pytest.mark.parametrize("spelling", EXPIRED_SPELLINGS)
@pytest.mark.parametrize("has_location", [False, True])
async def test_an_expired_delta_link_asks_for_a_full_round(
    world: World, spelling: str, has_location: bool
) -> None:
    event_id = add(world.fake)
    cursor = await world.cursor()
    world.fake.expire_delta(spelling, has_location=has_location)
    with pytest.raises(CursorExpired):
        await world.round(cursor)
    assert set((await world.round()).events) == {event_id}


async def test_a_link_may_expire_between_two_pages(world: World) -> None:
    cursor = await world.cursor()
    add(world.fake)
    world.fake.empty_pages = True
    world.fake.on_request = on_nth("delta", 2, world.fake.expire_delta)
    with pytest.raises(CursorExpired):
        await world.round(cursor)


@pytest.mark.parametrize("status", [400, 404])
async def test_a_delta_link_that_is_not_understood_asks_for_a_full_round(world: World, status: int) -> None:
    cursor = await world.cursor()
    world.fake.garbled_delta_status = status
    with pytest.raises(CursorExpired):
        await world.round(cursor[:-9] + "garbled%3d")


@pytest.mark.parametrize(
    "cursor", ["", "graph-1:", "google-1:abc", "graph-1:not a link", "graph-1:http://[x"]
)
async def test_a_cursor_of_another_kind_asks_for_a_full_round(world: World, cursor: str) -> None:
    with pytest.raises(CursorExpired):
        await world.round(cursor)
    assert world.fake.requests == []


@pytest.mark.parametrize(
    "change",
    [
        lambda link: link.replace("127.0.0.1", "localhost"),
        lambda link: link.replace("http://", "http://someone@"),
        lambda link: link.replace("http://", "https://"),
        lambda link: link.replace("/v1.0", "1/v1.0", 1),
    ],
)
async def test_no_token_is_sent_where_a_cursor_points_elsewhere(
    world: World, change: Callable[[str], str]
) -> None:
    cursor = await world.cursor()
    world.fake.requests.clear()
    with pytest.raises(CursorExpired):
        await world.round(change(cursor))
    assert world.fake.requests == []


async def test_no_token_is_sent_where_a_page_link_points_elsewhere(world: World) -> None:
    world.fake.seed(5, start=NOW)
    stranger = FakeMicrosoft()
    async with serve(stranger) as stranger_url:
        world.fake.foreign_links = stranger_url
        with pytest.raises(Unavailable):
            await world.round(page_size=2)
    assert stranger.requests == []


async def test_links_are_followed_as_they_are(world: World) -> None:
    world.fake.empty_pages = True
    await world.round(await world.cursor())
    queries = [request.query for request in world.fake.requests_to("delta")]
    assert [query.partition("=")[0] for query in queries] == [
        *("startDateTime", "$skiptoken", "$skiptoken"),
        *("$deltatoken", "$skiptoken", "$skiptoken"),
    ]
    assert [query[-3:] for query in queries[1:]] == ["%2b", "%2b", "%3d", "%2b", "%2b"]


# --- changes while a round is under way ------------------------------------------------------------------


async def test_what_changes_after_the_delta_link_is_taken_comes_in_the_next_round(world: World) -> None:
    event_id = add(world.fake, subject="before")
    late: list[str] = []
    # The delta link is given out by then; calendarView may or may not see the change.
    world.fake.on_request = on_nth("calendarView", 1, lambda: late.append(add(world.fake, subject="late")))
    first = await world.round()
    assert event_id in first.events
    second = await world.round(first.cursor)
    assert second.kept == {event_id, *late}
    assert (await world.round(second.cursor)).events == {}


async def test_an_event_that_goes_between_two_pages_does_not_hide_another(world: World) -> None:
    world.fake.seed(6, start=NOW)
    # The third page now starts one event later than it would have.
    world.fake.on_request = on_nth("calendarView", 2, lambda: world.fake.delete_event("seed0000000"))
    result = await world.round(page_size=2)
    assert result.kept == world.truth() == {f"seed000000{number}" for number in range(1, 6)}
    assert len(world.fake.requests_to("calendarView")) == 3 + 3
    assert (await world.round(result.cursor)).events == {}


async def test_a_calendar_that_never_stands_still_loses_nothing_and_is_looked_at_again(world: World) -> None:
    world.fake.seed(6, start=NOW)
    number = 0

    def change(request: GraphRequest) -> None:
        nonlocal number
        if request.route == "calendarView":
            number += 1
            world.fake.update_event("seed0000005", subject=f"Version {number}")

    world.fake.on_request = change
    first = await world.round(page_size=2)
    assert first.kept == world.truth()
    world.fake.on_request = lambda _request: None
    second = await world.round(first.cursor)
    assert second.events["seed0000005"].name == f"Version {number}"
    assert (await world.round(second.cursor)).events == {}


async def test_a_link_that_expires_while_pages_are_read_costs_a_full_round(world: World) -> None:
    world.fake.seed(6, start=NOW)
    world.fake.on_request = on_nth("calendarView", 3, world.fake.expire_delta)
    result = await world.round(page_size=2)
    assert (result.kept, result.cursor) == (world.truth(), None)


# --- where delta is of no use ----------------------------------------------------------------------------


async def test_a_calendar_without_delta_is_read_whole_each_time(world: World, logs: list[Any]) -> None:
    world.fake.no_delta = True
    kept, deleted = add(world.fake), add(world.fake)
    first = await world.round()
    assert (set(first.events), first.cursor, first.is_snapshot) == ({kept, deleted}, None, True)
    world.fake.delete_event(deleted)
    assert (await world.round(first.cursor)).kept == {kept}
    assert {"event": "microsoft.delta_unusable", "code": "bad_request", "log_level": "warning"} in logs


async def test_a_delta_that_goes_round_in_circles_does_not_hold_up_the_sync(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microsoft_client, "_MOST_PAGES", 5)
    event_id = add(world.fake)
    cursor = await world.cursor()
    world.fake.endless_delta = True
    without_cursor, with_cursor = await world.round(), await world.round(cursor)
    assert (without_cursor.kept, without_cursor.cursor) == ({event_id}, None)
    assert (with_cursor.kept, with_cursor.cursor) == ({event_id}, cursor)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "headers": {"Retry-After": "7"}},
        {"status": 504, "body": b"<html>Gateway Timeout</html>"},
        {"status": 200, "body": b"not json", "content_type": "application/json"},
        {"status": 200, "body": b"{}", "content_type": "application/json"},
        {"status": 200, "body": b'{"value": []}', "content_type": "application/json"},
        {"status": 403, "reason": "ErrorAccessDenied"},
        {"status": 410, "reason": "resyncRequired"},
        {"kind": "reset"},
        {"kind": "cut"},
    ],
)
async def test_a_failing_delta_does_not_hold_up_the_first_round(world: World, fault: Any) -> None:
    event_id = add(world.fake)
    world.fake.inject_fault("delta", **fault)
    result = await world.round()
    assert (result.kept, result.cursor) == ({event_id}, None)


async def test_a_failing_delta_does_not_hold_up_later_rounds_and_is_tried_again(world: World) -> None:
    event_id = add(world.fake, subject="before")
    cursor = await world.cursor()
    world.fake.inject_fault("delta", 500)
    world.fake.update_event(event_id, subject="after")
    blind = await world.round(cursor)
    assert (blind.events[event_id].name, blind.cursor) == ("after", cursor)
    assert (await world.round((await world.round(cursor)).cursor)).events == {}


async def test_throttling_never_causes_another_request(world: World) -> None:
    world.fake.inject_fault("delta", 429, "ApplicationThrottled", headers={"Retry-After": "11"})
    with pytest.raises(RateLimited) as caught:
        await world.round()
    assert caught.value.retry_after == 11
    assert world.fake.requests_to("calendarView") == []


async def test_a_window_longer_than_graph_expands_is_read_in_parts(world: World) -> None:
    near, far = add(world.fake), add(world.fake, days=1_900)
    across = world.fake.add_event(start=NOW + 1_700 * DAY, end=NOW + 1_900 * DAY)
    window = Window(NOW - 100 * DAY, NOW + 2_000 * DAY)
    result = await world.round(window=window)
    assert (result.kept, result.cursor) == ({near, far, across}, None)
    assert len(world.fake.requests_to("calendarView")) == 2
