"""The grid of slots, and who is free at its places."""

from app.availability.slots import Grid, find_slots
from app.availability.spans import DAY, MINUTE


def _slots(
    starts: list[list[tuple[int, int]]], step: int, minimum: int, required: set[int]
) -> list[tuple[int, list[int]]]:
    found = find_slots(starts, Grid.of_minutes(step), required=required, minimum=minimum)
    return [(slot.start // MINUTE, slot.free) for slot in found]


def test_closed_spans_have_both_of_their_ends() -> None:
    assert _slots([[(0, 30 * MINUTE)]], 15, 1, {0}) == [(0, [0]), (15, [0]), (30, [0])]
    assert _slots([[(1, 30 * MINUTE - 1)]], 15, 1, {0}) == [(15, [0])]
    assert _slots([[(1, 15 * MINUTE - 1)]], 15, 1, {0}) == []


def test_an_interval_that_does_not_divide_a_day_is_counted_from_each_midnight() -> None:
    assert [at for at, _ in _slots([[(0, 2 * DAY - 1)]], 300, 1, {0})] == [
        *range(0, 1440, 300),
        *range(1440, 2880, 300),
    ]
    before_2000 = _slots([[(-DAY, -1)]], 1440, 1, set())
    assert before_2000 == [(-1440, [0])]


def test_required_participants_and_the_minimum() -> None:
    hour = 60 * MINUTE
    starts = [[(0, 2 * hour)], [(hour, 3 * hour)], [(0, 0), (2 * hour, 4 * hour)]]
    assert _slots(starts, 60, 2, {0}) == [(0, [0, 2]), (60, [0, 1]), (120, [0, 1, 2])]
    assert _slots(starts, 60, 1, {2}) == [(0, [0, 2]), (120, [0, 1, 2]), (180, [1, 2]), (240, [2])]
    assert _slots(starts, 60, 3, set()) == [(120, [0, 1, 2])]


def test_spans_that_end_and_begin_at_one_place_do_not_interrupt_it() -> None:
    assert _slots([[(0, MINUTE), (2 * MINUTE, 3 * MINUTE)]], 1, 1, {0}) == [(n, [0]) for n in range(4)]
