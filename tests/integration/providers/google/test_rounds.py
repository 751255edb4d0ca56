"""Rounds of reading a Google calendar, and expired sync tokens (docs/reference/google.md)."""

from datetime import timedelta

import pytest

from app.events.data import Window
from app.providers.base import (
    CursorExpired,
    Unavailable,
)
from tests.integration.providers.google.calendar import HOUR, NOW, WINDOW, World, add


async def test_the_first_round_lists_the_window_and_the_next_ones_only_what_changed(world: World) -> None:
    inside, other = add(world.fake, summary="Inside"), add(world.fake, days=2)
    add(world.fake, days=-3)
    add(world.fake, days=40)
    first = await world.round()
    assert set(first.events) == {inside, other}
    event = first.events[inside]
    assert (event.name, event.start_time, event.timezone) == (
        "Inside",
        NOW + timedelta(days=1),
        "Europe/Paris",
    )

    world.fake.update_event(inside, summary="Renamed")
    second = await world.round(first.cursor)
    assert {event.name for event in second.events.values()} == {"Renamed"}
    third = await world.round(second.cursor)
    assert (third.events, third.removed) == ({}, set())
    assert third.cursor is not None


async def test_a_round_sends_only_parameters_that_a_sync_token_allows(world: World) -> None:
    await world.round(await world.cursor())
    full, delta = world.fake.requests_to("events.list")
    assert full.params == {
        "singleEvents": "true",
        "maxResults": "2500",
        "timeMin": "2026-11-19T11:59:59Z",
        "timeMax": "2026-12-18T12:00:01Z",
    }
    assert delta.params.keys() == {"singleEvents", "maxResults", "syncToken"}


async def test_a_round_without_changes_moves_next_to_nothing(world: World) -> None:
    world.fake.seed(300, start=NOW)
    cursor = await world.cursor()
    world.fake.requests.clear()
    await world.round(cursor)
    assert len(world.fake.requests) == 1
    assert world.fake.requests[0].bytes_sent < 2_000


async def test_pages_are_followed_in_both_kinds_of_rounds(world: World) -> None:
    world.fake.seed(25, start=NOW)
    first = await world.round(page_size=10)
    assert [len(page.events) for page in first.pages] == [10, 10, 5]
    for number in range(25):
        world.fake.update_event(f"seed{number:07d}", summary="New")
    second = await world.round(first.cursor, page_size=10)
    assert [len(page.events) for page in second.pages] == [10, 10, 5]
    assert {event.name for event in second.events.values()} == {"New"}
    sent = [request.params for request in world.fake.requests_to("events.list")][3:]
    assert len({params["syncToken"] for params in sent}) == 1
    assert ["pageToken" in params for params in sent] == [False, True, True]


async def test_a_page_is_given_on_before_the_next_one_is_asked_for(world: World) -> None:
    world.fake.seed(30, start=NOW)
    async for _page in world.calendar(page_size=10).changes(cursor=None, window=WINDOW):
        break
    assert len(world.fake.requests_to("events.list")) == 1


@pytest.mark.parametrize("switch", ["empty_pages", "short_pages", "omits_empty_items", "gzip"])
async def test_empty_short_and_compressed_pages_lose_nothing(world: World, switch: str) -> None:
    setattr(world.fake, switch, True)
    world.fake.empty_pages = True
    world.fake.seed(25, start=NOW)
    result = await world.round(page_size=10)
    assert len(result.events) == 25
    assert [] in [page.events for page in result.pages]
    assert (await world.round(result.cursor)).events == {}


async def test_a_change_made_while_pages_are_read_comes_in_the_next_round(world: World) -> None:
    world.fake.seed(25, start=NOW)
    names: list[str | None] = []
    cursor: str | None = None
    async for page in world.calendar(page_size=10).changes(cursor=None, window=WINDOW):
        if not names:
            world.fake.update_event("seed0000020", summary="Late")
            world.fake.delete_event("seed0000021")
        names += [event.name for event in page.events]
        cursor = page.next_cursor
    assert "Late" not in names
    delta = await world.round(cursor)
    assert ([event.name for event in delta.events.values()], delta.removed) == (["Late"], {"seed0000021"})


async def test_a_last_page_without_a_sync_token_is_a_broken_response(world: World) -> None:
    world.fake.no_sync_token = True
    add(world.fake)
    with pytest.raises(Unavailable) as caught:
        await world.round()
    assert caught.value.code == "broken_answer"


async def test_changes_outside_the_window_may_come_and_moves_have_their_new_times(
    world: World,
) -> None:
    moved_out, moved_in = add(world.fake), add(world.fake, days=60)
    cursor = await world.cursor()
    world.fake.move(moved_out, start=NOW + timedelta(days=90), end=NOW + timedelta(days=90) + HOUR)
    world.fake.move(moved_in, start=NOW, end=NOW + HOUR)
    far = add(world.fake, days=120)
    leaky = await world.round(cursor)
    assert set(leaky.events) == {moved_out, moved_in, far}
    world.fake.window_leak = False
    tight = await world.round(cursor)
    assert set(tight.events) == {moved_out, moved_in}
    assert tight.events[moved_out].start_time == NOW + timedelta(days=90)


async def test_an_event_at_the_very_edge_of_the_window_is_in_the_list(world: World) -> None:
    window = Window(NOW + timedelta(microseconds=500), NOW + timedelta(days=1, microseconds=500))
    at_start = world.fake.add_event(start=window.start, end=window.start)
    at_end = world.fake.add_event(start=NOW + timedelta(days=1), end=NOW + timedelta(days=2))
    pages = [page async for page in world.calendar().changes(cursor=None, window=window)]
    found = {event.platform_uuid: event for event in pages[0].events}
    assert found.keys() == {at_start, at_end}
    for event in found.values():
        assert event.start_time is not None
        assert event.end_time is not None
        assert window.overlaps(event.start_time, event.end_time)


# --- cursors that are no good any more -------------------------------------------------------------------


async def test_an_expired_sync_token_ends_the_round_with_cursor_expired(world: World) -> None:
    cursor = await world.cursor()
    world.fake.expire_tokens()
    with pytest.raises(CursorExpired):
        await world.round(cursor)
    assert (await world.round()).cursor is not None


async def test_a_token_that_expires_between_two_pages_ends_the_round(world: World) -> None:
    cursor = await world.cursor()
    world.fake.seed(25, start=NOW)
    with pytest.raises(CursorExpired):
        await world.round(cursor, page_size=10, after_page=world.fake.change_acl)
    assert len(world.fake.requests_to("events.list")) == 3


@pytest.mark.parametrize("status", [400, 410])
async def test_a_sync_token_that_google_cannot_read_ends_the_round(world: World, status: int) -> None:
    world.fake.garbled_sync_token_status = status
    with pytest.raises(CursorExpired):
        await world.round(await world.cursor() + "x")


async def test_a_cursor_of_another_version_is_not_even_sent(world: World) -> None:
    with pytest.raises(CursorExpired):
        await world.round("google-0:CPDAlvWDx70CEPDAlvWDx70CGAU=")
    assert world.fake.requests == []


async def test_a_forgotten_page_token_means_a_full_round_after_a_delta_and_a_retry_after_a_full_one(
    world: World,
) -> None:
    cursor = await world.cursor()
    world.fake.seed(25, start=NOW)
    with pytest.raises(CursorExpired):
        await world.round(cursor, page_size=10, after_page=world.fake.forget_pages)
    with pytest.raises(Unavailable) as caught:
        await world.round(page_size=10, after_page=world.fake.forget_pages)
    assert caught.value.code == "page_token_refused"
