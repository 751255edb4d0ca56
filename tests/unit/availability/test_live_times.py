"""What is asked of a provider, and what is known afterwards."""

from datetime import UTC, datetime, timedelta

from app.availability.knowledge import Knowledge
from app.availability.live_times import _extended, _uncovered

AT = datetime(2027, 3, 1, tzinfo=UTC)


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
