"""Which rows of a hosted event are removed when its components change."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from app.hosted.components import EventComponent, instance_from_series
from app.hosted.repository import LiveRow
from app.hosted.rows import find_removed, next_expansion

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SINCE = NOW - timedelta(days=30)
EVENT = EventComponent(uid="u", name="n", start=NOW, end=NOW + timedelta(hours=1), timezone="UTC")
SERIES = replace(EVENT, rrule="FREQ=DAILY")


def row(days: float | None, name: str = "") -> LiveRow:
    """A row that starts so many days after NOW; None for a row without a start."""
    return LiveRow(
        f"evt_{name or days}",
        f"u_{name or days}",
        NOW + timedelta(days=days) if days is not None else None,
    )


def removed(
    live: list[LiveRow], *components: EventComponent, expanded: frozenset[str] = frozenset()
) -> list[str]:
    by_key = {component.recurrence_key: component for component in components}
    return find_removed(live, by_key, expanded=expanded, since=SINCE)


def test_rows_that_are_still_there_stay():
    live = [row(1), row(2)]
    assert removed(live, SERIES, expanded=frozenset({"u_1", "u_2"})) == []


def test_of_a_changed_series_only_what_is_in_the_past_stays():
    live = [row(-31), row(-29), row(5), row(None, "unknown")]
    assert removed(live, SERIES, expanded=frozenset({"u_6"})) == ["evt_-29", "evt_5", "evt_unknown"]


@pytest.mark.parametrize(
    "master", [replace(SERIES, is_cancelled=True), replace(EVENT, is_cancelled=True), EVENT]
)
def test_of_a_cancelled_series_or_a_single_event_nothing_stays(master):
    live = [row(-31), row(5)]
    assert removed(live, master) == ["evt_-31", "evt_5"]


def test_the_row_of_an_event_that_becomes_a_series_is_removed():
    live = [LiveRow("evt_event", "u", NOW - timedelta(days=31)), row(1)]
    assert removed(live, SERIES, expanded=frozenset({"u_1"})) == ["evt_event"]


@pytest.mark.parametrize("days", [-31, 5])
def test_a_cancelled_instance_is_removed_wherever_it_is(days):
    live = [row(days), row(6)]
    cancelled = replace(instance_from_series(SERIES, NOW, str(days)), is_cancelled=True)
    changed = instance_from_series(SERIES, NOW, "6")
    assert removed(live, SERIES, cancelled, changed, expanded=frozenset({"u_6"})) == [f"evt_{days}"]


@pytest.mark.parametrize(
    ("component", "is_due_again"),
    [
        (SERIES, True),
        (EVENT, False),
        (replace(SERIES, is_cancelled=True), False),
        (replace(SERIES, rrule="FREQ=DAILY;UNTIL=20261124T115900Z"), True),
        (replace(SERIES, rrule="FREQ=DAILY;UNTIL=20261124T105900Z"), False),
    ],
)
def test_only_series_that_go_on_are_expanded_again(component, is_due_again):
    at = next_expansion(component, now=NOW)
    assert (at is not None and at > NOW) is is_due_again
