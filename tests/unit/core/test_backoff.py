import pytest

from app.core.backoff import LONGEST_RETRY_AFTER_SECONDS, Backoff, respect_retry_after, spread

EXACT = (1.0, 1.0)


def test_waits_grow_from_the_first_to_the_longest():
    backoff = Backoff.exponential(30.0, 1800.0, jitter=EXACT)
    assert [backoff.delay(failures) for failures in range(1, 9)] == [30, 60, 120, 240, 480, 960, 1800, 1800]


def test_the_last_wait_of_a_schedule_repeats():
    backoff = Backoff((5.0, 30.0), EXACT)
    assert [backoff.delay(failures) for failures in (0, 1, 2, 3, 1000)] == [5, 5, 30, 30, 30]


def test_jitter_stays_in_its_range_and_varies():
    waits = {Backoff((100.0,), (0.75, 1.25)).delay(1) for _ in range(200)}
    assert 75 <= min(waits) < 90
    assert 110 < max(waits) <= 125
    assert all(80 <= spread(100, (0.8, 1.0)) <= 100 for _ in range(200))


def test_a_retry_after_only_lengthens_and_is_a_day_at_most():
    backoff = Backoff((60.0,), EXACT)
    assert backoff.delay(1, retry_after=10) == 60
    assert backoff.delay(1, retry_after=600) == 600
    assert backoff.delay(1, retry_after=10 * LONGEST_RETRY_AFTER_SECONDS) == LONGEST_RETRY_AFTER_SECONDS
    assert respect_retry_after(5.0, None) == 5


def test_a_schedule_without_waits_or_growth_is_refused():
    with pytest.raises(ValueError, match="at least one wait"):
        Backoff((), EXACT)
    with pytest.raises(ValueError, match="positive first wait"):
        Backoff.exponential(0.0, 10.0, jitter=EXACT)
    with pytest.raises(ValueError, match="positive first wait"):
        Backoff.exponential(1.0, 10.0, jitter=EXACT, factor=1.0)
