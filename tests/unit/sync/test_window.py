"""The window of a calendar's syncs: what a full round reads, and how long that is enough."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.events.data import Window
from app.settings import Settings
from app.sync.repository import SyncState
from app.sync.window import anchored_at, kept_window, new_window, window_days

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)
_NOTHING: dict[str, Any] = dict.fromkeys(SyncState.__dataclass_fields__)
INTERVALS = st.sampled_from([1, 1800, 3600, 21_600, 86_400, 7 * 86_400])
PAST_DAYS = st.one_of(st.none(), st.integers(0, 365))
FUTURE_DAYS = st.one_of(st.none(), st.integers(1, 730))
SETTINGS = st.builds(
    lambda past, future, interval, with_push: Settings(
        _env_file=None,
        calendar_sync_window_past_days=past,
        calendar_sync_window_future_days=future,
        calendar_sync_interval_seconds=interval,
        calendar_sync_interval_with_push_seconds=with_push,
    ),
    st.integers(0, 3650),
    st.integers(1, 1800),
    INTERVALS,
    INTERVALS,
)


def state(past_days: int | None, future_days: int | None, *, now: datetime = NOW) -> SyncState:
    values = {**_NOTHING, "window_past_days": past_days, "window_future_days": future_days, "now": now}
    return SyncState(**values)


def after(read: SyncState, window: Window, passed: timedelta, **changes: Any) -> SyncState:
    return replace(read, window_start=window.start, window_end=window.end, now=read.now + passed, **changes)


def longest_interval(settings: Settings) -> timedelta:
    return timedelta(
        seconds=max(
            settings.calendar_sync_interval_seconds, settings.calendar_sync_interval_with_push_seconds
        )
    )


@given(SETTINGS, PAST_DAYS, FUTURE_DAYS, st.timedeltas(timedelta(0), timedelta(days=40)))
def test_a_kept_window_covers_what_is_promised_until_the_next_sync(
    settings: Settings, past: int | None, future: int | None, passed: timedelta
) -> None:
    read = state(past, future)
    window = new_window(settings, read)
    later = after(read, window, passed)
    kept = kept_window(settings, later)
    days = window_days(settings, past, future)
    interval = longest_interval(settings)
    assert kept == (window if passed <= window.end - read.now - days.future * DAY - interval else None)
    # A full round is rare, and what it reads is what is promised and not much more.
    assert kept is not None or passed > timedelta(hours=4.5)
    assert window.end <= read.now + days.future * DAY + interval + timedelta(hours=6)
    if kept is not None:
        assert kept.start <= later.now - days.past * DAY
        assert kept.end >= later.now + interval + days.future * DAY
        assert anchored_at(settings, later, kept) == read.now


@given(SETTINGS, SETTINGS, PAST_DAYS, FUTURE_DAYS, PAST_DAYS, FUTURE_DAYS, st.timedeltas(-DAY, 800 * DAY))
def test_whatever_has_changed_a_kept_window_covers_what_is_promised_now(
    before: Settings,
    now: Settings,
    past_before: int | None,
    future_before: int | None,
    past: int | None,
    future: int | None,
    passed: timedelta,
) -> None:
    read = state(past_before, future_before)
    later = after(read, new_window(before, read), passed, window_past_days=past, window_future_days=future)
    kept = kept_window(now, later)
    if kept is None:
        return
    days = window_days(now, past, future)
    assert kept.start <= later.now - days.past * DAY
    assert kept.end >= later.now + longest_interval(now) + days.future * DAY
    # Nor does it cover so much more that a smaller window would go unnoticed.
    assert kept.start >= later.now - days.past * DAY - timedelta(hours=6)
    assert kept.end <= later.now + longest_interval(now) + days.future * DAY + timedelta(hours=6)


@given(
    SETTINGS, PAST_DAYS, FUTURE_DAYS, PAST_DAYS, FUTURE_DAYS, st.timedeltas(timedelta(0), timedelta(hours=4))
)
def test_a_change_of_the_window_starts_a_full_round_and_one_that_changes_nothing_does_not(
    settings: Settings,
    past_before: int | None,
    future_before: int | None,
    past: int | None,
    future: int | None,
    passed: timedelta,
) -> None:
    read = state(past_before, future_before)
    later = after(read, new_window(settings, read), passed, window_past_days=past, window_future_days=future)
    is_same = window_days(settings, past_before, future_before) == window_days(settings, past, future)
    assert (kept_window(settings, later) is not None) == is_same


def test_as_much_more_past_as_less_future_is_another_window() -> None:
    settings = Settings(_env_file=None)
    read = state(1, 28)
    window = new_window(settings, read)
    for past, future in ((2, 27), (0, 29)):
        later = after(read, window, timedelta(hours=1), window_past_days=past, window_future_days=future)
        assert kept_window(settings, later) is None
    assert kept_window(settings, after(read, window, timedelta(hours=1))) == window


def test_a_calendar_that_was_never_synced_has_no_window() -> None:
    assert kept_window(Settings(_env_file=None), state(None, None)) is None
