"""Merging busy times by status, and writing them."""

from datetime import UTC, datetime
from itertools import pairwise

import orjson
from hypothesis import given
from hypothesis import strategies as st

from app.availability import busy_json as busy_json_module
from app.availability.busy_json import STATUSES, busy_json, merge_busy
from app.availability.spans import MINUTE, SECOND, Span, instant_of

_FIRST = instant_of(datetime(2027, 3, 1, tzinfo=UTC))
_STRENGTH = {"out_of_office": 3, "busy": 2, "tentative": 1}

_spans = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=10)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(_STRENGTH, _spans)))
def test_the_stronger_status_wins(written: dict[str, list[tuple[int, int]]]) -> None:
    by_status: dict[str, list[Span]] = {
        status: [(_FIRST + start * MINUTE, _FIRST + (start + length) * MINUTE) for start, length in spans]
        for status, spans in written.items()
    }
    merged = merge_busy(by_status)
    expected: dict[int, str] = {}
    for status, spans in written.items():
        for start, length in spans:
            for minute in range(start, start + length):
                if _STRENGTH[status] > _STRENGTH.get(expected.get(minute, ""), 0):
                    expected[minute] = status
    found = sorted((*span, status) for status, spans in merged.items() for span in spans)
    shown = {
        minute: status
        for start, end, status in found
        for minute in range((start - _FIRST) // MINUTE, (end - _FIRST) // MINUTE)
    }
    assert shown == expected
    assert all(spans == sorted(spans) for spans in merged.values())
    # Disjoint, and merged for each status.
    for (_, end, status), (start, _, following) in pairwise(found):
        assert end < start or (end == start and status != following)


def test_busy_times_are_written_in_order() -> None:
    written = busy_json(
        {
            "out_of_office": [(_FIRST + 5 * SECOND, _FIRST + MINUTE)],
            "busy": [(_FIRST, _FIRST + 5 * SECOND), (_FIRST + 2 * MINUTE, _FIRST + 3 * MINUTE + 1)],
            "tentative": [(_FIRST + MINUTE, _FIRST + 2 * MINUTE)],
        }
    )
    assert orjson.loads(written) == [
        {"start": f"2027-03-01T00:{start}Z", "end": f"2027-03-01T00:{end}Z", "status": status}
        for start, end, status in (
            ("00:00.000000", "00:05.000000", "busy"),
            ("00:05.000000", "01:00.000000", "out_of_office"),
            ("01:00.000000", "02:00.000000", "tentative"),
            ("02:00.000000", "03:00.000001", "busy"),
        )
    ]
    assert busy_json({status: [] for status in STATUSES}) == "[]"


def test_few_written_instants_are_kept() -> None:
    spans = [(_FIRST + number * MINUTE, _FIRST + number * MINUTE + 1) for number in range(0, 50_000, 2)]
    written = orjson.loads(busy_json({"busy": spans}))
    assert len({one["start"] for one in written}) == len({one["end"] for one in written}) == len(spans)
    assert len(busy_json_module._starts) <= busy_json_module._KEPT
    assert len(busy_json_module._ends["busy"]) <= busy_json_module._KEPT
