"""Joining the mirror's times with those of a provider."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from app.availability.knowledge import Knowledge
from app.availability.live import BusyTime
from app.availability.live_times import _extended, _joined, _uncovered
from app.availability.spans import MINUTE, instant_of

AT = datetime(2027, 3, 1, tzinfo=UTC)
_FIRST = instant_of(AT)
_STRENGTH = {"out_of_office": 3, "busy": 2, "tentative": 1}

_statuses = st.sampled_from(["out_of_office", "busy", "tentative"])
_spans = st.tuples(st.integers(0, 60), st.integers(1, 20), _statuses)


@given(mirror=st.lists(_spans, max_size=8), live=st.lists(_spans, max_size=8))
def test_the_stronger_status_wins(
    mirror: list[tuple[int, int, str]], live: list[tuple[int, int, str]]
) -> None:
    found = _joined(
        [
            (_FIRST + start * MINUTE, _FIRST + (start + length) * MINUTE, status)
            for start, length, status in mirror
        ],
        [
            BusyTime(AT + timedelta(minutes=start), AT + timedelta(minutes=start + length), status)  # type: ignore[arg-type]
            for start, length, status in live
        ],
    )
    expected: dict[int, str] = {}
    for start, length, status in [*mirror, *live]:
        for minute in range(start, start + length):
            if _STRENGTH[status] > _STRENGTH.get(expected.get(minute, ""), 0):
                expected[minute] = status
    shown = {
        minute: status
        for start, end, status in found
        for minute in range((start - _FIRST) // MINUTE, (end - _FIRST) // MINUTE)
    }
    assert shown == expected
    assert found == sorted(found)
    # Disjoint, and merged for each status.
    for (_, end, status), (start, _, following) in pairwise(found):
        assert end < start or (end == start and status != following)


def _known(since: int | None, until: int | None) -> Knowledge:
    def time(hours: int | None) -> datetime | None:
        return None if hours is None else AT + timedelta(hours=hours)

    return Knowledge(since=time(since), until=time(until), as_of=None, is_stale=False)


def _range(start: int, end: int) -> tuple[datetime, datetime]:
    return AT + timedelta(hours=start), AT + timedelta(hours=end)


def test_what_is_not_covered() -> None:
    assert _uncovered(_known(None, None), *_range(0, 24)) == [_range(0, 24)]
    assert _uncovered(_known(None, 24), *_range(0, 24)) == []
    assert _uncovered(_known(0, 24), *_range(0, 24)) == []
    assert _uncovered(_known(5, 20), *_range(0, 24)) == [_range(0, 5), _range(20, 24)]
    assert _uncovered(_known(30, 40), *_range(0, 24)) == [_range(0, 24)]
    assert _uncovered(_known(-40, -30), *_range(0, 24)) == [_range(0, 24)]


def test_what_is_known_after_a_live_read() -> None:
    for before, after in (
        (_known(None, None), _known(0, 24)),
        (_known(None, 20), _known(None, 24)),
        (_known(5, 20), _known(0, 24)),
        (_known(5, 30), _known(0, 30)),
        (_known(-5, 20), _known(-5, 24)),
        # Nothing is known between the two.
        (_known(30, 40), _known(0, 24)),
        (_known(-40, -30), _known(0, 24)),
    ):
        assert _extended(before, *_range(0, 24)) == after
