"""Which of the due calendars are next: shares of projects, mailboxes and hosts."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sync.turns import MAILBOX_SYNCS, Due, Kind, Turns, pick_oldest

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def due(number: int, project: str, *, mailbox: str = "", kind: Kind = "account") -> Due:
    name = f"{project}{number}"
    return Due(name, project, kind, mailbox or name, NOW + timedelta(seconds=number))


def fill(turns: Turns, waiting: list[Due], limit: int = 100) -> Counter[str]:
    """What each project gets, when nothing ends."""
    got: Counter[str] = Counter()
    for one in turns.pick(waiting, Counter(), limit):
        turns.begin(one.calendar_id, one.project_id)
        got[one.project_id] += 1
    return got


@pytest.mark.parametrize(("slots", "most"), [(1, 1), (2, 1), (4, 3), (16, 12), (64, 48)])
def test_alone_a_project_has_most_slots_but_not_all(slots: int, most: int) -> None:
    turns = Turns(slots)
    assert fill(turns, [due(n, "a") for n in range(200)]) == {"a": most}
    if slots > 1:
        assert fill(turns, [due(n, "a") for n in range(500, 700)] + [due(999, "b")]) == {"b": 1}


@given(st.integers(2, 40), st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_a_project_with_nothing_under_way_finds_a_slot(slots: int, counts: list[int]) -> None:
    turns = Turns(slots)
    got = fill(turns, [due(n, f"p{project}") for project, count in enumerate(counts) for n in range(count)])
    assert got.total() <= slots
    assert len(got) == min(len(counts), slots)
    if len(counts) < slots:
        assert fill(turns, [due(999, "late")]) == {"late": 1}
    # A project that has less wants no more.
    for project, count in enumerate(counts):
        if got[f"p{project}"] < count:
            assert got[f"p{project}"] >= max(got.values()) - 1


def test_what_has_ended_makes_room() -> None:
    turns = Turns(4)
    assert fill(turns, [due(n, "a") for n in range(9)]) == {"a": 3}
    turns.end("a0")
    assert fill(turns, [due(n, "a") for n in range(9, 18)]) == {"a": 1}


def test_a_host_has_half_of_the_slots() -> None:
    turns = Turns(16, host_of=lambda calendar_id: "hangs" if calendar_id.startswith("a") else None)
    assert fill(turns, [due(n, "a", kind="feed") for n in range(99)]) == {"a": 8}
    assert fill(turns, [due(n, "b", kind="feed") for n in range(99)])["b"] >= 4


def test_a_mailbox_has_three() -> None:
    waiting = [due(n, "a", mailbox="ada") for n in range(9)] + [due(20, "a")]
    assert fill(Turns(16), waiting) == {"a": MAILBOX_SYNCS + 1}
    assert [one.calendar_id for one in pick_oldest(waiting, Counter({"ada": 1}), 3)] == ["a0", "a1", "a20"]
