"""Which time range a sync covers, and when the next sync is (pure, save for jitter).

The window is fetched further than promised, so that full rounds are rare. The margin varies, so that calendars
that were connected together do not have their full rounds together.
"""

import random
from datetime import datetime, timedelta

from app.core.backoff import spread
from app.events.data import Window
from app.settings import Settings
from app.sync.repository import SyncState

_MARGIN = timedelta(hours=6)
_LEAST_MARGIN = timedelta(hours=4.5)
_INTERVAL_JITTER = (0.8, 1.0)


def new_window(settings: Settings, now: datetime) -> Window:
    """The window of a full round that starts now."""
    margin = _MARGIN - (_MARGIN - _LEAST_MARGIN) * random.random()  # noqa: S311 - jitter
    return Window(
        start=now - settings.sync_window_past_for,
        end=now + settings.sync_window_future_for + _longest_interval(settings) + margin,
    )


def kept_window(settings: Settings, state: SyncState) -> Window | None:
    """The window of the last full round; None if it does not cover what is promised until the next sync."""
    if state.window_start is None or state.window_end is None:
        return None
    interval = _longest_interval(settings)
    reaches = state.window_end >= state.now + settings.sync_window_future_for + interval
    # The settings may have changed since the last full round.
    margin = (state.window_end - state.window_start) - (
        settings.sync_window_past_for + settings.sync_window_future_for + interval
    )
    fits = _LEAST_MARGIN - interval <= margin <= _MARGIN
    return Window(state.window_start, state.window_end) if reaches and fits else None


def next_in(seconds: float) -> timedelta:
    """The time to the next sync: up to a fifth less, so that calendars connected together spread."""
    return timedelta(seconds=spread(seconds, _INTERVAL_JITTER))


def _longest_interval(settings: Settings) -> timedelta:
    seconds = max(settings.calendar_sync_interval_seconds, settings.calendar_sync_interval_with_push_seconds)
    return timedelta(seconds=seconds)
