"""What is known of a calendar: of which range of time, as of when, and whether that is old."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from app.availability.repository import CalendarFacts
from app.availability.spans import Instant, Span, instant_of
from app.settings import Settings

# Before every time that a request may ask for.
_ALWAYS: Instant = instant_of(datetime.fromisoformat("1900-01-01T00:00:00Z"))


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known of a calendar.

    - `since`: nothing is known before it; None if there is no such time, or if nothing is known.
    - `until`: nothing is known from it on; None if nothing is known.
    - `as_of`: the last successful sync.
    """

    since: datetime | None
    until: datetime | None
    as_of: datetime | None
    is_stale: bool

    def span(self) -> Span | None:
        """Return the range of time of which something is known."""
        if self.until is None:
            return None
        return (instant_of(self.since) if self.since is not None else _ALWAYS), instant_of(self.until)


def knowledge_of(
    calendar: CalendarFacts, settings: Settings, *, asked_until: datetime, horizon: datetime | None
) -> Knowledge:
    """Judge what is known of a calendar.

    `asked_until`: the end of the time that matters to the request. `horizon`: see `app.hosted.service.find_horizon`,
    for a local calendar with series that go on.
    """
    if calendar.platform == "local":
        return _knowledge_of_local(calendar, settings, asked_until, horizon)
    interval = settings.calendar_sync_interval_seconds
    if calendar.has_push:
        interval = max(interval, settings.calendar_sync_interval_with_push_seconds)
    as_of = calendar.last_successful_sync_at
    is_covered = calendar.covered_from is not None
    return Knowledge(
        since=calendar.covered_from,
        until=calendar.covered_until if is_covered else None,
        as_of=as_of,
        is_stale=(
            as_of is None
            or as_of < calendar.now - 2 * timedelta(seconds=interval)
            or calendar.state != "connected"
            or calendar.is_failing
        ),
    )


def _knowledge_of_local(
    calendar: CalendarFacts, settings: Settings, asked_until: datetime, horizon: datetime | None
) -> Knowledge:
    """Judge a local calendar, which is always up to date.

    Single events have their rows wherever they are. Series have them as far as the workers have expanded them, and back
    to the window's start when they were written (docs/adr/0004-expansion-of-hosted-series.md).
    """
    until = max(calendar.now + settings.sync_window_future_for, asked_until)
    if calendar.has_series:
        assert horizon is not None
        until = horizon
    return Knowledge(since=calendar.series_since, until=until, as_of=calendar.now, is_stale=False)
