"""Which time range a sync covers, and when the next sync is (pure, save for jitter).

The window is fetched further than promised, so that full rounds are rare. The margin varies, so that calendars
that were connected together do not have their full rounds together.
"""

import random
from datetime import datetime, timedelta
from typing import NamedTuple

from app.core.backoff import spread
from app.events.data import Window
from app.settings import Settings
from app.sync.repository import SyncState

_MARGIN = timedelta(hours=6)
_LEAST_MARGIN = timedelta(hours=4.5)
_INTERVAL_JITTER = (0.8, 1.0)
_DAY = timedelta(days=1)


class WindowDays(NamedTuple):
    """The sync window of a calendar: how many days back and ahead its events are kept in sync."""

    past: int
    future: int


def window_days(settings: Settings, past_days: int | None, future_days: int | None) -> WindowDays:
    """Return the window that a calendar has: the one that a client chose, or the settings' window."""
    return WindowDays(
        settings.calendar_sync_window_past_days if past_days is None else past_days,
        settings.calendar_sync_window_future_days if future_days is None else future_days,
    )


def new_window(settings: Settings, state: SyncState) -> Window:
    """The window of a full round that starts now."""
    days = _days_of(settings, state)
    margin = _MARGIN - (_MARGIN - _LEAST_MARGIN) * random.random()  # noqa: S311 - jitter
    return Window(
        start=state.now - days.past * _DAY,
        end=state.now + days.future * _DAY + _longest_interval(settings) + margin,
    )


def kept_window(settings: Settings, state: SyncState) -> Window | None:
    """The window of the last full round; None if it does not cover what is promised until the next sync.

    Where the calendar's or the settings' window has changed, that is None, too, since the range of time differs.
    """
    if state.window_start is None or state.window_end is None:
        return None
    window = Window(state.window_start, state.window_end)
    began_at = anchored_at(settings, state, window)
    future = _days_of(settings, state).future * _DAY
    margin = window.end - began_at - future - _longest_interval(settings)
    return window if timedelta(0) <= state.now - began_at <= margin <= _MARGIN else None


def anchored_at(settings: Settings, state: SyncState, window: Window) -> datetime:
    """When the full round of this window began, if the calendar's window has not changed since."""
    return window.start + _days_of(settings, state).past * _DAY


def next_in(seconds: float) -> timedelta:
    """The time to the next sync: up to a fifth less, so that calendars connected together spread."""
    return timedelta(seconds=spread(seconds, _INTERVAL_JITTER))


def _days_of(settings: Settings, state: SyncState) -> WindowDays:
    return window_days(settings, state.window_past_days, state.window_future_days)


def _longest_interval(settings: Settings) -> timedelta:
    seconds = max(settings.calendar_sync_interval_seconds, settings.calendar_sync_interval_with_push_seconds)
    return timedelta(seconds=seconds)
