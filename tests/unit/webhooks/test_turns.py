"""How a worker's slots are shared out among projects and endpoints."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from app.webhooks.turns import ReadyEndpoint, Slots


def _endpoints(project: str, count: int, *, room: int = 4, is_slow: bool = False) -> list[ReadyEndpoint]:
    return [ReadyEndpoint(f"{project}{number}", project, room, is_slow) for number in range(count)]


def _take(slots: Slots, endpoints: list[ReadyEndpoint], limit: int) -> Counter[str]:
    """Shares out and takes; how many each project got."""
    by_id = {endpoint.id: endpoint for endpoint in endpoints}
    got: Counter[str] = Counter()
    for endpoint_id, count in slots.share_out(endpoints, limit).items():
        endpoint = by_id[endpoint_id]
        assert count <= endpoint.room
        got[endpoint.project_id] += count
        for _ in range(count):
            slots.take(endpoint.project_id, is_slow=endpoint.is_slow)
    return got


def test_a_project_alone_uses_most_slots_and_leaves_some_for_the_next() -> None:
    slots = Slots(64)
    first = _endpoints("a", 100)
    assert _take(slots, first, 64) == {"a": 52}
    assert slots.full_projects == ["a"]
    assert _take(slots, first + _endpoints("b", 1, room=20), 12) == {"b": 10}


def test_projects_that_come_together_get_the_same() -> None:
    endpoints = [endpoint for project in "abcd" for endpoint in _endpoints(project, 100)]
    got = _take(Slots(64), endpoints, 64)
    assert max(got.values()) - min(got.values()) <= 1
    assert 56 <= got.total() < 64


def test_slow_endpoints_have_half_of_the_slots_together() -> None:
    slots = Slots(64)
    slow = [endpoint for project in "abcdefgh" for endpoint in _endpoints(project, 50, is_slow=True)]
    assert _take(slots, slow, 64).total() <= 32
    assert _take(slots, _endpoints("z", 1, room=20), 20) == {"z": 20}


def test_every_endpoint_of_a_project_has_its_turn() -> None:
    slots = Slots(4)
    endpoints = _endpoints("a", 10, room=1)
    seen: Counter[str] = Counter()
    for _ in range(15):
        seen.update(slots.share_out(endpoints, 2))
    assert set(seen.values()) == {3}


def test_one_slot_is_enough_to_serve_everybody() -> None:
    slots = Slots(1)
    assert _take(slots, _endpoints("a", 3, is_slow=True), 1) == {"a": 1}
    assert _take(slots, _endpoints("b", 3), 0) == {}
    slots.give_back("a", is_slow=True)
    assert slots.full_projects == []
    assert _take(slots, _endpoints("b", 3), 1) == {"b": 1}


@given(
    total=st.integers(1, 80),
    claims=st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.integers(1, 9)), max_size=40),
)
def test_a_newcomer_gets_a_slot_while_one_is_free(total: int, claims: list[tuple[str, bool, int]]) -> None:
    slots, held = Slots(total), 0
    for project, is_slow, room in claims:
        held += _take(slots, _endpoints(project, 3, room=room, is_slow=is_slow), total - held).total()
        assert held <= total
        if held < total:
            newcomer = slots.share_out(_endpoints("new", 1), 1)
            assert newcomer == {"new0": 1}
