"""Rounds of reading a Microsoft calendar (docs/reference/microsoft.md)."""

import pytest

from app.providers.base import (
    Unavailable,
)
from app.providers.microsoft import client as microsoft_client
from tests.fakes.microsoft import GraphRequest
from tests.integration.providers.microsoft.calendar import DAY, HOUR, NOW, WINDOW, World, add, add_daily


async def test_the_first_round_lists_the_window_and_an_unchanged_one_nothing(world: World) -> None:
    inside = add(world.fake, subject="Inside")
    add(world.fake, days=-4)
    add(world.fake, days=40)
    first = await world.round()
    assert first.is_snapshot
    assert set(first.events) == {inside} == world.truth()
    event = first.events[inside]
    assert (event.name, event.start_time, event.timezone) == ("Inside", NOW + DAY, "Europe/Paris")

    second = await world.round(first.cursor)
    assert (second.is_snapshot, second.events, second.kept) == (False, {}, set())
    assert second.cursor is not None


async def test_a_round_without_changes_is_one_small_request(world: World) -> None:
    world.fake.seed(300, start=NOW)
    add_daily(world.fake)
    cursor = await world.cursor()
    for _ in range(3):
        world.fake.requests.clear()
        result = await world.round(cursor)
        assert [request.route for request in world.fake.requests] == ["delta"]
        assert world.fake.requests[0].bytes_sent < 2_000
        assert result.cursor is not None
        cursor = result.cursor


async def test_any_change_brings_the_whole_window_in_full(world: World) -> None:
    edited, deleted, kept = (add(world.fake, subject=name) for name in ("edited", "deleted", "kept"))
    first = await world.round()
    world.fake.update_event(edited, subject="after")
    world.fake.delete_event(deleted)
    added = add(world.fake, subject="added")
    second = await world.round(first.cursor)
    assert second.is_snapshot
    assert {event.name for event in second.events.values()} == {"after", "kept", "added"}
    assert second.kept == {edited, kept, added} == world.truth()
    assert second.events[kept].raw == first.events[kept].raw
    assert second.events[edited].raw != first.events[edited].raw
    assert (await world.round(second.cursor)).events == {}


async def test_every_request_asks_for_immutable_ids_in_utc_and_delta_for_nothing_it_refuses(
    world: World,
) -> None:
    world.fake.seed(7, start=NOW)
    world.fake.empty_pages = True
    first = await world.round(page_size=3)
    add(world.fake)
    await world.round(first.cursor, page_size=3)
    views, deltas = world.fake.requests_to("calendarView"), world.fake.requests_to("delta")
    assert len(views) == 3 + 3
    assert all('IdType="ImmutableId"' in request.headers["prefer"] for request in views + deltas)
    assert all('outlook.timezone="UTC"' in request.headers["prefer"] for request in views + deltas)
    assert all("odata.maxpagesize=500" in request.headers["prefer"] for request in deltas)
    assert deltas[0].params == {
        "startDateTime": "2026-11-18T12:00:00Z",
        "endDateTime": "2026-12-19T12:00:00Z",
    }
    assert views[0].params["$top"] == "3"
    assert [request.params.get("$skip") for request in views] == [None, "3", "6", None, "3", "6"]


async def test_ids_are_the_immutable_ones_on_every_page(world: World) -> None:
    world.fake.seed(5, start=NOW)
    series, _ = add_daily(world.fake)
    result = await world.round(page_size=2)
    assert set(result.events) == world.truth()
    assert {event.recurring_event_id for event in result.events.values()} == {None, series}


@pytest.mark.parametrize("switch", ["empty_pages", "duplicate_items", "gzip"])
async def test_empty_duplicated_and_compressed_pages_lose_nothing(world: World, switch: str) -> None:
    setattr(world.fake, switch, True)
    single = add(world.fake, subject="first")
    _, occurrences = add_daily(world.fake)
    first = await world.round(page_size=2)
    assert set(first.events) == {single, *occurrences}
    world.fake.update_event(single, subject="second")
    second = await world.round(first.cursor, page_size=2)
    assert second.events[single].name == "second"
    assert second.kept == world.truth()
    assert (await world.round(second.cursor)).events == {}


async def test_removed_entries_of_unknown_ids_remove_nothing(world: World) -> None:
    kept = add(world.fake)
    first = await world.round()
    world.fake.unknown_removed = 3
    far = add(world.fake, days=100)
    world.fake.delete_event(far)
    second = await world.round(first.cursor)
    assert second.kept == {kept}
    assert second.events[kept].raw == first.events[kept].raw


async def test_an_event_that_moves_in_or_out_of_the_window_shows_in_the_snapshot(world: World) -> None:
    leaving, coming = add(world.fake), add(world.fake, days=60)
    first = await world.round()
    assert first.kept == {leaving}
    world.fake.move(leaving, start=NOW + 60 * DAY, end=NOW + 60 * DAY + HOUR)
    world.fake.move(coming, start=NOW, end=NOW + HOUR)
    assert (await world.round(first.cursor)).kept == {coming}


# --- large calendars -------------------------------------------------------------------------------------


async def test_a_page_is_given_on_before_the_next_one_is_asked_for(world: World) -> None:
    world.fake.seed(30, start=NOW)
    async for _page in world.calendar(page_size=10).changes(cursor=None, window=WINDOW):
        break
    assert len(world.fake.requests_to("calendarView")) == 1


async def test_pages_that_are_too_large_are_read_in_smaller_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microsoft_client, "_MAX_BODY_BYTES", 40_000)
    world.fake.seed(30, start=NOW, body_length=1_000)
    result = await world.round(page_size=100)
    assert result.kept == world.truth()
    tops = [int(request.params["$top"]) for request in world.fake.requests_to("calendarView")]
    assert tops == [100, 10, 10, 10]


@pytest.mark.parametrize("status", [500, 504])
async def test_pages_that_graph_fails_at_are_made_smaller_and_stay_so(world: World, status: int) -> None:
    world.fake.seed(30, start=NOW)

    def fail_at_large_pages(request: GraphRequest) -> None:
        if int(request.params.get("$top", 0)) > 10:
            world.fake.inject_fault("calendarView", status, body=b"")

    world.fake.on_request = fail_at_large_pages
    first = await world.round(page_size=100)
    assert first.kept == world.truth()
    world.fake.update_event("seed0000001", subject="renamed")
    world.fake.requests.clear()
    second = await world.round(first.cursor, page_size=100)
    assert second.kept == world.truth()
    tops = {
        int(request.params["$top"]) for request in world.fake.requests_to("calendarView") if request.params
    }
    assert tops == {10}
    # A full round tries large pages again. In an outage, smaller pages are not tried.
    world.fake.requests.clear()
    world.fake.on_request = lambda _request: None
    world.fake.inject_fault("*", 503, body=b"", count=10)
    with pytest.raises(Unavailable):
        await world.round(page_size=100)
    assert [request.params["$top"] for request in world.fake.requests_to("calendarView")] == ["100"]


async def test_one_event_that_is_larger_than_any_response_ends_the_sync_with_a_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microsoft_client, "_MAX_BODY_BYTES", 5_000)
    add(world.fake, body="x" * 10_000)
    with pytest.raises(Unavailable) as caught:
        await world.round(page_size=100)
    assert caught.value.code == "answer_too_large"
